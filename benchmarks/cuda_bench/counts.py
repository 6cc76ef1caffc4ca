"""What is counted and not measured: the bytes that a step cannot avoid reading, the operations of a
prompt; and the peaks that shares are of, measured by PyTorch in the same run."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence

import gpt_oss_native as gon
import numpy as np
from gpt_oss_native.checkpoint import ModelConfig

KV_BYTES = 2  # bfloat16
PEAKS: dict[str, float] = {}  # "copy" and "matmul": bytes and operations a second


def table(title: str, rows: Sequence[Sequence[str]]) -> None:
    """Print rows, heading first, in columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print(f"\n{title}")
    for row in rows:
        first = row[0].ljust(widths[0])
        rest = "  ".join(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))
        print(f"  {first}  {rest}".rstrip())
    sys.stdout.flush()


def tokens_of(count: int, vocab: int, seed: int = 0) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, vocab, count)]


def share(value: float, peak: str) -> str:
    return f"{value / PEAKS[peak]:.1%}"


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
    PEAKS["matmul"] = 2 * 8192**3 / seconds(torch.matmul, a, b, repeats=20)
    del a, b
    torch.cuda.empty_cache()


def kv_bytes(config: ModelConfig, position: int) -> float:
    """Keys and values that one token at a position reads."""
    seen = [min(position, config.sliding_window) if w else position for w in config.layer_windows]
    return float(sum(seen)) * 2 * config.num_kv_heads * config.head_dim * KV_BYTES


def expert_bytes(config: ModelConfig) -> float:
    """Of one expert of one layer."""
    return 3 * config.intermediate_size * config.hidden_size * 17 / 32


def touched_experts(config: ModelConfig, tokens: int, *, pool: int | None = None) -> float:
    """Experts of a layer, or of a pool of them, that so many tokens choose evenly, on average."""
    pool = config.num_experts if pool is None else pool
    return pool * (1 - (1 - config.experts_per_token / pool) ** tokens)


def step_bytes(
    model: gon.Model, positions: Sequence[int], *, experts: float | None = None
) -> float:
    """Bytes of a step of one token for each position; ``experts``: of a layer, touched."""
    config, report = model.config, model.report()
    per_expert = config.num_layers * expert_bytes(config)
    dense = report.token_bytes_bf16 - per_expert * config.experts_per_token
    touched = touched_experts(config, len(positions)) if experts is None else experts
    return dense + per_expert * touched + sum(kv_bytes(config, p) for p in positions)


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
