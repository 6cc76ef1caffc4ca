"""Times cases of ops: kernels alone, cold, between two measurements of the read bandwidth."""

from __future__ import annotations

import inspect
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from .. import _core, ops
from ..errors import DeviceError, InvalidArgument
from .lines import Line
from .machine import OthersWatch, cold_bytes

_SWEEP_BYTES = 1 << 30  # what the read bandwidth is measured over
_PEAK_SECONDS = 0.05  # for each instruction

# The fastest instruction of each level for products of float32 and of int8; where a machine lacks
# one (AVX2 without AVX-VNNI), the next is compared with.
_PEAK_NAMES = {
    "float32": {
        "scalar": ("fma_scalar",),
        "avx2": ("fma_avx2",),
        "avx512": ("fma_avx512",),
        "amx": ("amx_bf16", "fma_avx512"),
    },
    "int8": {
        "scalar": ("fma_scalar",),
        "avx2": ("vnni_avx2", "fma_avx2"),
        "avx512": ("vnni_avx512", "fma_avx512"),
        "amx": ("amx_int8", "vnni_avx512"),
    },
}

Arithmetic = Literal["float32", "int8"]
# Prepares the inputs and returns the call to be timed. It takes the keywords of `ops` that choose
# device, ISA and threads.
Make = Callable[[np.random.Generator], Callable[..., object]]


@dataclass(frozen=True, kw_only=True)
class OpCase:
    """One case of an op.

    ``num_bytes`` and ``operations`` are the least it must move and compute; ``arithmetic`` says
    which products, None where there are none to speak of. ``timed_whole``: the call is no kernel of
    an `OpTable` and is timed from outside, with the caches as they are.
    """

    op: str
    case: str
    num_bytes: float
    operations: float | None = None
    arithmetic: Arithmetic | None = None
    make: Make
    timed_whole: bool = False

    @property
    def label(self) -> str:
        """What a filter looks at."""
        return f"{self.op} {self.case}"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to measure; ``threads`` 0 is all, ``evict_bytes`` None as much as makes caches cold."""

    device: str = "cpu"
    isa: str | None = None
    threads: int = 0
    repeats: int = 15
    warm: bool = False
    evict_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise InvalidArgument(f"[bench] repeats: expected 1 or more, got {self.repeats}")
        if self.device not in ("cpu", "cuda"):
            raise InvalidArgument(f"[bench] device: expected cpu or cuda, got {self.device!r}")


class Harness:
    """Runs cases under one setting. Raises DeviceError where ops do not run on the device."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._options = _call_options(settings)
        self._threads = settings.threads or _core.default_num_threads()
        self._is_cpu = settings.device == "cpu"
        self._engine = (settings.isa or _core.default_isa()) if self._is_cpu else settings.device
        self._evict_bytes = 0
        if not settings.warm:
            given = settings.evict_bytes
            self._evict_bytes = cold_bytes() if given is None else given
        self._peaks: dict[str, float] | None = None

    @property
    def conditions(self) -> dict[str, Any]:
        """What else decides the numbers: for the head of a table and of a file."""
        return {
            "device": self._settings.device,
            "engine": self._engine,
            "threads": self._threads,
            "evict_bytes": self._evict_bytes,
            "peaks": self.peaks,
        }

    @property
    def peaks(self) -> dict[str, float]:
        """Operations a second by instruction, of as many threads, measured once."""
        if self._peaks is None:
            self._peaks = {}
            if self._is_cpu:
                self._peaks = _core.arithmetic_peaks(self._threads, _PEAK_SECONDS)
        return self._peaks

    def run(self, cases: Iterable[OpCase], *, seed: int = 0) -> Iterator[Line]:
        """A line for each case, in turn with the read bandwidth."""
        before = self._read_bandwidth()
        for case in cases:
            line = self._measure(case, seed)
            after = self._read_bandwidth()
            known = [value for value in (before, after) if value is not None]
            yield replace(line, read_peak=statistics.mean(known) if known else None)
            before = after

    def _measure(self, case: OpCase, seed: int) -> Line:
        call = case.make(np.random.default_rng(seed))
        others = OthersWatch()
        if case.timed_whole:
            seconds = _time_whole(call, self._settings.repeats)
        else:
            seconds = self._time_kernels(call)
        peak_name = self._peak_name(case)
        return Line(
            op=case.op,
            case=case.case,
            device=self._settings.device,
            engine=self._engine,
            threads=self._threads,
            warm=case.timed_whole or self._evict_bytes == 0,
            seconds=tuple(seconds),
            num_bytes=case.num_bytes,
            operations=case.operations,
            peak=None if peak_name is None else self.peaks[peak_name],
            peak_name=peak_name,
            others=others.cpus(),
        )

    def _time_kernels(self, call: Callable[..., object]) -> list[float]:
        """The first repeat faults in the output's pages and is left out."""
        repeats = self._settings.repeats + 1
        with ops.time_kernels(repeats, evict_bytes=self._evict_bytes, **self._options):
            call(**self._options)
            seconds = ops.kernel_seconds(**self._options)
        if len(seconds) != repeats:
            raise DeviceError(
                f"[bench] expected the ops of {self._engine} to time their kernels, they do not"
            )
        return seconds[1:]

    def _peak_name(self, case: OpCase) -> str | None:
        if case.arithmetic is None or not self._is_cpu:
            return None
        names = _PEAK_NAMES[case.arithmetic].get(self._engine, ())
        return next((name for name in names if name in self.peaks), None)

    def _read_bandwidth(self) -> float | None:
        if not self._is_cpu:
            return None
        return _core.read_bandwidth(_SWEEP_BYTES, self._threads, 1)


def _call_options(settings: Settings) -> dict[str, Any]:
    """The keywords of `ops` that choose where a call runs."""
    if settings.device == "cpu":
        return {"isa": settings.isa, "threads": settings.threads}
    if "device" not in inspect.signature(ops.time_kernels).parameters:
        raise DeviceError(f"[bench] ops do not run on {settings.device!r} in this build")
    return {"device": settings.device}


def _time_whole(call: Callable[..., object], repeats: int) -> list[float]:
    """Seconds of calls from Python, one unmeasured before."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds[1:]
