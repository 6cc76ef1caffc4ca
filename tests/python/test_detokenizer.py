"""Streams of ids become streams of text: nothing early, nothing late, nothing lost."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from gpt_oss_native import InvalidArgument
from gpt_oss_native.detokenizer import StopStrings, StreamingDetokenizer
from gpt_oss_native.tokenizer import decode_bytes, decode_text, load_tokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference import vocabulary

# Whatever the bytes so far, one of these finishes their last character, and others spoil it.
CONTINUATIONS = (
    b"", b"a", b"\x80", b"\xbf", b"\x80\x80", b"\x80\x80\x80", b"\xa0\x80", b"\x90\x80\x80",
)  # fmt: skip
HARD_BYTES = (
    0x41,
    0x80,
    0xBF,
    0xC1,
    0xC3,
    0xE0,
    0xE4,
    0xED,
    0xA0,
    0x9F,
    0xF0,
    0x90,
    0xF4,
    0x8F,
    0xFF,
)


@pytest.fixture(scope="module")
def encoding(tmp_path_factory: pytest.TempPathFactory) -> tiktoken.Encoding:
    directory = tmp_path_factory.mktemp("checkpoint")
    return load_tokenizer(vocabulary.write_tokenizer(directory, vocabulary.small_tokenizer_dict()))


def common_beginning(texts: list[str]) -> str:
    alike = takewhile(lambda characters: len(set(characters)) == 1, zip(*texts, strict=False))
    return "".join(characters[0] for characters in alike)


def stream(encoding: tiktoken.Encoding, ids: list[int]) -> list[str]:
    detokenizer = StreamingDetokenizer(encoding)
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


@given(ids=st.lists(st.integers(-2, vocabulary.SMALL_VOCAB_SIZE + 2), max_size=40))
@settings(max_examples=500, deadline=None)
def test_the_deltas_of_any_ids_join_to_their_decoding(
    encoding: tiktoken.Encoding, ids: list[int]
) -> None:
    whole = decode_bytes(encoding, ids).decode("utf-8", "replace")
    assert "".join(stream(encoding, ids)) == decode_text(encoding, ids) == whole


@given(data=st.one_of(st.binary(max_size=24), st.lists(st.sampled_from(HARD_BYTES)).map(bytes)))
@settings(max_examples=500, deadline=None)
@example(data=b"\xed\xa0\x80\xf4\x90\x80\x80\xe4\xbd")
def test_text_comes_as_soon_as_it_can_no_longer_change(
    encoding: tiktoken.Encoding, data: bytes
) -> None:
    detokenizer = StreamingDetokenizer(encoding)
    shown = ""
    for end, value in enumerate(data, 1):
        shown += detokenizer.push(encoding.encode_single_token(bytes([value])))
        endings = [(data[:end] + more).decode("utf-8", "replace") for more in CONTINUATIONS]
        assert shown == common_beginning(endings)
    assert shown + detokenizer.flush() == data.decode("utf-8", "replace")


def test_random_bytes_of_the_published_vocabulary_join_to_their_decoding(
    o200k: Path, rng: np.random.Generator
) -> None:
    ranks = tiktoken.load.load_tiktoken_bpe(str(o200k))
    encoding = tiktoken.Encoding(
        "o200k", pat_str=vocabulary.PATTERN, mergeable_ranks=ranks, special_tokens={}
    )
    broken = [rank for token, rank in ranks.items() if not _is_text(token)]
    for size in (1, 5, 300, 20_000):
        ids = [*rng.integers(201_088, size=size).tolist(), *rng.choice(broken, size=size).tolist()]
        rng.shuffle(ids)
        assert "".join(stream(encoding, ids)) == decode_text(encoding, ids)


def _is_text(token: bytes) -> bool:
    return "\ufffd" not in token.decode("utf-8", "replace")


def test_an_unfinished_character_waits_and_flush_gives_it_up(encoding: tiktoken.Encoding) -> None:
    first, second, third = (encoding.encode_single_token(bytes([b])) for b in "你".encode())
    detokenizer = StreamingDetokenizer(encoding)
    assert [detokenizer.push(token) for token in (first, second, third)] == ["", "", "你"]
    assert [detokenizer.push(token) for token in (first, second)] == ["", ""]
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""
    assert detokenizer.push(encoding.encode_single_token("a")) == "a"
    assert [detokenizer.push(first), detokenizer.push(10**6)] == ["", "\ufffd\ufffd"]


# --- stop strings --------------------------------------------------------------------------------


def expected_text(text: str, strings: list[str]) -> tuple[str, bool]:
    """The definition: everything before the match that begins earliest."""
    starts = [text.find(string) for string in strings if string in text]
    return (text[: min(starts)], True) if starts else (text, False)


def sure_text(text: str, strings: list[str]) -> str:
    """What of `text` no stop string that begins in it could still reach."""
    begun = [
        size
        for string in strings
        for size in range(1, min(len(string), len(text)) + 1)
        if text.endswith(string[:size])
    ]
    return text[: len(text) - max(begun, default=0)]


strings_of_ab = st.lists(st.text("ab", min_size=1, max_size=6), max_size=4)


@given(deltas=st.lists(st.text("abc", max_size=5), max_size=12), strings=strings_of_ab)
@settings(max_examples=1500, deadline=None)
@example(deltas=["abc"], strings=["abcd", "bc"])
@example(deltas=["xaba", "bab", "c"], strings=["ababc", "bab"])
def test_text_ends_before_the_earliest_match_however_it_is_cut(
    deltas: list[str], strings: list[str]
) -> None:
    stops = StopStrings(strings)
    shown, text = "", ""
    for delta in deltas:
        more, stopped = stops.push(delta)
        shown, text = shown + more, text + delta
        before, found = expected_text(text, strings)
        assert stopped == stops.stopped
        assert before.startswith(shown)
        if stopped:
            assert found
            assert shown == before
        elif not found:
            assert shown == sure_text(text, strings)
    shown += stops.flush()
    assert (shown, stops.stopped) == expected_text(text, strings)
    assert (stops.matched is not None) == stops.stopped
    if stops.matched is not None:
        assert text.startswith(stops.matched, len(shown))
    assert stops.flush() == ""


def test_a_stop_string_ends_the_text_at_once_and_for_good() -> None:
    stops = StopStrings(["\n\n", "STOP"])
    assert stops.push("Hello S") == ("Hello ", False)
    assert stops.push("TO") == ("", False)
    assert stops.push("ne\n") == ("STOne", False)
    assert stops.push("\nmore") == ("", True)
    assert stops.matched == "\n\n"
    assert stops.push("text") == ("", True)
    assert stops.flush() == ""


def test_a_match_waits_for_a_longer_one_that_began_earlier() -> None:
    stops = StopStrings(["abcd", "bc"])
    assert stops.push("xabc") == ("x", False)
    assert stops.push("d") == ("", True)
    assert stops.matched == "abcd"
    stops = StopStrings(["abcd", "bc"])
    assert stops.push("xabc") == ("x", False)
    assert stops.flush() == "a"
    assert stops.stopped
    assert stops.matched == "bc"


def test_without_stop_strings_all_text_passes() -> None:
    stops = StopStrings([])
    assert stops.push("anything") == ("anything", False)
    assert stops.flush() == ""
    assert stops.matched is None


def test_one_string_is_one_stop_string() -> None:
    assert StopStrings("ab").push("a b ab") == ("a b ", True)


@pytest.mark.parametrize("strings", [[""], ["a", ""], [None], [b"a"]])
def test_stop_strings_that_are_empty_or_no_text_are_refused(strings: list[str]) -> None:
    with pytest.raises(InvalidArgument, match=r"\[StopStrings\]"):
        StopStrings(strings)


def test_adversarial_text_costs_no_more_than_its_length() -> None:
    """Quadratic work here would be ten thousand million steps; there is no clock in this test."""
    stops = StopStrings(["a" * 100_000 + "b", "a" * 50_000 + "c"])
    shown = "".join(stops.push("a")[0] for _ in range(200_000))
    assert shown == "a" * 100_000
    assert stops.push("a" * 200_000 + "d") == ("a" * 300_000 + "d", False)
    assert stops.push("a" * 50_001 + "c") == ("a", True)
