"""``gpt-oss-native bench``: prefill and decode speed of a model on this machine."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..errors import InvalidArgument
from . import options

if TYPE_CHECKING:
    from ..bench import ModelBench

_EPILOG = """\
decode reads a known number of bytes a token; "read" is the share of the read bandwidth that was
measured in turn with it (blank where the weights fit in the last-level cache). Medians of the
repeats; the zones come from one more run.
"""


def add_parser(commands: options.Commands) -> None:
    """Declares the command."""
    parser = options.add_command(
        commands, "bench", run, "measure prefill and decode speed", epilog=_EPILOG
    )
    options.add_model_option(parser)
    parser.add_argument(
        "--prefill",
        type=int,
        default=512,
        metavar="N",
        help="tokens; 0 leaves it out (default: 512)",
    )
    parser.add_argument(
        "--decode", type=int, default=64, metavar="N", help="tokens; 0 leaves it out (default: 64)"
    )
    parser.add_argument(
        "--depth", type=int, default=0, metavar="N", help="tokens in the cache before (default: 0)"
    )
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    options.add_engine_options(parser)


def run(args: argparse.Namespace) -> int:
    """Measures, prints and returns the exit code."""
    if args.prefill <= 0 and args.decode <= 0:
        raise InvalidArgument("[bench] expected tokens to measure, --prefill and --decode are 0")
    from dataclasses import asdict

    from ..bench import ModelBencher
    from .terminal import table

    with options.load_model(args) as model:
        bencher = ModelBencher(
            model,
            precision=args.precision,
            dense=args.dense,
            num_threads=args.threads or 0,
            repeats=args.repeats,
        )
        results = []
        if args.prefill > 0:
            results.append(bencher.prefill(args.prefill, depth=args.depth))
        if args.decode > 0:
            results.append(bencher.decode(args.decode, depth=args.depth))
    if args.json:
        sys.stdout.writelines(json.dumps(asdict(result)) + "\n" for result in results)
        return 0
    first = results[0]
    blocks = [
        f"{first.model} on {first.engine}, precision {first.precision}, dense {first.dense}",
        table(list(_rows(results))),
        *(table(list(_zone_rows(result))) for result in results),
    ]
    bandwidths = [r.read_bytes_per_second for r in results if r.read_bytes_per_second]
    if bandwidths:
        blocks.insert(1, f"  read bandwidth {bandwidths[0] / 1e9:.1f} GB/s, measured in turn")
    sys.stdout.write("\n".join(blocks) + "\n")
    return 0


def _rows(results: list[ModelBench]) -> Iterator[list[str]]:
    """Rows of a table of results, heading first."""
    from .terminal import size

    yield [
        "",
        "tokens",
        "depth",
        "ms/token",
        "tokens/s",
        "GFLOP/s",
        "bytes/token",
        "bytes/s",
        "read",
    ]
    for r in results:
        yield [
            r.op,
            str(r.tokens),
            str(r.depth),
            f"{1e3 / r.tokens_per_second:.3f}",
            f"{r.tokens_per_second:,.1f}",
            "" if r.gflops is None else f"{r.gflops:,.0f}",
            "" if r.token_bytes is None else size(r.token_bytes),
            "" if r.bytes_per_second is None else size(r.bytes_per_second),
            "" if r.share is None else f"{r.share:.0%}",
        ]


def _zone_rows(result: ModelBench) -> Iterator[list[str]]:
    """Rows of a table of where one run's time went, heading first, the longest zone first."""
    total = sum(seconds for _, seconds in result.zones.values())
    steps = result.tokens + (result.op == "decode")  # its first token is not timed, but traced
    yield [f"zone ({result.op})", "calls", "ms/token", "share"]
    for name, (count, seconds) in sorted(result.zones.items(), key=lambda zone: -zone[1][1]):
        yield [name, str(count), f"{1e3 * seconds / steps:.4f}", f"{seconds / total:.1%}"]
