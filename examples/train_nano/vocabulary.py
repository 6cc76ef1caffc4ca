"""The nano vocabulary: bytes, a few short merges, and whole words of the training templates.

Digits stay single tokens, and so do the letters of any word that is not a template's: no token
is made of two letters, nor of a space and one letter, so no merge can fire inside a word, and a
longer token is only ever a whole word (`ignore_merges`). The same table read by rank, as tiktoken
reads it, splits text the same way.

    python vocabulary.py DIR        writes DIR/tokenizer.json
"""

from __future__ import annotations

import json
import random
import sys
from functools import cache
from pathlib import Path
from typing import Any

import conversations
import regex
import tiktoken
import tools
import wordings

# The split pattern of o200k: the tokenizer family gpt-oss uses.
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
SPLIT_PATTERN = "|".join(
    [
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SUFFIX}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SUFFIX}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
SPECIAL_TOKENS = (
    "<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>", "<|start|>",
    "<|end|>", "<|message|>", "<|call|>", "<|endofprompt|>",
)  # fmt: skip
OTHER_TEXT = (
    "min 1: 2\n1-2 borrow 1=1 -> 2\n1<2 swap user",
    '{"temperature": 1, "result": true}{"a":"7"}',
    "calculate expression boolean integer string number function call the tool result",
    "tools value key degrees clear",
    "commentary", "json", "Use", "Now", "The", "Call", "Small talk",
)  # fmt: skip
SIZE_MULTIPLE = 64


@cache
def ranks() -> dict[bytes, int]:
    """Return the mergeable tokens and their ids: all bytes, then words in sorted order."""
    table = {bytes([byte]): byte for byte in range(256)}
    for word in sorted(_words(), key=lambda w: (len(w), w)):
        table[word] = len(table)
    return table


@cache
def encoding() -> tiktoken.Encoding:
    """Return the vocabulary as a tiktoken Encoding; special tokens take the highest ids."""
    table = ranks()
    special = {name: len(table) + i for i, name in enumerate(SPECIAL_TOKENS)}
    return tiktoken.Encoding(
        "nano", pat_str=SPLIT_PATTERN, mergeable_ranks=table, special_tokens=special
    )


def padded_size() -> int:
    """Return the number of rows of the embedding: all tokens, rounded up to a multiple of 64."""
    return -(-encoding().n_vocab // SIZE_MULTIPLE) * SIZE_MULTIPLE


def encode(text: str) -> list[int]:
    """Encode harmony text whose special tokens are written out."""
    return encoding().encode(text, allowed_special="all")


def _words() -> set[bytes]:
    rng = random.Random(0)
    texts = [piece.text for _ in range(3000) for piece in conversations.conversation(rng, "add")]
    for family in tools.FAMILIES:
        for _ in range(200):
            tool = tools.make_tool(rng, family)
            texts.append(tools.developer_message(rng, [tool], "x"))
            texts.append(f' to=functions.{tool.name} to=assistant Use {tool.name}. {{"7":7}}')
            texts += tools.QUESTIONS.get(family, ())
    for name in ("SUBTRACT", "MULTIPLY", "SORT", "REVERSE", "LARGEST", "LARGER_OF_TWO"):
        texts += getattr(wordings, name)
    for name in ("THEN_ADD", "THEN_SUBTRACT", "THEN_MULTIPLY", "THEN_REVERSE", "SMALL_TALK"):
        texts += getattr(wordings, name)
    texts += [wordings.SMALL_TALK_ANSWER, tools.SPACE]
    texts += [*conversations.IDENTITIES, *conversations.INSTRUCTIONS, *OTHER_TEXT]
    words = set()
    for text in texts:
        text = regex.sub(r"\{(a|b|w|list)?\}|<\|.*?\|>", "7", text)
        for piece in regex.findall(SPLIT_PATTERN, text):
            encoded = piece.encode()
            inner = regex.fullmatch(r".?\p{L}|\p{L}{2}|\d+", piece)
            if len(encoded) > 1 and not inner:
                words.add(encoded)
    return words


def _printable_bytes() -> dict[int, str]:
    """Return GPT-2's map of bytes to printable characters, which tokenizer.json is written in."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in kept]
    return {b: chr(b) for b in kept} | {b: chr(256 + i) for i, b in enumerate(moved)}


def tokenizer_json() -> dict[str, Any]:
    """Return the vocabulary in the format of Hugging Face's `tokenizers`."""
    table, shown = ranks(), _printable_bytes()

    def show(token: bytes) -> str:
        return "".join(shown[byte] for byte in token)

    merges = [
        [show(token[:cut]), show(token[cut:])]
        for token in table
        for cut in range(1, len(token))
        if token[:cut] in table and token[cut:] in table
    ]
    added = [
        {
            "id": len(table) + i,
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, name in enumerate(SPECIAL_TOKENS)
    ]
    split = {
        "type": "Split",
        "pattern": {"Regex": SPLIT_PATTERN},
        "behavior": "Isolated",
        "invert": False,
    }
    bytes_only = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes_only]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                    "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {show(token): rank for token, rank in table.items()},
            "merges": merges,
        },
    }  # fmt: skip


def write(directory: Path) -> None:
    """Write tokenizer.json into a directory."""
    text = json.dumps(tokenizer_json(), ensure_ascii=False, indent=1)
    (directory / "tokenizer.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
