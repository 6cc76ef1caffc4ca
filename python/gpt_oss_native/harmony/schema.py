"""Rewriting of JSON schemas into the few keywords that the TypeScript writer knows.

``$ref`` is resolved inside the document, ``anyOf`` becomes ``oneOf``, ``const`` becomes a one-value
``enum`` and the members of ``allOf`` are merged (JSON Schema 2020-12, core and validation).
"""

from __future__ import annotations

from typing import Any

# A tool's parameters are read by a model; deeper nesting than this is not readable anyway.
_MAX_DEPTH = 32


def normalize(schema: Any) -> Any:
    """A copy of ``schema`` without ``$ref``, ``anyOf``, ``allOf`` and ``const``.

    A reference that cannot be resolved, or that contains itself, becomes an unconstrained schema.
    """
    return _rewrite(schema, schema, (), _MAX_DEPTH)


def _rewrite(schema: Any, root: Any, seen: tuple[str, ...], depth: int) -> Any:
    if not isinstance(schema, dict):
        return schema
    if depth == 0:
        return {}
    reference = schema.get("$ref")
    if isinstance(reference, str):
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        if reference in seen:
            return rest
        target = _resolve(root, reference)
        merged = {**target, **rest} if isinstance(target, dict) else rest
        return _rewrite(merged, root, (*seen, reference), depth)

    def inner(value: Any) -> Any:
        return _rewrite(value, root, seen, depth - 1)

    out: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("anyOf", "oneOf") and isinstance(value, (list, tuple)):
            out["oneOf"] = [*out.get("oneOf", ()), *(inner(item) for item in value)]
        elif key in ("properties", "$defs", "definitions") and isinstance(value, dict):
            out[key] = {name: inner(item) for name, item in value.items()}
        elif key in ("items", "additionalProperties"):
            out[key] = inner(value)
        elif key == "const":
            out["enum"] = [value]
        elif key != "allOf":
            out[key] = value
    for member in schema.get("allOf") or ():
        out = _merge(out, inner(member))
    return _flatten(out)


def _resolve(root: Any, reference: str) -> Any:
    """The target of a local JSON pointer (``#/$defs/Name``), or None."""
    if not reference.startswith("#"):
        return None
    target = root
    for part in reference[1:].split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(target, dict) or part not in target:
            return None
        target = target[part]
    return target


def _merge(left: dict[str, Any], right: Any) -> dict[str, Any]:
    if not isinstance(right, dict):
        return left
    out = {**right, **left}
    if "properties" in left and "properties" in right:
        out["properties"] = {**right["properties"], **left["properties"]}
    if "required" in left and "required" in right:
        out["required"] = list(dict.fromkeys([*left["required"], *right["required"]]))
    return out


def _flatten(schema: dict[str, Any]) -> dict[str, Any]:
    """A union of one is that one; the keywords beside it (description, default) win."""
    variants = schema.get("oneOf")
    if not isinstance(variants, list) or len(variants) != 1 or not isinstance(variants[0], dict):
        return schema
    return {**variants[0], **{key: value for key, value in schema.items() if key != "oneOf"}}
