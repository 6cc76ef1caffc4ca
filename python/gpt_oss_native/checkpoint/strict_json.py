"""Reading small untrusted files: JSON as RFC 8259 has it, with every size bounded beforehand.

Python's ``json`` takes more than the standard does (NaN, repeated keys, lone surrogates, integers
of any length) and builds whatever it is given. Here all of that is a CheckpointError, and the
number of values is bounded before the first object is made, so that a hostile file costs neither
time nor memory.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from ..errors import CheckpointError

MAX_JSON_VALUES = 2_000_000  # the largest published checkpoint, 120b, has under 10,000
MAX_INTEGER_DIGITS = 20  # 2**64 has 20

_OP = "[load_checkpoint]"


def shorten(value: object, limit: int = 80) -> str:
    """``repr(value)`` cut to `limit` characters, for error messages about untrusted values."""
    if isinstance(value, (str, list, tuple)):
        value = value[:limit]  # a repr of the whole could be 100 MB
    elif isinstance(value, dict):
        return f"an object of {len(value)} keys"
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


@contextmanager
def open_regular(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Yields `path` opened for unbuffered reading and its size in bytes; symbolic links are
    followed.

    Raises CheckpointError when it is missing, unreadable, or no regular file (opening a pipe would
    hang).
    """
    try:
        if stat.S_ISDIR(os.stat(path).st_mode):
            raise CheckpointError(f"{_OP} {path}: expected a file, found a directory")
        # O_NONBLOCK: a pipe put in the file's place after the check above cannot block the open.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        file = os.fdopen(os.open(path, flags), "rb", buffering=0)
    except FileNotFoundError as error:
        what = "a link to a file that is gone" if path.is_symlink() else "no such file"
        raise CheckpointError(
            f"{_OP} {path}: expected a readable file, found {what}; is the download complete?"
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"{_OP} {path}: expected a readable file, found: {reason}") from error
    with file:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode):
            raise CheckpointError(f"{_OP} {path}: expected a regular file, found a device or pipe")
        yield file, info.st_size


def read_exactly(file: BinaryIO, count: int, path: Path) -> bytes:
    """Reads `count` bytes; raises CheckpointError when the file ends before, or cannot be read."""
    parts: list[bytes] = []
    left = count
    while left:
        try:
            part = file.read(left)
        except OSError as error:
            raise CheckpointError(f"{_OP} {path}: reading failed: {error.strerror}") from error
        if not part:
            raise CheckpointError(
                f"{_OP} {path}: expected {count} more bytes, the file ended after {count - left}; "
                "was it changed while it was being read?"
            )
        parts.append(part)
        left -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_json_object(path: Path, *, max_bytes: int) -> dict[str, Any]:
    """The JSON object that the file at `path` holds.

    Raises CheckpointError when it cannot be read, is larger than `max_bytes`, or is no JSON object.
    """
    with open_regular(path) as (file, size):
        if size > max_bytes:
            raise CheckpointError(
                f"{_OP} {path}: expected at most {max_bytes} bytes of JSON, found {size}"
            )
        data = read_exactly(file, size, path)
    return parse_json_object(data, str(path))


def parse_json_object(data: bytes, source: str) -> dict[str, Any]:
    """The JSON object in `data`; `source` names it in the CheckpointError raised on anything
    else."""

    def fail(reason: str) -> NoReturn:
        raise CheckpointError(f"{_OP} {source}: expected a JSON object, found {reason}")

    # Every value but the first needs one of these three bytes before it.
    if data.count(b",") + data.count(b"[") + data.count(b"{") > MAX_JSON_VALUES:
        fail(f"more than {MAX_JSON_VALUES} values")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        fail(f"bytes that are not UTF-8 (at byte {error.start})")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object_without_repeats,
            parse_int=_bounded_int,
            parse_constant=_no_constant,
        )
    except RecursionError:
        fail("values nested too deep")
    except ValueError as error:  # JSONDecodeError, and what the hooks raise
        fail(f"invalid JSON ({error})")
    if not isinstance(value, dict):
        fail(type(value).__name__)
    return value


def _object_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"duplicate key {shorten(key)}")
            seen.add(key)
    for key, value in pairs:
        _reject_lone_surrogates(key)
        if isinstance(value, str):
            _reject_lone_surrogates(value)
    return result


def _reject_lone_surrogates(text: str) -> None:
    # A lone surrogate (an escape such as \ud800) is no character: it could not be printed or
    # logged.
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"lone surrogate in {shorten(text)}") from None


def _bounded_int(digits: str) -> int:
    if len(digits) > MAX_INTEGER_DIGITS:
        raise ValueError(f"integer of {len(digits)} digits")
    if digits == "-0":
        raise ValueError("integer -0")
    return int(digits)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
