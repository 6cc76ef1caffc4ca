"""quantize_int8 and quantize_int15: blocks of 32 with scale amax / 127 and amax / 16256, codes
within that. What only the wider one has: test_quantize_int15."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class Quantizer:
    """An op that makes codes of `dtype` up to `largest`; `out` is its name for them."""

    bits: str
    dtype: type[np.signedinteger[Any]]
    largest: int
    out: str

    @property
    def name(self) -> str:
        return f"quantize_{self.bits}"

    def __call__(self, x: np.ndarray[Any, Any], **where: Any) -> Any:
        return getattr(ops, self.name)(x, **where)

    def of_table(self, isa: str, threads: int = 1) -> Callable[..., None]:
        call: Callable[..., None] = getattr(table(isa, threads), self.name)
        return call


INT8 = Quantizer("int8", np.int8, 127, "q")
INT15 = Quantizer("int15", np.int16, 16256, "codes")


@pytest.fixture(scope="module", params=[INT8, INT15], ids=["int8", "int15"])
def quantize(request: pytest.FixtureRequest) -> Quantizer:
    found: Quantizer = request.param
    return found


@given(
    seed=seeds,
    tokens=token_counts,
    blocks=st.integers(1, 23),
    exponent=st.integers(-40, 36),
    padding=st.integers(0, 9),
    threads=st.sampled_from(THREADS),
)
@examples(30)
def test_quantized_agrees_with_the_reference(
    quantize: Quantizer,
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
    codes = Output(tokens, 32 * blocks, quantize.dtype, padding=0)
    scales = Output(tokens, blocks, padding=0)
    rows = strided(x, padding=padding)
    quantize.of_table(device_isa, threads)(rows, codes.view, scales.view)
    found = codes.values()
    assert np.abs(found.astype(int)).max() <= quantize.largest
    assert_codes_are_nearest(found, scales.values(), x, bits=quantize.bits)


def test_quantized_bits_are_the_same_on_every_isa(
    quantize: Quantizer, device_isa: str, rng: np.random.Generator
) -> None:
    x = normal(rng, 17, HIDDEN) * np.float32(10.0) ** rng.integers(-42, 37, (17, 1))
    codes, scales = quantize(x.astype(np.float32), isa="scalar", threads=1)
    again, scales_again = quantize(x.astype(np.float32), isa=device_isa, threads=2)
    assert_same_bits(again, codes, "codes")
    assert_same_bits(scales_again, scales, "scales")


@pytest.mark.parametrize(
    "largest", [1.0, 127.0, 16256.0, 3.4028235e38, 1.1754944e-38, 1e-40, 1.4e-45]
)
def test_quantized_codes_are_within_the_largest(
    quantize: Quantizer, device_isa: str, largest: float
) -> None:
    x = np.zeros((4, 32), np.float32)
    x[0] = largest
    x[1] = -np.float32(largest)
    x[2, ::2], x[2, 1::2] = largest, -np.float32(largest)
    x[3] = np.linspace(-largest, largest, 32, dtype=np.float64)
    codes, scales = quantize(x, isa=device_isa, threads=1)
    assert np.abs(codes.astype(int)).max() <= quantize.largest
    assert (scales >= 0).all()
    assert_codes_are_nearest(codes, scales, x, bits=quantize.bits)
    if scales[0, 0] > 1e-38:
        assert (codes[0] == quantize.largest).all()
        assert (codes[1] == -quantize.largest).all()


def test_quantized_rounds_ties_to_even(quantize: Quantizer, device_isa: str) -> None:
    x = np.zeros((1, 32), np.float32)
    top = quantize.largest  # makes the scale 1
    x[0, :9] = [top, 0.5, 1.5, 2.5, top - 1.5, top - 0.5, -0.5, -1.5, -2.5]
    codes, scales = quantize(x, isa=device_isa, threads=1)
    assert scales[0, 0] == 1.0
    even = [(top - 1) // 2 * 2, top // 2 * 2]
    np.testing.assert_array_equal(codes[0, :9], [top, 0, 2, 2, *even, 0, -2, -2])


def test_quantized_of_zeros_is_zero(quantize: Quantizer, device_isa: str) -> None:
    x = np.zeros((2, 64), np.float32)
    x[1, :32] = -0.0
    codes, scales = quantize(x, isa=device_isa, threads=1)
    assert not codes.any()
    assert not scales.any()


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_quantized_marks_blocks_that_are_not_finite(
    quantize: Quantizer, device_isa: str, value: float, rng: np.random.Generator
) -> None:
    for place in range(32):
        x = normal(rng, 2, 96)
        x[1, 32 + place] = value
        codes, scales = quantize(x, isa=device_isa, threads=1)
        np.testing.assert_array_equal(np.isnan(scales), [[False] * 3, [False, True, False]])
        assert not codes[1, 32:64].any()
        assert_codes_are_nearest(codes, scales, x, bits=quantize.bits)


@given(seed=seeds, tokens=st.integers(1, 70), blocks=st.integers(2, 9))
@examples(10)
def test_quantized_bits_do_not_depend_on_what_is_beside(
    quantize: Quantizer, device_isa: str, seed: int, tokens: int, blocks: int
) -> None:
    rng = np.random.default_rng(seed)
    x = normal(rng, tokens, 32 * blocks)
    codes, scales = quantize(x, isa=device_isa, threads=1)
    token, block = int(rng.integers(0, tokens)), int(rng.integers(0, blocks))
    alone = np.ascontiguousarray(x[token : token + 1, 32 * block : 32 * block + 32])
    for threads in THREADS:
        one, scale = quantize(alone, isa=device_isa, threads=threads)
        assert_same_bits(one[0], codes[token, 32 * block : 32 * block + 32], "codes")
        assert_same_bits(scale[0], scales[token, block : block + 1], "scale")


def test_quantized_refuses_arguments_that_do_not_fit(quantize: Quantizer, device_isa: str) -> None:
    call = quantize.of_table(device_isa)
    x = np.ones((3, 64), np.float32)
    codes, scales = Output(3, 64, quantize.dtype, padding=0), Output(3, 2, padding=0)
    assert_refused(call, x.astype(np.float64), codes.view, scales.view, match="x: expected")
    assert_refused(call, x[0], codes.view, scales.view, match="x: expected")
    assert_refused(call, x[:, :48], codes.view, scales.view, match="multiple of 32")
    assert_refused(call, x[:, :0], codes.view, scales.view, match="multiple of 32")
    assert_refused(call, x[:2], codes.view, scales.view, match=f"{quantize.out}: expected")
    assert_refused(
        call, x, codes.view.view(np.uint8), scales.view, match=f"{quantize.out}: expected"
    )
    wide = np.zeros((3, 128), quantize.dtype)
    assert_refused(call, x, wide[:, :64], scales.view, match=f"{quantize.out}: expected")
    assert_refused(call, x, codes.view, scales.view[:, :1], match="scales: expected")
    assert_refused(call, x, read_only(codes.view), scales.view, match="read-only")
    codes.assert_untouched()
    scales.assert_untouched()
