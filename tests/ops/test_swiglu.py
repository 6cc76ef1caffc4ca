"""swiglu: interleaved gates and ups, clamped, gate * sigmoid(alpha * gate) * (up + 1)."""

from __future__ import annotations

import numpy as np
import pytest
from cases import HIDDEN, strided
from gpt_oss_native import ops
from hypothesis import given
from hypothesis import strategies as st
from reference import ops as reference
from reference.op_support import (
    THREADS,
    Output,
    assert_refused,
    assert_same_bits,
    examples,
    normal,
    read_only,
    seeds,
    table,
    token_counts,
    where,
)
from tolerances import EPS_F32, TINY_F32, assert_within

ALPHA, LIMIT = 1.702, 7.0
# exp(89) is beyond float32: such a gate's sigmoid, below 2^-126, may become zero; on CUDA a
# quotient by more than 2^126 = exp(87.3) does.
LARGEST_EXPONENT = 87.0


def expected_of(x: np.ndarray, limit: float = LIMIT, alpha: float = ALPHA) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        wide = x.astype(np.float64)
        return reference.swiglu(
            wide, limit=float(np.float32(limit)), alpha=float(np.float32(alpha))
        )


def check_against_reference(
    found: np.ndarray, x: np.ndarray, limit: float = LIMIT, alpha: float = ALPHA
) -> None:
    """An absolute error of the exponent is a relative one of the sigmoid; the exponential, two
    products, two sums and a quotient add a few roundoffs."""
    expected = expected_of(x, limit, alpha)
    exponent = np.abs(alpha * np.minimum(x[:, 0::2].astype(np.float64), limit))
    bound = EPS_F32 * (10.0 + 2.0 * exponent) * np.abs(expected) + TINY_F32
    bound = bound + np.where(exponent > LARGEST_EXPONENT, np.abs(expected), 0.0)
    assert_within(found, expected, bound, "swiglu")


@given(
    seed=seeds,
    tokens=token_counts,
    width=st.one_of(st.integers(1, 40), st.integers(1, 400)),
    magnitude=st.sampled_from([1e-20, 0.1, 1.0, 8.0, 40.0, 1e4]),
    limit=st.sampled_from([7.0, 2.0, 30.0]),
    alpha=st.sampled_from([1.702, 1.0]),
    padding=st.integers(0, 9),
    threads=st.sampled_from(THREADS),
)
@examples(40)
def test_swiglu_agrees_with_the_reference(
    op_device: str,
    seed: int,
    tokens: int,
    width: int,
    magnitude: float,
    limit: float,
    alpha: float,
    padding: int,
    threads: int,
) -> None:
    rng = np.random.default_rng(seed)
    x = normal(rng, tokens, 2 * width, scale=magnitude)
    out = Output(tokens, width, padding=padding)
    rows = strided(x, padding=2 * padding)
    table(op_device, threads).swiglu(rows, limit, alpha, out.view)
    check_against_reference(out.values(), x, limit, alpha)


def test_swiglu_clamps_the_gate_above_and_the_up_on_both_sides(op_device: str) -> None:
    gates = np.array([6.9, 7.0, 7.1, 50.0, 3e38, -7.5, -20.0], np.float32)
    ups = np.array([-3e38, -7.1, -7.0, -1.0, 0.0, 7.0, 7.1, 100.0], np.float32)
    pairs = np.array([(g, u) for g in gates for u in ups], np.float32)
    found = ops.swiglu(pairs.reshape(1, -1), **where(op_device), threads=1)
    check_against_reference(found, pairs.reshape(1, -1))
    grid = found.reshape(len(gates), len(ups))
    assert_same_bits(grid[2], grid[1], "gates above 7 are 7")
    assert_same_bits(grid[4], grid[1], "gates far above 7 are 7")
    assert_same_bits(grid[:, 0].copy(), grid[:, 2].copy(), "ups below -7 are -7")
    assert_same_bits(grid[:, 7].copy(), grid[:, 5].copy(), "ups above 7 are 7")
    # Not clamped below: a gate of -20 is nearly silent, one of -7 would not be.
    assert (np.abs(grid[6]) < 1e-12).all()
    assert (grid[:, 3] == 0).all()  # up + 1 = 0


def test_swiglu_takes_gates_from_even_columns(op_device: str) -> None:
    for width in range(1, 40):
        x = np.zeros((1, 2 * width), np.float32)
        x[0, 0::2] = np.linspace(-3, 3, width)
        found = ops.swiglu(x, **where(op_device), threads=1)
        check_against_reference(found, x)
        x[0, 1::2], x[0, 0::2] = x[0, 0::2].copy(), 0
        assert not ops.swiglu(x, **where(op_device), threads=1).any()


@given(seed=seeds, tokens=st.integers(2, 70), width=st.integers(1, 100))
@examples(12)
def test_swiglu_bits_do_not_depend_on_what_is_beside(
    op_device: str, seed: int, tokens: int, width: int
) -> None:
    rng = np.random.default_rng(seed)
    x = normal(rng, tokens, 2 * width, scale=5.0)
    whole = ops.swiglu(x, **where(op_device), threads=1)
    first, begin = int(rng.integers(0, tokens)), int(rng.integers(0, width))
    for threads in THREADS:
        part = ops.swiglu(x[first:], **where(op_device), threads=threads)
        assert_same_bits(part, whole[first:], f"tokens from {first}")
    columns = ops.swiglu(x[:, 2 * begin :], **where(op_device), threads=1)
    assert_same_bits(columns, np.ascontiguousarray(whole[:, begin:]), f"columns from {begin}")


@pytest.mark.parametrize("width", [1, 8, 16, 37])
def test_swiglu_keeps_what_is_not_finite(
    op_device: str, width: int, rng: np.random.Generator
) -> None:
    for place in range(2 * width):
        for value in (np.nan, np.inf, -np.inf):
            x = normal(rng, 1, 2 * width)
            x[0, place] = value
            found = ops.swiglu(x, **where(op_device), threads=1)
            # An infinity is clamped to the limit as in the published model, but a gate of -infinity
            # is not clamped, and -infinity times 0 is NaN.
            vanishes = np.isinf(value) and (place % 2 == 1 or value > 0)
            assert np.isnan(found[0, place // 2]) == (not vanishes), (place, value)
            rest = np.arange(width) != place // 2
            expected = expected_of(x)
            np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
            check_against_reference(found[:, rest], x[:, np.repeat(rest, 2)])


def test_swiglu_at_the_published_width(op_device: str, rng: np.random.Generator) -> None:
    x = normal(rng, 4, 2 * HIDDEN, scale=6.0)
    check_against_reference(ops.swiglu(x, **where(op_device), threads=2), x)


def test_swiglu_refuses_arguments_that_do_not_fit(op_device: str) -> None:
    call = table(op_device).swiglu
    x = np.ones((3, 64), np.float32)
    out = Output(3, 32)
    assert_refused(call, x.astype(np.float64), 7.0, 1.702, out.view, match="gate_up: expected")
    assert_refused(call, x[0], 7.0, 1.702, out.view, match="gate_up: expected")
    assert_refused(call, x[:, :63], 7.0, 1.702, out.view, match="gate_up: expected")
    assert_refused(call, x[:2], 7.0, 1.702, out.view, match="gate_up: expected")
    assert_refused(call, x, 7.0, 1.702, out.view[:, :31], match="gate_up: expected")
    assert_refused(call, x, 7.0, 1.702, out.view[0], match="out: expected")
    assert_refused(call, x, 7.0, 1.702, out.view[:, ::2], match="out: expected")
    assert_refused(call, x, 7.0, 1.702, read_only(out.view), match="read-only")
    out.assert_untouched()
