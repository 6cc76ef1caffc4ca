"""The bounds themselves: correct arithmetic stays within, wrong arithmetic does not."""

from __future__ import annotations

import numpy as np
import pytest
import tolerances as tol
from reference import ops


def test_failure_names_the_worst_coordinate_and_the_share() -> None:
    expected = np.zeros((2, 3))
    actual = expected.copy()
    actual[0, 1], actual[1, 2] = 0.15, -0.3
    with pytest.raises(AssertionError) as caught:
        tol.assert_within(actual, expected, 0.1, "rms_norm")
    message = str(caught.value)
    for part in ("[rms_norm]", "(1, 2)", "expected 0", "found -0.3", "share 3", "2 of 6"):
        assert part in message


@pytest.mark.parametrize("actual", [np.nan, np.inf])
@pytest.mark.parametrize("expected", [np.nan, 1.0, -np.inf])
def test_nan_and_wrong_infinities_never_pass(actual: float, expected: float) -> None:
    with pytest.raises(AssertionError):
        tol.assert_within([actual], [expected], np.inf, "x")
    with pytest.raises(AssertionError):
        tol.assert_within([actual], [expected], 1e30, "x")


def test_equal_infinities_and_empty_arrays_pass_and_shapes_must_match() -> None:
    tol.assert_within([np.inf, 1.0], [np.inf, 1.0], 0.0, "x")
    tol.assert_within(np.zeros((0, 3)), np.zeros((0, 3)), 0.0, "x")
    with pytest.raises(AssertionError, match="shape"):
        tol.assert_within(np.zeros((1, 3)), np.zeros(3), 1.0, "x")
    with pytest.raises(AssertionError, match="bound itself"):
        tol.assert_within([0.0], [0.0], np.nan, "x")


@pytest.mark.parametrize("k", [32, 96, 2880])
def test_float32_products_stay_within_and_shorter_accumulators_do_not(
    k: int, rng: np.random.Generator
) -> None:
    x = rng.standard_normal((9, k)).astype(np.float32)
    w = rng.standard_normal((33, k)).astype(np.float32)
    expected = ops.linear(x, w)
    running = np.zeros(expected.shape, dtype=np.float32)  # the worst order: one after another
    for i in range(k):
        running += x[:, i, None] * w[None, :, i]
    tol.assert_within(running, expected, tol.linear_bound(x, w), "sequential")
    norms = np.linalg.norm(x, axis=1)[:, None], np.linalg.norm(w, axis=1)[None, :]
    tol.assert_within(running, expected, tol.dot_bound(k, *norms), "sequential")
    with pytest.raises(AssertionError):
        tol.assert_within(ops.linear_bf16(x, w), expected, tol.linear_bound(x, w), "bf16")
    with pytest.raises(AssertionError):
        tol.assert_within(expected * (1 + 1e-4), expected, tol.linear_bound(x, w), "scaled")


@pytest.mark.parametrize("dense", [False, True])
def test_int8_and_bf16_products_stay_within_their_bounds_and_use_a_fair_share(
    dense: bool, rng: np.random.Generator
) -> None:
    x, w = rng.standard_normal((9, 352)), rng.standard_normal((33, 352))
    expected = ops.linear(x, w)
    found = ops.linear_int8(x, w, dense=dense)
    bound = tol.int8_linear_bound(x, w, dense=dense)
    tol.assert_within(found, expected, bound, "int8")
    assert np.max(np.abs(found - expected) / bound) > 0.2
    bound = tol.linear_bound(x, w, x_eps=tol.EPS_BF16, weight_eps=tol.EPS_BF16)
    tol.assert_within(ops.linear_bf16(x, w), expected, bound, "bf16")
    assert np.max(np.abs(ops.linear_bf16(x, w) - expected) / bound) > 0.1


@pytest.mark.parametrize("history", [1, 64, 1023])
def test_float32_attention_stays_within_and_a_missing_sink_does_not(
    history: int, rng: np.random.Generator
) -> None:
    q = rng.standard_normal((1, 4, 64)).astype(np.float32)
    k, v = rng.standard_normal((2, history, 2, 64)).astype(np.float32)
    sinks = rng.uniform(1.0, 3.0, 4).astype(np.float32)
    expected = ops.attention(q, k, v, sinks, positions=[history - 1])
    scores = np.einsum("hd,khd->hk", q[0], np.repeat(k, 2, axis=1)) * np.float32(0.125)
    top = np.maximum(scores.max(axis=1), sinks)[:, None]
    weights = np.exp(scores - top)
    total = weights.sum(axis=1) + np.exp(sinks - top[:, 0])
    found = np.einsum("hk,khd->hd", weights, np.repeat(v, 2, axis=1)) / total[:, None]
    assert found.dtype == np.float32
    bound = tol.attention_bound(q, k, v, sinks, positions=[history - 1])
    tol.assert_within(found[None], expected, bound, "attention")
    deaf = ops.attention(q, k, v, np.full(4, -1e9), positions=[history - 1])
    with pytest.raises(AssertionError):
        tol.assert_within(deaf, expected, bound, "no sink")


def test_kl_divergence_is_zero_for_shifted_logits_and_positive_otherwise(
    rng: np.random.Generator,
) -> None:
    logits = rng.standard_normal((4, 1003))
    np.testing.assert_allclose(tol.kl_divergence(logits + 5.0, logits), 0.0, atol=1e-12)
    noise = 0.1 * rng.standard_normal(logits.shape)
    # To second order it is half the variance of the difference: 0.005.
    np.testing.assert_allclose(tol.kl_divergence(logits + noise, logits), 0.005, rtol=0.5)
