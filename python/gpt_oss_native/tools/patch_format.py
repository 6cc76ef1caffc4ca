"""The patch format that gpt-oss was trained to write, read into plain operations.

::

    *** Begin Patch
    *** Update File: src/app.py
    *** Move to: src/main.py
    @@ def greet():
     context
    -removed
    +added
    *** Add File: notes.txt
    +first line
    *** Delete File: old.txt
    *** End Patch

The format is described in ``gpt_oss/tools/apply_patch.md`` of openai/gpt-oss. Read leniently where
the meaning is beyond doubt: an empty line is an empty context line, the first ``@@`` of a file may
be left out, and line numbers in it (``@@ -3,4 +3,5 @@``) are ignored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeAlias

from ..errors import InvalidArgument

__all__ = ["AddFile", "DeleteFile", "Hunk", "HunkLine", "Operation", "PatchError", "UpdateFile"]

BEGIN: Final = "*** Begin Patch"
END: Final = "*** End Patch"
ADD: Final = "*** Add File: "
DELETE: Final = "*** Delete File: "
UPDATE: Final = "*** Update File: "
MOVE: Final = "*** Move to: "
END_OF_FILE: Final = "*** End of File"
_SECTIONS: Final = (ADD, DELETE, UPDATE)
_LINE_NUMBERS: Final = re.compile(r"-\d+(?:,\d+)? \+\d+(?:,\d+)? @@")


class PatchError(InvalidArgument):
    """A patch that cannot be applied; no file was changed."""


class HunkLine(NamedTuple):
    """One line of a hunk: kept, removed or added."""

    kind: Literal[" ", "-", "+"]
    text: str


@dataclass(frozen=True)
class Hunk:
    """One place of a file and what becomes of it.

    Attributes:
        anchors: texts after ``@@``: lines that stand before the hunk, one after another.
        lines: context, removed and added lines in order; may be empty.
        at_end: the last line that is kept or removed must be the last of the file.
        blank_tail: so many context lines at the end were written without their leading blank;
            they may belong to the layout of the patch and not to the file.
        line: where it begins in the patch, from 1.
    """

    anchors: tuple[str, ...]
    lines: tuple[HunkLine, ...]
    at_end: bool
    blank_tail: int
    line: int


@dataclass(frozen=True)
class AddFile:
    """A file that must not exist yet, and its lines."""

    path: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class DeleteFile:
    """A file that must exist."""

    path: str


@dataclass(frozen=True)
class UpdateFile:
    """A file that must exist, its hunks in the order of the file, and its new path or None."""

    path: str
    move_to: str | None
    hunks: tuple[Hunk, ...]


Operation: TypeAlias = AddFile | DeleteFile | UpdateFile


def parse_patch(text: str) -> list[Operation]:
    """The operations of a patch, in order; no file is looked at.

    Raises PatchError, naming the line of the patch, for anything the format does not have.
    """
    reader = _Reader(_patch_lines(text))
    operations: list[Operation] = []
    while (line := reader.peek()) is not None:
        if not line.strip():
            reader.next()
        elif line.startswith(_SECTIONS):
            operations.append(reader.operation())
        else:
            raise reader.error(
                f"expected '{ADD}', '{DELETE}' or '{UPDATE}' and a path", f"got {line[:80]!r}"
            )
    if not operations:
        raise reader.error("expected one file or more", "the patch names none")
    return operations


def _patch_lines(text: str) -> list[str]:
    """The lines between the first and the last one, without their ends."""
    lines = [line.removesuffix("\r") for line in text.strip().split("\n")]
    if lines[0].strip() != BEGIN:
        raise PatchError(
            f"[apply_patch] line 1: expected '{BEGIN}', got {lines[0][:80]!r}; "
            "write the patch alone, without quotes or a command around it"
        )
    if lines[-1].strip() != END:
        raise PatchError(
            f"[apply_patch] line {len(lines)}: expected '{END}' as the last line, "
            f"got {lines[-1][:80]!r}; the patch may have been cut off, write it again"
        )
    return lines[1:-1]


class _Reader:
    """A place in the lines of a patch."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines
        self._at = 0

    def peek(self) -> str | None:
        return self._lines[self._at] if self._at < len(self._lines) else None

    def next(self) -> str:
        self._at += 1
        return self._lines[self._at - 1]

    def error(self, expected: str, got: str) -> PatchError:
        return PatchError(f"[apply_patch] line {self._at + 2} of the patch: {expected}, {got}")

    def operation(self) -> Operation:
        header = self.next()
        if header.startswith(ADD):
            return AddFile(header[len(ADD) :].strip(), self._added())
        if header.startswith(DELETE):
            return DeleteFile(header[len(DELETE) :].strip())
        path = header[len(UPDATE) :].strip()
        move_to = None
        if (line := self.peek()) is not None and line.startswith(MOVE):
            move_to = self.next()[len(MOVE) :].strip()
        hunks = self._hunks()
        if not hunks and move_to is None:
            raise self.error(f"expected '@@' and the lines to change in {path!r}", "found none")
        return UpdateFile(path, move_to, hunks)

    def _section_ends(self) -> bool:
        line = self.peek()
        return line is None or line.startswith(_SECTIONS)

    def _added(self) -> tuple[str, ...]:
        lines: list[str] = []
        while not self._section_ends():
            line = self.peek() or ""
            if line.startswith("+"):
                lines.append(line[1:])
            elif line.strip():
                raise self.error(
                    "expected '+' before each line of a new file", f"got {line[:80]!r}"
                )
            elif not self._only_blank_until_section():
                raise self.error("expected '+' before each line of a new file", "got an empty line")
            self.next()
        return tuple(lines)

    def _only_blank_until_section(self) -> bool:
        for line in self._lines[self._at :]:
            if line.startswith(_SECTIONS):
                return True
            if line.strip():
                return False
        return True

    def _hunks(self) -> tuple[Hunk, ...]:
        hunks: list[Hunk] = []
        while not self._section_ends():
            if not (self.peek() or "").strip() and self._only_blank_until_section():
                self.next()
                continue
            hunks.append(self._hunk())
        return tuple(hunks)

    def _hunk(self) -> Hunk:
        number = self._at + 2
        anchors: list[str] = []
        while (header := self.peek()) is not None and header.startswith("@@"):
            anchor = self.next()[2:].removeprefix(" ")
            if anchor.strip() and not _LINE_NUMBERS.match(anchor):
                anchors.append(anchor)
        lines: list[HunkLine] = []
        blank_tail = 0
        while (line := self.peek()) is not None and not line.startswith(("@@", "***")):
            blank_tail = blank_tail + 1 if not line else 0
            lines.append(self._hunk_line(line))
            self.next()
        at_end = False
        if line is not None and line.rstrip() == END_OF_FILE:
            at_end = True
            self.next()
        elif line is not None and not line.startswith(("@@", *_SECTIONS)):
            raise self.error(
                "expected a line of the file or '*** End of File'", f"got {line[:80]!r}"
            )
        if not lines:
            raise self.error(
                "expected lines that begin with ' ', '-' or '+' after '@@'", "got none"
            )
        return Hunk(tuple(anchors), tuple(lines), at_end, blank_tail, number)

    def _hunk_line(self, line: str) -> HunkLine:
        if not line:
            return HunkLine(" ", "")
        if line[0] == " ":
            return HunkLine(" ", line[1:])
        if line[0] == "-":
            return HunkLine("-", line[1:])
        if line[0] == "+":
            return HunkLine("+", line[1:])
        raise self.error(
            "expected ' ' (context), '-' (removed) or '+' (added) before each line",
            f"got {line[:80]!r}",
        )
