"""Python functions as tools: a JSON schema from the signature, arguments checked and converted."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import inspect
import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from ..errors import InvalidArgument
from ..harmony import Message, ToolDescription
from ..harmony.schema import normalize
from .docstrings import parse_docstring
from .json_schema import problems

_PLAIN: dict[Any, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    type(None): "null",
    None: "null",
}
_MISSING = inspect.Parameter.empty


class Function:
    """A Python function that the model may call as ``functions.<name>``.

    Implements the protocol `gpt_oss_native.tools.protocol.Tool`. Coroutine functions are run to
    their end. What the function returns is told to the model: text as it is, anything else as JSON.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        description: str | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> None:
        """Reads signature and docstring; the keywords take their place.

        Raises InvalidArgument for a parameter whose type has no JSON schema, and for a name that
        the model could not call.
        """
        if not callable(function):
            raise InvalidArgument(
                f"[chat] tools: expected a function, a schema or a tool, got {function!r}"
            )
        self.function = function
        self._hints: dict[str, Any] = {}
        own_name = str(name or getattr(function, "__name__", type(function).__name__))
        summary, lines = parse_docstring(function)
        if parameters is None:
            parameters, self._hints = _parameters(function, own_name, lines)
        self.parameters = parameters
        description = summary if description is None else description
        has_parameters = bool(parameters.get("properties"))
        self._declared = ToolDescription.new(
            own_name, description, parameters if has_parameters else None
        )
        self.name = f"functions.{own_name}"

    def namespace(self) -> ToolDescription:
        """How it is declared to the model."""
        return self._declared

    def call(self, message: Message) -> str:
        """Checks the arguments and calls; raises InvalidArgument for arguments that do not fit, and
        what the function raises."""
        values = parse_arguments(message.text, self.parameters)
        for name, hint in self._hints.items():
            if name in values:
                values[name] = _converted(values[name], hint)
        result = self.function(**values)
        if inspect.iscoroutine(result):
            result = asyncio.run(result)
        return result_text(result)


def parse_arguments(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    """The arguments that `text` holds. Raises InvalidArgument, in words for the model, where it is
    no JSON object or does not follow `schema`; no text at all is an empty object."""
    try:
        values = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"the arguments are not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise InvalidArgument(
            f"the arguments must be a JSON object, not {type(values).__name__}: write "
            '{"name": value}'
        )
    wrong = problems(values, schema)
    if wrong:
        raise InvalidArgument(f"the arguments do not fit: {'; '.join(wrong)}")
    return values


def result_text(value: Any) -> str:
    """What a function returned, as the model reads it."""
    if isinstance(value, str):
        return value
    if hasattr(value, "model_dump_json"):
        return str(value.model_dump_json())
    return json.dumps(value, default=_plain, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (set, frozenset, tuple)):
        return list(value)
    if hasattr(value, "model_dump"):
        return value.model_dump()
    if hasattr(value, "tolist"):  # arrays and their scalars
        return value.tolist()
    return str(value)


# Types to schemas


def _parameters(
    function: Any, name: str, descriptions: dict[str, str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The schema of a signature, and the type of each parameter."""
    try:
        signature = inspect.signature(function)
        target = function if inspect.isroutine(function) else type(function).__call__
        if isinstance(function, type):
            target = function.__init__  # type: ignore[misc]
        hints = typing.get_type_hints(inspect.unwrap(target), include_extras=True)
    except (TypeError, ValueError, NameError) as error:
        raise InvalidArgument(
            f"[chat] tool {name}: expected a signature with types that can be read, got: {error}; "
            "give parameters= as a JSON schema"
        ) from None
    properties: dict[str, Any] = {}
    required: list[str] = []
    kept: dict[str, Any] = {}
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise InvalidArgument(
                f"[chat] tool {name}: expected parameters that can be given by name, "
                f"{parameter.name!r} is positional-only"
            )
        hint = hints.get(parameter.name, Any)
        where = f"tool {name}, parameter {parameter.name}"
        try:
            schema = _schema(hint, where)
        except RecursionError:
            raise InvalidArgument(
                f"[chat] {where}: expected a type that does not contain itself, got {hint!r}; "
                "give parameters= as a JSON schema"
            ) from None
        if parameter.name in descriptions:
            schema.setdefault("description", descriptions[parameter.name])
        if parameter.default is _MISSING:
            required.append(parameter.name)
        elif parameter.default is not None:
            default = _default(parameter.default)
            schema |= {} if default is _MISSING else {"default": default}
        properties[parameter.name] = schema
        kept[parameter.name] = hint
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return schema | ({"required": required} if required else {}), kept


def _default(value: Any) -> Any:
    value = value.value if isinstance(value, enum.Enum) else value
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return _MISSING


def _schema(hint: Any, where: str) -> dict[str, Any]:
    """A fresh JSON schema of a type. Raises InvalidArgument where there is none."""
    hint = _bare(hint)
    if hint is Any or hint is _MISSING or hint is object:
        return {}
    if hint in _PLAIN:
        return {"type": _PLAIN[hint]}
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        schema = _schema(arguments[0], where)
        texts = [item for item in arguments[1:] if isinstance(item, str)]
        return schema | ({"description": texts[0]} if texts else {})
    if origin is Literal:
        return _enum(list(arguments))
    if origin in (Union, types.UnionType):
        return _union([_schema(item, where) for item in arguments])
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _enum([member.value for member in hint])
    found = _container(hint, origin or hint, arguments, where) or _record(hint, where)
    if found is None:
        raise InvalidArgument(
            f"[chat] {where}: expected a type with a JSON schema (str, int, float, bool, list, "
            f"dict, tuple, Literal, Enum, Optional, dataclass, TypedDict, pydantic model), got "
            f"{hint!r}; give parameters= as a JSON schema"
        )
    return found


def _bare(hint: Any) -> Any:
    """A type without what says nothing about its values: names, Required, NotRequired."""
    while True:
        if hasattr(hint, "__value__"):  # type X = ..., Python 3.12
            hint = hint.__value__
        elif hasattr(hint, "__supertype__"):  # NewType
            hint = hint.__supertype__
        elif get_origin(hint) in (typing.Required, typing.NotRequired):
            hint = get_args(hint)[0]
        else:
            return hint


def _enum(values: list[Any]) -> dict[str, Any]:
    kinds = sorted({_PLAIN.get(type(value), "") for value in values})
    if "" in kinds or not values:
        return {"enum": values}
    return {"type": kinds[0] if len(kinds) == 1 else kinds, "enum": values}


def _union(members: list[dict[str, Any]]) -> dict[str, Any]:
    if all(set(member) == {"type"} and isinstance(member["type"], str) for member in members):
        kinds = list(dict.fromkeys(member["type"] for member in members))
        return {"type": kinds[0] if len(kinds) == 1 else kinds}
    return {"anyOf": members}


def _container(
    hint: Any, origin: Any, arguments: tuple[Any, ...], where: str
) -> dict[str, Any] | None:
    if not isinstance(origin, type):
        return None
    if issubclass(origin, tuple) and not hasattr(origin, "_fields"):
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return {"type": "array", "items": _schema(arguments[0], where)}
        if not arguments:
            return {"type": "array"}
        items = [_schema(item, where) for item in arguments]
        size = {"minItems": len(items), "maxItems": len(items)}
        return {"type": "array", "prefixItems": items, "items": False, **size}
    if typing.is_typeddict(hint):
        return None
    if issubclass(origin, Mapping):
        values = _schema(arguments[1], where) if len(arguments) == 2 else {}
        return {"type": "object"} | ({"additionalProperties": values} if values else {})
    if issubclass(origin, (Sequence, set, frozenset)) and not issubclass(origin, (str, bytes)):
        items_schema = _schema(arguments[0], where) if arguments else {}
        unique = {"uniqueItems": True} if issubclass(origin, (set, frozenset)) else {}
        return {"type": "array"} | ({"items": items_schema} if items_schema else {}) | unique
    return None


def _record(hint: Any, where: str) -> dict[str, Any] | None:
    if hasattr(hint, "model_json_schema"):
        return dict(_without_references(normalize(hint.model_json_schema())))
    if typing.is_typeddict(hint):
        hints = typing.get_type_hints(hint, include_extras=True)
        # Of annotations that are text, the class itself has not seen Required and NotRequired.
        said = {name: get_origin(item) for name, item in hints.items()}
        required = [
            name
            for name in hints
            if said[name] is typing.Required
            or (name in hint.__required_keys__ and said[name] is not typing.NotRequired)
        ]
    elif dataclasses.is_dataclass(hint) and isinstance(hint, type):
        types_of = typing.get_type_hints(hint, include_extras=True)
        fields = [field for field in dataclasses.fields(hint) if field.init]
        hints = {field.name: types_of[field.name] for field in fields}
        absent = dataclasses.MISSING
        required = [f.name for f in fields if f.default is absent and f.default_factory is absent]
    else:
        return None
    properties = {name: _schema(item, f"{where}.{name}") for name, item in hints.items()}
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return schema | ({"required": required} if required else {})


def _without_references(schema: Any) -> Any:
    """A normalised schema that may stand inside another one."""
    if isinstance(schema, list):
        return [_without_references(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    renamed = {"oneOf": "anyOf"}
    return {
        renamed.get(key, key): _without_references(value)
        for key, value in schema.items()
        if key not in ("$defs", "title") or not isinstance(value, (dict, str))
    }


# Values to types


def _converted(value: Any, hint: Any) -> Any:
    """A value that follows the schema of `hint`, as `hint` has it."""
    hint = _bare(hint)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _converted(value, arguments[0])
    if origin in (Union, types.UnionType):
        for item in arguments:
            if not problems(value, _schema(item, "")):
                return _converted(value, item)
        return value
    if hint is int and isinstance(value, float):
        return int(value)
    if hint is float and isinstance(value, int):
        return float(value)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint(value)
    kind = origin or hint
    if isinstance(value, list) and isinstance(kind, type):
        return _converted_list(value, kind, arguments)
    if isinstance(value, dict) and isinstance(kind, type):
        if hasattr(kind, "model_validate"):
            return kind.model_validate(value)
        if dataclasses.is_dataclass(kind) or typing.is_typeddict(kind):
            hints = typing.get_type_hints(kind, include_extras=True)
            fields = {name: _converted(item, hints[name]) for name, item in value.items()}
            return kind(**fields)
        if len(arguments) == 2:
            return {key: _converted(item, arguments[1]) for key, item in value.items()}
    return value


def _converted_list(value: list[Any], kind: type, arguments: tuple[Any, ...]) -> Any:
    if issubclass(kind, tuple):
        if len(arguments) == len(value) and Ellipsis not in arguments:
            return tuple(map(_converted, value, arguments))
        return tuple(_converted(item, arguments[0]) if arguments else item for item in value)
    items = [_converted(item, arguments[0]) if arguments else item for item in value]
    return kind(items) if issubclass(kind, (set, frozenset)) else items
