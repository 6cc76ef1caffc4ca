"""What is written to a terminal, and what to a file."""

from __future__ import annotations

import io

import pytest
from gpt_oss_native.chat import Delta, ToolCall
from gpt_oss_native.cli.terminal import AnswerPrinter, Progress, has_colour, table


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_reasoning_is_dimmed_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def printed(out: io.StringIO, *, show_reasoning: bool = True) -> str:
        printer = AnswerPrinter(out, show_reasoning=show_reasoning)
        printer.show(Delta("analysis", "a\x1b[31m"))
        printer.show(Delta("final", "b"))
        printer.show(ToolCall("functions.f", "{}"))
        printer.end()
        printer.end()
        return out.getvalue()

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    labelled = "[reasoning]\na{}\n\n[answer]\nb\n\n[call]\nfunctions.f {{}}\n"
    dimmed = "\x1b[2ma\ufffd[31m\x1b[0m\n\nb\x1b[0m\n\n\x1b[2m[call]\nfunctions.f {}\x1b[0m\n"
    assert printed(Terminal()) == dimmed
    assert printed(io.StringIO()) == labelled.format("\x1b[31m")  # a file gets what was written
    assert printed(io.StringIO(), show_reasoning=False) == "b\n\n[call]\nfunctions.f {}\n"
    monkeypatch.setenv("NO_COLOR", "1")
    assert printed(Terminal()) == labelled.format("\ufffd[31m")
    assert not has_colour(Terminal())


def test_progress_is_shown_on_terminals_only() -> None:
    for out, shown in ((Terminal(), True), (io.StringIO(), False)):
        progress = Progress(out, interval_s=0)
        progress(1, 2)
        progress(2, 2)
        progress.close()
        assert ("100%" in out.getvalue()) == shown
        assert not shown or out.getvalue().endswith(" \r")


def test_tables_are_aligned() -> None:
    assert (
        table([["", "n"], ["long", "1"], ["x", "22"]], indent="") == "       n\nlong   1\nx     22"
    )
