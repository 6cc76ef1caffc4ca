"""Fuzzing of the checkpoint readers: ``python tests/fuzz_checkpoint.py --seconds 600``.

A valid little checkpoint is damaged, in its JSON's structure or in its bytes, and read. Whatever
the damage, the answer is a result or a CheckpointError or InvalidArgument: no other exception, no
case slower than SLOWEST_SECONDS, no growth of memory. Single safetensors files are also given to
the official library: what this reader accepts, that must accept, and what that accepts is refused
here only for the reasons that safetensors_reader.py names. The tests run the same cases for a few
seconds.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpt_oss_native.checkpoint import open_checkpoint
from gpt_oss_native.checkpoint.report import describe
from gpt_oss_native.checkpoint.safetensors_reader import read_header
from gpt_oss_native.errors import CheckpointError, InvalidArgument
from reference import checkpoints

SLOWEST_SECONDS = 5.0
MEMORY_GROWTH_BYTES = 500_000_000

# Values that have broken parsers before: wrong types, edges of integer and float ranges, odd text.
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, -0.0, 0.5, 4.0, 31, 32, 64, 127, 255, 2**24, 2**31, 2**32 + 1,
    2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, -(2**63), 1e-320, 1e308, 1e400,
    float("nan"), float("-inf"), "", "0", "U8", "BF16", "F4", "F8_E4M3FNUZ", "C128", "bf16", "yarn",
    "sliding_attention", "\x00", "\ud800", "é" * 50, "x" * 5000, "../up.safetensors", "/", "nan",
    [], {}, [0], [0, 0], [4, 2], [2**63, 2], [0, 2**63, 2**63], [[]], [None], {"a": {}}, [1] * 40,
    {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]},
)  # fmt: skip
ODD_TEXT = (
    b'"', b"{", b"}", b"[", b"]", b",", b":", b"-0", b"1e999", b"NaN", b"\x00", b"\xff",
    b"\xed\xa0\x80",
    b"\\ud800", b"\\u0000", b"\n", b" ", b"\xef\xbb\xbf", b"[" * 300, b'{"":' * 300, b"9" * 400,
    b"null", b"true", b'"a":1,', b"/**/", b"1_0", b"01", b"+1", b".5", b"Infinity",
)  # fmt: skip


def mutate_value(rng: random.Random, value: Any) -> Any:
    """`value`, a JSON tree, with one place in it changed."""
    value = copy.deepcopy(value)
    parent: Any = None
    key: Any = None
    node = value
    while isinstance(node, (dict, list)) and node and (parent is None or rng.random() < 0.8):
        parent = node
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        node = node[key]
    if parent is None:
        return rng.choice(ODD_VALUES)
    action = rng.randrange(6)
    if action == 0:
        del parent[key]
    elif action == 1 and isinstance(node, int) and not isinstance(node, bool):
        parent[key] = node + rng.choice((-64, -2, -1, 1, 2, 32, 2**20, 2**40))
    elif action == 2 and isinstance(parent, dict):
        parent[rng.choice(("extra", str(key) + "x", "__metadata__", ""))] = parent.pop(key)
    elif action == 3:
        others = list(parent.values()) if isinstance(parent, dict) else parent
        parent[key] = copy.deepcopy(rng.choice(others))
    elif action == 4 and isinstance(node, list):
        node.insert(rng.randrange(len(node) + 1), rng.choice(ODD_VALUES))
    else:
        parent[key] = copy.deepcopy(rng.choice(ODD_VALUES))
    return value


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """`data` with a few bytes changed, cut out, repeated or put in."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at, length = rng.randrange(len(out) + 1), rng.choice((1, 1, 2, 8, 64))
        action = rng.randrange(5)
        if action == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif action == 1:
            del out[at : at + length]
        elif action == 2:
            out[at:at] = rng.choice(ODD_TEXT)
        elif action == 3:
            out[at:at] = out[at : at + length]
        else:
            del out[at:]
    return bytes(out)


def mutate_json(rng: random.Random, value: Any) -> bytes:
    """The text of a changed JSON tree, now and then no longer JSON."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        value = mutate_value(rng, value)
    text = json.dumps(value).encode()
    if rng.random() < 0.3:
        text = mutate_bytes(rng, text)
    return text


def split_file(data: bytes) -> tuple[bytes, bytes]:
    """Header and data of the valid safetensors file `data`."""
    end = 8 + int.from_bytes(data[:8], "little")
    return data[8:end], data[end:]


def join_file(header: bytes, data: bytes, *, length: int | None = None) -> bytes:
    size = len(header) if length is None else length
    return size.to_bytes(8, "little") + header + data


def mutate_file(rng: random.Random, file: bytes) -> bytes:
    """A safetensors file with a damaged header, length or size; the data does not matter."""
    header, data = split_file(file)
    action = rng.randrange(5)
    if action == 0:
        lie = rng.choice(
            (0, 1, len(header) - 1, len(header) + 1, len(file), 10**8 + 1, 2**63, 2**64 - 1)
        )
        return join_file(header, data, length=lie)
    if action == 1:
        return mutate_bytes(rng, file)
    if action == 2:
        tail = rng.choice((data[:-1], data + b"\0", b"", data[: len(data) // 2]))
        return join_file(header, tail)
    return join_file(mutate_json(rng, json.loads(header)), data)


def small_files() -> list[bytes]:
    """Valid safetensors files of a few tensors: near enough to the edges to be pushed over."""
    files = []
    for table, size in (
        ({"a": ("U8", [4], 0, 4), "b": ("BF16", [2, 3], 4, 16), "c": ("F32", [], 16, 20)}, 20),
        ({"e": ("U8", [0], 0, 0), "a": ("F4", [2], 0, 1), "z": ("I64", [1, 0], 1, 1)}, 1),
        ({"m": ("F64", [1], 8, 16), "l": ("C64", [1], 0, 8), "k": ("F6_E2M3", [4], 16, 19)}, 19),
    ):
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        for name, (dtype, shape, begin, end) in table.items():
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        files.append(join_file(json.dumps(header).encode() + b"  ", bytes(size)))
    return files


def deliberately_refused(file: bytes) -> bool:
    """Whether the header of `file` is one that safetensors_reader.py says it alone refuses."""
    repeated = False

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal repeated
        repeated = repeated or len(dict(items)) != len(items)
        return dict(items)

    header, _ = split_file(file)
    table = json.loads(header.decode(), object_pairs_hook=pairs)
    if repeated or not header.startswith(b"{"):
        return True
    for name, entry in table.items():
        if name == "__metadata__":
            continue
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            return True
        shape = entry["shape"]
        if not isinstance(entry["dtype"], str) or len(shape) > 32:
            return True
        product = 1
        for size in shape:
            product *= size
            if max(size, product) >= 2**60:  # 2**63 bits
                return True
    return False


class Fuzzer:
    """Cases over one checkpoint in both layouts, drawn from one seed."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.directory = directory
        self.counts: Counter[str] = Counter()
        whole = checkpoints.random_checkpoint(seed % 1000, checkpoints.SHAPES["experts128"])
        self.trees: list[dict[str, bytes]] = []
        for shards in (1, 3):
            checkpoints.write_hugging_face(whole, directory / f"valid{shards}", shards=shards)
            self.trees.append(self._content(directory / f"valid{shards}"))
        checkpoints.write_original(whole, directory / "valid_original")
        self.trees.append(self._content(directory / "valid_original"))
        self.trees[0]["generation_config.json"] = b'{"eos_token_id": [1002, 7]}'
        self.files = small_files()

    @staticmethod
    def _content(directory: Path) -> dict[str, bytes]:
        """The files of a checkpoint by name."""
        return {path.name: path.read_bytes() for path in directory.iterdir()}

    def step(self) -> None:
        """One case; raises AssertionError when the contract is broken."""
        if self.rng.random() < 0.6:
            self.compare_file(mutate_file(self.rng, self.rng.choice(self.files)))
        else:
            self.open_tree()

    def compare_file(self, file: bytes) -> None:
        """Reads the single file `file` here and with the official library."""
        import safetensors

        path = self.directory / "case.safetensors"
        path.write_bytes(file)
        ours = self._guarded("file", lambda: read_header(path)[0])
        try:
            theirs = {
                name: (info["dtype"], tuple(info["shape"]), len(info["data"]))
                for name, info in safetensors.deserialize(file)
            }
        except safetensors.SafetensorError:
            theirs = None
        if ours is not None:
            found = {name: (r.dtype, r.shape, r.num_bytes) for name, r in ours.items()}
            assert found == theirs, f"accepted here, not there: {file[:400]!r}"
        elif theirs is not None:
            assert deliberately_refused(file), f"refused here, accepted there: {file[:400]!r}"
            self.counts["file: stricter"] += 1

    def open_tree(self) -> None:
        """Opens a checkpoint of which one file is damaged, missing, or something else."""
        tree = dict(self.rng.choice(self.trees))
        name = self.rng.choice(sorted(tree))
        action = self.rng.randrange(12)
        if action == 0:
            del tree[name]
        elif action == 1:
            tree[name] = tree[self.rng.choice(sorted(tree))]
        elif action == 2:
            tree[name.replace("0", "1", 1)] = tree.pop(name)
        elif name.endswith(".json"):
            tree[name] = mutate_json(self.rng, json.loads(tree[name]))
        else:
            tree[name] = mutate_file(self.rng, tree[name])
        target = self.directory / "case"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for file, content in tree.items():
            (target / file).write_bytes(content)
        self._guarded("tree", lambda: str(describe(open_checkpoint(target))))

    def _guarded(self, kind: str, read: Callable[[], Any]) -> Any:
        """What `read` returns, None when it refuses; every other exception passes."""
        start = time.perf_counter()
        result = None
        try:
            result = read()
        except (CheckpointError, InvalidArgument) as error:
            message = str(error)
            assert message.startswith("[load_checkpoint] "), message
            assert len(message) < 2000, f"message of {len(message)} characters"
            message.encode()  # printable everywhere: no lone surrogate taken from a file
        seconds = time.perf_counter() - start
        assert seconds < SLOWEST_SECONDS, f"one case took {seconds:.1f} s"
        self.counts[f"{kind}: {'refused' if result is None else 'read'}"] += 1
        return result


def peak_bytes() -> int:
    """The most memory this process has held so far; 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def run(directory: Path, *, seed: int, seconds: float) -> Counter[str]:
    """Runs cases for `seconds`; AssertionError or the stray exception says what broke."""
    fuzzer = Fuzzer(directory, seed)
    before, stop = peak_bytes(), time.monotonic() + seconds
    while time.monotonic() < stop:
        fuzzer.step()
    grown = peak_bytes() - before
    assert grown < MEMORY_GROWTH_BYTES, f"memory grew by {grown / 1e6:.0f} MB"
    return fuzzer.counts


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    logging.disable()
    directory = Path(tempfile.mkdtemp(prefix="fuzz_checkpoint_"))
    print(f"seed {options.seed}, {options.seconds:g} s; a failing case stays in {directory}")
    counts = run(directory, seed=options.seed, seconds=options.seconds)
    shutil.rmtree(directory)
    for kind, count in sorted(counts.items()):
        print(f"{count:9d}  {kind}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
