"""What tests of the command line share: running it, here or in a process of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import gpt_oss_native

PACKAGE_ROOT = str(Path(gpt_oss_native.__file__).parents[1])
NANO = ("--threads", "1", "--seed", "7", "-n", "24")

#: What the fixture ``run`` is.
Run = Callable[..., SimpleNamespace]


def command(*args: str) -> list[str]:
    """The command line that runs the program in a process of its own."""
    return [sys.executable, "-m", "gpt_oss_native", *args]


def environment(**variables: str) -> dict[str, str]:
    """Of such a process."""
    return {**os.environ, "PYTHONPATH": PACKAGE_ROOT, **variables}
