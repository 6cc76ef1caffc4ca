"""What a process holds and used, as Linux counts it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ProcessUse:
    """Bytes. ``private``: anonymous, this process's alone; ``file``: mapped files that are in the
    page cache, which the system takes back when it needs to; ``peak``: most of both at once.

    ``major_faults`` counts pages that were read from the disk. ``cpu_seconds``, since its start, is
    no memory, but told in the same place.
    """

    private: int
    file: int
    peak: int
    major_faults: int
    cpu_seconds: float


def process_use(process_id: int | None = None) -> ProcessUse | None:
    """Of a process, of this one by default; None where the system does not tell (proc(5): RssAnon,
    RssFile, VmHWM, majflt, utime and stime)."""
    directory = Path("/proc") / ("self" if process_id is None else str(process_id))
    try:
        status = (directory / "status").read_text()
        # The second field is the program's name in parentheses, which may hold blanks.
        fields = (directory / "stat").read_text().rpartition(")")[2].split()
        values = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        private, file, peak = (
            int(values[name].split()[0]) << 10 for name in ("RssAnon", "RssFile", "VmHWM")
        )
        ticks = int(fields[11]) + int(fields[12])
        return ProcessUse(
            private=private,
            file=file,
            peak=peak,
            major_faults=int(fields[9]),
            cpu_seconds=ticks / os.sysconf("SC_CLK_TCK"),
        )
    except (OSError, KeyError, IndexError, ValueError):
        return None
