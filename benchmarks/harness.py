"""What every benchmark here shares: timing with a cold cache, complete lines, and baselines.

A line is complete: op, shape, device, time, bytes, rate, share of the read bandwidth measured in
turn with it, ratio to the baseline. A benchmark is a program like this:

    from harness import Benchmark

    def main() -> None:
        benchmark = Benchmark(__doc__)
        for case in CASES:
            x, weight = make(case)
            benchmark.measure(
                "rms_norm", case.name, lambda: ops.rms_norm(x, weight), num_bytes=x.nbytes * 2
            )
        benchmark.finish()

Each takes ``--repeats``, ``--threads``, ``--filter TEXT``, ``--warm``, ``--json`` (one object a
line, to be kept as a baseline) and ``--baseline FILE`` (such lines of an earlier run).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gpt_oss_native import _core
from gpt_oss_native.bench import last_level_cache_bytes

_SWEEP_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Line:
    """One measurement.

    ``seconds`` is the median of the repeats and ``spread`` (slowest - fastest) / median;
    ``num_bytes`` and ``flops`` are what the op must move and compute; ``peak`` is the read
    bandwidth in bytes per second measured in turn, None where no bytes are counted; ``warm`` says
    that nothing was evicted before.
    """

    op: str
    shape: str
    device: str
    seconds: float
    spread: float
    num_bytes: int | None = None
    flops: float | None = None
    peak: float | None = None
    warm: bool = False

    @property
    def key(self) -> tuple[str, str, str, bool]:
        """What makes two lines comparable."""
        return self.op, self.shape, self.device, self.warm

    def text(self, baseline: float | None) -> str:
        """The line for people; ``baseline`` are the seconds of the same line elsewhere."""
        parts = [f"{self.op + ' warm' * self.warm:<22} {self.shape:<28} {_seconds(self.seconds)}"]
        parts.append(f"±{self.spread / 2:4.0%}")
        if self.num_bytes is not None:
            parts.append(f"{self.num_bytes / 1e6:10.3f} MB")
            parts.append(f"{self.num_bytes / self.seconds / 1e9:8.2f} GB/s")
            if self.peak is not None:
                parts.append(f"{self.num_bytes / self.seconds / self.peak:5.0%} of read")
        if self.flops is not None:
            parts.append(f"{self.flops / self.seconds / 1e9:9.1f} GFLOP/s")
        if baseline is not None:
            parts.append(f"{baseline / self.seconds:5.2f}x baseline")
        return "  ".join(parts)


class Benchmark:
    """Runs cases as the command line says, and prints a line for each. ``add_arguments`` may add
    options of the benchmark's own, found in ``args``."""

    def __init__(
        self,
        description: str | None,
        *,
        add_arguments: Callable[[argparse.ArgumentParser], None] | None = None,
    ) -> None:
        parser = argparse.ArgumentParser(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("--repeats", type=int, default=9)
        parser.add_argument("--threads", type=int, default=0, help="0: all")
        parser.add_argument(
            "--filter", default="", metavar="TEXT", help="only lines with this text"
        )
        parser.add_argument("--warm", action="store_true", help="leave the caches as they are")
        parser.add_argument("--json", action="store_true")
        parser.add_argument("--baseline", type=Path, metavar="FILE", help="lines of --json")
        if add_arguments is not None:
            add_arguments(parser)
        self.args = parser.parse_args()
        if self.args.repeats < 1:
            parser.error("--repeats: expected 1 or more")
        self.threads: int = self.args.threads or _core.default_num_threads()
        self.device = f"{_core.cpu_model_name()}, {self.threads} threads"
        self._baseline = _read_baseline(self.args.baseline)
        self._evictor: np.ndarray[Any, Any] | None = None
        self._count = 0

    def wanted(self, op: str, shape: str) -> bool:
        """Whether ``--filter`` lets the line through; ask before making large inputs."""
        return self.args.filter in f"{op} {shape}"

    def measure(
        self,
        op: str,
        shape: str,
        function: Callable[[], object],
        *,
        num_bytes: int | None = None,
        flops: float | None = None,
        device: str | None = None,
    ) -> None:
        """Times ``function``: once unmeasured, then the repeats, each with a cold cache unless
        ``--warm``; the read bandwidth in turn with them."""
        if not self.wanted(op, shape):
            return
        function()
        seconds: list[float] = []
        peaks: list[float] = []
        for repeat in range(self.args.repeats):
            if num_bytes is not None and repeat % 3 == 0:  # a sweep takes far longer than an op
                peaks.append(_core.read_bandwidth(_SWEEP_BYTES, self.threads, 1))
            if not self.args.warm:
                self._evict()
            start = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - start)
        self.report(
            Line(
                op=op,
                shape=shape,
                device=device or self.device,
                seconds=statistics.median(seconds),
                spread=(max(seconds) - min(seconds)) / statistics.median(seconds),
                num_bytes=num_bytes,
                flops=flops,
                peak=statistics.median(peaks) if peaks else None,
                warm=self.args.warm,
            )
        )

    def report(self, line: Line) -> None:
        """Prints a line, measured here or by other means."""
        if not self._count and not self.args.json:
            sys.stdout.write(f"{self.device}\n")
        self._count += 1
        if self.args.json:
            sys.stdout.write(json.dumps(asdict(line)) + "\n")
        else:
            sys.stdout.write(line.text(self._baseline.get(line.key)) + "\n")
        sys.stdout.flush()

    def finish(self) -> None:
        """Ends the program; a filter that let nothing through is a mistake."""
        if not self._count:
            sys.exit(f"no line has {self.args.filter!r} in it")

    def _evict(self) -> None:
        """Reads twice as much as the last-level cache holds."""
        if self._evictor is None:
            size = max(2 * last_level_cache_bytes(), 64 << 20)
            self._evictor = np.ones(min(size, _SWEEP_BYTES) // 8, np.int64)
        self._evictor.sum()


def _read_baseline(path: Path | None) -> dict[tuple[str, str, str, bool], float]:
    """Seconds by key of the lines in a file that ``--json`` wrote."""
    if path is None:
        return {}
    lines = [Line(**json.loads(text)) for text in path.read_text().splitlines() if text.strip()]
    return {line.key: line.seconds for line in lines}


def _seconds(value: float) -> str:
    for unit, scale in (("s ", 1.0), ("ms", 1e-3)):
        if value >= scale:
            return f"{value / scale:8.3f} {unit}"
    return f"{value / 1e-6:8.2f} us"
