"""``gpt-oss-native chat``: questions in, answers out, tools, files, Ctrl-C."""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("gpt_oss_native._core")

from gpt_oss_native import structured
from gpt_oss_native.cli.questions import questions
from reference.cli_support import NANO, Run, environment

LONG = (*NANO[:-1], "200", "--temperature", "0")


def test_chat_answers_one_question_and_exits(run: Run) -> None:
    result = run("chat", "--once", "What is 57 + 68?", *NANO)
    assert result.code == 0
    assert result.out.startswith(("[reasoning]\n", "[answer]\n"))
    assert "\x1b" not in result.out


def test_chat_hides_reasoning_and_labels_when_asked(run: Run) -> None:
    shown = run("generate", "--json", *NANO, "What is 57 + 68?")
    result = run("chat", "--hide-reasoning", "--once", "What is 57 + 68?", *NANO)
    assert result.out.strip() == json.loads(shown.out)["text"].strip()


def test_chat_reads_one_question_a_line(run: Run) -> None:
    result = run("chat", *NANO, stdin=b"1 + 2\n\n3 + 4\n")
    assert result.code == 0
    assert result.out.count("[answer]") + result.err.count("before an answer") >= 2


class _InterruptingOut(io.StringIO):
    """Raises KeyboardInterrupt once, as Ctrl-C during an answer does."""

    writes = 0

    def write(self, text: str) -> int:
        self.writes += 1
        if self.writes == 3:
            raise KeyboardInterrupt
        return super().write(text)


def test_ctrl_c_stops_the_answer_and_keeps_the_conversation(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = _InterruptingOut()
    monkeypatch.setattr(sys, "stdout", out)
    result = run("chat", *NANO, stdin=b"1 + 2\n3 + 4\n")
    assert result.code == 0
    stopped, _, second = out.getvalue().partition("(stopped)\n")
    assert second
    assert stopped


def test_an_interactive_chat_survives_ctrl_c_and_ends_with_ctrl_d(tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    controller, terminal = pty.openpty()
    # A session leader's first terminal becomes its controlling one, from which Ctrl-C comes.
    program = (
        "import os, sys; os.close(os.open(os.ttyname(0), os.O_RDWR)); "
        "from gpt_oss_native.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, "chat", *NANO],
        env=environment(XDG_STATE_HOME=str(tmp_path), TERM="xterm", NO_COLOR=""),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    seen = b""
    # Reasoning has "-> " in it. Python's line editing misses a signal that comes between its prompt
    # and its first wait, so Ctrl-C follows what was typed and echoed, as a person's would.
    for expected, keys in (
        (b"\n> ", b"1 + 2\n"),
        (b"\n> ", b"half a quest"),
        (b"half a quest", b"\x03"),
        (b"\n> ", b"3 + 4\n"),
        (b"\n> ", b"\x04"),
    ):
        while not seen.endswith(expected):
            assert select.select([controller], [], [], 60)[0], seen
            seen += os.read(controller, 4096)
        time.sleep(0.2)
        seen += b"|"
        os.write(controller, keys)
    with contextlib.suppress(OSError):  # the terminal is gone with the process
        while process.poll() is None and select.select([controller], [], [], 60)[0]:
            seen += os.read(controller, 4096)  # unread output can hold up the end of a process
    assert process.wait(timeout=60) == 0
    os.close(controller)
    assert b"tokens/s" in seen
    assert b"\x1b[2m" in seen
    assert b"rror" not in seen
    pytest.importorskip("readline")
    history = tmp_path / "gpt-oss-native" / "chat_history"
    assert "3 + 4" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


def asked(monkeypatch: pytest.MonkeyPatch, text: str) -> list[str]:
    """The questions that a piped input holds."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return list(questions(terminal=False))


def test_a_question_may_have_several_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(monkeypatch, "a\\\nb\\\n\nc\n") == ["a\nb\n", "c"]
    assert asked(monkeypatch, '"""one\n\n two\n"""\nnext\n') == ["one\n\n two", "next"]
    assert asked(monkeypatch, '"""in one line"""\n"""\n\n"""\nx"""y\n') == ["in one line", 'x"""y']
    assert asked(monkeypatch, '"""never\nended') == ["never\nended"]
    assert asked(monkeypatch, "at the end\\") == ["at the end"]


def write_tools(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A module of tools in the current folder."""
    (folder / f"{name}.py").write_text(
        "def calculator(expression: str) -> int:\n"
        '    """Evaluates an arithmetic expression."""\n'
        "    return eval(expression)\n"
        "def lookup(key: str) -> str:\n"
        '    """Looks up the value of a key."""\n'
        "    return {'sky': 'blue'}[key]\n"
        "both = [calculator, lookup]\n"
    )
    monkeypatch.chdir(folder)


def test_functions_of_a_module_are_tools(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tools(tmp_path, monkeypatch, "mytools_a")
    result = run("chat", "--tools", "mytools_a:calculator", "--once", "What is 57 * 68?", *LONG)
    assert result.code == 0
    assert '[call]\nfunctions.calculator {"expression":"57 * 68"}\n' in result.out
    assert result.out.endswith("[result]\n3876\n\n[answer]\n3876\n")
    result = run("chat", "--tools", "mytools_a:both", *LONG, stdin=b"Look up sky.\n2 + 3\n")
    assert "[result]\nblue\n\n[answer]\nblue\n" in result.out
    assert result.out.endswith("[answer]\n5\n")


@pytest.mark.parametrize("name", ["nothing", "mytools_b:absent", "mytools_absent:f", ":f", "json:"])
def test_a_function_that_is_not_there_is_a_mistake(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write_tools(tmp_path, monkeypatch, "mytools_b")
    result = run("chat", "--tools", name, "--once", "x", *NANO)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "--tools" in result.err


def test_built_in_tools_are_declared(run: Run, tmp_path: Path) -> None:
    (tmp_path / "page.txt").write_text("The sky is blue.")
    saved = tmp_path / "saved.json"
    options = ["--browser", str(tmp_path), "--apply-patch", str(tmp_path), "--save", str(saved)]
    if structured.is_available():
        options.append("--python")
    result = run("chat", *options, "--once", "What is 2 + 3?", *LONG)
    assert result.code == 0, result.err
    assert json.loads(saved.read_text())["messages"]
    result = run("chat", "--browser", str(tmp_path / "absent"), "--once", "x", *NANO)
    assert result.code == 1


def test_a_saved_conversation_is_taken_up_again(run: Run, tmp_path: Path) -> None:
    """The follow-up needs the answer of the first program."""
    path = tmp_path / "saved.json"
    result = run("chat", "--save", str(path), "--once", "What is 57 + 68?", *LONG)
    assert result.out.endswith("[answer]\n125\n")
    assert path.stat().st_mode & 0o077 == 0
    result = run("chat", "--resume", str(path), "--save", str(path), *LONG, stdin=b"Now add 5.\n")
    assert result.out.endswith("[answer]\n130\n")
    texts = [message["text"] for message in json.loads(path.read_text())["messages"]]
    assert texts[0] == "What is 57 + 68?"
    assert texts[-1] == "130"
    assert run("chat", "--resume", str(tmp_path / "absent"), "--once", "x", *NANO).code == 1
    path.write_text("{}")
    assert run("chat", "--resume", str(path), "--once", "x", *NANO).code == 2


def test_a_conversation_that_cannot_be_saved_goes_on(run: Run, tmp_path: Path) -> None:
    absent = str(tmp_path / "no such folder" / "saved.json")
    result = run("chat", "--save", absent, *LONG, stdin=b"1 + 2\n3 + 4\n")
    assert result.code == 0
    assert result.out.count("[answer]") == 2
    assert result.err.count("No such file") == 2


def test_the_system_prompt_and_the_effort_are_told(run: Run, tmp_path: Path) -> None:
    result = run("chat", "--system", "Be brief.", "-r", "low", "--once", "What is 57 + 68?", *LONG)
    assert result.out.endswith("[answer]\n125\n")
    longer = run("chat", "-r", "high", "--once", "What is 57 + 68?", *LONG)
    assert len(longer.out) > len(result.out)


def test_the_python_tool_without_its_extra_is_an_error_before_the_first_question(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel", None)  # as if it were not installed
    result = run("chat", "--python", "--once", "What is 2 + 2?")
    assert result.code == 2
    assert result.out == ""
    assert "expected ipykernel" in result.err
    assert "gpt-oss-native[python-tool]" in result.err
