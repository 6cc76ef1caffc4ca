"""The goals of the CUDA engine on one H200, and what a run reached of each."""

from __future__ import annotations

from goal_table import Goal, goal_rows

from .counts import table


def of_copy(key: str, what: str, bound: float) -> Goal:
    return Goal(key, what, bound, scale=100, unit="% of copy")


def of_matmul(key: str, what: str, bound: float) -> Goal:
    return Goal(key, what, bound, scale=100, unit="% of matmul")


GOALS = (
    of_copy("20b decode 512", "20b decode, context 512", 0.8),
    of_copy("120b decode 512", "120b decode, context 512", 0.8),
    of_copy("20b decode 32768", "20b decode, context 32,768", 0.7),
    Goal("20b first", "20b, 16 tokens to the first", 4.5e-3, False, 1e3, "ms"),
    of_matmul("20b prefill 2048", "20b prefill, 2,048 tokens", 0.45),
    of_matmul("20b prefill 8192", "20b prefill, 8,192 tokens", 0.45),
    of_matmul("20b grouped", "20b grouped products, 4,096 x top-4", 0.6),
    of_matmul("120b grouped", "120b grouped products, 4,096 x top-4", 0.6),
    of_copy("20b many 64", "20b, 64 sequences at 1,024", 0.6),
    of_copy("120b many 64", "120b, 64 sequences at 1,024", 0.6),
    Goal("20b many 256", "20b, 256 sequences at mean 1,536", 28000, unit="tokens/s"),
    Goal("120b many 256", "120b, 256 sequences at mean 1,536", 8000, unit="tokens/s"),
    Goal("20b host", "host work a token in Python", 20e-6, False, 1e6, "us"),
    Goal("20b load", "20b, page cache to ready", 4, False, 1, "s"),
    Goal("20b transformers", "20b against transformers, batch 1", 5, unit="x"),
)


def print_goals(reached: dict[str, float]) -> None:
    """Reached: by key; goals without one were not measured."""
    table("goals", goal_rows(GOALS, reached))
