"""MXFP4 in float64: e2m1 codes in blocks of 32 with one e8m0 scale (OCP Microscaling 1.0, section
5).

Stored as in the published gpt-oss checkpoints: 16 bytes a block, the even element in the low
nibble, and one scale byte whose value is 2^(byte - 127); byte 255 is NaN.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]

BLOCK = 32
BLOCK_BYTES = BLOCK // 2
SCALE_BIAS = 127
SCALE_NAN = 255

_MAGNITUDES = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
E2M1: F64 = np.concatenate([_MAGNITUDES, -_MAGNITUDES])  # indexed by the 4-bit code; 8 is -0
E2M1_RMS = float(np.sqrt(np.mean(E2M1**2)))  # of uniformly random codes
_MIDPOINTS = (_MAGNITUDES[1:] + _MAGNITUDES[:-1]) / 2
_LARGEST_EXPONENT = 2  # of e2m1: 6 = 1.5 * 2^2


def decode_scales(scales: U8) -> F64:
    """Return 2^(byte - 127); 0 is the float32 subnormal 2^-127, 255 is NaN."""
    values = np.ldexp(1.0, scales.astype(np.int64) - SCALE_BIAS)
    return np.where(scales == SCALE_NAN, np.nan, values)


def unpack_codes(blocks: U8) -> U8:
    """Return the 4-bit codes [..., groups * 32] of packed blocks [..., groups, 16]."""
    codes = np.stack([blocks & 0x0F, blocks >> 4], axis=-1)  # low nibble first
    return codes.reshape(*blocks.shape[:-2], blocks.shape[-2] * BLOCK)


def pack_codes(codes: U8) -> U8:
    """Return blocks [..., groups, 16] of 4-bit codes [..., groups * 32]."""
    pairs = codes.reshape(*codes.shape[:-1], -1, BLOCK_BYTES, 2)
    return (pairs[..., 0] | (pairs[..., 1] << 4)).astype(np.uint8)


def decode(blocks: U8, scales: U8) -> F64:
    """Return the values [..., groups * 32] of blocks [..., groups, 16] and scales [..., groups]."""
    values = E2M1[unpack_codes(blocks)].reshape(*scales.shape, BLOCK)
    return (values * decode_scales(scales)[..., None]).reshape(*scales.shape[:-1], -1)


def encode(values: npt.ArrayLike) -> tuple[U8, U8]:
    """Return blocks and scales of finite values [..., groups * 32].

    The scale's exponent is floor(log2(amax)) - 2 (OCP Microscaling 1.0, section 6.3), elements
    round to the nearest code, ties to the even code, beyond 6 they saturate. A block of zeros has
    scale 1.
    """
    x = np.asarray(values, dtype=np.float64)
    if not np.isfinite(x).all():
        raise ValueError("[mxfp4.encode] expected finite values")
    x = x.reshape(*x.shape[:-1], -1, BLOCK)
    amax = np.abs(x).max(axis=-1)
    _, exponent = np.frexp(amax)  # amax = m * 2^exponent with m in [0.5, 1)
    exponent = np.where(amax == 0, 0, exponent - 1 - _LARGEST_EXPONENT)
    exponent = np.clip(exponent, -SCALE_BIAS, SCALE_BIAS)
    magnitude = np.ldexp(np.abs(x), -exponent[..., None])
    code = np.searchsorted(_MIDPOINTS, magnitude, side="left")
    at_tie = magnitude == np.take(_MIDPOINTS, code, mode="clip")
    code = code + (at_tie & (code % 2 == 1))
    code = np.where(np.signbit(x), code + 8, code).astype(np.uint8)
    return pack_codes(code.reshape(*x.shape[:-2], -1)), (exponent + SCALE_BIAS).astype(np.uint8)


class ExpertMatrices:
    """All experts' matrices, decoded one at a time so that 20b shapes fit in memory.

    ``matrices[expert]`` is float64 [rows][groups * 32].
    """

    def __init__(self, blocks: U8, scales: U8) -> None:
        self.blocks = blocks  # [experts][rows][groups][16]
        self.scales = scales  # [experts][rows][groups]

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, expert: int) -> F64:
        return decode(self.blocks[expert], self.scales[expert])
