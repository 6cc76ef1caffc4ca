"""Shapes that tests and benchmarks share: the two published models' ops, and odd small ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class LinearCase:
    """``linear``: x [tokens][k] times weight [n][k] transposed."""

    name: str
    n: int
    k: int
    bias: bool = True


@dataclass(frozen=True)
class AttentionCase:
    """``attention``: query heads and key/value heads of 64, a window or None."""

    name: str
    heads: int
    kv_heads: int
    window: int | None
    size: int = 64


@dataclass(frozen=True)
class MoeCase:
    """``router_topk`` and ``moe``: [experts][2 * width][hidden] and [experts][hidden][width]."""

    name: str
    experts: int
    top_k: int
    hidden: int
    width: int
    limit: float = 7.0


HIDDEN = 2880
VOCAB = 201_088

PUBLISHED_LINEAR = (
    LinearCase("q_proj", 64 * 64, HIDDEN),
    LinearCase("k_proj", 8 * 64, HIDDEN),
    LinearCase("o_proj", HIDDEN, 64 * 64),
    LinearCase("router_20b", 32, HIDDEN),
    LinearCase("router_120b", 128, HIDDEN),
    LinearCase("unembedding", VOCAB, HIDDEN, bias=False),
)
PUBLISHED_ATTENTION = (
    AttentionCase("window", 64, 8, 128),
    AttentionCase("full", 64, 8, None),
)
PUBLISHED_MOE = (
    MoeCase("20b", 32, 4, HIDDEN, HIDDEN),
    MoeCase("120b", 128, 4, HIDDEN, HIDDEN),
)

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
