"""Every op of the model in float64. One op, one name, as in ``gpt_oss_native.ops``.

Sources: openai/gpt-oss ``gpt_oss/torch/model.py``, transformers ``models/gpt_oss``, arXiv
2508.10925 (model card), arXiv 2309.00071 (YaRN). Arrays are row-major, outermost dimension first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

SWIGLU_ALPHA = 1.702


class Matrices(Protocol):
    """One float64 matrix an expert: an array [experts][rows][columns] or
    ``mxfp4.ExpertMatrices``."""

    def __getitem__(self, expert: int, /) -> F64: ...


def rms_norm(x: F64, scale: F64, *, eps: float = 1e-5) -> F64:
    """x / sqrt(mean(x^2) + eps) * scale, over the last dimension."""
    x = np.asarray(x, dtype=np.float64)
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * scale


def linear(x: F64, weight: F64, bias: F64 | None = None) -> F64:
    """x [..., k] times weight [n][k] transposed, plus bias [n]."""
    y: F64 = np.asarray(x, dtype=np.float64) @ np.asarray(weight, dtype=np.float64).T
    return y if bias is None else y + bias


def yarn_inv_freq(
    *,
    head_size: int = 64,
    theta: float = 150000.0,
    factor: float = 32.0,
    original_context: int = 4096,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
) -> tuple[F32, float]:
    """Return YaRN's inverse frequencies [head_size / 2] and the concentration (arXiv 2309.00071).

    Computed in float64, rounded to float32 once. The ramp's limits are not rounded to integers
    ("truncate": false) and are kept within [0, head_size - 1] as in transformers.
    """
    freq = theta ** (np.arange(0, head_size, 2, dtype=np.float64) / head_size)
    if factor <= 1.0:
        return (1.0 / freq).astype(np.float32), 1.0

    def dimension_turning(rotations: float) -> float:
        """The (fractional) dimension that turns ``rotations`` times within the original context."""
        return (
            head_size / 2 * math.log(original_context / (rotations * 2 * math.pi)) / math.log(theta)
        )

    low = max(dimension_turning(beta_fast), 0.0)
    high = min(dimension_turning(beta_slow), head_size - 1.0)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(head_size // 2) - low) / (high - low), 0.0, 1.0)
    inv_freq = ramp / (factor * freq) + (1.0 - ramp) / freq
    return inv_freq.astype(np.float32), 0.1 * math.log(factor) + 1.0


def yarn_table(positions: npt.ArrayLike, inv_freq: F32, concentration: float) -> tuple[F64, F64]:
    """Return cos and sin [tokens][head_size / 2], both times the concentration.

    The angle is rounded to float32, as in the published model: at position 131,071 a float64 angle
    would differ by 2.5e-3 in the cosine, and the weights were trained with the rounded one.
    """
    angle: F32 = np.asarray(positions).astype(np.float32)[:, None] * inv_freq.astype(np.float32)
    assert angle.dtype == np.float32
    wide = angle.astype(np.float64)
    return np.cos(wide) * concentration, np.sin(wide) * concentration


def rope(x: F64, cos: F64, sin: F64) -> F64:
    """Rotate x [tokens][heads][size] by halves: element i pairs with element i + size / 2."""
    first, second = np.split(np.asarray(x, dtype=np.float64), 2, axis=-1)
    c, s = cos[:, None, :], sin[:, None, :]
    return np.concatenate([first * c - second * s, second * c + first * s], axis=-1)


def attention(
    q: F64,
    keys: F64,
    values: F64,
    sinks: F64,
    *,
    positions: npt.ArrayLike,
    window: int | None = None,
    key_positions: npt.ArrayLike | None = None,
) -> F64:
    """Grouped-query attention of one sequence over its whole key history.

    q [tokens][heads][size] at ``positions`` [tokens]; keys and values [history][kv_heads][size] at
    ``key_positions`` (default 0, 1, 2, ...); sinks [heads]. A query at i sees the key at j iff
    0 <= i - j, and i - j < window where there is one. The sink is one more logit, not scaled, in
    the softmax's denominator and nowhere else. Returns [tokens][heads][size].
    """
    tokens, heads, size = q.shape
    group = heads // keys.shape[1]
    j = np.arange(len(keys)) if key_positions is None else np.asarray(key_positions)
    distance = np.asarray(positions)[:, None] - j[None, :]
    visible = (distance >= 0) & (distance < (window if window is not None else np.inf))
    out = np.empty((tokens, heads, size))
    for head in range(heads):
        k, v = keys[:, head // group], values[:, head // group]
        scores = np.where(visible, q[:, head] @ k.T / math.sqrt(size), -np.inf)
        top = np.maximum(scores.max(axis=-1, initial=-np.inf), sinks[head])[:, None]
        weights = np.exp(scores - top)
        total = weights.sum(axis=-1, keepdims=True) + np.exp(sinks[head] - top)
        # A key out of sight may hold anything, NaN included: it must not reach the sum.
        v = np.where(visible.any(axis=0)[:, None], v, 0.0)
        out[:, head] = weights @ v / total
    return out


def attention_ragged(
    entries: Sequence[tuple[F64, F64, F64, npt.ArrayLike]], sinks: F64, *, window: int | None = None
) -> list[F64]:
    """``attention`` of each (q, keys, values, positions) on its own: a batch changes nothing."""
    return [attention(q, k, v, sinks, positions=p, window=window) for q, k, v, p in entries]


def softmax(x: F64) -> F64:
    """Softmax over the last dimension."""
    e: F64 = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def log_softmax(x: F64) -> F64:
    """Logarithm of the softmax over the last dimension."""
    shifted: F64 = x - np.max(x, axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def router_topk(logits: F64, top_k: int) -> tuple[I64, F64]:
    """Return the experts [tokens][top_k], largest logit first, and their weights.

    Of equal logits the lower expert index comes first. The softmax is over the chosen ones only.
    """
    experts = np.argsort(-logits, axis=-1, kind="stable")[:, :top_k]
    return experts, router_weights(logits, experts)


def router_weights(logits: F64, experts: I64) -> F64:
    """Return the weights of experts that were chosen already (forced routing)."""
    return softmax(np.take_along_axis(logits, experts, axis=-1))


def swiglu(gate_up: F64, *, limit: float = 7.0, alpha: float = SWIGLU_ALPHA) -> F64:
    """Interleaved [..., 2 * width] (even gate, odd up) to [..., width].

    gate is clamped from above only, up on both sides; gate * sigmoid(alpha * gate) * (up + 1).
    """
    gate, up = gate_up[..., 0::2], gate_up[..., 1::2]
    gate = np.minimum(gate, limit)
    up = np.clip(up, -limit, limit)
    # exp(-alpha * gate) may overflow to infinity for very negative gates; the quotient is then -0.
    with np.errstate(over="ignore"):
        return gate / (1.0 + np.exp(-alpha * gate)) * (up + 1.0)


def moe(
    x: F64,
    experts: I64,
    weights: F64,
    gate_up_weight: Matrices,
    gate_up_bias: F64,
    down_weight: Matrices,
    down_bias: F64,
    *,
    limit: float = 7.0,
) -> F64:
    """Weighted sum of the chosen experts' MLPs: x [tokens][hidden] to [tokens][hidden].

    experts, weights [tokens][top_k]; gate_up_weight [experts][2 * width][hidden] with interleaved
    rows, gate_up_bias [experts][2 * width], down_weight [experts][hidden][width], down_bias
    [experts][hidden]. The second bias is inside the weighted sum.
    """
    out = np.zeros(np.shape(x), dtype=np.float64)
    for expert in np.unique(experts):
        token, choice = np.nonzero(experts == expert)
        hidden = swiglu(linear(x[token], gate_up_weight[expert], gate_up_bias[expert]), limit=limit)
        y = linear(hidden, down_weight[expert], down_bias[expert])
        np.add.at(out, token, y * weights[token, choice, None])
    return out


# --- number formats -------------------------------------------------------------------------------


def round_bf16(x: npt.ArrayLike) -> F64:
    """Round to the nearest bfloat16, ties to even; beyond the largest it is infinity; NaN stays."""
    return bf16_values(bf16_bits(x))


def bf16_bits(x: npt.ArrayLike) -> npt.NDArray[np.uint16]:
    """Return the bits of ``float32(x)`` rounded to the nearest bfloat16, ties to even."""
    with np.errstate(over="ignore"):
        wide = np.ascontiguousarray(x, dtype=np.float32)
    bits = wide.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16
    quiet = (bits >> 16) | np.uint32(0x40)  # adding could turn a NaN's bits into an infinity's
    return np.where(np.isnan(wide), quiet, rounded).astype(np.uint16)


def bf16_values(bits: npt.NDArray[np.uint16]) -> F64:
    """Return the values of bfloat16 bits, exactly."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)


INT8_BLOCK = 32
INT8_MAX = 127  # symmetric: -128 is never emitted
INT15_MAX = 127 * 128


def quantize_int8(x: npt.ArrayLike) -> tuple[npt.NDArray[np.int8], F32]:
    """Quantise [..., k] in blocks of 32: codes int8 [..., k] and float32 scales [..., k / 32].

    scale = float32(amax / 127); code = x / scale rounded to nearest, ties to even, within +-127. A
    block of zeros (or whose scale underflows) has scale 0 and codes 0; a block with a NaN or an
    infinity has scale NaN and codes 0, so that every product with it is NaN.
    """
    codes, scales = _quantize(x, INT8_MAX)
    return codes.astype(np.int8), scales


def quantize_int15(x: npt.ArrayLike) -> tuple[npt.NDArray[np.int16], F32]:
    """The same with codes within +-16256, which are 128 times a signed byte plus another."""
    codes, scales = _quantize(x, INT15_MAX)
    return codes.astype(np.int16), scales


def _quantize(x: npt.ArrayLike, limit: int) -> tuple[F64, F32]:
    blocks = np.asarray(x, dtype=np.float32).astype(np.float64)
    blocks = blocks.reshape(*blocks.shape[:-1], -1, INT8_BLOCK)
    amax = np.abs(blocks).max(axis=-1)
    finite = np.isfinite(amax)
    scales = np.where(finite, amax / limit, np.nan).astype(np.float32)
    usable = finite & (scales > 0)
    divisor = np.where(usable, scales, 1.0).astype(np.float64)[..., None]
    codes = np.rint(np.where(usable[..., None], blocks, 0.0) / divisor)
    codes = np.clip(codes, -limit, limit)
    return codes.reshape(*codes.shape[:-2], -1), scales


def dequantize(codes: npt.NDArray[np.int8] | npt.NDArray[np.int16], scales: F32) -> F64:
    """Return the values [..., k] of codes [..., k] and their block scales [..., k / 32]."""
    blocks = codes.astype(np.float64).reshape(*scales.shape, INT8_BLOCK)
    return (blocks * scales.astype(np.float64)[..., None]).reshape(codes.shape)


def round_int8(x: npt.ArrayLike) -> F64:
    """What is left of x after ``quantize_int8``: the activation an expert product really sees."""
    return dequantize(*quantize_int8(x))


def round_int15(x: npt.ArrayLike) -> F64:
    """What is left of x after ``quantize_int15``: the activation a dense int8 product sees."""
    return dequantize(*quantize_int15(x))


def round_grid(x: npt.ArrayLike) -> F64:
    """What is left of x [..., k] on AMX, in blocks of 32: the nearest multiple, ties to even, of
    2^-11 of the power of two below the block's largest magnitude (2^-126 at least), then to eight
    significant bits. Blocks that are not finite are NaN."""
    blocks = np.asarray(x, dtype=np.float32).astype(np.float64)
    blocks = blocks.reshape(*blocks.shape[:-1], -1, INT8_BLOCK)
    amax = np.abs(blocks).max(axis=-1, keepdims=True)
    finite = np.isfinite(amax)
    _, exponents = np.frexp(np.where(finite, amax, 0.0))  # amax is in [0.5, 1) * 2^exponent
    unit = np.ldexp(1.0, np.where(amax > 0, np.maximum(exponents - 12, -126), -126))
    codes = round_bf16(np.rint(np.where(finite, blocks, 0.0) / unit))
    return np.where(finite, codes * unit, np.nan).reshape(np.shape(x))


def round_packed(weight: npt.ArrayLike) -> F64:
    """What packing leaves of dense weights [..., k]: int8 in blocks of 32 with a scale of
    float32(amax / 127) rounded up to bfloat16."""
    w = np.asarray(weight, dtype=np.float32)
    w = w.reshape(*w.shape[:-1], -1, INT8_BLOCK)
    bits = (np.abs(w).max(axis=-1) / np.float32(INT8_MAX)).view(np.uint32)
    scales = (((bits + np.uint32(0xFFFF)) >> 16) << 16).view(np.float32).astype(np.float64)
    codes = np.rint(w / np.where(scales > 0, scales, 1.0)[..., None])
    return (codes * scales[..., None]).reshape(np.shape(weight))


def linear_int8(x: F64, weight: F64, bias: F64 | None = None, *, dense: bool) -> F64:
    """``linear`` as int8 products compute it, summed in float64: int8 activations and weights as
    they are (MXFP4), or, dense, 15-bit activations and packed int8 weights. Integers and scales are
    exact."""
    if dense:
        return linear(round_int15(x), round_packed(weight), bias)
    return linear(round_int8(x), weight, bias)


def linear_bf16(x: F64, weight: F64, bias: F64 | None = None) -> F64:
    """``linear`` with bfloat16 activations and weights, summed in float64 and not rounded after."""
    return linear(round_bf16(x), round_bf16(weight), bias)
