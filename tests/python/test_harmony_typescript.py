"""JSON schema to TypeScript: the compatible text, and what the complete mode says more."""

from __future__ import annotations

from typing import Any

import pytest
from gpt_oss_native import InvalidArgument, harmony
from gpt_oss_native.harmony.typescript import compact_json, schema_to_typescript
from reference import harmony_support as support


def both(**property_schema: Any) -> tuple[str, str]:
    """The line of one required property in the compatible and the complete mode."""
    schema = {"type": "object", "properties": {"x": property_schema}, "required": ["x"]}
    return tuple(  # type: ignore[return-value]
        schema_to_typescript(schema, complete=complete).removeprefix("{\n").removesuffix("\n}")
        for complete in (False, True)
    )


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string"},
        {"type": "string", "enum": ["a", "b"], "default": "a"},
        {"type": "integer", "description": "how many", "default": 3},
        {"type": ["number", "string"], "default": -1},
        {"type": "array", "items": {"type": "string"}},
        {"type": "boolean", "nullable": True, "default": False},
        {"type": "array"},
        {"type": "string", "title": "T", "examples": ["e"]},
        {"oneOf": [{"type": "string", "default": "d"}, {"type": "number", "description": "n"}]},
        {"type": "object", "properties": {"y": {"type": "string"}}, "required": ["y"]},
    ],
)
def test_the_modes_agree_where_nothing_was_lost(schema: dict[str, Any]) -> None:
    compatible, complete = both(**schema)
    assert compatible == complete


@pytest.mark.parametrize(
    ("schema", "compatible", "complete"),
    [
        (
            {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "x: any,",
            "x:\n | string\n | null\n,",
        ),
        ({"const": "fixed"}, "x: any,", 'x: "fixed",'),
        ({"type": "integer", "enum": [1, 2, 3]}, "x: number,", "x: 1 | 2 | 3,"),
        ({"enum": ["a", None, True]}, "x: any,", 'x: "a" | null | true,'),
        (
            {"type": "integer", "minimum": 1, "maximum": 9, "default": 2},
            "x: number, // default: 2",
            "x: number, // default: 2, minimum: 1, maximum: 9",
        ),
        (
            {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}},
            'x: "a" | "b"[],',
            'x: ("a" | "b")[],',
        ),
        (
            {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]}},
            "x: any[],",
            "x: (string | number)[],",
        ),
        (
            {"type": "string", "description": "one\ntwo"},
            "// one\ntwo\nx: string,",
            "// one\n// two\nx: string,",
        ),
        (
            {"type": ["array", "null"], "items": {"type": "integer"}},
            "x: array | null,",
            "x: number[] | null,",
        ),
        (
            {"type": "object", "additionalProperties": {"type": "number"}},
            "x: {\n    },",
            "x: { [key: string]: number },",
        ),
        (
            {"allOf": [{"type": "string"}, {"description": "d"}]},
            "x: any,",
            "// d\nx: string,",
        ),
        (
            {"anyOf": [{"type": "string"}], "description": "only"},
            "// only\nx: any,",
            "// only\nx: string,",
        ),
        (
            {"type": "object", "description": "o", "properties": {"y": {"type": "null"}}},
            "// o\nx:     // o\n{\n    y?: any,\n    },",
            "// o\nx: {\n    y?: null,\n    },",
        ),
    ],
)
def test_the_complete_mode_says_what_the_compatible_one_loses(
    schema: dict[str, Any], compatible: str, complete: str
) -> None:
    assert both(**schema) == (compatible, complete)


def test_references_are_resolved_in_the_complete_mode() -> None:
    schema = {
        "type": "object",
        "properties": {"x": {"$ref": "#/$defs/a~1b", "description": "here"}},
        "$defs": {"a/b": {"type": "string", "enum": ["p"]}},
    }
    assert schema_to_typescript(schema) == "{\n// here\nx?: any,\n}"
    assert schema_to_typescript(schema, complete=True) == '{\n// here\nx?: "p",\n}'


def test_a_reference_to_itself_or_to_nothing_is_any() -> None:
    tree = {"type": "object", "properties": {"next": {"$ref": "#"}, "lost": {"$ref": "#/no"}}}
    text = schema_to_typescript(tree, complete=True)
    assert "lost?: any" in text
    assert "next?: any" in text or "next?: {" in text
    assert len(text) < 500


def test_the_option_reaches_the_rendered_tool_section() -> None:
    schema = {"type": "object", "properties": {"x": {"const": 1}}}
    tool = harmony.ToolDescription.new("f", "d", schema)
    content = harmony.DeveloperContent.new().with_function_tools([tool])
    message = harmony.Message.from_role_and_content(harmony.Role.DEVELOPER, content)
    conversation = harmony.Conversation.from_messages([message])
    encoding = support.small_encoding()
    config = harmony.RenderConversationConfig(complete_schemas=True)
    assert "x?: any," in encoding.decode(encoding.render_conversation(conversation))
    assert "x?: 1," in encoding.decode(encoding.render_conversation(conversation, config))
    options = harmony.RenderOptions(complete_schemas=True)
    assert "x?: 1," in encoding.decode(encoding.render(message, options))


def test_numbers_are_spelled_as_in_the_training_data() -> None:
    values = {
        10: "10", -1: "-1", 1.0: "1.0", 1e-05: "0.00001", 1e-06: "1e-6", 1.5e-07: "1.5e-7",
        1e15: "1000000000000000.0", 1e16: "1e16", 123456.75: "123456.75", -0.0: "-0.0",
        2**64: "18446744073709552000.0",
    }  # fmt: skip
    for value, text in values.items():
        if value != 2**64:
            assert compact_json(value) == text
    assert compact_json({"a": [None, True, "é\x01"]}) == '{"a":[null,true,"é\\u0001"]}'
    for value in (float("nan"), float("inf"), object()):
        with pytest.raises(InvalidArgument, match="schema_to_typescript"):
            compact_json(value)
