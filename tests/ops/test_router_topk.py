"""router_topk: the largest logits, and the softmax over those only."""

from __future__ import annotations

import numpy as np
import pytest
from cases import strided
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
from tolerances import assert_within, softmax_bound


def run(
    device: str, logits: np.ndarray, k: int, *, threads: int = 1, padding: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Experts and weights through poisoned outputs."""
    experts = Output(len(logits), k, np.int32, padding=0)
    weights = Output(len(logits), k, padding=0)
    rows = strided(logits, padding=padding)
    table(device, threads).router_topk(rows, experts.view, weights.view, None)
    return experts.values(), weights.values()


def check_weights(found: np.ndarray, logits: np.ndarray, experts: np.ndarray) -> None:
    wide = logits.astype(np.float64)
    expected = reference.router_weights(wide, experts.astype(np.int64))
    spread = float(np.ptp(wide)) if wide.size else 0.0
    assert_within(found, expected, softmax_bound(expected, spread), "router_topk weights")
    np.testing.assert_allclose(found.sum(axis=-1), 1.0, rtol=1e-6)  # 8 roundings of 2^-24


@given(
    seed=seeds,
    tokens=token_counts,
    num_experts=st.integers(4, 128),
    k=st.integers(1, 8),
    magnitude=st.sampled_from([1e-3, 1.0, 10.0, 300.0]),
    padding=st.integers(0, 9),
    threads=st.sampled_from(THREADS),
)
@examples(40)
def test_router_topk_agrees_with_the_reference(
    op_device: str,
    seed: int,
    tokens: int,
    num_experts: int,
    k: int,
    magnitude: float,
    padding: int,
    threads: int,
) -> None:
    rng = np.random.default_rng(seed)
    k = min(k, num_experts)
    logits = normal(rng, tokens, num_experts, scale=magnitude)
    experts, weights = run(op_device, logits, k, threads=threads, padding=padding)
    expected, _ = reference.router_topk(logits.astype(np.float64), k)
    np.testing.assert_array_equal(experts, expected)
    check_weights(weights, logits, experts)


@given(seed=seeds, tokens=token_counts, num_experts=st.integers(4, 128), levels=st.integers(1, 4))
@examples(25)
def test_router_topk_gives_ties_to_the_lower_expert(
    op_device: str, seed: int, tokens: int, num_experts: int, levels: int
) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.integers(0, levels, (tokens, num_experts)).astype(np.float32)
    logits[rng.random(logits.shape) < 0.1] = -0.0  # equal to 0
    k = int(rng.integers(1, min(8, num_experts) + 1))
    experts, weights = run(op_device, logits, k)
    expected, _ = reference.router_topk(logits.astype(np.float64), k)
    np.testing.assert_array_equal(experts, expected)
    check_weights(weights, logits, experts)


@given(
    seed=seeds,
    tokens=token_counts,
    num_experts=st.integers(4, 128),
    k=st.integers(1, 8),
    threads=st.sampled_from(THREADS),
)
@examples(20)
def test_router_topk_uses_the_experts_it_is_forced_to(
    op_device: str, seed: int, tokens: int, num_experts: int, k: int, threads: int
) -> None:
    rng = np.random.default_rng(seed)
    k = min(k, num_experts)
    logits = normal(rng, tokens, num_experts, scale=30.0)
    forced = np.argsort(rng.random(logits.shape), axis=-1)[:, :k].astype(np.int32)
    experts, weights = ops.router_topk(
        logits, k, forced=forced, **where(op_device), threads=threads
    )
    np.testing.assert_array_equal(experts, forced)
    check_weights(weights, logits, forced)


def test_router_topk_weights_are_not_a_softmax_over_all_experts(op_device: str) -> None:
    _, weights = run(op_device, np.zeros((1, 32), np.float32), 4)
    np.testing.assert_array_equal(weights, np.full((1, 4), 0.25))


@given(seed=seeds, tokens=st.integers(2, 70), num_experts=st.integers(4, 128))
@examples(12)
def test_router_topk_bits_do_not_depend_on_what_is_beside(
    op_device: str, seed: int, tokens: int, num_experts: int
) -> None:
    rng = np.random.default_rng(seed)
    logits = normal(rng, tokens, num_experts, scale=3.0)
    experts, weights = run(op_device, logits, 4)
    first = int(rng.integers(0, tokens))
    for threads in THREADS:
        again, part = run(op_device, logits[first:], 4, threads=threads)
        np.testing.assert_array_equal(again, experts[first:])
        assert_same_bits(part, weights[first:], f"tokens from {first}, {threads} threads")
    # The choice made is the choice forced.
    _, forced = ops.router_topk(logits, 4, forced=experts, **where(op_device), threads=1)
    assert_same_bits(forced, weights, "forced")


@pytest.mark.parametrize("bad", [1, 3, 31, 32])
def test_router_topk_shows_nan_and_keeps_experts_valid(
    op_device: str, bad: int, rng: np.random.Generator
) -> None:
    logits = normal(rng, 5, 32)
    clean_experts, clean = run(op_device, logits, 4)
    logits[2, rng.permutation(32)[:bad]] = np.nan
    experts, weights = run(op_device, logits, 4)
    assert np.isnan(weights[2]).all()
    assert len(set(experts[2].tolist())) == 4
    assert experts[2].min() >= 0
    assert experts[2].max() < 32
    rest = [0, 1, 3, 4]
    np.testing.assert_array_equal(experts[rest], clean_experts[rest])
    assert_same_bits(weights[rest], clean[rest], "other tokens")


def test_router_topk_shows_an_infinite_logit(op_device: str, rng: np.random.Generator) -> None:
    logits = normal(rng, 2, 9)
    logits[0, 5] = np.inf
    logits[1, :8] = -np.inf  # one expert left
    experts, weights = run(op_device, logits, 3)
    assert experts[0, 0] == 5
    assert np.isnan(weights[0]).any()
    np.testing.assert_array_equal(experts[1], [8, 0, 1])
    np.testing.assert_array_equal(weights[1], [1.0, 0.0, 0.0])
    logits[1] = -np.inf
    assert np.isnan(run(op_device, logits, 3)[1][1]).all()


def test_router_topk_refuses_arguments_that_do_not_fit(op_device: str) -> None:
    call = table(op_device).router_topk
    logits = np.ones((3, 8), np.float32)
    ids, weights = Output(3, 4, np.int32, padding=0), Output(3, 4, padding=0)
    i, w = ids.view, weights.view
    assert_refused(call, logits.astype(np.float64), i, w, None, match="logits: expected")
    assert_refused(call, logits[0], i, w, None, match="logits: expected")
    assert_refused(call, logits[:, :3], i, w, None, match="1 to 3 experts")
    assert_refused(call, logits, i[:, :0], w, None, match="1 to 8 experts")
    assert_refused(call, logits[:2], i, w, None, match="expert_ids: expected")
    assert_refused(call, logits, i.astype(np.int64), w, None, match="expert_ids: expected")
    assert_refused(call, logits, i, w[:, :3], None, match="weights: expected")
    assert_refused(call, logits, read_only(i), w, None, match="read-only")
    assert_refused(call, logits, i, read_only(w), None, match="read-only")
    forced = np.zeros((3, 4), np.int32)
    assert_refused(call, logits, i, w, forced[:2], match="forced: expected")
    assert_refused(call, logits, i, w, forced.astype(np.int64), match="forced: expected")
    for expert in (-1, 8):
        forced[1, 2] = expert
        assert_refused(call, logits, i, w, forced, match="forced: expected 0 to 7")
    ids.assert_untouched()
    weights.assert_untouched()
