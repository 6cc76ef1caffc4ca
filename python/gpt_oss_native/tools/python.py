"""The stateful ``python`` tool that the models were trained with."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
from collections.abc import Mapping
from typing import Final

from ..errors import InvalidArgument
from ..harmony import Author, Message, Role, ToolNamespaceConfig
from .output import CutOutput, plain
from .python_process import ProcessDied, ProcessOptions, PythonProcess

__all__ = ["PythonTool"]

_log = logging.getLogger(__name__)

_TRAINED_TIMEOUT: Final = "120.0 seconds"
_FENCED: Final = re.compile(r"\s*```[A-Za-z0-9]*\n(.*?)\n?```\s*", re.DOTALL)


class PythonTool:
    """Runs code in a Python process of its own, which keeps variables from call to call.

    What is kept apart, and what not:

    - Memory: ``RLIMIT_AS`` on the process (and on each it starts) makes large allocations fail
      with MemoryError. Time: code is interrupted at the time limit, variables are kept; if it does
      not stop, the process is ended and the next call starts a fresh one. Likewise after a crash.
    - Network: off where the system allows user namespaces (``unshare``), with a loopback of its
      own; Unix sockets in the file system stay in reach. `describe` says whether it is off, and
      why not where it is not, which is logged as a warning too.
    - Environment: only PATH, HOME and the like are passed on, no keys or tokens.
    - Files are **not** kept apart: code reads and writes whatever this user may. For code that
      you do not trust, run the whole program in a container or a virtual machine.

    The process ends with `close`, when the tool is collected, and when this program ends in
    whatever way; so do processes it started, unless they went into a session of their own.
    """

    name = "python"

    def __init__(
        self,
        *,
        timeout_s: float = 120.0,
        memory_bytes: int | None = 4 * 2**30,
        network: bool = False,
        max_output_chars: int = 20_000,
        working_directory: str | os.PathLike[str] | None = None,
        environment: Mapping[str, str] | None = None,
        python: str = sys.executable,
    ) -> None:
        """Starts nothing yet; the first call does.

        Args:
            timeout_s: most seconds of one call, from when the process answers.
            memory_bytes: most address space of the process; None: as much as there is.
            network: leave the network on.
            max_output_chars: longer results lose their middle, with a notice.
            working_directory: where code runs; default: a temporary directory, removed at the end.
            environment: more variables for the process.
            python: the interpreter; it needs ipykernel.

        Raises InvalidArgument for limits that are not positive.
        """
        limits = {"timeout_s": timeout_s, "max_output_chars": max_output_chars}
        if memory_bytes is not None:
            limits["memory_bytes"] = memory_bytes
        for name, value in limits.items():
            if not value > 0:
                raise InvalidArgument(f"[python tool] {name}: expected more than 0, got {value}")
        self._timeout_s = float(timeout_s)
        self._max_output_chars = max_output_chars
        self._options = ProcessOptions(
            python=python,
            memory_bytes=memory_bytes,
            network=network,
            working_directory=None if working_directory is None else os.fspath(working_directory),
            environment=dict(environment or {}),
        )
        self._process: PythonProcess | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def namespace(self) -> ToolNamespaceConfig:
        """The declaration of the training data, with this tool's time limit in it."""
        config = ToolNamespaceConfig.python()
        assert config.description is not None
        config.description = config.description.replace(
            _TRAINED_TIMEOUT, f"{self._timeout_s} seconds"
        )
        return config

    def describe(self) -> str:
        """What the running process is kept from, in a sentence for people. Starts the process."""
        with self._lock:
            reason = self._running().network
        network = f"on ({reason})" if reason else "off"
        memory = self._options.memory_bytes
        limit = "no memory limit" if memory is None else f"{memory / 2**30:g} GiB of memory"
        return (
            f"Python in its own process: network {network}, {limit}, {self._timeout_s:g} s a call; "
            "files are those of this user"
        )

    def call(self, message: Message) -> list[Message]:
        """Runs the message's content; one message from ``python`` to the assistant, in the
        channel of the call."""
        result = Message.from_author_and_content(
            Author(Role.TOOL, self.name), self.run(_code_of(message.text))
        ).with_recipient(Role.ASSISTANT.value)
        return [result if message.channel is None else result.with_channel(message.channel)]

    def run(self, code: str) -> str:
        """Runs code and returns what it printed, the value of its last line, its traceback, and
        notices in brackets of what else happened.

        Raises InvalidArgument without the extra, ProcessDied when no process can be started.
        """
        with self._lock:
            self._stop.clear()
            process = self._running()
            output = CutOutput(self._max_output_chars)
            notice = ""
            try:
                outcome = process.execute(
                    code, output.add, timeout_s=self._timeout_s, stop=self._stop
                )
                if outcome == "interrupted":
                    notice = f"[{self._interrupted()}; variables are kept]"
            except ProcessDied as error:
                self._process = None
                reason = str(error).removeprefix("[python] ")
                notice = f"[{reason}; variables are lost, the next call starts a fresh process]"
            except BaseException:
                # Ctrl-C in the caller: the code may still run, so nothing can be kept.
                self._end()
                raise
            finally:
                self._stop.clear()
        text = plain(output.text()).rstrip()
        return "\n".join(part for part in (text, notice) if part) or "[no output]"

    def interrupt(self) -> None:
        """Makes a running call return soon, from another thread; without one nothing happens."""
        self._stop.set()

    def restart(self) -> None:
        """Ends the process; the next call starts a fresh one. Waits for a running call."""
        with self._lock:
            self._end()

    def close(self) -> None:
        """Ends the process, interrupting a running call. A later call starts a fresh one."""
        self._stop.set()
        self.restart()

    def __enter__(self) -> PythonTool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _running(self) -> PythonProcess:
        if self._process is None or self._process.pid is None:
            self._process = PythonProcess(self._options)
            if self._process.network and not self._options.network:
                _log.warning("the python tool reaches the network: %s", self._process.network)
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.close()

    def _interrupted(self) -> str:
        if self._stop.is_set():
            return "interrupted"
        return f"timed out after {self._timeout_s:g} s and was interrupted"


def _code_of(content: str) -> str:
    """The code in a call: the content itself, or what a model wrapped around it."""
    if (fenced := _FENCED.fullmatch(content)) is not None:
        return fenced.group(1)
    if content.lstrip().startswith("{"):
        try:
            arguments = json.loads(content)
        except json.JSONDecodeError:
            return content
        if isinstance(arguments, dict) and len(arguments) == 1:
            (key, code), *_ = arguments.items()
            if key in ("code", "input", "source") and isinstance(code, str):
                return code
    return content
