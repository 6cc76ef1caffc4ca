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

# One escape or one class; a class within a class is cut short, which can only refuse too much.
_ATOM = re.compile(r"\\[pPxu]\{[^}]*\}|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
# Anchors, and references to groups or to where the match starts.
_AMBIGUOUS_ESCAPE = re.compile(r"\\[AzZGkKg1-9]")
# Anchors of a line, flags that mean other things, and possessive counts.
_AMBIGUOUS = re.compile(r"[\^$]|\(\?[a-z-]*[msx][a-z-]*[:)]|\}\+")


def covers_every_text(pattern: str) -> bool:
    """Whether the matches of `pattern` are known to leave no character of any text out."""
    return pattern in SPACE_RUNS


def find_ambiguity(pattern: str) -> str | None:
    """The first construct in `pattern` that the two regex engines read differently, or None.

    For the file's own engine (Oniguruma with Ruby's syntax) ``^`` and ``$`` are about lines,
    ``(?m)`` is about the dot, and ``{1,3}+`` repeats; tiktoken's follows Perl.
    """
    for atom in _ATOM.findall(pattern):
        if _AMBIGUOUS_ESCAPE.fullmatch(atom):
            return str(atom)
    found = _AMBIGUOUS.search(_ATOM.sub("a", pattern))
    return found.group() if found else None


def with_gaps(pattern: str) -> str:
    """`pattern` plus an alternative for the text that it leaves out.

    tiktoken drops text between two matches; the file's "Isolated" keeps each gap as a piece.
    """
    return f"{pattern}|(?:(?!{pattern})[\\s\\S])+"
