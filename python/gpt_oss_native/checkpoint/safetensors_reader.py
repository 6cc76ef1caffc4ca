"""The header of a safetensors file, checked as strictly as the format is written.

Format (huggingface/safetensors, README "Format"): 8 bytes little-endian header length n; n bytes of
JSON, beginning with ``{``, perhaps padded with spaces; then the data, which the tensors' byte
ranges must cover from first to last without holes or overlaps. Whatever is accepted here is
accepted by the reference library. On five points this reader is stricter, because a file like that
comes from no writer: repeated keys, bytes before ``{``, fields other than the three, more than 32
dimensions, and sizes of 2**63 and more.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ..errors import CheckpointError
from .strict_json import open_regular, parse_json_object, read_exactly, shorten

MAX_HEADER_BYTES = 100_000_000  # the reference library's own limit
MAX_DIMENSIONS = 32
MAX_BYTES = 2**63 - 1
LENGTH_BYTES = 8

#: Bits an element, for every dtype of the format.
DTYPE_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}

_FIELDS = {"dtype", "shape", "data_offsets"}
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """One tensor: bytes `begin` to `end` (absolute) of ``files[file]``, row-major `shape` of
    `dtype`.

    `dtype` is the format's own spelling ("BF16", "U8"). Nothing about alignment is promised.
    """

    name: str
    file: int
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.begin


def read_header(path: Path, *, file: int = 0) -> tuple[dict[str, TensorRecord], int]:
    """Reads and checks the header of the safetensors file at `path`; the data is not touched.

    Result: the records by name, in the order of their bytes, and the file's size in bytes.
    Raises CheckpointError, naming the file, on anything that breaks the format.
    """
    with open_regular(path) as (stream, size):
        start = read_exactly(stream, min(size, len(_LFS_POINTER)), path)
        length = _header_length(start, size, path)
        already = start[LENGTH_BYTES : LENGTH_BYTES + length]
        header = already + read_exactly(stream, length - len(already), path)
    return parse_header(header, size, source=str(path), file=file), size


def _header_length(start: bytes, size: int, path: Path) -> int:
    if start == _LFS_POINTER:
        _fail(path, "expected tensors, found a Git LFS pointer; run `git lfs pull` to get the file")
    if size < LENGTH_BYTES:
        _fail(path, f"expected a safetensors file, found {size} bytes; is the download complete?")
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        _fail(
            path,
            f"expected a header of at most {MAX_HEADER_BYTES} bytes, found a length of {length}; "
            "is this a safetensors file?",
        )
    if length > size - LENGTH_BYTES:
        _fail(
            path,
            f"expected {length} bytes of header, the file has {size - LENGTH_BYTES} after its "
            "length; is the download complete?",
        )
    return length


def parse_header(
    header: bytes, file_size: int, *, source: str, file: int = 0
) -> dict[str, TensorRecord]:
    """Checks the JSON `header` of a file of `file_size` bytes; `source` names the file in errors.

    Result: the records by name, in the order of their bytes. Raises CheckpointError.
    """
    if not header.startswith(b"{"):
        _fail(source, f"expected a header that begins with '{{', found {shorten(header[:16])}")
    entries = parse_json_object(header, f"{source}: header")
    _check_metadata(entries.pop("__metadata__", None), source)
    base = LENGTH_BYTES + len(header)
    records = [_record(name, entry, base, file, source) for name, entry in entries.items()]
    records.sort(key=lambda record: (record.begin, record.end))
    _check_coverage(records, base, file_size, source)
    return {record.name: record for record in records}


def _check_metadata(metadata: object, source: str) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        _fail(source, "header: __metadata__ must be an object of strings")


def _record(name: str, entry: Any, base: int, file: int, source: str) -> TensorRecord:
    label = f"tensor {shorten(name)}"
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        _fail(source, f"{label}: expected dtype, shape and data_offsets, found {shorten(entry)}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        _fail(source, f"{label}: expected a dtype of the format, found {shorten(dtype)}")
    if not _sizes(shape) or len(shape) > MAX_DIMENSIONS:
        _fail(
            source,
            f"{label}: shape must be at most {MAX_DIMENSIONS} sizes, found {shorten(shape)}",
        )
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _fail(source, f"{label}: data_offsets must be [begin, end], found {shorten(offsets)}")
    num_bytes = _tensor_bytes(dtype, shape)
    begin, end = offsets
    if num_bytes is None or num_bytes != end - begin:
        _fail(
            source,
            f"{label}: {dtype} of shape {shape} takes "
            f"{'too many' if num_bytes is None else num_bytes} bytes, its offsets {offsets} span "
            f"{end - begin}",
        )
    return TensorRecord(name, file, dtype, tuple(shape), base + begin, base + end)


def _sizes(value: object) -> bool:
    # type(), not isinstance(): JSON's true is an int to Python.
    return isinstance(value, list) and all(type(v) is int and 0 <= v <= MAX_BYTES for v in value)


def _tensor_bytes(dtype: str, shape: list[int]) -> int | None:
    """Bytes of a tensor, or None when they are not whole or a product on the way is too large."""
    elements = 1
    for size in shape:
        elements *= size
        if elements > MAX_BYTES:
            return None
    bits = elements * DTYPE_BITS[dtype]
    return None if bits % 8 or bits > MAX_BYTES else bits // 8


def _check_coverage(records: list[TensorRecord], base: int, file_size: int, source: str) -> None:
    position = base
    for record in records:
        if record.begin != position:
            what = "overlaps the one before" if record.begin < position else "leaves a hole before"
            _fail(
                source,
                f"tensor {shorten(record.name)}: expected to begin at byte {position}, begins at "
                f"{record.begin}, which {what}; the file is damaged",
            )
        position = record.end
    if position > file_size:
        _fail(
            source,
            f"tensors end at byte {position}, the file ends at {file_size}; "
            "is the download complete?",
        )
    if position < file_size:
        _fail(source, f"tensors end at byte {position}, the file goes on to {file_size}")


def _fail(source: object, message: str) -> NoReturn:
    raise CheckpointError(f"[load_checkpoint] {source}: {message}")
