"""Options of microbenchmarks. Imports nothing heavy: ``--help`` needs them."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_measuring_options(parser: argparse.ArgumentParser) -> None:
    """How ops are measured, and whether beside another benchmark."""
    parser.add_argument(
        "--beside",
        action="store_true",
        help="measure at once where another benchmark runs, and say so, instead of waiting for it",
    )
    group = parser.add_argument_group("ops")
    group.add_argument(
        "--filter",
        action="append",
        default=[],
        metavar="TEXT",
        help="only cases with this text; given several times, with all of them",
    )
    group.add_argument(
        "--warm", action="store_true", help="leave the caches as the repeat before left them"
    )
    group.add_argument(
        "--evict-mb", type=int, metavar="MB", help="swept through the caches before each repeat"
    )
    group.add_argument("--list", action="store_true", help="print the cases and their sizes")


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """What becomes of the lines."""
    group = parser.add_argument_group("results")
    group.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="append the lines to FILE, one JSON object each; alone, print them instead of a table",
    )
    group.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("A", "B"),
        help="measure nothing, compare two such files",
    )
    group.add_argument("--plot", type=Path, metavar="FILE", help="a roofline, with matplotlib")
