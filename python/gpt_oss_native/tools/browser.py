"""The ``browser`` tool that the models were trained with: search, open and find.

What the model sees of a page, as described with the published tool (openai/gpt-oss)::

    [3] Title (https://host/path)
    **viewing lines [0 - 2] of 57**

    L0: first line
    L1: a link 【0†its text†other.host】
    L2: third line

The number in front is the cursor: each view has the next one, and calls and citations name pages
by it. Lines are counted from 0 and have 80 columns at most.
"""

from __future__ import annotations

import json
import re
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import unquote

from ..errors import InvalidArgument
from ..harmony import Author, Message, Role, ToolNamespaceConfig
from .browser_backend import Backend, BrowserError, SearchHit
from .browser_page import Page, clean, host_of, link, without_links
from .citations import Citation, resolve_citations

if TYPE_CHECKING:
    import tiktoken

__all__ = ["BrowserError", "BrowserTool"]

_UNSET: Final = -1  # how the declaration says that an argument is not given
_FOUND_LINES: Final = 4  # shown of each match
_MAX_FOUND: Final = 50
_LINES_BEFORE: Final = 4  # above a passage that a link leads to
_LONGEST_TITLE: Final = 1024
_T = TypeVar("_T")


class BrowserTool:
    """``browser.search``, ``browser.open`` and ``browser.find`` over a `Backend`.

    One object is one browsing session: it keeps each page it showed, under its cursor. Calls from
    several threads follow one another.
    """

    name = "browser"

    def __init__(
        self,
        backend: Backend,
        encoding: tiktoken.Encoding,
        *,
        view_tokens: int = 1024,
        max_view_tokens: int = 8192,
        max_results: int = 20,
    ) -> None:
        """A session without pages.

        Args:
            backend: where pages come from, such as `LocalFiles` or `Web`.
            encoding: counts tokens; ``model.tokenizer``.
            view_tokens: most tokens of a view; one line is always shown.
            max_view_tokens: the same for a call that says how many lines it wants.
            max_results: most results of a search, whatever the model asks for.

        Raises InvalidArgument for sizes below 1.
        """
        if min(view_tokens, max_view_tokens, max_results) < 1:
            raise InvalidArgument(
                "[browser] expected view_tokens, max_view_tokens and max_results of 1 or more, "
                f"got {view_tokens}, {max_view_tokens} and {max_results}"
            )
        self._backend = backend
        self._encoding = encoding
        self._view_tokens = view_tokens
        self._max_view_tokens = max(view_tokens, max_view_tokens)
        self._max_results = max_results
        self._pages: list[Page] = []
        self._lock = threading.Lock()
        self._num_interrupts = self._seen_interrupts = 0
        self._under_way: Future[Any] | None = None

    def namespace(self) -> ToolNamespaceConfig:
        """The declaration of the training data."""
        return ToolNamespaceConfig.browser()

    def call(self, message: Message) -> list[Message]:
        """Runs a call; one message from the function to the assistant, in the call's channel.

        Raises BrowserError when a page cannot be had, InvalidArgument for a wrong call.
        """
        recipient = message.recipient or ""
        functions: dict[str, Callable[..., str]] = {
            "browser.search": self.search,
            "browser.open": self.open,
            "browser.find": self.find,
        }
        if recipient not in functions:
            raise InvalidArgument(
                f"[browser] expected browser.search, browser.open or browser.find, got {recipient}"
            )
        arguments = _arguments(recipient, message.text)
        result = Message.from_author_and_content(
            Author(Role.TOOL, recipient), functions[recipient](**arguments)
        ).with_recipient(Role.ASSISTANT.value)
        return [result if message.channel is None else result.with_channel(message.channel)]

    def search(self, query: str, *, topn: int = 10) -> str:
        """A page of results, each with a link and a summary; returns its first view."""
        with self._turn():
            wanted = max(1, min(topn, self._max_results))
            hits = self._away(lambda: self._backend.search(query, topn=wanted))
            return self._show(_results(query, hits), 0, _UNSET)

    def open(
        self,
        id: int | str = _UNSET,
        *,
        cursor: int = _UNSET,
        loc: int = _UNSET,
        num_lines: int = _UNSET,
        view_source: bool = False,
    ) -> str:
        """A view, under a new cursor, of: the page that link ``id`` of the page at ``cursor``
        leads to; the address ``id``; or without ``id``, the page at ``cursor`` itself.

        ``loc`` is the first line shown; without it, the place that the link means, or the top.
        ``num_lines``, when given, takes the place of the size of the view.
        """
        with self._turn():
            place = 0
            if isinstance(id, str):
                page = self._fetch(id, view_source)
            else:
                page = self._at(cursor)
                if id != _UNSET:
                    if id not in page.links:
                        raise BrowserError(
                            f"[browser.open] id {id}: expected the id of a link on the page "
                            f"{page.title!r}, which has {len(page.links)}"
                        )
                    target, line = page.links[id], page.link_lines.get(id)
                    # Matches lead to the page as it was shown, results to what is there now.
                    known = self._known(target) if line is not None and not view_source else None
                    page = known or self._fetch(target, view_source)
                    if line is not None:
                        place = max(0, page.starts[min(line, len(page.starts) - 1)] - _LINES_BEFORE)
                elif view_source:
                    page = self._fetch(page.url, True)
            return self._show(page, place if loc < 0 else loc, num_lines)

    def find(self, pattern: str, *, cursor: int = _UNSET) -> str:
        """The places of a page where a text stands, whatever its case and line breaks; each with
        a link to it."""
        with self._turn():
            page = self._at(cursor)
            if page.is_list:
                raise BrowserError(
                    "[browser.find] expected an opened page, got a list of results; open one first"
                )
            if not pattern.strip():
                raise BrowserError("[browser.find] expected a text to find, got none")
            return self._show(_matches(page, pattern), 0, _UNSET)

    def interrupt(self) -> None:
        """Makes calls under way raise BrowserError soon, from another thread; without one nothing
        happens. What the backend still does is left to end by its own limits."""
        self._num_interrupts += 1
        under_way = self._under_way
        if under_way is not None:
            with suppress(InvalidStateError):
                under_way.set_exception(_interrupted())

    def page(self, cursor: int) -> Page | None:
        """The page shown under a cursor; None when there was none."""
        return self._pages[cursor] if 0 <= cursor < len(self._pages) else None

    def resolve_citations(
        self, text: str, *, render: Callable[[Citation], str] | None = None
    ) -> tuple[str, list[Citation]]:
        """An answer with its citations of this session's pages replaced by ``render`` of them
        (default: ``[1]``, ``[2]`` ... by source), and where they stand and what they cite."""
        return resolve_citations(text, self, render=render)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One call at a time, unless it was interrupted while it waited."""
        before = self._num_interrupts
        with self._lock:
            self._seen_interrupts = before
            self._check()
            yield

    def _check(self) -> None:
        if self._num_interrupts != self._seen_interrupts:
            raise _interrupted()

    def _away(self, work: Callable[[], _T]) -> _T:
        """The result of ``work``, done in a thread that `interrupt` can leave behind."""
        future: Future[_T] = Future()

        def run() -> None:
            with suppress(InvalidStateError):  # interrupted: nobody waits any more
                try:
                    future.set_result(work())
                except InvalidStateError:
                    raise
                except BaseException as error:
                    future.set_exception(error)

        self._under_way = future
        self._check()  # an interruption from here on finds the future
        threading.Thread(target=run, name="gpt-oss-native browser", daemon=True).start()
        try:
            return future.result()
        finally:
            self._under_way = None

    def _fetch(self, url: str, view_source: bool) -> Page:
        return self._away(lambda: self._backend.fetch(url, view_source=view_source))

    def _at(self, cursor: int) -> Page:
        if not self._pages:
            raise BrowserError("[browser] expected an opened page, there is none; search first")
        page = self._pages[-1] if cursor == _UNSET else self.page(cursor)
        if page is None:
            raise BrowserError(
                f"[browser] cursor {cursor}: expected 0 to {len(self._pages) - 1}, or none for the "
                "most recent page"
            )
        return page

    def _known(self, url: str) -> Page | None:
        for page in reversed(self._pages):
            if page.url == url and not page.is_list:
                return page
        return None

    def _show(self, page: Page, first: int, num_lines: int) -> str:
        """A view of a page from a line on; the page gets the next cursor."""
        lines = page.lines
        if not 0 <= first < len(lines):
            raise BrowserError(
                f"[browser.open] loc {first}: expected 0 to {len(lines) - 1}, the last line of "
                f"{page.title!r}"
            )
        numbered = [f"L{at}: {line}" for at, line in enumerate(lines[first:], first)]
        limit = self._view_tokens
        if num_lines > 0:
            numbered = numbered[:num_lines]
            limit = self._max_view_tokens
        shown = numbered[: self._fitting(numbered, limit)]
        self._pages.append(page)
        where = f" ({clean(unquote(page.url))[:_LONGEST_TITLE]})" if page.url else ""
        return (
            f"[{len(self._pages) - 1}] {page.title[:_LONGEST_TITLE]}{where}\n"
            f"**viewing lines [{first} - {first + len(shown) - 1}] of {len(lines) - 1}**\n\n"
            + "\n".join(shown)
        )

    def _fitting(self, lines: Sequence[str], limit: int) -> int:
        """How many lines have ``limit`` tokens together, one at least."""
        tokens = 0
        for count, line in enumerate(lines):
            # A line's newline may take a token of its own; that never makes a view too long.
            tokens += len(self._encoding.encode_ordinary(line + "\n"))
            if tokens > limit:
                return max(1, count)
        return len(lines)


def _interrupted() -> BrowserError:
    return BrowserError("[browser] interrupted: the page took too long; try another one")


def _results(query: str, hits: Sequence[SearchHit]) -> Page:
    rows = []
    for number, hit in enumerate(hits):
        summary = clean(" ".join(hit.summary.split()))
        rows.append(f"  * {link(number, hit.title, host_of(hit.url))} {summary}".rstrip())
    body = "\n".join(rows) or "No results."
    return Page(
        url="",
        title=clean(query),
        text=f"\nURL: \n\n# Search Results\n\n{body}",
        links={number: hit.url for number, hit in enumerate(hits)},
        link_lines={number: hit.line for number, hit in enumerate(hits) if hit.line is not None},
        is_list=True,
    )


def _matches(page: Page, pattern: str) -> Page:
    """A list of the places of a pattern, a few lines each, which do not overlap."""
    lines = without_links("\n".join(page.lines)).split("\n")
    text = "\n".join(lines)
    # Words may be parted by any blanks, since lines were broken at some of them.
    wanted = re.compile(r"\s+".join(map(re.escape, pattern.split())), re.IGNORECASE)
    starts: list[int] = []
    line = counted = 0
    for match in wanted.finditer(text):
        line += text.count("\n", counted, match.start())
        counted = match.start()
        if not starts or line >= starts[-1] + _FOUND_LINES:
            starts.append(line)
        if len(starts) == _MAX_FOUND:
            break
    parts = [
        "\n".join([f"# {link(number, f'match at L{line}')}", *lines[line : line + _FOUND_LINES]])
        for number, line in enumerate(starts)
    ]
    shown = clean(pattern)
    return Page(
        url=page.url,
        title=f"Find results for text: `{shown}` in `{page.title}`",
        text="\n\n".join(parts) or f"No `find` results for pattern: `{shown}`",
        links=dict.fromkeys(range(len(starts)), page.url),
        link_lines={
            number: bisect_right(page.starts, line) - 1 for number, line in enumerate(starts)
        },
        is_list=True,
    )


_KINDS: Final[dict[str, dict[str, str]]] = {
    "browser.search": {"query": "text", "topn": "number"},
    "browser.open": {
        "id": "either",
        "cursor": "number",
        "loc": "number",
        "num_lines": "number",
        "view_source": "bool",
    },
    "browser.find": {"pattern": "text", "cursor": "number"},
}
_REQUIRED: Final = {"browser.search": "query", "browser.find": "pattern"}


def _arguments(function: str, text: str) -> dict[str, Any]:
    """Checked arguments of a call; ``source`` and unknown ones are left out."""
    try:
        given = json.loads(text) if text.strip() else {}
    except json.JSONDecodeError as error:
        raise InvalidArgument(f"[{function}] expected JSON, got {text[:200]!r}: {error}") from error
    if not isinstance(given, dict):
        raise InvalidArgument(f"[{function}] expected a JSON object, got {text[:200]!r}")
    kinds = _KINDS[function]
    required = _REQUIRED.get(function)
    if required is not None and given.get(required) is None:
        raise InvalidArgument(f"[{function}] expected {required!r}, got {sorted(given)}")
    return {
        name: _argument(function, name, value, kinds[name])
        for name, value in given.items()
        if name in kinds and value is not None
    }


def _argument(function: str, name: str, value: object, kind: str) -> object:
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind == "text" and isinstance(value, str | int | float):
        return str(value)
    if kind in ("number", "either"):
        if isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1:
            return int(value)
        if isinstance(value, str) and re.fullmatch(r"\s*-?\d{1,9}\s*", value):
            return int(value)
        if kind == "either" and isinstance(value, str):
            return value
    raise InvalidArgument(f"[{function}] {name}: expected a {kind}, got {value!r}")
