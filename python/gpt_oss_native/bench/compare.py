"""What two runs of the same lines say about each other, and what they do not."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..errors import InvalidArgument
from .lines import Line, seconds_text, table

HEADING = (
    ("op", "case", "A", "B", "A / B", "±", "", "share A", "share B"),
    ("<", "<", ">", ">", ">", ">", "<", ">", ">"),
)


@dataclass(frozen=True)
class Comparison:
    """One line of two runs; a ``ratio`` above 1 says that the second is faster.

    ``noise`` is relative: the two lines' own, added as independent ones are. It is not divided by
    the number of repeats, because what disturbs a run disturbs many of its repeats alike.
    """

    first: Line
    second: Line

    @property
    def ratio(self) -> float:
        """Median time of the first over that of the second."""
        return self.first.median / self.second.median

    @property
    def noise(self) -> float:
        """See the class."""
        return math.hypot(self.first.noise, self.second.noise)

    @property
    def is_noise(self) -> bool:
        """Whether the two may be the same."""
        return abs(math.log(self.ratio)) <= math.log1p(self.noise)

    @property
    def verdict(self) -> str:
        """In words."""
        if self.is_noise:
            return "within noise"
        return "faster" if self.ratio > 1 else "slower"


def compare(first: Sequence[Line], second: Sequence[Line]) -> list[Comparison]:
    """Pairs of lines with the same key, in the order of the first run; of lines that a run holds
    several times, the repeats together.

    Where no key is in both, the instruction sets are left out of it, so that two of them can be
    compared. Raises InvalidArgument when nothing is comparable then either.
    """
    for with_engine in (True, False):
        ones, others = (_by_key(lines, with_engine) for lines in (first, second))
        pairs = [Comparison(one, others[key]) for key, one in ones.items() if key in others]
        if pairs:
            return pairs
    raise InvalidArgument("[bench] expected lines that both files have, found none")


def _by_key(lines: Sequence[Line], with_engine: bool) -> dict[tuple[object, ...], Line]:
    merged: dict[tuple[object, ...], Line] = {}
    for line in lines:
        key = line.key if with_engine else (*line.key[:3], *line.key[4:])
        before = merged.get(key)
        merged[key] = line if before is None else _joined(before, line)
    return merged


def _joined(one: Line, other: Line) -> Line:
    """The repeats of both, with the mean of the two read bandwidths."""
    known = [peak for peak in (one.read_peak, other.read_peak) if peak]
    values = {name: getattr(one, name) for name in one.__dataclass_fields__}
    values["seconds"] = one.seconds + other.seconds
    values["read_peak"] = statistics.mean(known) if known else None
    return Line(**values)


def comparison_table(pairs: Sequence[Comparison]) -> Iterator[str]:
    """The pairs and, below, the geometric mean of their ratios. Shares are those of the read
    bandwidth or of the arithmetic peak, whichever is nearer: they also hold where the machine was
    faster in one of the runs."""
    rows = [HEADING[0], *(_cells(pair) for pair in pairs)]
    yield from table(rows, HEADING[1])
    mean = math.exp(statistics.fmean(math.log(pair.ratio) for pair in pairs))
    quiet = sum(pair.is_noise for pair in pairs)
    yield f"{len(pairs)} lines, {quiet} within noise; geometric mean of A / B {mean:.3f}"


def _cells(pair: Comparison) -> tuple[str, ...]:
    return (
        pair.first.op + " (warm)" * pair.first.warm,
        pair.first.case,
        seconds_text(pair.first.median),
        seconds_text(pair.second.median),
        f"{pair.ratio:.3f}",
        f"{pair.noise:.1%}",
        pair.verdict,
        _share(pair.first),
        _share(pair.second),
    )


def _share(line: Line) -> str:
    shares = [share for share in (line.read_share, line.peak_share) if share is not None]
    return f"{max(shares):.0%}" if shares else ""
