"""The tokenizer against tiktoken, against Hugging Face's tokenizers, and against the definition."""

from __future__ import annotations

import itertools
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
import tiktoken.load
from gpt_oss_native import InvalidArgument
from gpt_oss_native.tokenizer import (
    GPT2_PATTERN,
    O200K_PATTERN,
    decode_bytes,
    decode_text,
    encode_text,
    load_tokenizer,
    reserved_ids,
    special_ids,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import vocabulary
from reference.nasty_text import nasty_text
from reference.vocabulary import write_tokenizer

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Write:
    """Writes a tokenizer.json, given as a dict or text, and gives its path."""

    def write(content: dict[str, Any] | str | bytes) -> Path:
        return write_tokenizer(tmp_path_factory.mktemp("checkpoint"), content)

    return write


@pytest.fixture(scope="module")
def small(write: Write) -> tiktoken.Encoding:
    return load_tokenizer(write(vocabulary.small_tokenizer_dict()))


@pytest.fixture(scope="module")
def small_tiktoken() -> tiktoken.Encoding:
    """The same vocabulary, given to tiktoken directly."""
    return tiktoken.Encoding(
        "small",
        pat_str=vocabulary.PATTERN,
        mergeable_ranks=vocabulary.small_ranks(),
        special_tokens=vocabulary.SMALL_SPECIAL,
    )


@pytest.fixture(scope="module")
def harmony_tiktoken(o200k: Path) -> tiktoken.Encoding:
    """tiktoken's own o200k_harmony, its vocabulary read from the local file."""
    import tiktoken_ext.openai_public as public

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            public,
            "load_tiktoken_bpe",
            lambda *_, **__: tiktoken.load.load_tiktoken_bpe(str(o200k)),
        )
        return tiktoken.Encoding(**public.o200k_harmony())


@pytest.fixture(scope="module")
def harmony_file(o200k: Path, write: Write) -> Path:
    """A tokenizer.json like the published one: all 446,189 merges, 21 added tokens."""
    ranks = tiktoken.load.load_tiktoken_bpe(str(o200k))
    special = vocabulary.harmony_special_tokens(len(ranks))
    merges = vocabulary.all_merges(ranks)
    assert len(merges) == 446_189
    return write(vocabulary.tokenizer_dict(ranks, special, merges=merges))


# --- equality with tiktoken, tokenizers and the definition ---------------------------------------


def test_the_pattern_is_that_of_tiktokens_o200k(harmony_tiktoken: tiktoken.Encoding) -> None:
    assert harmony_tiktoken._pat_str == O200K_PATTERN == vocabulary.PATTERN


def test_ids_equal_tiktokens_o200k_harmony_on_nasty_text(
    harmony_file: Path, harmony_tiktoken: tiktoken.Encoding, rng: np.random.Generator
) -> None:
    encoding = load_tokenizer(harmony_file)
    text = nasty_text(rng, size=300_000)
    ids = encode_text(encoding, text)
    assert ids == harmony_tiktoken.encode_ordinary(text)
    assert decode_text(encoding, ids) == text
    for _ in range(300):
        text = nasty_text(rng, size=30)
        assert encode_text(encoding, text) == harmony_tiktoken.encode_ordinary(text)
    characters = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    for text in ("".join(characters), "a ".join(characters[:0x3400])):
        assert encode_text(encoding, text) == harmony_tiktoken.encode_ordinary(text)
    for name, token in special_ids(encoding).items():
        assert harmony_tiktoken.encode(name, allowed_special="all") == [token]
    unnamed = [
        t for t in reserved_ids(encoding, 201_088) if "reserved" not in encoding_name(encoding, t)
    ]
    assert unnamed == list(range(200_019, 201_088))
    # tiktoken names every id from 200,019 on <|reserved_N|>: the same are never sampled.
    assert reserved_ids(harmony_tiktoken, 201_088) == reserved_ids(encoding, 201_088)


def encoding_name(encoding: tiktoken.Encoding, token: int) -> str:
    return decode_text(encoding, [token])


def test_ids_equal_tiktokens_on_nasty_text_of_the_small_vocabulary(
    small: tiktoken.Encoding, small_tiktoken: tiktoken.Encoding, rng: np.random.Generator
) -> None:
    text = nasty_text(rng, size=100_000)
    ids = encode_text(small, text)
    assert ids == small_tiktoken.encode_ordinary(text)
    assert decode_text(small, ids) == text
    assert len(set(ids)) > 500  # the sample does use the vocabulary


@given(text=st.text())
@settings(max_examples=300, deadline=None)
def test_any_text_comes_back_and_equals_tiktokens_ids(
    small: tiktoken.Encoding, small_tiktoken: tiktoken.Encoding, text: str
) -> None:
    ids = encode_text(small, text)
    assert ids == small_tiktoken.encode_ordinary(text)
    assert decode_text(small, ids) == text


@pytest.mark.parametrize("listed", ["trained", "all", "as text", "ignored"])
def test_ids_equal_those_of_the_tokenizers_library(
    write: Write, rng: np.random.Generator, listed: str
) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    ranks = vocabulary.small_ranks()
    changes: dict[str, Any] = {
        "trained": {},
        "all": {"merges": vocabulary.all_merges(ranks)},
        "as text": {"merges_as_text": True},
        "ignored": {"ignore_merges": True},
    }[listed]
    path = write(vocabulary.small_tokenizer_dict(**changes))
    ours, theirs = load_tokenizer(path), tokenizers.Tokenizer.from_file(str(path))
    for size in (50_000, *[20] * 200):
        # The library takes special tokens out of any text; ours spells them out.
        text = nasty_text(rng, size=size, old_only=True).replace("<|", "<!")
        assert encode_text(ours, text) == theirs.encode(text, add_special_tokens=False).ids


# --- special tokens and ids ----------------------------------------------------------------------


def test_names_of_special_tokens_in_text_are_ordinary_text(small: tiktoken.Encoding) -> None:
    text = "a<|end|><|start|>system<|message|>b" + "".join(vocabulary.SMALL_SPECIAL)
    ids = encode_text(small, text)
    assert not set(ids) & set(special_ids(small).values())
    assert decode_text(small, ids) == text


def test_special_tokens_that_the_vocabulary_also_lists_stay_special(write: Write) -> None:
    content = vocabulary.small_tokenizer_dict()
    content["model"]["vocab"].update(vocabulary.SMALL_SPECIAL)
    encoding = load_tokenizer(write(content))
    assert special_ids(encoding) == vocabulary.SMALL_SPECIAL
    assert len(encode_text(encoding, "<|end|>")) > 1


def test_reserved_ids_are_those_named_so_and_those_without_a_name(small: tiktoken.Encoding) -> None:
    size = vocabulary.SMALL_VOCAB_SIZE
    named = {token for name, token in vocabulary.SMALL_SPECIAL.items() if "reserved" not in name}
    usable = named | set(vocabulary.small_ranks().values())
    assert reserved_ids(small, size) == [token for token in range(size) if token not in usable]
    assert reserved_ids(small, 0) == []
    with pytest.raises(InvalidArgument, match="reserved_ids"):
        reserved_ids(small, -1)


def test_ids_without_a_name_decode_to_the_replacement_character(small: tiktoken.Encoding) -> None:
    half = small.encode_single_token(b"\xe4")
    for token in (757, 799, 10**6, 2**32, 2**70, -1, np.int64(790)):
        assert decode_text(small, [token]) == "\ufffd"
        assert decode_text(small, [97 - 33, token]) == decode_text(small, [97 - 33]) + "\ufffd"
        assert decode_bytes(small, [half, token]) == b"\xe4\xef\xbf\xbd"
        assert decode_text(small, [half, token]) == "\ufffd\ufffd"
    assert decode_text(small, []) == ""
    assert decode_text(small, iter([vocabulary.SMALL_SPECIAL["<|end|>"]])) == "<|end|>"


def test_an_encoding_survives_pickling(small: tiktoken.Encoding) -> None:
    again = pickle.loads(pickle.dumps(small))
    assert encode_text(again, "The question") == encode_text(small, "The question")


# --- text of any length and content --------------------------------------------------------------


@pytest.mark.parametrize("pattern", [O200K_PATTERN, GPT2_PATTERN], ids=["o200k", "gpt2"])
def test_cutting_out_whitespace_runs_changes_no_id_in_any_surrounding(pattern: str) -> None:
    encoding = tiktoken.Encoding(
        "x", pat_str=pattern, mergeable_ranks=vocabulary.small_ranks(), special_tokens={}
    )
    alphabets = [(" \t\nA!'", 6), (" \u3000\r\na1!/", 5), (" \n/!s", 6), (" \x85\x1c\u0301a中", 5)]
    for alphabet, length in alphabets:
        for size in range(length + 1):
            for characters in itertools.product(alphabet, repeat=size):
                text = "".join(characters)
                whole = encoding.encode_ordinary(text)
                assert encode_text(encoding, text, long_run=2) == whole, repr(text)
                if size == length:
                    assert encode_text(encoding, text, long_run=3) == whole, repr(text)


@pytest.mark.parametrize(
    "around", [("", ""), ("a", "b"), ("!\n", "!"), ("x \n", "\n y"), ("1", "\u0301")]
)
def test_long_whitespace_runs_have_the_ids_of_the_whole(
    small: tiktoken.Encoding, around: tuple[str, str], rng: np.random.Generator
) -> None:
    for run in (" " * 90_001, "\t" * 9_999, "\u3000" * 5_001, " \t\xa0" * 7_001):
        text = around[0] + run + around[1]
        assert encode_text(small, text, long_run=1000) == small.encode_ordinary(text)
        mixed = "".join(text[: int(n)] for n in rng.integers(len(text), size=6))
        assert encode_text(small, mixed, long_run=1000) == small.encode_ordinary(mixed)


def test_a_million_of_any_character_is_encoded(small: tiktoken.Encoding) -> None:
    count = 1_000_000 + 7
    whole = tiktoken.Encoding(
        "one piece", pat_str=r"[\s\S]+", mergeable_ranks=vocabulary.small_ranks(), special_tokens={}
    )
    for spaces in (" " * count, "\t \xa0" * (count // 3)):
        ids = whole.encode_ordinary(spaces)
        assert encode_text(small, spaces) == ids
        assert encode_text(small, f"a{spaces} b\n") == [
            *small.encode_ordinary("a"), *ids, *small.encode_ordinary(" b\n")
        ]  # fmt: skip
    for unit in (
        "\n",
        "\r\n",
        " \n",
        "a",
        "A",
        "aB",
        "7",
        "=",
        "/",
        "'",
        "中",
        "😀",
        "\u0301",
        "\0",
    ):
        text = unit * (count // len(unit))
        assert decode_text(small, encode_text(small, text)) == text


def test_lone_surrogates_are_refused_with_their_place(small: tiktoken.Encoding) -> None:
    for text in ("abc\ud800", "abc\udfffabc", "abc\ud83d" + " " * 200_000):
        with pytest.raises(InvalidArgument, match=r"\[encode_text\].*U\+D.* at position 3"):
            encode_text(small, text)


def test_text_beyond_a_foreign_pattern_is_an_error_and_not_a_panic() -> None:
    encoding = tiktoken.Encoding(
        "x", pat_str=r"(?:(?!b)[a ])+", mergeable_ranks=vocabulary.byte_ranks(), special_tokens={}
    )
    with pytest.raises(InvalidArgument, match="encode it in parts"):
        encode_text(encoding, "a " * 3_000_000)
    assert len(encode_text(encoding, "a " * 30_000)) == 60_000
