"""``gpt-oss-native synthesize``: a checkpoint of random weights, for benchmarks."""

from __future__ import annotations

import argparse
import sys
import time

from . import options

PRESETS = ("20b", "120b", "tiny")  # those of ..synthesize, which needs numpy


def add_parser(commands: options.Commands) -> None:
    """Declares the command."""
    parser = options.add_command(
        commands,
        "synthesize",
        run,
        "write a checkpoint of seeded random weights, with the shapes of a published model",
    )
    parser.add_argument("directory", metavar="DIR", help="new or empty")
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        required=True,
        help="20b is 13.8 GB, 120b 65 GB, tiny 4 MB",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")


def run(args: argparse.Namespace) -> int:
    """Writes the checkpoint and returns the exit code."""
    from ..synthesize import synthesize
    from .terminal import Progress, size

    start = time.monotonic()
    progress = Progress()
    try:
        directory = synthesize(
            args.directory, preset=args.preset, seed=args.seed, progress=progress
        )
    finally:
        progress.close()
    written = sum(path.stat().st_size for path in directory.iterdir())
    sys.stdout.write(f"{directory}: {size(written)} in {time.monotonic() - start:.1f} s\n")
    return 0
