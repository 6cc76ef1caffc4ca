"""Conversations in files: what was said, and the exact tokens of it.

Keys and values are not part of it; the first question after `read` computes them again.
"""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidArgument

if TYPE_CHECKING:
    from ..harmony import HarmonyEncoding, Message

_FORMAT = "gpt-oss-native conversation"
_VERSION = 1


@dataclass(frozen=True)
class Saved:
    """What stands behind the opening messages of a chat: messages, and the tokens that the next
    prompt has of them."""

    messages: list[Message]
    tokens: list[int]


def write(
    path: str | os.PathLike[str],
    encoding: HarmonyEncoding,
    messages: Sequence[Message],
    tokens: Sequence[int],
) -> None:
    """Writes a conversation as JSON, for its owner alone; an earlier file is replaced at once or
    stays as it is. Raises OSError."""
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "messages": [_plain(message) for message in messages],
        "tokens": list(tokens),
        "checksum": _checksum(encoding, tokens),
    }
    target = Path(os.path.realpath(path))
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file, ensure_ascii=True)
        os.replace(name, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def read(path: str | os.PathLike[str], encoding: HarmonyEncoding) -> Saved:
    """What `write` wrote. Raises InvalidArgument for another file and for one of a model with
    another vocabulary, OSError where it cannot be read."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content["format"] != _FORMAT or content["version"] != _VERSION:
            raise ValueError(f"format {content['format']!r}, version {content['version']!r}")
        tokens = content["tokens"]
        if not all(type(token) is int for token in tokens):
            raise ValueError("tokens that are no integers")
        saved = Saved([_message(raw) for raw in content["messages"]], tokens)
        checksum = content["checksum"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise InvalidArgument(
            f"[chat] {os.fspath(path)}: expected a conversation that Chat.save wrote, found "
            f"something else ({type(error).__name__}: {error})"
        ) from None
    if _checksum(encoding, tokens) != checksum:
        raise InvalidArgument(
            f"[chat] {os.fspath(path)}: expected a conversation in this model's vocabulary, its "
            "tokens mean something else there; resume it with the model that it was held with"
        )
    return saved


def _checksum(encoding: HarmonyEncoding, tokens: Sequence[int]) -> int:
    """Of what the tokens say, which another vocabulary would change."""
    return zlib.crc32(b"\0".join(encoding.token_bytes(token) or b"\xff" for token in tokens))


def _plain(message: Message) -> dict[str, Any]:
    fields = (message.channel, message.recipient, message.content_type)
    return {
        "role": message.author.role.value,
        "name": message.author.name,
        "text": message.text,
        **dict(zip(("channel", "recipient", "content_type"), fields, strict=True)),
    }


def _message(raw: dict[str, Any]) -> Message:
    """As it was, also where its header is one that only a model would write."""
    from ..harmony import Author, Message, Role

    names = {key: raw[key] for key in ("name", "channel", "recipient", "content_type")}
    if not all(value is None or isinstance(value, str) for value in names.values()):
        raise TypeError("header fields that are no text")
    if not isinstance(raw["text"], str):
        raise TypeError("a text that is none")
    author = Author.from_model(Role(raw["role"]), names.pop("name"))
    return Message.from_model(author, raw["text"], **names)
