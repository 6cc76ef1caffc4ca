"""End to end: prefill and decode of one model at several depths, a token's time a line.

    python benchmarks/bench_model.py DIR --dense int8 --prefill 512 --decode 64 --depth 0 4096

``gpt-oss-native bench`` measures the same with the zones of a step; this keeps baselines.
"""

from __future__ import annotations

import argparse
import statistics

from gpt_oss_native import Model
from gpt_oss_native.bench import ModelBench, ModelBencher
from harness import Benchmark, Line


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(repeats=3)
    parser.add_argument("model", nargs="?", default="nano", metavar="MODEL")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--precision", default="default", choices=("default", "float32"))
    parser.add_argument("--dense", default="bf16", choices=("bf16", "int8"))
    parser.add_argument("--prefill", type=int, nargs="*", default=[512], metavar="N")
    parser.add_argument("--decode", type=int, nargs="*", default=[64], metavar="N")
    parser.add_argument("--depth", type=int, nargs="+", default=[0], metavar="N")


def main() -> None:
    benchmark = Benchmark(__doc__, add_arguments=_add_arguments)
    args = benchmark.args
    with Model.load(
        args.model,
        device=args.device,
        precision=args.precision,
        dense=args.dense,
        num_threads=benchmark.threads,
    ) as model:
        bencher = ModelBencher(
            model,
            precision=args.precision,
            dense=args.dense,
            num_threads=benchmark.threads,
            repeats=args.repeats,
        )
        for op, measure, counts in (
            ("prefill", bencher.prefill, args.prefill),
            ("decode", bencher.decode, args.decode),
        ):
            for count in counts:
                for depth in args.depth:
                    shape = f"{model.checkpoint.directory.name} {args.dense} {count} at {depth}"
                    if benchmark.wanted(op, shape):
                        result = measure(count, depth=depth)
                        benchmark.report(_line(result, op, shape, benchmark.device))
    benchmark.finish()


def _line(result: ModelBench, op: str, shape: str, device: str) -> Line:
    """The time, bytes and operations of one token."""
    per_token = [seconds / result.tokens for seconds in result.seconds]
    median = statistics.median(per_token)
    return Line(
        op=op,
        shape=shape,
        device=device if result.engine.startswith("cpu") else result.engine,
        seconds=median,
        spread=(max(per_token) - min(per_token)) / median,
        num_bytes=result.token_bytes,
        flops=None if result.gflops is None else result.gflops * 1e9 * median,
        peak=result.read_bytes_per_second,
        warm=True,
    )


if __name__ == "__main__":
    main()
