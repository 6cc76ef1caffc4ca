"""Benchmarks on one machine take turns, or say that they did not."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("gpt_oss_native._core")
pytest.importorskip("fcntl")

from gpt_oss_native.bench.alone import BESIDE, alone
from gpt_oss_native.bench.run import heading

MACHINE = {"cpu": "x", "cpus": 2, "flags": ["fma"], "memory_bytes": 8e9, "version": "1"} | {
    "commit": "abc"
}


def test_a_second_benchmark_waits_for_the_first_and_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    waiting, measured = threading.Event(), threading.Event()

    def say(text: str) -> None:
        said.append(text)
        waiting.set()

    def second() -> None:
        with alone(say, directory=tmp_path) as is_alone:
            assert is_alone
            measured.set()

    with alone(said.append, directory=tmp_path) as is_alone:
        assert is_alone
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(30)
        assert not measured.is_set()
    thread.join(30)
    assert measured.is_set()
    assert len(said) == 1
    assert "waiting" in said[0]


def test_one_that_does_not_wait_knows_that_it_is_not_alone(tmp_path: Path) -> None:
    said: list[str] = []
    with alone(said.append, directory=tmp_path, wait=False) as first:
        with alone(said.append, directory=tmp_path, wait=False) as second:
            assert (first, second) == (True, False)
        with alone(said.append, directory=tmp_path, wait=False) as third:
            assert not third  # the second's end gave nothing free
    with alone(said.append, directory=tmp_path, wait=False) as last:
        assert last
    assert said == []


def test_a_process_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, time\n"
        "from gpt_oss_native.bench.alone import alone\n"
        "with alone(print, directory=pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True); time.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with alone(print, directory=tmp_path, wait=False) as is_alone:
        assert not is_alone
    process.kill()
    process.wait()
    process.stdout.close()
    with alone(print, directory=tmp_path, wait=False) as is_alone:
        assert is_alone


def test_where_nothing_can_be_locked_nobody_is_beside(tmp_path: Path) -> None:
    with alone(print, directory=tmp_path / "none") as is_alone:
        assert is_alone


def test_the_head_of_a_table_says_that_another_ran_beside() -> None:
    conditions = {"engine": "avx2", "threads": 2}
    assert BESIDE not in heading(MACHINE, conditions | {"alone": True})
    assert BESIDE in heading(MACHINE, conditions | {"alone": False})
