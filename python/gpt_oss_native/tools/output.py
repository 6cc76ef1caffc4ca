"""What a program printed, made fit for a model: plain, as a terminal shows it, not too long."""

from __future__ import annotations

import re
from collections import deque
from typing import Final

_ESCAPE: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_OVERWRITTEN: Final = re.compile(r"[^\n]*\r(?=[^\n])")


def plain(text: str) -> str:
    """``text`` without terminal escapes, and of each line only what the last carriage return
    left standing, as progress bars mean it."""
    text = _ESCAPE.sub("", text).replace("\r\n", "\n")
    return _OVERWRITTEN.sub("", text)


class CutOutput:
    """Text in bounded memory: its first and its last part, with a notice between."""

    def __init__(self, limit: int) -> None:
        """Keeps ``limit`` characters, half of them from the beginning."""
        self._room = limit - limit // 2
        self._tail_limit = limit // 2
        self._head: list[str] = []
        self._tail: deque[str] = deque()
        self._tail_length = 0
        self._dropped = 0

    def add(self, text: str) -> None:
        """Appends."""
        if self._room:
            self._head.append(text[: self._room])
            taken = len(self._head[-1])
            self._room -= taken
            text = text[taken:]
        if not text:
            return
        self._tail.append(text)
        self._tail_length += len(text)
        while self._tail_length > self._tail_limit:
            excess = self._tail_length - self._tail_limit
            first = self._tail.popleft()
            gone = min(excess, len(first))
            if gone < len(first):
                self._tail.appendleft(first[gone:])
            self._tail_length -= gone
            self._dropped += gone

    def text(self) -> str:
        """What was kept, with the number of characters left out where they stood."""
        head, tail = "".join(self._head), "".join(self._tail)
        if not self._dropped:
            return head + tail
        return f"{head}\n[... {self._dropped} characters of output left out ...]\n{tail}"
