"""Text to ids, for text of any length and any content."""

from __future__ import annotations

import re
from weakref import WeakKeyDictionary

import tiktoken

from ..errors import InvalidArgument
from .patterns import SPACE_RUNS

# tiktoken's regex engine keeps one backtracking state a character for ``\s+(?!\S)`` and panics at
# 1,000,000 of them. Runs from a tenth of that on never reach it.
_LONG_RUN = 100_000

_SPACE_BYTES = bytes(
    sorted(
        set(
            "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007"
            "\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000".encode()
        )
    )
)

_piece_encoders: WeakKeyDictionary[tiktoken.Encoding, tiktoken.Encoding] = WeakKeyDictionary()


def encode_text(encoding: tiktoken.Encoding, text: str, *, long_run: int = _LONG_RUN) -> list[int]:
    r"""The ids of `text` as ordinary text: names of special tokens inside it are spelled out.

    The result is exactly the encoding's own for the whole text, also where tiktoken alone panics
    (a million spaces). Whitespace runs of `long_run` characters or more are taken out and encoded
    as one piece each, without the regex. Why the cuts are neutral, for the o200k pattern:

    Let S be a run of whitespace other than ``\r`` and ``\n``, as long as it can be, not followed
    by a newline. Only two alternatives can match a whitespace character after the first of a
    piece: the newline ones (``[\r\n/]*`` and ``\s*[\r\n]+``) and the two of whitespace alone.

    - *A piece ends where S starts.* Before S stands the start, a newline or something that is not
      whitespace. No alternative goes from a non-space on into S (what follows a word or
      punctuation is letters, ``'s``, ``[\r\n/]``). A newline there is the last of its run of
      whitespace, and both newline alternatives are greedy, so they end right after it. Neither
      looks ahead, so the text before S alone gives the same pieces.
    - *S is one piece but for its last character.* No newline follows, so ``\s*[\r\n]+`` fails, a
      word or punctuation can start only at the last character of S, and ``\s+(?!\S)`` takes all
      of S at the end of the text, else all but the last character.
    - *The rest is independent.* The pattern never looks behind.

    The GPT-2 pattern is the same argument with no newline alternative. Byte-pair merging of very
    long pieces is O(n log n) in tiktoken itself.

    Raises InvalidArgument for a lone surrogate (no UTF-8, so no tokens) and for text that the
    regex engine gives up on under a foreign pattern.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(
            f"[encode_text] expected text that UTF-8 can express, found the lone surrogate "
            f"U+{ord(text[error.start]):04X} at position {error.start}; replace it, e.g. with "
            "text.encode('utf-8', 'replace').decode()"
        ) from None
    if len(text) < long_run:
        return _encode_chunk(encoding, text)
    family = SPACE_RUNS.get(getattr(encoding, "_pat_str", ""))
    if family is None:
        return _encode_chunk(encoding, text)
    spaces, newlines = family
    ids: list[int] = []
    begin = 0
    for run in re.finditer(f"[{spaces}]{{{max(long_run, 2)},}}", text):
        start, end = run.span()
        if text[end : end + 1] in newlines and end < len(text):
            continue  # part of a \s*[\r\n]+ piece, which needs no backtracking
        stop = end if end == len(text) else end - 1
        if start > begin:
            ids += _encode_chunk(encoding, text[begin:start])
        ids += _piece_encoder(encoding).encode_ordinary(text[start:stop])
        begin = stop
    if begin < len(text):
        ids += _encode_chunk(encoding, text[begin:])
    return ids


def _encode_chunk(encoding: tiktoken.Encoding, text: str) -> list[int]:
    try:
        return encoding.encode_ordinary(text)
    except BaseException as error:  # a Rust panic is no Exception
        if type(error).__name__ != "PanicException" and not isinstance(error, ValueError):
            raise
        raise InvalidArgument(
            f"[encode_text] expected text that the tokenizer's split pattern can work on, found "
            f"{len(text):,} characters on which the regex engine gave up ({error}); encode it in "
            "parts"
        ) from None


def _piece_encoder(encoding: tiktoken.Encoding) -> tiktoken.Encoding:
    """An encoding that takes whole texts of whitespace as one piece, with `encoding`'s merges.

    It holds only tokens of whitespace bytes: no other can be part of such a piece.
    """
    encoder = _piece_encoders.get(encoding)
    if encoder is None:
        ranks = {
            token: encoding.encode_single_token(token)
            for token in encoding.token_byte_values()
            if not token.translate(None, _SPACE_BYTES)
        }
        encoder = tiktoken.Encoding(
            f"{encoding.name} whitespace",
            pat_str=r"[\s\S]+",
            mergeable_ranks=ranks,
            special_tokens={},
        )
        _piece_encoders[encoding] = encoder
    return encoder
