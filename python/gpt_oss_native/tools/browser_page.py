"""Pages as text: HTML read with the standard library, links numbered as the models know them.

A link reads ``【3†its text†its host】``; the host is left out when it is the page's own. The
brackets occur nowhere else: in a page's own text they are replaced by their hollow sisters, so a
page can forge neither a link nor a citation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Final
from urllib.parse import urldefrag, urljoin, urlsplit

from .html_tokens import Token, tokens

__all__ = ["Page", "page_from_html", "page_from_text"]

_WIDTH: Final = 80  # columns of a line, as in the published tool
_BRACKETS: Final = str.maketrans({"【": "〖", "】": "〗", "\u200b": None, "\x00": None})
_SKIPPED: Final = frozenset({"script", "style", "noscript", "template", "svg", "math"})
_HEADINGS: Final = {f"h{level}": "#" * level + " " for level in range(1, 7)}
_BLOCKS: Final = frozenset(
    re.findall(
        r"\w+",
        "address article aside blockquote body dd details div dl dt fieldset figcaption figure "
        "footer form header hr main nav ol p section summary table tbody tfoot thead ul",
    )
)
_LINES: Final = frozenset({"br", "li", "tr"})
_VOID: Final = frozenset(
    re.findall(r"\w+", "area base br col embed hr img input link meta source track wbr")
)
_SPACE: Final = re.compile(r"[ \t\n\r\f\v]+")
_LINK: Final = re.compile(r"【\d+†([^†】]*)(?:†[^】]*)?】")


@dataclass(frozen=True)
class Page:
    """A document as the model sees it.

    Attributes:
        url: where it is from; empty for lists that no one can open.
        title: its title.
        text: its text, with links in brackets.
        links: the address of each link id.
        link_lines: for links that point into a document, the line of its text, from 0.
        is_list: a list of results, in which nothing can be found.
    """

    url: str
    title: str
    text: str
    links: Mapping[int, str] = field(default_factory=dict)
    link_lines: Mapping[int, int] = field(default_factory=dict)
    is_list: bool = False

    @cached_property
    def lines(self) -> list[str]:
        """The text in lines of 80 columns at most, which line numbers count."""
        return [part for parts in self._wrapped for part in parts]

    @cached_property
    def starts(self) -> list[int]:
        """Of each line of `text`, which of `lines` it begins with."""
        return list(accumulate(map(len, self._wrapped[:-1]), initial=0))

    @cached_property
    def _wrapped(self) -> list[list[str]]:
        return [_wrap(line) for line in self.text.split("\n")]


def page_from_text(text: str, *, url: str, title: str) -> Page:
    """A page of plain text; nothing in it is a link."""
    body = clean(text.replace("\r\n", "\n"))
    return Page(url, clean(title), f"\nURL: {url}\n\n{body}")


def page_from_html(source: str, *, url: str, title: str | None = None) -> Page:
    """A page of an HTML document, however malformed. ``title`` is used where it has none."""
    reader = _Reader(url)
    reader.read(source)
    found = clean(_SPACE.sub(" ", reader.title).strip()) or title or url
    return Page(url, found, f"\nURL: {url}\n\n{reader.text()}", reader.links)


def clean(text: str) -> str:
    """``text`` without the brackets that mark links and citations."""
    return text.translate(_BRACKETS)


def link(number: int, text: str, host: str = "") -> str:
    """A link as the model sees it."""
    shown = clean(_SPACE.sub(" ", text).strip()).replace("†", "‡")
    return f"【{number}†{shown}†{host}】" if host else f"【{number}†{shown}】"


def without_links(text: str) -> str:
    """Links replaced by their texts; the number of lines stays, also where a link is wrapped."""

    def visible(match: re.Match[str]) -> str:
        shown = match.group(1)
        return shown + "\n" * (match.group(0).count("\n") - shown.count("\n"))

    return _LINK.sub(visible, text)


def host_of(url: str) -> str:
    """The host of an address; empty for files and for what is no address."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _wrap(line: str) -> list[str]:
    parts = []
    start = 0
    while len(line) - start > _WIDTH:
        end = line.rfind(" ", start, start + _WIDTH) + 1 or start + _WIDTH
        parts.append(line[start:end].rstrip(" "))
        start = end
    return [*parts, line[start:]]


class _Reader:
    """Collects text in blocks, and links."""

    def __init__(self, url: str) -> None:
        self.title = ""
        self.links: dict[int, str] = {}
        self._base = url
        self._host = host_of(url)
        self._numbers: dict[str, int] = {}
        self._parts: list[str] = []
        self._skipping = ""  # the element that is left out, and how deep we are in such elements
        self._depth = 0
        self._in_title = False
        self._preformatted = 0
        self._link: tuple[str, list[str]] | None = None  # address, and the text so far

    def text(self) -> str:
        """The text, with single empty lines at most."""
        self._end_link()
        lines = [line.rstrip() for line in "".join(self._parts).split("\n")]
        return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")

    def read(self, source: str) -> None:
        """Takes a whole document."""
        for token in tokens(source):
            if token.kind == "start":
                self._start(token)
            elif token.kind == "end":
                self._close(token.value)
            elif self._in_title:
                self.title += token.value
            elif not self._skipping:
                self._write(token.value)

    def _start(self, token: Token) -> None:
        tag = token.value
        self._in_title = tag == "title" and not self.title and not self._skipping
        if tag == "base" and (base := token.attribute("href")):
            self._base = self._absolute(base) or self._base
        if tag in _SKIPPED and self._skipping in ("", tag):
            self._skipping = tag
            self._depth += 1
        if self._skipping:
            return
        if tag == "a" and (target := token.attribute("href")):
            self._end_link()
            if (address := self._absolute(target)) is not None:
                self._link = (address, [])
        elif tag == "img":
            if name := (token.attribute("alt") or "").strip():
                self._write(f"[Image: {name}]")
        elif tag in ("td", "th"):
            self._write(" | ")
        else:
            self._break(tag)
        if tag == "pre":
            self._preformatted += 1

    def _close(self, tag: str) -> None:
        if tag == "title":
            self._in_title = False
        if tag == self._skipping:
            self._depth -= 1
            self._skipping = tag if self._depth else ""
        elif not self._skipping and tag not in _VOID:
            self._end(tag)

    def _end(self, tag: str) -> None:
        if tag == "a":
            self._end_link()
        elif tag == "pre":
            self._preformatted = max(0, self._preformatted - 1)
            self._put("\n\n")
        elif tag in _HEADINGS or tag in _BLOCKS:
            self._put("\n\n")
        elif tag in _LINES:
            self._put("\n")

    def _break(self, tag: str) -> None:
        if tag in _HEADINGS:
            self._put("\n\n" + _HEADINGS[tag])
        elif tag in _BLOCKS or tag == "pre":
            self._put("\n\n")
        elif tag == "li":
            self._put("\n  * ")
        elif tag in _LINES:
            self._put("\n")

    def _write(self, data: str) -> None:
        text = clean(data)
        if self._link is not None:
            self._link[1].append(text)
            return
        if not self._preformatted:
            text = _SPACE.sub(" ", text)
            if not self._parts or self._parts[-1][-1:] in ("", " ", "\n"):
                text = text.lstrip(" ")
        self._put(text)

    def _put(self, text: str) -> None:
        """Appends; a break within a link is a blank of its text."""
        if self._link is not None:
            self._link[1].append(" ")
        elif text:
            self._parts.append(text)

    def _absolute(self, target: str) -> str | None:
        """The address a link leads to; None for places on this page and for what is no page."""
        try:
            address = urldefrag(urljoin(self._base, target.strip()))[0]
            scheme = urlsplit(address).scheme
        except ValueError:
            return None
        same = address == urldefrag(self._base)[0]
        return None if same or scheme not in ("http", "https", "file") else address

    def _end_link(self) -> None:
        if self._link is None:
            return
        (address, parts), self._link = self._link, None
        text = "".join(parts)
        if not text.strip():
            return
        number = self._numbers.setdefault(address, len(self._numbers))
        self.links[number] = address
        host = host_of(address)
        if text[0].isspace() and self._parts and not self._parts[-1][-1:].isspace():
            self._parts.append(" ")
        self._parts.append(link(number, text, "" if host == self._host else host))
        if text[-1].isspace():
            self._parts.append(" ")
