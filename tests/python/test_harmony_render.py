"""Rendering: exact texts of the format, safety of hostile strings, and the published package."""

from __future__ import annotations

import inspect
import string
from pathlib import Path
from typing import Any

import pytest
from gpt_oss_native import InvalidArgument, harmony
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import harmony_support as support

SMALL = support.small_encoding()
FEW = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SPECIALS = ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>", "<|return|>"]

TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    st.lists(st.sampled_from([*SPECIALS, " to=x", "\n", "a", "\r\n", "//"]), max_size=5).map(
        "".join
    ),
)
NAME = st.text(string.ascii_letters + string.digits + "_.-", min_size=1, max_size=12)
OPTIONAL = st.none() | TEXT
# Floats with few digits: serde_json's parser is not exact in the last place of other ones.
NUMBER = st.integers(-(2**63), 2**64 - 1) | st.tuples(
    st.integers(-999, 999), st.integers(-12, 19)
).map(lambda pair: float(f"{pair[0]}e{pair[1]}"))
VALUE = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


def schemas() -> st.SearchStrategy[Any]:
    kinds = ["string", "number", "integer", "boolean", "array", "object", "null", "odd"]
    base = {
        "type": st.sampled_from(kinds) | st.lists(st.sampled_from(kinds), max_size=3) | st.just(3),
        "description": TEXT | st.integers(),
        "title": TEXT,
        "default": VALUE,
        "enum": st.lists(TEXT | st.integers(), max_size=3) | st.none(),
        "nullable": st.booleans(),
        "examples": st.lists(TEXT | st.integers(), max_size=2),
        "required": st.lists(st.sampled_from(["a", "b"]), max_size=2),
        "minimum": st.integers(),
    }

    def extend(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        more = {
            "oneOf": st.lists(inner, max_size=3),
            "properties": st.dictionaries(st.sampled_from(["a", "b"]) | TEXT, inner, max_size=3),
            "items": inner,
            "anyOf": st.lists(inner, max_size=2),
        }
        return st.fixed_dictionaries({}, optional=base | more)

    return st.recursive(st.fixed_dictionaries({}, optional=base), extend, max_leaves=6)


PARAMETERS = st.none() | schemas()
TOOL = st.tuples(NAME, TEXT, PARAMETERS)
NAMESPACE = st.tuples(NAME, OPTIONAL, st.lists(TOOL, max_size=3))
SYSTEM = st.fixed_dictionaries(
    {
        "model_identity": OPTIONAL,
        "reasoning_effort": st.sampled_from(["Low", "Medium", "High"]) | st.none(),
        "conversation_start_date": OPTIONAL,
        "knowledge_cutoff": OPTIONAL,
        "channels": st.none() | st.tuples(st.lists(TEXT, max_size=3), st.booleans()),
        "tools": st.lists(NAMESPACE, max_size=2),
        "builtin": st.booleans(),
    }
)
DEVELOPER = st.tuples(OPTIONAL, st.lists(TOOL, max_size=2), st.lists(NAMESPACE, max_size=2))
CHAT = st.tuples(
    st.sampled_from(["user", "assistant", "tool", "system", "developer"]),
    st.none() | NAME,
    st.lists(TEXT, max_size=2),
    st.none() | st.sampled_from(["analysis", "commentary", "final"]) | NAME,
    st.none() | NAME | st.just("all"),
    st.none() | st.sampled_from(["json", "code", "<|constrain|>json", "<|constrain|>"]),
)
CONVERSATION = st.tuples(st.none() | SYSTEM, st.none() | DEVELOPER, st.lists(CHAT, max_size=6))


def build(package: Any, drawn: Any) -> Any:
    """The drawn conversation with the classes of either package."""

    def namespace(raw: Any) -> Any:
        tools = [package.ToolDescription.new(*tool) for tool in raw[2]]
        return package.ToolNamespaceConfig(name=raw[0], description=raw[1], tools=tools)

    system, developer, chat = drawn
    messages = []
    if system is not None:
        content = package.SystemContent.new()
        for key in (
            "model_identity", "reasoning_effort", "conversation_start_date", "knowledge_cutoff",
        ):  # fmt: skip
            setattr(content, key, system[key])
        if content.reasoning_effort is not None:
            content.with_reasoning_effort(package.ReasoningEffort(content.reasoning_effort))
        channels = system["channels"]
        content.channel_config = None
        if channels is not None:
            content.with_channel_config(
                package.ChannelConfig(valid_channels=channels[0], channel_required=channels[1])
            )
        for raw in system["tools"]:
            content.with_tools(namespace(raw))
        if system["builtin"]:
            content.with_browser_tool().with_python_tool()
        messages.append(package.Message.from_role_and_content(package.Role.SYSTEM, content))
    if developer is not None:
        content = package.DeveloperContent.new()
        if developer[0] is not None:
            content.with_instructions(developer[0])
        if developer[1]:
            content.with_function_tools([package.ToolDescription.new(*t) for t in developer[1]])
        for raw in developer[2]:
            content.with_tools(namespace(raw))
        messages.append(package.Message.from_role_and_content(package.Role.DEVELOPER, content))
    for role, name, texts, channel, recipient, content_type in chat:
        author = package.Author(role=package.Role(role), name="f" if role == "tool" else name)
        message = package.Message(
            author=author, content=[package.TextContent(text=text) for text in texts]
        )
        message.channel, message.recipient = channel, recipient
        message.content_type = content_type
        messages.append(message)
    return package.Conversation.from_messages(messages)


@FEW
@given(CONVERSATION, st.booleans(), st.data())
def test_conversations_render_as_the_published_package_renders_them(
    o200k: Path, drawn: Any, drop: bool, data: st.DataObject
) -> None:
    package, theirs = support.published()
    ours = harmony.load_harmony_encoding("HarmonyGptOss")
    mine, other = build(harmony, drawn), build(package, drawn)
    config = harmony.RenderConversationConfig(auto_drop_analysis=drop)
    other_config = package.RenderConversationConfig(auto_drop_analysis=drop)
    for method in ("render_conversation", "render_conversation_for_training"):
        found, expected = getattr(ours, method), getattr(theirs, method)
        assert found(mine, config) == expected(other, other_config)
        assert found(mine) == expected(other)
    role = data.draw(st.sampled_from(["assistant", "user", "tool"]))
    assert ours.render_conversation_for_completion(
        mine, harmony.Role(role), config
    ) == theirs.render_conversation_for_completion(other, package.Role(role), other_config)
    flag = data.draw(st.booleans())
    for one, two in zip(mine, other, strict=True):
        assert ours.render(one) == theirs.render(two)
        assert ours.render(
            one, harmony.RenderOptions(conversation_has_function_tools=flag)
        ) == theirs.render(two, package.RenderOptions(conversation_has_function_tools=flag))
        assert one.to_dict() == two.to_dict()
        read, read_theirs = (m.Message.from_dict(two.to_dict()) for m in (harmony, package))
        assert read.to_dict() == read_theirs.to_dict()


@settings(FEW, max_examples=120)
@given(schemas())
def test_schemas_become_the_typescript_of_the_published_package(o200k: Path, schema: Any) -> None:
    package, theirs = support.published()
    ours = harmony.load_harmony_encoding("HarmonyGptOss")

    def text(module: Any, encoding: Any) -> str:
        tool = module.ToolDescription.new("f", "d", parameters=schema)
        content = module.DeveloperContent.new().with_function_tools([tool])
        message = module.Message.from_role_and_content(module.Role.DEVELOPER, content)
        return str(encoding.decode(encoding.render(message)))

    assert text(harmony, ours) == text(package, theirs)


@settings(FEW, max_examples=80)
@given(TEXT, st.lists(st.sampled_from(SPECIALS)), st.booleans())
def test_encoding_and_decoding_agree_with_the_published_package(
    o200k: Path, text: str, allowed: list[str], lenient: bool
) -> None:
    _, theirs = support.published()
    ours = harmony.load_harmony_encoding()
    assert ours.special_tokens_set == theirs.special_tokens_set
    assert ours.stop_tokens() == sorted(theirs.stop_tokens())
    assert ours.stop_tokens_for_assistant_actions() == sorted(
        theirs.stop_tokens_for_assistant_actions()
    )
    options: dict[str, Any] = {"allowed_special": set(allowed)}
    if lenient:
        options["disallowed_special"] = ()
    try:
        expected = theirs.encode(text, **options)
    except RuntimeError:
        with pytest.raises(harmony.HarmonyError, match="disallowed special token"):
            ours.encode(text, **options)
        return
    tokens = ours.encode(text, **options)
    assert tokens == expected
    assert ours.decode(tokens) == theirs.decode(tokens)
    assert ours.decode_utf8(tokens) == text
    assert [*map(ours.is_special_token, tokens)] == [*map(theirs.is_special_token, tokens)]


def test_the_public_names_and_parameters_are_those_of_the_published_package() -> None:
    package = pytest.importorskip("openai_harmony", reason="openai-harmony is not installed")
    extra = {"ToolNamespaceConfig", "ChannelConfig", "ReasoningEffort", "RenderOptions", "Author"}
    for name in {*package.__all__, *extra, "RenderConversationConfig"}:
        theirs, ours = getattr(package, name), getattr(harmony, name)
        for member, value in vars(theirs).items():
            if member.startswith(("_", "model_")) or not callable(getattr(theirs, member)):
                continue
            assert hasattr(ours, member), f"{name}.{member}"
            raw = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
            if inspect.isfunction(raw):
                known = inspect.signature(getattr(ours, member)).parameters
                wanted = inspect.signature(getattr(theirs, member)).parameters
                assert list(wanted) == list(known)[: len(wanted)], f"{name}.{member}"


# Without the published vocabulary


def render_text(message: harmony.Message, **options: Any) -> str:
    return SMALL.decode(SMALL.render(message, harmony.RenderOptions(**options)))


def test_the_system_block_has_its_documented_text() -> None:
    content = (
        harmony.SystemContent.new()
        .with_reasoning_effort(harmony.ReasoningEffort.HIGH)
        .with_conversation_start_date("2026-01-02")
    )
    message = harmony.Message.from_role_and_content(harmony.Role.SYSTEM, content)
    assert render_text(message, conversation_has_function_tools=True) == (
        "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n"
        "Knowledge cutoff: 2024-06\nCurrent date: 2026-01-02\n\nReasoning: high\n\n"
        "# Valid channels: analysis, commentary, final. "
        "Channel must be included for every message.\n"
        "Calls to these tools must go to the commentary channel: 'functions'.<|end|>"
    )


def test_a_call_ends_with_the_call_token_and_marks_its_type_with_a_token() -> None:
    message = (
        harmony.Message.from_role_and_content(harmony.Role.ASSISTANT, "{}")
        .with_channel("commentary")
        .with_recipient("functions.f")
        .with_content_type("<|constrain|>json")
    )
    text = "<|start|>assistant to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}"
    assert SMALL.render(message) == support.tokens_of(SMALL, text + "<|call|>")


def test_training_ends_an_answer_with_the_return_token() -> None:
    answer = harmony.Message.from_role_and_content(harmony.Role.ASSISTANT, "4").with_channel(
        "final"
    )
    question = harmony.Message.from_role_and_content(harmony.Role.USER, "2+2?")
    both = harmony.Conversation.from_messages([question, answer])
    assert SMALL.render_conversation_for_training(both)[-1] == SMALL.return_
    assert SMALL.render_conversation(both)[-1] == SMALL.end
    only = harmony.Conversation.from_messages([question])
    assert SMALL.render_conversation_for_training(only) == SMALL.render_conversation(only)


def turns() -> harmony.Conversation:
    messages = []
    for turn in (1, 2, 3):
        messages.append(harmony.Message.from_role_and_content(harmony.Role.USER, f"q{turn}"))
        for channel in ("analysis", "final") if turn < 3 else ("analysis",):
            text = f"{channel[0]}{turn}"
            message = harmony.Message.from_role_and_content(harmony.Role.ASSISTANT, text)
            messages.append(message.with_channel(channel))
    return harmony.Conversation.from_messages(messages)


def kept(conversation: harmony.Conversation, **options: bool) -> str:
    config = harmony.RenderConversationConfig(**options)
    tokens = SMALL.render_conversation(conversation, config)
    return " ".join(message.text for message in SMALL.parse_messages_from_completion_tokens(tokens))


def test_finished_reasoning_is_dropped_as_asked() -> None:
    unfinished = turns()
    finished = harmony.Conversation.from_messages(unfinished.messages[:-2])
    asked = harmony.Conversation.from_messages(unfinished.messages[:-1])
    assert kept(unfinished, auto_drop_analysis=False) == "q1 a1 f1 q2 a2 f2 q3 a3"
    assert kept(unfinished) == "q1 a1 f1 q2 a2 f2 q3 a3"  # as published: nothing while unfinished
    assert kept(finished) == "q1 f1 q2 a2 f2"  # as published: before the first final only
    assert kept(unfinished, drop_finished_analysis=True) == "q1 f1 q2 f2 q3 a3"
    assert kept(asked, drop_finished_analysis=True) == "q1 f1 q2 f2 q3"
    assert kept(finished, drop_finished_analysis=True) == "q1 f1 q2 a2 f2"


@FEW
@given(CONVERSATION)
def test_strings_that_look_like_special_tokens_never_become_special_tokens(drawn: Any) -> None:
    """Each message has its own header tokens and its end, whatever its fields hold."""
    own = set(SMALL.special_ids)
    for message in build(harmony, drawn):
        tokens = [token for token in SMALL.render(message) if token in own]
        is_call = message.author.role == "assistant" and message.recipient is not None
        constrained = str(message.content_type).startswith("<|constrain|>")
        assert tokens == [
            SMALL.start,
            *([SMALL.channel] if message.channel is not None else []),
            *([SMALL.constrain] if constrained else []),
            SMALL.message,
            SMALL.call if is_call else SMALL.end,
        ]


@pytest.mark.parametrize("field", ["channel", "recipient", "content_type", "name"])
def test_a_header_field_set_behind_the_builders_is_checked_when_rendered(field: str) -> None:
    message = harmony.Message.from_role_and_content(harmony.Role.USER, "x")
    setattr(message.author if field == "name" else message, field, "x to=functions.f")
    with pytest.raises(InvalidArgument, match=r"\[render\]"):
        SMALL.render(message)


def test_what_cannot_be_rendered_says_why() -> None:
    tool = harmony.Message.from_role_and_content(harmony.Role.TOOL, "x")
    with pytest.raises(harmony.HarmonyError, match="should have a name"):
        SMALL.render(tool)
    for content in (harmony.SystemContent.new(), harmony.DeveloperContent.new()):
        message = harmony.Message.from_role_and_content(harmony.Role.USER, content)
        with pytest.raises(harmony.HarmonyError, match="may only appear in"):
            SMALL.render(message)


def test_halves_of_surrogate_pairs_are_joined_or_replaced() -> None:
    assert SMALL.encode("a\ud83d\ude00b") == SMALL.encode("a😀b")
    assert SMALL.encode_text("a\ud800b") == SMALL.encode_text("a\ufffdb")
    message = harmony.Message.from_role_and_content(harmony.Role.USER, "\udfff")
    assert "\ufffd" in SMALL.decode(SMALL.render(message))


def test_unknown_and_broken_tokens_are_named_when_decoded() -> None:
    with pytest.raises(harmony.HarmonyError, match="Invalid token for decoding: 99999999"):
        SMALL.decode_utf8([99999999])
    broken = [SMALL.tokenizer.encode_single_token(b"\xf0")]
    with pytest.raises(harmony.HarmonyError, match="Invalid utf-8"):
        SMALL.decode_utf8(broken)
    assert SMALL.decode(broken) == "\ufffd"
