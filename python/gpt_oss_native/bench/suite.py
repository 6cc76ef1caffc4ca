"""The cases of every op: the shapes of gpt-oss-20b and 120b, in decoding and in a prompt.

A case's bytes are what it reads and writes at least, each once: weights in their format, float32
activations in and out; what an op changes in place counts once, since it goes back to memory after
the clock has stopped. Its operations are the multiply-adds of its products, counted twice. Names
end in how many tokens there are; where a name has no model in it, both models have the shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _core, ops
from ..sampling import GREEDY, Sampling
from .cases import (
    HIDDEN,
    PUBLISHED_ATTENTION,
    PUBLISHED_LINEAR,
    PUBLISHED_MOE,
    VOCAB,
    AttentionCase,
    LinearCase,
)
from .harness import OpCase

F32, BF16, HEAD, BLOCK = 4, 2, 64, 32
INT8_BITS = (
    8 + 16 / BLOCK
)  # a block of dense weights has a scale of 16 bits (csrc/cpu/dense_weights)
MXFP4_BITS = 4 + 8 / BLOCK
TOP_K = 4
DECODE, BATCH, PROMPT = 1, 4, 512
_EMBED_ROWS = 16_384  # of the table: a row is all that an access touches

Random = np.random.Generator
Array = npt.NDArray[Any]


def _normal(random: Random, *shape: int) -> npt.NDArray[np.float32]:
    return random.standard_normal(shape, dtype=np.float32)


def _bf16(random: Random, *shape: int) -> npt.NDArray[np.uint16]:
    """Standard normal values; a large array repeats those of a small one."""
    size = int(np.prod(shape))
    some = ops.to_bf16(_normal(random, min(size, 1 << 20)))
    return np.resize(some, shape)


def _count(tokens: int) -> str:
    return "1 token" if tokens == 1 else f"{tokens} tokens"


# --- rows -----------------------------------------------------------------------------------------


def embed() -> Iterator[OpCase]:
    """Rows of the table, each at random."""
    for tokens in (DECODE, PROMPT):

        def make(random: Random, tokens: int = tokens) -> Callable[..., object]:
            ids = random.integers(0, _EMBED_ROWS, tokens, np.int32)
            table = _bf16(random, _EMBED_ROWS, HIDDEN)
            return lambda **where: ops.embed(ids, table, **where)

        num_bytes = tokens * HIDDEN * (BF16 + F32)
        yield OpCase(op="embed", case=f"{_count(tokens)}", num_bytes=num_bytes, make=make)


def rms_norm() -> Iterator[OpCase]:
    """The norm before each block."""
    for tokens in (DECODE, PROMPT):

        def make(random: Random, tokens: int = tokens) -> Callable[..., object]:
            x, scale = _normal(random, tokens, HIDDEN), _bf16(random, HIDDEN)
            return lambda **where: ops.rms_norm(x, scale, **where)

        num_bytes = tokens * HIDDEN * 2 * F32 + HIDDEN * BF16
        yield OpCase(op="rms_norm", case=f"{_count(tokens)}", num_bytes=num_bytes, make=make)


def quantize_int8() -> Iterator[OpCase]:
    """Activations of the expert products."""
    yield from _quantize("quantize_int8", 1, HIDDEN)


def quantize_int15() -> Iterator[OpCase]:
    """Activations of the dense int8 products: after a norm, and after attention."""
    yield from _quantize("quantize_int15", 2, HIDDEN)
    yield from _quantize("quantize_int15", 2, 64 * HEAD)


def _quantize(op: str, code_bytes: int, cols: int) -> Iterator[OpCase]:
    for tokens in (DECODE, PROMPT):

        def make(random: Random, tokens: int = tokens) -> Callable[..., object]:
            x = _normal(random, tokens, cols)
            return lambda **where: getattr(ops, op)(x, **where)

        num_bytes = tokens * cols * (F32 + code_bytes + F32 / BLOCK)
        yield OpCase(op=op, case=f"{cols}, {_count(tokens)}", num_bytes=num_bytes, make=make)


def swiglu() -> Iterator[OpCase]:
    """The four experts' products of each token."""
    width = PUBLISHED_MOE[0].width
    for tokens in (DECODE, PROMPT):
        rows = tokens * TOP_K

        def make(random: Random, rows: int = rows) -> Callable[..., object]:
            gate_up = _normal(random, rows, 2 * width)
            return lambda **where: ops.swiglu(gate_up, **where)

        num_bytes = rows * width * 3 * F32
        yield OpCase(op="swiglu", case=f"{_count(tokens)}", num_bytes=num_bytes, make=make)


def rope() -> Iterator[OpCase]:
    """Queries and keys together."""
    heads = 64 + 8
    for tokens in (DECODE, PROMPT):

        def make(random: Random, tokens: int = tokens) -> Callable[..., object]:
            x, cos_sin = _normal(random, tokens, heads * HEAD), _normal(random, tokens, HEAD)
            return lambda **where: ops.rope(x, cos_sin, **where)

        num_bytes = tokens * (heads * HEAD + HEAD) * F32
        yield OpCase(op="rope", case=f"72 heads, {_count(tokens)}", num_bytes=num_bytes, make=make)


# --- dense products -------------------------------------------------------------------------------


def linear_bf16() -> Iterator[OpCase]:
    """Attention, router and unembedding, weights in place."""
    for shape in PUBLISHED_LINEAR:
        for tokens in (DECODE, BATCH, PROMPT):
            if tokens < PROMPT or shape.n < VOCAB:  # only asked-for rows have logits
                yield _linear("linear_bf16", shape, tokens)


def linear_int8() -> Iterator[OpCase]:
    """The same repacked; the router stays bf16."""
    for shape in PUBLISHED_LINEAR:
        for tokens in (DECODE, BATCH, PROMPT):
            if (tokens < PROMPT or shape.n < VOCAB) and "router" not in shape.name:
                yield _linear("linear_int8", shape, tokens)


def _linear(op: str, shape: LinearCase, tokens: int) -> OpCase:
    int8 = op == "linear_int8"

    def make(random: Random) -> Callable[..., object]:
        x, weight = _normal(random, tokens, shape.k), _bf16(random, shape.n, shape.k)
        bias = _bf16(random, shape.n) if shape.bias else None
        dense = "int8" if int8 else "bf16"
        return lambda **where: ops.linear(x, weight, bias, dense=dense, **where)

    weight_bytes = shape.n * shape.k * (INT8_BITS / 8 if int8 else BF16)
    return OpCase(
        op=op,
        case=f"{shape.name}, {_count(tokens)}",
        num_bytes=weight_bytes + tokens * (shape.k + shape.n) * F32,
        operations=2 * shape.n * shape.k * tokens,
        arithmetic="int8" if int8 else "float32",
        make=make,
    )


# --- experts --------------------------------------------------------------------------------------


def linear_mxfp4() -> Iterator[OpCase]:
    """One expert's two matrices with one token, a few, and its share of a prompt of 512."""
    shape = PUBLISHED_MOE[0]
    rows = {_count(tokens): tokens for tokens in (DECODE, BATCH)}
    rows |= {
        f"{PROMPT * moe.top_k // moe.experts} tokens ({moe.name} prompt)": (
            PROMPT * moe.top_k // moe.experts
        )
        for moe in PUBLISHED_MOE
    }
    for name, n, k in (
        ("gate_up", 2 * shape.width, shape.hidden),
        ("down", shape.hidden, shape.width),
    ):
        for label, tokens in rows.items():

            def make(
                random: Random, n: int = n, k: int = k, tokens: int = tokens
            ) -> Callable[..., object]:
                blocks = random.integers(0, 256, (n, k // BLOCK, 16), np.uint8)
                scales = random.integers(118, 124, (n, k // BLOCK), np.uint8)
                x, bias = _normal(random, tokens, k), _bf16(random, n)
                return lambda **where: ops.linear_mxfp4(x, blocks, scales, bias, **where)

            yield OpCase(
                op="linear_mxfp4",
                case=f"{name}, {label}",
                num_bytes=n * k * MXFP4_BITS / 8 + tokens * (k + n * F32),
                operations=2 * n * k * tokens,
                arithmetic="int8",
                make=make,
            )


def router_topk() -> Iterator[OpCase]:
    """Four of all experts."""
    for moe in PUBLISHED_MOE:
        for tokens in (DECODE, PROMPT):

            def make(
                random: Random, tokens: int = tokens, experts: int = moe.experts
            ) -> Callable[..., object]:
                logits = _normal(random, tokens, experts)
                return lambda **where: ops.router_topk(logits, TOP_K, **where)

            num_bytes = tokens * (moe.experts * F32 + TOP_K * 2 * F32)
            case = f"{moe.name}, {_count(tokens)}"
            yield OpCase(op="router_topk", case=case, num_bytes=num_bytes, make=make)


def moe_combine() -> Iterator[OpCase]:
    """The weighted sum of four experts' outputs."""
    for tokens in (DECODE, PROMPT):

        def make(random: Random, tokens: int = tokens) -> Callable[..., object]:
            expert_out = _normal(random, tokens * TOP_K, HIDDEN)
            weights = np.full((tokens, TOP_K), 1 / TOP_K, np.float32)
            out = np.zeros((tokens, HIDDEN), np.float32)
            return lambda **where: ops.moe_combine(expert_out, weights, out, **where)

        num_bytes = tokens * HIDDEN * (TOP_K + 1) * F32
        yield OpCase(op="moe_combine", case=f"{_count(tokens)}", num_bytes=num_bytes, make=make)


# --- attention ------------------------------------------------------------------------------------


def attention() -> Iterator[OpCase]:
    """One layer: a token at several depths, and a prompt from the start and after 4,096 tokens."""
    for shape in PUBLISHED_ATTENTION:
        for depth in (128, 1024, 4096, 32_768):
            if shape.window is None or depth == 4096:
                yield _attention(shape, 1, depth, split=depth > 1024 and shape.window is None)
        for history in (PROMPT, 4096 + PROMPT):
            yield _attention(shape, PROMPT, history, split=False)


def _attention(shape: AttentionCase, queries: int, history: int, *, split: bool) -> OpCase:
    window = shape.window or 0

    def make(random: Random) -> Callable[..., object]:
        q = _normal(random, queries, shape.heads * HEAD)
        k, v = (_normal(random, history, shape.kv_heads * HEAD) for _ in range(2))
        sinks = _bf16(random, shape.heads)
        return lambda **where: ops.attention(q, k, v, sinks, window=window, split=split, **where)

    pairs, keys = visible_pairs(queries, history, shape.window)
    split_text = ", in pieces" if split else ""
    return OpCase(
        op="attention",
        case=f"{shape.name}, {queries} of {history}{split_text}",
        num_bytes=keys * shape.kv_heads * HEAD * 2 * BF16 + queries * shape.heads * HEAD * 2 * F32,
        operations=4 * pairs * shape.heads * HEAD,
        arithmetic="float32",
        make=make,
    )


def visible_pairs(queries: int, history: int, window: int | None) -> tuple[int, int]:
    """(query, key) pairs of a head that the mask lets through, and keys that any query sees; the
    queries are the last of the history."""
    seen = [min(position + 1, window or history) for position in range(history - queries, history)]
    keys = history if window is None else min(history, queries + window - 1)
    return sum(seen), keys


# --- sampling -------------------------------------------------------------------------------------


def sampler() -> Iterator[OpCase]:
    """One token from the logits of the published vocabulary, in one thread, called from Python."""
    ways = {
        "greedy": GREEDY,
        "temperature 1": Sampling(seed=1),
        "top-p 0.95": Sampling(top_p=0.95, seed=1),
        "top-k 50": Sampling(top_k=50, seed=1),
        "penalties": Sampling(repetition_penalty=1.1, frequency_penalty=0.2, seed=1),
    }
    for name, sampling in ways.items():

        def make(random: Random, sampling: Sampling = sampling) -> Callable[..., object]:
            logits = 3 * _normal(random, VOCAB)
            core = _core.Sampler(sampling, VOCAB, prompt=list(range(1000)))
            return lambda **where: core.sample(logits)

        yield OpCase(op="sampler", case=name, num_bytes=VOCAB * F32, make=make, timed_whole=True)


SUITE: dict[str, Callable[[], Iterator[OpCase]]] = {
    "embed": embed,
    "rms_norm": rms_norm,
    "linear_bf16": linear_bf16,
    "linear_int8": linear_int8,
    "linear_mxfp4": linear_mxfp4,
    "swiglu": swiglu,
    "rope": rope,
    "attention": attention,
    "router_topk": router_topk,
    "moe_combine": moe_combine,
    "quantize_int8": quantize_int8,
    "quantize_int15": quantize_int15,
    "sampler": sampler,
}
