"""Shapes of the published models' ops, shared by tests (tests/cases.py) and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass


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
