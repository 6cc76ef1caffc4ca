"""Goals of the CPU engine are measured by commands that exist, and read from what those wrote."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gpt_oss_native._core")

import goals_cpu
import peers_cpu
from goal_table import Goal, goal_rows
from gpt_oss_native import cli
from gpt_oss_native.bench.lines import Line


@pytest.fixture
def places(tmp_path: Path) -> argparse.Namespace:
    return argparse.Namespace(
        checkpoint=tmp_path, work=tmp_path, peer_python="python", json=tmp_path / "lines.json"
    )


@pytest.mark.parametrize("piece", goals_cpu.PIECES)
def test_every_piece_is_a_call_that_its_program_takes(
    piece: str, places: argparse.Namespace
) -> None:
    for _python, *words in goals_cpu.PIECES[piece](places):
        if "bench" in words:
            parsed = cli._parser().parse_args(words[words.index("bench") :])
        else:
            parsed = peers_cpu.arguments_parser().parse_args(words[words.index("time") :])
        assert Path(parsed.json) == places.json


def line(op: str, *, tokens: int, rate: float, threads: int = 2, **extra: Any) -> Line:
    isa = extra.pop("engine", "amx")
    return Line(
        op=op,
        case="20b",
        device="cpu",
        engine=isa,
        threads=threads,
        warm=True,
        seconds=(1 / rate,),
        num_bytes=extra.pop("num_bytes", None),
        extra={"tokens": tokens, "tokens_per_second": rate, **extra},
    )


def peer(who: str, op: str, *seconds: float, **extra: Any) -> Line:
    return Line(
        op=op,
        case="20b",
        device="cpu",
        engine=who,
        threads=2,
        warm=True,
        seconds=seconds,
        read_peak=4e10,
        extra={"who": who, "layers": 10, "dense": "int8", **extra},
    )


def test_shares_are_medians_of_the_runs_of_their_threads_and_weights() -> None:
    lines = [
        line("decode", tokens=goals_cpu.ALONE, rate=9, threads=t, dense=d, share=share)
        for t, d, share in [
            *((1, "int8", s) for s in (0.8, 0.9, 0.7)),
            (2, "int8", 0.5),
            (1, "bf16", 0.6),
        ]
    ]
    reached = goals_cpu.reached(lines)
    assert reached["decode int8 1"] == 0.8
    assert reached["decode int8 2"] == 0.5
    assert reached["decode bf16 1"] == 0.6
    assert "decode bf16 2" not in reached


def test_depths_levels_and_batches_are_ratios_of_one_piece() -> None:
    at_depth = {"tokens": goals_cpu.AT_DEPTH, "dense": "int8"}
    by_level = {"tokens": goals_cpu.BY_LEVEL, "dense": "int8"}
    reached = goals_cpu.reached(
        [
            line("decode", depth=4096, rate=9.5, num_bytes=1.1e9, **at_depth),
            line("decode", depth=32_768, rate=6, num_bytes=1.5e9, **at_depth),
            line("decode", depth=1, rate=10, num_bytes=1e9, **at_depth),
            line("decode", engine="avx512", rate=10, **by_level),
            line("decode", engine="avx2", rate=8, **by_level),
            line("decode", tokens=goals_cpu.IN_BATCH, rate=10, dense="int8"),
            line("decode x 4", tokens=4 * goals_cpu.IN_BATCH, rate=18, dense="int8", share=0.7),
        ]
    )
    assert reached["depth 4096"] == pytest.approx(0.95)
    assert reached["depth 32768"] == pytest.approx(0.9)
    assert reached["avx2"] == pytest.approx(0.8)
    assert reached["gain int8"] == pytest.approx(1.8)
    assert reached["batch int8 4"] == 0.7


def test_ratios_to_the_peer_are_those_of_pairs() -> None:
    reached = goals_cpu.reached(
        [
            peer("engine", "generate at 0", 0.1, 0.1),
            peer("llama", "generate at 0", 0.1, 0.3),
            peer("engine", "idle", 5.0, cpu_seconds=0.0),
        ]
    )
    assert reached["peers generate 2"] == pytest.approx(2)
    assert reached["idle"] == 0


def test_every_goal_has_a_figure_that_is_looked_for() -> None:
    keys = {key for key, _ in goals_cpu._figures([])}
    assert {goal.key for goal in goals_cpu.GOALS} == keys


def test_a_goal_that_nothing_measured_says_so() -> None:
    goals = [Goal("a", "speed", 0.5, scale=100, unit="%"), Goal("b", "time", 2, False, unit="s")]
    assert goal_rows(goals, {"a": 0.5})[1:] == [
        ["speed", ">= 50.0 %", "50.0 %", "met"],
        ["time", "<= 2.00 s", "not measured", ""],
    ]
    assert goal_rows(goals, {"b": 2.1})[2][-1] == "missed"
