"""What the op tests share: op tables, poisoned outputs, arrays laid out to hurt, bit equality.

An output lies in the middle of a larger array. Both are filled beforehand with a pattern that no
op computes, so that an element left out shows, and so does a write beside the rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gpt_oss_native import InvalidArgument, ops
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from reference import ops as reference

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
U16 = npt.NDArray[np.uint16]

THREADS = (1, 2, 3)
# A quiet NaN whose payload comes from nowhere else; codes never hold -128, experts are never < 0.
POISON_BITS = np.uint32(0x7FDEADBD)
_POISON: dict[np.dtype[Any], Any] = {
    np.dtype(np.int8): np.int8(-128),
    np.dtype(np.int16): np.int16(-(2**15)),
    np.dtype(np.int32): np.int32(-(2**31)),
}

seeds = st.integers(0, 2**32 - 1)
token_counts = st.one_of(st.integers(1, 9), st.integers(1, 70))


def assert_codes_are_nearest(codes: Array, scales: Array, x: Array, *, bits: str) -> None:
    """Of ``quantize_int8`` or ``_int15`` (``bits``): scales are the reference's bits; codes too,
    but where the float32 quotient rounds onto a tie and the exact one does not."""
    quantize = {"int8": reference.quantize_int8, "int15": reference.quantize_int15}[bits]
    expected, expected_scales = quantize(x)
    assert_same_bits(scales, expected_scales, "scales")
    differs = codes != expected
    if not differs.any():
        return
    divisor = np.repeat(expected_scales.astype(np.float64), 32, axis=-1)[differs]
    quotient = x[differs].astype(np.float64) / divisor
    to_tie = np.abs(np.abs(quotient - np.trunc(quotient)) - 0.5)
    assert (to_tie <= np.abs(quotient) * 2.0**-24).all(), "a code is not the nearest"
    assert (np.abs(codes[differs].astype(int) - expected[differs]) == 1).all()


def activations_seen(x: Array, isa: str, *, dense: str | None) -> npt.NDArray[np.float64]:
    """What products see of x at an ISA level: of MXFP4 (dense None), of dense "bf16" or "int8".

    Integer codes are the op's own, which has its tests: a tie that float32 rounds the other way
    than float64 would move a code by one.
    """
    if isa == "amx":
        return reference.round_bf16(x) if dense == "bf16" else reference.round_grid(x)
    if dense == "bf16":
        return np.asarray(x, dtype=np.float64)
    quantize = ops.quantize_int8 if dense is None else ops.quantize_int15
    return reference.dequantize(*quantize(x, isa="scalar"))


def examples(count: int) -> Callable[[Any], Any]:
    """So many hypothesis examples, each allowed to be slow on a machine that does other things."""
    return settings(max_examples=count, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@functools.cache
def table(op_device: str, threads: int = 1) -> Any:
    """The op table of an ISA on so many threads, or of "cuda": ops as the core has them, outputs
    given."""
    from gpt_oss_native import _core

    return _core.Ops(num_threads=threads, **where(op_device))


def where(op_device: str) -> dict[str, str]:
    """The option of `ops` and of `_core.Ops` that names an ISA, or the CUDA device."""
    return {"device": "cuda"} if op_device == "cuda" else {"isa": op_device}


def fit(op_device: str, width: int) -> int:
    """The width itself, or on CUDA the multiple of 8 up to which rows are filled: kernels there
    read 16 bytes at a time."""
    return (width + 7) // 8 * 8 if op_device == "cuda" else width


class Output:
    """A poisoned matrix ``view`` [rows][cols] with poison before, behind and between its rows."""

    def __init__(
        self, rows: int, cols: int, dtype: npt.DTypeLike = np.float32, *, padding: int = 5
    ) -> None:
        kind = np.dtype(dtype)
        self._memory = np.empty((rows + 2, cols + padding), kind)
        if kind == np.float32:
            self._memory.view(np.uint32)[:] = POISON_BITS
        else:
            self._memory[:] = _POISON[kind]
        self._before = _bits(self._memory).copy()
        self.view = self._memory[1:-1, :cols]
        if padding == 0:
            assert self.view.flags.c_contiguous

    def values(self, rows: Array | None = None) -> Array:
        """A copy of what was computed, or of some rows of it; fails unless every element of them
        was written, and nothing else."""
        inside = np.zeros(self._memory.shape, dtype=bool)
        written = np.arange(len(self.view)) if rows is None else rows
        inside[1 + written, : self.view.shape[1]] = True
        same = _bits(self._memory) == self._before
        assert same[~inside].all(), "the op wrote outside its output"
        assert not same[inside].any(), "the op left elements of its output out"
        return self.view[written]

    def assert_untouched(self) -> None:
        """Fail if anything was written at all."""
        np.testing.assert_array_equal(_bits(self._memory), self._before)


def _bits(array: Array) -> Array:
    return array.view(f"u{array.dtype.itemsize}")


def assert_same_bits(actual: Array, expected: Array, name: str) -> None:
    """Fail unless both hold the same bit patterns: NaN equals NaN, 0 is not -0."""
    assert actual.shape == expected.shape, f"[{name}] {actual.shape} against {expected.shape}"
    assert actual.dtype == expected.dtype, f"[{name}] {actual.dtype} against {expected.dtype}"
    differs = _bits(np.ascontiguousarray(actual)) != _bits(np.ascontiguousarray(expected))
    if not differs.any():
        return
    at = tuple(int(i) for i in np.argwhere(differs)[0])
    raise AssertionError(
        f"[{name}] bits differ in {int(differs.sum())} of {differs.size} elements, first at {at}: "
        f"{actual[at]!r} against {expected[at]!r}"
    )


def unaligned(array: Array) -> Array:
    """The same values, contiguous, at an odd address (safetensors promises no alignment)."""
    memory = np.zeros(array.nbytes + 2, np.uint8)
    start = 1 + memory.ctypes.data % 2
    memory[start : start + array.nbytes] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
    odd = np.frombuffer(memory, array.dtype, array.size, start).reshape(array.shape)
    assert odd.ctypes.data % 2 == 1
    return odd


def unaligned_rows(array: Array, *, padding: int) -> Array:
    """The same matrix at an odd address with rows further apart, bfloat16 NaN between them."""
    wide = np.full((array.shape[0], array.shape[1] + padding), 0x7FC0, array.dtype)
    wide[:, : array.shape[1]] = array
    return unaligned(wide)[:, : array.shape[1]]


def normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> F32:
    """Standard normal values of this shape, times scale."""
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def normal_bf16(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> U16:
    """The same in bfloat16 bits."""
    from reference import ops

    return ops.bf16_bits(normal(rng, *shape, scale=scale))


def read_only(array: Array) -> Array:
    """A copy that must not be written."""
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def assert_refused(call: Callable[..., object], *arguments: object, match: str) -> None:
    """Fail unless the call raises InvalidArgument with this in its message."""
    with pytest.raises(InvalidArgument, match=match):
        call(*arguments)
