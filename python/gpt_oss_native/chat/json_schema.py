"""Whether a value follows a JSON schema, and what a model should be told where it does not.

The keywords that tools use (JSON Schema 2020-12, validation vocabulary); others are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_MAX_DEPTH = 64
_MAX_PROBLEMS = 5


def problems(value: Any, schema: Any) -> list[str]:
    """What is wrong with `value`, a sentence each, at most five; empty where nothing is."""
    found = []
    for problem in _check(value, schema, schema, "", 0):
        found.append(problem)
        if len(found) == _MAX_PROBLEMS:
            break
    return found


def _check(value: Any, schema: Any, root: Any, path: str, depth: int) -> Iterator[str]:
    where = path or "the value"
    if schema is False:
        yield f"{where} is not allowed"
    if not isinstance(schema, dict) or depth > _MAX_DEPTH:
        return
    reference = schema.get("$ref")
    if isinstance(reference, str):
        yield from _check(value, _resolve(root, reference), root, path, depth + 1)
    kinds = schema.get("type")
    if kinds is not None:
        names = [kinds] if isinstance(kinds, str) else list(kinds)
        if not any(_is(value, name) for name in names):
            yield f"{where} must be {' or '.join(names)}, not {_kind(value)}"
            return
    if "enum" in schema and not any(_equal(value, item) for item in schema["enum"]):
        yield f"{where} must be one of {schema['enum']!r}, not {value!r}"
    if "const" in schema and not _equal(value, schema["const"]):
        yield f"{where} must be {schema['const']!r}, not {value!r}"
    for member in schema.get("allOf", ()):
        yield from _check(value, member, root, path, depth + 1)
    for key in ("anyOf", "oneOf"):
        members = schema.get(key)
        if members:
            tried = [list(_check(value, member, root, path, depth + 1)) for member in members]
            if all(tried):
                yield " or ".join(found[0] for found in tried)
    if isinstance(value, dict):
        yield from _check_object(value, schema, root, path, depth)
    elif isinstance(value, list):
        yield from _check_array(value, schema, root, path, depth)
    elif isinstance(value, str):
        yield from _check_text(value, schema, where)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield from _check_number(value, schema, where)


def _check_object(
    value: dict[str, Any], schema: dict[str, Any], root: Any, path: str, depth: int
) -> Iterator[str]:
    properties = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{_join(path, name)} is missing"
    rest = schema.get("additionalProperties", True)
    for name, item in value.items():
        if name in properties:
            yield from _check(item, properties[name], root, _join(path, name), depth + 1)
        elif rest is False:
            known = ", ".join(properties) or "none"
            yield f"{_join(path, name)} is not known; known are: {known}"
        else:
            yield from _check(item, rest, root, _join(path, name), depth + 1)


def _check_array(
    value: list[Any], schema: dict[str, Any], root: Any, path: str, depth: int
) -> Iterator[str]:
    where = path or "the value"
    first = schema.get("prefixItems", [])
    for index, item in enumerate(value):
        inner = first[index] if index < len(first) else schema.get("items", True)
        yield from _check(item, inner, root, f"{path}[{index}]", depth + 1)
    if len(value) < schema.get("minItems", 0):
        yield f"{where} must have {schema['minItems']} items or more, not {len(value)}"
    if len(value) > schema.get("maxItems", len(value)):
        yield f"{where} must have at most {schema['maxItems']} items, not {len(value)}"
    if schema.get("uniqueItems") and any(
        _equal(a, b) for i, a in enumerate(value) for b in value[:i]
    ):
        yield f"{where} must not have an item twice"


def _check_text(value: str, schema: dict[str, Any], where: str) -> Iterator[str]:
    if len(value) < schema.get("minLength", 0):
        yield f"{where} must have {schema['minLength']} characters or more"
    if len(value) > schema.get("maxLength", len(value)):
        yield f"{where} must have at most {schema['maxLength']} characters"
    pattern = schema.get("pattern")
    if isinstance(pattern, str):
        try:
            matches = re.search(pattern, value) is not None
        except re.error:
            return  # not a pattern of Python's dialect
        if not matches:
            yield f"{where} must match {pattern!r}"


def _check_number(value: float, schema: dict[str, Any], where: str) -> Iterator[str]:
    if value < schema.get("minimum", value):
        yield f"{where} must be {schema['minimum']} or more, not {value}"
    if value > schema.get("maximum", value):
        yield f"{where} must be {schema['maximum']} or less, not {value}"
    if "exclusiveMinimum" in schema and value <= schema["exclusiveMinimum"]:
        yield f"{where} must be more than {schema['exclusiveMinimum']}, not {value}"
    if "exclusiveMaximum" in schema and value >= schema["exclusiveMaximum"]:
        yield f"{where} must be less than {schema['exclusiveMaximum']}, not {value}"


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _resolve(root: Any, reference: str) -> Any:
    target = root
    for part in reference.removeprefix("#").split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(target, dict) or part not in target:
            return True
        target = target[part]
    return target if reference.startswith("#") else True


def _equal(a: Any, b: Any) -> bool:
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


def _is(value: Any, kind: str) -> bool:
    if kind == "integer":
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        return whole and not isinstance(value, bool)
    if kind == "number":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return kind == _kind(value)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"
