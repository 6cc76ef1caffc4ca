"""The tokenizer against tiktoken, against Hugging Face's tokenizers, and against the definition."""

from __future__ import annotations

import copy
import itertools
import json
import pickle
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
import tiktoken.load
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import vocabulary

from gpt_oss_native import CheckpointError, InvalidArgument
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

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Write:
    """Writes a tokenizer.json, given as a dict or text, and gives its path."""

    def write(content: dict[str, Any] | str | bytes) -> Path:
        path = tmp_path_factory.mktemp("checkpoint") / "tokenizer.json"
        if isinstance(content, dict):
            content = json.dumps(content, ensure_ascii=False)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

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


def nasty_text(rng: np.random.Generator, *, size: int, old_only: bool = False) -> str:
    """About `size` characters of everything that split patterns and merges stumble on.

    `old_only` leaves out what Unicode 3.2 had not assigned: of later characters, regex engines of
    different age disagree on what is a letter.
    """
    fixed = (
        " ", "  ", "   ", "\n", "\r\n", "\n\n", "\r", "\t", " \n ", "\t \r\n", "\xa0", "\u3000",
        "\u2028", "\x85", "\x1c", "\x00", "\x7f", "\ufeff", "\u200b", "\u200d", "\ufffd", "/", "//",
        "'s", "'S", "'ll", "'LL", "'re", "'ſ", "’s", "don't", "DON'T", "they'Ve", "'d've", "''s",
        "0", "12", "123", "1234", "٣٤", "²", "Ⅷ", "½", "१२३४", "a", "A", "aB", "ABc", "Ab", "ß",
        "e\u0301", "\u0301", "ǅ", "ʰ", "ª", "中文", "日本語", "한국어", "हिन्दी", "ไทย", "עברית", "عربى",
        "!", "?!", "...", "---", "==", "!\n", "!\r\n/\n", "({[", "</p>", "\\n", "#include <a.h>\n",
        "def f(x):\n    return x\n", "https://a.b/c?d=e", "<|end|>", "<|start|>user<|message|>",
        "<|reserved_200013|>", "<|endoftext|", "|>", "<|", " the", " question", "The", "THE",
    )  # fmt: skip
    emoji = ("😀", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "👍🏽", "❤️", "1️⃣", "☎")
    choices: list[str] = []
    length = 0
    while length < size:
        kind = rng.integers(7)
        if kind < 3:
            piece = str(rng.choice(fixed))
        elif kind == 3 and not old_only:
            piece = emoji[rng.integers(len(emoji))]
        elif kind == 4:
            piece = str(rng.choice((" ", "\n", "\t", "a", "=", "7", "\r\n"))) * int(
                rng.integers(40)
            )
        elif kind == 5:
            begin = int(rng.integers(len(vocabulary.CORPUS)))
            piece = vocabulary.CORPUS[begin : begin + int(rng.integers(60))]
        else:
            block = int(
                rng.choice((0, 0x100, 0x370, 0x900, 0x2000, 0x3000, 0x4E00, 0xAC00, 0x1F300))
            )
            if rng.random() < 0.3:
                block = int(rng.integers(0x110000 - 256))
            codes = block + rng.integers(256, size=rng.integers(1, 8))
            piece = "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000)
        if old_only:
            piece = "".join(c for c in piece if unicodedata.ucd_3_2_0.category(c) != "Cn")
        choices.append(piece)
        length += len(piece)
    return "".join(choices)


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
    for text in ("".join(characters), "a ".join(characters[:0x20000])):
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


def whole_word_dict(
    merges: list[vocabulary.Pair], words: list[bytes], **changes: Any
) -> dict[str, Any]:
    """Bytes, what `merges` make of them in that order, then `words`."""
    ranks = vocabulary.byte_ranks()
    for token in [*(left + right for left, right in merges), *words]:
        ranks.setdefault(token, len(ranks))
    special = vocabulary.harmony_special_tokens(len(ranks))
    return vocabulary.tokenizer_dict(ranks, special, merges=merges, **changes)


def test_whole_words_out_of_reach_of_merges_equal_the_tokenizers_library(
    write: Write, rng: np.random.Generator
) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    words = [b" question", b" the", b"The", b" answer", b"\n \n", b"====="]
    path = write(whole_word_dict([(b"\n", b"\n"), (b" ", b" ")], words, ignore_merges=True))
    ours, theirs = load_tokenizer(path), tokenizers.Tokenizer.from_file(str(path))
    for size in (20_000, *[20] * 200):
        text = nasty_text(rng, size=size, old_only=True).replace("<|", "<!")
        assert encode_text(ours, text) == theirs.encode(text, add_special_tokens=False).ids
    assert encode_text(ours, " question") == [ours.encode_single_token(" question")]
    assert len(encode_text(ours, " questions")) == len(" questions")


def test_a_file_is_taken_only_if_ids_follow_its_merges_on_every_text(
    write: Write, rng: np.random.Generator
) -> None:
    """Random vocabularies over two letters, sane and mad, against the definition on every text of
    up to nine letters."""
    texts = ["".join(t) for n in range(1, 10) for t in itertools.product("ab", repeat=n)]
    outcomes: dict[str, int] = {}
    for _ in range(400):
        content, merges, ranks = random_vocabulary(rng)
        whole = content["model"]["ignore_merges"]
        try:
            encoding = load_tokenizer(write(content))
        except CheckpointError as error:
            reason = str(error).split("expected ")[1].split(",")[0]
            outcomes[reason] = outcomes.get(reason, 0) + 1
            continue
        outcomes["taken"] = outcomes.get("taken", 0) + 1
        if outcomes["taken"] > 25:
            continue
        for text in texts:
            piece = text.encode()
            parts = [piece] if whole and piece in ranks else vocabulary.apply_merges(piece, merges)
            assert encode_text(encoding, text) == [ranks[part] for part in parts], (merges, text)
    assert len(outcomes) == 4 and min(outcomes.values()) >= 5, outcomes


def random_vocabulary(
    rng: np.random.Generator,
) -> tuple[dict[str, Any], list[vocabulary.Pair], dict[bytes, int]]:
    merges: list[vocabulary.Pair] = []
    made = [b"a", b"b"]
    for _ in range(rng.integers(1, 8)):
        pair = made[rng.integers(len(made))], made[rng.integers(len(made))]
        if pair not in merges and len(pair[0] + pair[1]) <= 7:
            merges.append(pair)
            if pair[0] + pair[1] not in made:
                made.append(pair[0] + pair[1])
    if rng.random() < 0.3:
        rng.shuffle(merges)
        merges = [(bytes(left), bytes(right)) for left, right in merges]
    words = [bytes(rng.choice(list(b"ab"), size=n).tolist()) for n in rng.integers(3, 7, size=2)]
    words = words if rng.random() < 0.5 else []
    ranks = vocabulary.byte_ranks()
    order = [left + right for left, right in merges] + words
    if rng.random() < 0.2:
        order.reverse()
    for token in order:
        ranks.setdefault(token, len(ranks))
    content = vocabulary.tokenizer_dict(
        ranks, {}, merges=merges, ignore_merges=bool(rng.random() < 0.6)
    )
    return content, merges, ranks


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


# --- the file ------------------------------------------------------------------------------------


def test_a_directory_and_its_file_load_alike(write: Write) -> None:
    path = write(vocabulary.small_tokenizer_dict())
    assert encode_text(load_tokenizer(path), "x y") == encode_text(
        load_tokenizer(path.parent), "x y"
    )
    assert encode_text(load_tokenizer(str(path)), "The") == encode_text(load_tokenizer(path), "The")


def test_a_pattern_that_leaves_text_out_keeps_it_as_the_file_format_does(
    write: Write, rng: np.random.Generator
) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    path = write(vocabulary.small_tokenizer_dict(pattern=r"\p{L}+|\p{N}"))
    ours, theirs = load_tokenizer(path), tokenizers.Tokenizer.from_file(str(path))
    for _ in range(200):
        text = nasty_text(rng, size=40, old_only=True).replace("<|", "<!")
        assert encode_text(ours, text) == theirs.encode(text, add_special_tokens=False).ids


def test_byte_level_without_a_pattern_splits_as_gpt2(
    write: Write, rng: np.random.Generator
) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    content = vocabulary.small_tokenizer_dict()
    content["pre_tokenizer"] = content["pre_tokenizer"]["pretokenizers"][1] | {"use_regex": True}
    path = write(content)
    ours, theirs = load_tokenizer(path), tokenizers.Tokenizer.from_file(str(path))
    for _ in range(200):
        text = nasty_text(rng, size=40, old_only=True).replace("<|", "<!")
        assert encode_text(ours, text) == theirs.encode(text, add_special_tokens=False).ids


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: .*no such file; download"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


Edit = Callable[[dict[str, Any]], object]
BAD_FILES: dict[str, tuple[Edit, str]] = {
    "no model": (lambda d: d.pop("model"), "object under 'model'"),
    "unigram": (lambda d: d["model"].update(type="Unigram"), "type BPE"),
    "dropout": (lambda d: d["model"].update(dropout=0.1), "no dropout"),
    "unknown": (lambda d: d["model"].update(unk_token="<unk>"), "no unk_token"),
    "suffix": (lambda d: d["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix"),
    "normalizer": (lambda d: d.update(normalizer={"type": "NFC"}), "no normalizer"),
    "decoder": (lambda d: d.update(decoder={"type": "WordPiece"}), "ByteLevel decoder"),
    "no vocab": (lambda d: d["model"].update(vocab=None), "object under 'vocab'"),
    "float id": (lambda d: d["model"]["vocab"].update(a=1.5), "ids from 0"),
    "true as id": (lambda d: d["model"]["vocab"].update(a=True), "ids from 0"),
    "negative id": (lambda d: d["model"]["vocab"].update(a=-1), "ids from 0"),
    "huge id": (lambda d: d["model"]["vocab"].update(a=2**64), "ids from 0"),
    "same id": (lambda d: d["model"]["vocab"].update(a=5), "each id once"),
    "empty token": (lambda d: d["model"]["vocab"].update({"": 9999}), "empty one"),
    "not byte-level": (lambda d: d["model"]["vocab"].update({"a b": 9999}), r"'a b' with U\+0020"),
    "no byte": (lambda d: d["model"]["vocab"].pop("a"), r"256 bytes.*\[97\]"),
    "id of a special token": (lambda d: d["added_tokens"][0].update(id=3), "each id once"),
    "two ids of one name": (
        lambda d: d["added_tokens"].append({"id": 9999, "content": "<|end|>", "special": True}),
        "one id for the added token",
    ),
    "two names of one id": (
        lambda d: d["added_tokens"].append({"id": 740, "content": "<|x|>", "special": True}),
        "id of its own",
    ),
    "no content": (lambda d: d["added_tokens"][0].pop("content"), "a content and an id"),
    "not special": (
        lambda d: d["added_tokens"].append({"id": 9999, "content": "word", "special": False}),
        "to be special",
    ),
    "added object": (lambda d: d.update(added_tokens={"a": 1}), "list under 'added_tokens'"),
    "merges missing": (lambda d: d["model"].pop("merges"), "list of merges"),
    "merge of strangers": (lambda d: d["model"]["merges"].append(["Ġthe", "Ġthe"]), "merges of two"),
    "merge of three": (lambda d: d["model"]["merges"].append(["a", "b", "c"]), "merges of two"),
    "merge of numbers": (lambda d: d["model"]["merges"].append([1, 2]), "merges of two"),
    "merge twice": (lambda d: d["model"]["merges"].append(d["model"]["merges"][3]), "once"),
    "merge dropped": (lambda d: d["model"]["merges"].pop(), "would merge and the file does not"),
    "merges gone": (lambda d: d["model"].update(merges=[]), "expected merges that"),
    "merges turned": (lambda d: d["model"]["merges"].reverse(), "expected merges that|renumber"),
    "prefix space": (
        lambda d: d["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
        "add_prefix_space",
    ),
    "two patterns": (
        lambda d: d["pre_tokenizer"]["pretokenizers"][1].update(use_regex=True),
        "found two",
    ),
    "no pre-tokenizer": (lambda d: d.update(pre_tokenizer=None), "pre-tokenizers|pre_tokenizer"),
    "whitespace": (lambda d: d.update(pre_tokenizer={"type": "Whitespace"}), "Whitespace"),
    "sequence of nothing": (
        lambda d: d["pre_tokenizer"].update(pretokenizers=None), "list of pre-tokenizers"
    ),
    "merged with": (
        lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(behavior="MergedWithNext"),
        "Isolated",
    ),
    "no regex": (
        lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": 3}),
        "a Regex or String",
    ),
    "broken regex": (
        lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": "(a"}),
        "regex engine",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_gives_an_error_that_names_file_and_fault(write: Write, case: str) -> None:
    edit, message = BAD_FILES[case]
    content = copy.deepcopy(vocabulary.small_tokenizer_dict())
    edit(content)
    path = write(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_tokenizer(path)
    assert str(caught.value).startswith(f"[load_tokenizer] {path}: expected ")


@pytest.mark.parametrize("odd", ["^", "$", r"\A", "}+", "(?m)", "(?s:", r"\1"])
def test_patterns_that_the_two_regex_engines_read_differently_are_refused(
    write: Write, odd: str
) -> None:
    harmless = r"[\^$]|\^\$\p{L}+(?i:x)|a{1,3}|(?!b)"
    load_tokenizer(write(vocabulary.small_tokenizer_dict(pattern=harmless)))
    pattern = harmless + {"}+": "|c{2}+", "(?s:": "(?s:.)"}.get(odd, odd)
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(write(vocabulary.small_tokenizer_dict(pattern=pattern)))
    assert f"means the same to tiktoken, found {odd} in" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff\xfe\x00", b"[" * 200_000])
def test_a_file_that_is_no_json_object_is_an_error(write: Write, content: bytes) -> None:
    with pytest.raises(CheckpointError, match="expected (a )?JSON"):
        load_tokenizer(write(content))


def test_unreachable_tokens_need_ignore_merges(write: Write) -> None:
    with pytest.raises(CheckpointError, match=r"b'word' .*set ignore_merges"):
        load_tokenizer(write(whole_word_dict([], [b"word"])))
    load_tokenizer(write(whole_word_dict([], [b"word"], ignore_merges=True)))
    with pytest.raises(CheckpointError, match=r"b'wo' .* b'w' .* b'o' .*add this merge"):
        load_tokenizer(write(whole_word_dict([], [b"wo"], ignore_merges=True)))


@given(position=st.floats(0, 1), byte=st.integers(0, 255), cut=st.booleans())
@settings(max_examples=150, deadline=None)
def test_a_damaged_file_loads_or_gives_a_checkpoint_error(
    tmp_path_factory: pytest.TempPathFactory, position: float, byte: int, cut: bool
) -> None:
    data = bytearray(vocabulary.small_tokenizer_json().encode())
    at = int(position * (len(data) - 1))
    if cut:
        del data[at:]
    else:
        data[at] = byte
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    path.write_bytes(data)
    try:
        load_tokenizer(path)
    except CheckpointError as error:
        assert str(path) in str(error)
