"""Ids to text, and what the ids are called."""

from __future__ import annotations

import re
from collections.abc import Iterable

import tiktoken

from ..errors import InvalidArgument

REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()

_RESERVED_NAME = re.compile(r"<\|reserved_\d+\|>")


def token_bytes(encoding: tiktoken.Encoding, token: int) -> bytes:
    """The bytes of one id; of an id without a name, those of U+FFFD."""
    try:
        return encoding.decode_single_token_bytes(token)
    except (KeyError, OverflowError):
        return REPLACEMENT


def decode_bytes(encoding: tiktoken.Encoding, ids: Iterable[int]) -> bytes:
    """The bytes of `ids`, special tokens by their names; an id without a name, negative or beyond
    the encoding gives the bytes of U+FFFD. Never raises on an integer."""
    ids = list(ids)
    try:
        return encoding.decode_bytes(ids)
    except (KeyError, OverflowError):
        return b"".join(token_bytes(encoding, token) for token in ids)


def decode_text(encoding: tiktoken.Encoding, ids: Iterable[int]) -> str:
    """The text of `ids`; what is no UTF-8 becomes U+FFFD as in ``bytes.decode``'s "replace" over
    all bytes together."""
    return decode_bytes(encoding, ids).decode("utf-8", "replace")


def special_ids(encoding: tiktoken.Encoding) -> dict[str, int]:
    """Name to id of every special token, in the order of the ids."""
    pairs = ((name, encoding.encode_single_token(name)) for name in encoding.special_tokens_set)
    return dict(sorted(pairs, key=lambda pair: pair[1]))


def reserved_ids(encoding: tiktoken.Encoding, vocab_size: int) -> list[int]:
    """The ids below `vocab_size` that a model must never sample, ascending: those named
    ``<|reserved_N|>`` and those without any name.

    Raises InvalidArgument for a negative size.
    """
    if vocab_size < 0:
        raise InvalidArgument(
            f"[reserved_ids] expected a vocabulary size of 0 or more, found {vocab_size}; pass "
            "the model's vocab_size"
        )
    usable = {encoding.encode_single_token(token) for token in encoding.token_byte_values()}
    usable.update(
        token for name, token in special_ids(encoding).items() if not _RESERVED_NAME.fullmatch(name)
    )
    return [token for token in range(vocab_size) if token not in usable]
