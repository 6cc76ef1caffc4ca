"""A roofline of measured lines: operations a second over operations a byte, log-log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InvalidArgument
from .lines import Line


def plot(lines: Sequence[Line], path: Path, *, title: str) -> None:
    """Write the picture, in the format that the file's name says.

    Ops without products are counted one operation for each four bytes. Raises InvalidArgument
    where matplotlib is not installed or knows no such format.
    """
    try:
        from matplotlib import ticker
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidArgument(
            "[bench] --plot needs matplotlib: pip install 'gpt-oss-native[plot]'"
        ) from error
    drawn = [line for line in lines if line.num_bytes and line.median > 0]
    if not drawn:
        raise InvalidArgument("[bench] expected lines whose bytes are counted, found none to plot")
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes: Any = figure.subplots()
    for index, op in enumerate(dict.fromkeys(line.op for line in drawn)):
        points = [_point(line) for line in drawn if line.op == op]
        marker = "os^vDPX*<>hpd"[index % 13]
        axes.loglog(*zip(*points, strict=True), marker, label=op, alpha=0.8)
    _roofs(axes, drawn)
    axes.set_xlabel("operations a byte")
    axes.set_ylabel("GFLOP/s")
    axes.set_title(title)
    axes.grid(which="major", alpha=0.3)
    axes.xaxis.set_major_formatter(ticker.LogFormatterSciNotation())
    axes.legend(loc="lower right", fontsize="small")
    try:
        figure.savefig(path)
    except ValueError as error:
        raise InvalidArgument(f"[bench] --plot {path}: {error}") from error


def _point(line: Line) -> tuple[float, float]:
    """Operations a byte, GFLOP/s."""
    assert line.num_bytes is not None
    operations = line.operations or line.num_bytes / 4
    return operations / line.num_bytes, operations / line.median / 1e9


def _roofs(axes: Any, lines: Sequence[Line]) -> None:
    """The read bandwidth, as a band from its lowest to its highest, and each arithmetic peak."""
    intensities = [_point(line)[0] for line in lines]
    ends = [min(intensities) / 2, max(intensities) * 2]
    reads = [line.read_peak for line in lines if line.read_peak]
    if reads:
        low, high = ([end * rate / 1e9 for end in ends] for rate in (min(reads), max(reads)))
        axes.fill_between(ends, low, high, alpha=0.2, color="gray", label="read bandwidth")
    for name in dict.fromkeys(line.peak_name for line in lines if line.peak_name):
        peak = max(line.peak for line in lines if line.peak_name == name and line.peak)
        axes.hlines(peak / 1e9, *ends, linestyles="dashed", colors="gray")
        axes.text(ends[0], peak / 1e9, name, va="bottom", fontsize="small")
