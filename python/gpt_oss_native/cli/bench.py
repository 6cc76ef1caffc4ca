"""``gpt-oss-native bench``: speed of a model, or of every op, on this machine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InvalidArgument
from . import options

if TYPE_CHECKING:
    from ..bench.model import ModelBench, ModelBencher
    from ..bench.process import ProcessUse

_EPILOG = """\
decode reads a known number of bytes a token; "read" is the share of the read bandwidth that was
measured in turn with it (blank where the weights fit in the last-level cache). Medians of the
repeats; the zones come from one more run, of the first thread: what it does, and how long it then
waits for the others ("gate_up: wait"). --ops measures ops at the shapes of both published models
instead, cold, beside the read bandwidth and the arithmetic peak of the same run; it takes minutes:
name ops, or --filter. --compare says which lines of two --json files differ by more than noise.
With --batch, "decode x N" is a step of N sessions, one random token each, its bytes those of the
experts that these tokens chose. A depth of tens of thousands is computed before it is measured:
--states keeps it. A second benchmark on the machine waits for the first.
"""


def add_parser(commands: options.Commands) -> None:
    """Declares the command."""
    parser = options.add_command(
        commands, "bench", run, "measure the speed of a model, or of every op", epilog=_EPILOG
    )
    options.add_model_option(parser)
    parser.add_argument(
        "--synthetic",
        choices=("20b", "120b", "tiny"),
        help="random weights made in the memory of a CUDA device, in place of a model",
    )
    parser.add_argument(
        "--prefill",
        type=int,
        nargs="+",
        default=[512],
        metavar="N",
        help="tokens; 0 leaves it out (default: 512)",
    )
    parser.add_argument(
        "--decode",
        type=int,
        nargs="+",
        default=[64],
        metavar="N",
        help="tokens; 0 leaves it out (default: 64)",
    )
    parser.add_argument(
        "--depth",
        type=int,
        nargs="+",
        default=[0],
        metavar="N",
        help="tokens in the cache before (default: 0)",
    )
    parser.add_argument(
        "--batch",
        type=int,
        nargs="+",
        default=[1],
        metavar="N",
        help="sessions that decode together (default: 1)",
    )
    parser.add_argument(
        "--states",
        type=Path,
        metavar="DIR",
        help="keep sessions at a depth there, so that the next run need not compute them",
    )
    parser.add_argument("--repeats", type=int, metavar="N", help="default: 3, for ops 15")
    parser.add_argument(
        "--ops", nargs="*", metavar="OP", help="measure ops, all or those named, not a model"
    )
    options.add_engine_options(parser)
    # Imported here: they are light, and what they describe is not this module's.
    from ..bench import arguments

    arguments.add_measuring_options(parser)
    arguments.add_output_options(parser)


def run(args: argparse.Namespace) -> int:
    """Measures, prints and returns the exit code."""
    from ..bench import run as bench_run

    if args.compare:
        return bench_run.write_comparison(args.compare, sys.stdout.write)
    if args.ops is not None:
        args.device = "cpu" if args.device == "auto" else args.device
        args.repeats = 15 if args.repeats is None else args.repeats
        return bench_run.run_ops(args.ops, args, sys.stdout.write)
    return _run_model(args)


def _run_model(args: argparse.Namespace) -> int:
    from ..bench import run as bench_run
    from ..bench.alone import alone
    from ..bench.model import ModelBencher
    from ..bench.process import process_use

    counts = [n for n in (*args.prefill, *args.decode) if n > 0]
    if not counts:
        raise InvalidArgument("[bench] expected tokens to measure, --prefill and --decode are 0")
    with (
        options.load_model(args) as model,
        alone(sys.stderr.write, wait=not args.beside) as is_alone,
    ):
        bencher = ModelBencher(
            model,
            precision=args.precision,
            dense=args.dense,
            num_threads=args.threads or 0,
            repeats=3 if args.repeats is None else args.repeats,
            states=args.states,
        )
        results = list(_results(bencher, args))
        memory = process_use()
    lines = [result.line() for result in results]
    if args.json == "-":
        sys.stdout.writelines(line.json() + "\n" for line in lines)
    else:
        sys.stdout.write(_report(results, memory, is_alone=is_alone))
    bench_run.keep(lines, args, {"engine": results[0].engine, "alone": is_alone})
    return 0


def _results(bencher: ModelBencher, args: argparse.Namespace) -> Iterator[ModelBench]:
    for count in (n for n in args.prefill if n > 0):
        for depth in args.depth:
            yield bencher.prefill(count, depth=depth)
    for count in (n for n in args.decode if n > 0):
        for depth in args.depth:
            for batch in args.batch:
                if batch == 1:
                    yield bencher.decode(count, depth=depth)
                else:
                    yield bencher.decode_batch(batch, count, depth=depth)


def _report(results: Sequence[ModelBench], memory: ProcessUse | None, *, is_alone: bool) -> str:
    from ..bench.alone import BESIDE
    from .terminal import size, table

    first = results[0]
    blocks = [f"{first.model} on {first.engine}, precision {first.precision}, dense {first.dense}"]
    bandwidths = [r.read_bytes_per_second for r in results if r.read_bytes_per_second]
    if bandwidths:
        blocks.append(f"  read bandwidth {bandwidths[0] / 1e9:.1f} GB/s, measured in turn")
    if not is_alone:
        blocks.append(f"  {BESIDE}")
    busy = max((r.others or 0.0 for r in results), default=0.0)
    if busy >= 0.05:
        blocks.append(f"  other programs kept up to {busy:.2f} CPUs busy meanwhile")
    if memory is not None:
        blocks.append(
            f"  private memory {size(memory.private)}, mapped files {size(memory.file)}, "
            f"{memory.major_faults} pages read from disk"
        )
    blocks.append(table(list(_rows(results))))
    blocks += [table(list(_zone_rows(result))) for result in results]
    return "\n".join(blocks) + "\n"


def _rows(results: Sequence[ModelBench]) -> Iterator[list[str]]:
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
    yield ["all of it", "", f"{1e3 * total / steps:.4f}", f"{1:.1%}"]
