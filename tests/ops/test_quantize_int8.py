"""quantize_int8: blocks of 32 with scale amax / 127, codes within +-127."""

from __future__ import annotations

import numpy as np
import pytest
from cases import HIDDEN, strided
from gpt_oss_native import ops
from hypothesis import given
from hypothesis import strategies as st
from reference.op_support import (
    THREADS,
    Output,
    assert_codes_are_nearest,
    assert_refused,
    assert_same_bits,
    examples,
    normal,
    read_only,
    seeds,
    table,
    token_counts,
)


@given(
    seed=seeds,
    tokens=token_counts,
    blocks=st.integers(1, 23),
    exponent=st.integers(-40, 36),
    padding=st.integers(0, 9),
    threads=st.sampled_from(THREADS),
)
@examples(30)
def test_quantize_int8_agrees_with_the_reference(
    device_isa: str,
    seed: int,
    tokens: int,
    blocks: int,
    exponent: int,
    padding: int,
    threads: int,
) -> None:
    rng = np.random.default_rng(seed)
    x = normal(rng, tokens, 32 * blocks, scale=10.0**exponent)
    codes = Output(tokens, 32 * blocks, np.int8, padding=0)
    scales = Output(tokens, blocks, padding=0)
    rows = strided(x, padding=padding)
    table(device_isa, threads).quantize_int8(rows, codes.view, scales.view)
    found = codes.values()
    assert found.min() >= -127
    assert_codes_are_nearest(found, scales.values(), x, bits="int8")


def test_quantize_int8_bits_are_the_same_on_every_isa(
    device_isa: str, rng: np.random.Generator
) -> None:
    x = normal(rng, 17, HIDDEN) * np.float32(10.0) ** rng.integers(-42, 37, (17, 1))
    codes, scales = ops.quantize_int8(x.astype(np.float32), isa="scalar", threads=1)
    again, scales_again = ops.quantize_int8(x.astype(np.float32), isa=device_isa, threads=2)
    assert_same_bits(again, codes, "codes")
    assert_same_bits(scales_again, scales, "scales")


@pytest.mark.parametrize("largest", [1.0, 127.0, 3.4028235e38, 1.1754944e-38, 1e-40, 1.4e-45])
def test_quantize_int8_never_emits_minus_128(device_isa: str, largest: float) -> None:
    x = np.zeros((4, 32), np.float32)
    x[0] = largest
    x[1] = -np.float32(largest)
    x[2, ::2], x[2, 1::2] = largest, -np.float32(largest)
    x[3] = np.linspace(-largest, largest, 32, dtype=np.float64)
    codes, scales = ops.quantize_int8(x, isa=device_isa, threads=1)
    assert codes.min() >= -127
    assert (scales >= 0).all()
    assert_codes_are_nearest(codes, scales, x, bits="int8")
    if scales[0, 0] > 1e-38:
        assert (codes[0] == 127).all()
        assert (codes[1] == -127).all()


def test_quantize_int8_rounds_ties_to_even(device_isa: str) -> None:
    x = np.zeros((1, 32), np.float32)
    x[0, :9] = [127, 0.5, 1.5, 2.5, 125.5, 126.5, -0.5, -1.5, -2.5]  # 127 makes the scale 1
    codes, scales = ops.quantize_int8(x, isa=device_isa, threads=1)
    assert scales[0, 0] == 1.0
    np.testing.assert_array_equal(codes[0, :9], [127, 0, 2, 2, 126, 126, 0, -2, -2])


def test_quantize_int8_of_zeros_is_zero(device_isa: str) -> None:
    x = np.zeros((2, 64), np.float32)
    x[1, :32] = -0.0
    codes, scales = ops.quantize_int8(x, isa=device_isa, threads=1)
    assert not codes.any()
    assert not scales.any()


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_quantize_int8_marks_blocks_that_are_not_finite(
    device_isa: str, value: float, rng: np.random.Generator
) -> None:
    for place in range(32):
        x = normal(rng, 2, 96)
        x[1, 32 + place] = value
        codes, scales = ops.quantize_int8(x, isa=device_isa, threads=1)
        np.testing.assert_array_equal(np.isnan(scales), [[False] * 3, [False, True, False]])
        assert not codes[1, 32:64].any()
        assert_codes_are_nearest(codes, scales, x, bits="int8")


@given(seed=seeds, tokens=st.integers(1, 70), blocks=st.integers(2, 9))
@examples(10)
def test_quantize_int8_bits_do_not_depend_on_what_is_beside(
    device_isa: str, seed: int, tokens: int, blocks: int
) -> None:
    rng = np.random.default_rng(seed)
    x = normal(rng, tokens, 32 * blocks)
    codes, scales = ops.quantize_int8(x, isa=device_isa, threads=1)
    token, block = int(rng.integers(0, tokens)), int(rng.integers(0, blocks))
    alone = np.ascontiguousarray(x[token : token + 1, 32 * block : 32 * block + 32])
    for threads in THREADS:
        one, scale = ops.quantize_int8(alone, isa=device_isa, threads=threads)
        assert_same_bits(one[0], codes[token, 32 * block : 32 * block + 32], "codes")
        assert_same_bits(scale[0], scales[token, block : block + 1], "scale")


def test_quantize_int8_refuses_arguments_that_do_not_fit(device_isa: str) -> None:
    call = table(device_isa).quantize_int8
    x = np.ones((3, 64), np.float32)
    codes, scales = Output(3, 64, np.int8, padding=0), Output(3, 2, padding=0)
    assert_refused(call, x.astype(np.float64), codes.view, scales.view, match="x: expected")
    assert_refused(call, x[0], codes.view, scales.view, match="x: expected")
    assert_refused(call, x[:, :48], codes.view, scales.view, match="multiple of 32")
    assert_refused(call, x[:, :0], codes.view, scales.view, match="multiple of 32")
    assert_refused(call, x[:2], codes.view, scales.view, match="q: expected")
    assert_refused(call, x, codes.view.view(np.uint8), scales.view, match="q: expected")
    wide = np.zeros((3, 128), np.int8)
    assert_refused(call, x, wide[:, :64], scales.view, match="q: expected")
    assert_refused(call, x, codes.view, scales.view[:, :1], match="scales: expected")
    assert_refused(call, x, read_only(codes.view), scales.view, match="read-only")
    codes.assert_untouched()
    scales.assert_untouched()
