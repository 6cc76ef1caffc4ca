"""The tables of a file that ``peers_cpu.py time`` wrote."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from gpt_oss_native.bench.lines import Line, table

GIB = 1 << 30
# What the engine must reach with 20b weights: private bytes at 4,096 tokens, seconds to a token.
MEMORY_GOALS = {"bf16": 1.0 * GIB, "int8": 2.5 * GIB}
_SPEED_TEXT = (
    "Speed. The ratio is the median of the pairs of one run and their range; (apart): not measured",
    "in turn. Others: CPUs that other programs kept busy. Faults: pages that came from the disk.",
)
FIRST_TOKEN_GOALS = {"bf16": 1.5, "int8": 4.0}


def report(headers: Sequence[dict[str, Any]], lines: Sequence[Line]) -> str:
    """Text: the machine, speeds with ratios, then loading and memory beside the goals."""
    parts = list(_machine(headers))
    parts += ["", *_SPEED_TEXT, ""]
    parts += _block(_speed_rows(lines), "<>>>>>>>>>")
    parts += ["", "Process start to first token (16-token prompt), load, memory", ""]
    parts += _block(_other_rows(lines), "<<<>>>>>")
    return "\n".join(parts) + "\n"


def _block(rows: list[tuple[str, ...]], alignment: str) -> list[str]:
    return list(table(rows, alignment)) if len(rows) > 1 else ["nothing measured"]


def _machine(headers: Sequence[dict[str, Any]]) -> Iterator[str]:
    for machine in {str(h["machine"]["cpu"]): h["machine"] for h in headers}.values():
        yield (
            f"{machine['cpu']}, {machine['cpus']} CPUs, {machine['memory_bytes'] / 1e9:.0f} GB, "
            f"{machine['system']}; {' '.join(machine['flags'])}"
        )
    commits = dict.fromkeys(str(h["machine"]["commit"]) for h in headers)
    times = sorted(str(h["time"]) for h in headers)
    if times:
        yield f"commits {', '.join(commits)}; {times[0]} to {times[-1]}"


def _speed_rows(lines: Sequence[Line]) -> list[tuple[str, ...]]:
    heading = ("", "threads", "engine/s", "GB/s", "of read", "read GB/s", "llama.cpp/s", "ratio")
    rows: list[tuple[str, ...]] = [(*heading, "major faults", "others")]
    speeds = [line for line in lines if line.op.startswith(("prefill", "generate"))]
    keys = dict.fromkeys((line.case, line.op, line.threads) for line in speeds)
    for case, op, threads in keys:
        # The latest of each; where both stand side by side they were measured in turn.
        found = {
            line.extra["who"]: line
            for line in speeds
            if (line.case, line.op, line.threads) == (case, op, threads)
        }
        engine, llama = found.get("engine"), found.get("llama")
        rate = engine.bytes_per_second if engine else None
        reads = [line.read_peak for line in found.values() if line.read_peak]
        rows.append(
            (
                f"{op}, {case}",
                str(threads),
                f"{1 / engine.median:.1f}" if engine else "",
                f"{rate / 1e9:.1f}" if rate else "",
                f"{engine.read_share:.0%}" if engine and engine.read_share else "",
                f"{statistics.median(reads) / 1e9:.1f}" if reads else "",
                f"{1 / llama.median:.1f}" if llama else "",
                ratio_text(engine, llama) if engine and llama else "",
                str(sum(line.extra["major_faults"] for line in found.values())),
                f"{max(line.others or 0.0 for line in found.values()):.2f}",
            )
        )
    return rows


def pair_ratios(engine: Line, llama: Line) -> list[float]:
    """How many times faster the engine is, of each pair; none where they were not measured in
    turn."""
    in_turn = engine.read_peak == llama.read_peak and len(engine.seconds) == len(llama.seconds)
    if not in_turn:
        return []
    return [theirs / ours for ours, theirs in zip(engine.seconds, llama.seconds, strict=True)]


def ratio_text(engine: Line, llama: Line) -> str:
    """How many times faster the engine is: median of the pairs and their range where they were
    measured in turn, else of the medians."""
    pairs = pair_ratios(engine, llama)
    if not pairs:
        return f"{llama.median / engine.median:.2f} (apart)"
    return f"{statistics.median(pairs):.2f} ({min(pairs):.2f} to {max(pairs):.2f})"


def _other_rows(lines: Sequence[Line]) -> list[tuple[str, ...]]:
    heading = ("", "", "of", "threads", "seconds", "private GiB", "mapped GiB", "goal")
    rows: list[tuple[str, ...]] = [heading]
    chosen = ("load", "first token", "memory", "idle")
    latest = {line.key: line for line in lines if line.op.startswith(chosen)}
    for line in sorted(latest.values(), key=lambda each: (each.op, each.case, each.engine)):
        extra = line.extra
        rows.append(
            (
                line.op,
                extra["who"],
                line.case,
                str(line.threads),
                "" if line.op.startswith("memory") else f"{line.median:.2f}",
                f"{extra['private'] / GIB:.2f}" if "private" in extra else "",
                f"{extra['file'] / GIB:.2f}" if "file" in extra else "",
                _goal_text(line),
            )
        )
    return rows


def _goal_text(line: Line) -> str:
    """The goal and whether it is met; goals are the engine's, for all 24 layers."""
    extra = line.extra
    if extra["who"] != "engine" or extra["layers"] != 24:
        return ""
    if line.op.startswith("memory"):
        goal = MEMORY_GOALS[extra["dense"]]
        return f"{goal / GIB:g} GiB {'met' if extra['private'] <= goal else 'missed'}"
    if line.op == "first token":
        seconds = FIRST_TOKEN_GOALS[extra["dense"]]
        return f"{seconds:g} s {'met' if line.median <= seconds else 'missed'}"
    return ""
