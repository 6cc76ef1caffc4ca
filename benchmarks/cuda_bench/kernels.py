"""Time of each kernel inside a step, by the profiler of PyTorch, which sees every kernel of the
process: of one token against the bytes it cannot avoid, and of the expert products of a prompt."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import gpt_oss_native as gon

from .counts import PEAKS, expert_bytes, table, tokens_of

GREEDY = gon.Sampling(temperature=0)
_NAME = re.compile(r"(\w+?)(?:_kernel)?(?:<|\(|$)")


def short_name(name: str) -> str:
    """Of a kernel: without result, namespaces, arguments and parameters."""
    plain = name.replace("(anonymous namespace)::", "").removeprefix("void ")
    plain = re.sub(r"\b\w+::", "", plain)
    match = _NAME.match(plain)
    return match.group(1) if match else plain[:40]


def kernels_of(run: Callable[[], object]) -> list[tuple[str, int, float]]:
    """(name, start in ns, us) of every kernel of a call, in order."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    events: Any = profiler.profiler.kineto_results.events()
    kernels = [
        (short_name(e.name()), int(e.start_ns()), e.duration_ns() / 1e3)
        for e in events
        if "Mem" not in e.name() and e.duration_ns() > 0 and "CUDA" in str(e.device_type())
    ]
    return sorted(kernels, key=lambda kernel: kernel[1])


def floors(model: gon.Model) -> dict[str, float]:
    """Bytes of a kernel that reads weights, one token."""
    c = model.config
    q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    chosen = c.experts_per_token * expert_bytes(c)
    return {
        "qkv_small": 2.0 * c.hidden_size * (q + 2 * kv),
        "out_small": 2.0 * c.hidden_size * q,
        "gate_up_row": chosen * 2 / 3,
        "down_row": chosen / 3,
        "unembedding_small": 2.0 * c.vocab_size * c.hidden_size,
    }


def print_steps(
    title: str, run: Callable[[], object], count: int, bytes_of: dict[str, float]
) -> None:
    """Kernels of ``count`` steps, a step. Those that begin before the one before them ends overlap
    and wait for it, so their times add up to more than the step's; what each adds does not: the
    time from when all before it had ended to its own end."""
    kernels = kernels_of(run)
    if not kernels:
        print(f"\n{title}: the profiler saw none", flush=True)
        return
    added: dict[str, float] = {}
    end = kernels[0][1] / 1e3
    for kernel, start, us in kernels:
        added[kernel] = added.get(kernel, 0.0) + max(0.0, start / 1e3 + us - end)
        end = max(end, start / 1e3 + us)
    rows = [["", "a step", "us each", "us a step", "adds", "floor us", "of copy"]]
    for kernel in added:
        times = [us for other, _, us in kernels if other == kernel]
        mean, each = sum(times) / len(times), len(times) / count
        floor = 1e6 * bytes_of.get(kernel, 0.0) / PEAKS["copy"]
        of = [f"{floor:.2f}", f"{floor / mean:.1%}"] if floor else ["", ""]
        adds = f"{added[kernel] / count:.1f}"
        rows.append([kernel, f"{each:.1f}", f"{mean:.2f}", f"{mean * each:.1f}", adds, *of])
    span = (end - kernels[0][1] / 1e3) / count
    rows.append(["first to last", "", "", "", f"{span:.1f}", "", ""])
    table(title, rows)


def print_token(model: gon.Model, name: str, depth: int = 512) -> None:
    """Kernels of a decoded token."""
    count = 20
    with model.session() as session:
        session.forward(tokens_of(depth, model.config.vocab_size), logits="none")
        generation = session.generate([7], GREEDY, max_new_tokens=count + 10)
        for _ in range(5):
            next(generation)
        print_steps(
            f"kernels of a token, {name}, context {depth}",
            lambda: [next(generation) for _ in range(count)],
            count,
            floors(model),
        )
        generation.close()


def print_prompt(model: gon.Model, name: str, count: int = 4096) -> float:
    """Kernels of a prompt; the rate of the two grouped products together, operations a second."""
    c = model.config
    prompt = tokens_of(count, c.vocab_size)
    with model.session() as session:
        session.forward(prompt)
        session.rewind(0)
        kernels = kernels_of(lambda: session.forward(prompt))
    if not kernels:
        print(f"\n{name}: the profiler saw no kernels", flush=True)
        return 0.0
    products = [us for kernel, _, us in kernels if kernel.startswith("linear_mxfp4")]
    slots = count * c.experts_per_token
    flops = 2.0 * slots * c.hidden_size * c.intermediate_size
    rows = [["", "launches", "us each", "us in all", "TFLOP/s", "of matmul"]]

    def add(kernel: str, times: list[float], work: float) -> None:
        mean = sum(times) / len(times)
        rate = work / (mean * 1e-6)
        of = [f"{rate / 1e12:.0f}", f"{rate / PEAKS['matmul']:.1%}"] if work else ["", ""]
        rows.append([kernel, str(len(times)), f"{mean:.1f}", f"{sum(times):.0f}", *of])

    for kernel in dict.fromkeys(kernel for kernel, _, _ in kernels):
        times = [us for other, _, us in kernels if other == kernel]
        if kernel.startswith("linear_mxfp4"):  # in turn
            add(f"{kernel}, gate_up", times[0::2], 2 * flops)
            add(f"{kernel}, down", times[1::2], flops)
        else:
            add(kernel, times, 0)
    table(f"kernels of a prompt of {count} tokens, {name}", rows)
    return 3 * flops * c.num_layers / (sum(products) * 1e-6) if products else 0.0
