"""Writing to a terminal or a file: colour only where it is wanted, answers as they come, a bar."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import TextIO

from ..chat import Done, Event, ToolCall, ToolResult

_DIM, _RESET = "\x1b[2m", "\x1b[0m"
# What a model writes must not move the cursor, rename the window or colour what follows.
_CONTROLS = {
    code: "\N{REPLACEMENT CHARACTER}"
    for code in (*range(0x20), 0x7F, *range(0x80, 0xA0))
    if chr(code) not in "\n\t"
}


def is_terminal(stream: TextIO) -> bool:
    """Whether a person reads this."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def has_colour(stream: TextIO) -> bool:
    """Whether to write ANSI colours: to terminals only, and not where NO_COLOR is set
    (https://no-color.org)."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


def dim(text: str, stream: TextIO) -> str:
    """`text`, fainter where there is colour."""
    return f"{_DIM}{text}{_RESET}" if has_colour(stream) else text


class AnswerPrinter:
    """Writes the events of one turn as they come: reasoning dimmed, or under a label where there is
    no colour; then the answer."""

    def __init__(self, out: TextIO, *, show_reasoning: bool) -> None:
        self._out = out
        self._show_reasoning = show_reasoning
        self._terminal = is_terminal(out)
        self._colour = has_colour(out)
        self._section: str | None = None
        self._at_line_start = True
        self._answer: list[str] = []

    @property
    def answer(self) -> str:
        """The text of the answer so far."""
        return "".join(self._answer)

    def plain(self, text: str) -> str:
        """`text` without what could control a terminal, where one is written to."""
        return text.translate(_CONTROLS) if self._terminal else text

    def show(self, event: Event) -> None:
        """Writes one event."""
        if isinstance(event, ToolCall):
            self._begin("call")
            gap = "\n" if "\n" in event.arguments.strip() else " "  # code begins on its own line
            self._write(f"{event.name}{gap}{event.arguments}")
        elif isinstance(event, ToolResult):
            self._begin("result")
            self._write(event.text)
        elif not isinstance(event, Done):
            section = "reasoning" if event.channel == "analysis" else "answer"
            if event.channel == "final":
                self._answer.append(event.delta)
            if section == "answer" or self._show_reasoning:
                self._begin(section)
                self._write(event.delta)
        self._out.flush()

    def end(self) -> None:
        """Ends colour and line, whatever came before; may be called twice."""
        if self._section is not None and self._colour:
            self._out.write(_RESET)
        if not self._at_line_start:
            self._out.write("\n")
        self._at_line_start = True
        self._section = None
        self._out.flush()

    def _begin(self, section: str) -> None:
        if section == self._section:
            return
        first = self._section is None
        self.end()
        if not first:
            self._out.write("\n")
        self._section = section
        if self._colour:
            self._out.write("" if section == "answer" else _DIM)
        if section in ("call", "result") or (self._show_reasoning and not self._colour):
            self._out.write(f"[{section}]\n")

    def _write(self, text: str) -> None:
        if text:
            self._at_line_start = text.endswith("\n")
            self._out.write(self.plain(text))


class Progress:
    """A bar on a terminal, nothing elsewhere. Call it with (bytes done, bytes in all)."""

    def __init__(self, stream: TextIO | None = None, *, interval_s: float = 0.1) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._shown = is_terminal(self._stream)
        self._interval_s = interval_s
        self._start = time.monotonic()
        self._next = 0.0
        self._width = 0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if not self._shown or (now < self._next and done < total):
            return
        self._next = now + self._interval_s
        share = done / total if total else 1.0
        rate = done / max(now - self._start, 1e-9)
        left = (total - done) / rate if rate else 0.0
        bar = "#" * int(30 * share)
        line = (
            f"[{bar:<30}] {share:4.0%}  {done / 1e9:.2f} of {total / 1e9:.2f} GB  "
            f"{rate / 1e6:,.0f} MB/s  {left:.0f} s left"
        )
        self._stream.write("\r" + line.ljust(self._width))
        self._stream.flush()
        self._width = len(line)

    def close(self) -> None:
        """Takes the bar away."""
        if self._shown and self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._stream.flush()


def table(rows: Sequence[Sequence[str]], *, indent: str = "  ") -> str:
    """Rows in aligned columns, the first left-aligned, the others right-aligned; the first row is
    the heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append((indent + "  ".join(cells)).rstrip())
    return "\n".join(lines)


def size(num_bytes: float) -> str:
    """A number of bytes in the unit that suits it."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.2f} {unit}"
    return f"{num_bytes:.0f} B"
