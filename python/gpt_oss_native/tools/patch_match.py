"""Hunks applied to a text: where a hunk belongs, and what becomes of lines and their ends.

A hunk is looked for from the end of the one before, exactly at first, then without trailing
whitespace, then without any surrounding whitespace; the first level with a match decides, and its
first match. Context lines keep the file's text, whichever level found them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from .patch_format import Hunk, HunkLine, PatchError

_LEVELS: Final[tuple[tuple[str, Callable[[str], str]], ...]] = (
    ("", lambda line: line),
    ("ignoring trailing whitespace", str.rstrip),
    ("ignoring surrounding whitespace", str.strip),
)


@dataclass(frozen=True)
class Edited:
    """A text after its hunks, and what the author should know of where they were applied."""

    text: str
    notes: tuple[str, ...]


def apply_hunks(text: str, hunks: Sequence[Hunk], *, path: str) -> Edited:
    """``text`` with every hunk applied, in order.

    Line ends are kept; added lines take the end of the line before them. A text without a newline
    at its end stays one, and any other ends with one. ``path`` is for messages.

    Raises PatchError when a hunk does not fit, with the line that differs.
    """
    lines, ends = _split(text)
    common = Counter(end for end in ends if end).most_common(1)
    newline = common[0][0] if common else "\n"
    unfinished = bool(ends) and not ends[-1]
    if unfinished:
        ends[-1] = newline
    out: list[tuple[str, str]] = []
    notes: list[str] = []
    done = 0  # lines of the file that are in `out` or removed
    for hunk in hunks:
        place = _Search(lines, hunk, done, path).place()
        out.extend(zip(lines[done : place.at], ends[done : place.at], strict=True))
        end = out[-1][1] if out else newline
        done = place.at
        for kind, added in place.body:
            if kind == "+":
                out.append((added, end))
                continue
            end = ends[done]
            if kind == " ":
                out.append((lines[done], end))
            done += 1
        notes.extend(place.notes)
    out.extend(zip(lines[done:], ends[done:], strict=True))
    if unfinished and out:
        out[-1] = (out[-1][0], "")
    return Edited("".join(line + end for line, end in out), tuple(notes))


def _split(text: str) -> tuple[list[str], list[str]]:
    """Lines and the end of each: newline, carriage return and newline, or nothing at the last."""
    *whole, last = text.split("\n")
    lines = [line.removesuffix("\r") for line in whole]
    ends = ["\r\n" if line.endswith("\r") else "\n" for line in whole]
    return ([*lines, last], [*ends, ""]) if last else (lines, ends)


@dataclass(frozen=True)
class _Place:
    at: int  # the line of the file before which the body begins, from 0
    body: tuple[HunkLine, ...]
    notes: tuple[str, ...]


class _Search:
    """One hunk looked for in the lines of a file, from line ``start`` on."""

    def __init__(self, lines: Sequence[str], hunk: Hunk, start: int, path: str) -> None:
        self._lines = lines
        self._hunk = hunk
        self._start = start
        self._path = path

    def place(self) -> _Place:
        hunk = self._hunk
        start = self._start
        anchored = None
        for anchor in hunk.anchors:
            anchored = self._anchor(anchor, start)
            start = anchored + 1
        bodies = [hunk.lines]
        if hunk.blank_tail:  # blank lines before the next section are layout, as a second try
            shorter = hunk.lines[: -hunk.blank_tail]
            bodies += [shorter] if shorter else []
        # A hunk may repeat its anchor as first context line.
        starts = [start] if anchored is None else [start, anchored]
        for body in bodies:
            for first in starts:
                if (place := self._find(body, first, anchored is not None)) is not None:
                    return place
        raise self._error(self._explain(start))

    def _anchor(self, anchor: str, start: int) -> int:
        for _, normal in _LEVELS:
            wanted = normal(anchor)
            for at in range(start, len(self._lines)):
                if normal(self._lines[at]) == wanted:
                    return at
        after = f" after line {start}" if start else ""
        raise self._error(
            f"expected a line {anchor!r} as '@@' says, found none{after}; "
            "write the whole line of the file there, or '@@' alone"
        )

    def _find(self, body: tuple[HunkLine, ...], start: int, anchored: bool) -> _Place | None:
        old = [text for kind, text in body if kind != "+"]
        if not old:  # nothing to look for: after the anchor, or at the end of the file
            at = start if anchored and not self._hunk.at_end else len(self._lines)
            return _Place(at, body, ())
        last = len(self._lines) - len(old)
        if self._hunk.at_end:
            start = max(start, last)
        for level, normal in _LEVELS:
            wanted = [normal(line) for line in old]
            have = [normal(line) for line in self._lines[start:]]
            found = [
                start + at
                for at, line in enumerate(have)
                if line == wanted[0] and have[at : at + len(wanted)] == wanted
            ]
            if found:
                return _Place(found[0], body, self._notes(found, level))
        return None

    def _notes(self, found: list[int], level: str) -> tuple[str, ...]:
        notes = []
        if level:
            notes.append(f"{self._path}: matched line {found[0] + 1} {level}")
        if len(found) > 1:
            others = ", ".join(str(at + 1) for at in found[1:4])
            notes.append(
                f"{self._path}: took the first of {len(found)} matches, line {found[0] + 1} "
                f"(others: {others}); more context or '@@' chooses another"
            )
        return tuple(notes)

    def _explain(self, start: int) -> str:
        """What stands in the way, for an author who sees only the patch."""
        old = [text.strip() for kind, text in self._hunk.lines if kind != "+"]
        have = [line.strip() for line in self._lines]
        if self._hunk.at_end and self._occurs(old, have, 0, len(have)):
            return "expected these lines at the end of the file, found them before it"
        if self._occurs(old, have, 0, start):
            return (
                f"expected these lines after line {start}, found them before it; "
                "hunks must be in the order of the file, after their '@@' line"
            )
        best, matched = 0, 0
        for at in range(start, len(have)):
            count = 0
            while count < len(old) and at + count < len(have) and have[at + count] == old[count]:
                count += 1
            if count > matched:
                best, matched = at, count
        if not matched:
            return f"expected the line {old[0]!r}, found none like it; read the file again"
        at = best + matched
        found = repr(self._lines[at]) if at < len(self._lines) else "the end of the file"
        return f"expected {old[matched]!r} at line {at + 1}, found {found}; read the file again"

    @staticmethod
    def _occurs(old: list[str], have: list[str], start: int, end: int) -> bool:
        return any(have[at : at + len(old)] == old for at in range(start, end - len(old) + 1))

    def _error(self, text: str) -> PatchError:
        return PatchError(
            f"[apply_patch] {self._path}, hunk at line {self._hunk.line} of the patch: {text}"
        )
