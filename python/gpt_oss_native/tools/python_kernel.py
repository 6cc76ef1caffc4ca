"""What runs inside the process of the python tool: limits first, then an IPython kernel.

Started as a script, by path: ``python -P python_kernel.py OPTIONS CONNECTION_FILE``, with options
as JSON. It needs the standard library and ipykernel of its interpreter, nothing of this package.
Importing it does nothing.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource
import shutil
import signal
import socket
import struct
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_PR_SET_NO_NEW_PRIVS = 38
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1


def leave_network() -> str:
    """Moves this process into a network of its own that has only a loopback device.

    Returns "" when it is done, else why the system does not allow it. Must run while the process
    has one thread. The user stays who they are: the new user namespace maps only their own id.
    """
    user, group = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "unshare"):
        return "this system has no unshare"
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        return f"unshare: {os.strerror(ctypes.get_errno())}"
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        # Unmapped, the process is called nobody; what it may do does not change.
        with suppress(OSError):
            Path("/proc/self", name).write_text(text)
    _raise_loopback()
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return ""


def _raise_loopback() -> None:
    """Servers on 127.0.0.1 work within the process's own network; a comfort, so no error."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("16sh22x", b"lo", 0)  # a struct ifreq
        flags = struct.unpack_from("16sh", fcntl.ioctl(probe, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(probe, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", flags | _IFF_UP))


def end_with_parent(pipe: int, directory: Path) -> None:
    """Removes ``directory`` and ends this process and its children once the other end of ``pipe``
    is closed, however the parent came to its end. (PR_SET_PDEATHSIG would follow the thread that
    started us.)"""

    def wait() -> None:
        with suppress(OSError):
            while os.read(pipe, 1):
                pass
        shutil.rmtree(directory, ignore_errors=True)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def main(options: dict[str, Any], connection_file: str) -> None:
    """Applies the limits, writes what came of them beside the connection file, runs the kernel."""
    reason = "it was asked for" if options["network"] else leave_network()
    if options["memory_bytes"]:
        resource.setrlimit(resource.RLIMIT_AS, (options["memory_bytes"],) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    status = Path(connection_file).with_name("status.json")
    status.write_text(json.dumps({"network": reason}))
    end_with_parent(options["pipe"], status.parent)

    from ipykernel.kernelapp import IPKernelApp

    IPKernelApp.launch_instance(
        [
            "-f",
            connection_file,
            "--HistoryManager.enabled=False",
            "--InteractiveShell.colors=nocolor",
            "--IPKernelApp.log_level=CRITICAL",
        ]
    )


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2])
