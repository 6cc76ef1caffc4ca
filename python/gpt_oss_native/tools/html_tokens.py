"""HTML cut into tags and text, in time linear in its length, whatever it is.

The standard library's parser takes quadratic time on pages made to hurt it (``<!--`` a million
times over). Here each step either consumes what it looked at or ends the document, as browsers do
with a comment, a tag or a script that is never closed.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

__all__ = ["Token", "tokens"]

_NAME: Final = re.compile(r"[a-zA-Z][^\s/>]*")
_STOP: Final = re.compile(r"""[>"']""")
_ATTRIBUTE: Final = re.compile(
    r"""([^\s=/"'>]+)(?:\s{0,9}=\s{0,9}("[^"]*"|'[^']*'|[^\s"'>]+))?""", re.DOTALL
)
# Nothing in these is a tag but their own end; in the second kind, references are resolved.
_RAW: Final = {
    name: re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE)
    for name in ("script", "style", "title", "textarea")
}
_RESOLVED: Final = frozenset({"title", "textarea"})
_BLANKS_BEFORE_QUOTE: Final = 16


class Token(NamedTuple):
    """Text with references resolved, or a tag: its name in lower case and its attributes' text."""

    kind: Literal["text", "start", "end"]
    value: str
    rest: str = ""

    def attribute(self, name: str) -> str | None:
        """An attribute's value; None when the tag has no such attribute, or one without value."""
        for key, value in _ATTRIBUTE.findall(self.rest):
            if key.lower() == name and value:
                return html.unescape(value[1:-1] if value[0] in "\"'" else value)
        return None


def tokens(source: str) -> Iterator[Token]:
    """The tags and texts of a document, in order; comments and declarations are left out."""
    at = 0
    while (begin := source.find("<", at)) >= 0:
        if begin > at:
            yield Token("text", html.unescape(source[at:begin]))
        if source.startswith("<!--", begin):
            end = source.find("-->", begin + 2)  # <!--> is a whole comment
            at = end + 3 if end >= 0 else len(source)
            continue
        if source.startswith(("<!", "<?"), begin):
            end = source.find(">", begin)
            at = end + 1 if end >= 0 else len(source)
            continue
        closing = source.startswith("/", begin + 1)
        if (name := _NAME.match(source, begin + 1 + closing)) is None:
            yield Token("text", "<")
            at = begin + 1
            continue
        end = _tag_end(source, name.end())
        if end < 0:
            return
        tag = name.group().lower()
        yield Token("end" if closing else "start", tag, source[name.end() : end])
        at = end + 1
        if not closing and (close := _RAW.get(tag)) is not None:
            found = close.search(source, at)
            stop = found.start() if found else len(source)
            inner = source[at:stop]
            yield Token("text", html.unescape(inner) if tag in _RESOLVED else inner)
            at = stop
    if at < len(source):
        yield Token("text", html.unescape(source[at:]))


def _tag_end(source: str, at: int) -> int:
    """Where the tag ends: the next '>' that is not in a quoted value; -1 when there is none."""
    while (stop := _STOP.search(source, at)) is not None:
        if stop.group() == ">":
            return stop.start()
        at = stop.end()
        before = source[max(0, stop.start() - _BLANKS_BEFORE_QUOTE) : stop.start()]
        if before.rstrip().endswith("="):
            at = source.find(stop.group(), at) + 1
            if at == 0:
                return -1
    return -1
