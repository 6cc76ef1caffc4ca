"""Citations of the form ``【6†L9-L11】``: found in an answer, and turned into annotations."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol

from .browser_page import Page

__all__ = ["Citation", "pending_citation", "resolve_citations"]

_CITATION: Final = re.compile(
    r"【(\d{1,9})†(?:L(\d{1,9})(?:\s*[-\u2013]\s*L?(\d{1,9}))?)?([^【】]*)】"
)
_LONGEST: Final = 256  # characters of a mark; a bracket that stays open longer is text


@dataclass(frozen=True)
class Citation:
    """Where an answer cites a page.

    Attributes:
        start, end: the place in the returned text, in characters.
        number: which source it is, from 1 in the order in which sources are first cited.
        url, title: of the source.
        cursor: the view that was cited.
        first_line, last_line: the lines cited, from 0, both included; None when only the page is.
        quote: those lines as the model saw them.
    """

    start: int
    end: int
    number: int
    url: str
    title: str
    cursor: int
    first_line: int | None
    last_line: int | None
    quote: str


class _Pages(Protocol):
    def page(self, cursor: int) -> Page | None: ...


def resolve_citations(
    text: str, pages: _Pages, *, render: Callable[[Citation], str] | None = None
) -> tuple[str, list[Citation]]:
    """``text`` with each citation replaced by ``render`` of it (default: ``[1]``), and citations
    in order. What names no page that was shown, or lines beyond its end, stays as it is."""
    render = render or (lambda citation: f"[{citation.number}]")
    parts: list[str] = []
    found: list[Citation] = []
    numbers: dict[str, int] = {}
    done = length = 0
    for match in _CITATION.finditer(text):
        cursor = int(match.group(1))
        page = pages.page(cursor)
        lines = [] if page is None else page.lines
        first, last = _range(match)
        if page is None or (last is not None and last >= len(lines)):
            continue
        before = text[done : match.start()]
        number = numbers.setdefault(page.url, len(numbers) + 1)
        quote = "" if first is None or last is None else "\n".join(lines[first : last + 1])
        start = length + len(before)
        citation = Citation(start, 0, number, page.url, page.title, cursor, first, last, quote)
        shown = render(citation)
        found.append(replace(citation, end=start + len(shown)))
        parts += [before, shown]
        length = start + len(shown)
        done = match.end()
    parts.append(text[done:])
    return "".join(parts), found


def pending_citation(text: str) -> int:
    """How many characters at the end of a text that still grows may be the beginning of a
    citation; hold so many back."""
    start = text.rfind("【")
    if start < 0 or "】" in text[start:] or len(text) - start > _LONGEST:
        return 0
    return len(text) - start


def _range(match: re.Match[str]) -> tuple[int | None, int | None]:
    if match.group(2) is None:
        return None, None
    first = int(match.group(2))
    last = first if match.group(3) is None else int(match.group(3))
    return min(first, last), max(first, last)
