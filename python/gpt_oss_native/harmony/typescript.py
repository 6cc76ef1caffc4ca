"""JSON schema to the TypeScript types that gpt-oss was trained to read in its tool section.

Two modes. The compatible one writes what ``openai_harmony`` 0.0.8 writes, character for character,
including what that package loses: ``anyOf``, ``$ref``, ``const``, enums that are not strings and
bounds vanish, an array of a union is written without parentheses, and the second line of a
description stands outside the comment. The complete mode (``RenderConversationConfig(
complete_schemas=True)``) writes all of these in the same style and changes nothing else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from ..errors import InvalidArgument
from .schema import normalize

_SCALARS = {"string": "string", "number": "number", "integer": "number", "boolean": "boolean"}
_BOUNDS = (
    ("minimum", "minimum"),
    ("exclusiveMinimum", "greater than"),
    ("maximum", "maximum"),
    ("exclusiveMaximum", "less than"),
    ("multipleOf", "multiple of"),
    ("minLength", "min length"),
    ("maxLength", "max length"),
    ("pattern", "pattern"),
    ("format", "format"),
    ("minItems", "min items"),
    ("maxItems", "max items"),
)


def schema_to_typescript(schema: Any, *, complete: bool = False) -> str:
    """The TypeScript type of a tool's parameters, e.g. ``{\\nquery: string,\\n}``.

    Raises InvalidArgument when a default is not a JSON value (such as NaN).
    """
    if complete:
        schema = normalize(schema)
    return _Writer(complete).type_of(schema, "", top=True)


def compact_json(value: Any) -> str:
    """``value`` as compact JSON; numbers as serde_json spells them (``1e22``, ``0.00001``)."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, int):
        fits = -(2**63) <= value < 2**64
        return str(int(value)) if fits else _float(float(value))
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(compact_json(item) for item in value) + "]"
    if isinstance(value, dict):
        pairs = (f"{_key(key)}:{compact_json(item)}" for key, item in value.items())
        return "{" + ",".join(pairs) + "}"
    raise InvalidArgument(
        f"[schema_to_typescript] expected a JSON value in the schema, got {type(value).__name__}"
    )


def _key(key: Any) -> str:
    text: str = json.dumps({key: 0}, ensure_ascii=False)[1:-1].rpartition(":")[0]
    return text


def _float(value: float) -> str:
    if not math.isfinite(value):
        raise InvalidArgument(f"[schema_to_typescript] expected a finite number, got {value}")
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    mark = "-" if sign else ""
    text = "".join(map(str, digits))
    if not value:
        return mark + "0.0"
    point = len(text) + int(exponent)  # digits before the decimal point
    if len(text) <= point <= 16:
        return f"{mark}{text.ljust(point, '0')}.0"
    if 0 < point <= 16:
        return f"{mark}{text[:point]}.{text[point:]}"
    if -5 < point <= 0:
        return f"{mark}0.{'0' * -point}{text}"
    tail = f".{text[1:]}" if len(text) > 1 else ""
    return f"{mark}{text[0]}{tail}e{point - 1}"


def _string(schema: Any, key: str) -> str | None:
    value = schema.get(key) if isinstance(schema, dict) else None
    return value if isinstance(value, str) else None


def _list(schema: Any, key: str) -> list[Any] | None:
    value = schema.get(key) if isinstance(schema, dict) else None
    return list(value) if isinstance(value, (list, tuple)) else None


class _Writer:
    def __init__(self, complete: bool) -> None:
        self.complete = complete

    def type_of(self, schema: Any, indent: str, *, top: bool = False) -> str:
        if not isinstance(schema, dict):
            return "any"
        variants = _list(schema, "oneOf")
        if variants is not None:
            return "".join(
                f"\n{indent} | {self.variant(item, indent)}"
                + self.trailing(item, quote_enum_default=True)
                for item in variants
            )
        if self.complete and _list(schema, "enum"):
            return self.literals(schema)
        kinds = _list(schema, "type")
        if kinds is not None:
            names = [kind for kind in kinds if isinstance(kind, str)]
            if self.complete:
                return self.union(schema, names, indent)
            if names:
                return " | ".join("number" if name == "integer" else name for name in names)
        kind = _string(schema, "type")
        if kind == "object":
            return self.object_type(schema, indent, top=top)
        if kind == "string" and _list(schema, "enum"):
            return self.literals(schema)
        if kind == "array":
            return self.array_type(schema, indent)
        return _SCALARS.get(kind or "", "null" if self.complete and kind == "null" else "any")

    def union(self, schema: dict[str, Any], names: list[str], indent: str) -> str:
        parts = [self.type_of({**schema, "type": name}, indent) for name in names]
        return " | ".join(dict.fromkeys(parts)) or "any"

    def literals(self, schema: dict[str, Any]) -> str:
        values = schema["enum"]
        if self.complete:
            return " | ".join(dict.fromkeys(compact_json(value) for value in values))
        return " | ".join(f'"{value}"' for value in values if isinstance(value, str)) or "string"

    def array_type(self, schema: dict[str, Any], indent: str) -> str:
        if "items" not in schema:
            return "Array<any>"
        items = schema["items"]
        if not self.complete:
            return f"{self.type_of(items, indent)}[]"
        variants = _list(items, "oneOf")
        if variants is None:
            inner = self.nullable(items, self.type_of(items, indent))
        else:
            inner = " | ".join(dict.fromkeys(self.variant(item, indent) for item in variants))
        is_object = _string(items, "type") == "object" and " | " not in inner.rpartition("}")[2]
        return f"({inner})[]" if " | " in inner and not is_object else f"{inner}[]"

    def object_type(self, schema: dict[str, Any], indent: str, *, top: bool) -> str:
        properties = schema.get("properties")
        extra = schema.get("additionalProperties")
        if self.complete and not properties and isinstance(extra, dict) and extra:
            return f"{{ [key: string]: {self.type_of(extra, indent)} }}"
        out: list[str] = []
        if top or not self.complete:  # elsewhere the property's own comment has said it already
            out.extend(self.comment(_string(schema, "description"), indent))
        out.append("{\n")
        if isinstance(properties, dict):
            required = {name for name in _list(schema, "required") or () if isinstance(name, str)}
            for key, value in properties.items():
                mark = "" if key in required else "?"
                out.extend(self.property_lines(f"{key}{mark}", value, indent))
        out.append(f"{indent}}}")
        return "".join(out)

    def property_lines(self, name: str, schema: Any, indent: str) -> Iterator[str]:
        title = _string(schema, "title")
        if title is not None:
            yield from self.comment(title, indent)
            yield f"{indent}//\n"
        variants = _list(schema, "oneOf")
        if not (isinstance(schema, dict) and "oneOf" in schema):
            yield from self.comment(_string(schema, "description"), indent)
        examples = _list(schema, "examples")
        if examples:
            yield f"{indent}// Examples:\n"
            for example in examples:
                if isinstance(example, str):
                    yield from self.comment(f'- "{example}"', indent)
                elif self.complete:
                    yield f"{indent}// - {compact_json(example)}\n"
        if variants is not None:
            yield from self.union_property(name, schema, variants, indent)
            return
        kind = self.nullable(schema, self.type_of(schema, indent + "    "))
        yield f"{indent}{name}: {kind},"
        if not (isinstance(schema, dict) and "oneOf" in schema):
            notes = [note for note in (self.default(schema), *self.bounds(schema)) if note]
            if notes:
                yield f" // {', '.join(notes)}"
        yield "\n"

    def union_property(
        self, name: str, schema: dict[str, Any], variants: list[Any], indent: str
    ) -> Iterator[str]:
        """A property of several types, one a line; what it shares with the first is said once."""
        shared = _string(schema, "description")
        first = _string(variants[0], "description") if variants else None
        above = shared is not None and first != shared
        if above:
            yield from self.comment(shared, indent)
        default = self.default(schema)
        if default:
            yield f"{indent}// {default}\n"
        yield f"{indent}{name}:\n"
        for index, variant in enumerate(variants):
            silent = above and index == 0 and not self.complete
            known = _string(variant, "description") if silent else shared
            notes = self.trailing(variant, known=known)
            yield f"{indent} | {self.variant(variant, indent)}{notes}\n"
        yield f"{indent},\n"

    def variant(self, schema: Any, indent: str) -> str:
        return self.nullable(schema, self.type_of(schema, indent + "   "))

    def nullable(self, schema: Any, kind: str) -> str:
        is_nullable = isinstance(schema, dict) and schema.get("nullable") is True
        return f"{kind} | null" if is_nullable and "null" not in kind else kind

    def trailing(
        self, schema: Any, *, known: str | None = None, quote_enum_default: bool = False
    ) -> str:
        """`` // description default: ...`` after a variant; ``known`` was said elsewhere."""
        notes = []
        description = _string(schema, "description")
        if description is not None and description != known:
            notes.append(" ".join(description.split("\n")) if self.complete else description)
        default = self.default(schema, quote_enum_default=quote_enum_default)
        notes.extend(note for note in (default, *self.bounds(schema)) if note)
        return f" // {' '.join(notes)}" if notes else ""

    def default(self, schema: Any, *, quote_enum_default: bool = False) -> str:
        if not isinstance(schema, dict) or "default" not in schema:
            return ""
        value = schema["default"]
        if not isinstance(value, str):
            return f"default: {compact_json(value)}"
        if not _list(schema, "enum"):
            return f'default: "{value}"'
        return f"default: {compact_json(value)}" if quote_enum_default else f"default: {value}"

    def bounds(self, schema: Any) -> Iterator[str]:
        if self.complete and isinstance(schema, dict):
            for key, words in _BOUNDS:
                if isinstance(schema.get(key), (int, float, str)):
                    yield f"{words}: {compact_json(schema[key])}"

    def comment(self, text: str | None, indent: str) -> Iterator[str]:
        if text is None:
            return
        for line in text.split("\n") if self.complete else (text,):
            yield f"{indent}// {line}\n"
