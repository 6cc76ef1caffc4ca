"""Local files as a browsing backend: a full-text index over folders, kept in memory by SQLite."""

from __future__ import annotations

import os
import re
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from .browser_backend import BrowserError, SearchHit
from .browser_page import Page, page_from_html, page_from_text, without_links

__all__ = ["LocalFiles"]

_HTML: Final = frozenset({".html", ".htm", ".xhtml"})
_WORD: Final = re.compile(r"\w+")
_MAX_WORDS: Final = 32
_SNIPPET_TOKENS: Final = 32
_TITLE_WEIGHT: Final = 5.0


class LocalFiles:
    """The text and HTML files of some folders; nothing else can be opened.

    Files are indexed at the first search and again when their size or time changes. Names that
    begin with a dot, files that are not UTF-8 text, and links that lead out of the folders are
    left out. Ranked by BM25, the title counting five-fold.
    """

    def __init__(
        self,
        paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        max_files: int = 20_000,
        max_file_bytes: int = 8 * 2**20,
    ) -> None:
        """A backend over files and folders.

        Raises BrowserError when a path does not exist, or SQLite has no FTS5.
        """
        if isinstance(paths, str | os.PathLike):
            paths = [paths]
        self._roots = [Path(path).resolve() for path in paths]
        for root in self._roots:
            if not root.exists():
                raise BrowserError(
                    f"[browser] expected files or folders, found nothing at {str(root)!r}"
                )
        self._max_files = max_files
        self._max_file_bytes = max_file_bytes
        self._lock = threading.Lock()
        self._known: dict[Path, tuple[int, int]] = {}  # size and time of change when indexed
        self._database = _open_index()

    def search(self, query: str, *, topn: int) -> list[SearchHit]:
        """Files that have words of the query, the best first; `SearchHit.line` is where the most
        of them stand. Raises BrowserError for a query without a word."""
        words = list(dict.fromkeys(_WORD.findall(query.casefold())))[:_MAX_WORDS]
        if not words:
            raise BrowserError(f"[browser.search] expected words in the query, got {query!r}")
        match = " OR ".join(f'"{word}"' for word in words)
        statement = (
            f"SELECT path, title, snippet(pages, 2, '', '', '...', {_SNIPPET_TOKENS}), body "
            f"FROM pages WHERE pages MATCH ? ORDER BY bm25(pages, 0.0, {_TITLE_WEIGHT}, 1.0) "
            "LIMIT ?"
        )
        with self._lock:
            self._refresh()
            rows = self._database.execute(statement, (match, topn)).fetchall()
        return [
            SearchHit(Path(path).as_uri(), title, " ".join(snippet.split()), _best(body, words))
            for path, title, snippet, body in rows
        ]

    def fetch(self, url: str, *, view_source: bool = False) -> Page:
        """The file at a ``file:`` address or a path, absolute or relative to a folder.

        Raises BrowserError for anything outside the folders, and for what is no text.
        """
        path = self._inside(url)
        page = self._page(path, view_source=view_source)
        if page is None:
            raise BrowserError(
                f"[browser.open] {url}: expected a text file of at most {self._max_file_bytes} "
                "bytes in UTF-8; it cannot be shown"
            )
        return page

    def close(self) -> None:
        """Gives the index back."""
        with self._lock:
            self._database.close()

    def _inside(self, url: str) -> Path:
        with suppress(OSError, ValueError, RuntimeError):  # names that no file can have
            name = unquote(urlsplit(url).path) if url.startswith("file:") else url
            for root in self._roots:
                path = (root / name).resolve()
                if path.is_file() and self._allowed(path):
                    return path
        raise BrowserError(
            f"[browser.open] {url[:500]}: expected a file that a search lists, found none; search "
            "for it, or open a link by its id"
        )

    def _allowed(self, path: Path) -> bool:
        """Whether a resolved path is in a folder, under names that are text and do not begin with
        a dot."""
        try:
            str(path).encode()
        except UnicodeEncodeError:  # bytes that are not UTF-8
            return False
        for root in self._roots:
            if path == root:
                return True
            if path.is_relative_to(root):
                return not any(part.startswith(".") for part in path.relative_to(root).parts)
        return False

    def _files(self) -> Iterator[Path]:
        for root in self._roots:
            if root.is_file():
                yield root
                continue
            for directory, names, files in os.walk(root):
                names[:] = sorted(name for name in names if not name.startswith("."))
                for name in sorted(files):
                    path = Path(directory, name)
                    if path.is_symlink():
                        path = path.resolve()
                    if path.is_file() and self._allowed(path):
                        yield path

    def _refresh(self) -> None:
        """Brings the index up to the files."""
        seen: set[Path] = set()
        for path in self._files():
            if path in seen:
                continue
            if len(seen) == self._max_files:
                raise BrowserError(
                    f"[browser.search] expected at most {self._max_files} files, found more; give "
                    "smaller folders, or a larger max_files"
                )
            seen.add(path)
            try:
                found = path.stat()
            except OSError:
                continue
            stamp = (found.st_size, found.st_mtime_ns)
            if self._known.get(path) == stamp:
                continue
            self._forget(path)
            self._known[path] = stamp
            if (page := self._page(path)) is not None:
                # As many lines as the page has, so that a line of the one is one of the other.
                body = without_links(page.text).replace(f"URL: {page.url}", "", 1)
                row = (str(path), page.title, body)
                self._database.execute("INSERT INTO pages VALUES (?, ?, ?)", row)
        for path in [path for path in self._known if path not in seen]:
            self._forget(path)

    def _forget(self, path: Path) -> None:
        if self._known.pop(path, None) is not None:
            self._database.execute("DELETE FROM pages WHERE path = ?", (str(path),))

    def _page(self, path: Path, *, view_source: bool = False) -> Page | None:
        """The page of a file; None when it is too large, unreadable, or not text."""
        try:
            with open(path, "rb") as file:
                data = file.read(self._max_file_bytes + 1)
            text = data.decode("utf-8-sig")
        except (OSError, UnicodeDecodeError):
            return None
        if len(data) > self._max_file_bytes or "\0" in text:
            return None
        url = path.as_uri()
        if path.suffix.lower() in _HTML and not view_source:
            return page_from_html(text, url=url, title=path.name)
        return page_from_text(text, url=url, title=path.name)


def _open_index() -> sqlite3.Connection:
    """An empty index. Raises BrowserError when this SQLite has no FTS5."""
    database = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
    try:
        database.execute("CREATE VIRTUAL TABLE pages USING fts5(path UNINDEXED, title, body)")
    except sqlite3.OperationalError as error:
        database.close()
        raise BrowserError(
            f"[browser] expected SQLite with full-text search (FTS5), but SQLite "
            f"{sqlite3.sqlite_version} of this Python says: {error}; use a Python whose sqlite3 "
            "has it, or another backend"
        ) from error
    return database


def _best(body: str, words: Sequence[str]) -> int:
    """The line that begins the three lines with the most different words."""
    wanted = set(words)
    lines = [wanted.intersection(_WORD.findall(line.casefold())) for line in body.split("\n")]
    scores = [len(set().union(*lines[at : at + 3])) + bool(line) for at, line in enumerate(lines)]
    return max(range(len(scores)), key=scores.__getitem__)
