"""A streaming writer of safetensors files: 8 bytes of little-endian header length, JSON, data.

Format: huggingface/safetensors README. Tensors lie one after another without gaps, in the order
given, and are produced only when it is their turn, so a file larger than memory can be written.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidArgument

ITEM_BYTES = {"BF16": 2, "U8": 1, "F32": 4, "F16": 2, "I8": 1, "I32": 4, "I64": 8, "F64": 8}
PARTIAL_SUFFIX = ".partial"

Chunks = Iterable[Any]  # objects with the buffer protocol, contiguous


@dataclass(frozen=True)
class TensorSpec:
    """Name, safetensors dtype ("BF16", "U8", ...) and shape of one tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def safetensors_header(
    specs: Sequence[TensorSpec], *, metadata: Mapping[str, str] | None = None, slack: int = 0
) -> bytes:
    """Return what precedes the data, its length included, padded with spaces.

    The data begins ``slack`` bytes after a multiple of 8: the format promises no alignment, and a
    slack other than 0 makes files on which a reader that assumes one fails.
    """
    table: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for spec in specs:
        if spec.name in table:
            raise InvalidArgument(f"[write_safetensors] tensor {spec.name!r} is given twice")
        end = offset + spec.nbytes
        table[spec.name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8 + slack)
    return len(text).to_bytes(8, "little") + text


def write_safetensors(
    path: str | os.PathLike[str],
    specs: Sequence[TensorSpec],
    *,
    data: Callable[[TensorSpec], Chunks],
    metadata: Mapping[str, str] | None = None,
    slack: int = 0,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Write the tensors to path and return the file's size in bytes.

    ``data(spec)`` yields the tensor's bytes in order, in pieces of any size. The file appears under
    its name only when it is whole: until then it is ``path + ".partial"``. ``progress(n)`` is
    called after each n bytes. Raises InvalidArgument when a tensor's bytes are more or fewer than
    its shape says, and OSError as the file system does.
    """
    target = Path(path)
    partial = target.with_name(target.name + PARTIAL_SUFFIX)
    header = safetensors_header(specs, metadata=metadata, slack=slack)
    with open(partial, "wb", buffering=0) as file:
        _write_all(file, header)
        for spec in specs:
            written = 0
            for chunk in data(spec):
                view = memoryview(chunk).cast("B")
                _write_all(file, view)
                written += len(view)
                if progress is not None:
                    progress(len(view))
            if written != spec.nbytes:
                raise InvalidArgument(
                    f"[write_safetensors] {spec.name}: expected {spec.nbytes} bytes for "
                    f"{list(spec.shape)} {spec.dtype}, found {written}"
                )
    os.replace(partial, target)
    return len(header) + sum(spec.nbytes for spec in specs)


def _write_all(file: Any, data: Any) -> None:
    """An unbuffered write may take only a part (2 GiB at most on Linux)."""
    view = memoryview(data)
    while len(view):
        view = view[file.write(view) :]
