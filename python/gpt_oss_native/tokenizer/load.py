"""Reading ``tokenizer.json`` (the format of Hugging Face's tokenizers) into a tiktoken Encoding."""

from __future__ import annotations

import gc
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import tiktoken

from ..errors import CheckpointError
from .merges import MergeTable, find_disagreement
from .patterns import GPT2_PATTERN, covers_every_text, find_ambiguity, with_gaps

_FILE_NAME = "tokenizer.json"
_MAX_ID = 2**31 - 1


@dataclass(frozen=True)
class _Source:
    """The file being read, for messages."""

    path: Path

    def fail(self, message: str) -> NoReturn:
        raise CheckpointError(f"[load_tokenizer] {self.path}: {message}") from None


def load_tokenizer(path: str | os.PathLike[str]) -> tiktoken.Encoding:
    """The encoding that `path` describes: a ``tokenizer.json``, or a directory that holds one.

    Byte-level BPE only, as gpt-oss uses it. Added tokens become special tokens. The result
    tokenises ordinary text exactly as the file says, merge for merge (``merges.py`` has the
    proof that is checked here); encode with ``encode_text``, which takes text of any length.
    The published vocabulary of 199,998 tokens loads in about a second.

    Raises CheckpointError when the file is missing or malformed, and when it asks for something
    that tiktoken cannot do exactly.
    """
    file = Path(path)
    if file.is_dir():
        file = file / _FILE_NAME
    with _no_garbage_collection():
        return _load(_Source(file))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Half a million small lists without a cycle: walking them again and again is a third of the
    time of loading."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _load(source: _Source) -> tiktoken.Encoding:
    root = _read_json(source)
    model = _object(source, root, "model")
    _check_model(source, root, model)
    pattern = _split_pattern(source, root.get("pre_tokenizer"))
    special = _added_tokens(source, root.get("added_tokens") or [])
    ranks = _mergeable_ranks(source, model, special)
    name = source.path.resolve().parent.name
    try:
        return tiktoken.Encoding(
            name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special
        )
    except ValueError as error:
        source.fail(
            f"expected a split pattern that tiktoken's regex engine takes, found {pattern!r} "
            f"({error}); rewrite the pattern in pre_tokenizer"
        )


def _read_json(source: _Source) -> dict[str, Any]:
    try:
        root = json.loads(source.path.read_bytes())
    except FileNotFoundError:
        source.fail(
            "expected the tokenizer of the checkpoint, found no such file; download "
            f"{_FILE_NAME} along with the weights"
        )
    except OSError as error:
        source.fail(f"expected a readable file, found {error.strerror}; check its permissions")
    except (ValueError, RecursionError) as error:
        source.fail(f"expected JSON, found {error}; download the file again")
    if not isinstance(root, dict):
        source.fail(f"expected a JSON object, found {_kind(root)}; download the file again")
    return root


def _kind(value: object) -> str:
    shown = json.dumps(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _object(source: _Source, parent: dict[str, Any], key: str) -> dict[str, Any]:
    value = parent.get(key)
    if not isinstance(value, dict):
        source.fail(
            f"expected an object under {key!r}, found {_kind(value)}; is it a {_FILE_NAME}?"
        )
    return value


def _check_model(source: _Source, root: dict[str, Any], model: dict[str, Any]) -> None:
    """Refuses every switch that would change the ids and that tiktoken does not have."""
    # Old files leave the type out.
    if model.get("type", "BPE") != "BPE":
        source.fail(
            f"expected a model of type BPE, found {_kind(model['type'])}; gpt-oss uses "
            "byte-level BPE"
        )
    for key in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            source.fail(
                f"expected no {key} in a byte-level BPE, found {_kind(model[key])}; set it to null"
            )
    if root.get("normalizer") is not None:
        source.fail(
            f"expected no normalizer, found {_kind(root['normalizer'])}; tiktoken encodes text "
            "as it is, so set it to null"
        )
    decoder = root.get("decoder")
    if decoder is not None and not (
        isinstance(decoder, dict) and decoder.get("type") == "ByteLevel"
    ):
        source.fail(f"expected the ByteLevel decoder, found {_kind(decoder)}; is this gpt-oss's?")


def _split_pattern(source: _Source, pre_tokenizer: object) -> str:
    """The pattern tiktoken shall use: from one Split and one ByteLevel step, or ByteLevel alone."""
    steps: Any = [pre_tokenizer]
    if isinstance(pre_tokenizer, dict) and pre_tokenizer.get("type") == "Sequence":
        steps = pre_tokenizer.get("pretokenizers")
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        source.fail(f"expected a list of pre-tokenizers, found {_kind(pre_tokenizer)}")
    kinds = [step.get("type") for step in steps]
    if kinds not in (["Split", "ByteLevel"], ["ByteLevel"]):
        source.fail(
            f"expected pre_tokenizer to be Split and ByteLevel, or ByteLevel alone, found {kinds}; "
            "only these are byte-level BPE as tiktoken does it"
        )
    byte_level = steps[-1]
    if byte_level.get("add_prefix_space", True):
        source.fail("expected add_prefix_space false, found true; tiktoken adds no space")
    splits_itself = byte_level.get("use_regex", True)
    if len(steps) == 1:
        if not splits_itself:
            source.fail("expected a split pattern, found none (use_regex is false); add a Split")
        return GPT2_PATTERN
    if splits_itself:
        source.fail("expected one split pattern, found two; set ByteLevel's use_regex to false")
    return _pattern_of_split(source, steps[0])


def _pattern_of_split(source: _Source, split: dict[str, Any]) -> str:
    pattern = split.get("pattern")
    if isinstance(pattern, dict) and isinstance(pattern.get("String"), str):
        regex: str = re.escape(pattern["String"])
    elif isinstance(pattern, dict) and isinstance(pattern.get("Regex"), str):
        regex = pattern["Regex"]
    else:
        source.fail(f"expected a pattern with a Regex or String, found {_kind(pattern)}")
    odd = find_ambiguity(regex)
    if odd is not None:
        source.fail(
            f"expected a split pattern that means the same to tiktoken, found {odd} in {regex!r}; "
            "rewrite the pattern without it"
        )
    how = (split.get("behavior"), bool(split.get("invert")))
    if how == ("Isolated", False):
        return regex if covers_every_text(regex) else with_gaps(regex)
    if how == ("Removed", True):
        return regex
    source.fail(
        f"expected a Split of behavior Isolated, found {how[0]!r} with invert {how[1]}; tiktoken "
        "can only keep each match as one piece"
    )


def _added_tokens(source: _Source, added: object) -> dict[str, int]:
    special: dict[str, int] = {}
    if not isinstance(added, list):
        source.fail(f"expected a list under 'added_tokens', found {_kind(added)}")
    for entry in added:
        content = entry.get("content") if isinstance(entry, dict) else None
        token = entry.get("id") if isinstance(entry, dict) else None
        if (
            not isinstance(content, str)
            or not content
            or not isinstance(token, int)
            or not _is_id(token)
        ):
            source.fail(
                f"expected added tokens with a content and an id, found {_kind(entry)}; download "
                "the file again"
            )
        if not entry.get("special") and not re.fullmatch(r"<\|.+\|>", content):
            source.fail(
                f"expected added tokens to be special, found {_kind(entry)}: ordinary text would "
                "have to be searched for it, which tiktoken does not do; mark it as special"
            )
        if special.setdefault(content, token) != token:
            source.fail(
                f"expected one id for the added token {content!r}, found {special[content]} and "
                f"{token}; remove one"
            )
    if len(set(special.values())) != len(special):
        source.fail("expected an id of its own for each added token, found one given twice")
    return special


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MAX_ID


def _mergeable_ranks(
    source: _Source, model: dict[str, Any], special: dict[str, int]
) -> dict[bytes, int]:
    """Bytes to id of the vocabulary without the special tokens, checked against the merges."""
    vocab = _object(source, model, "vocab")
    if not all(map(_is_id, vocab.values())):
        name = next(name for name, token in vocab.items() if not _is_id(token))
        source.fail(f"expected ids from 0 to {_MAX_ID}, found {_kind(vocab[name])} for {name!r}")
    for name, token in special.items():
        if vocab.get(name, token) != token:
            source.fail(
                f"expected one id for {name!r}, found {vocab[name]} in the vocabulary and {token} "
                "among the added tokens; make them equal"
            )
    if special.keys() & vocab.keys():
        vocab = {name: token for name, token in vocab.items() if name not in special}
    ordered = sorted(vocab.items(), key=lambda item: item[1])
    names = [name for name, _ in ordered]
    ids = [token for _, token in ordered]
    taken = set(special.values())
    twice = next((two for one, two in pairwise(ids) if one == two), None)
    if twice is None and not taken.isdisjoint(ids):
        twice = min(taken.intersection(ids))
    if twice is not None:
        source.fail(f"expected each id once, found id {twice} twice; download the file again")
    tokens = _names_to_bytes(source, names)
    missing = set(range(256)) - {token[0] for token in tokens if len(token) == 1}
    if missing:
        source.fail(
            f"expected a token for each of the 256 bytes, found none for {sorted(missing)[:8]}; "
            "a byte-level vocabulary can express every text"
        )
    whole_pieces_first = bool(model.get("ignore_merges"))
    _check_merges(source, model.get("merges"), names, ids, tokens, whole_pieces_first)
    return dict(zip(tokens, ids, strict=True))


def _byte_alphabet() -> list[int]:
    """The code point that stands for each byte: printable Latin-1 for itself, the others in order
    from U+0100 on (introduced with GPT-2, so that no token contains a space or control code)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [byte if byte in printable else next(others) for byte in range(256)]


def _names_to_bytes(source: _Source, names: list[str]) -> list[bytes]:
    joined = np.frombuffer("".join(names).encode("utf-32-le", "surrogatepass"), dtype="<u4")
    alphabet = np.array(_byte_alphabet())
    byte_of = np.full(alphabet.max() + 2, -1, dtype=np.int16)
    byte_of[alphabet] = np.arange(256)
    values = byte_of[np.minimum(joined, byte_of.size - 1)]
    ends = list(accumulate(map(len, names), initial=0))
    if (values < 0).any():
        bad = int(np.argmax(values < 0))
        at = next(at for at, end in enumerate(ends) if end > bad) - 1
        source.fail(
            f"expected token names in the byte-level alphabet, found {names[at]!r} with "
            f"U+{int(joined[bad]):04X}; add it to added_tokens if it is a special token"
        )
    data = values.astype(np.uint8).tobytes()
    tokens = [data[begin:end] for begin, end in pairwise(ends)]
    if b"" in tokens:
        source.fail("expected tokens of at least one byte, found an empty one; remove it")
    return tokens


def _check_merges(
    source: _Source,
    merges: object,
    names: list[str],
    ids: list[int],
    tokens: list[bytes],
    whole_pieces_first: bool,
) -> None:
    index = dict(zip(names, range(len(names)), strict=True))
    if not isinstance(merges, list):
        source.fail(f"expected a list of merges, found {_kind(merges)}; download the file again")
    try:
        if merges and isinstance(merges[0], str):
            merges = [merge.split(" ") for merge in merges]
        left = np.array([index[one] for one, _ in merges], np.int64)
        right = np.array([index[two] for _, two in merges], np.int64)
        result = np.array([index[one + two] for one, two in merges], np.int64)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        source.fail(
            "expected merges of two tokens into a third of the vocabulary, found one that is "
            f"not ({type(error).__name__}: {error}); download the file again"
        )
    table = MergeTable(left, right, result, num_tokens=len(names))
    twice = table.duplicate()
    if twice is not None:
        source.fail(f"expected each merge once, found {merges[twice]} again at place {twice}")
    found = find_disagreement(tokens, table, whole_pieces_first=whole_pieces_first)
    if found is None:
        return
    token = f"{tokens[found.token]!r} (id {ids[found.token]})"
    parts = " + ".join(f"{tokens[part]!r} (id {ids[part]})" for part in found.parts)
    match found.kind:
        case "two":
            source.fail(
                f"expected merges that build every token of two parts, found {token} to end as "
                f"{parts}, a pair that tiktoken would merge and the file does not; add this "
                "merge to the file or drop the token"
            )
        case "whole":
            source.fail(
                f"expected merges that reach every token, found {token} to end as {parts}; "
                "tiktoken takes whole pieces from the vocabulary first, so set ignore_merges to "
                "true if the file means that, or drop the token"
            )
        case _:
            source.fail(
                f"expected ids in the order of the merges, found {token} merged before {parts}; "
                "tiktoken merges by id, so renumber the vocabulary"
            )
