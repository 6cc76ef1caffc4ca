"""The python tool: state, output, limits, interruption, restart, and nothing left behind."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import gpt_oss_native
import pytest
from gpt_oss_native import InvalidArgument
from gpt_oss_native.harmony import Author, Message, Role, ToolNamespaceConfig
from gpt_oss_native.tools import PythonTool, Tool, python_kernel
from gpt_oss_native.tools.output import CutOutput, plain
from gpt_oss_native.tools.python import _code_of
from gpt_oss_native.tools.python_process import ProcessOptions, PythonProcess

ABSENT = [
    name for name in ("jupyter_client", "ipykernel") if importlib.util.find_spec(name) is None
]
needs_kernel = pytest.mark.skipif(
    bool(ABSENT), reason=f"the extra python-tool is not installed: no {', '.join(ABSENT)}"
)
PACKAGE_PATH = str(Path(gpt_oss_native.__file__).parents[1])


@pytest.fixture(scope="module")
def tool() -> Iterator[PythonTool]:
    """One tool for the module, since a kernel takes a second to start."""
    with PythonTool(timeout_s=60, memory_bytes=2**30, max_output_chars=2000) as tool:
        yield tool


def gone(pid: int) -> bool:
    """Whether a process has ended, within some seconds; a zombie has."""
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_the_declaration_is_the_trained_one_with_the_real_time_limit() -> None:
    assert isinstance(PythonTool(), Tool)
    assert PythonTool().namespace() == ToolNamespaceConfig.python()
    described = PythonTool(timeout_s=30).namespace().description or ""
    assert "time out after 30.0 seconds" in described


def test_making_a_tool_starts_nothing_and_checks_limits() -> None:
    PythonTool().close()
    for wrong in ({"timeout_s": 0}, {"memory_bytes": -1}, {"max_output_chars": 0}):
        with pytest.raises(InvalidArgument, match="expected more than 0"):
            PythonTool(**wrong)  # type: ignore[arg-type]


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jupyter_client", None)
    with pytest.raises(InvalidArgument, match=r"gpt-oss-native\[python-tool\]"):
        PythonTool().run("1")


@needs_kernel
def test_a_call_answers_the_assistant_in_its_channel_and_keeps_variables(tool: PythonTool) -> None:
    call = Message.from_role_and_content(Role.ASSISTANT, "x = 40\nprint('é', x)\nx + 2")
    call.with_recipient("python").with_channel("analysis")
    (result,) = tool.call(call)
    assert result.author == Author(Role.TOOL, "python")
    assert (result.recipient, result.channel) == ("assistant", "analysis")
    assert result.text == "é 40\n42"
    assert tool.run("x") == "40"
    assert tool.run("y = 1") == "[no output]"


@needs_kernel
def test_errors_and_the_output_of_children_are_plain_text(tool: PythonTool) -> None:
    text = tool.run("print('before')\n1/0")
    assert text.startswith("before\n")
    assert text.endswith("ZeroDivisionError: division by zero")
    assert "\x1b" not in text
    assert "SyntaxError" in tool.run("def (")
    assert "from a child" in tool.run("import os; _ = os.system('echo from a child')")
    assert "input" in tool.run("input()")
    assert tool.run("for i in range(9): print(i, end='\\r')") == "8"


@needs_kernel
def test_long_output_loses_its_middle_with_a_notice(tool: PythonTool) -> None:
    text = tool.run("print('a' * 10_000 + 'b' * 10_000)")
    assert text.startswith("a" * 1000 + "\n[... 18001 characters of output left out ...]\nb")
    assert text.endswith("b" * 999)


@needs_kernel
def test_memory_is_limited_and_state_outlives_the_error(tool: PythonTool) -> None:
    tool.run("kept = 1")
    assert tool.run("too_much = bytearray(2**31)").endswith("\nMemoryError:")
    assert tool.run("kept") == "1"


@needs_kernel
def test_keys_in_the_environment_are_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "secret")
    with PythonTool(environment={"GIVEN": "yes"}) as tool:
        code = "import os; print(os.environ.get('SOME_API_KEY'), os.environ.get('GIVEN'))"
        assert tool.run(code) == "None yes"
        directory = tool.run("print(os.getcwd())")
        assert os.path.isdir(directory)
    assert not os.path.exists(directory)


@needs_kernel
def test_code_is_interrupted_at_the_time_limit_and_variables_stay() -> None:
    with PythonTool(timeout_s=0.5) as tool:
        tool.run("x = 7")
        text = tool.run("import time\nprint('waiting')\ntime.sleep(600)")
        assert text.startswith("waiting\n")
        assert text.endswith("[timed out after 0.5 s and was interrupted; variables are kept]")
        flood = tool.run("while True: print('z' * 1000)")
        assert flood.endswith("variables are kept]")
        assert len(flood) < 21_000
        assert tool.run("x") == "7"


@needs_kernel
def test_code_that_ignores_interruption_is_ended_and_the_next_call_starts_afresh() -> None:
    stubborn = "import time\nwhile True:\n  try: time.sleep(9)\n  except BaseException: pass"
    process = PythonProcess(ProcessOptions(grace_s=0.3))
    pid = process.pid
    assert pid is not None
    tool = PythonTool(timeout_s=0.3)
    tool._process = process
    text = tool.run(stubborn)
    assert "did not stop when interrupted; variables are lost" in text
    assert gone(pid)
    assert tool.run("6 * 7") == "42"
    tool.close()


@needs_kernel
def test_a_call_can_be_interrupted_from_another_thread(tool: PythonTool) -> None:
    tool.interrupt()  # nothing runs: nothing happens
    assert tool.run("1") == "1"
    timer = threading.Timer(0.5, tool.interrupt)
    timer.start()
    assert tool.run("import time\ntime.sleep(600)").endswith("[interrupted; variables are kept]")
    timer.join()
    assert tool.run("2") == "2"


@needs_kernel
def test_a_dead_process_is_reported_and_replaced(tool: PythonTool) -> None:
    text = tool.run("import os\nprint('last words', flush=True)\nx = 5\nos._exit(3)")
    assert text.endswith(
        "[the process ended with exit code 3; variables are lost, the next call starts a fresh "
        "process]"
    )
    assert "NameError" in tool.run("x")
    assert "signal SIGKILL" in tool.run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert tool.run("1 + 1") == "2"
    # It may also die between two calls.
    process = tool._process
    assert process is not None
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    assert "signal SIGKILL" in tool.run("1")
    tool.restart()
    assert tool.run("3") == "3"


@needs_kernel
def test_the_network_is_off_or_the_description_says_why_not(tool: PythonTool) -> None:
    described = tool.describe()
    inside = tool.run("import os; print(os.readlink('/proc/self/ns/net'))")
    if "network off" not in described:
        assert "network on (unshare: " in described
        pytest.skip(f"this system has no network namespaces for users: {described}")
    assert os.readlink("/proc/self/ns/net") not in inside
    loopback = """
        import socket
        server = socket.create_server(("127.0.0.1", 0))
        print(socket.create_connection(server.getsockname()).getpeername()[0])
        try:
            socket.create_connection(("192.0.2.1", 80), timeout=5)
        except OSError as error:
            print(error.strerror)
    """
    assert tool.run(textwrap.dedent(loopback)) == "127.0.0.1\nNetwork is unreachable"


def test_where_namespaces_are_refused_the_reason_is_named() -> None:
    # The kernel refuses a new user namespace to a process of several threads.
    program = """
        import threading, time
        from gpt_oss_native.tools.python_kernel import leave_network
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        print(leave_network())
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=os.environ | {"PYTHONPATH": PACKAGE_PATH},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.startswith(("unshare: ", "this system has no unshare"))
    assert python_kernel.__name__ != "__main__"  # importing it started nothing


@needs_kernel
@pytest.mark.parametrize("end", ["", "os.kill(os.getpid(), 9)", "os._exit(0)"])
def test_the_process_and_its_children_end_with_the_program_however_it_ends(
    end: str,
) -> None:
    directory = tempfile.mkdtemp()  # shorter than pytest's, as paths of sockets must be
    program = f"""
        import os
        from gpt_oss_native.tools import PythonTool
        tool = PythonTool()
        child = "import os, subprocess; child = subprocess.Popen(['sleep', '600'])"
        print(tool.run(child + "; print(os.getpid(), child.pid)"), flush=True)
        if os.fork() == 0:
            raise SystemExit  # a fork that ends does not end what it did not start
        os.wait()
        print(tool.run("'still here'"), flush=True)
        {end}
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=os.environ | {"PYTHONPATH": PACKAGE_PATH, "TMPDIR": directory},
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    pids, still = run.stdout.splitlines()
    assert still == "'still here'"
    for pid in pids.split():
        assert gone(int(pid))
    assert os.listdir(directory) == []
    os.rmdir(directory)


@needs_kernel
def test_a_kernel_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(gpt_oss_native.GptOssError, match="the kernel did not start"):
        PythonTool(memory_bytes=2**20).run("1")
    with pytest.raises(gpt_oss_native.GptOssError, match="could not be started"):
        PythonTool(python=str(tmp_path / "nothing")).run("1")


def test_wrapped_code_is_unwrapped_and_dictionaries_are_left_alone() -> None:
    assert _code_of('{"code": "print(1)"}') == "print(1)"
    assert _code_of("```python\nprint(1)\n```") == "print(1)"
    for code in ('{"a": 1}', '{"code": 1}', "{x for x in y}", "print('```')", ""):
        assert _code_of(code) == code


def test_output_is_cut_to_the_limit_whatever_the_pieces() -> None:
    text = "".join(chr(97 + at % 26) for at in range(1000))
    for limit in (1, 2, 7, 100, 999, 1000, 1001):
        for piece in (1, 3, 1000):
            output = CutOutput(limit)
            for at in range(0, len(text), piece):
                output.add(text[at : at + piece])
            if limit >= len(text):
                assert output.text() == text
                continue
            head, tail = text[: limit - limit // 2], text[len(text) - limit // 2 :]
            notice = f"\n[... {1000 - limit} characters of output left out ...]\n"
            assert output.text() == head + notice + tail


def test_terminal_codes_and_overwritten_lines_are_removed() -> None:
    assert plain("\x1b[31mred\x1b[0m\r\n\x1b]0;title\x07x") == "red\nx"
    assert plain("10%\r50%\r100%\ndone\r") == "100%\ndone\r"
