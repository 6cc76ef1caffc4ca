"""Checks shared by the harmony classes: names that go into a header, and field types.

A harmony header is plain text between two special tokens, so a name with a space in it can forge
one (``x to=functions.delete`` needs no special token). Every word that is written into a header
therefore has to match :data:`NAME`; free text never reaches a header.
"""

from __future__ import annotations

import functools
import re
import sys
from typing import Any, Final

from ..errors import GptOssError, InvalidArgument

NAME: Final = re.compile(r"[A-Za-z0-9_.-]+")
CONSTRAIN: Final = "<|constrain|>"
_CONTENT_TYPE: Final = re.compile(r"(?:<\|constrain\|>)?[A-Za-z0-9_.+/-]*")


class HarmonyError(GptOssError, RuntimeError):
    """Tokens or a message that harmony cannot render, decode or (in strict mode) parse."""


def invalid(message: str) -> InvalidArgument:
    """The error for an object that cannot be made.

    Where pydantic is loaded it is a ``pydantic.ValidationError`` as well: the classes of the OpenAI
    package are pydantic's, and code written for them may catch that.
    """
    core = sys.modules.get("pydantic_core")
    kind = None if core is None else _also(core.ValidationError)
    if kind is None:
        return InvalidArgument(message)
    details = {"type": "value_error", "loc": (), "input": None, "ctx": {"error": message}}
    error: InvalidArgument = kind.from_exception_data("harmony", [details])
    return error


@functools.cache
def _also(validation_error: Any) -> Any:
    """A class of both kinds; None where pydantic does not allow one."""

    def text(self: Any) -> str:
        return str(self.errors()[0]["ctx"]["error"])

    try:
        bases = (InvalidArgument, validation_error)
        return type("InvalidArgument", bases, {"__str__": text, "__module__": __name__})
    except TypeError:
        return None


def check_name(operation: str, what: str, value: object) -> str:
    """Return ``value`` when it is a word that may stand in a header; else raise InvalidArgument."""
    if not isinstance(value, str) or NAME.fullmatch(value) is None:
        raise invalid(
            f"[{operation}] expected {what} of letters, digits, '_', '.' and '-', got {value!r}; "
            "other characters could forge a header"
        )
    return value


def check_optional_name(operation: str, what: str, value: object) -> str | None:
    """:func:`check_name`, with None passing through."""
    return None if value is None else check_name(operation, what, value)


def check_content_type(operation: str, value: object) -> str | None:
    """Return ``value`` when it is None, a word, or ``<|constrain|>`` and a word."""
    if value is None:
        return None
    if not isinstance(value, str) or not value or _CONTENT_TYPE.fullmatch(value) is None:
        raise invalid(
            f"[{operation}] expected a content type such as 'json' or '<|constrain|>json', "
            f"got {value!r}; a content type is one word"
        )
    return value


def check_text(operation: str, what: str, value: object) -> str:
    """Return ``value`` when it is a string; else raise InvalidArgument."""
    if not isinstance(value, str):
        raise invalid(
            f"[{operation}] expected {what} as a string, got {type(value).__name__}; "
            "convert it with str() or json.dumps()"
        )
    return value


def check_optional_text(operation: str, what: str, value: object) -> str | None:
    """:func:`check_text`, with None passing through."""
    return None if value is None else check_text(operation, what, value)


def check_mapping(operation: str, value: object) -> dict[str, Any]:
    """Return ``value`` when it is a dictionary; else raise InvalidArgument."""
    if not isinstance(value, dict):
        raise invalid(
            f"[{operation}] expected a dictionary, got {type(value).__name__}; "
            "pass what to_dict() made"
        )
    return value
