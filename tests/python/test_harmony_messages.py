"""Messages, contents and tools: constructors, builders, plain data, validation."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
from gpt_oss_native import InvalidArgument
from gpt_oss_native.harmony import (
    Author,
    ChannelConfig,
    Conversation,
    DeveloperContent,
    Message,
    ReasoningEffort,
    Role,
    SystemContent,
    TextContent,
    ToolDescription,
    ToolNamespaceConfig,
)

FORGING = ["a b", "x to=functions.y", "a\n", "<|end|>", "", "é", "a:b", "a\u00a0b", "a\x00"]
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}


def conversation() -> Conversation:
    system = (
        SystemContent.new()
        .with_model_identity("You are a test.")
        .with_reasoning_effort(ReasoningEffort.HIGH)
        .with_conversation_start_date("2026-01-02")
        .with_knowledge_cutoff("2025-03")
        .with_required_channels(["analysis", "final"])
        .with_browser_tool()
        .with_python_tool()
    )
    developer = (
        DeveloperContent.new()
        .with_instructions("Be brief.")
        .with_function_tools([ToolDescription.new("f", "Does.", SCHEMA), ToolDescription("g", "")])
    )
    return Conversation.from_messages(
        [
            Message.from_role_and_content(Role.SYSTEM, system),
            Message.from_role_and_content(Role.DEVELOPER, developer),
            Message.from_role_and_contents(Role.USER, [TextContent("a"), TextContent("b")]),
            Message.from_role_and_content(Role.ASSISTANT, "{}")
            .with_channel("commentary")
            .with_recipient("functions.f")
            .with_content_type("<|constrain|>json"),
            Message.from_author_and_content(Author.new(Role.TOOL, "functions.f"), "1")
            .with_channel("commentary")
            .with_recipient("assistant")
            .adding_content("2"),
        ]
    )


def test_a_conversation_survives_plain_data_and_json() -> None:
    original = conversation()
    assert Conversation.from_json(original.to_json()) == original
    assert Conversation.from_dict(copy.deepcopy(original.to_dict())) == original
    for message in original:
        assert Message.from_json(message.to_json()) == message
        assert Message.from_dict(message.to_dict()) == message


def test_plain_data_leaves_out_what_is_absent() -> None:
    message = Message.from_role_and_content(Role.USER, "hi")
    assert message.to_dict() == {
        "role": "user",
        "name": None,
        "content": [{"type": "text", "text": "hi"}],
    }
    assert DeveloperContent.new().to_dict() == {"type": "developer_content"}
    assert "knowledge_cutoff" not in SystemContent(knowledge_cutoff=None).to_dict()


def test_a_message_may_hold_its_content_as_one_string() -> None:
    assert Message.from_dict({"role": "user", "content": "hi"}).text == "hi"


def test_contents_can_be_built_from_their_own_plain_data() -> None:
    for message in conversation():
        for content in message.content:
            assert type(content)(**content.to_dict()) == content


def test_builders_change_the_object_and_return_it() -> None:
    content = SystemContent.new()
    assert content.with_model_identity("x") is content
    message = Message.from_role_and_content(Role.USER, content="hi")
    assert message.with_channel("final") is message
    assert message.adding_content("more") is message
    assert message.text == "himore"


def test_what_a_parser_found_takes_no_part_in_comparisons() -> None:
    one = Message.from_role_and_content(Role.USER, "hi")
    two = Message.from_role_and_content(Role.USER, "hi")
    two.recovered, two.span, two.end = ("odd",), (0, 3), "<|end|>"
    assert one == two


@pytest.mark.parametrize("name", FORGING)
def test_a_name_that_could_forge_a_header_is_refused(name: str) -> None:
    message = Message.from_role_and_content(Role.USER, "hi")
    for build in (
        lambda: Author.new(Role.TOOL, name),
        lambda: ToolDescription.new(name, "d"),
        lambda: ToolNamespaceConfig(name=name, tools=[]),
        lambda: message.with_recipient(name),
        lambda: message.with_channel(name),
        lambda: message.with_content_type(name),
        lambda: Message.from_dict({"role": "tool", "name": name, "content": "x"}),
    ):
        with pytest.raises(InvalidArgument):
            build()


@pytest.mark.parametrize("name", ["f", "functions.get_weather", "a-b", "A.9_-", "x" * 300])
def test_an_ordinary_name_is_accepted(name: str) -> None:
    assert Author.new(Role.TOOL, name).name == name
    assert ToolDescription.new(name, "d").name == name


def test_wrong_types_are_refused_with_the_remedy() -> None:
    with pytest.raises(InvalidArgument, match="valid dictionary or instance of Message"):
        Conversation.from_messages([SystemContent.new()])  # type: ignore[list-item]
    with pytest.raises(InvalidArgument, match="expected text as a string"):
        TextContent(3)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match=r"\[Role\]"):
        Author(role="robot")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="JSON schema"):
        ToolDescription.new("f", "d", parameters="{}")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="content of type"):
        Message.from_dict({"role": "user", "content": [{"type": "image"}]})
    with pytest.raises(InvalidArgument, match="channel_required"):
        ChannelConfig(valid_channels=[], channel_required="yes")  # type: ignore[arg-type]


def test_roles_and_efforts_are_accepted_by_value() -> None:
    assert Author(role="user").role is Role.USER  # type: ignore[arg-type]
    assert SystemContent(reasoning_effort="low").reasoning_effort is ReasoningEffort.LOW  # type: ignore[arg-type]


def test_namespaces_name_their_recipients() -> None:
    assert ToolNamespaceConfig.python().recipients() == ["python"]
    assert ToolNamespaceConfig.browser().recipients() == [
        "browser.search",
        "browser.open",
        "browser.find",
    ]


def test_the_built_in_namespaces_are_fresh_objects() -> None:
    first = ToolNamespaceConfig.browser()
    assert first.tools[1].parameters is not None
    first.tools[1].parameters["properties"].clear()
    assert ToolNamespaceConfig.browser().tools[1].parameters != first.tools[1].parameters


def test_importing_harmony_needs_no_compiled_core_no_numpy_and_no_pydantic() -> None:
    code = (
        "import sys, gpt_oss_native.harmony as h; h.StreamableParser; h.SystemContent.new();"
        "print(sorted({'numpy', 'pydantic', 'gpt_oss_native._core', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_code_that_catches_the_errors_of_pydantic_catches_ours() -> None:
    pydantic = pytest.importorskip("pydantic")
    for make in (
        lambda: Conversation.from_messages([SystemContent.new()]),  # type: ignore[list-item]
        lambda: Author(role="king"),  # type: ignore[arg-type]
        lambda: TextContent(text=3),  # type: ignore[arg-type]
        lambda: ToolDescription(name=3, description="x"),  # type: ignore[arg-type]
    ):
        with pytest.raises(pydantic.ValidationError) as caught:
            make()
        assert isinstance(caught.value, InvalidArgument)
        assert str(caught.value).startswith("[")
