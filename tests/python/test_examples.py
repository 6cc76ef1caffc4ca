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


def test_the_model_benchmark_writes_lines_that_serve_as_its_baseline(tmp_path: Path) -> None:
    program = ("benchmarks/bench_model.py", "--repeats", "1", "--threads", "1")
    sizes = ("--prefill", "20", "--decode", "3", "--depth", "0", "10")
    text = output_of(*program, *sizes, "--json")
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["op"] for line in lines] == ["prefill", "prefill", "decode", "decode"]
    assert all(line["seconds"] > 0 for line in lines)
    baseline = tmp_path / "lines.jsonl"
    baseline.write_text(text)
    compared = output_of(*program, *sizes, "--baseline", str(baseline), "--filter", "decode")
    assert compared.count("x baseline") == 2
    assert "GB/s" in compared
