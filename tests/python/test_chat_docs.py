"""The programs of the documentation run as they stand."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

pytest.importorskip("gpt_oss_native._core")

PAGE = Path(__file__).parents[2] / "docs" / "chat-and-tools.md"
PROGRAMS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_a_program_of_chat_and_tools_runs_as_it_stands(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = PROGRAMS[number]
    if "response_format" in program:
        pytest.importorskip("llguidance")
    monkeypatch.setenv("GPT_OSS_NATIVE_THREADS", "1")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(program, f"{PAGE.name}, program {number + 1}", "exec"), {"__name__": "docs"})
    assert out.getvalue().strip()


def test_the_page_has_programs() -> None:
    assert len(PROGRAMS) >= 6
