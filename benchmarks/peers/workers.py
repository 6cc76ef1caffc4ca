"""The two contestants as child processes, and the files they read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gpt_oss_native
import numpy as np
import numpy.typing as npt
from gpt_oss_native.bench.process import ProcessUse, process_use
from gpt_oss_native.checkpoint import Checkpoint, open_checkpoint
from gpt_oss_native.checkpoint.safetensors_writer import TensorSpec, write_safetensors

HERE = Path(__file__).resolve().parent
PACKAGE = str(Path(gpt_oss_native.__file__).absolute().parents[1])  # not where a link leads
_CHUNK = 1 << 24
PROGRAMS = {"engine": "engine_worker.py", "llama": "llama_worker.py"}


class Worker:
    """One contestant, "engine" or "llama", in a process of its own."""

    def __init__(self, who: str, python: str) -> None:
        self.who = who
        self.started = time.perf_counter()
        package = PACKAGE if who == "engine" else ""
        self._process = subprocess.Popen(
            [python, str(HERE / PROGRAMS[who])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": package},
            text=True,
        )

    def call(self, name: str, **arguments: Any) -> dict[str, Any]:
        """One request and its answer. Raises RuntimeError with the contestant's own words."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"call": name, **arguments}) + "\n")
        self._process.stdin.flush()
        text = self._process.stdout.readline()
        if not text:
            raise RuntimeError(f"[peers] {self.who} ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(text)
        if "error" in answer:
            raise RuntimeError(f"[peers] {self.who}: {answer['error']}")
        return answer

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits [tokens][vocab]."""
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "logits.npy"
            self.call("logits", tokens=list(tokens), out=str(path))
            rows: npt.NDArray[np.float32] = np.load(path)
            return rows

    def use(self) -> ProcessUse:
        """What it holds now."""
        memory = process_use(self._process.pid)
        if memory is None:
            raise RuntimeError("[peers] the system does not tell what a process holds")
        return memory

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()


def peer_checkpoint(checkpoint: Path, target: Path, layers: int) -> None:
    """A checkpoint of the first layers: its weights are links where that is all of them, else
    copies.

    Its rotary table has the ramp's limits rounded, as llama.cpp has: the published model does not,
    and at position 1,000 that alone would turn some pairs by 0.2 radians.
    """
    target.mkdir(parents=True, exist_ok=True)
    config = json.loads((checkpoint / "config.json").read_text())
    is_whole = config["num_hidden_layers"] == layers
    config["num_hidden_layers"] = layers
    config["layer_types"] = config["layer_types"][:layers]
    config["rope_scaling"]["truncate"] = True
    if not is_whole and not (target / "model.safetensors").exists():
        _copy_layers(open_checkpoint(checkpoint), target / "model.safetensors", layers)
    for path in checkpoint.iterdir():
        link = target / path.name
        if is_whole and path.name.startswith("model") and not link.exists():
            link.symlink_to(path.resolve())
    (target / "config.json").write_text(json.dumps(config, indent=2))


def _copy_layers(checkpoint: Checkpoint, out: Path, layers: int) -> None:
    wanted = [
        record
        for record in checkpoint.tensors.values()
        if not record.name.startswith("model.layers.") or int(record.name.split(".")[2]) < layers
    ]

    def data(spec: TensorSpec) -> Iterator[Any]:
        record = checkpoint.tensors[spec.name]
        path = checkpoint.files[record.file]
        for begin in range(record.begin, record.end, _CHUNK):
            count = min(_CHUNK, record.end - begin)
            yield np.fromfile(path, np.uint8, count, offset=begin)

    specs = [TensorSpec(record.name, record.dtype, record.shape) for record in wanted]
    write_safetensors(out, specs, data=data, metadata={"format": "pt"})


def convert(
    checkpoint: Path, out: Path, *, layers: int, python: str, mistake: str | None = None
) -> None:
    """The checkpoint as GGUF; done in the peer's environment, which has the library."""
    command = [python, str(HERE / "to_gguf.py"), str(checkpoint), str(out), "--layers", str(layers)]
    if mistake is not None:
        command += ["--mistake", mistake]
    subprocess.run(
        command, check=True, env={**os.environ, "PYTHONPATH": PACKAGE}, stdout=sys.stderr
    )


def read_files(paths: Sequence[Path]) -> None:
    """Read files whole, so that they lie in the page cache."""
    buffer = bytearray(1 << 24)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
