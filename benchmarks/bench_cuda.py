"""Tables of the CUDA engine on synthetic weights of the published shapes, beside the bandwidth and
the matmul rate that PyTorch reaches in the same run. benchmarks/bench_cuda.sh builds what it needs.

Bytes and operations are counted, not measured: what a step cannot avoid reading (weights of the
experts that are touched, keys and values), and two operations a weight and token.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import gpt_oss_native as gon
import numpy as np
from cuda_bench.counts import (
    PEAKS,
    measure_peaks,
    prefill_flops,
    share,
    step_bytes,
    table,
    tokens_of,
    touched_experts,
)
from cuda_bench.goals import print_goals
from cuda_bench.kernels import print_prompt, print_steps, print_token
from gpt_oss_native import _core
from gpt_oss_native.session import Generation

GREEDY = gon.Sampling(temperature=0)
PARTS = ("decode", "host", "first", "prefill", "many", "kernels")
REACHED: dict[str, float] = {}  # by the keys of cuda_bench.goals


def best(run: Callable[[], object], repeats: int = 3) -> float:
    """Seconds of the fastest run, one unmeasured before."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def decode_rows(model: gon.Model, name: str, depths: Sequence[int]) -> Iterator[list[str]]:
    kinds = {
        "greedy": GREEDY,
        "temperature 1": gon.Sampling(seed=1),
        "top-p 0.95": gon.Sampling(top_p=0.95, seed=1),
    }
    for depth in depths:
        with model.session() as session:
            session.forward(tokens_of(depth, model.config.vocab_size), logits="none")
            for what, sampling in kinds.items():
                stamps = []
                for _ in session.generate([7], sampling, max_new_tokens=220):
                    stamps.append(time.perf_counter())
                times = np.diff(stamps[20:])
                mean = float(times.mean())
                num_bytes = step_bytes(model, [session.position - 100])
                rate = num_bytes / mean
                if sampling is GREEDY:
                    REACHED[f"{name} decode {depth}"] = rate / PEAKS["copy"]
                    REACHED[f"{name} decode us {depth}"] = 1e6 * mean
                yield [
                    name,
                    what,
                    str(depth),
                    f"{1e6 * mean:.1f}",
                    f"{1e6 * float(np.median(times)):.1f}",
                    f"{1 / mean:.0f}",
                    f"{num_bytes / 1e9:.2f}",
                    f"{rate / 1e9:.0f}",
                    share(rate, "copy"),
                ]
                if depth != depths[0]:
                    break


def host_seconds(run: Callable[[], object], repeats: int) -> list[float]:
    """Of calls made a little after the device was done with what the call before had queued, so
    that they never wait."""
    run()
    start = time.perf_counter()
    for _ in range(5):
        run()
    step = (time.perf_counter() - start) / 5
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        while time.perf_counter() < begin + 1.1 * step + 1e-4:
            pass
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def host_rows(model: gon.Model, name: str) -> Iterator[list[str]]:
    """What a token costs the thread that asks for it."""
    vocab = model.config.vocab_size
    for what, sampling in (("greedy", GREEDY), ("temperature 1", gon.Sampling(seed=1))):
        with model.session() as session:
            session.forward(tokens_of(512, vocab), logits="none")
            generation = session.generate([7], sampling, max_new_tokens=260)
            for _ in range(20):
                next(generation)
            times = host_seconds(lambda generation=generation: next(generation), 200)
        median = statistics.median(times)
        if sampling is GREEDY:
            REACHED[f"{name} host"] = median
        yield [name, what, "1", f"{1e6 * median:.1f}", f"{1e6 * statistics.mean(times):.1f}"]
    sessions = [model.session() for _ in range(64)]
    try:
        for i, session in enumerate(sessions):
            session.forward(tokens_of(200, vocab, i), logits="none")
        running = [s.generate([5], GREEDY, max_new_tokens=60) for s in sessions]
        for _ in range(8):
            model.next_tokens(running)
        times = host_seconds(lambda: model.next_tokens(running), 40)
    finally:
        for session in sessions:
            session.close()
    median, mean = statistics.median(times), statistics.mean(times)
    yield [name, "greedy, one step", "64", f"{1e6 * median:.1f}", f"{1e6 * mean:.1f}"]


def experts_as_routed(model: gon.Model, count: int) -> float:
    """Experts of a layer that so many tokens touch. Routers of random weights prefer some, so this
    is read off the time of a step: between those whose experts are forced, evenly, to all of them
    and to half of them."""
    c = model.config
    rng = np.random.default_rng(3)
    prompt = tokens_of(count, c.vocab_size, 4)
    session = model.session()

    def seconds(step: Callable[[], object]) -> float:
        def again() -> None:
            session.rewind(0)
            step()

        return best(again, 5)

    def forced(pool: int) -> float:
        rows = c.num_layers * count
        experts = [rng.permutation(pool)[: c.experts_per_token] for _ in range(rows)]
        choices = np.asarray(experts, np.int32).reshape(c.num_layers, count, -1)
        return seconds(lambda: session._core.forward_forced(prompt, choices))

    with session:
        free = seconds(lambda: session.forward(prompt, logits="all"))
        most, half = forced(c.num_experts), forced(c.num_experts // 2)
    all_touched = touched_experts(c, count)
    half_touched = touched_experts(c, count, pool=c.num_experts // 2)
    slope = (all_touched - half_touched) / (most - half) if most > half else 0.0
    found = all_touched + slope * (free - most)
    return float(np.clip(found, c.experts_per_token, all_touched))


def first_token_row(model: gon.Model, name: str) -> list[str]:
    """From `generate` to the first token, other prompts each time on one loaded model."""
    times = []
    for seed in range(12):
        prompt = tokens_of(16, model.config.vocab_size, seed)
        with model.session() as session:
            start = time.perf_counter()
            next(session.generate(prompt, GREEDY, max_new_tokens=64))
            times.append(time.perf_counter() - start)
    seconds = statistics.median(times[4:])
    REACHED[f"{name} first"] = seconds
    touched = experts_as_routed(model, 16)
    floor = step_bytes(model, list(range(16)), experts=touched) / PEAKS["copy"]
    experts = f"{touched:.0f} of {model.config.num_experts}"
    return [name, "16", f"{1e3 * seconds:.2f}", experts, f"{1e3 * floor:.2f}"]


def prefill_rows(model: gon.Model, name: str, counts: Sequence[int]) -> Iterator[list[str]]:
    for count in counts:
        prompt = tokens_of(count, model.config.vocab_size)
        with model.session() as session:

            def run(session: gon.Session = session, prompt: list[int] = prompt) -> None:
                session.rewind(0)
                session.forward(prompt)

            seconds = best(run)
        rate = prefill_flops(model, count) / seconds
        REACHED[f"{name} prefill {count}"] = rate / PEAKS["matmul"]
        yield [
            name,
            str(count),
            f"{1e3 * seconds:.2f}",
            f"{count / seconds:.0f}",
            f"{rate / 1e12:.0f}",
            share(rate, "matmul"),
        ]


def counted_experts(model: gon.Model, running: Sequence[Generation[int]]) -> float:
    """Experts of a layer that a step of these generations touches, mean of all layers of four
    steps."""
    model.trace()
    for _ in range(4):
        model.next_tokens(running)
    totals = model.trace_totals()
    model.trace(on=False)
    return totals["experts touched"][0] / (totals["large_step"][0] * model.config.num_layers)


def many_row(
    model: gon.Model, name: str, lengths: Sequence[int], *, kernels: bool = False
) -> list[str]:
    """Many sequences through `next_tokens`, one token each a step. Each draws its own tokens at
    temperature 1: greedy ones of random weights soon run into the same tokens and their experts."""
    sessions = [model.session() for _ in lengths]
    steps = 32
    try:
        for index, (session, length) in enumerate(zip(sessions, lengths, strict=True)):
            session.forward(tokens_of(length, model.config.vocab_size, index), logits="none")
        running = [
            s.generate([5], gon.Sampling(seed=index), max_new_tokens=steps + 20)
            for index, s in enumerate(sessions)
        ]
        for _ in range(8):
            model.next_tokens(running)
        start = time.perf_counter()
        for _ in range(steps):
            model.next_tokens(running)
        seconds = (time.perf_counter() - start) / steps
        if kernels:
            title = f"kernels of a step of {len(lengths)} sequences, {name}"
            print_steps(title, lambda: [model.next_tokens(running) for _ in range(4)], 4, {})
        touched = counted_experts(model, running)
    finally:
        for session in sessions:
            session.close()
    count = len(lengths)
    num_bytes = step_bytes(model, [length + 24 for length in lengths], experts=touched)
    rate = num_bytes / seconds
    REACHED[f"{name} many {count}"] = count / seconds if count == 256 else rate / PEAKS["copy"]
    return [
        name,
        str(count),
        f"{statistics.mean(lengths):.0f}",
        f"{1e3 * seconds:.2f}",
        f"{count / seconds:.0f}",
        f"{touched:.0f}",
        f"{num_bytes / 1e9:.1f}",
        f"{rate / 1e9:.0f}",
        share(rate, "copy"),
    ]


HEADINGS = {
    "decode": (
        "decode, one sequence",
        ["", "sampling", "context", "us", "median", "tokens/s", "GB/token", "GB/s", "of copy"],
    ),
    "host": (
        "host work of a call that need not wait, us",
        ["", "sampling", "sequences", "median", "mean"],
    ),
    "first": (
        "from generate to the first token",
        ["", "prompt", "ms", "experts", "floor ms"],
    ),
    "prefill": ("prefill", ["", "tokens", "ms", "tokens/s", "TFLOP/s", "of matmul"]),
    "many": (
        "decode, many sequences, each its own tokens (temperature 1); experts: counted, a layer",
        [
            "",
            "sequences",
            "context",
            "ms/step",
            "tokens/s",
            "experts",
            "GB/step",
            "GB/s",
            "of copy",
        ],
    ),
}


def measure(model: gon.Model, name: str, args: argparse.Namespace) -> dict[str, list[list[str]]]:
    rows: dict[str, list[list[str]]] = {}
    if "decode" in args.parts:
        rows["decode"] = list(decode_rows(model, name, args.depths))
    if "host" in args.parts and name == args.presets[0]:
        rows["host"] = list(host_rows(model, name))
    if "first" in args.parts:
        rows["first"] = [first_token_row(model, name)]
    if "prefill" in args.parts:
        rows["prefill"] = list(prefill_rows(model, name, args.prompts))
    if "many" in args.parts:
        spread = np.random.default_rng(1).integers(768, 2305, 256)
        spread = [int(n) for n in spread - round(float(spread.mean()) - 1536)]
        rows["many"] = [
            many_row(model, name, lengths, kernels="kernels" in args.parts)
            for lengths in ([1024] * 64, spread)
        ]
    if "kernels" in args.parts:
        print_token(model, name)
        if rate := print_prompt(model, name):
            REACHED[f"{name} grouped"] = rate / PEAKS["matmul"]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--presets", nargs="+", default=["20b", "120b"])
    parser.add_argument("--depths", nargs="+", type=int, default=[512, 8192, 32768])
    parser.add_argument("--prompts", nargs="+", type=int, default=[2048, 8192])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--reached", type=Path, help="what other programs reached, JSON; is added")
    args = parser.parse_args()
    if reason := _core.cuda_status():
        sys.exit(f"no CUDA device: {reason}")
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    print(f"{_core.cuda_device_text()}; commit {os.environ.get('COMMIT') or commit or 'unknown'}")
    measure_peaks()
    print(
        f"copy bandwidth {PEAKS['copy'] / 1e9:.0f} GB/s (read and written), "
        f"bf16 8192^3 product {PEAKS['matmul'] / 1e12:.0f} TFLOP/s, both by PyTorch"
    )
    rows: dict[str, list[list[str]]] = {name: [] for name in HEADINGS}
    for preset in args.presets:
        start = time.perf_counter()
        with gon.Model.synthetic(preset) as model:
            made = time.perf_counter() - start
            memory = model.memory()
            print(
                f"{preset}: weights {memory['weights'] / 1e9:.2f} GB and workspace "
                f"{memory['workspace'] / 1e9:.2f} GB, made on the device in {made:.2f} s",
                flush=True,
            )
            for name, found in measure(model, preset, args).items():
                rows[name] += found
        print(f"{preset}: measured in {time.perf_counter() - start:.1f} s", flush=True)
    for name, (title, heading) in HEADINGS.items():
        if rows[name]:
            table(title, [heading, *rows[name]])
    if args.reached and args.reached.is_file():
        REACHED.update(json.loads(args.reached.read_text()))
    print_goals(REACHED)


if __name__ == "__main__":
    main()
