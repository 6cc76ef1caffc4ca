"""What a process holds in memory, as Linux counts it."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ProcessMemory:
    """Bytes. ``private``: anonymous, this process's alone; ``file``: mapped files that are in the
    page cache, which the system takes back when it needs to; ``peak``: most of both at once.

    ``major_faults`` counts pages that were read from the disk.
    """

    private: int
    file: int
    peak: int
    major_faults: int


def process_memory() -> ProcessMemory | None:
    """Of this process; None where the system does not tell (proc(5): RssAnon, RssFile, VmHWM)."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return None
    values = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)

    def size(name: str) -> int:
        return int(values[name].split()[0]) << 10

    try:
        return ProcessMemory(
            private=size("RssAnon"),
            file=size("RssFile"),
            peak=size("VmHWM"),
            major_faults=resource.getrusage(resource.RUSAGE_SELF).ru_majflt,
        )
    except KeyError:
        return None
