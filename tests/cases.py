"""Shapes that tests and benchmarks share: the two published models' ops, and odd small ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from gpt_oss_native.bench.cases import (
    HIDDEN,
    PUBLISHED_ATTENTION,
    PUBLISHED_LINEAR,
    PUBLISHED_MOE,
    VOCAB,
    AttentionCase,
    LinearCase,
    MoeCase,
)

__all__ = [
    "HIDDEN",
    "HISTORIES",
    "PUBLISHED_ATTENTION",
    "PUBLISHED_LINEAR",
    "PUBLISHED_MOE",
    "SMALL_ATTENTION",
    "SMALL_LINEAR",
    "SMALL_MOE",
    "TOKENS",
    "VOCAB",
    "AttentionCase",
    "LinearCase",
    "MoeCase",
    "strided",
]


# Widths are multiples of 32 (one MXFP4 block) and of nothing larger, row counts are odd, so that
# every vector length meets its tail.
SMALL_LINEAR = (
    LinearCase("one_block", 1, 32),
    LinearCase("odd_rows", 7, 96),
    LinearCase("tail_of_16", 17, 160),
    LinearCase("tail_of_4", 67, 352),
    LinearCase("prime_rows", 131, 2880),
    LinearCase("odd_vocabulary", 1003, 224, bias=False),
)
SMALL_ATTENTION = (
    AttentionCase("no_groups", 2, 2, None),
    AttentionCase("groups_of_two", 4, 2, 8),
    AttentionCase("groups_of_two_odd_heads", 6, 3, 31),
    AttentionCase("one_kv_head", 8, 1, 128),
    AttentionCase("window_of_one", 4, 2, 1),
)
SMALL_MOE = (
    MoeCase("two_of_eight", 8, 2, 32, 32),
    MoeCase("four_of_eight", 8, 4, 96, 160),
    MoeCase("two_of_seven", 7, 2, 160, 96),
    MoeCase("four_of_128", 128, 4, 64, 32),
    MoeCase("all_of_four", 4, 4, 224, 96),
    MoeCase("low_limit", 9, 3, 96, 96, limit=2.0),
)

# Batch sizes around the register blocks of matrix-matrix kernels; 1 is the matrix-vector kernel.
TOKENS = (1, 2, 3, 5, 8, 17, 33, 64)
# History lengths around pages, windows and split points.
HISTORIES = (1, 7, 63, 64, 65, 128, 129, 255, 511, 1023)


def strided(array: npt.NDArray[Any], *, padding: int = 5) -> npt.NDArray[Any]:
    """Return the same values in rows further apart than they are long.

    Between the rows lies what must never be read: NaN (of bfloat16 bits too), or for other integers
    their largest value.
    """
    shape = (*array.shape[:-1], array.shape[-1] + padding)
    if np.issubdtype(array.dtype, np.floating):
        fill: float = np.nan
    else:
        fill = 0x7FC0 if array.dtype == np.uint16 else np.iinfo(array.dtype).max
    wide = np.full(shape, fill, dtype=array.dtype)
    wide[..., : array.shape[-1]] = array
    return wide[..., : array.shape[-1]]
