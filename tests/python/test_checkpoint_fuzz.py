"""Damaged checkpoints: a corpus of known traps, a few seconds of fuzzing, and the official library.

``python tests/fuzz_checkpoint.py --seconds 600`` runs the same for longer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fuzz_checkpoint
import numpy as np
import pytest
from gpt_oss_native.checkpoint.safetensors_reader import DTYPE_BITS, parse_header, read_header
from gpt_oss_native.errors import CheckpointError
from hypothesis import given, settings
from hypothesis import strategies as st

safetensors = pytest.importorskip("safetensors")

GOOD = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
INNER = '"dtype":"U8","shape":[4],"data_offsets":[0,4]'


def changed(**changes: Any) -> str:
    return json.dumps({"a": GOOD | changes})


# Header, bytes of data, and whether both readers take it ("yes", "no") or ours alone refuses
# ("strict").
CORPUS: list[tuple[str | bytes, int, str]] = [
    ("{}", 0, "yes"),
    (changed(), 4, "yes"),
    (changed() + " \n\t\r", 4, "yes"),
    (" " + changed(), 4, "strict"),
    ("\ufeff" + changed(), 4, "no"),
    (changed() + "\0", 4, "no"),
    (changed() + "{}", 4, "no"),
    ("", 0, "no"),
    ("null", 0, "no"),
    ("[]", 0, "no"),
    ("{" * 100_000, 0, "no"),
    (changed(), 3, "no"),
    (changed(), 5, "no"),
    (changed(data_offsets=[1, 5]), 5, "no"),
    (changed(data_offsets=[4, 0], shape=[0]), 4, "no"),
    (changed(data_offsets=[0, 4, 4]), 4, "no"),
    (changed(data_offsets=[0]), 4, "no"),
    (changed(data_offsets=[0, 2**64]), 4, "no"),
    (changed(data_offsets=[-4, 0]), 4, "no"),
    (changed(data_offsets=[0.0, 4]), 4, "no"),
    (changed(shape=[5]), 4, "no"),
    (changed(shape=[-4]), 4, "no"),
    (changed(shape=[True, 4]), 4, "no"),
    (changed(shape=[4.0]), 4, "no"),
    (changed(shape=4), 4, "no"),
    (changed(shape=[2**63, 2, 0], data_offsets=[0, 0]), 0, "no"),
    (changed(shape=[2**63, 0], data_offsets=[0, 0]), 0, "strict"),
    (changed(shape=[1] * 33, data_offsets=[0, 1]), 1, "strict"),
    (changed(shape=[1] * 32, data_offsets=[0, 1]), 1, "yes"),
    (changed(shape=[0], data_offsets=[0, 0]), 0, "yes"),
    (changed(shape=[], data_offsets=[0, 1]), 1, "yes"),
    (changed(dtype="F4", shape=[2], data_offsets=[0, 1]), 1, "yes"),
    (changed(dtype="F4", shape=[3], data_offsets=[0, 2]), 2, "no"),
    (changed(dtype="F4", shape=[3], data_offsets=[0, 1]), 1, "no"),
    (changed(dtype="u8"), 4, "no"),
    (changed(dtype="C128"), 4, "no"),
    (changed(dtype=None), 4, "no"),
    (changed(dtype={"U8": None}), 4, "strict"),
    (changed(more=1), 4, "strict"),
    (json.dumps({"a": ["U8", [4], [0, 4]]}), 4, "strict"),
    (json.dumps({"a": GOOD, "b": GOOD}), 4, "no"),
    (json.dumps({"a": GOOD, "b": GOOD | {"data_offsets": [2, 6]}}), 6, "no"),
    (json.dumps({"a": GOOD, "b": GOOD | {"data_offsets": [5, 9]}}), 9, "no"),
    (json.dumps({"b": GOOD | {"data_offsets": [4, 8]}, "a": GOOD}), 8, "yes"),
    (json.dumps({"": GOOD}), 4, "yes"),
    (json.dumps({"__metadata__": {"a": "b"}, "a": GOOD}), 4, "yes"),
    (json.dumps({"__metadata__": None, "a": GOOD}), 4, "yes"),
    (json.dumps({"__metadata__": {"a": 1}, "a": GOOD}), 4, "no"),
    (json.dumps({"__metadata__": GOOD}), 4, "no"),
    (f'{{"a":{{{INNER}}},"a":{{{INNER}}}}}', 4, "strict"),
    (f'{{"a":{{{INNER}}},"\\u0061":{{{INNER}}}}}', 4, "strict"),
    (f'{{"a":{{"dtype":"U8",{INNER}}}}}', 4, "no"),
    (f'{{"__metadata__":{{}},"__metadata__":{{}},"a":{{{INNER}}}}}', 4, "no"),
    (f'{{"\\ud800":{{{INNER}}}}}', 4, "no"),
    (f'{{"a\nb":{{{INNER}}}}}', 4, "no"),
    (b'{"\xff":{' + INNER.encode() + b"}}", 4, "no"),
    ('{"a":{"dtype":"U8","shape":[4],"data_offsets":[-0,4]}}', 4, "no"),
    ('{"a":{"dtype":"U8","shape":[04],"data_offsets":[0,4]}}', 4, "no"),
    ('{"a":{"dtype":"U8","shape":[4e0],"data_offsets":[0,4]}}', 4, "no"),
    ('{"a":{"dtype":"U8","shape":[' + "9" * 5000 + '],"data_offsets":[0,4]}}', 4, "no"),
    ('{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,4]}}', 4, "no"),
]  # fmt: skip


def accepted(file: bytes, path: Path) -> tuple[bool, bool]:
    """Whether this reader and the official one take `file`."""
    path.write_bytes(file)
    try:
        read_header(path)
        ours = True
    except CheckpointError:
        ours = False
    try:
        safetensors.deserialize(file)
        return ours, True
    except safetensors.SafetensorError:
        return ours, False


@pytest.mark.parametrize(("header", "size", "verdict"), CORPUS, ids=map(str, range(len(CORPUS))))
def test_known_traps_are_decided_as_by_the_official_library(
    header: str | bytes, size: int, verdict: str, tmp_path: Path
) -> None:
    text = header if isinstance(header, bytes) else header.encode()
    file = fuzz_checkpoint.join_file(text, bytes(size))
    expected = {"yes": (True, True), "no": (False, False), "strict": (False, True)}[verdict]
    assert accepted(file, tmp_path / "one.safetensors") == expected
    if verdict == "strict":
        assert fuzz_checkpoint.deliberately_refused(file)


DTYPE_NAMES = sorted(DTYPE_BITS)


@given(
    table=st.dictionaries(
        st.text(max_size=6).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(DTYPE_NAMES), st.lists(st.integers(0, 9), max_size=4)),
        max_size=6,
    ),
    padding=st.integers(0, 9),
)
@settings(max_examples=100, deadline=None)
def test_valid_files_are_read_as_by_the_official_library(
    table: dict[str, tuple[str, list[int]]], padding: int
) -> None:
    header, position = {}, 0
    for name, (dtype, shape) in table.items():
        bits = int(np.prod(shape, dtype=np.int64)) * DTYPE_BITS[dtype]
        if bits % 8:
            dtype, bits = "U8", bits // DTYPE_BITS[dtype] * 8
        end = position + bits // 8
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode() + b" " * padding
    file = fuzz_checkpoint.join_file(text, bytes(position))
    theirs = {name: info for name, info in safetensors.deserialize(file)}
    ours = parse_header(text, len(file), source="file")
    assert ours.keys() == theirs.keys()
    for name, record in ours.items():
        info = theirs[name]
        assert (record.dtype, list(record.shape)) == (info["dtype"], info["shape"])
        assert record.num_bytes == len(info["data"])


def test_no_damage_brings_anything_but_a_clear_error(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    seed = int(rng.integers(2**32))
    counts = fuzz_checkpoint.run(tmp_path, seed=seed, seconds=8.0)
    # The cases must reach both sides of every reader, or they test nothing.
    assert all(counts[kind] for kind in ("file: read", "file: refused", "tree: read")), counts
    assert counts["tree: refused"], counts
