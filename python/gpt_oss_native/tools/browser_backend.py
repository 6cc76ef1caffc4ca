"""Where pages come from: the contract, and the web by way of any HTTP search interface."""

from __future__ import annotations

import http.client
import ipaddress
import json
import socket
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.message import Message as Headers
from typing import Any, Final, Protocol
from urllib.parse import quote, urlsplit

from ..errors import GptOssError
from .browser_page import Page, page_from_html, page_from_text

__all__ = ["Backend", "BrowserError", "JsonSearch", "SearchApi", "SearchHit", "Web"]

_AGENT: Final = "gpt-oss-native"
_LONGEST_ANSWER: Final = 8 * 2**20
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_TEXT_TYPES: Final = ("text/", "application/json", "application/xml", "application/xhtml")


class BrowserError(GptOssError):
    """A page or a search that cannot be had; the model is told."""


@dataclass(frozen=True)
class SearchHit:
    """One result: its address, title and summary; and where known, the line (from 0) of the
    page's text at which to open it."""

    url: str
    title: str
    summary: str = ""
    line: int | None = None


class SearchApi(Protocol):
    """A search engine."""

    def search(self, query: str, *, topn: int) -> Sequence[SearchHit]:
        """The best ``topn`` results, or fewer. Raises BrowserError."""
        ...


class Backend(SearchApi, Protocol):
    """What a browser needs: a search, and pages by their address."""

    def fetch(self, url: str, *, view_source: bool = False) -> Page:
        """The page at an address, or its source as text. Raises BrowserError."""
        ...


@dataclass(frozen=True)
class JsonSearch:
    """A search engine that answers a GET or POST request with JSON.

    Attributes:
        url: the address. For GET, ``{query}`` and ``{topn}`` in it are replaced.
        headers: of the request, such as an API key.
        body: makes the JSON body of a POST from the query and the number; None: a GET.
        results: the keys that lead to the list of results.
        fields: of one result: the keys of address, title and summary; the first must be there.
        timeout_s: for each step of the connection.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: Callable[[str, int], Any] | None = None
    results: tuple[str, ...] = ("results",)
    fields: tuple[str, str, str] = ("url", "title", "summary")
    timeout_s: float = 20.0

    def search(self, query: str, *, topn: int) -> list[SearchHit]:
        """Asks. Raises BrowserError when the engine cannot be reached or answers otherwise."""
        url = self.url.replace("{query}", quote(query, safe="")).replace("{topn}", str(topn))
        data = None if self.body is None else json.dumps(self.body(query, topn)).encode()
        headers = {"User-Agent": _AGENT, "Accept": "application/json", **self.headers}
        if data is not None:
            headers.setdefault("Content-Type", "application/json")
        request = urllib.request.Request(url, data=data, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
                answer = json.loads(response.read(_LONGEST_ANSWER))
            for key in self.results:
                answer = answer[key]
            return [self._hit(item) for item in answer[:topn]]
        except (OSError, http.client.HTTPException) as error:
            raise BrowserError(f"[browser.search] the search engine failed: {error}") from error
        except (ValueError, LookupError, TypeError) as error:
            raise BrowserError(
                f"[browser.search] expected JSON with {'.'.join(self.results)}, each with "
                f"{self.fields[0]!r}, got something else ({error!r})"
            ) from error

    def _hit(self, item: Mapping[str, Any]) -> SearchHit:
        address, title, summary = self.fields
        url = str(item[address])
        return SearchHit(url, str(item.get(title) or url), str(item.get(summary) or ""))


class Web:
    """Pages fetched over HTTP, found by any `SearchApi`.

    Since a page may talk a model into opening an address, only public ones are connected to:
    not this machine, not the local network, also not by way of a redirect or a name that leads
    there. ``allow_private=True`` lifts that, and uses proxies from the environment.
    """

    def __init__(
        self,
        search: SearchApi,
        *,
        allow_private: bool = False,
        timeout_s: float = 20.0,
        total_s: float = 60.0,
        max_bytes: int = 8 * 2**20,
    ) -> None:
        """A backend over ``search``; ``timeout_s`` is for each step of a connection, ``total_s``
        for all of a page, ``max_bytes`` the most that is read of it."""
        self._search = search
        self._timeout_s = timeout_s
        self._total_s = total_s
        self._max_bytes = max_bytes
        handlers: list[urllib.request.BaseHandler] = [_PublicHttp(), _PublicHttps()]
        if allow_private:
            handlers = [
                urllib.request.ProxyHandler(),
                urllib.request.HTTPHandler(),
                urllib.request.HTTPSHandler(),
            ]
        # Not build_opener, which adds what opens files and FTP.
        self._opener = urllib.request.OpenerDirector()
        for handler in (
            *handlers,
            urllib.request.UnknownHandler(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPRedirectHandler(),
            urllib.request.HTTPErrorProcessor(),
        ):
            self._opener.add_handler(handler)

    def search(self, query: str, *, topn: int) -> Sequence[SearchHit]:
        """What the search engine finds."""
        return self._search.search(query, topn=topn)

    def fetch(self, url: str, *, view_source: bool = False) -> Page:
        """The page at an ``http`` or ``https`` address. Raises BrowserError."""
        if _scheme(url) not in ("http", "https"):
            raise BrowserError(
                f"[browser.open] {url[:500]!r}: expected an address that begins with http:// or "
                "https://"
            )
        try:
            request = urllib.request.Request(
                quote(url, safe="%/:=&?~#+!$,;'@()*[]"), headers={"User-Agent": _AGENT}
            )
            with self._opener.open(request, timeout=self._timeout_s) as response:
                data = self._read(response)
                headers, final = response.headers, response.geturl()
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise BrowserError(f"[browser.open] {url[:500]}: {error}") from error
        return _page(data, headers, final, view_source=view_source)

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        """The beginning of a page; raises OSError when a server takes too long over it."""
        deadline = time.monotonic() + self._total_s
        data = bytearray()
        while len(data) < self._max_bytes:
            if time.monotonic() > deadline:
                raise OSError(f"expected the page within {self._total_s:g} s, it was not complete")
            piece = response.read1(min(65_536, self._max_bytes - len(data)))
            if not piece:
                break
            data += piece
        return bytes(data)


def _scheme(url: str) -> str | None:
    """The scheme of an address; None when it is none."""
    try:
        return urlsplit(url).scheme
    except ValueError:
        return None


def _page(data: bytes, headers: Headers, url: str, *, view_source: bool) -> Page:
    kind = headers.get_content_type()
    if not kind.startswith(_TEXT_TYPES):
        raise BrowserError(f"[browser.open] {url}: expected text or HTML, found {kind}")
    try:
        text = data.decode(headers.get_content_charset() or "utf-8", errors="replace")
    except LookupError:  # a character set that Python does not know
        text = data.decode(errors="replace")
    if kind in ("text/html", "application/xhtml+xml") and not view_source:
        return page_from_html(text, url=url)
    return page_from_text(text, url=url, title=url)


def _check_public(connected: socket.socket) -> None:
    """Raises OSError unless the peer has a public address; looked at once connected, so that no
    second answer of the name service can differ."""
    address = _reached(ipaddress.ip_address(connected.getpeername()[0].partition("%")[0]))
    if not address.is_global or address.is_multicast:
        connected.close()
        raise OSError(f"{address} is not a public address; this browser opens only those")


def _reached(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The IPv4 address that an IPv6 address stands for, where it does: mapped, 6to4 or NAT64."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or address


class _PublicHttpConnection(http.client.HTTPConnection):
    def connect(self) -> None:
        super().connect()
        _check_public(self.sock)


class _PublicHttpsConnection(http.client.HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        _check_public(self.sock)


class _PublicHttp(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_PublicHttpConnection, req)


class _PublicHttps(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_PublicHttpsConnection, req)
