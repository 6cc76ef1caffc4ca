"""Split patterns: the two that are known by heart, and what a foreign one must fulfil."""

from __future__ import annotations

import re

# How gpt-oss splits text into pieces (the pattern of o200k): words with one leading mark and an
# English contraction, up to three digits, punctuation with the newlines after it, whitespace.
_WORD_START = r"[^\r\n\p{L}\p{N}]?"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K_PATTERN = "|".join(
    (
        f"{_WORD_START}{_UPPER}*{_LOWER}+{_CONTRACTION}",
        f"{_WORD_START}{_UPPER}+{_LOWER}*{_CONTRACTION}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)

# What the file format's ByteLevel step splits by when no pattern of its own is given.
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# Whitespace of Unicode's White_Space property, which both engines' \s means; fixed since 6.3.
# Python's own \s differs (it takes U+001C..U+001F too).
_SPACES_BUT_NEWLINES = "\t\x0b\x0c \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"

# pattern -> (characters of a run as a class's inside, newlines that end a run elsewhere).
SPACE_RUNS: dict[str, tuple[str, str]] = {
    O200K_PATTERN: (_SPACES_BUT_NEWLINES, "\r\n"),
    GPT2_PATTERN: (_SPACES_BUT_NEWLINES + "\r\n", ""),
}

_ESCAPE_OR_CLASS = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]", re.DOTALL)
_LINE_ANCHOR = re.compile(r"[\^$]")
_TEXT_ANCHORS = frozenset((r"\A", r"\z", r"\Z", r"\G"))


def covers_every_text(pattern: str) -> bool:
    """Whether the matches of `pattern` are known to leave no character of any text out."""
    return pattern in SPACE_RUNS


def find_anchor(pattern: str) -> str | None:
    """The first anchor in `pattern`, which the two regex engines read differently, or None.

    The file's own engine (Oniguruma, Ruby syntax) ends lines at ``^`` and ``$``, tiktoken's does
    not.
    """
    for token in _ESCAPE_OR_CLASS.findall(pattern):
        if token in _TEXT_ANCHORS:
            return str(token)
    bare = _LINE_ANCHOR.search(_ESCAPE_OR_CLASS.sub("", pattern))
    return bare.group() if bare else None


def with_gaps(pattern: str) -> str:
    """`pattern` plus an alternative for the text that it leaves out.

    tiktoken drops text between two matches; the file's "Isolated" keeps each gap as a piece.
    """
    return f"{pattern}|(?:(?!{pattern})[\\s\\S])+"
