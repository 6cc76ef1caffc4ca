"""Opening a checkpoint: find its files, read their headers, check that config and tensors agree.

Nothing but headers and JSON is read, so opening takes milliseconds at any size. The compiled core
is given the records and maps the files; it checks every bound again against the files it has
mapped.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from ..errors import CheckpointError, InvalidArgument
from .config import ModelConfig, load_config
from .safetensors_reader import TensorRecord, read_header
from .strict_json import read_json_object, shorten
from .tensors import Layout, check_tensors, expected_tensors

__all__ = [
    "Checkpoint",
    "Layout",
    "TensorRecord",
    "check_tensors",
    "expected_tensors",
    "open_checkpoint",
]

MAX_INDEX_BYTES = 64_000_000

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_INCOMPLETE = "INCOMPLETE"  # as synthesize.py marks a directory that it has not finished
_SHARD = re.compile(r"(?P<stem>.*-)(?P<number>[0-9]{1,9})-of-(?P<total>[0-9]{1,9})\.safetensors")
_QUESTION = "is this a gpt-oss checkpoint?"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened checkpoint: configuration and where every tensor lies. No file is held open.

    ``files[i]`` had ``file_sizes[i]`` bytes; `tensors` maps names to byte ranges in them. `layout`
    says how tensors are named and whether query, key and value are one matrix ("original").
    """

    directory: Path
    layout: Layout
    config: ModelConfig
    files: tuple[Path, ...]
    tensors: Mapping[str, TensorRecord]
    file_sizes: tuple[int, ...]

    @property
    def tokenizer_path(self) -> Path | None:
        """tokenizer.json in the directory, or beside an ``original`` folder; None without one."""
        for directory in (self.directory, self.directory.absolute().parent):
            if (directory / "tokenizer.json").is_file():
                return directory / "tokenizer.json"
            if self.directory.absolute().name != "original":
                break
        return None


def open_checkpoint(directory: str | os.PathLike[str]) -> Checkpoint:
    """Opens the checkpoint in `directory`, in either layout; the tensor names decide which it is.

    `directory` may also be the path of the index, of the config or of a safetensors file, and a
    folder with an ``original`` folder inside. Raises CheckpointError when a file is missing,
    damaged or no part of a gpt-oss checkpoint, InvalidArgument when `directory` is no path.
    """
    start = time.perf_counter()
    root, weights = _locate(_as_path(directory))
    if os.path.lexists(root / _INCOMPLETE):
        _fail(
            root, f"expected a whole checkpoint, found one being written ({_INCOMPLETE} is there)"
        )
    config = load_config(root / "config.json")
    files, listed = _weight_files(root, weights)
    tensors, sizes = _read_shards(files, listed)
    layout = _layout_of(tensors, root)
    check_tensors(config, layout, tensors, files=files)
    _log.info(
        "opened %s: %s layout, %d tensors in %d files, %.2f GB, %.1f ms",
        root,
        layout,
        len(tensors),
        len(files),
        sum(sizes) / 1e9,
        (time.perf_counter() - start) * 1e3,
    )
    return Checkpoint(root, layout, config, files, MappingProxyType(tensors), sizes)


def _as_path(value: object) -> Path:
    if not isinstance(value, (str, os.PathLike)) or not isinstance(os.fspath(value), str):
        raise InvalidArgument(
            f"[load_checkpoint] expected the path of a directory, found {shorten(value)}"
        )
    if not os.fspath(value) or "\0" in os.fspath(value):
        raise InvalidArgument(f"[load_checkpoint] expected a path, found {shorten(str(value))}")
    return Path(value)


# --- finding the files ---------------------------------------------------------------------------


def _locate(path: Path) -> tuple[Path, Path | None]:
    """The folder that holds config.json, and the weight file or index when `path` named one."""
    try:
        if path.is_dir():
            if _has_weights(path):
                return path, None
            inner = path / "original"
            if inner.is_dir() and _has_weights(inner):
                return inner, None
            _fail(path, "expected *.safetensors files in the directory, found none")
        if path.is_file():
            if path.name == "config.json":
                return path.parent, None
            if path.name.endswith(".safetensors.index.json"):
                return path.parent, path
            if path.name.endswith(".safetensors"):
                return path.parent, None if _SHARD.fullmatch(path.name) else path
            _fail(path, "expected a checkpoint directory, index or safetensors file")
    except OSError as error:
        _fail(path, f"expected a readable directory, found: {error.strerror}")
    _fail(path, "expected a checkpoint directory, found nothing at that path")


def _has_weights(directory: Path) -> bool:
    return any(
        name.endswith((".safetensors", ".safetensors.index.json")) for name in _names(directory)
    )


def _names(directory: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(directory) if not name.startswith("."))
    except OSError as error:
        _fail(directory, f"expected a readable directory, found: {error.strerror}")


def _weight_files(
    root: Path, weights: Path | None
) -> tuple[tuple[Path, ...], dict[str, str] | None]:
    """The weight files in a fixed order, and tensor name to file name when an index lists them.

    As transformers does, a single model.safetensors counts before an index.
    """
    if weights is None:
        names = [name for name in _names(root) if name.endswith(".safetensors")]
        indices = [name for name in _names(root) if name.endswith(".safetensors.index.json")]
        if _SINGLE in names:
            weights = root / _SINGLE
        elif indices:
            weights = root / (_INDEX if _INDEX in indices else indices[0])
        else:
            _require_whole_set(root, names)
            return tuple(root / name for name in names), None
    if weights.name.endswith(".safetensors"):
        return (weights,), None
    listed = _read_index(weights)
    names = sorted(set(listed.values()))
    for name in names:
        if not os.path.lexists(root / name):
            _fail(
                root / name,
                f"{weights.name} names this file, found none; is the download complete?",
            )
    return tuple(root / name for name in names), listed


def _require_whole_set(root: Path, names: list[str]) -> None:
    """Without an index the numbers in the file names say whether one is missing."""
    matches = [match for match in map(_SHARD.fullmatch, names) if match]
    if not matches:
        if len(names) > 1:
            _fail(root, f"expected one safetensors file or an index, found {len(names)} files")
        return
    first = matches[0]
    total = int(first["total"])
    if len(matches) != len(names) or any(
        (match["stem"], int(match["total"])) != (first["stem"], total) for match in matches
    ):
        _fail(root, f"expected the files of one checkpoint, found {shorten(names)}")
    found = {int(match["number"]) for match in matches}
    # Counting starts at 1, but the published checkpoints count 0, 1, 2 "of 2".
    required = range(total) if 0 in found else range(1, total + 1)
    for number in required:  # ends at the first one missing, whatever total claims
        if number not in found:
            name = (
                f"{first['stem']}{number:0{len(first['number'])}}-of-{first['total']}.safetensors"
            )
            _fail(
                root / name,
                f"expected {len(required)} files, this one is missing; is the download complete?",
            )


def _read_index(path: Path) -> dict[str, str]:
    weight_map: Any = read_json_object(path, max_bytes=MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        _fail(path, f'"weight_map" must map tensors to files, found {shorten(weight_map)}')
    for name, file in weight_map.items():
        # A name with a folder in it could lead out of the checkpoint.
        if (
            not isinstance(file, str)
            or not file.endswith(".safetensors")
            or any(c in "/\\:" or not c.isprintable() for c in file)
            or len(file) > 255
        ):
            _fail(
                path,
                f'"weight_map" must name a .safetensors file beside it for {shorten(name)}, '
                f"found {shorten(file)}",
            )
    return weight_map


# --- reading the headers -------------------------------------------------------------------------


def _read_shards(
    files: tuple[Path, ...], listed: dict[str, str] | None
) -> tuple[dict[str, TensorRecord], tuple[int, ...]]:
    tensors: dict[str, TensorRecord] = {}
    sizes = []
    for index, path in enumerate(files):
        records, size = read_header(path, file=index)
        sizes.append(size)
        for name, record in records.items():
            if name in tensors:
                other = files[tensors[name].file].name
                _fail(path, f"expected tensor {shorten(name)} once, found it in {other} too")
            tensors[name] = record
    if listed is not None:
        _check_index(files, listed, tensors)
    return tensors, tuple(sizes)


def _check_index(
    files: tuple[Path, ...], listed: dict[str, str], tensors: dict[str, TensorRecord]
) -> None:
    for name, file in listed.items():
        record = tensors.get(name)
        if record is None or files[record.file].name != file:
            found = "nowhere" if record is None else f"in {files[record.file].name}"
            _fail(
                files[0].with_name(file),
                f"the index puts tensor {shorten(name)} in this file, it is {found}; "
                "do index and files belong together?",
            )
    unlisted = [name for name in tensors if name not in listed]
    if unlisted:
        _log.warning(
            "%d tensors are not in the index, such as %s", len(unlisted), shorten(unlisted[0])
        )


def _layout_of(tensors: Mapping[str, TensorRecord], root: Path) -> Layout:
    if any(name.startswith("model.") for name in tensors):
        return "huggingface"
    if any(name.startswith(("block.", "embedding.")) for name in tensors):
        return "original"
    some = shorten(sorted(tensors)[:3]) if tensors else "no tensors"
    _fail(root, f"expected tensors such as model.embed_tokens.weight, found {some}; {_QUESTION}")


def _fail(path: object, message: str) -> NoReturn:
    raise CheckpointError(f"[load_checkpoint] {path}: {message}")
