"""Tables of the CUDA engine on synthetic weights of the published shapes, beside the bandwidth and
the matmul rate that PyTorch reaches in the same run. benchmarks/bench_cuda.sh builds what it needs.

Bytes and operations are counted, not measured: what a step cannot avoid reading (weights of the
experts that are touched, keys and values), and two operations a weight and token.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import gpt_oss_native as gon
import numpy as np
from gpt_oss_native import _core
from gpt_oss_native.checkpoint import ModelConfig
from gpt_oss_native.synthesize import PRESETS, hugging_face_config, hugging_face_tensors

GREEDY = gon.Sampling(temperature=0)
KV_BYTES = 2  # bfloat16
PEAKS: dict[str, float] = {}  # bytes and operations a second


def table(title: str, rows: Sequence[Sequence[str]]) -> None:
    """Print rows, heading first, in columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print(f"\n{title}")
    for row in rows:
        print("  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    sys.stdout.flush()


def tokens_of(count: int, vocab: int, seed: int = 0) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, vocab, count)]


def best(run: Callable[[], object], repeats: int = 3) -> float:
    """Seconds of the fastest run, one unmeasured before."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


# --- peaks ----------------------------------------------------------------------------------------


def measure_peaks() -> None:
    """Copy bandwidth (bytes read and written) and the rate of a bf16 product on random data."""
    import torch

    def seconds(run: Callable[..., object], *arrays: object, repeats: int) -> float:
        run(*arrays)
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        times = []
        for _ in range(repeats):
            start.record()
            run(*arrays)
            stop.record()
            stop.synchronize()
            times.append(start.elapsed_time(stop) / 1e3)
        return statistics.median(times)

    source = torch.empty(1 << 30, dtype=torch.float32, device="cuda").normal_()
    target = torch.empty_like(source)
    PEAKS["copy"] = 2 * source.nbytes / seconds(target.copy_, source, repeats=7)
    del source, target
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    PEAKS["matmul"] = 2 * 8192**3 / seconds(torch.matmul, a, b, repeats=10)
    del a, b
    torch.cuda.empty_cache()


# --- what a step costs at least -------------------------------------------------------------------


def kv_bytes(config: ModelConfig, position: int) -> float:
    """Keys and values that one token at a position reads."""
    seen = [min(position, config.sliding_window) if w else position for w in config.layer_windows]
    return float(sum(seen)) * 2 * config.num_kv_heads * config.head_dim * KV_BYTES


def step_bytes(model: gon.Model, positions: Sequence[int]) -> float:
    """Bytes of a step of one token for each position: every expert that is touched on average."""
    config, report = model.config, model.report()
    experts = config.num_layers * 3 * config.intermediate_size * config.hidden_size * 17 / 32
    dense = report.token_bytes_bf16 - experts * config.experts_per_token
    untouched = (1 - config.experts_per_token / config.num_experts) ** len(positions)
    touched = config.num_experts * (1 - untouched)
    return dense + experts * touched + sum(kv_bytes(config, p) for p in positions)


def prefill_flops(model: gon.Model, count: int) -> float:
    """Operations of a prompt, the logits of its last token included."""
    config, report = model.config, model.report()
    unembedding = config.vocab_size * config.hidden_size
    flops = 2.0 * (report.active_parameters - unembedding) * count + 2.0 * unembedding
    for window in config.layer_windows:
        positions = np.arange(1, count + 1, dtype=np.float64)
        seen = np.minimum(positions, config.sliding_window) if window else positions
        flops += 4.0 * config.num_heads * config.head_dim * float(seen.sum())
    return flops


def share(value: float, peak: str) -> str:
    return f"{value / PEAKS[peak]:.1%}"


# --- tables ---------------------------------------------------------------------------------------


def decode_rows(model: gon.Model, name: str, depths: Sequence[int]) -> Iterator[list[str]]:
    for depth in depths:
        with model.session() as session:
            session.forward(tokens_of(depth, model.config.vocab_size), logits="none")
            for what, sampling in (("greedy", GREEDY), ("temperature 1", gon.Sampling(seed=1))):
                stamps = []
                for _ in session.generate([7], sampling, max_new_tokens=150):
                    stamps.append(time.perf_counter())
                times = np.diff(stamps[20:])
                mean = float(times.mean())
                rate = step_bytes(model, [depth + 85]) / mean
                yield [
                    name,
                    what,
                    str(depth),
                    f"{1e6 * mean:.1f}",
                    f"{1e6 * float(np.median(times)):.1f}",
                    f"{1 / mean:.0f}",
                    f"{step_bytes(model, [depth + 85]) / 1e9:.2f}",
                    f"{rate / 1e9:.0f}",
                    share(rate, "copy"),
                ]
                if depth != depths[0]:
                    break


def prefill_rows(model: gon.Model, name: str, counts: Sequence[int]) -> Iterator[list[str]]:
    for count in counts:
        prompt = tokens_of(count, model.config.vocab_size)
        with model.session() as session:

            def run(session: gon.Session = session, prompt: list[int] = prompt) -> None:
                session.rewind(0)
                session.forward(prompt)

            seconds = best(run)
        rate = prefill_flops(model, count) / seconds
        yield [
            name,
            str(count),
            f"{1e3 * seconds:.2f}",
            f"{count / seconds:.0f}",
            f"{rate / 1e12:.0f}",
            share(rate, "matmul"),
        ]


def first_token_row(model: gon.Model, name: str) -> list[str]:
    prompt = tokens_of(16, model.config.vocab_size)
    with model.session() as session:

        def run() -> None:
            session.rewind(0)
            next(session.generate(prompt, GREEDY, max_new_tokens=1))

        return [name, "16", f"{1e3 * best(run, 7):.2f}"]


def batch_row(model: gon.Model, name: str, sequences: int, depth: int) -> list[str]:
    """Many sequences, one token each a step; lengths spread by half around the mean."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(depth // 2, depth + depth // 2 + 1, sequences)
    sessions = [model.session() for _ in range(sequences)]
    steps = 24
    try:
        for session, length in zip(sessions, lengths, strict=True):
            prompt = tokens_of(int(length), model.config.vocab_size, int(length))
            session.forward(prompt, logits="none")
        running = [s.generate([5], GREEDY, max_new_tokens=steps + 8) for s in sessions]
        for _ in range(6):
            model.next_tokens(running)
        start = time.perf_counter()
        for _ in range(steps):
            model.next_tokens(running)
        seconds = (time.perf_counter() - start) / steps
    finally:
        for session in sessions:
            session.close()
    num_bytes = step_bytes(model, [int(length) + 18 for length in lengths])
    return [
        name,
        str(sequences),
        str(depth),
        f"{1e3 * seconds:.2f}",
        f"{sequences / seconds:.0f}",
        f"{num_bytes / 1e9:.1f}",
        f"{num_bytes / seconds / 1e9:.0f}",
        share(num_bytes / seconds, "copy"),
    ]


def load_rows(directory: Path) -> Iterator[list[str]]:
    """A 20b checkpoint of arbitrary bytes (valid scales), from the page cache to ready."""
    import json

    from gpt_oss_native.checkpoint.safetensors_writer import write_safetensors

    shape = PRESETS["20b"]
    chunk = np.random.default_rng(2).integers(64, 120, 64 << 20, dtype=np.uint8)

    def data(spec: object) -> Iterator[np.ndarray]:
        left = int(spec.nbytes)  # type: ignore[attr-defined]
        while left > 0:
            yield chunk[: min(left, chunk.nbytes)]
            left -= min(left, chunk.nbytes)

    write_safetensors(directory / "model.safetensors", hugging_face_tensors(shape), data=data)
    (directory / "config.json").write_text(json.dumps(hugging_face_config(shape)))
    for attempt in (1, 2, 3):
        start = time.perf_counter()
        with gon.Model.load(directory, device="cuda"):
            seconds = time.perf_counter() - start
        yield ["20b", str(attempt), f"{seconds:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--presets", nargs="+", default=["20b", "120b"])
    parser.add_argument("--depths", nargs="+", type=int, default=[512, 32768])
    parser.add_argument("--prompts", nargs="+", type=int, default=[2048, 8192])
    parser.add_argument("--no-batch", action="store_true", help="leave out many sequences")
    parser.add_argument("--load", action="store_true", help="write a 20b checkpoint and load it")
    args = parser.parse_args()
    if reason := _core.cuda_status():
        sys.exit(f"no CUDA device: {reason}")
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    commit = os.environ.get("COMMIT") or commit or "unknown"
    print(f"{_core.cuda_device_text()}; commit {commit}")
    measure_peaks()
    print(
        f"copy bandwidth {PEAKS['copy'] / 1e9:.0f} GB/s (read and written), "
        f"bf16 8192^3 product {PEAKS['matmul'] / 1e12:.0f} TFLOP/s, both by PyTorch"
    )
    rows: dict[str, list[list[str]]] = {name: [] for name in ("decode", "prefill", "first", "many")}
    for preset in args.presets:
        start = time.perf_counter()
        with gon.Model.synthetic(preset) as model:
            held = sum(v for k, v in model.memory().items() if k in ("weights", "workspace"))
            made = time.perf_counter() - start
            print(f"{preset}: {held / 1e9:.2f} GB made on the device in {made:.2f} s", flush=True)
            rows["decode"] += decode_rows(model, preset, args.depths)
            rows["first"].append(first_token_row(model, preset))
            rows["prefill"] += prefill_rows(model, preset, args.prompts)
            if not args.no_batch:
                rows["many"].append(batch_row(model, preset, 64, 1024))
                rows["many"].append(batch_row(model, preset, 256, 1536))
    table(
        "decode, one sequence",
        [
            ["", "sampling", "context", "us", "median", "tokens/s", "GB/token", "GB/s", "of copy"],
            *rows["decode"],
        ],
    )
    table("time to the first token", [["", "prompt", "ms"], *rows["first"]])
    table("prefill", [["", "tokens", "ms", "tokens/s", "TFLOP/s", "of matmul"], *rows["prefill"]])
    if rows["many"]:
        heading = ["", "sequences", "context", "ms/step", "tokens/s", "GB/step", "GB/s", "of copy"]
        table("decode, many sequences", [heading, *rows["many"]])
    if args.load:
        with tempfile.TemporaryDirectory() as directory:
            load = list(load_rows(Path(directory)))
        table("load from the page cache", [["", "attempt", "s"], *load])


if __name__ == "__main__":
    main()
