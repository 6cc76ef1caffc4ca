"""Finding the vocabulary of gpt-oss on this machine. Nothing here opens a network connection."""

from __future__ import annotations

import base64
import functools
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, InvalidArgument
from .encoding import HarmonyEncoding, HarmonyEncodingName

_FILE = "o200k_base.tiktoken"
_URL = f"https://openaipublic.blob.core.windows.net/encodings/{_FILE}"
_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
_REPOSITORIES = ("models--openai--gpt-oss-20b", "models--openai--gpt-oss-120b")
# How o200k splits text before merging; a property of the vocabulary, published with tiktoken.
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_PATTERN = "|".join(
    [
        rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{_CONTRACTION}",
        rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{_CONTRACTION}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
_NAMED = {
    "<|startoftext|>": 199998,
    "<|endoftext|>": 199999,
    "<|return|>": 200002,
    "<|constrain|>": 200003,
    "<|channel|>": 200005,
    "<|start|>": 200006,
    "<|end|>": 200007,
    "<|message|>": 200008,
    "<|call|>": 200012,
}
# One more than the models' 201,088 ids: openai_harmony names the last one too.
_LAST_ID = 201088


def load_harmony_encoding(
    name: str | HarmonyEncodingName = HarmonyEncodingName.HARMONY_GPT_OSS,
    *,
    directory: str | os.PathLike[str] | None = None,
) -> HarmonyEncoding:
    """The harmony encoding over a vocabulary found on this machine; read once, then kept.

    Searched, in this order: ``directory`` (a checkpoint with a ``tokenizer.json``; nothing else is
    tried when it is given), ``$TIKTOKEN_ENCODINGS_BASE/o200k_base.tiktoken``, a gpt-oss checkpoint
    in the Hugging Face hub cache, tiktoken's cache (``TIKTOKEN_CACHE_DIR``).

    Raises InvalidArgument for another ``name``; CheckpointError, naming these ways, when none has
    the vocabulary.
    """
    if str(name) != HarmonyEncodingName.HARMONY_GPT_OSS.value:
        raise InvalidArgument(
            f"[load_harmony_encoding] expected the name 'HarmonyGptOss', got {str(name)!r}; "
            "for a checkpoint of your own pass directory="
        )
    if directory is not None:
        return _from_directory(os.path.realpath(directory))
    tried: list[str] = []
    for path in _ranks_files("TIKTOKEN_ENCODINGS_BASE"):
        if (found := _from_ranks(path, tried)) is not None:
            return found
    for path in _hub_snapshots():
        try:
            return _from_directory(str(path))
        except CheckpointError as error:  # a half-downloaded snapshot hides no other way
            tried.append(str(error))
    for path in _ranks_files("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR", "TIKTOKEN_RS_CACHE_DIR"):
        if (found := _from_ranks(path, tried)) is not None:
            return found
    raise CheckpointError(
        "[load_harmony_encoding] expected the gpt-oss vocabulary on this machine, found none"
        f"{''.join(f' ({problem})' for problem in tried)}; pass directory= with a checkpoint "
        "folder that has a tokenizer.json, or download a gpt-oss checkpoint into the Hugging Face "
        f"hub cache, or set TIKTOKEN_ENCODINGS_BASE to a folder with {_FILE}, or "
        "TIKTOKEN_CACHE_DIR to tiktoken's cache; with a loaded model, model.harmony needs none of "
        "these"
    )


def _ranks_files(*variables: str) -> Iterator[Path]:
    """Where these environment variables, and the caches' default places, put the vocabulary."""
    key = hashlib.sha1(_URL.encode(), usedforsecurity=False).hexdigest()
    for variable in variables:
        folder = os.environ.get(variable)
        if folder:
            yield Path(folder) / (_FILE if variable == "TIKTOKEN_ENCODINGS_BASE" else key)
    if "TIKTOKEN_CACHE_DIR" in variables:
        for cache in ("data-gym-cache", "tiktoken-rs-cache"):
            yield Path(tempfile.gettempdir()) / cache / key


def _hub_snapshots() -> Iterator[Path]:
    """Snapshots of gpt-oss in the hub cache that hold a tokenizer, the newest first."""
    home = os.environ.get("HF_HOME") or Path(
        os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "huggingface"
    )
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")
    for repository in _REPOSITORIES:
        files = list((hub / repository / "snapshots").glob("*/tokenizer.json"))
        yield from (file.parent for file in sorted(files, key=os.path.getmtime, reverse=True))


@functools.lru_cache(maxsize=8)
def _from_directory(directory: str) -> HarmonyEncoding:
    from ..tokenizer import load_tokenizer

    return HarmonyEncoding(load_tokenizer(Path(directory)))


def _from_ranks(path: Path, tried: list[str]) -> HarmonyEncoding | None:
    if not path.is_file():
        if path.name == _FILE:  # named by the caller, so its absence is worth saying
            tried.append(f"{path} does not exist")
        return None
    try:
        return _read_ranks(str(path))
    except CheckpointError as error:
        tried.append(str(error))
        return None


@functools.lru_cache(maxsize=2)
def _read_ranks(path: str) -> HarmonyEncoding:
    import tiktoken

    data = Path(path).read_bytes()
    if hashlib.sha256(data).hexdigest() != _SHA256:
        raise CheckpointError(f"{path} is not the published {_FILE}: its sha256 differs")
    ranks = {}
    for line in data.splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    return HarmonyEncoding(tiktoken.Encoding(**_description(ranks)))


def _description(ranks: dict[bytes, int]) -> dict[str, Any]:
    taken = set(_NAMED.values())
    reserved = (i for i in range(max(ranks.values()) + 1, _LAST_ID + 1) if i not in taken)
    return {
        "name": "o200k_harmony",
        "pat_str": _PATTERN,
        "mergeable_ranks": ranks,
        "special_tokens": _NAMED | {f"<|reserved_{i}|>": i for i in reserved},
    }
