"""HTML is cut as the standard library's parser does, and in linear time where that does not."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from gpt_oss_native.tools import page_from_html
from gpt_oss_native.tools.html_tokens import tokens
from hypothesis import given, settings
from hypothesis import strategies as st

TEXT = st.text(alphabet="ab \n\"'=/&;é-!?", max_size=8) | st.sampled_from(
    ["&amp;", "&#233;", "&lt;p&gt;", "&notit;", "&"]
)
VALUE = st.text(alphabet="ab <>=/é;&", max_size=6)
ATTRIBUTE = st.one_of(
    VALUE.map(lambda value: f' href="{value}"'),
    VALUE.map(lambda value: f" HREF = '{value}'"),
    st.sampled_from([" href=x", " href=a/b?c=d&amp;e", " href", "\nclass=x href=y", ""]),
)
TAG = st.sampled_from(["a", "P", "br", "h1", "x-y"])
PIECE = st.one_of(
    TEXT,
    st.tuples(TAG, ATTRIBUTE).map(lambda tag: f"<{tag[0]}{tag[1]}>"),
    TAG.map(lambda tag: f"</{tag}>"),
    st.sampled_from(["<!-- <p> -->", "<!doctype html>", "<?xml x?>", "< ", "<3"]),
    st.sampled_from(["<script>if (a<b) '<p>' && c</script>", "<style>a>b{}</STYLE >"]),
)


class Events(HTMLParser):
    """What the standard library finds: texts joined, tags with their href."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = [value for name, value in attrs if name == "href" and value]
        self.found.append(("start", tag, values[0] if values else ""))

    def handle_endtag(self, tag: str) -> None:
        self.found.append(("end", tag, ""))

    def handle_data(self, data: str) -> None:
        self.found.append(("text", data, ""))


def joined(events: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Events with neighbouring texts as one."""
    out: list[tuple[str, str, str]] = []
    for event in events:
        if event[0] == "text" and out and out[-1][0] == "text":
            event = ("text", out.pop()[1] + event[1], "")
        if event[1]:
            out.append(event)
    return out


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECE, max_size=12))
def test_well_formed_markup_gives_the_tags_and_texts_of_the_standard_library(
    pieces: list[str],
) -> None:
    # A space parts the pieces: a reference or a '<' must not grow into the next.
    source = " ".join(pieces) + " "
    reference = Events()
    reference.feed(source)
    reference.close()
    found = [
        (token.kind, token.value, token.attribute("href") or "" if token.kind == "start" else "")
        for token in tokens(source)
    ]
    assert joined(found) == joined(reference.found)


HURTING = ["<!--", "<![", "<?", "<a ", "</a", '<a x="', "<a x='>\"", "<script>", "<title>", "<svg>"]
HURTING += [
    "<",
    "&",
    "&#",
    "<a href=x>y",
    "<p>",
    "<pre>",
    "<td>",
    "x",
    " ",
    "\n",
    "<a x=y ",
    "=",
    '"',
]


@pytest.mark.parametrize("unit", HURTING)
def test_markup_made_to_hurt_is_read_in_linear_time(unit: str) -> None:
    # What takes quadratic time takes hours at this length.
    for source in (unit * 50_000, "<p>" + unit * 50_000 + ">", "<a " + unit * 50_000 + "'>"):
        page = page_from_html(source, url="https://host/")
        assert len(page.lines) <= len(source) + 9


@pytest.mark.parametrize("source", ["a<!-- never closed", "a<a href='x", "a<script>x", "a<!x"])
def test_what_is_never_closed_ends_the_document_as_in_browsers(source: str) -> None:
    assert page_from_html(source, url="u:1").text.endswith("\na")
