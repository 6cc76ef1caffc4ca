"""The README's program runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("gpt_oss_native._core", reason="the compiled core is not installed")

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_program_of_the_readme_runs_and_answers(capsys: pytest.CaptureFixture[str]) -> None:
    programs = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert programs
    for program in programs:
        exec(compile(program, str(README), "exec"), {})
    printed = capsys.readouterr().out
    answer = "".join(re.findall(r"^final '(.*)'$", printed, re.MULTILINE))
    assert answer == "125"
