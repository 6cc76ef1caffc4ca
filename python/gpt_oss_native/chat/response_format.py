"""The form of an answer: a JSON schema or a pydantic model, told to the model and enforced."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from .. import structured
from ..errors import InvalidArgument

if TYPE_CHECKING:
    from ..harmony import HarmonyEncoding


class ResponseFormat:
    """What the final text must be.

    Takes a JSON schema, a pydantic model, or the OpenAI forms ``{"type": "json_schema",
    "json_schema": {"name": ..., "schema": ...}}`` and ``{"type": "json_object"}``. Raises
    InvalidArgument for anything else, for a schema that cannot be followed, and where the extra
    ``grammar`` is not installed.
    """

    def __init__(self, given: Any, encoding: HarmonyEncoding, vocab_size: int) -> None:
        structured.require("response_format")
        self._model = given if hasattr(given, "model_json_schema") else None
        self._name, schema = "response", given
        if self._model is not None:
            self._name, schema = given.__name__, given.model_json_schema()
        elif isinstance(given, dict) and given.get("type") == "json_schema":
            inner = given.get("json_schema", given)
            self._name, schema = inner.get("name", self._name), inner.get("schema")
        elif given == {"type": "json_object"}:
            schema = {"type": "object"}
        if not isinstance(schema, dict):
            raise InvalidArgument(
                "[chat] response_format: expected a JSON schema as a dictionary or a pydantic "
                f"model, got {given!r}"
            )
        self._schema = schema
        self._end = encoding.return_
        self._grammar = structured.SchemaGrammar(encoding, schema, vocab_size)

    def prompt(self) -> str:
        """What stands at the end of the developer message."""
        text = json.dumps(self._schema, ensure_ascii=False, separators=(",", ":"))
        return f"# Response Formats\n\n## {self._name}\n\n{text}"

    def matcher(self) -> structured.Matcher:
        """Follows one answer."""
        return self._grammar.matcher(self._end)

    def parse(self, text: str) -> Any:
        """The answer as data or as an instance of the model; None where it was cut."""
        try:
            value = json.loads(text)
            return value if self._model is None else self._model.model_validate(value)
        except ValueError:
            return None
