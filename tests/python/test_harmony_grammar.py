"""The header grammar: what may be sampled is exactly what is well-formed and declared."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from gpt_oss_native import InvalidArgument, harmony
from gpt_oss_native.harmony import HeaderGrammar, Role, StreamableParser
from reference import harmony_support as support

SMALL = support.small_encoding()
RECIPIENTS = ["functions.get", "functions.get_weather", "python", "browser.open"]
NUM_TURNS = 300


def grammar(**options: object) -> HeaderGrammar:
    return HeaderGrammar(SMALL, recipients=RECIPIENTS, **options)  # type: ignore[arg-type]


def allowed_throughout(rules: HeaderGrammar, tokens: list[int]) -> bool:
    """Whether each token is allowed by the mask before it, and taken."""
    cursor = rules.cursor()
    for token in tokens:
        mask = cursor.mask()
        fits = mask is None or bool(mask[token])
        assert cursor.accept(token) == fits
        if not fits:
            return False
    return True


HEADERS = [
    "<|channel|>analysis<|message|>",
    "<|channel|>commentary<|message|>",
    "<|channel|>final<|message|>",
    "<|channel|>final <|constrain|>json<|message|>",
    "<|channel|>commentary to=functions.get<|message|>",
    "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>",
    "<|channel|>commentary to=functions.get_weather<|constrain|>json<|message|>",
    "<|channel|>analysis to=python code<|message|>",
    "<|channel|>commentary to=functions.get json<|message|>",
    " to=python<|channel|>analysis code<|message|>",
    " to=functions.get<|channel|>commentary <|constrain|>json<|message|>",
    " to=browser.open<|channel|>commentary<|message|>",
]
MALFORMED = [
    "<|message|>",
    "Hello",
    "<|channel|><|message|>",
    "<|channel|>thoughts<|message|>",
    "<|channel|>analysis to=functions.gets<|message|>",
    "<|channel|>analysis to=functions.<|message|>",
    "<|channel|>analysis to=assistant<|message|>",
    "<|channel|>final to=python<|message|>",
    "<|channel|>analysis json<|message|>",
    "<|channel|>final <|constrain|>xml<|message|>",
    " to=python<|message|>",
    " to=python<|channel|>final<|message|>",
    " to=python<|channel|>analysis to=python<|message|>",
    "<|channel|>analysis<|channel|>final<|message|>",
    "<|start|>assistant",
    "<|end|>",
]


@pytest.mark.parametrize("header", HEADERS)
def test_every_well_formed_header_can_be_sampled(header: str) -> None:
    rules = grammar()
    after_end = "<|channel|>analysis<|message|>x<|end|><|start|>assistant"
    for text in (header + "Hi!", after_end + header + "Hi!"):
        assert allowed_throughout(rules, support.tokens_of(SMALL, text))
    spelled = []  # the same header in single bytes
    for token in support.tokens_of(SMALL, header):
        data = SMALL.token_bytes(token) or b""
        single = [SMALL.tokenizer.encode_single_token(bytes([byte])) for byte in data]
        spelled += [token] if SMALL.is_special_token(token) else single
    assert allowed_throughout(rules, spelled)


@pytest.mark.parametrize("header", MALFORMED)
def test_no_malformed_or_undeclared_header_can_be_sampled(header: str) -> None:
    assert not allowed_throughout(grammar(), support.tokens_of(SMALL, header))


def test_whatever_is_sampled_under_the_mask_is_read_without_recovery(
    rng: np.random.Generator,
) -> None:
    """Random choices among the allowed tokens; text is a few random ordinary tokens and an end."""
    draw = random.Random(int(rng.integers(2**32)))
    channels = ("analysis", "commentary", "final")
    rules = grammar(guard_content=True)
    seen = set()
    for _ in range(NUM_TURNS):
        cursor = rules.cursor()
        parser = StreamableParser(SMALL, Role.ASSISTANT, recipients=RECIPIENTS)
        for _ in range(400):
            mask = cursor.mask()
            assert mask is not None or cursor.done
            if mask is None:
                break
            choices = np.flatnonzero(mask)
            if cursor.in_content and draw.random() < 0.4:
                choices = np.intersect1d(choices, SMALL.stop_tokens())
            elif cursor.in_content:
                choices = np.setdiff1d(choices, [*SMALL.special_ids])
            token = int(draw.choice(choices))
            assert cursor.accept(token)
            parser.process(token)
        for message in parser.messages:
            assert message.recovered == ()
            assert message.channel in channels
            assert message.recipient in (None, *RECIPIENTS)
            assert message.end != "<|return|>" or message.channel == "final"
            assert message.end != "<|call|>" or message.recipient is not None
            seen.add((message.channel, message.recipient))
    assert len(seen) >= 3 + 2 * len(RECIPIENTS) - 1


def test_the_mask_is_exactly_the_set_of_tokens_that_continue_a_header() -> None:
    """Against the definition: a token is allowed iff some well-formed header goes on with it."""
    rules = HeaderGrammar(SMALL, recipients=["f"], channels=["final"], call_channels=["final"])
    headers = ["<|channel|>final", "<|channel|>final to=f", " to=f<|channel|>final"]
    types = ["", " <|constrain|>json", "<|constrain|>json"]
    calls = [*types, " code", " json"]
    language = [
        header + kind + "<|message|>"
        for header in headers
        for kind in (calls if "to=" in header else types)
    ]

    def after(prefix: str) -> set[int]:
        out = set()
        for header in language:
            rest = header.removeprefix(prefix) if header.startswith(prefix) else None
            for token in range(SMALL.vocab_size) if rest else ():
                data = SMALL.token_bytes(token) or b"?"
                spells_special = b"<" in data and not SMALL.is_special_token(token)
                if rest and rest.encode().startswith(data) and not spells_special:
                    out.add(token)
        return out

    for header in language:
        cursor = rules.cursor()
        prefix = ""
        for token in support.tokens_of(SMALL, header):
            mask = cursor.mask()
            assert mask is not None
            assert set(np.flatnonzero(mask).tolist()) == after(prefix), prefix
            assert cursor.accept(token)
            prefix += SMALL.decode([token])
        assert cursor.in_content


def test_text_is_free_and_the_next_header_is_not() -> None:
    cursor = grammar().cursor()
    assert cursor.accept_all(support.tokens_of(SMALL, "<|channel|>analysis<|message|>"))
    assert cursor.in_content
    assert cursor.mask() is None
    assert cursor.accept_all(SMALL.encode_text("any <|end|> text"))
    assert cursor.accept(SMALL.end)
    mask = cursor.mask()
    assert mask is not None
    assert np.flatnonzero(mask).tolist() == [SMALL.start]


def test_a_header_token_inside_free_text_begins_a_checked_header() -> None:
    cursor = grammar().cursor()
    cursor.accept_all(support.tokens_of(SMALL, "<|channel|>analysis<|message|>hm"))
    assert cursor.accept(SMALL.channel)
    mask = cursor.mask()
    assert mask is not None
    assert not mask[SMALL.message]
    assert not mask[SMALL.encode_text("?")[0]]


def test_a_turn_is_done_after_a_call_or_a_return() -> None:
    for end in ("<|call|>", "<|return|>"):
        cursor = grammar().cursor()
        cursor.accept_all(support.tokens_of(SMALL, "<|channel|>final<|message|>x" + end))
        assert cursor.done
        assert cursor.mask() is None


def test_guarded_texts_end_as_their_channel_does() -> None:
    rules = grammar(guard_content=True)
    for header, ends in [
        ("<|channel|>analysis<|message|>", {SMALL.end}),
        ("<|channel|>final<|message|>", {SMALL.end, SMALL.return_}),
        ("<|channel|>commentary to=python<|message|>", {SMALL.end, SMALL.call}),
    ]:
        cursor = rules.cursor()
        cursor.accept_all(support.tokens_of(SMALL, header))
        mask = cursor.mask()
        assert mask is not None
        assert {token for token in SMALL.stop_tokens() if mask[token]} == ends
        assert not mask[[SMALL.start, SMALL.channel, SMALL.message, SMALL.constrain]].any()
        ordinary = np.delete(mask, [*SMALL.special_ids])
        assert ordinary.all()
        assert not cursor.accept(SMALL.channel)


def test_without_tools_no_recipient_can_be_written() -> None:
    rules = HeaderGrammar(SMALL)
    for text in ("<|channel|>analysis to=", " to="):
        assert not allowed_throughout(rules, support.tokens_of(SMALL, text))


def test_a_required_call_leaves_no_way_to_answer() -> None:
    rules = grammar(channels=("analysis",))
    for text, fits in [
        ("<|channel|>analysis<|message|>", True),
        ("<|channel|>commentary to=python<|message|>", True),
        ("<|channel|>commentary<|message|>", False),
        ("<|channel|>final<|message|>", False),
    ]:
        assert allowed_throughout(rules, support.tokens_of(SMALL, text)) == fits


def test_a_conversation_declares_its_grammar() -> None:
    system = (
        harmony.SystemContent.new().with_python_tool().with_required_channels(["final", "aside"])
    )
    developer = harmony.DeveloperContent.new().with_function_tools(
        [harmony.ToolDescription.new("get", "d")]
    )
    rules = HeaderGrammar.of_conversation(
        SMALL,
        harmony.Conversation.from_messages(
            [
                harmony.Message.from_role_and_content(Role.SYSTEM, system),
                harmony.Message.from_role_and_content(Role.DEVELOPER, developer),
            ]
        ),
    )
    assert rules.recipients == ("python", "functions.get")
    assert rules.channels == ("final", "aside")
    assert allowed_throughout(
        rules, support.tokens_of(SMALL, "<|channel|>aside to=python<|message|>")
    )


def test_masks_have_the_models_size_in_either_form_and_cannot_be_changed() -> None:
    wide = grammar(vocab_size=800).cursor().mask()
    packed = grammar(vocab_size=800, packed=True).cursor().mask()
    assert wide is not None
    assert packed is not None
    assert wide.shape == (800,)
    assert packed.shape == (100,)
    assert np.array_equal(np.unpackbits(packed, bitorder="little").astype(bool), wide)
    with pytest.raises(ValueError, match="read-only"):
        wide[0] = True


def test_a_token_out_of_grammar_is_reported_and_the_next_message_is_checked_again() -> None:
    cursor = grammar().cursor()
    assert not cursor.accept(SMALL.encode_text("Hello")[0])
    assert cursor.mask() is None
    cursor.accept_all(support.tokens_of(SMALL, " there<|message|>x<|end|>"))
    mask = cursor.mask()
    assert mask is not None
    assert np.flatnonzero(mask).tolist() == [SMALL.start]
    assert cursor.accept(SMALL.start)
    copy = cursor.copy()
    assert copy.accept_all(support.tokens_of(SMALL, "assistant<|channel|>final<|message|>"))
    assert copy.in_content
    assert not cursor.in_content


@pytest.mark.parametrize("recipient", ["a b", "", "x to=y", "<|call|>"])
def test_a_recipient_that_is_no_header_word_is_refused(recipient: str) -> None:
    with pytest.raises(InvalidArgument, match="HeaderGrammar"):
        HeaderGrammar(SMALL, recipients=[recipient])
    with pytest.raises(InvalidArgument, match="HeaderGrammar"):
        HeaderGrammar(SMALL, channels=())


def test_the_published_vocabulary_has_masks_of_its_size(o200k: Path) -> None:
    encoding = harmony.load_harmony_encoding("HarmonyGptOss")
    rules = HeaderGrammar(encoding, recipients=RECIPIENTS, vocab_size=201_088)
    for header in HEADERS:
        assert allowed_throughout(rules, support.tokens_of(encoding, header))
    for header in MALFORMED:
        assert not allowed_throughout(rules, support.tokens_of(encoding, header))
    mask = rules.cursor().mask()
    assert mask is not None
    assert mask.shape == (201_088,)
