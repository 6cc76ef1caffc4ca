"""A small byte-level vocabulary with harmony's special tokens, and ``tokenizer.json`` from ranks.

Nothing here imports the package under test: ranks and merges come from the definition of
byte-pair encoding, in its slowest and plainest form.
"""

# ruff: noqa: RUF001

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

# The o200k pattern, spelled out a second time on purpose.
PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

Pair = tuple[bytes, bytes]

NUM_MERGES = 480
CORPUS = (
    "The quick brown fox jumps over the lazy dog, and the dog doesn't mind: it's the fox's day. "
    "We're sure they've seen 100 of 1234 messages; I'll answer the user's question in the final "
    "channel. DON'T SHOUT, PLEASE. The analysis channel is for thinking about the question.\n"
    "def answer(question: str) -> str:\n    if question == '':\n        return \"nothing\"\n"
    "    for index in range(1, 10):\n\t\tprint(index, question[index:])\r\n\r\n"
    "Großzügige Übergrößen, déjà vu, façade, señor, naïve. Привет, мир! Как дела у мира? "
    "Καλημέρα κόσμε. שלום עולם. مرحبا بالعالم. नमस्ते दुनिया। สวัสดีชาวโลก "
    "你好，世界。世界你好。こんにちは世界。안녕하세요 세계. "
    "😀😀🎉👨‍👩‍👧‍👦 e\u0301e\u0301 \u00a0\u3000\u2003 "
    'https://example.com/a/b?c=d&e=f#g {"key": [1, 2, 3], "other": null} <|not special|> '
    "+ 12 + 34 = 46, 7 * 8 = 56, 90 - 45 = 45; ====== ------ ...... !!!!\n\n\n\n"
    "                                " + "\t" * 8 + "    \n        \n"
) * 2


def byte_alphabet() -> list[str]:
    """The character that stands for each byte in ``tokenizer.json``."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters = {value: chr(value) for value in printable}
    for value in range(256):
        characters.setdefault(value, chr(256 + len(characters) - len(printable)))
    return [characters[value] for value in range(256)]


_ALPHABET = byte_alphabet()


def name_of(token: bytes) -> str:
    """A token's name in ``tokenizer.json``."""
    return "".join([_ALPHABET[value] for value in token])


def byte_ranks() -> dict[bytes, int]:
    """The 256 bytes, printable ones first, as the published vocabularies have them."""
    return {bytes([value]): at for at, value in enumerate(sorted(range(256), key=_printable_first))}


def _printable_first(value: int) -> tuple[bool, int]:
    return len(_ALPHABET[value].encode("latin-1", "ignore")) == 0, value


def train(corpus: str, num_merges: int) -> list[Pair]:
    """Byte-pair encoding's merges, most frequent pair first, the smaller of equals."""
    pieces = Counter(re.findall(r" ?\w+(?:'\w+)?| ?[^\w\s]+|\s+", corpus))
    words = {tuple(bytes([b]) for b in piece.encode()): n for piece, n in pieces.items()}
    merges: list[Pair] = []
    made: set[bytes] = set()
    while len(merges) < num_merges:
        counts: Counter[Pair] = Counter()
        for word, number in words.items():
            for pair in pairwise(word):
                if pair[0] + pair[1] not in made:
                    counts[pair] += number
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        made.add(best[0] + best[1])
        words = {tuple(merge_all(list(word), best)): number for word, number in words.items()}
    return merges


def merge_all(parts: list[bytes], pair: Pair) -> list[bytes]:
    """`parts` with every occurrence of `pair` joined, from the left."""
    joined: list[bytes] = []
    for part in parts:
        if joined and (joined[-1], part) == pair:
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def apply_merges(piece: bytes, merges: list[Pair]) -> list[bytes]:
    """Byte-pair encoding by its definition: again and again, the earliest pair of the list that
    stands in the piece, at its leftmost place."""
    place = {pair: at for at, pair in reversed(list(enumerate(merges)))}
    parts = [bytes([value]) for value in piece]
    while True:
        found = [(place[pair], at) for at, pair in enumerate(pairwise(parts)) if pair in place]
        if not found:
            return parts
        at = min(found)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def all_merges(ranks: dict[bytes, int]) -> list[Pair]:
    """Every way to put a token together from two others, by rank of the token and then of the
    parts: what converters of tiktoken files write, and what the published file holds."""
    merges: list[Pair] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        splits = [(token[:at], token[at:]) for at in range(1, len(token))]
        known = [(ranks[a], ranks[b], a, b) for a, b in splits if a in ranks and b in ranks]
        merges.extend((a, b) for _, _, a, b in sorted(known))
    return merges


def harmony_special_tokens(first: int) -> dict[str, int]:
    """The 21 named tokens that gpt-oss adds after its vocabulary, counted from `first`."""
    named = {
        0: "startoftext", 1: "endoftext", 4: "return", 5: "constrain", 7: "channel", 8: "start",
        9: "end", 10: "message", 14: "call", 20: "endofprompt",
    }  # fmt: skip
    return {
        f"<|{named.get(offset, f'reserved_{first + offset}')}|>": first + offset
        for offset in range(21)
    }


@functools.cache
def small_merges() -> tuple[Pair, ...]:
    return tuple(train(CORPUS, NUM_MERGES))


def small_ranks() -> dict[bytes, int]:
    """736 tokens: 256 bytes and 480 merges, ids without holes."""
    ranks = byte_ranks()
    for left, right in small_merges():
        ranks[left + right] = len(ranks)
    return ranks


SMALL_SPECIAL = harmony_special_tokens(256 + NUM_MERGES)
SMALL_VOCAB_SIZE = 800  # of a model over it; ids from 757 on have no name


def tokenizer_dict(
    ranks: dict[bytes, int],
    special: dict[str, int],
    *,
    merges: list[Pair],
    pattern: str = PATTERN,
    ignore_merges: bool = False,
    merges_as_text: bool = False,
) -> dict[str, Any]:
    """The content of a ``tokenizer.json`` in the form of the published one."""
    listed: list[Any] = [[name_of(left), name_of(right)] for left, right in merges]
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": token, "content": name, **flags, "special": True}
            for name, token in special.items()
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [split, {**byte_level, "use_regex": False}],
        },
        "post_processor": {**byte_level, "use_regex": True},
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": ignore_merges,
            "vocab": {name_of(token): rank for token, rank in ranks.items()},
            "merges": [" ".join(pair) for pair in listed] if merges_as_text else listed,
        },
    }


def small_tokenizer_dict(**changes: Any) -> dict[str, Any]:
    """The small vocabulary as ``tokenizer.json``; `changes` are keywords of `tokenizer_dict`."""
    content = {"merges": list(small_merges()), **changes}
    return tokenizer_dict(small_ranks(), SMALL_SPECIAL, **content)


def small_tokenizer_json(**changes: Any) -> str:
    return json.dumps(small_tokenizer_dict(**changes), ensure_ascii=False)


def write_tokenizer(directory: Path, content: dict[str, Any] | str | bytes) -> Path:
    """Writes ``tokenizer.json`` into `directory` and gives its path."""
    if isinstance(content, dict):
        content = json.dumps(content, ensure_ascii=False)
    path = directory / "tokenizer.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path
