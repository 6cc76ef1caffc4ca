"""llama.cpp and this package on the same weights, in turn, in one run.

    python benchmarks/peers_cpu.py prepare CHECKPOINT WORK      # converts, checks that logits agree
    python benchmarks/peers_cpu.py time WORK --only prefill512 generate0 --threads 2 --json FILE
    python benchmarks/peers_cpu.py report FILE

CHECKPOINT is what ``gpt-oss-native synthesize --preset 20b`` wrote, WORK a directory with 25 GB
free. The peer's Python is ``--peer-python``, an environment with the dependency group "peers",
llama-cpp-python compiled there with CMAKE_ARGS=-DGGML_NATIVE=ON.

With 10 layers (20b shapes) both models are loaded, and each repeat measures the read bandwidth, the
engine and the peer, one after another. With 24 layers one of them runs at a time (``--who``): both
do not fit a machine of 24 GB. Files are read before anything is timed, and a line during which
pages came from the disk says so. A call takes one to two minutes; all append to one file.

ik_llama.cpp, the fastest engine known for this model on a CPU, is not on the package registry and
is not compared with.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from gpt_oss_native.bench.alone import alone
from gpt_oss_native.bench.lines import Line, read_lines, write_lines
from gpt_oss_native.bench.machine import OthersWatch, describe_machine
from gpt_oss_native.bench.run import header
from gpt_oss_native.synthesize import synthesize
from peers.agreement import Agreement, agreement
from peers.report import report
from peers.to_gguf import MISTAKES
from peers.workers import Worker, convert, peer_checkpoint, read_files

CONTEXT = 4096 + 1024
DEPTH = 4096
SMALL, WHOLE = 10, 24  # layers
VOCAB = 201_088
FIRST_PROMPT = 16
GENERATED = 32
IDLE_SECONDS = 5.0
_TOUCHING = 128  # tokens, which choose every expert of every layer


class Slice(ExitStack):
    """What one call of ``time`` measures, and the lines it makes. Closing it ends the processes."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__()
        self.work: Path = arguments.work
        self.layers: int = arguments.layers
        self.threads: int = arguments.threads
        self.dense: str = arguments.dense
        self.repeats: int = arguments.repeats
        self.who: list[str] = arguments.who
        self.python: str = arguments.peer_python
        self.tokens = np.random.default_rng(7).integers(0, VOCAB, CONTEXT).tolist()
        self.lines: list[Line] = []
        self._meter: Worker | None = None
        self._workers: list[Worker] = []
        self._engines: dict[str, str] = {}

    def path(self, who: str) -> Path:
        """What a contestant loads."""
        name = f"20b-{self.layers}"
        return self.work / (name if who == "engine" else f"{name}.gguf")

    def files(self, who: str) -> list[Path]:
        """The weights it reads."""
        path = self.path(who)
        return [path] if path.is_file() else sorted(path.glob("*.safetensors"))

    def state(self, worker: Worker) -> Path:
        """Where a contestant's 4,096 tokens are kept, so that a slice need not compute them."""
        return self.work / f"{worker.who}-{self.layers}-{self.dense}.state"

    def start(self, who: str) -> Worker:
        """A contestant's process, with nothing loaded."""
        return Worker(who, self.python if who == "llama" else sys.executable)

    def load(self, worker: Worker) -> dict[str, Any]:
        """Load its model."""
        options = {"dense": self.dense} if worker.who == "engine" else {}
        return worker.call(
            "load",
            path=str(self.path(worker.who)),
            threads=self.threads,
            context=CONTEXT,
            **options,
        )

    def add(self, op: str, worker: Worker, engine: str, seconds: list[float], **extra: Any) -> None:
        """A line: seconds of each repeat, or of each token in each repeat."""
        read = extra.pop("bandwidths", [])
        self.lines.append(
            Line(
                op=op,
                case=f"20b shapes, {self.layers} layers, {self.dense} dense",
                device="cpu",
                engine=f"{worker.who}: {engine}",
                threads=self.threads,
                warm=True,
                seconds=tuple(seconds),
                num_bytes=extra.pop("num_bytes", None),
                read_peak=statistics.median(read) if read else None,
                others=extra.pop("others", None),
                extra={"who": worker.who, "layers": self.layers, "dense": self.dense, **extra},
            )
        )

    # --- what can be measured ---------------------------------------------------------------------

    def prefill(self, count: int) -> None:
        """Prompts of so many tokens; seconds a token."""

        def run(worker: Worker) -> float:
            worker.call("reset")
            seconds: float = worker.call("prefill", tokens=self.tokens[:count])["seconds"]
            return seconds / count

        self._in_turn(f"prefill {count}", run)

    def generate(self, depth: int) -> None:
        """Greedy tokens one by one, after so many; seconds a token."""

        def fill(worker: Worker) -> None:
            worker.call("reset")
            if depth and self.state(worker).exists():
                worker.call("restore", path=str(self.state(worker)))
            elif depth:
                worker.call("prefill", tokens=self.tokens[:depth])
                worker.call("save", path=str(self.state(worker)))
            worker.call("generate", count=4, token=1)

        def run(worker: Worker) -> float:
            seconds: float = worker.call("generate", count=GENERATED, token=17)["seconds"]
            return seconds / GENERATED

        self._in_turn(f"generate at {depth}", run, warm_up=fill, position=depth + GENERATED)

    def _in_turn(
        self,
        op: str,
        run: Callable[[Worker], float],
        *,
        warm_up: Callable[[Worker], object] = lambda worker: None,
        position: int | None = None,
    ) -> None:
        """The bandwidth and every contestant, one after another, so many times."""
        meter, workers = self._contestants()
        for worker in workers:
            warm_up(worker)
        seconds: dict[str, list[float]] = {worker.who: [] for worker in workers}
        faults = {worker.who: -worker.use().major_faults for worker in workers}
        everyone = [meter, *workers]
        others = OthersWatch(lambda: sum(one.use().cpu_seconds for one in everyone))
        bandwidths = []
        for repeat in range(self.repeats):
            answer = meter.call("bandwidth", threads=self.threads)
            bandwidths.append(answer["bytes_per_second"])
            for worker in workers if repeat % 2 == 0 else reversed(workers):
                seconds[worker.who].append(run(worker))
        busy = others.cpus()
        for worker in workers:
            use = worker.use()
            num_bytes = None
            if worker.who == "engine" and position is not None:
                answer = worker.call("token_bytes", dense=self.dense, position=position)
                num_bytes = answer["bytes"]
            self.add(
                op,
                worker,
                self._engines[worker.who],
                seconds[worker.who],
                bandwidths=bandwidths,
                num_bytes=num_bytes,
                others=busy,
                private=use.private,
                file=use.file,
                major_faults=faults[worker.who] + use.major_faults,
            )

    def _contestants(self) -> tuple[Worker, list[Worker]]:
        """A process that measures the bandwidth, and those that run the model: loaded, every expert
        touched. Started once; the files are in the page cache each time."""
        if self._meter is None:
            self._meter = self.enter_context(self.start("engine"))
            for who in self.who:
                read_files(self.files(who))
                worker = self.enter_context(self.start(who))
                self._engines[who] = self.load(worker)["engine"]
                worker.call("prefill", tokens=self.tokens[-_TOUCHING:])
                self._workers.append(worker)
        for worker in self._workers:
            if worker.who == "engine":  # maps its file; llama.cpp has copied what it computes with
                read_files(self.files(worker.who))
        return self._meter, self._workers

    def load_times(self) -> None:
        """From the call to a model that is ready."""
        self._fresh("load", lambda worker, loaded: {"seconds": loaded["seconds"]})

    def first_token(self) -> None:
        """From starting the process to the first token after a prompt of 16."""

        def run(worker: Worker, loaded: dict[str, Any]) -> dict[str, float]:
            worker.call("prefill", tokens=self.tokens[:FIRST_PROMPT])
            return {"seconds": time.perf_counter() - worker.started}

        self._fresh("first token", run)

    def memory(self) -> None:
        """What a process holds after a prompt of 4,096 tokens; the seconds are the prompt's. Keeps
        the state for slices at that depth."""

        def run(worker: Worker, loaded: dict[str, Any]) -> dict[str, float]:
            seconds = worker.call("prefill", tokens=self.tokens[:DEPTH])["seconds"] / DEPTH
            worker.call("save", path=str(self.state(worker)))
            return {"seconds": seconds}

        self._fresh(f"memory at {DEPTH}", run, repeats=1)

    def idle(self) -> None:
        """CPU time of a session that nobody calls, right after a token; the seconds are those it
        waited."""

        def run(worker: Worker, loaded: dict[str, Any]) -> dict[str, float]:
            worker.call("generate", count=4, token=1)
            before = worker.use().cpu_seconds
            time.sleep(IDLE_SECONDS)
            return {"seconds": IDLE_SECONDS, "cpu_seconds": worker.use().cpu_seconds - before}

        self._fresh("idle", run, repeats=1)

    def _fresh(
        self,
        op: str,
        run: Callable[[Worker, dict[str, Any]], dict[str, float]],
        *,
        repeats: int | None = None,
    ) -> None:
        """Each contestant in fresh processes, its files in the page cache: what `run` found, and
        what the last process held."""
        for who in self.who:
            read_files(self.files(who))
            found = []
            for _ in range(repeats or self.repeats):
                with self.start(who) as worker:
                    loaded = self.load(worker)
                    found.append(run(worker, loaded))
                    use = worker.use()
            self.add(
                op,
                worker,
                loaded["engine"],
                [each["seconds"] for each in found],
                **{name: value for name, value in found[-1].items() if name != "seconds"},
                private=use.private,
                file=use.file,
                peak=use.peak,
                major_faults=use.major_faults,
            )


SLICES: dict[str, Callable[[Slice], None]] = {
    "prefill512": lambda s: s.prefill(512),
    "prefill2048": lambda s: s.prefill(2048),
    "generate0": lambda s: s.generate(0),
    "generate4096": lambda s: s.generate(DEPTH),
    "load": Slice.load_times,
    "first-token": Slice.first_token,
    "memory": Slice.memory,
    "idle": Slice.idle,
}


def time_slice(arguments: argparse.Namespace) -> int:
    """``time``; returns the exit code, 1 where pages came from the disk."""
    if arguments.layers == WHOLE and len(arguments.who) > 1:
        raise SystemExit("24 layers: one at a time, --who engine or --who llama")
    head = header(describe_machine(), {"engine": "", "threads": arguments.threads})
    faults = 0
    with alone(sys.stderr.write), Slice(arguments) as measured:
        for name in arguments.only:  # written as they come: a call may be cut short
            measured.lines.clear()
            SLICES[name](measured)
            write_lines(arguments.json, head, measured.lines)
            for line in measured.lines:
                faults += line.extra["major_faults"]
                sys.stdout.write(_words(line))
                sys.stdout.flush()
    return 1 if faults else 0


def _words(line: Line) -> str:
    rates = " ".join(f"{seconds:.4f}" for seconds in line.seconds)
    return (
        f"{line.op}, {line.threads} threads, {line.extra['who']}: median {line.median:.4f} s "
        f"({rates}), {1 / line.median:.1f}/s, {line.extra['major_faults']} major faults, "
        f"others {line.others or 0:.2f} CPUs, read {(line.read_peak or 0) / 1e9:.1f} GB/s\n"
    )


# --- preparing ------------------------------------------------------------------------------------


def prepare(arguments: argparse.Namespace) -> int:
    """``prepare``: convert, copy, and refuse to go on where the logits disagree."""
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    python = arguments.peer_python
    check_mistakes(python)
    for layers in (SMALL, WHOLE):
        peer_checkpoint(arguments.checkpoint, work / f"20b-{layers}", layers)
        out = work / f"20b-{layers}.gguf"
        if not out.exists():
            convert(arguments.checkpoint, out, layers=layers, python=python)
    tokens = np.random.default_rng(11).integers(0, VOCAB, arguments.check_tokens).tolist()
    small = _compare(work / f"20b-{SMALL}", work / f"20b-{SMALL}.gguf", tokens, python)
    sys.stdout.write(f"{SMALL} layers of 20b shapes: {small.text()}\n")
    if not small.holds:
        raise SystemExit("[peers] the peer runs other weights")
    return 0


def check_mistakes(python: str) -> None:
    """On a tiny model: the conversion agrees, and wrong ones do not."""
    tokens = np.random.default_rng(3).integers(0, 1000, 200).tolist()
    directory = Path(tempfile.mkdtemp(prefix="gpt-oss-peers-"))
    try:
        checkpoint = synthesize(directory / "tiny", preset="tiny", seed=3)
        layers = 4
        peer_checkpoint(checkpoint, directory / "engine", layers)
        for mistake in (None, *MISTAKES):
            gguf = directory / f"{mistake}.gguf"
            convert(checkpoint, gguf, layers=layers, python=python, mistake=mistake)
            found = _compare(directory / "engine", gguf, tokens, python)
            sys.stdout.write(f"tiny, {mistake or 'converted rightly'}: {found.text()}\n")
            if found.holds != (mistake is None):
                raise SystemExit("[peers] the check of the logits does not tell right from wrong")
    finally:
        shutil.rmtree(directory)


def _compare(checkpoint: Path, gguf: Path, tokens: list[int], python: str) -> Agreement:
    rows = []
    for options in ({"dense": "bf16", "precision": "float32"}, {"dense": "int8"}):
        with Worker("engine", sys.executable) as worker:
            worker.call("load", path=str(checkpoint), threads=2, context=1024, **options)
            rows.append(worker.logits(tokens))
    with Worker("llama", python) as worker:
        worker.call("load", path=str(gguf), threads=2, context=1024)
        rows.append(worker.logits(tokens))
    return agreement(*rows)


def arguments_parser() -> argparse.ArgumentParser:
    """Of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("prepare")
    command.add_argument("checkpoint", type=Path)
    command.add_argument("work", type=Path)
    command.add_argument("--check-tokens", type=int, default=24, metavar="N")
    command.set_defaults(run=prepare)
    timed = commands.add_parser("time")
    timed.add_argument("work", type=Path)
    timed.add_argument("--only", required=True, nargs="+", choices=SLICES)
    timed.add_argument("--threads", type=int, default=2)
    timed.add_argument("--layers", type=int, default=SMALL, choices=(SMALL, WHOLE))
    timed.add_argument("--dense", default="int8", choices=("int8", "bf16"))
    timed.add_argument("--who", nargs="+", default=["engine", "llama"], choices=("engine", "llama"))
    timed.add_argument("--repeats", type=int, default=3)
    timed.add_argument("--json", type=Path, required=True, metavar="FILE")
    timed.set_defaults(run=time_slice)
    for each in (command, timed):
        each.add_argument("--peer-python", required=True, metavar="PATH")
    told = commands.add_parser("report")
    told.add_argument("file", type=Path)
    told.set_defaults(run=lambda a: sys.stdout.write(report(*read_lines(a.file))) and 0)
    return parser


if __name__ == "__main__":
    chosen = arguments_parser().parse_args()
    raise SystemExit(chosen.run(chosen))
