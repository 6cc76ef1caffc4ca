"""The programs that users copy from run as they stand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gpt_oss_native._core")

import gpt_oss_native

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))


def output_of(*command: str) -> str:
    package_root = str(Path(gpt_oss_native.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": package_root, "GPT_OSS_NATIVE_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_runs_as_it_stands(example: str) -> None:
    assert output_of(f"examples/{example}").strip()


def test_the_model_benchmark_writes_lines_that_can_be_compared(tmp_path: Path) -> None:
    program = ("benchmarks/bench_model.py", "--repeats", "1", "--threads", "1")
    sizes = ("--prefill", "20", "--decode", "3", "--depth", "0", "10")
    text = output_of(*program, *sizes, "--json")
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["op"] for line in lines] == ["prefill", "prefill", "decode", "decode"]
    assert all(min(line["seconds"]) > 0 for line in lines)
    kept = tmp_path / "lines.json"
    assert "private memory" in output_of(*program, *sizes, "--json", str(kept))
    compared = output_of("benchmarks/bench_model.py", "--compare", str(kept), str(kept))
    assert compared.count("within noise") == 5  # each line, and their sum
