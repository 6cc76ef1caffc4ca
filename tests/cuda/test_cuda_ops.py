"""Ops on a CUDA device against the float64 reference, arrays in host and in device memory.

Activations enter products in bfloat16 there, so references see them rounded; accumulation is
float32. Attention's weights enter the product with the values in bfloat16 on the tensor cores.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gpt_oss_native import InvalidArgument
from reference import mxfp4
from reference import ops as reference
from reference.op_support import Output, normal, normal_bf16
from tolerances import (
    EPS_BF16,
    EPS_F32,
    assert_within,
    attention_bound,
    linear_bound,
    relative_bound,
    softmax_bound,
)

SIZE = 64
# Around the tiles of tokens of the kernels, and one token.
TOKENS = (1, 2, 7, 8, 9, 33, 64, 65, 130, 300)


@pytest.fixture(scope="module")
def table(cuda_device: str) -> Any:
    """The op table of the device."""
    from gpt_oss_native import _core

    return _core.Ops(device=cuda_device)


def test_embed_copies_rows_exactly(table: Any, rng: np.random.Generator) -> None:
    weights = normal_bf16(rng, 331, 96)
    tokens = rng.integers(0, 331, 70).astype(np.int32)
    out = Output(70, 96, padding=0)
    table.embed(tokens, weights, out.view)
    np.testing.assert_array_equal(out.values(), reference.bf16_values(weights)[tokens])


@pytest.mark.parametrize("hidden", [32, 96, 160, 2880])
def test_rms_norm_agrees_with_the_reference(
    table: Any, rng: np.random.Generator, hidden: int
) -> None:
    x, scale = normal(rng, 37, hidden, scale=3.0), normal_bf16(rng, hidden)
    out = Output(37, hidden)
    table.rms_norm(x, scale, 1e-5, out.view)
    expected = reference.rms_norm(x.astype(np.float64), reference.bf16_values(scale))
    assert_within(out.values(), expected, relative_bound(expected, 16.0), "rms_norm")


@pytest.mark.parametrize(("rows", "cols"), [(1, 32), (17, 96), (64, 160), (331, 64), (640, 2880)])
@pytest.mark.parametrize("accumulate", [False, True])
def test_linear_agrees_with_the_reference(
    table: Any, rng: np.random.Generator, rows: int, cols: int, accumulate: bool
) -> None:
    weight, bias = normal_bf16(rng, rows, cols), normal_bf16(rng, rows)
    w, b = reference.bf16_values(weight), reference.bf16_values(bias)
    for tokens in TOKENS:
        x = normal(rng, tokens, cols)
        seen = reference.round_bf16(x)
        out = Output(tokens, rows)
        before = normal(rng, tokens, rows)
        if accumulate:
            out.view[:] = before
        table.linear(x, weight, bias, accumulate, False, out.view)
        expected = reference.linear(seen, w, b) + (before if accumulate else 0.0)
        bound = linear_bound(seen, w, b) + 2.0 * EPS_F32 * np.abs(expected)
        assert_within(out.view, expected, bound, f"linear of {tokens} tokens")


@pytest.mark.parametrize(("rows", "cols"), [(32, 32), (64, 96), (160, 192), (5760, 2880)])
def test_linear_mxfp4_agrees_with_the_reference(
    table: Any, rng: np.random.Generator, rows: int, cols: int
) -> None:
    blocks = rng.integers(0, 256, (rows, cols // 32, 16), dtype=np.uint8)
    scales = rng.integers(116, 130, (rows, cols // 32), dtype=np.uint8)
    bias = normal_bf16(rng, rows)
    weight, b = mxfp4.decode(blocks, scales), reference.bf16_values(bias)
    for tokens in TOKENS if rows < 1000 else (1, 65):
        x = normal(rng, tokens + 3, cols)
        x_rows = rng.integers(0, tokens + 3, tokens).astype(np.int32)
        out_rows = rng.permutation(tokens + 2)[:tokens].astype(np.int32)
        out = Output(tokens + 2, rows)
        table.linear_mxfp4(x, blocks, scales, bias, x_rows, out_rows, True, out.view)
        seen = reference.round_bf16(x)[x_rows]
        expected = reference.linear(seen, weight, b)
        assert_within(out.values(out_rows), expected, linear_bound(seen, weight, b), "linear_mxfp4")


@pytest.mark.parametrize("scale", [0, 1, 2, 127, 200, 253, 254])
def test_linear_mxfp4_takes_every_scale(table: Any, rng: np.random.Generator, scale: int) -> None:
    blocks = rng.integers(0, 256, (32, 2, 16), dtype=np.uint8)
    if scale >= 253:
        blocks &= 0xBB  # up to 1.5: weights of 2^128 and more are beyond bfloat16 and float32
    scales = np.full((32, 2), scale, np.uint8)
    # Products stay within float32, the largest and the smallest scales included.
    exponent = min(127 - scale, 120)
    x = np.ldexp(normal(rng, 3, 64).astype(np.float64), exponent).astype(np.float32)
    rows = np.arange(3, dtype=np.int32)
    out = Output(3, 32)
    table.linear_mxfp4(x, blocks, scales, np.zeros(32, np.uint16), rows, rows, True, out.view)
    seen = reference.round_bf16(x)
    weight = mxfp4.decode(blocks, scales)
    assert_within(
        out.values(), reference.linear(seen, weight), linear_bound(seen, weight), f"scale {scale}"
    )


def test_swiglu_agrees_with_the_reference(table: Any, rng: np.random.Generator) -> None:
    x = normal(rng, 33, 2 * 77, scale=6.0)
    out = Output(33, 77)
    table.swiglu(x, 7.0, 1.702, out.view)
    expected = reference.swiglu(x.astype(np.float64), alpha=float(np.float32(1.702)))
    exponent = np.abs(1.702 * np.minimum(x[:, 0::2].astype(np.float64), 7.0))
    bound = EPS_F32 * (16.0 + 4.0 * exponent) * np.abs(expected) + 1e-37
    assert_within(out.values(), expected, bound, "swiglu")


def test_rope_rotates_halves(table: Any, rng: np.random.Generator) -> None:
    x, angles = normal(rng, 19, 5 * SIZE), normal(rng, 19, 32)
    cos_sin = np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    found = x.copy()
    table.rope(found, cos_sin)
    wide = x.astype(np.float64).reshape(19, 5, SIZE)
    expected = reference.rope(wide, cos_sin[:, :32].astype(float), cos_sin[:, 32:].astype(float))
    first, second = np.split(np.abs(wide), 2, axis=-1)
    size = np.concatenate([first + second] * 2, axis=-1)
    assert_within(found.reshape(wide.shape), expected, 4.0 * EPS_F32 * size, "rope")


@pytest.mark.parametrize(("experts", "chosen"), [(4, 1), (32, 4), (128, 4), (40, 8)])
def test_router_topk_agrees_with_the_reference(
    table: Any, rng: np.random.Generator, experts: int, chosen: int
) -> None:
    logits = normal(rng, 61, experts, scale=2.0)
    ids, weights = np.full((61, chosen), -1, np.int32), np.empty((61, chosen), np.float32)
    table.router_topk(logits, ids, weights, None)
    expected_ids, expected = reference.router_topk(logits.astype(np.float64), chosen)
    np.testing.assert_array_equal(ids, expected_ids)
    assert_within(weights, expected, softmax_bound(expected, 8.0), "router_topk")


def test_moe_combine_adds_the_weighted_sum(table: Any, rng: np.random.Generator) -> None:
    out, expert_out = normal(rng, 23, 96), normal(rng, 23 * 4, 96)
    weights = np.abs(normal(rng, 23, 4))
    parts = expert_out.reshape(23, 4, 96).astype(np.float64) * weights[:, :, None]
    expected = out + parts.sum(axis=1)
    bound = 8.0 * EPS_F32 * (np.abs(out) + np.abs(parts).sum(axis=1))
    table.moe_combine(expert_out, weights, out)
    assert_within(out, expected, bound, "moe_combine")


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("window", [0, 16, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 1), (16, 2), (64, 8)])
def test_attention_agrees_with_the_reference(
    table: Any, rng: np.random.Generator, heads: int, kv_heads: int, window: int, split: bool
) -> None:
    for queries, history in [(1, 1), (1, 65), (3, 200), (40, 40), (70, 333), (1, 2100)]:
        q = normal(rng, queries, heads * SIZE, scale=2.0)
        k, v = normal(rng, history, kv_heads * SIZE), normal(rng, history, kv_heads * SIZE)
        sinks = normal_bf16(rng, heads, scale=2.0)
        out = Output(queries, heads * SIZE)
        table.attention(q, k, v, sinks, window, "bf16", split, out.view)
        wide = [reference.round_bf16(a).reshape(len(a), -1, SIZE) for a in (q, k, v)]
        rest: dict[str, Any] = {
            "positions": np.arange(history - queries, history),
            "window": window or None,
        }
        values = reference.bf16_values(sinks)
        expected = reference.attention(*wide, values, **rest)
        # Weights and the result are rounded to bfloat16.
        bound = attention_bound(*wide, values, **rest, eps=EPS_F32)
        spread = np.sqrt((np.abs(wide[2]) ** 2).max(axis=0)).max()
        bound = bound + 2.0 * EPS_BF16 * (np.abs(expected) + 0.5 * spread)
        found = out.values().reshape(expected.shape)
        assert_within(found, expected, bound, f"attention of {queries} over {history}")


def test_arrays_in_device_memory_need_no_copy(table: Any, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch has no CUDA here")
    from gpt_oss_native import ops

    x, weight = normal(rng, 9, 96), normal_bf16(rng, 48, 96)
    on_device = torch.from_numpy(x).cuda()
    found = ops.linear(on_device, torch.from_numpy(weight).cuda().view(torch.bfloat16))
    assert found.is_cuda
    expected = Output(9, 48)
    table.linear(x, weight, None, False, False, expected.view)
    np.testing.assert_array_equal(found.cpu().numpy(), expected.values())


def test_what_a_cuda_device_does_not_have_is_refused(table: Any, rng: np.random.Generator) -> None:
    x = normal(rng, 2, 32)
    with pytest.raises(InvalidArgument, match="device='cpu'"):
        table.quantize_int8(x, np.empty((2, 32), np.int8), np.empty((2, 1), np.float32))
    with pytest.raises(InvalidArgument, match="device='cpu'"):
        table.linear(x, normal_bf16(rng, 32, 32), None, False, True, np.empty((2, 32), np.float32))
