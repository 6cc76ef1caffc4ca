"""One benchmark at a time: two on one machine would measure each other."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

BESIDE = "another benchmark ran beside this one"
_NAME = "gpt-oss-native-bench.lock"
_WAITING = "another benchmark runs on this machine: waiting for its end (--beside would not wait)\n"


@contextlib.contextmanager
def alone(
    say: Callable[[str], object], *, wait: bool = True, directory: Path | None = None
) -> Iterator[bool]:
    """Holds the machine's benchmark lock, and gives whether this benchmark is alone.

    Where another holds it, says so and waits for its end, or with ``wait=False`` goes on beside it
    and gives False. The lock is a file in ``directory``, by default that of temporary files, which
    the system gives free when a process ends, however it ends. Where files cannot be locked, nobody
    is known to run beside.
    """
    file = _open(directory or Path(tempfile.gettempdir()))
    if file is None:
        yield True
        return
    try:
        is_alone = _lock(file, wait=False)
        if not is_alone and wait:
            say(_WAITING)
            is_alone = _lock(file, wait=True)
        yield is_alone
    finally:
        os.close(file)


def _open(directory: Path) -> int | None:
    path = directory / _NAME
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
    for more in (0, os.O_CREAT):  # another user's file may be opened, not made
        with contextlib.suppress(OSError):
            return os.open(path, flags | more, 0o644)
    return None


def _lock(file: int, *, wait: bool) -> bool:
    """Whether the lock is held now; true, too, where the system has no such locks."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
