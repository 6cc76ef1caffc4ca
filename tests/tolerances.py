"""Error bounds from lengths, norms and epsilons, and the one assertion that uses them.

No test states a bare tolerance: it computes a bound, elementwise where it can, and a failure tells
which share of it was used. Sums use the probabilistic bound of Higham and Mary (SIAM J. Sci.
Comput. 41 (5), 2019): rounding errors of either sign grow as sqrt(k), whatever the order of the
sum, and the deterministic k * eps would let a kernel lose three more bits unnoticed. With
``CONFIDENCE`` 6 a correct kernel fails once in about 10^7 sums.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bound = float | npt.NDArray[np.float64]

EPS_F32 = 2.0**-24  # unit roundoff: half a unit in the last place
EPS_BF16 = 2.0**-8
EPS_INT8 = 1.0 / 254.0  # half a step of a block of 32, relative to the block's largest magnitude
CONFIDENCE = 6.0
TINY_F32 = float(np.finfo(np.float32).tiny)  # results below may be flushed or subnormal


def dot_bound(
    k: int, a: npt.ArrayLike, b: npt.ArrayLike, eps: float = EPS_F32, *, input_eps: float = 0.0
) -> Bound:
    """Bound of a dot product of length k, of vectors with norms a and b (broadcast), accumulated
    with unit roundoff eps, of inputs rounded with input_eps before (0: they were exact).

    Each |a_i b_i| sums to at most |a| |b| (Cauchy-Schwarz); a product and k additions round.
    """
    norms = np.abs(np.asarray(a, dtype=np.float64)) * np.abs(np.asarray(b, dtype=np.float64))
    # An input's relative errors meet products of any sign: sqrt(sum (a_i b_i)^2) <= |a| |b|.
    return (CONFIDENCE * np.sqrt(k + 1.0) * eps + 2.0 * input_eps) * norms + TINY_F32


def linear_bound(
    x: npt.ArrayLike,
    weight: npt.ArrayLike,
    bias: npt.ArrayLike | None = None,
    *,
    eps: float = EPS_F32,
    x_eps: float = 0.0,
    weight_eps: float = 0.0,
    output_eps: float = EPS_F32,
) -> npt.NDArray[np.float64]:
    """Elementwise bound of x [tokens][k] times weight [n][k] transposed (plus bias [n]).

    eps is the accumulation's unit roundoff; x_eps and weight_eps the relative rounding of the
    inputs (EPS_BF16 for bfloat16 activations); output_eps that of the stored result.
    """
    x, w = np.abs(np.asarray(x, dtype=np.float64)), np.abs(np.asarray(weight, dtype=np.float64))
    k = x.shape[-1]
    magnitude = x @ w.T
    extra = 0.0 if bias is None else np.abs(np.asarray(bias, dtype=np.float64))
    # Input roundings are independent and of either sign: their errors add as the root of squares.
    spread = np.sqrt((x * x) @ (w * w).T)
    inputs = CONFIDENCE * (x_eps + weight_eps) * spread
    rounding = CONFIDENCE * np.sqrt(k + 1.0) * eps + output_eps
    return rounding * (magnitude + extra) + inputs + TINY_F32


def int8_linear_bound(
    x: npt.ArrayLike, weight: npt.ArrayLike, *, quantized_weight: bool, block: int = 32
) -> npt.NDArray[np.float64]:
    """Elementwise distance of an int8 product of x [tokens][k] and weight [n][k] from the exact
    one.

    A rounding error is uniform within half a step, so each has variance step^2 / 12.
    """
    x, w = np.asarray(x, dtype=np.float64), np.asarray(weight, dtype=np.float64)

    def step_squares(a: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        amax = np.abs(a.reshape(*a.shape[:-1], -1, block)).max(axis=-1)
        return np.repeat((amax / 127.0) ** 2 / 12.0, block, axis=-1)

    variance = step_squares(x) @ (w * w).T
    if quantized_weight:
        variance = variance + (x * x + step_squares(x)) @ step_squares(w).T
    return CONFIDENCE * np.sqrt(variance) + linear_bound(x, w)


def relative_bound(expected: npt.ArrayLike, ulps: float, eps: float = EPS_F32) -> Bound:
    """Bound of an elementwise function with this many unit roundoffs of error."""
    return ulps * eps * np.abs(np.asarray(expected, dtype=np.float64)) + TINY_F32


def softmax_bound(expected: npt.ArrayLike, largest_logit: float, eps: float = EPS_F32) -> Bound:
    """Bound of softmax outputs: an absolute error d of a logit is a relative error d of its weight,
    and the exponential and the quotient add a few roundoffs."""
    return relative_bound(expected, 8.0 + 4.0 * abs(largest_logit), eps)


def attention_bound(
    q: npt.ArrayLike, keys: npt.ArrayLike, values: npt.ArrayLike, *, eps: float = EPS_F32
) -> float:
    """Bound of every output of ``attention`` on q, keys, values [...][size]: the scores' absolute
    error shifts the weights relatively, and the weighted mean of the values adds its own
    rounding."""
    size = np.shape(q)[-1]
    history = len(np.asarray(keys))
    q_norm = np.linalg.norm(np.asarray(q, dtype=np.float64), axis=-1).max(initial=0.0)
    k_norm = np.linalg.norm(np.asarray(keys, dtype=np.float64), axis=-1).max(initial=0.0)
    largest = np.abs(np.asarray(values, dtype=np.float64)).max(initial=0.0)
    score_error = np.max(dot_bound(size, q_norm, k_norm, eps)) / np.sqrt(size)
    score_error += eps * q_norm * k_norm / np.sqrt(size)  # the exponential's argument is rounded
    return float((2 * score_error + CONFIDENCE * np.sqrt(history + 8.0) * eps) * largest + TINY_F32)


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


def relative_error(actual: npt.ArrayLike, expected: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Relative error of each row in the Euclidean norm; NaN where a row holds one."""
    found, want = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    return np.linalg.norm(found - want, axis=-1) / np.linalg.norm(want, axis=-1)
