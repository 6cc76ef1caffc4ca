"""The machine that a benchmark ran on: what it is, what it can do, and who else was using it."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import _core

# Instruction sets that decide which kernels run, as /proc/cpuinfo spells them.
_FLAGS = (
    *("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve"),
)
_MIN_WATCH_SECONDS = 0.2


def describe_machine() -> dict[str, Any]:
    """Processor, instruction sets, cores, caches, memory, system; and the commit of the sources."""
    return {
        "cpu": _core.cpu_model_name(),
        "flags": [flag for flag in _FLAGS if flag in _cpu_flags()],
        "cpus": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "default_threads": _core.default_num_threads(),
        "isa": _core.default_isa(),
        "last_level_cache_bytes": last_level_cache_bytes(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "version": _core.__version__,
        "commit": commit(),
    }


def commit() -> str:
    """Commit of the checkout this package lies in, "+" where files differ; "" outside of one."""
    where = Path(__file__).resolve().parent
    try:
        head = _git(where, "rev-parse", "--short=12", "HEAD")
        return head + "+" * bool(_git(where, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(where: Path, *arguments: str) -> str:
    run = subprocess.run(
        ["git", "-C", str(where), *arguments], capture_output=True, text=True, check=True
    )
    return run.stdout.strip()


def _cpu_flags() -> set[str]:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return set(line.partition(":")[2].split())
    except OSError:
        pass
    return set()


def last_level_cache_bytes() -> int:
    """Bytes of the largest cache of the first CPU; 0 where the system does not say."""
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        if text.endswith("K") and text[:-1].isdigit():
            sizes.append(int(text[:-1]) << 10)
    return max(sizes)


def cold_bytes() -> int:
    """How much to sweep through the caches so that nothing of before is left.

    The last-level cache as reported, 64 MiB to 1 GiB. A virtual machine reports all of a cache that
    it shares: on one with 480 MB of it, an 8.8 MB expert took 0.36 ms after a sweep of up to 32 MB,
    0.48 after 64, 0.60 after 128, 0.66 after 256, and 0.67 to 0.71 after 512 MB to 2 GB.
    """
    return min(max(last_level_cache_bytes(), 64 << 20), 1 << 30)


class OthersWatch:
    """How many CPUs other programs (or, on a virtual machine, other guests) kept busy meanwhile.

    ``own_seconds`` tells the CPU time of what is measured; by default this process's.
    """

    def __init__(self, own_seconds: Callable[[], float] | None = None) -> None:
        self._own_seconds = _own_seconds if own_seconds is None else own_seconds
        self._start = self._now()

    def cpus(self) -> float | None:
        """Their mean number since the object was made; None where the system does not tell, or
        less than 0.2 s passed: it counts in hundredths of a second."""
        now = self._now()
        if self._start is None or now is None:
            return None
        wall, system, own = (after - before for after, before in zip(now, self._start, strict=True))
        return max(0.0, system - own) / wall if wall >= _MIN_WATCH_SECONDS else None

    def _now(self) -> tuple[float, float, float] | None:
        """Clock, CPU seconds of the whole system with those stolen from it, own CPU seconds."""
        try:
            first = Path("/proc/stat").read_text().partition("\n")[0]
        except OSError:
            return None
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, first.split()[1:9])
        ticks = user + nice + system + irq + softirq + steal
        return time.perf_counter(), ticks / os.sysconf("SC_CLK_TCK"), self._own_seconds()


def _own_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
