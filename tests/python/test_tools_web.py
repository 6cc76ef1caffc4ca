"""The web backend against a server of this machine: search interfaces, pages, and refusals."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import tiktoken
from gpt_oss_native.tools import BrowserError, BrowserTool, JsonSearch, Web
from gpt_oss_native.tools.browser_backend import _check_public

BYTES: dict[str, Any] = {
    "name": "bytes",
    "pat_str": r"[\s\S]",
    "mergeable_ranks": {bytes([byte]): byte for byte in range(256)},
    "special_tokens": {},
}


class Handler(BaseHTTPRequestHandler):
    """Pages, redirects and a search engine."""

    seen: list[tuple[str, dict[str, str], bytes]]

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"])))

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def _answer(self, body: bytes) -> None:
        self.seen.append((self.path, dict(self.headers), body))
        path = urlsplit(self.path).path
        found = [{"url": f"/page{at}", "title": f"Page {at}", "text": "about"} for at in range(9)]
        pages: dict[str, tuple[int, str, bytes]] = {
            "/page": (
                200,
                "text/html; charset=iso-8859-1",
                "<title>Caf\xe9</title>\xe9 <a href=next>more</a>".encode("latin-1"),
            ),
            "/plain": (200, "text/plain", b"<b>not html</b>"),
            "/odd": (200, "text/plain; charset=no-such", "\xe9".encode()),
            "/image": (200, "image/png", b"\x89PNG"),
            "/broken": (500, "text/html", b"oops"),
            "/search": (200, "application/json", json.dumps({"a": {"b": found}}).encode()),
            "/nonsense": (200, "application/json", b"{"),
            "/large": (200, "text/plain", b"x" * 10_000),
        }
        status, kind, content = pages.get(path, (404, "text/plain", b"absent"))
        if path == "/moved":
            self.send_response(302)
            self.send_header("Location", parse_qs(urlsplit(self.path).query)["to"][0])
            self.end_headers()
            return
        if path == "/drip":
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                for _ in range(1000):
                    self.wfile.write(b"x")
                    time.sleep(0.02)
            return
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def server() -> Iterator[str]:
    """The address of the server."""
    Handler.seen = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


class NoSearch:
    """A search engine that finds nothing."""

    def search(self, query: str, *, topn: int) -> list[Any]:
        return []


def test_a_search_interface_is_asked_by_get_or_post(server: str) -> None:
    get = JsonSearch(
        server + "/search?q={query}&n={topn}",
        headers={"X-Key": "secret"},
        results=("a", "b"),
        fields=("url", "title", "text"),
    )
    hits = get.search("a b&n=1é", topn=3)
    assert [(hit.url, hit.title, hit.summary) for hit in hits] == [
        (f"/page{at}", f"Page {at}", "about") for at in range(3)
    ]
    path, headers, _ = Handler.seen[-1]
    assert parse_qs(urlsplit(path).query) == {"q": ["a b&n=1é"], "n": ["3"]}
    assert headers["X-Key"] == "secret"
    assert "secret" not in repr(get)

    post = JsonSearch(
        server + "/search", body=lambda query, topn: {"query": query, "k": topn}, results=("a", "b")
    )
    assert len(Web(post).search("x", topn=2)) == 2
    path, headers, body = Handler.seen[-1]
    assert json.loads(body) == {"query": "x", "k": 2}
    assert headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("path", ["/nonsense", "/broken", "/page", "/search"])
def test_a_search_engine_that_fails_is_reported(server: str, path: str) -> None:
    with pytest.raises(BrowserError, match=r"\[browser.search\]"):
        JsonSearch(server + path, results=("a", "c")).search("x", topn=1)
    with pytest.raises(BrowserError, match="each with 'address'"):
        JsonSearch(
            server + "/search", results=("a", "b"), fields=("address", "title", "text")
        ).search("x", topn=1)


def test_pages_are_read_in_their_character_set_and_links_are_absolute(server: str) -> None:
    web = Web(NoSearch(), allow_private=True)
    page = web.fetch(f"{server}/moved?to=/page")
    assert (page.url, page.title) == (f"{server}/page", "Café")
    assert page.text.endswith("é 【0†more】")
    assert page.links == {0: f"{server}/next"}
    assert "<title>" in web.fetch(f"{server}/page", view_source=True).text
    assert web.fetch(f"{server}/plain").text.endswith("<b>not html</b>")
    assert web.fetch(f"{server}/odd").text.endswith("é")
    small = Web(NoSearch(), allow_private=True, max_bytes=100)
    assert small.fetch(f"{server}/large").text.count("x") == 100


def test_a_server_that_drips_is_left(server: str) -> None:
    web = Web(NoSearch(), allow_private=True, total_s=0.1)
    with pytest.raises(BrowserError, match=r"within 0\.1 s"):
        web.fetch(f"{server}/drip")


@pytest.mark.parametrize("num_calls", [1, 3])
def test_a_call_that_waits_for_a_server_can_be_interrupted(server: str, num_calls: int) -> None:
    """So can those that wait for that one; the next call is answered."""
    backend = Web(NoSearch(), allow_private=True, total_s=20)
    browser = BrowserTool(backend, tiktoken.Encoding(**BYTES))
    browser.open(f"{server}/plain")
    errors: list[BrowserError] = []

    def open_slowly() -> None:
        try:
            browser.open(f"{server}/drip")
        except BrowserError as error:
            errors.append(error)

    threads = [threading.Thread(target=open_slowly) for _ in range(num_calls)]
    for thread in threads:
        thread.start()
    while not any(path == "/drip" for path, _, _ in Handler.seen):
        time.sleep(0.01)
    time.sleep(0.1)
    browser.interrupt()
    for thread in threads:
        thread.join(10)  # the server goes on for twice as long
    assert not any(thread.is_alive() for thread in threads)
    assert [str(error).startswith("[browser] interrupted") for error in errors] == [
        True
    ] * num_calls
    assert "not html" in browser.open(f"{server}/plain")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("{server}/absent", "404"),
        ("{server}/broken", "500"),
        ("{server}/image", "found image/png"),
        ("{server}/moved?to=file:///etc/passwd", "redirect|not allowed"),
        ("{server}/moved?to=ftp://127.0.0.1/x", "ftp"),
        ("file:///etc/passwd", "begins with http"),
        ("ftp://example.com", "begins with http"),
        ("http://[", "begins with http|http"),
        ("http://", "http"),
        ("moon.md", "begins with http"),
        ("http://a b\r\nX: y", "http"),
    ],
)
def test_what_cannot_be_shown_is_a_browser_error(server: str, address: str, message: str) -> None:
    web = Web(NoSearch(), allow_private=True, timeout_s=5)
    with pytest.raises(BrowserError, match=message):
        web.fetch(address.replace("{server}", server))


def test_this_machine_and_the_local_network_are_out_of_reach_by_default(server: str) -> None:
    web = Web(NoSearch(), timeout_s=5)
    port = urlsplit(server).port
    for host in ("127.0.0.1", "localhost", "0.0.0.0", "[::ffff:127.0.0.1]", "2130706433"):
        with pytest.raises(BrowserError, match=r"\[browser.open\]"):
            web.fetch(f"http://{host}:{port}/page")
    assert Handler.seen == []


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("::ffff:8.8.8.8", True),
        ("10.0.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:192.168.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::808:808", True),
        ("2002:7f00:1::", False),
        ("224.0.0.1", False),
    ],
)
def test_public_is_what_the_registries_call_global(address: str, public: bool) -> None:
    class Connected:
        closed = False

        def getpeername(self) -> tuple[str, int]:
            return (address, 80)

        def close(self) -> None:
            self.closed = True

    connected = Connected()
    if public:
        _check_public(connected)  # type: ignore[arg-type]
    else:
        with pytest.raises(OSError, match="not a public address"):
            _check_public(connected)  # type: ignore[arg-type]
    assert connected.closed is not public
