"""Products and attention on a CUDA device against the float64 reference, arrays in host and in
device memory. The other ops are in tests/ops, for every device.

Activations enter products in bfloat16 there, so references see them rounded; accumulation is
float32. Attention's weights enter the product with the values in bfloat16 on the tensor cores.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gpt_oss_native import InvalidArgument, ops
from reference import mxfp4
from reference import ops as reference
from reference.op_support import Output, normal, normal_bf16
from tolerances import (
    EPS_BF16,
    EPS_F32,
    assert_within,
    attention_bound,
    linear_bound,
)

SIZE = 64
# Around the tiles of tokens of the kernels, and one token.
TOKENS = (1, 2, 7, 8, 9, 33, 64, 65, 130, 300)


@pytest.fixture(scope="module")
def table(cuda_device: str) -> Any:
    """The op table of the device."""
    from gpt_oss_native import _core

    return _core.Ops(device=cuda_device)


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


def library_arrays(name: str) -> tuple[Any, Any]:
    """Of torch or CuPy: numpy to the library's array on the device, and back."""
    library = pytest.importorskip(name)
    if name == "cupy":
        return library.asarray, library.asnumpy
    if not library.cuda.is_available():
        pytest.skip("torch has no CUDA here")
    return (lambda a: library.from_numpy(a).cuda()), (lambda a: a.cpu().numpy())


@pytest.mark.parametrize("name", ["torch", "cupy"])
def test_arrays_of_other_libraries_stay_in_device_memory(
    cuda_device: str, rng: np.random.Generator, name: str
) -> None:
    to_device, to_host = library_arrays(name)
    x, weight, bias = normal(rng, 9, 96), normal_bf16(rng, 48, 96), normal_bf16(rng, 48)
    here = {"device": cuda_device}
    found = ops.linear(to_device(x), to_device(weight), to_device(bias))
    assert type(found) is type(to_device(x))
    np.testing.assert_array_equal(to_host(found), ops.linear(x, weight, bias, **here))
    scale = normal_bf16(rng, 96)
    found = ops.rms_norm(to_device(x), to_device(scale))
    np.testing.assert_array_equal(to_host(found), ops.rms_norm(x, scale, **here))
    blocks = rng.integers(0, 256, (64, 3, 16), dtype=np.uint8)
    scales = rng.integers(118, 128, (64, 3), dtype=np.uint8)
    bias = normal_bf16(rng, 64)
    found = ops.linear_mxfp4(*map(to_device, (x, blocks, scales, bias)))
    np.testing.assert_array_equal(to_host(found), ops.linear_mxfp4(x, blocks, scales, bias, **here))
    logits = normal(rng, 9, 32)
    for one, other in zip(
        ops.router_topk(to_device(logits), 4), ops.router_topk(logits, 4, **here), strict=True
    ):
        np.testing.assert_array_equal(to_host(one), other)
    q, k, v = normal(rng, 3, 8 * SIZE), normal(rng, 70, SIZE), normal(rng, 70, SIZE)
    sinks = normal_bf16(rng, 8)
    found = ops.attention(*map(to_device, (q, k, v, sinks)), window=16)
    np.testing.assert_array_equal(to_host(found), ops.attention(q, k, v, sinks, window=16, **here))


def test_torch_arrays_are_read_and_written_in_place(
    cuda_device: str, rng: np.random.Generator
) -> None:
    torch = pytest.importorskip("torch")
    to_device, to_host = library_arrays("torch")
    x, weight = normal(rng, 5, 64), normal_bf16(rng, 32, 64)
    wide = to_device(normal(rng, 5, 40))  # rows further apart than they are long
    before = to_host(wide).copy()
    bf16 = to_device(weight.view(np.int16)).view(torch.bfloat16)
    assert ops.linear(to_device(x), bf16, add_to=wide[:, :32]) is not None
    expected = before[:, :32].copy()
    ops.linear(x, weight, add_to=expected, device=cuda_device)
    np.testing.assert_array_equal(to_host(wide)[:, :32], expected)
    np.testing.assert_array_equal(to_host(wide)[:, 32:], before[:, 32:])
    with pytest.raises(InvalidArgument, match="expected"):
        ops.linear(to_device(x).double(), bf16)


def test_what_a_cuda_device_does_not_have_is_refused(table: Any, rng: np.random.Generator) -> None:
    x = normal(rng, 2, 32)
    with pytest.raises(InvalidArgument, match="device='cpu'"):
        table.quantize_int8(x, np.empty((2, 32), np.int8), np.empty((2, 1), np.float32))
    with pytest.raises(InvalidArgument, match="device='cpu'"):
        table.linear(x, normal_bf16(rng, 32, 32), None, False, True, np.empty((2, 32), np.float32))
