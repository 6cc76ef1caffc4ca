"""Error bounds from lengths, norms and epsilons, and the one assertion that uses them.

No test states a bare tolerance: it computes a bound, elementwise where it can, and a failure tells
which share of it was used. Bounds are probabilistic (Higham and Mary, SIAM J. Sci. Comput. 41 (5),
2019, and 42 (5), 2020): the roundings of a sum have either sign and are relative to its partial
sums, which for terms of either sign stay near the root of the sum of their squares. So

    standard deviation = eps / sqrt(3) * sqrt(k) * (|terms|_2 + |sum|)

whatever the order of the sum, and a bound is ``CONFIDENCE`` times that. The deterministic
k * eps * sum |terms| is a thousand times larger at k = 2880: a kernel could lose ten bits, or a
sink, unnoticed. Terms sorted by sign would break the assumption; no test makes them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
Bound = float | F64

EPS_F32 = 2.0**-24  # unit roundoff: half a unit in the last place
EPS_BF16 = 2.0**-8
EPS_INT8 = 1.0 / 254.0  # half a step of a block of 32, relative to the block's largest magnitude
CONFIDENCE = 6.0
TINY_F32 = float(np.finfo(np.float32).tiny)  # results below may be flushed or subnormal


def sum_bound(k: int, terms: Bound, total: Bound, eps: float = EPS_F32) -> F64:
    """Bound of a sum of k rounded terms, from the norm of the terms and the size of the sum."""
    norms = np.asarray(terms, dtype=np.float64) + np.abs(np.asarray(total, dtype=np.float64))
    bound: F64 = CONFIDENCE * eps * np.sqrt((k + 2.0) / 3.0) * norms + TINY_F32
    return bound


def dot_bound(
    k: int, a: npt.ArrayLike, b: npt.ArrayLike, eps: float = EPS_F32, *, input_eps: float = 0.0
) -> F64:
    """Bound of a dot product of length k, of vectors with norms a and b (broadcast), accumulated
    with unit roundoff eps, of inputs rounded with input_eps before (0: they were exact).

    From norms alone the terms and the sum can be as large as |a| |b|; ``linear_bound`` knows the
    vectors and is some sqrt(k) tighter.
    """
    norms = np.abs(np.asarray(a, dtype=np.float64)) * np.abs(np.asarray(b, dtype=np.float64))
    return sum_bound(k, norms, norms, eps) + 2.0 * input_eps * norms


def linear_bound(
    x: npt.ArrayLike,
    weight: npt.ArrayLike,
    bias: npt.ArrayLike | None = None,
    *,
    eps: float = EPS_F32,
    x_eps: float = 0.0,
    weight_eps: float = 0.0,
    output_eps: float = EPS_F32,
) -> F64:
    """Elementwise bound of x [tokens][k] times weight [n][k] transposed (plus bias [n]).

    eps is the accumulation's unit roundoff; x_eps and weight_eps the relative rounding of the
    inputs (EPS_BF16 for bfloat16 activations); output_eps that of the stored result.
    """
    x, w = np.asarray(x, dtype=np.float64), np.asarray(weight, dtype=np.float64)
    terms = np.sqrt((x * x) @ (w * w).T)
    total = np.abs(x @ w.T)
    if bias is not None:
        total = total + np.abs(np.asarray(bias, dtype=np.float64))
    # Input roundings are independent and of either sign: they add as the root of squares, too.
    inputs = CONFIDENCE * (x_eps + weight_eps) / np.sqrt(3.0) * terms
    return sum_bound(x.shape[-1], terms, total, eps) + inputs + output_eps * total


def int8_linear_bound(
    x: npt.ArrayLike, weight: npt.ArrayLike, *, dense: bool, block: int = 32
) -> F64:
    """Elementwise distance of an int8 product of x [tokens][k] and weight [n][k] from the exact
    one: x in int8 and the weights as they are, or, dense, x in 15 bits and the weights packed to
    int8, with scales up to 2^-7 longer.

    A rounding error is uniform within half a step, so each has variance step^2 / 12.
    """
    x, w = np.asarray(x, dtype=np.float64), np.asarray(weight, dtype=np.float64)

    def step_squares(a: npt.NDArray[np.float64], largest: float) -> F64:
        amax = np.abs(a.reshape(*a.shape[:-1], -1, block)).max(axis=-1)
        return np.repeat((amax / largest) ** 2 / 12.0, block, axis=-1)

    x_squares = step_squares(x, 127.0 * 128.0 if dense else 127.0)
    variance = x_squares @ (w * w).T
    if dense:
        variance = variance + (x * x + x_squares) @ step_squares(w, 127.0 / (1.0 + 2.0**-7)).T
    return CONFIDENCE * np.sqrt(variance) + linear_bound(x, w)


def relative_bound(expected: npt.ArrayLike, ulps: float, eps: float = EPS_F32) -> Bound:
    """Bound of an elementwise function with this many unit roundoffs of error."""
    return ulps * eps * np.abs(np.asarray(expected, dtype=np.float64)) + TINY_F32


def softmax_bound(expected: npt.ArrayLike, largest_logit: float, eps: float = EPS_F32) -> Bound:
    """Bound of softmax outputs: an absolute error d of a logit is a relative error d of its weight,
    and the exponential and the quotient add a few roundoffs."""
    return relative_bound(expected, 8.0 + 4.0 * abs(largest_logit), eps)


def attention_bound(
    q: npt.ArrayLike,
    keys: npt.ArrayLike,
    values: npt.ArrayLike,
    sinks: npt.ArrayLike,
    *,
    positions: npt.ArrayLike,
    window: int | None = None,
    eps: float = EPS_F32,
) -> F64:
    """Elementwise bound of ``attention`` with these arguments (keys at positions 0, 1, 2, ...).

    A score's absolute error is its weight's relative error, which moves the result by the weight
    times (value - result); errors of different keys are independent. The exponential may be biased
    by two roundoffs. eps is that of scores, weights and accumulation alike.
    """
    q, keys, values = (np.asarray(a, dtype=np.float64) for a in (q, keys, values))
    sinks = np.asarray(sinks, dtype=np.float64)
    heads, size = q.shape[1:]
    group = heads // keys.shape[1]
    distance = np.asarray(positions)[:, None] - np.arange(len(keys))[None, :]
    visible = (distance >= 0) & (distance < (np.inf if window is None else window))
    bound = np.empty(q.shape)
    for head in range(heads):
        seen = visible.any(axis=0)[:, None]
        k = np.where(seen, keys[:, head // group], 0.0)
        v = np.where(seen, values[:, head // group], 0.0)
        root = np.sqrt(size)
        scores = q[:, head] @ k.T / root
        top = np.maximum(np.where(visible, scores, -np.inf).max(axis=-1), sinks[head])[:, None]
        weights = np.where(visible, np.exp(np.minimum(scores - top, 0.0)), 0.0)
        weights /= weights.sum(axis=-1, keepdims=True) + np.exp(sinks[head] - top)
        out = (weights @ v)[:, None, :]
        products = np.sqrt(q[:, head] ** 2 @ (k**2).T) / root
        score_error = np.sqrt((size + 2.0) / 3.0) * (products + np.abs(scores))
        score_error += np.abs(scores - top) + 4.0
        moved = (weights * score_error)[:, :, None] * np.abs(v[None] - out)
        spread = np.sqrt(np.sum(moved**2, axis=1))
        terms = np.sqrt((weights**2) @ (v**2))
        seen_keys = visible.sum(axis=-1, keepdims=True) + 8.0
        summed = np.sqrt(seen_keys / 3.0) * (terms + np.abs(out[:, 0]))
        biased = 2.0 * (weights @ np.abs(v))
        bound[:, head] = eps * (CONFIDENCE * (spread + summed) + biased) + TINY_F32
    return bound


def assert_within(
    actual: npt.ArrayLike, expected: npt.ArrayLike, bound: npt.ArrayLike, name: str
) -> None:
    """Fail unless |actual - expected| <= bound everywhere (bound broadcasts).

    A NaN passes nowhere, not even where one is expected; an infinity only where the same one is.
    The message names the worst coordinate, what was expected and found, and the share of the bound
    used.
    """
    found = np.asarray(actual, dtype=np.float64)
    want = np.asarray(expected, dtype=np.float64)
    assert found.shape == want.shape, f"[{name}] expected shape {want.shape}, found {found.shape}"
    if found.size == 0:
        return
    limit = np.broadcast_to(np.asarray(bound, dtype=np.float64), want.shape)
    assert (limit >= 0).all(), f"[{name}] the bound itself is negative or NaN"
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.where(found == want, 0.0, np.abs(found - want))
        share = np.where(error == 0.0, 0.0, error / limit)
    share = np.where(np.isnan(share), np.inf, share)
    worst = np.unravel_index(int(np.argmax(share)), share.shape)
    if share[worst] <= 1.0:
        return
    at = tuple(int(i) for i in worst)
    raise AssertionError(
        f"[{name}] worst at {at} of {want.shape}: expected {want[worst]:.9g}, found "
        f"{found[worst]:.9g}, error {error[worst]:.3g}, bound {limit[worst]:.3g} "
        f"(share {share[worst]:.3g}); {int((share > 1).sum())} of {share.size} beyond the bound"
    )


def relative_error(actual: npt.ArrayLike, expected: npt.ArrayLike) -> F64:
    """Relative error of each row in the Euclidean norm; NaN where a row holds one."""
    found, want = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    return np.linalg.norm(found - want, axis=-1) / np.linalg.norm(want, axis=-1)


def kl_divergence(actual: npt.ArrayLike, expected: npt.ArrayLike) -> F64:
    """KL(expected || actual) in nats of each row of logits; NaN where a row holds one."""

    def log_probabilities(logits: npt.ArrayLike) -> F64:
        x = np.asarray(logits, dtype=np.float64)
        x = x - x.max(axis=-1, keepdims=True)
        log_sum: npt.NDArray[np.float64] = np.log(np.exp(x).sum(axis=-1, keepdims=True))
        return x - log_sum

    found, want = log_probabilities(actual), log_probabilities(expected)
    return np.sum(np.exp(want) * (want - found), axis=-1)
