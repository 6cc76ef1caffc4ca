"""Every kernel, callable on arrays: for tests and microbenchmarks.

Arrays are float32 unless said otherwise; bf16 weights are uint16 arrays of the raw bits, as
`to_bf16` makes them. Matrices may have rows further apart than they are long. Each function takes
``isa`` ("scalar", "avx2", "avx512", "amx"; default: the machine's best), ``threads`` (default: all
cores) and ``device`` ("cpu", "cuda", "cuda:N"), and raises InvalidArgument where shapes or dtypes
do not fit.

Arrays of any library that lie in a CUDA device's memory and offer DLPack (torch, CuPy) run on that
device, without a copy where their rows follow each other; what is returned is the library's, too,
and bf16 may be its own bfloat16. On CUDA, activations enter products in bfloat16.

The arithmetic of each op is that of openai/gpt-oss, gpt_oss/torch/model.py.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from . import _core
from .errors import InvalidArgument

if TYPE_CHECKING:
    from .sampling import Sampling

FloatArray = npt.NDArray[np.float32]
Bf16Array = npt.NDArray[np.uint16]
IntArray = npt.NDArray[np.int32]
_DLPACK_CUDA = (2, 13)  # kDLCUDA, kDLCUDAManaged


@functools.lru_cache(maxsize=16)
def _table(isa: str | None, threads: int, device: str | None) -> _core.Ops:
    return _core.Ops(isa=isa, num_threads=threads, device=device or "cpu")


def _table_of(array: Any, isa: str | None, threads: int, device: str | None) -> _core.Ops:
    """The table of the device that holds the array; numpy's go to the one named."""
    if not isinstance(array, np.ndarray) and hasattr(array, "__dlpack_device__"):
        kind, index = array.__dlpack_device__()
        if int(kind) in _DLPACK_CUDA:
            return _table(None, 0, f"cuda:{index}")
    return _table(isa, threads, device)


def _empty(like: Any, shape: tuple[int, ...], dtype: str = "float32") -> Any:
    """An array of the same library, in the same memory as `like`."""
    if isinstance(like, np.ndarray):
        return np.empty(shape, dtype)
    library = sys.modules[type(like).__module__.partition(".")[0]]
    if hasattr(like, "new_empty"):  # torch
        return like.new_empty(shape, dtype=getattr(library, dtype))
    return library.empty(shape, dtype)


@contextlib.contextmanager
def time_kernels(
    repeats: int,
    *,
    evict_bytes: int = 0,
    isa: str | None = None,
    threads: int = 0,
    device: str | None = None,
) -> Iterator[None]:
    """Within it, each call runs its kernels ``repeats`` times and `kernel_seconds` tells how long.

    What a call prepares (packed weights, pages of keys and values) is made once and not counted;
    before each repeat so many bytes are swept through the caches. Ops that work in place are
    applied so many times. ``isa``, ``threads`` and ``device`` are those of the calls.
    """
    table = _table(isa, threads, device)
    table.time_kernels(repeats, evict_bytes)
    try:
        yield
    finally:
        table.time_kernels(0)


def kernel_seconds(
    *, isa: str | None = None, threads: int = 0, device: str | None = None
) -> list[float]:
    """Seconds of the kernels of the last call made with these options, one a repeat."""
    return _table(isa, threads, device).kernel_seconds()


def _is_float32(op: str, precision: str) -> bool:
    if precision not in ("default", "float32"):
        raise InvalidArgument(
            f"[{op}] precision: expected 'default' or 'float32', got {precision!r}"
        )
    return precision == "float32"


def _rows_and_cols(op: str, name: str, array: npt.NDArray[Any]) -> tuple[int, int]:
    """The shape of a matrix, which outputs are made from; the core checks all the rest."""
    if array.ndim != 2:
        raise InvalidArgument(f"[{op}] {name}: expected a matrix, got shape {array.shape}")
    return array.shape[0], array.shape[1]


def to_bf16(values: npt.ArrayLike) -> Bf16Array:
    """Rounds to bf16 (nearest, ties to even) and returns the bits, same shape, uint16."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(is_nan, (bits >> 16) | 0x40, rounded).astype(np.uint16)


def from_bf16(bits: Bf16Array) -> FloatArray:
    """The float32 values of bf16 bits, same shape; exact."""
    return (np.asarray(bits).astype(np.uint32) << 16).view(np.float32)


def embed(
    tokens: IntArray,
    table: Bf16Array,
    *,
    isa: str | None = None,
    threads: int = 0,
    device: str | None = None,
) -> FloatArray:
    """Rows [num_tokens][hidden] of the embedding ``table`` [vocab][hidden] bf16."""
    out: FloatArray = _empty(table, (len(tokens), _rows_and_cols("embed", "table", table)[1]))
    _table_of(table, isa, threads, device).embed(tokens, table, out)
    return out


def rms_norm(
    x: FloatArray,
    scale: Bf16Array,
    *,
    eps: float = 1e-5,
    isa: str | None = None,
    threads: int = 0,
    device: str | None = None,
) -> FloatArray:
    """``x / sqrt(mean(x**2) + eps) * scale`` along rows; x [num_tokens][hidden], scale [hidden]."""
    out: FloatArray = _empty(x, x.shape)
    _table_of(x, isa, threads, device).rms_norm(x, scale, eps, out)
    return out


def linear(
    x: FloatArray,
    weight: Bf16Array,
    bias: Bf16Array | None = None,
    *,
    dense: str = "bf16",
    precision: str = "default",
    add_to: FloatArray | None = None,
    isa: str | None = None,
    threads: int = 0,
    device: str | None = None,
) -> FloatArray:
    """``x @ weight.T + bias`` [num_tokens][rows], added to ``add_to`` in place where given.

    x [num_tokens][cols], weight [rows][cols] bf16, bias [rows] bf16. ``dense="int8"`` repacks the
    weights to int8 with a scale every 32 values first, as loading with that option does, and takes
    x in 15 bits (`quantize_int15`). ``precision="float32"`` keeps the activations in float32, as
    routers have them, where the default rounds them to bf16 (AMX tiles, CUDA); with bf16 weights.
    """
    if dense not in ("bf16", "int8"):
        raise InvalidArgument(f"[linear] dense: expected 'bf16' or 'int8', got {dense!r}")
    num_tokens, rows = (
        _rows_and_cols("linear", "x", x)[0],
        _rows_and_cols("linear", "weight", weight)[0],
    )
    out: FloatArray = _empty(x, (num_tokens, rows)) if add_to is None else add_to
    float32 = _is_float32("linear", precision)
    _table_of(x, isa, threads, device).linear(
        x, weight, bias, add_to is not None, dense == "int8", out, float32
    )
    return out


def quantize_int8(
    x: FloatArray, *, isa: str | None = None, threads: int = 0, device: str | None = None
) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """Blocks of 32 along rows: codes [rows][cols] and scales [rows][cols / 32], x = code * scale.

    The activations of expert products. The scale is the block's largest magnitude / 127; codes
    never hold -128; a block that is not finite has scale NaN.
    """
    rows, cols = _rows_and_cols("quantize_int8", "x", x)
    codes = _empty(x, (rows, cols), "int8")
    scales = _empty(x, (rows, cols // 32))
    _table_of(x, isa, threads, device).quantize_int8(x, codes, scales)
    return codes, scales


def quantize_int15(
    x: FloatArray, *, isa: str | None = None, threads: int = 0, device: str | None = None
) -> tuple[npt.NDArray[np.int16], FloatArray]:
    """Blocks of 32 along rows: codes [rows][cols] and scales [rows][cols / 32], x = code * scale.

    The activations of dense int8 products. The scale is the block's largest magnitude / 16256
    (127 * 128), which codes stay within; a block that is not finite has scale NaN.
    """
    rows, cols = _rows_and_cols("quantize_int15", "x", x)
    codes = _empty(x, (rows, cols), "int16")
    scales = _empty(x, (rows, cols // 32))
    _table_of(x, isa, threads, device).quantize_int15(x, codes, scales)
    return codes, scales


def linear_mxfp4(
    x: FloatArray,
    blocks: npt.NDArray[np.uint8],
    scales: npt.NDArray[np.uint8],
    bias: Bf16Array,
    *,
    x_rows: IntArray | None = None,
    out_rows: IntArray | None = None,
    out: FloatArray | None = None,
    precision: str = "default",
    isa: str | None = None,
    threads: int = 0,
    device: str | None = None,
) -> FloatArray:
    """``out[out_rows] = x[x_rows] @ weight.T + bias`` with one expert's MXFP4 matrix.

    x [num_tokens][cols], blocks [rows][cols / 32][16] uint8, scales [rows][cols / 32] uint8 (OCP
    microscaling 1.0, low nibble first), bias [rows] bf16. ``precision="float32"`` keeps the
    activations in float32; the default quantises them to int8 in blocks of 32.
    """
    is_float32 = _is_float32("linear_mxfp4", precision)
    if x_rows is None:
        x_rows = np.arange(_rows_and_cols("linear_mxfp4", "x", x)[0], dtype=np.int32)
    if out_rows is None:
        out_rows = np.arange(len(x_rows), dtype=np.int32)
    if out is None:
        out = _empty(x, (len(x_rows), len(blocks)))
    table = _table_of(x, isa, threads, device)
    table.linear_mxfp4(x, blocks, scales, bias, x_rows, out_rows, not is_float32, out)
    return out


def swiglu(
    gate_up: FloatArray,
    *,
    limit: float = 7.0,
    alpha: float = 1.702,
    isa: str | None = None,
    threads: int = 0,
    device: str | None = None,
) -> FloatArray:
    """``gate * sigmoid(alpha * gate) * (up + 1)`` [rows][cols] from interleaved [rows][2 * cols].

    Even columns are gates, clamped from above at ``limit``; odd ones are ups, clamped both ways.
    """
    rows, cols = _rows_and_cols("swiglu", "gate_up", gate_up)
    out: FloatArray = _empty(gate_up, (rows, cols // 2))
    _table_of(gate_up, isa, threads, device).swiglu(gate_up, limit, alpha, out)
    return out


def rope(
    x: FloatArray,
    cos_sin: FloatArray,
    *,
    isa: str | None = None,
    threads: int = 0,
    device: str | None = None,
) -> FloatArray:
    """Rotates the halves of each head of 64; x [num_tokens][heads * 64] is left as it is.

    cos_sin [num_tokens][64]: 32 cosines, then 32 sines (YaRN's concentration included).
    """
    out: FloatArray = _empty(x, tuple(x.shape))
    out[:] = x
    _table_of(x, isa, threads, device).rope(out, cos_sin)
    return out


def attention(
    q: FloatArray,
    k: FloatArray,
    v: FloatArray,
    sinks: Bf16Array,
    *,
    window: int = 0,
    kv_dtype: str = "bf16",
    split: bool = False,
    isa: str | None = None,
    threads: int = 0,
    device: str | None = None,
) -> FloatArray:
    """Causal attention of the last ``len(q)`` positions over all ``len(k)``; [queries][heads * 64].

    q [queries][heads * 64], k and v [history][kv_heads * 64], sinks [heads] bf16: a learned logit
    in each head's softmax denominator. ``window`` > 0 lets a query see so many keys, itself
    included. ``split`` computes pieces of the keys apart and merges them: the same bits.
    """
    out: FloatArray = _empty(q, q.shape)
    _table_of(q, isa, threads, device).attention(q, k, v, sinks, window, kv_dtype, split, out)
    return out


def router_topk(
    logits: FloatArray,
    experts_per_token: int,
    *,
    forced: IntArray | None = None,
    isa: str | None = None,
    threads: int = 0,
    device: str | None = None,
) -> tuple[IntArray, FloatArray]:
    """Experts and weights [num_tokens][experts_per_token]: top logits, softmax over those only.

    Ties go to the lower index. ``forced`` replaces the choice.
    """
    if experts_per_token < 1:
        raise InvalidArgument(
            f"[router_topk] expected 1 expert a token or more, got {experts_per_token}"
        )
    shape = (_rows_and_cols("router_topk", "logits", logits)[0], experts_per_token)
    expert_ids = _empty(logits, shape, "int32")
    weights = _empty(logits, shape)
    _table_of(logits, isa, threads, device).router_topk(logits, expert_ids, weights, forced)
    return expert_ids, weights


def moe_combine(
    expert_out: FloatArray,
    weights: FloatArray,
    add_to: FloatArray,
    *,
    isa: str | None = None,
    threads: int = 0,
    device: str | None = None,
) -> FloatArray:
    """Adds the weighted sum over choices to ``add_to`` [num_tokens][hidden] in place; returns it.

    expert_out [num_tokens * experts_per_token][hidden], weights [num_tokens][experts_per_token].
    """
    _table_of(expert_out, isa, threads, device).moe_combine(expert_out, weights, add_to)
    return add_to


def draw_tokens(
    logits: FloatArray,
    samplings: Sequence[Sampling],
    *,
    banned: Sequence[int] = (),
    device: str | None = None,
) -> IntArray:
    """The token [rows] that a generation with each row's options and seed would draw first.

    logits [rows][vocab]; ``banned`` ids are never drawn. The CPU's sampler and a CUDA device give
    the same tokens; the device knows temperature, top-k, top-p and min-p. Raises GptOssError where
    a row holds NaN or +inf or leaves nothing to draw.
    """
    rows, vocab = _rows_and_cols("draw_tokens", "logits", logits)
    samplers = [_core.Sampler(sampling, vocab, banned=list(banned)) for sampling in samplings]
    tokens: IntArray = np.empty(rows, np.int32)
    on_device = device is not None or not isinstance(logits, np.ndarray)
    if on_device and device != "cpu":
        _table_of(logits, None, 0, device).draw_tokens(logits, samplers, tokens)
    else:
        tokens[:] = [s.sample(row) for s, row in zip(samplers, logits, strict=True)]
    return tokens


def yarn_angles(config: Any, positions: list[int]) -> tuple[FloatArray, FloatArray]:
    """Cosines and sines [len(positions)][32], times YaRN's concentration (arXiv 2309.00071)."""
    return _core.yarn_angles(config, positions)
