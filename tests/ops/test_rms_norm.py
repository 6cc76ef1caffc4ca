"""rms_norm: x / sqrt(mean(x^2) + eps) * scale in float32, eps inside the root."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
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
    fit,
    normal,
    normal_bf16,
    read_only,
    seeds,
    table,
    token_counts,
    unaligned,
    where,
)
from tolerances import CONFIDENCE, EPS_F32, Bound, assert_within, relative_bound


def expected_of(x: npt.ArrayLike, scale: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        wide = np.asarray(x, np.float64)
        return reference.rms_norm(wide, reference.bf16_values(scale), eps=float(np.float32(eps)))


def bound_of(expected: np.ndarray) -> Bound:
    """The sum of k squares is relative to itself (all positive): half of that after the root, and
    four roundings more (division, root, reciprocal, two products) of either sign."""
    hidden = expected.shape[-1]
    return relative_bound(expected, 0.5 * CONFIDENCE * np.sqrt(hidden / 3.0) + 5.0, EPS_F32)


@given(
    seed=seeds,
    tokens=token_counts,
    hidden=st.one_of(st.integers(1, 70), st.integers(1, 700)),
    exponent=st.integers(-6, 6),
    padding=st.integers(0, 9),
    threads=st.sampled_from(THREADS),
)
@examples(25)
def test_rms_norm_agrees_with_the_reference(
    op_device: str,
    seed: int,
    tokens: int,
    hidden: int,
    exponent: int,
    padding: int,
    threads: int,
) -> None:
    rng = np.random.default_rng(seed)
    hidden = fit(op_device, hidden)
    x = normal(rng, tokens, hidden, scale=10.0**exponent)
    scale = normal_bf16(rng, hidden)
    out = Output(tokens, hidden, padding=padding)
    rows = strided(x, padding=padding)
    table(op_device, threads).rms_norm(rows, unaligned(scale), 1e-5, out.view)
    expected = expected_of(x, scale)
    assert_within(out.values(), expected, bound_of(expected), "rms_norm")


@given(seed=seeds, tokens=st.integers(2, 70), hidden=st.integers(1, 300))
@examples(15)
def test_rms_norm_bits_do_not_depend_on_other_tokens_or_threads(
    op_device: str, seed: int, tokens: int, hidden: int
) -> None:
    rng = np.random.default_rng(seed)
    hidden = fit(op_device, hidden)
    x, scale = normal(rng, tokens, hidden), normal_bf16(rng, hidden)
    whole = ops.rms_norm(x, scale, **where(op_device), threads=1)
    first = int(rng.integers(0, tokens))
    for threads in THREADS:
        part = ops.rms_norm(x[first:], scale, **where(op_device), threads=threads)
        assert_same_bits(part, whole[first:], f"{threads} threads")
    one = ops.rms_norm(strided(x)[first : first + 1], scale, **where(op_device), threads=1)
    assert_same_bits(one, whole[first : first + 1], "alone")


def test_rms_norm_at_the_published_width_and_eps(op_device: str, rng: np.random.Generator) -> None:
    # The residual stream reaches tens of thousands; rows so small that eps decides are the others.
    x = normal(rng, 6, HIDDEN) * np.array([1, 45e3, 1e-3, 3e-3, 1e-6, 0], np.float32)[:, None]
    scale = normal_bf16(rng, HIDDEN)
    for eps in (1e-5, 1e-6):
        expected = expected_of(x, scale, eps)
        found = ops.rms_norm(x, scale, eps=eps, **where(op_device), threads=2)
        assert_within(found, expected, bound_of(expected), f"eps {eps}")


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("hidden", [1, 7, 64, 133])
def test_rms_norm_keeps_what_is_not_finite(
    op_device: str, hidden: int, poison: float, rng: np.random.Generator
) -> None:
    hidden = fit(op_device, hidden)
    x, scale = normal(rng, 3, hidden), normal_bf16(rng, hidden)
    place = int(rng.integers(0, hidden))
    clean = ops.rms_norm(x, scale, **where(op_device), threads=1)
    x[1, place] = poison
    found = ops.rms_norm(x, scale, **where(op_device), threads=1)
    assert np.isnan(found[1, place])
    # The row's other elements: NaN from a NaN, x / infinity = 0 from an infinity.
    np.testing.assert_array_equal(found[1], expected_of(x, scale)[1])
    assert_same_bits(found[[0, 2]], clean[[0, 2]], "other tokens")


def test_rms_norm_may_overwrite_its_input(op_device: str, rng: np.random.Generator) -> None:
    hidden = fit(op_device, 99)
    x, scale = normal(rng, 5, hidden), normal_bf16(rng, hidden)
    expected = ops.rms_norm(x, scale, **where(op_device), threads=1)
    table(op_device, 2).rms_norm(x, scale, 1e-5, x)
    assert_same_bits(x, expected, "in place")


def test_rms_norm_refuses_arguments_that_do_not_fit(op_device: str) -> None:
    call = table(op_device).rms_norm
    x, scale = np.ones((3, 32), np.float32), np.ones(32, np.uint16)
    out = Output(3, 32)
    assert_refused(call, x.astype(np.float64), scale, 1e-5, out.view, match="x: expected")
    assert_refused(call, x.astype(">f4"), scale, 1e-5, out.view, match="x: expected")
    assert_refused(call, x[0], scale, 1e-5, out.view, match="x: expected")
    assert_refused(call, np.ones((3, 64), np.float32)[:, ::2], scale, 1e-5, out.view, match="x:")
    assert_refused(call, x[::-1], scale, 1e-5, out.view, match="x: expected")
    assert_refused(call, unaligned(x), scale, 1e-5, out.view, match="x: expected")
    assert_refused(call, x, scale[:31], 1e-5, out.view, match="scale")
    assert_refused(call, x, scale.astype(np.float32), 1e-5, out.view, match="scale")
    assert_refused(call, x, np.ones(64, np.uint16)[::2], 1e-5, out.view, match="scale")
    assert_refused(call, x, scale, 1e-5, out.view[:2], match="out")
    assert_refused(call, x, scale, 1e-5, out.view[:, :31], match="out")
    assert_refused(call, x, scale, 1e-5, read_only(out.view), match="read-only")
    out.assert_untouched()
