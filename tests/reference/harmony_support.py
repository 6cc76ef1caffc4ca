"""What the harmony tests share: a small encoding, and the published package over the o200k file."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import tiktoken
from gpt_oss_native import harmony

from reference import vocabulary


@functools.cache
def small_encoding() -> harmony.HarmonyEncoding:
    """Harmony over 757 tokens; needs no file."""
    return harmony.HarmonyEncoding(
        tiktoken.Encoding(
            "small",
            pat_str=vocabulary.PATTERN,
            mergeable_ranks=vocabulary.small_ranks(),
            special_tokens=vocabulary.SMALL_SPECIAL,
        )
    )


def published() -> tuple[Any, Any]:
    """The ``openai_harmony`` module and its encoding; call it under the ``o200k`` fixture."""
    package = pytest.importorskip("openai_harmony", reason="openai-harmony is not installed")
    return package, _published_encoding(package)


@functools.cache
def _published_encoding(package: Any) -> Any:
    return package.load_harmony_encoding("HarmonyGptOss")  # half a second each time


def tokens_of(encoding: harmony.HarmonyEncoding, text: str) -> list[int]:
    """Tokens of a text whose special-token strings are special tokens."""
    return encoding.encode(text, allowed_special="all")


def parse(
    encoding: harmony.HarmonyEncoding, text: str, role: str | None = "assistant", **options: Any
) -> list[harmony.Message]:
    """The messages in such a text."""
    parser = harmony.StreamableParser(
        encoding, None if role is None else harmony.Role(role), **options
    )
    for token in tokens_of(encoding, text):
        parser.process(token)
    return parser.process_eos().messages


def assert_every_token_is_accounted_for(
    messages: Sequence[harmony.Message], tokens: Sequence[int]
) -> None:
    """The messages' spans, one after another, are the whole stream."""
    end = 0
    for message in messages:
        assert message.span is not None
        assert message.span[0] == end, f"a gap before {message} in {list(tokens)}"
        end = message.span[1]
    assert end == len(tokens), f"{len(tokens) - end} tokens lost of {list(tokens)}"
