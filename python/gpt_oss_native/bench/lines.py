"""Measured lines: complete, kept as JSON, shown as a table.

A file of lines holds one JSON object a line. Those with a key "machine" open a run; the others are
`Line`s. Files may be concatenated.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import InvalidArgument


@dataclass(frozen=True, kw_only=True)
class Line:
    """One measurement.

    Attributes:
        op: the op's name, or "prefill" and "decode" of a whole model.
        case: shape and what else tells it from the op's other lines.
        device: "cpu" or "cuda"; with ``engine`` (the instruction set) and ``threads``, what ran it.
        warm: whether the caches were left as the repeat before left them.
        seconds: of each repeat.
        num_bytes, operations: what cannot be avoided moving and computing; None: not counted.
        read_peak: bytes a second that the same threads read from memory just before and after.
        peak, peak_name: operations a second of a loop over registers, and the instruction.
        others: CPUs that other programs kept busy meanwhile.
        extra: whatever else a benchmark measured; in JSON beside the others.
    """

    op: str
    case: str
    device: str
    engine: str
    threads: int
    warm: bool
    seconds: tuple[float, ...]
    num_bytes: float | None = None
    operations: float | None = None
    read_peak: float | None = None
    peak: float | None = None
    peak_name: str | None = None
    others: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str, str, int, bool]:
        """What makes two lines comparable."""
        return self.op, self.case, self.device, self.engine, self.threads, self.warm

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def noise(self) -> float:
        """Half the distance between the quartiles, as a share of the median; with fewer than four
        repeats half the whole range."""
        if len(self.seconds) < 4:
            return (max(self.seconds) - min(self.seconds)) / 2 / self.median
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / 2 / self.median

    @property
    def bytes_per_second(self) -> float | None:
        """``num_bytes`` over the median."""
        return None if self.num_bytes is None else self.num_bytes / self.median

    @property
    def operations_per_second(self) -> float | None:
        """``operations`` over the median."""
        return None if self.operations is None else self.operations / self.median

    @property
    def read_share(self) -> float | None:
        """Share of the read bandwidth."""
        rate = self.bytes_per_second
        return rate / self.read_peak if rate is not None and self.read_peak else None

    @property
    def peak_share(self) -> float | None:
        """Share of the arithmetic peak."""
        rate = self.operations_per_second
        return rate / self.peak if rate is not None and self.peak else None

    def json(self) -> str:
        """The line as one JSON object."""
        own = asdict(self)
        return json.dumps(own.pop("extra") | own)


def read_lines(path: Path) -> tuple[list[dict[str, Any]], list[Line]]:
    """The headers and the lines of a file. Raises InvalidArgument for another file."""
    headers: list[dict[str, Any]] = []
    lines: list[Line] = []
    names = {each.name for each in fields(Line)} - {"extra"}
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InvalidArgument(f"[bench] cannot read {path}: {error.strerror}") from error
    for number, text in enumerate(texts, 1):
        if not text.strip():
            continue
        try:
            raw = json.loads(text)
            if not isinstance(raw, dict):
                raise ValueError("no object")
            if "machine" in raw:
                headers.append(raw)
                continue
            own = {name: value for name, value in raw.items() if name in names}
            own["seconds"] = tuple(map(float, raw["seconds"]))
            extra = {name: value for name, value in raw.items() if name not in names}
            lines.append(Line(**own, extra=extra))
            if not lines[-1].seconds or min(lines[-1].seconds) <= 0:
                raise ValueError("seconds")
        except (ValueError, TypeError, KeyError) as error:
            raise InvalidArgument(
                f"[bench] {path}, line {number}: expected a line that bench --json wrote, "
                f"found {text[:40]!r}"
            ) from error
    return headers, lines


def write_lines(path: Path, header: dict[str, Any], lines: Iterable[Line]) -> None:
    """Append a header and its lines to a file, which is made where there is none."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(header) + "\n")
        file.writelines(line.json() + "\n" for line in lines)


HEADING = (
    ("op", "case", "time", "±", "moved", "rate", "of read", "computed", "of peak", "others"),
    ("<", "<", ">", ">", ">", ">", ">", ">", "<", ">"),
)


def cells(line: Line) -> tuple[str, ...]:
    """The line's entries under `HEADING`."""
    share = line.peak_share
    return (
        line.op + " (warm)" * line.warm,
        line.case,
        seconds_text(line.median),
        f"{line.noise:.1%}",
        _scaled(line.num_bytes, "B"),
        _scaled(line.bytes_per_second, "B/s"),
        _percent(line.read_share),
        _scaled(line.operations_per_second, "FLOP/s"),
        "" if share is None else f"{_percent(share):>4} {line.peak_name}",
        "" if line.others is None or line.others < 0.05 else f"{line.others:.2f}",
    )


def table(rows: Sequence[Sequence[str]], alignment: Sequence[str]) -> Iterator[str]:
    """Lines of text, columns as wide as their longest entry."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(alignment))]
    for row in rows:
        parts = (
            f"{text:{align}{width}}"
            for text, align, width in zip(row, alignment, widths, strict=True)
        )
        yield "  ".join(parts).rstrip()


def seconds_text(value: float) -> str:
    """A time with its unit."""
    for unit, scale in (("s ", 1.0), ("ms", 1e-3)):
        if value >= scale:
            return f"{value / scale:.3f} {unit}"
    return f"{value / 1e-6:.2f} us"


def _percent(share: float | None) -> str:
    if share is None:
        return ""
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"


def _scaled(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    for prefix, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.2f} {prefix}{unit}"
    return f"{value:.0f} {unit}"
