"""The streaming parser: well-formed streams, recovery, exact accounting, the published package.

With ``HARMONY_STREAMS=100000`` in the environment that many hostile streams are parsed.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpt_oss_native import harmony
from gpt_oss_native.harmony import Role, StreamableParser, StreamState
from reference import harmony_support as support

SMALL = support.small_encoding()
NUM_STREAMS = int(os.environ.get("HARMONY_STREAMS", "2000"))
NUM_COMPARED = min(NUM_STREAMS, 20000)
TURN = (
    "<|channel|>analysis<|message|>Let me think, 2+2.<|end|>"
    "<|start|>assistant<|channel|>commentary to=functions.x <|constrain|>json<|message|>"
    '{"a": 1}<|call|>'
    "<|start|>functions.x to=assistant<|channel|>commentary<|message|>4 é😀<|end|>"
    "<|start|>assistant to=python<|channel|>analysis code<|message|>1<|call|>"
    "<|start|>assistant<|channel|>final<|message|>It is 4.<|return|>"
)
FRAGMENTS = [
    "<|start|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>", "<|channel|>",
    "<|constrain|>", "<|endoftext|>", "assistant", "user", "tool", "system", "developer",
    "functions.x", "analysis", "commentary", "final", " to=functions.x", " to=", " to=assistant",
    "to", "=", "json", " json", " code", " hello", " world\n", "é😀", " ", ":bob", " foo", "all",
]  # fmt: skip


def hostile_stream(encoding: harmony.HarmonyEncoding, rng: random.Random) -> list[int]:
    """Fragments in disorder, a mutated or truncated turn, or random ids, some of them unknown."""
    kind = rng.randrange(4)
    if kind == 0:
        pieces = (rng.choice(FRAGMENTS) for _ in range(rng.randrange(14)))
        return support.tokens_of(encoding, "".join(pieces))
    if kind == 1:
        size = encoding.vocab_size + 200
        common = sorted({*encoding.stop_tokens(), encoding.start, encoding.message})
        common += [encoding.channel, encoding.constrain]
        length = rng.randrange(20)
        return [rng.choice([rng.randrange(size), rng.choice(common)]) for _ in range(length)]
    tokens = support.tokens_of(encoding, TURN)
    if kind == 2:
        return tokens[: rng.randrange(len(tokens) + 1)]
    for _ in range(rng.randrange(1, 5)):
        place = rng.randrange(len(tokens) + 1)
        removed = rng.choice([0, 1, rng.randrange(4)])
        added = support.tokens_of(encoding, rng.choice(FRAGMENTS)) if rng.random() < 0.7 else []
        tokens[place : place + removed] = added
    return tokens


def run(
    encoding: Any, package: Any, tokens: list[int], role: str | None, **options: Any
) -> tuple[Any, str]:
    """The parser after the whole stream, and its deltas joined with a bar between messages."""
    parser = package.StreamableParser(
        encoding, None if role is None else package.Role(role), **options
    )
    deltas = ""
    for token in tokens:
        parser.process(token)
        deltas += parser.last_content_delta or ""
    return parser.process_eos(), deltas


def draw_role(rng: random.Random) -> str | None:
    return rng.choice(["assistant", "assistant", None, None, "user", "tool"])


def test_no_stream_raises_and_no_token_is_lost(rng: np.random.Generator) -> None:
    draw = random.Random(int(rng.integers(2**32)))
    for _ in range(NUM_STREAMS):
        tokens = hostile_stream(SMALL, draw)
        recipients = draw.choice([None, ["functions.x", "python"]])
        role = draw_role(draw)
        parser, _ = run(SMALL, harmony, tokens, role, recipients=recipients)
        support.assert_every_token_is_accounted_for(parser.messages, tokens)
        assert parser.tokens == tokens
        assert parser.state in (StreamState.EXPECT_START, StreamState.HEADER)
        for message in parser.messages:
            if message.recovered:  # what was recovered can be rendered again
                for word in (message.channel, message.recipient, message.author.name):
                    assert word is None or harmony.Author.new(Role.TOOL, word)


def test_a_stream_can_be_continued_after_any_prefix(rng: np.random.Generator) -> None:
    """What was read half-way (state, text so far) never raises and agrees with the end."""
    draw = random.Random(int(rng.integers(2**32)))
    for _ in range(NUM_STREAMS // 10):
        parser = StreamableParser(SMALL, Role.ASSISTANT)
        text = ""
        for token in hostile_stream(SMALL, draw):
            before = len(parser.messages)
            parser.process(token)
            assert parser.state_data["state"] == parser.state.value
            text = "" if parser.state is not StreamState.CONTENT else parser.current_content
            assert len(parser.messages) in (before, before + 1)
            assert text.endswith(parser.last_content_delta or "")


def test_strict_parsing_is_that_of_the_published_package(
    o200k: Path, rng: np.random.Generator
) -> None:
    package, theirs = support.published()
    ours = harmony.load_harmony_encoding("HarmonyGptOss")
    draw = random.Random(int(rng.integers(2**32)))
    num_parsed = 0
    for _ in range(NUM_COMPARED):
        tokens = hostile_stream(ours, draw)
        role = draw_role(draw)
        try:
            expected, deltas = run(theirs, package, tokens, role, strict=True)
        except package.HarmonyError:
            with pytest.raises(harmony.HarmonyError):
                run(ours, harmony, tokens, role, strict=True)
            continue
        found, found_deltas = run(ours, harmony, tokens, role, strict=True)
        assert [m.to_dict() for m in found.messages] == [m.to_dict() for m in expected.messages]
        assert found.tokens == expected.tokens
        if "\ufffd" not in found_deltas:  # theirs come late beside invalid bytes
            assert found_deltas == deltas
        num_parsed += 1
    assert num_parsed > NUM_COMPARED // 20


def test_what_is_not_flagged_is_what_the_published_package_parses(
    o200k: Path, rng: np.random.Generator
) -> None:
    """But it takes ``<|constrain|>json`` without a recipient for the recipient."""
    package, theirs = support.published()
    ours = harmony.load_harmony_encoding("HarmonyGptOss")
    draw = random.Random(int(rng.integers(2**32)))
    num_well_formed = 0
    for _ in range(NUM_COMPARED):
        tokens = hostile_stream(ours, draw)
        role = draw_role(draw)
        messages = run(ours, harmony, tokens, role)[0].messages
        if any(message.recovered for message in messages):
            continue
        named = any(m.author.name and m.author.role != Role.TOOL for m in messages)
        if named or not (tokens or role is None):
            continue  # ``user:bob``, which it writes and does not read; an opened role and no token
        expected = run(theirs, package, tokens, role, strict=True)[0].messages
        num_well_formed += 1
        for mine, other in zip(messages, expected, strict=True):
            if str(other.recipient).startswith("<|constrain|>"):
                assert (mine.recipient, mine.content_type) == (None, other.recipient)
            else:
                assert mine.to_dict() == other.to_dict()
    assert num_well_formed > NUM_COMPARED // 20


def test_the_views_of_a_stream_under_way_are_those_of_the_published_package(o200k: Path) -> None:
    package, theirs = support.published()
    ours = harmony.load_harmony_encoding("HarmonyGptOss")
    names = ["state_data", "current_content", "current_role", "current_channel", "tokens"]
    names += ["current_recipient", "current_content_type", "last_content_delta"]
    one, two = (
        StreamableParser(ours, Role.ASSISTANT),
        package.StreamableParser(theirs, package.Role.ASSISTANT),
    )
    for token in ours.encode(TURN, allowed_special="all"):
        one.process(token)
        two.process(token)
        for name in names:
            assert getattr(one, name) == getattr(two, name), name
        assert one.state.value == two.state.value
        assert [m.to_dict() for m in one.messages] == [m.to_dict() for m in two.messages]


# Without the published vocabulary


def test_a_well_formed_turn_is_read_to_the_letter() -> None:
    messages = support.parse(SMALL, TURN)
    assert [
        (m.author.role.value, m.author.name, m.channel, m.recipient, m.content_type, m.text, m.end)
        for m in messages
    ] == [
        ("assistant", None, "analysis", None, None, "Let me think, 2+2.", "<|end|>"),
        (
            "assistant",
            None,
            "commentary",
            "functions.x",
            "<|constrain|>json",
            '{"a": 1}',
            "<|call|>",
        ),
        ("tool", "functions.x", "commentary", "assistant", None, "4 é😀", "<|end|>"),
        ("assistant", None, "analysis", "python", "code", "1", "<|call|>"),
        ("assistant", None, "final", None, None, "It is 4.", "<|return|>"),
    ]
    assert not any(message.recovered for message in messages)


def test_deltas_join_to_the_text_whatever_the_tokens_cut() -> None:
    text = "Müller שלום नमस्ते 你好 😊👋🏾👨‍👩‍👧‍👦🇺🇸 naïve"
    header = support.tokens_of(SMALL, "<|channel|>final<|message|>")
    single = [SMALL.tokenizer.encode_single_token(bytes([byte])) for byte in text.encode()]
    for body in (SMALL.encode_text(text), single):
        parser = StreamableParser(SMALL, Role.ASSISTANT)
        deltas = []
        for token in header + body:
            parser.process(token)
            if parser.last_content_delta is not None:
                deltas.append(parser.last_content_delta)
        assert "".join(deltas) == parser.current_content == text
        assert all(deltas)


def test_invalid_bytes_are_replaced_as_they_come() -> None:
    byte = SMALL.tokenizer.encode_single_token
    parser = StreamableParser(SMALL, Role.ASSISTANT).process(SMALL.message)
    for token in (byte(b"\xf0"), byte(b"\x9f")):
        assert parser.process(token).last_content_delta is None
    assert parser.process(byte(b"X")).last_content_delta == "\ufffdX"
    assert parser.process(byte(b"\xe2")).current_content == "\ufffdX"
    assert parser.process(SMALL.end).messages[0].text == "\ufffdX\ufffd"


FINAL = "<|start|>assistant<|channel|>final<|message|>Yes.<|return|>"


@pytest.mark.parametrize(
    ("text", "expected"),
    [  # stream, then (channel, recipient, content type, text) of each message
        (
            "I refuse<|end|>" + FINAL,
            [(None, None, None, "I refuse"), ("final", None, None, "Yes.")],
        ),
        (
            "<|channel|>analysis I refuse\n\nsir<|end|>",
            [("analysis", None, None, "I refuse\n\nsir")],
        ),
        ("<|channel|>commentary to=f code{}<|call|>", [("commentary", "f", None, "code{}")]),
        ("assistantfinal<|message|>Yes.", [("final", None, None, "Yes.")]),
        ("<|channel|>finalassistant<|message|>Yes.", [("final", None, None, "Yes.")]),
        ("<|channel|>Final<|message|>Yes.", [("final", None, None, "Yes.")]),
        ("<|channel|><|message|>Yes.", [(None, None, None, "Yes.")]),
        ("<|channel|>ana", [("analysis", None, None, "")]),
        (
            "<|channel|>analysis to=assistant<|channel|>final<|message|>x",
            [("final", None, None, "x")],
        ),
        (
            "<|channel|>commentary to=functions.f<|channel|>commentary json<|message|>{}<|call|>",
            [("commentary", "functions.f", "json", "{}")],
        ),
        (
            "<|channel|>commentary to=functions.f?!<|message|>",
            [("commentary", "functions.f", None, "")],
        ),
        (
            "<|channel|>commentary to: functions.f<|message|>",
            [("commentary", "functions.f", None, "")],
        ),
        (
            "<|channel|>commentary functions.f<|constrain|>json<|message|>{}",
            [("commentary", "functions.f", "<|constrain|>json", "{}")],
        ),
        ("<|channel|>commentary json<|message|>{}", [("commentary", None, "json", "{}")]),
        (
            "<|channel|>analysis<|message|>Hm.<|channel|>final<|message|>Yes.<|return|>",
            [("analysis", None, None, "Hm."), ("final", None, None, "Yes.")],
        ),
        (
            "<|channel|>analysis<|message|>Hm." + FINAL,
            [("analysis", None, None, "Hm."), ("final", None, None, "Yes.")],
        ),
        ("<|channel|>final<|message|>a<|message|>b<|constrain|>c", [("final", None, None, "abc")]),
        ("<|start|>assistant<|channel|>final<|message|>Yes.", [("final", None, None, "Yes.")]),
        ("<|channel|>final<|message|>Yes.<|endoftext|>", [("final", None, None, "Yes.")]),
        (
            "<|channel|>analysis<|message|>Hm.<|end|>assistant<|channel|>final<|message|>Yes.",
            [("analysis", None, None, "Hm."), ("final", None, None, "Yes.")],
        ),
        (
            "<|channel|>analysis<|message|>Hm.<|end|><|channel|>final<|message|>Yes.",
            [("analysis", None, None, "Hm."), ("final", None, None, "Yes.")],
        ),
        (
            "<|channel|>final<|message|>Yes.<|return|><|end|><|end|>",
            [("final", None, None, "Yes.")],
        ),
        ("<|end|>", [(None, None, None, "")]),
    ],
)
def test_a_malformed_stream_becomes_the_most_plausible_messages(
    text: str, expected: list[tuple[str | None, ...]]
) -> None:
    messages = support.parse(SMALL, text)
    found = [(m.channel, m.recipient, m.content_type, m.text) for m in messages]
    assert found == expected
    assert any(message.recovered for message in messages)
    assert all(message.author.role is Role.ASSISTANT for message in messages)
    support.assert_every_token_is_accounted_for(messages, support.tokens_of(SMALL, text))


def test_roles_are_read_where_the_prompt_opened_none() -> None:
    def authors(text: str) -> list[tuple[str, str | None]]:
        return [(m.author.role.value, m.author.name) for m in support.parse(SMALL, text, None)]

    assert authors("<|start|>user<|message|>a<|end|><|start|>user:bob<|message|>b<|end|>") == [
        ("user", None),
        ("user", "bob"),
    ]
    assert authors("<|start|>functions.f<|message|>1<|end|>") == [("tool", "functions.f")]
    assert authors("<|start|>asistant to=functions.f<|message|>1<|end|>") == [("assistant", None)]
    assert authors("<|start|>commentary to=f<|message|>1<|end|>") == [("assistant", None)]


def test_an_undeclared_recipient_becomes_the_declared_one_it_means() -> None:
    for written, meant in [
        ("get", "functions.get"),
        ("functions.getjson", "functions.get"),
        ("functions.get", "functions.get"),
        ("unknown", "unknown"),
    ]:
        text = f"<|channel|>commentary to={written}<|message|>{{}}<|call|>"
        (message,) = support.parse(SMALL, text, recipients=["functions.get", "python"])
        assert message.recipient == meant
        assert bool(message.recovered) == (written != "functions.get")


def test_text_without_any_header_is_shown_before_the_message_ends() -> None:
    parser = StreamableParser(SMALL, Role.ASSISTANT)
    text = "word " * 200
    shown = ""
    for token in SMALL.encode_text(text):
        parser.process(token)
        shown += parser.last_content_delta or ""
    assert len(shown) > len(text) // 4
    assert parser.process_eos().messages[0].text.strip() == text.strip()


@pytest.mark.parametrize(
    ("text", "role", "complaint"),
    [
        (
            "I must refuse<|end|><|message|>",
            "assistant",
            "unexpected tokens remaining in message header",
        ),
        ("<|end|>", None, "Unexpected token .* while expecting start token"),
        ("<|start|>robot<|message|>", None, "Unknown role: robot"),
        ("<|start|><|message|>", None, "did not contain a role"),
        ("<|channel|><|message|>", "assistant", "no channel value"),
        ("<|channel|>final", "assistant", "Unexpected EOS"),
    ],
)
def test_strict_parsing_raises_where_it_always_did(
    text: str, role: str | None, complaint: str
) -> None:
    with pytest.raises(harmony.HarmonyError, match=complaint):
        support.parse(SMALL, text, role, strict=True)
    support.parse(SMALL, text, role)


def test_rendered_conversations_parse_to_themselves() -> None:
    messages = support.parse(SMALL, TURN)
    tokens = SMALL.render_conversation(
        harmony.Conversation.from_messages(messages),
        harmony.RenderConversationConfig(auto_drop_analysis=False),
    )
    again = SMALL.parse_messages_from_completion_tokens(tokens)
    assert again == messages
    assert not any(message.recovered for message in again)
