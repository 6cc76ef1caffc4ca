"""A Python process that keeps its state: an IPython kernel behind Unix sockets, with limits."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..errors import GptOssError, InvalidArgument
from .output import plain

_KERNEL: Final = Path(__file__).with_name("python_kernel.py")
_LONGEST_SOCKET_PATH: Final = 107
_POLL_S: Final = 0.1  # how late a death or an interruption may be seen
_AFTER_REPLY_S: Final = 1.0  # for output that is under way when the reply has come
_SIGNAL_EVERY_S: Final = 0.5
# Passed on to the code; everything else of our environment (keys, tokens) stays here.
_PASSED_ON: Final = ("PATH", "HOME", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "VIRTUAL_ENV")


@dataclass(frozen=True)
class ProcessOptions:
    """How the process is started; see `PythonTool`."""

    python: str = sys.executable
    memory_bytes: int | None = 4 * 2**30
    network: bool = False
    working_directory: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    start_timeout_s: float = 60.0
    grace_s: float = 5.0


class ProcessDied(GptOssError):  # noqa: N818
    """The process ended while code ran in it, or could not be started."""


@dataclass
class _Resources:
    """What has to be given back, whoever notices first."""

    directory: str
    owner: int  # a process forked from this one must not end what it did not start
    process: subprocess.Popen[bytes] | None = None
    pipe: int = -1
    client: Any = None

    def release(self) -> None:
        if os.getpid() != self.owner:
            return
        process, self.process = self.process, None
        if process is not None:
            _kill(process)
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1
        client, self.client = self.client, None
        if client is not None:
            client.stop_channels()
            client.context.destroy(linger=0)
        shutil.rmtree(self.directory, ignore_errors=True)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and what it started, unless that went into a session of its own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()
    process.wait()


class PythonProcess:
    """One started kernel. `execute` may be called by one thread at a time."""

    def __init__(self, options: ProcessOptions) -> None:
        """Starts the kernel and waits until it answers.

        Raises InvalidArgument without jupyter_client, ProcessDied when the kernel does not start.
        """
        try:
            import jupyter_client
        except ImportError as error:
            raise InvalidArgument(
                "[python tool] expected jupyter_client and ipykernel, found none; "
                "run pip install 'gpt-oss-native[python-tool]'"
            ) from error
        directory = tempfile.mkdtemp(prefix="gpt-oss-native-")
        self._resources = _Resources(directory, os.getpid())
        self._options = options
        self.network = ""  # why code may reach the network; empty when it may not
        self.close: Callable[[], object] = weakref.finalize(self, self._resources.release)
        try:
            self._start(jupyter_client, Path(directory))
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int | None:
        """The process's id; None once it was closed, and after a fork of the caller."""
        process = self._resources.process
        forked = os.getpid() != self._resources.owner
        return None if process is None or forked else process.pid

    def execute(
        self,
        code: str,
        write: Callable[[str], None],
        *,
        timeout_s: float,
        stop: threading.Event,
    ) -> str:
        """Runs code; passes each piece of output to ``write`` as it comes.

        After ``timeout_s`` seconds, or once ``stop`` is set, the code is interrupted. Returns
        "done" or "interrupted". Raises ProcessDied when the process ended, or had to be ended
        because it did not stop within the grace time.
        """
        client, process = self._resources.client, self._resources.process
        if process is None:
            raise ProcessDied("[python] the process was closed; call again to start another")
        request = client.execute(code, allow_stdin=False)
        deadline = time.monotonic() + timeout_s
        give_up = signal_at = replied_at = None
        while True:
            now = time.monotonic()
            if give_up is None and (stop.is_set() or now >= deadline):
                give_up, signal_at = now + self._options.grace_s, now
            if signal_at is not None and now >= signal_at:
                os.killpg(process.pid, signal.SIGINT)  # again and again: code may catch it
                signal_at = now + _SIGNAL_EVERY_S
            if give_up is not None and now >= give_up:
                self.close()
                raise ProcessDied("[python] the code did not stop when interrupted")
            if replied_at is None and _has_reply(client, request):
                replied_at = now
            idle = _read_output(client, request, write)
            if idle or (replied_at is not None and now > replied_at + _AFTER_REPLY_S):
                return "done" if give_up is None else "interrupted"
            if process.poll() is not None:
                while not _read_output(client, request, write, wait_s=0.2) and _more(client):
                    pass
                self.close()
                raise ProcessDied(f"[python] the process ended with {_how(process.returncode)}")

    def _start(self, jupyter_client: Any, directory: Path) -> None:
        sockets = directory / "kernel"
        if len(os.fsencode(sockets)) + 4 > _LONGEST_SOCKET_PATH:
            raise InvalidArgument(
                f"[python tool] expected a short directory for temporary files, got "
                f"{tempfile.gettempdir()!r}; set TMPDIR to one of less than 60 characters"
            )
        connection, _ = jupyter_client.write_connection_file(
            str(directory / "connection.json"), transport="ipc", ip=str(sockets)
        )
        work = self._options.working_directory
        if work is None:
            work = str(directory / "work")
            os.mkdir(work)
        ours_end = self._spawn(connection, directory, work)
        client = jupyter_client.BlockingKernelClient()
        self._resources.pipe = ours_end
        self._resources.client = client
        client.load_connection_file(connection)
        client.start_channels(hb=False, stdin=False, control=False)
        self._wait_until_ready(client, directory)
        self.network = json.loads((directory / "status.json").read_text())["network"]

    def _spawn(self, connection: str, directory: Path, work: str) -> int:
        """Starts the process; returns our end of the pipe that tells it we are there."""
        theirs, ours = os.pipe()
        try:
            arguments = {
                "network": self._options.network,
                "memory_bytes": self._options.memory_bytes,
                "pipe": theirs,
            }
            with open(directory / "log", "wb") as log:
                self._resources.process = subprocess.Popen(
                    [self._options.python, "-P", str(_KERNEL), json.dumps(arguments), connection],
                    cwd=work,
                    env=self._environment(directory),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    pass_fds=(theirs,),
                    start_new_session=True,
                )
        except OSError as error:
            os.close(ours)
            raise ProcessDied(
                f"[python] {self._options.python} in {work} could not be started: {error.strerror}"
            ) from error
        finally:
            os.close(theirs)
        return ours

    def _environment(self, directory: Path) -> dict[str, str]:
        passed = {
            name: value
            for name, value in os.environ.items()
            if name in _PASSED_ON or name.startswith("LC_")
        }
        own = {
            "IPYTHONDIR": str(directory / "ipython"),
            "JUPYTER_RUNTIME_DIR": str(directory),
            "JUPYTER_PLATFORM_DIRS": "1",
            "MPLCONFIGDIR": str(directory / "matplotlib"),
            "MALLOC_ARENA_MAX": "2",  # each arena reserves address space, which is limited
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            "PYTHONUNBUFFERED": "1",
        }
        return {**passed, **own, **self._options.environment}

    def _wait_until_ready(self, client: Any, directory: Path) -> None:
        process = self._resources.process
        assert process is not None
        deadline = time.monotonic() + self._options.start_timeout_s
        while time.monotonic() < deadline and process.poll() is None:
            try:
                client.wait_for_ready(timeout=1)
                return
            except RuntimeError:  # nobody answered yet
                continue
        log = (directory / "log").read_text(errors="replace").strip()
        raise ProcessDied(
            f"[python] the kernel did not start in {self._options.start_timeout_s:g} s; is "
            f"ipykernel installed for {self._options.python}, and is the memory limit large "
            f"enough? Its last words: {log[-500:] or 'none'}"
        )


def _has_reply(client: Any, request: str) -> bool:
    try:
        message = client.get_shell_msg(timeout=0)
    except queue.Empty:
        return False
    return bool(message["parent_header"].get("msg_id") == request)


def _more(client: Any) -> bool:
    return bool(client.iopub_channel.msg_ready())


def _read_output(
    client: Any, request: str, write: Callable[[str], None], *, wait_s: float = _POLL_S
) -> bool:
    """Waits for one message of output and writes it; True when it says that the code is done."""
    try:
        message = client.get_iopub_msg(timeout=wait_s)
    except queue.Empty:
        return False
    if message["parent_header"].get("msg_id") != request:
        return False
    kind, content = message["msg_type"], message["content"]
    if kind == "stream":
        write(content["text"])
    elif kind in ("execute_result", "display_data"):
        data = content["data"]
        write(data.get("text/plain") or f"[{', '.join(data)} is not shown]")
        write("\n")
    elif kind == "error":
        write(plain("\n".join(content["traceback"])) + "\n")
    return bool(kind == "status" and content["execution_state"] == "idle")


def _how(returncode: int) -> str:
    if returncode >= 0:
        return f"exit code {returncode}"
    try:
        return f"signal {signal.Signals(-returncode).name}"
    except ValueError:
        return f"signal {-returncode}"
