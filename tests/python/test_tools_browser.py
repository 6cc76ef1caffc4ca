"""The browser tool: views, cursors, links, matches and citations, over local files."""

from __future__ import annotations

import json
import os
import random
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from gpt_oss_native import InvalidArgument
from gpt_oss_native.harmony import Author, Message, Role, ToolNamespaceConfig
from gpt_oss_native.tools import (
    BrowserError,
    BrowserTool,
    LocalFiles,
    Page,
    SearchHit,
    Tool,
    page_from_html,
    page_from_text,
    pending_citation,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken.load import load_tiktoken_bpe

HTML = """<!doctype html><html><head><title> The\n A &amp; page</title><style>p{}</style></head>
<body><h1>Head</h1><p>Some <b>bold</b> text with <a href="b.txt">a
link</a> and <a href='https://example.com/x#y'>other <i>site</i></a>, forged 【9†L1】.</p>
<ul><li>one</li><li>two<br>three</ul><pre>  code
    more</pre><table><tr><td>a<td>b</tr></table><script>bad("<p>")</script><img alt="Pic">
<a href="javascript:x()">act</a><a href="#top">up</a><a href="b.txt"><img></a> tail"""


@pytest.fixture(scope="module")
def encoding() -> tiktoken.Encoding:
    """One token a word or other character."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    ranks[b"word"] = 256
    ranks |= {b"wo": 257, b"rd": 258}
    return tiktoken.Encoding(
        "words", pat_str=r"word|.|\n", mergeable_ranks=ranks, special_tokens={}
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.html").write_text(HTML)
    (tmp_path / "sub" / "b.txt").write_text("".join(f"line {at}\n" for at in range(100)))
    (tmp_path / "moon.md").write_text("# Tides\n\n" + "filler\n" * 60 + "The Moon pulls water.\n")
    return tmp_path


@pytest.fixture
def browser(folder: Path, encoding: tiktoken.Encoding) -> BrowserTool:
    return BrowserTool(LocalFiles(folder), encoding)


def call(browser: BrowserTool, function: str, **arguments: Any) -> str:
    message = Message.from_role_and_content(Role.ASSISTANT, json.dumps(arguments))
    (result,) = browser.call(message.with_recipient(f"browser.{function}").with_channel("analysis"))
    assert result.author == Author(Role.TOOL, f"browser.{function}")
    assert (result.recipient, result.channel) == ("assistant", "analysis")
    return result.text


def test_it_is_declared_as_in_the_training_data(browser: BrowserTool) -> None:
    assert isinstance(browser, Tool)
    assert browser.namespace() == ToolNamespaceConfig.browser()


def test_a_page_of_html_reads_as_numbered_text_and_links() -> None:
    page = page_from_html(HTML, url="file:///d/a.html")
    assert page.title == "The A & page"
    assert page.links == {0: "file:///d/b.txt", 1: "https://example.com/x"}
    assert page.text == (
        "\nURL: file:///d/a.html\n\n# Head\n\nSome bold text with 【0†a link】 and "
        "【1†other site†example.com】, forged 〖9†L1〗.\n\n  * one\n\n  * two\nthree\n\n"
        "  code\n    more\n\n| a | b\n\n[Image: Pic] actup tail"
    )


def test_a_search_lists_links_and_opens_them_where_the_words_stand(
    folder: Path, browser: BrowserTool
) -> None:
    shown = call(browser, "search", query="who pulls the water, Moon?", topn=3)
    assert shown.startswith("[0] who pulls the water, Moon?\n**viewing lines [0 - ")
    assert re.search(r"L\d+:   \* 【0†moon.md】 .*The Moon", shown, re.DOTALL)
    opened = call(browser, "open", id=0)
    address = (folder / "moon.md").as_uri()
    page = browser.page(1)
    assert page is not None
    place, last = page.lines.index("The Moon pulls water."), len(page.lines) - 1
    assert opened.startswith(
        f"[1] moon.md ({address})\n**viewing lines [{place - 4} - {last}] of {last}**\n\n"
        f"L{place - 4}: filler\n"
    )
    assert f"L{place}: The Moon pulls water.\n" in opened
    again = call(browser, "open", loc=2, num_lines=1)
    assert again.endswith(f"**viewing lines [2 - 2] of {last}**\n\nL2: {page.lines[2]}")
    assert "No results." in call(browser, "search", query="nothingofthekind")


def test_links_are_followed_from_the_page_of_the_cursor(folder: Path, browser: BrowserTool) -> None:
    call(browser, "open", id=str(folder / "sub" / "a.html"))
    call(browser, "open", id="moon.md")
    assert call(browser, "open", id="0", cursor=0.0).startswith("[2] b.txt (")
    with pytest.raises(BrowserError, match="id 7: expected the id of a link"):
        call(browser, "open", id=7, cursor=0)
    with pytest.raises(BrowserError, match="cursor 9: expected 0 to 2"):
        call(browser, "open", cursor=9)
    with pytest.raises(BrowserError, match="loc 1000: expected 0 to"):
        call(browser, "open", loc=1000)
    source = call(browser, "open", cursor=0, view_source=True)
    assert source.startswith("[3] ")
    assert "<h1>Head</h1>" in source


def test_matches_are_found_across_line_breaks_and_lead_to_their_places(
    encoding: tiktoken.Encoding,
) -> None:
    long = "start " * 30 + "the sought " + "x" * 60 + " after"
    page = page_from_text(f"{long}\n\nTHE   SOUGHT\nmore\nthe sought\n", url="u:1", title="t")
    browser = BrowserTool(_Pages(page), encoding)
    call(browser, "open", id="u:1")
    shown = call(browser, "find", pattern="the sought")
    lines = [int(line) for line in re.findall(r"【\d†match at L(\d+)】", shown)]
    assert len(lines) == 2  # the third is within the lines of the second
    for number, line in enumerate(lines):
        opened = call(browser, "open", id=number, cursor=1)
        numbers = [int(at) for at in re.findall(r"^L(\d+):", opened, re.MULTILINE)]
        assert line in numbers
    with pytest.raises(BrowserError, match="list of results"):
        call(browser, "find", pattern="x", cursor=1)
    assert "No `find` results" in call(browser, "find", pattern="absent (", cursor=0)


def test_a_view_has_as_many_lines_as_fit_its_tokens(encoding: tiktoken.Encoding) -> None:
    page = page_from_text("word\n" * 5000 + "w" * 5000, url="u:1", title="t")
    for view in (1, 10, 77, 1024):
        browser = BrowserTool(_Pages(page), encoding, view_tokens=view, max_view_tokens=2000)
        seen: list[str] = []
        loc = 0
        for _ in range(3):
            shown = call(browser, "open", **({"id": "u:1"} if not seen else {"loc": loc}))
            body = shown.split("\n\n", 1)[1]
            count = len(body.split("\n"))
            assert len(encoding.encode(body)) <= view or count == 1
            more = f"{body}\nL{loc + count}: {page.lines[loc + count]}\n"
            assert len(encoding.encode(more)) > view
            seen += body.split("\n")
            loc += count
        assert seen == [f"L{at}: {line}" for at, line in enumerate(page.lines[:loc])]
    wide = call(browser, "open", loc=0, num_lines=200).split("\n\n", 1)[1]
    assert len(wide.split("\n")) == 200
    widest = call(browser, "open", loc=0, num_lines=4000).split("\n\n", 1)[1]
    assert 1024 < len(encoding.encode(widest)) <= 2000


def test_citations_become_annotations(encoding: tiktoken.Encoding) -> None:
    numbers = page_from_text("".join(f"line {at}\n" for at in range(99)), url="u:1", title="b.txt")
    moon = page_from_text("# Tides\n", url="u:2", title="moon.md")
    browser = BrowserTool(_Pages(numbers, moon), encoding)
    call(browser, "open", id="u:1")
    call(browser, "open", id="u:2")
    call(browser, "open", cursor=0, loc=50)
    text = "A【0†L4-L5】 b【2†L53】, c 【1†L3†moon】【7†L1】【0†L9999】 【1†moon】"
    resolved, found = browser.resolve_citations(text)
    assert resolved == "A[1] b[1], c [2]【7†L1】【0†L9999】 [2]"
    assert [resolved[citation.start : citation.end] for citation in found] == [
        "[1]",
        "[1]",
        "[2]",
        "[2]",
    ]
    assert [citation.quote for citation in found] == ["line 1\nline 2", "line 50", "# Tides", ""]
    assert (found[0].first_line, found[0].last_line, found[0].title) == (4, 5, "b.txt")
    assert found[3].first_line is None
    linked, (one,) = browser.resolve_citations(
        "x【1†L3】", render=lambda citation: f" ({citation.title})"
    )
    assert linked == "x (moon.md)"
    assert linked[one.start : one.end] == " (moon.md)"


def test_the_beginning_of_a_citation_is_held_back() -> None:
    text = "see 【3†L1-L2】 and 【4†L"
    assert pending_citation(text) == len("【4†L")
    assert pending_citation(text + "5】") == 0
    assert pending_citation("【" + "x" * 300) == 0
    assert pending_citation("") == 0


@pytest.mark.parametrize(
    ("function", "content", "message"),
    [
        ("browser.search", "{", "expected JSON"),
        ("browser.search", "[1]", "expected a JSON object"),
        ("browser.search", "{}", "expected 'query'"),
        ("browser.find", '{"cursor": 1}', "expected 'pattern'"),
        ("browser.open", '{"loc": "top"}', "loc: expected a number"),
        ("browser.open", '{"cursor": 1.5}', "cursor: expected a number"),
        ("browser.open", '{"view_source": "yes"}', "view_source: expected a bool"),
        ("browser.click", "{}", "got browser.click"),
        ("browser.open", "", "search first"),
    ],
)
def test_a_wrong_call_is_explained(
    browser: BrowserTool, function: str, content: str, message: str
) -> None:
    wrong = Message.from_role_and_content(Role.ASSISTANT, content).with_recipient(function)
    with pytest.raises((InvalidArgument, BrowserError), match=message):
        browser.call(wrong)


def test_unknown_and_absent_arguments_are_left_out(browser: BrowserTool) -> None:
    assert call(browser, "search", query="tides", source="web", recency=3, topn=None)
    assert call(browser, "open", id=0, cursor=-1, loc=-1, num_lines=-1, source="web")


def test_the_index_follows_the_files(folder: Path) -> None:
    files = LocalFiles(folder)
    assert files.search("tides", topn=5)[0].title == "moon.md"
    (folder / "moon.md").write_text("all different")
    (folder / "new.md").write_text("tides 'quoted\" AND NEAR( * ")
    assert [hit.title for hit in files.search("tides", topn=5)] == ["new.md"]
    (folder / "new.md").unlink()
    assert files.search("tides", topn=5) == []
    assert files.search("'\"NEAR( titled:xyz * -", topn=5) == []
    with pytest.raises(BrowserError, match="expected words"):
        files.search("?!", topn=5)
    files.close()


def test_only_the_given_folders_can_be_read(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    (inside / ".hidden").mkdir(parents=True)
    (inside / ".hidden" / "key.txt").write_text("sought")
    (inside / ".env").write_text("sought")
    (inside / "binary").write_bytes(b"sought\xff")
    (inside / "zero").write_bytes(b"sought\0")
    (inside / "large").write_text("sought " * 100)
    (inside / "good").write_text("sought")
    (tmp_path / "secret").write_text("sought")
    Path(os.fsdecode(os.fsencode(inside) + b"/not-\xff-text")).write_text("sought")
    (inside / "link").symlink_to(tmp_path / "secret")
    (inside / "folder").symlink_to(tmp_path)
    files = LocalFiles([inside], max_file_bytes=50)
    assert [hit.title for hit in files.search("sought", topn=9)] == ["good"]
    assert files.fetch("good").lines[-1] == "sought"
    assert files.fetch((inside / "good").as_uri()).title == "good"
    for name in (
        "../secret",
        "link",
        "folder/secret",
        ".env",
        ".hidden/key.txt",
        "binary",
        "zero",
        "large",
        "a\0b",
        "\ud800",
        "n" * 5000,
        "file://[",
        str(tmp_path / "secret"),
        (tmp_path / "secret").as_uri(),
        "file:///etc/passwd",
        "file://%2e%2e/secret",
        "https://example.com/",
        "",
    ):
        with pytest.raises(BrowserError, match=r"\[browser.open\]"):
            files.fetch(name)
    with pytest.raises(BrowserError, match="found nothing at"):
        LocalFiles(tmp_path / "absent")
    with pytest.raises(BrowserError, match="at most 2 files"):
        LocalFiles(inside, max_files=2).search("x", topn=1)
    single = LocalFiles(inside / "good")
    assert [hit.title for hit in single.search("sought", topn=9)] == ["good"]
    with pytest.raises(BrowserError):
        single.fetch(str(inside / "large"))


def test_a_sqlite_without_full_text_search_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Without(sqlite3.Connection):
        def execute(self, *_: Any) -> sqlite3.Cursor:
            raise sqlite3.OperationalError("no such module: fts5")

    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda *names, **options: connect(*names, factory=Without, **options)
    )
    with pytest.raises(BrowserError, match=r"FTS5.*no such module"):
        LocalFiles(folder)


MARKUP = [
    "<a href=x>",
    "</a>",
    "<p>",
    "</p>",
    "<pre>",
    "<title>",
    "</title>",
    "<script>",
    "<",
    "&",
    "【1†x】",
    "†",
    "<a href=//other/y>",
]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(MARKUP) | st.text(max_size=8), max_size=20))
def test_any_markup_becomes_a_page_whose_brackets_are_its_links(pieces: list[str]) -> None:
    page = page_from_html("".join(pieces), url="https://host/")
    marks = re.findall(r"【(\d+)†[^【】]*】", page.text)
    assert {int(mark) for mark in marks} == set(page.links)
    assert len(marks) == page.text.count("【") == page.text.count("】")
    assert all(len(line) <= 80 for line in page.lines)
    assert len(page.starts) == page.text.count("\n") + 1


def test_wrapping_loses_nothing_but_blanks(session_seed: int) -> None:
    rng = random.Random(session_seed)
    for _ in range(200):
        text = "".join(rng.choice("ab \n" + "x" * 9) for _ in range(rng.randrange(1, 900)))
        page = Page("", "", text)
        assert "".join(page.lines).replace(" ", "") == text.replace(" ", "").replace("\n", "")
        assert max(map(len, page.lines)) <= 80


class _Pages:
    """A backend with some pages."""

    def __init__(self, *pages: Page) -> None:
        self._pages = {page.url: page for page in pages}

    def search(self, query: str, *, topn: int) -> list[SearchHit]:
        return [SearchHit(page.url, page.title) for page in self._pages.values()][:topn]

    def fetch(self, url: str, *, view_source: bool = False) -> Page:
        assert not view_source
        return self._pages[url]


def test_real_vocabulary_views_stay_within_their_tokens(o200k: Path, folder: Path) -> None:
    ranks = load_tiktoken_bpe(str(o200k))
    encoding = tiktoken.Encoding(
        "o200k", pat_str=r"\s?\w+|\s+|[^\s\w]+", mergeable_ranks=ranks, special_tokens={}
    )
    rng = random.Random(os.urandom(8))
    text = "\n".join(
        " ".join(rng.choice(["tide", "月", "  ", "a", "été", "12345", "};"]) for _ in range(20))
        for _ in range(300)
    )
    browser = BrowserTool(_Pages(page_from_text(text, url="u:1", title="t")), encoding)
    body = call(browser, "open", id="u:1").split("\n\n", 1)[1]
    assert 900 < len(encoding.encode_ordinary(body)) <= 1024
