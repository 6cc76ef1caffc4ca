"""The command line of microbenchmarks: ``gpt-oss-native bench --ops`` and benchmarks/bench_*.py."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import InvalidArgument
from .alone import BESIDE, alone
from .arguments import add_measuring_options, add_output_options
from .compare import compare, comparison_table
from .harness import Harness, Settings
from .lines import HEADING, Line, cells, read_lines, table, write_lines
from .machine import describe_machine
from .suite import SUITE

Write = Callable[[str], object]


def run_op(op: str, description: str | None) -> int:
    """The program benchmarks/bench_<op>.py: reads the command line, returns the exit code."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--isa", metavar="LEVEL", help="CPU instruction set")
    parser.add_argument("--threads", type=int, metavar="N", help="default: all")
    parser.add_argument("--repeats", type=int, default=15, metavar="N", help="default: 15")
    add_measuring_options(parser)
    add_output_options(parser)
    arguments = parser.parse_args()
    try:
        return run_ops([op], arguments, sys.stdout.write)
    except InvalidArgument as error:
        parser.error(str(error))


def run_ops(names: Sequence[str], arguments: argparse.Namespace, write: Write) -> int:
    """Measure the ops named (none: all) as `arguments` say, and write what comes of it.

    Raises InvalidArgument for an unknown op, or a filter that lets nothing through.
    """
    if arguments.compare:
        return write_comparison(arguments.compare, write)
    unknown = [name for name in names if name not in SUITE]
    if unknown:
        raise InvalidArgument(
            f"[bench] no op is called {unknown[0]!r}; there are {', '.join(SUITE)}"
        )
    cases = [case for name in names or SUITE for case in SUITE[name]()]
    cases = [case for case in cases if all(text in case.label for text in arguments.filter)]
    if not cases:
        raise InvalidArgument(f"[bench] no case has {' and '.join(arguments.filter)!r} in it")
    if arguments.list:
        for case in cases:
            write(f"{case.label}: {case.num_bytes:,.0f} bytes, {case.operations or 0:,} FLOP\n")
        return 0
    harness = Harness(
        Settings(
            device=arguments.device,
            isa=arguments.isa,
            threads=arguments.threads or 0,
            repeats=arguments.repeats,
            warm=arguments.warm,
            evict_bytes=None if arguments.evict_mb is None else arguments.evict_mb << 20,
        )
    )
    as_json = arguments.json == "-"
    with alone(sys.stderr.write, wait=not arguments.beside) as is_alone:
        lines = list(_shown(harness.run(cases), as_json, write))
        conditions = {**harness.conditions, "alone": is_alone}
    if not as_json:
        _write_table(lines, conditions, write)
    keep(lines, arguments, conditions)
    return 0


def _shown(lines: Iterable[Line], as_json: bool, write: Write) -> Iterable[Line]:
    """The lines, with a word on each while people wait for the table."""
    for line in lines:
        if as_json:
            write(line.json() + "\n")
        elif sys.stderr.isatty():
            sys.stderr.write(f"\r\033[K{line.op} {line.case}")
            sys.stderr.flush()
        yield line
    if not as_json and sys.stderr.isatty():
        sys.stderr.write("\r\033[K")


def _write_table(lines: Sequence[Line], conditions: dict[str, Any], write: Write) -> None:
    for text in heading(describe_machine(), conditions):
        write(text + "\n")
    rows = [HEADING[0], *(cells(line) for line in lines)]
    if not any(row[-1] for row in rows[1:]):  # nobody disturbed: no such column
        rows = [row[:-1] for row in rows]
    for text in table(rows, HEADING[1][: len(rows[0])]):
        write(text + "\n")


def keep(lines: Sequence[Line], arguments: argparse.Namespace, conditions: dict[str, Any]) -> None:
    """Append the lines to the file of ``--json``, draw that of ``--plot``."""
    machine = describe_machine()
    if arguments.json and arguments.json != "-":
        write_lines(Path(arguments.json), header(machine, conditions), lines)
    if arguments.plot:
        from .plot import plot

        plot(lines, arguments.plot, title=machine["cpu"])


def header(machine: dict[str, Any], conditions: dict[str, Any]) -> dict[str, Any]:
    """What opens the lines of a run in a file."""
    return {
        "machine": machine,
        "conditions": conditions,
        # Of places on this machine, the last name: files of results are passed on.
        "command": shlex.join(Path(a).name if a.startswith("/") else a for a in sys.argv),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def heading(machine: dict[str, Any], conditions: dict[str, Any]) -> list[str]:
    """The same for people."""
    swept = conditions.get("evict_bytes")
    texts = [
        f"{machine['cpu']}, {machine['cpus']} CPUs, {' '.join(machine['flags'])}; "
        f"{machine['memory_bytes'] / 1e9:.0f} GB; version {machine['version']} "
        f"{machine['commit']}".rstrip(),
        f"{conditions['engine']}, {conditions['threads']} threads"
        + (f", caches swept with {swept / 1e6:.0f} MB before each repeat" if swept else ""),
    ]
    if not conditions.get("alone", True):
        texts.append(BESIDE)
    peaks = conditions.get("peaks")
    if peaks:
        rates = ", ".join(f"{name} {rate / 1e9:,.0f}" for name, rate in peaks.items())
        texts.append(f"peaks in GFLOP/s: {rates}")
    return texts


def write_comparison(paths: Sequence[Path], write: Write) -> int:
    """The comparison of two files; the exit code."""
    runs = [read_lines(path) for path in paths]
    for name, path, (headers, _) in zip("AB", paths, runs, strict=True):
        commits = dict.fromkeys(str(h["machine"].get("commit") or "no commit") for h in headers)
        write(f"{name} = {path}, {', '.join(commits) or 'no commit'}\n")
    for text in comparison_table(compare(runs[0][1], runs[1][1])):
        write(text + "\n")
    return 0
