"""moe_combine: the weighted sum of the chosen experts' outputs, added to the residual stream."""

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
    assert_refused,
    assert_same_bits,
    examples,
    fit,
    normal,
    read_only,
    seeds,
    table,
    token_counts,
    where,
)
from tolerances import assert_within, sum_bound


def check_against_reference(
    found: np.ndarray, expert_out: np.ndarray, weights: np.ndarray, before: np.ndarray
) -> None:
    tokens, k = weights.shape
    terms = expert_out.reshape(tokens, k, -1).astype(np.float64) * weights[..., None]
    expected = before + terms.sum(axis=1)
    norm = np.sqrt((terms**2).sum(axis=1) + before.astype(np.float64) ** 2)
    assert_within(found, expected, sum_bound(k + 1, norm, expected), "moe_combine")


@given(
    seed=seeds,
    tokens=token_counts,
    k=st.integers(1, 8),
    hidden=st.one_of(st.integers(1, 40), st.integers(1, 400)),
    padding=st.integers(0, 9),
    threads=st.sampled_from(THREADS),
)
@examples(30)
def test_moe_combine_agrees_with_the_reference(
    op_device: str, seed: int, tokens: int, k: int, hidden: int, padding: int, threads: int
) -> None:
    rng = np.random.default_rng(seed)
    hidden = fit(op_device, hidden)
    expert_out = normal(rng, tokens * k, hidden, scale=100.0)
    weights = rng.dirichlet(np.ones(k), tokens).astype(np.float32)
    before = normal(rng, tokens, hidden, scale=1000.0)
    out = Output(tokens, hidden, padding=padding)
    out.view[:] = before
    call = table(op_device, threads).moe_combine
    call(strided(expert_out, padding=padding), weights, out.view)
    check_against_reference(out.values(), expert_out, weights, before)


def test_moe_combine_adds_the_sum_in_float32_and_not_in_bf16(
    op_device: str, rng: np.random.Generator
) -> None:
    # The residual stream of the 120b reaches 45,344: bfloat16 would round it to multiples of 256.
    before = np.full((3, HIDDEN), 45344.0, np.float32)
    expert_out = normal(rng, 12, HIDDEN)
    weights = rng.dirichlet(np.ones(4), 3).astype(np.float32)
    found = ops.moe_combine(expert_out, weights, before.copy(), **where(op_device), threads=2)
    check_against_reference(found, expert_out, weights, before)


def test_moe_combine_gives_each_choice_its_own_weight(op_device: str) -> None:
    width = fit(op_device, 21)
    expert_out = np.repeat(np.array([1, 10, 100, 1000], np.float32)[:, None], width, axis=1)
    weights = np.array([[1.0, 2.0, 4.0, 8.0]], np.float32)
    found = ops.moe_combine(
        expert_out, weights, np.ones((1, width), np.float32), **where(op_device), threads=1
    )
    np.testing.assert_array_equal(found, np.full((1, width), 8422.0))


@given(seed=seeds, tokens=st.integers(2, 70), k=st.integers(1, 6), hidden=st.integers(1, 99))
@examples(12)
def test_moe_combine_bits_do_not_depend_on_what_is_beside(
    op_device: str, seed: int, tokens: int, k: int, hidden: int
) -> None:
    rng = np.random.default_rng(seed)
    hidden = fit(op_device, hidden)
    expert_out, weights = normal(rng, tokens * k, hidden), normal(rng, tokens, k)
    before = normal(rng, tokens, hidden)
    whole = ops.moe_combine(expert_out, weights, before.copy(), **where(op_device), threads=1)
    first = int(rng.integers(0, tokens))
    column = hidden - fit(op_device, int(rng.integers(1, hidden + 1)))
    for threads in THREADS:
        rows = before[first:].copy()
        part = ops.moe_combine(
            expert_out[first * k :], weights[first:], rows, **where(op_device), threads=threads
        )
        assert_same_bits(part, whole[first:], f"tokens from {first}")
    some = before[:, column:].copy()
    part = ops.moe_combine(expert_out[:, column:], weights, some, **where(op_device), threads=1)
    assert_same_bits(part, np.ascontiguousarray(whole[:, column:]), f"columns from {column}")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_moe_combine_keeps_what_is_not_finite(
    op_device: str, value: float, rng: np.random.Generator
) -> None:
    width = fit(op_device, 37)
    expert_out, weights = normal(rng, 12, width), normal(rng, 3, 4)
    before = normal(rng, 3, width)
    weights[1, 2] = 0  # even then: NaN and infinity times 0 are NaN
    clean = ops.moe_combine(expert_out, weights, before.copy(), **where(op_device), threads=1)
    for place in range(width):
        bad = expert_out.copy()
        bad[6, place] = value
        found = ops.moe_combine(bad, weights, before.copy(), **where(op_device), threads=1)
        hit = np.zeros((3, width), bool)
        hit[1, place] = True
        assert np.isnan(found[hit]).all()
        assert_same_bits(found[~hit], clean[~hit], "the others")
    weights[1, 2] = value
    found = ops.moe_combine(expert_out, weights, before.copy(), **where(op_device), threads=1)
    assert not np.isfinite(found[1]).any()
    before[0, 5] = value
    found = ops.moe_combine(expert_out, weights, before.copy(), **where(op_device), threads=1)
    assert not np.isfinite(found[0, 5])


def test_moe_combine_refuses_arguments_that_do_not_fit(op_device: str) -> None:
    call = table(op_device).moe_combine
    expert_out, weights = np.ones((12, 32), np.float32), np.ones((3, 4), np.float32)
    out = Output(3, 32)
    assert_refused(call, expert_out.astype(np.float64), weights, out.view, match="expert_out: exp")
    assert_refused(call, expert_out[:11], weights, out.view, match="expert_out: expected")
    assert_refused(call, expert_out[:, :31], weights, out.view, match="expert_out: expected")
    assert_refused(call, expert_out, weights[:2], out.view, match="expected")
    assert_refused(call, expert_out, weights.reshape(-1), out.view, match="expected")
    assert_refused(call, expert_out, np.ones((3, 8), np.float32)[:, ::2], out.view, match="weights")
    assert_refused(call, expert_out, weights.astype(np.float64), out.view, match="weights: exp")
    assert_refused(call, expert_out[:0], np.ones((3, 0), np.float32), out.view, match="expected")
    assert_refused(call, expert_out, weights, read_only(out.view), match="read-only")
    out.assert_untouched()
