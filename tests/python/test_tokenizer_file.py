"""What a tokenizer.json may ask for, and that nothing else is quietly done instead."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import gpt_oss_native
import numpy as np
import pytest
from gpt_oss_native import CheckpointError
from gpt_oss_native.tokenizer import encode_text, load_tokenizer
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
    # Taken, and refused for each of the three reasons.
    assert len(outcomes) == 4, outcomes
    assert min(outcomes.values()) >= 5, outcomes


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
    "merge of strangers": (lambda d: d["model"]["merges"].append(["Ġa", "Ġa"]), "merges of two"),
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
    with pytest.raises(CheckpointError, match=r"expected (a )?JSON"):
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
    with suppress(CheckpointError):
        load_tokenizer(path)


def test_the_nano_tokenizer_equals_the_tokenizers_library(rng: np.random.Generator) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    path = Path(gpt_oss_native.__file__).parent / "nano" / "tokenizer.json"
    if not path.is_file():
        pytest.skip("the nano checkpoint is not in this tree")
    ours, theirs = load_tokenizer(path.parent), tokenizers.Tokenizer.from_file(str(path))
    for size in (50_000, *[20] * 200):
        text = nasty_text(rng, size=size, old_only=True).replace("<|", "<!")
        assert encode_text(ours, text) == theirs.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    "split",
    [
        {"pattern": {"String": " ."}, "behavior": "Isolated", "invert": False},
        {"pattern": {"Regex": vocabulary.PATTERN}, "behavior": "Removed", "invert": True},
    ],
    ids=["string", "removed and inverted"],
)
def test_other_ways_to_write_a_split_equal_the_tokenizers_library(
    write: Write, rng: np.random.Generator, split: dict[str, Any]
) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    content = vocabulary.small_tokenizer_dict()
    content["pre_tokenizer"]["pretokenizers"][0].update(split)
    path = write(content)
    ours, theirs = load_tokenizer(path), tokenizers.Tokenizer.from_file(str(path))
    for text in ("a . b .c ..", *(nasty_text(rng, size=40, old_only=True) for _ in range(100))):
        text = text.replace("<|", "<!")
        assert encode_text(ours, text) == theirs.encode(text, add_special_tokens=False).ids
