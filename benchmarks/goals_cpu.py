"""Every goal of the CPU engine: one program that measures each, and the table of what was reached.

    python benchmarks/goals_cpu.py list
    python benchmarks/goals_cpu.py run CHECKPOINT WORK --peer-python PATH --json FILE
    python benchmarks/goals_cpu.py report FILE

CHECKPOINT and WORK as `peers_cpu.py prepare` had them. A piece (``--only``: some of them) is one
or two runs of ``gpt-oss-native bench`` or ``peers_cpu.py time``, of a minute or so each but "fill",
and appends to FILE; so it can be cut short and go on, and measured again: a figure is the median of
all runs in the file. Nothing else should run on the machine. The ratios to the peer are those of 10
layers, all else is measured with 24.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from goal_table import Goal, goal_rows
from gpt_oss_native.bench.lines import HEADING, Line, cells, read_lines, table
from peers.report import FIRST_TOKEN_GOALS, GIB, MEMORY_GOALS, pair_ratios, report
from peers.workers import PACKAGE, read_files

DEPTHS = (4096, 32_768)
HERE = Path(__file__).resolve().parent
FORMATS = ("int8", "bf16")
# Tokens of a run, by which lines of different pieces are told apart.
ALONE, AT_DEPTH, IN_BATCH, BY_LEVEL = 24, 16, 8, 12
BATCHES = (1, 2, 4, 8)
LEVELS = ("avx512", "avx2")

Commands = Callable[[argparse.Namespace], list[list[str]]]


def _bench(*options: str) -> Commands:
    """One run of ``gpt-oss-native bench`` on all layers."""
    program = [sys.executable, "-m", "gpt_oss_native", "bench", "--device", "cpu"]

    def commands(arguments: argparse.Namespace) -> list[list[str]]:
        states = arguments.work / "states"
        states.mkdir(parents=True, exist_ok=True)
        given = ["--model", str(arguments.checkpoint), "--json", str(arguments.json)]
        places = [str(states) if option == "STATES" else option for option in options]
        return [[*program, *given, *places]]

    return commands


def _decode(tokens: int, *options: str) -> Commands:
    return _bench("--prefill", "0", "--decode", str(tokens), *options)


def _peers(*options: str) -> Commands:
    """One run of ``peers_cpu.py time``."""

    def commands(arguments: argparse.Namespace) -> list[list[str]]:
        given = ["--peer-python", str(arguments.peer_python), "--json", str(arguments.json)]
        program = [sys.executable, str(HERE / "peers_cpu.py"), "time", str(arguments.work)]
        return [[*program, *given, *options]]

    return commands


def _whole(dense: str, *options: str) -> Commands:
    """The same of all layers, of the engine alone."""
    return _peers("--layers", "24", "--who", "engine", "--dense", dense, "--only", *options)


def _in_turn(*each: Commands) -> Commands:
    return lambda arguments: [command for one in each for command in one(arguments)]


def _words(numbers: Iterable[int]) -> list[str]:
    return [str(number) for number in numbers]


_AT_DEPTHS = ("--dense", "int8", "--states", "STATES", "--depth", *_words(DEPTHS))
PIECES: dict[str, Commands] = {
    **{
        f"decode-{dense}-{threads}": _decode(ALONE, "--dense", dense, "--threads", str(threads))
        for dense in FORMATS
        for threads in (1, 2)
    },
    **{
        f"batch-{dense}": _decode(IN_BATCH, "--dense", dense, "--batch", *_words(BATCHES))
        for dense in FORMATS
    },
    # Minutes, the first time.
    "fill": _decode(1, "--repeats", "1", *_AT_DEPTHS),
    "depth": _decode(AT_DEPTH, *_AT_DEPTHS, "0"),
    "levels": _in_turn(*(_decode(BY_LEVEL, "--dense", "int8", "--isa", isa) for isa in LEVELS)),
    "prefill": _bench(
        "--prefill", "512", "2048", "--decode", "0", "--dense", "int8", "--repeats", "1"
    ),
    "peers-1": _peers("--threads", "1", "--repeats", "2", "--only", "generate0"),
    "peers-2": _peers("--threads", "2", "--only", "generate0"),
    "peers-4096": _peers("--repeats", "2", "--only", "generate4096"),
    "peers-512": _peers("--repeats", "2", "--only", "prefill512"),
    "peers-2048": _peers("--repeats", "1", "--only", "prefill2048"),
    **{f"start-{dense}": _whole(dense, "first-token", "load", "idle") for dense in FORMATS},
    **{f"memory-{dense}": _whole(dense, "memory") for dense in FORMATS},
}


# --- goals ----------------------------------------------------------------------------------------


def _share(key: str, what: str, bound: float, of: str = "of read") -> Goal:
    return Goal(key, what, bound, scale=100, unit=f"% {of}")


def _ratio(key: str, what: str, bound: float, of: str) -> Goal:
    return Goal(key, what, bound, unit=f"x {of}")


GOALS = (
    *(
        _share(
            f"decode {dense} {threads}", f"generation, {dense} dense, {threads} thread{s}", bound
        )
        for dense in FORMATS
        for threads, s, bound in ((1, "", 0.9), (2, "s", 0.85))
    ),
    _ratio("peers generate 2", "generation, int8 dense, 2 threads", 1.5, "llama.cpp"),
    _ratio("peers prefill 512", "prefill of 512 tokens", 6.4, "llama.cpp"),
    _ratio("peers prefill 2048", "prefill of 2,048 tokens", 6.4, "llama.cpp"),
    _share("depth 4096", "generation at depth 4,096", 0.92, "of depth 0"),
    _share("depth 32768", "generation at depth 32,768", 0.85, "of its bytes"),
    *(
        Goal(f"first {dense}", f"process start to first token, {dense}", goal, False, unit="s")
        for dense, goal in FIRST_TOKEN_GOALS.items()
    ),
    *(
        Goal(f"memory {dense}", f"private memory, {dense}", goal, False, 1 / GIB, "GiB")
        for dense, goal in MEMORY_GOALS.items()
    ),
    *(
        _share(f"batch {dense} {batch}", f"batch of {batch}, {dense} dense", 0.85)
        for dense in FORMATS
        for batch in BATCHES[1:]
    ),
    _ratio("gain int8", "batch of 4, int8 dense", 1.6, "one"),
    _ratio("gain bf16", "batch of 4, bf16 dense", 1.9, "one"),
    _share("avx2", "generation, AVX2 forced", 0.7, "of AVX-512"),
    Goal("idle", "CPU time of an idle session in 5 s", 0.01, False, 1e3, "ms"),
)


def reached(lines: Sequence[Line]) -> dict[str, float]:
    """By the keys of `GOALS`, medians of all runs; what no line tells is left out."""
    return {key: statistics.median(values) for key, values in _figures(lines) if values}


def _figures(lines: Sequence[Line]) -> Iterator[tuple[str, list[float]]]:
    def decoded(op: str = "decode", **wanted: object) -> list[Line]:
        return [line for line in lines if line.op == op and line.extra.items() >= wanted.items()]

    def rates(found: Iterable[Line]) -> list[float]:
        return [line.extra["tokens_per_second"] for line in found]

    for dense in FORMATS:
        for threads in (1, 2):
            found = [x for x in decoded(tokens=ALONE, dense=dense) if x.threads == threads]
            yield f"decode {dense} {threads}", [x.extra["share"] for x in found]
        for batch in BATCHES[1:]:
            found = decoded(f"decode x {batch}", dense=dense)
            yield f"batch {dense} {batch}", [x.extra["share"] for x in found]
        one = decoded(tokens=IN_BATCH, dense=dense)
        four = decoded("decode x 4", dense=dense)
        yield f"gain {dense}", _over(rates(four), rates(one))
        first = decoded("first token", who="engine", layers=24, dense=dense)
        yield f"first {dense}", [x.median for x in first]
        held = decoded("memory at 4096", who="engine", layers=24, dense=dense)
        yield f"memory {dense}", [x.extra["private"] for x in held]
    base = decoded(tokens=AT_DEPTH, depth=1)
    low, high = (decoded(tokens=AT_DEPTH, depth=depth) for depth in DEPTHS)
    yield f"depth {DEPTHS[0]}", _over(rates(low), rates(base))
    moved = [[x.bytes_per_second or 0.0 for x in found] for found in (high, base)]
    yield f"depth {DEPTHS[1]}", _over(*moved)
    best, forced = ([x for x in decoded(tokens=BY_LEVEL) if x.engine == isa] for isa in LEVELS)
    yield "avx2", _over(rates(forced), rates(best))
    yield "idle", [x.extra["cpu_seconds"] for x in decoded("idle")]
    for key, op in (
        ("generate 2", "generate at 0"),
        ("prefill 512", "prefill 512"),
        ("prefill 2048", "prefill 2048"),
    ):
        pairs = zip(
            *(
                [x for x in decoded(op, who=who, layers=10) if x.threads == 2]
                for who in ("engine", "llama")
            ),
            strict=False,
        )
        yield f"peers {key}", [ratio for pair in pairs for ratio in pair_ratios(*pair)]


def _over(numerators: Iterable[float], denominators: Iterable[float]) -> list[float]:
    return [a / b for a, b in zip(numerators, denominators, strict=False)]


# --- the program ----------------------------------------------------------------------------------


def run(arguments: argparse.Namespace) -> int:
    """``run``: the pieces in turn; the exit code of the last that failed, or 0."""
    code = 0
    files = sorted(arguments.checkpoint.glob("*.safetensors"))
    for name in arguments.only:
        for command in PIECES[name](arguments):
            sys.stdout.write(f"\n== {name}\n")
            sys.stdout.flush()
            if "bench" in command:  # peers_cpu.py reads its own
                read_files(files)
            code = (
                subprocess.run(command, env={**os.environ, "PYTHONPATH": PACKAGE}).returncode
                or code
            )
    return code


_LINES_TEXT = "gpt-oss-native bench, 24 layers: a token's time; how many tokens, and after how many"


def show(arguments: argparse.Namespace) -> int:
    """``report``: the table of goals, then every line."""
    headers, lines = read_lines(arguments.file)
    texts = [*table(goal_rows(GOALS, reached(lines)), "<>><"), ""]
    texts += [report(headers, [line for line in lines if "who" in line.extra]), _LINES_TEXT, ""]
    rows: list[tuple[str, ...]] = [(*HEADING[0], "level", "threads")]
    rows += [
        (*cells(line), line.engine, str(line.threads)) for line in lines if "who" not in line.extra
    ]
    texts += table(rows, (*HEADING[1], "<", ">"))
    sys.stdout.write("\n".join(texts) + "\n")
    return 0


def main() -> int:
    """The program; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    listed = commands.add_parser("list")
    listed.set_defaults(run=lambda a: sys.stdout.write("\n".join(PIECES) + "\n") and 0)
    measured = commands.add_parser("run")
    measured.add_argument("checkpoint", type=Path)
    measured.add_argument("work", type=Path)
    measured.add_argument("--peer-python", type=Path, metavar="PATH", default=sys.executable)
    measured.add_argument(
        "--only", nargs="+", choices=PIECES, default=list(PIECES), metavar="PIECE"
    )
    measured.add_argument("--json", type=Path, required=True, metavar="FILE")
    measured.set_defaults(run=run)
    told = commands.add_parser("report")
    told.add_argument("file", type=Path)
    told.set_defaults(run=show)
    arguments = parser.parse_args()
    return int(arguments.run(arguments))


if __name__ == "__main__":
    raise SystemExit(main())
