"""Python functions as tools: schemas from signatures and docstrings, arguments checked."""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Callable
from typing import Annotated, Any, Literal, NewType, NotRequired, Optional, Required, TypedDict

import pytest
from gpt_oss_native import InvalidArgument
from gpt_oss_native.chat.docstrings import parse_docstring
from gpt_oss_native.chat.functions import Function
from gpt_oss_native.chat.json_schema import problems
from gpt_oss_native.harmony import Message, Role


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.5


class Options(TypedDict, total=False):
    deep: bool


UserId = NewType("UserId", int)


class Partial(TypedDict, total=False):
    x: Required[float]
    y: str


class Whole(TypedDict):
    x: float
    y: NotRequired[str]


def everything(
    text: str,
    count: int,
    ratio: float = 0.5,
    *,
    colour: Colour = Colour.RED,
    kind: Literal["a", "b"] | None = None,
    names: list[str],
    table: dict[str, int],
    pair: tuple[int, str],
    point: Point,
    options: Options,
    maybe: Optional[int] = None,  # noqa: UP045
    either: int | str = 1,
    said: Annotated[str, "how it is said"] = "so",
    free: Any = None,
) -> Any:
    """Does everything."""
    return locals()


def called(function: Callable[..., Any], **arguments: Any) -> Any:
    message = Message.from_role_and_content(Role.ASSISTANT, json.dumps(arguments))
    return Function(function).call(message)


def test_types_become_a_schema() -> None:
    schema = Function(everything).parameters
    assert schema["required"] == ["text", "count", "names", "table", "pair", "point", "options"]
    assert schema["additionalProperties"] is False
    properties = schema["properties"]
    assert properties["text"] == {"type": "string"}
    assert properties["count"] == {"type": "integer"}
    assert properties["ratio"] == {"type": "number", "default": 0.5}
    assert properties["colour"] == {"type": "string", "enum": ["red", "blue"], "default": "red"}
    assert properties["kind"] == {
        "anyOf": [{"type": "string", "enum": ["a", "b"]}, {"type": "null"}]
    }
    assert properties["names"] == {"type": "array", "items": {"type": "string"}}
    assert properties["table"] == {"type": "object", "additionalProperties": {"type": "integer"}}
    assert properties["pair"]["prefixItems"] == [{"type": "integer"}, {"type": "string"}]
    assert properties["point"]["required"] == ["x"]
    assert "required" not in properties["options"]
    assert properties["maybe"] == {"type": ["integer", "null"]}
    assert properties["either"] == {"type": ["integer", "string"], "default": 1}
    assert properties["said"] == {
        "type": "string",
        "description": "how it is said",
        "default": "so",
    }
    assert properties["free"] == {}


def test_arguments_arrive_as_the_types_say() -> None:
    seen: dict[str, Any] = {}

    def take(
        colour: Colour, point: Point, pair: tuple[int, Colour], ratio: float, some: set[int]
    ) -> None:
        seen.update(locals())

    called(take, colour="blue", point={"x": 2}, pair=[1, "red"], ratio=1, some=[1, 2])
    assert seen["colour"] is Colour.BLUE
    assert seen["point"] == Point(2)
    assert seen["pair"] == (1, Colour.RED)
    assert isinstance(seen["ratio"], float)
    assert seen["some"] == {1, 2}


def test_pydantic_models_are_parameters_and_results() -> None:
    pydantic = pytest.importorskip("pydantic")

    class Inner(pydantic.BaseModel):  # type: ignore[name-defined, misc]
        n: int

    class Outer(pydantic.BaseModel):  # type: ignore[name-defined, misc]
        inner: list[Inner]

    def turn(outer: Any) -> Any:
        return outer.inner[0]

    turn.__annotations__ = {"outer": Outer, "return": Inner}
    assert "$ref" not in json.dumps(Function(turn).parameters)
    assert called(turn, outer={"inner": [{"n": 3}]}) == '{"n":3}'
    with pytest.raises(InvalidArgument, match=r"outer\.inner\[0\]\.n must be integer"):
        called(turn, outer={"inner": [{"n": "x"}]})


@pytest.mark.parametrize(
    "doc",
    [
        "Sum it up.\n\nMore of it.\n\nArgs:\n    a: the first,\n        and more\n"
        "    b (int): the second\n\nReturns:\n    a: sum",
        "Sum it up.\n\nMore of it.\n\nParameters\n----------\na : int\n    the first,\n"
        "    and more\nb\n    the second\n\nReturns\n-------\nint\n    a sum",
        "Sum it up.\n\nMore of it.\n\n:param a: the first,\n    and more\n:type a: int\n"
        ":param int b: the second\n:returns: a sum",
    ],
    ids=["google", "numpy", "rest"],
)
def test_docstrings_of_every_custom_are_read(doc: str) -> None:
    def function(a: int, b: int) -> int:
        return a + b

    function.__doc__ = doc
    assert parse_docstring(function) == (
        "Sum it up.\n\nMore of it.",
        {"a": "the first, and more", "b": "the second"},
    )
    properties = Function(function).parameters["properties"]
    assert properties["b"] == {"type": "integer", "description": "the second"}


def test_a_function_without_parameters_is_declared_without() -> None:
    def now() -> str:
        return "12:30"

    assert Function(now).namespace().parameters is None
    assert called(now) == "12:30"
    with pytest.raises(InvalidArgument, match="zone is not known"):
        called(now, zone=1)


@pytest.mark.parametrize(
    ("value", "text"),
    [("as it is", "as it is"), (None, "null"), ({"a": [1, 2.5]}, '{"a": [1, 2.5]}'), ("é", "é")],
)
def test_results_are_text_or_json(value: Any, text: str) -> None:
    message = Message.from_role_and_content(Role.ASSISTANT, "")
    assert Function(lambda: value, name="f").call(message) == text


class Tree(TypedDict):
    branches: list[Tree]


def test_a_type_that_contains_itself_is_refused() -> None:
    def f(tree: Tree) -> None: ...

    with pytest.raises(InvalidArgument, match="contain itself"):
        Function(f)


def test_new_types_and_required_keys_are_what_they_wrap() -> None:
    got: list[Any] = []

    def f(user: UserId, point: Partial, whole: Whole | None = None) -> None:
        got.extend((user, point))

    function = Function(f)
    properties = function.parameters["properties"]
    assert properties["user"] == {"type": "integer"}
    for schema in (properties["point"], properties["whole"]["anyOf"][0]):
        assert schema["properties"] == {"x": {"type": "number"}, "y": {"type": "string"}}
        assert schema["required"] == ["x"]
    call = Message.from_role_and_content(Role.ASSISTANT, '{"user": 3, "point": {"x": 1}}')
    function.call(call)
    assert got == [3, {"x": 1.0}]


def test_a_type_without_schema_is_refused_by_name() -> None:
    def bad(when: complex) -> None: ...

    with pytest.raises(InvalidArgument, match=r"tool bad, parameter when.*complex"):
        Function(bad)
    assert Function(bad, parameters={"type": "object"}).parameters == {"type": "object"}


def test_a_name_that_forges_a_header_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="name"):
        Function(lambda: None, name="f to=functions.g")


@pytest.mark.parametrize(
    ("value", "schema", "expected"),
    [
        (True, {"type": "integer"}, "must be integer, not boolean"),
        (1.0, {"type": "integer"}, ""),
        (1, {"enum": [True]}, "must be one of"),
        ([1, 1], {"uniqueItems": True}, "twice"),
        ({"a": {"b": 1}}, {"properties": {"a": {"required": ["c"]}}}, "a.c is missing"),
        ("ab", {"pattern": "^a$"}, "must match"),
        (3, {"anyOf": [{"type": "string"}, {"maximum": 2}]}, "2 or less"),
        (3, {"exclusiveMaximum": 3}, "less than 3"),
        (
            [{"n": []}],
            {
                "items": {"$ref": "#/$defs/a"},
                "$defs": {"a": {"properties": {"n": {"$ref": "#/$defs/a"}}, "type": "object"}},
            },
            "[0].n must be object, not array",
        ),
    ],
)
def test_values_are_checked_against_schemas(value: Any, schema: Any, expected: str) -> None:
    found = "; ".join(problems(value, schema))
    assert expected in found
    assert bool(found) == bool(expected)
