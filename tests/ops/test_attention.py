"""attention: grouped heads, a sink in the denominator, a window, paged keys and values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import (
    HISTORIES,
    PUBLISHED_ATTENTION,
    SMALL_ATTENTION,
    AttentionCase,
    strided,
)
from gpt_oss_native import ops
from hypothesis import given
from hypothesis import strategies as st
from reference import ops as reference
from reference.op_support import (
    THREADS,
    Output,
    assert_refused,
    assert_same_bits,
    examples,
    normal,
    normal_bf16,
    read_only,
    seeds,
    table,
    unaligned,
)
from tolerances import assert_within, attention_bound

SIZE = 64
WINDOW = 128
KV_DTYPES = ("bf16", "float32")
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def random_arrays(
    rng: np.random.Generator, queries: int, history: int, heads: int, kv_heads: int
) -> Arrays:
    """Queries, keys, values, sinks; scores have a standard deviation of 2."""
    return (
        normal(rng, queries, heads * SIZE, scale=2.0),
        normal(rng, history, kv_heads * SIZE),
        normal(rng, history, kv_heads * SIZE),
        normal_bf16(rng, heads, scale=2.0),
    )


def check_against_reference(
    found: np.ndarray, arrays: Arrays, *, window: int, kv_dtype: str
) -> None:
    q, k, v, sinks = arrays
    if kv_dtype == "bf16":
        k, v = reference.round_bf16(k), reference.round_bf16(v)
    wide_q, wide_k, wide_v = (a.astype(np.float64).reshape(len(a), -1, SIZE) for a in (q, k, v))
    rest: dict[str, Any] = {
        "positions": np.arange(len(k) - len(q), len(k)),
        "window": window or None,
    }
    values = reference.bf16_values(sinks)
    expected = reference.attention(wide_q, wide_k, wide_v, values, **rest)
    bound = attention_bound(wide_q, wide_k, wide_v, values, **rest)
    assert_within(found.reshape(expected.shape), expected, bound, f"attention {kv_dtype}")


@given(
    seed=seeds,
    queries=st.one_of(st.just(1), st.integers(1, 70)),
    before=st.integers(0, 140),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 16),
    window=st.one_of(st.just(0), st.integers(1, 140)),
    kv_dtype=st.sampled_from(KV_DTYPES),
    split=st.booleans(),
    padding=st.integers(0, 9),
    threads=st.sampled_from(THREADS),
)
@examples(30)
def test_attention_agrees_with_the_reference(
    device_isa: str,
    seed: int,
    queries: int,
    before: int,
    kv_heads: int,
    group: int,
    window: int,
    kv_dtype: str,
    split: bool,
    padding: int,
    threads: int,
) -> None:
    rng = np.random.default_rng(seed)
    group = min(group, max(1, 600 // (queries * kv_heads)))  # the reference is slow
    arrays = random_arrays(rng, queries, before + queries, kv_heads * group, kv_heads)
    q, k, v = (strided(a, padding=padding) for a in arrays[:3])
    out = Output(queries, kv_heads * group * SIZE, padding=padding)
    call = table(device_isa, threads).attention
    call(q, k, v, unaligned(arrays[3]), window, kv_dtype, split, out.view)
    check_against_reference(out.values(), arrays, window=window, kv_dtype=kv_dtype)


@pytest.mark.parametrize("case", SMALL_ATTENTION, ids=lambda case: case.name)
@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_attention_agrees_with_the_reference_at_every_history(
    device_isa: str, kv_dtype: str, case: AttentionCase, rng: np.random.Generator
) -> None:
    for history in HISTORIES:
        queries = min(history, 2)
        arrays = random_arrays(rng, queries, history, case.heads, case.kv_heads)
        window = case.window or 0
        found = ops.attention(*arrays, window=window, kv_dtype=kv_dtype, isa=device_isa, threads=1)
        check_against_reference(found, arrays, window=window, kv_dtype=kv_dtype)


@pytest.mark.parametrize("case", PUBLISHED_ATTENTION, ids=lambda case: case.name)
@pytest.mark.parametrize("history", [1023, 1024, 1025, 2049])
def test_attention_at_the_published_heads_and_split_edges(
    device_isa: str, history: int, case: AttentionCase, rng: np.random.Generator
) -> None:
    arrays = random_arrays(rng, 2, history, case.heads, case.kv_heads)
    window = case.window or 0
    rest: dict[str, Any] = {"window": window, "isa": device_isa}
    whole = ops.attention(*arrays, threads=1, **rest)
    pieces = ops.attention(*arrays, threads=2, split=True, **rest)
    assert_same_bits(pieces, whole, "split")
    # Two kv heads of the eight: the reference takes its time.
    group = case.heads // case.kv_heads
    q, k, v, sinks = arrays
    wide, narrow = slice(0, 2 * group * SIZE), slice(0, 2 * SIZE)
    some = (q[:, wide], k[:, narrow], v[:, narrow], sinks[: 2 * group])
    check_against_reference(whole[:, wide], some, window=window, kv_dtype="bf16")


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@given(
    seed=seeds,
    queries=st.integers(2, 70),
    before=st.sampled_from([0, 3, 62, 63, 64, 130, 990, 1023, 1024]),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 16),
    window=st.sampled_from([0, 1, 31, 64, 128]),
)
@examples(12)
def test_attention_bits_do_not_depend_on_how_the_tokens_came_in(
    device_isa: str,
    kv_dtype: str,
    seed: int,
    queries: int,
    before: int,
    kv_heads: int,
    group: int,
    window: int,
) -> None:
    rng = np.random.default_rng(seed)
    q, k, v, sinks = random_arrays(rng, queries, before + queries, kv_heads * group, kv_heads)
    rest: dict[str, Any] = {"window": window, "kv_dtype": kv_dtype, "isa": device_isa}
    whole = ops.attention(q, k, v, sinks, threads=1, **rest)
    for threads in THREADS:
        for split in (False, True):
            again = ops.attention(q, k, v, sinks, split=split, threads=threads, **rest)
            assert_same_bits(again, whole, f"{threads} threads, split {split}")
    begin, end = sorted(int(i) for i in rng.integers(0, queries + 1, 2))
    for first, last in ((begin, end), (0, 1), (queries - 1, queries)):
        if first == last:
            continue
        for split in (False, True):
            seen = before + last
            part = ops.attention(
                q[first:last], k[:seen], v[:seen], sinks, split=split, threads=1, **rest
            )
            assert_same_bits(part, whole[first:last], f"queries {first} to {last}, {split}")
    head = int(rng.integers(0, kv_heads))
    wide = slice(head * group * SIZE, (head + 1) * group * SIZE)
    narrow = slice(head * SIZE, (head + 1) * SIZE)
    one = ops.attention(
        q[:, wide],
        k[:, narrow],
        v[:, narrow],
        sinks[head * group : (head + 1) * group].copy(),
        threads=1,
        **rest,
    )
    assert_same_bits(one, np.ascontiguousarray(whole[:, wide]), f"kv head {head} alone")


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("position", [127, 128, 129, 190, 191, 192, 300, 1023, 1024, 1151, 1152])
def test_attention_ignores_keys_older_than_the_window(
    device_isa: str, position: int, split: bool, rng: np.random.Generator
) -> None:
    arrays = random_arrays(rng, 1, position + 1, 4, 2)
    rest: dict[str, Any] = {"window": WINDOW, "split": split, "isa": device_isa, "threads": 1}
    whole = ops.attention(*arrays, **rest)
    q, k, v, sinks = arrays
    oldest = position - WINDOW + 1  # 128 keys, the token itself included
    hidden_k, hidden_v = k.copy(), v.copy()
    hidden_k[: max(oldest, 0)] = np.nan
    hidden_v[: max(oldest, 0)] = np.nan
    found = ops.attention(q, hidden_k, hidden_v, sinks, **rest)
    assert_same_bits(found, whole, "keys out of sight")
    for seen in (max(oldest, 0), position):
        other_k, other_v = k.copy(), v.copy()
        other_k[seen] += 1.0
        found = ops.attention(q, other_k, v, sinks, **rest)
        assert (found != whole).any(axis=-1).all(), f"key {seen} is seen"
        other_v[seen] += 100.0
        found = ops.attention(q, k, other_v, sinks, **rest)
        assert (found != whole).all(), f"value {seen} is seen"


@pytest.mark.parametrize("window", [0, 1, 8])
def test_attention_does_not_see_the_future(
    device_isa: str, window: int, rng: np.random.Generator
) -> None:
    q, k, v, sinks = random_arrays(rng, 70, 70, 4, 2)
    rest: dict[str, Any] = {"window": window, "isa": device_isa, "threads": 1}
    whole = ops.attention(q, k, v, sinks, **rest)
    for position in (0, 1, 30, 63, 64, 68):
        future_k, future_v = k.copy(), v.copy()
        future_k[position + 1 :] = np.nan
        future_v[position + 1 :] = np.inf
        found = ops.attention(q, future_k, future_v, sinks, **rest)
        assert_same_bits(found[: position + 1], whole[: position + 1], f"until {position}")


def test_attention_window_of_one_sees_the_token_alone(
    device_isa: str, rng: np.random.Generator
) -> None:
    q, k, v, sinks = random_arrays(rng, 5, 90, 2, 1)
    sinks[:] = 0xFF80  # -infinity: no sink
    found = ops.attention(q, k, v, sinks, window=1, kv_dtype="float32", isa=device_isa, threads=1)
    np.testing.assert_array_equal(found, np.tile(v[-5:], (1, 2)))


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("history", [1, 65, 1030])
def test_attention_sinks_join_the_denominator_and_are_not_scaled(
    device_isa: str, history: int, split: bool, rng: np.random.Generator
) -> None:
    _, k, v, _ = random_arrays(rng, 1, history, 3, 1)
    q = np.zeros((1, 3 * SIZE), np.float32)  # all scores are 0
    sinks = reference.bf16_bits(np.array([0.0, 3.0, -2.0]))
    found = ops.attention(
        q, k, v, sinks, kv_dtype="float32", split=split, isa=device_isa, threads=1
    )
    for head, sink in enumerate((0.0, 3.0, -2.0)):
        expected = v.sum(axis=0, dtype=np.float64) / (history + np.exp(sink))
        slack = 1e-6 * np.sqrt((v.astype(np.float64) ** 2).sum(axis=0))
        assert_within(found[0, head * SIZE : (head + 1) * SIZE], expected, slack, f"sink {sink}")


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("sink", [-np.inf, -3e38, -100.0, 80.0, 1e4, 3e38])
def test_attention_takes_sinks_of_any_size(
    device_isa: str, sink: float, split: bool, rng: np.random.Generator
) -> None:
    for history in (1, 64, 200, 1100):
        q, k, v, sinks = random_arrays(rng, 1, history, 4, 2)
        sinks[1:3] = reference.bf16_bits(np.array([sink]))[0]
        arrays = (q, k, v, sinks)
        found = ops.attention(*arrays, split=split, isa=device_isa, threads=1)
        check_against_reference(found, arrays, window=0, kv_dtype="bf16")
        if sink > 1000:
            assert not found[:, SIZE : 3 * SIZE].any()


@pytest.mark.parametrize("split", [False, True])
def test_attention_keeps_scores_far_apart(
    device_isa: str, split: bool, rng: np.random.Generator
) -> None:
    # One key's score is thousands above all others, wherever it stands: its value is the answer.
    for history in (2, 65, 1100):
        q, k, v, sinks = random_arrays(rng, 1, history, 2, 1)
        for place in {0, history // 2, history - 1}:
            strong = k.copy()
            strong[place] = 3000.0 * np.sign(q[0, :SIZE])
            found = ops.attention(
                q, strong, v, sinks, kv_dtype="float32", split=split, isa=device_isa, threads=1
            )
            assert_same_bits(found[0, :SIZE], v[place], f"key {place} of {history}")


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("history", [3, 70, 1030])
def test_attention_shows_what_is_not_finite(
    device_isa: str, history: int, split: bool, kv_dtype: str, rng: np.random.Generator
) -> None:
    rest: dict[str, Any] = {"split": split, "kv_dtype": kv_dtype, "isa": device_isa, "threads": 1}
    q, k, v, sinks = random_arrays(rng, 2, history, 4, 2)
    for value in (np.nan, np.inf, -np.inf):
        bad = q.copy()
        bad[0, SIZE + 7] = value  # the second head of the first group
        k[0, 7] = np.copysign(1.0, value)  # a score of -infinity alone would be a weight of 0
        clean = ops.attention(q, k, v, sinks, **rest)
        found = ops.attention(bad, k, v, sinks, **rest)
        assert np.isnan(found[0, SIZE : 2 * SIZE]).all()
        found[0, SIZE : 2 * SIZE] = clean[0, SIZE : 2 * SIZE]
        assert_same_bits(found, clean, "other heads")
        bad = v.copy()
        bad[history - 2, SIZE + 5] = value  # the second kv head
        found = ops.attention(q, k, bad, sinks, **rest)
        hit = np.zeros(found.shape, bool)
        hit[:, [2 * SIZE + 5, 3 * SIZE + 5]] = True
        assert not np.isfinite(found[hit]).any()
        assert_same_bits(found[~hit], clean[~hit], "other values")
    bad = k.copy()
    bad[history - 2, 3] = np.nan
    found = ops.attention(q, bad, v, sinks, **rest)
    assert np.isnan(found[:, : 2 * SIZE]).all()
    assert_same_bits(found[:, 2 * SIZE :].copy(), clean[:, 2 * SIZE :].copy(), "other kv heads")


@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 128])
def test_attention_shares_keys_among_any_group_of_heads(
    device_isa: str, group: int, rng: np.random.Generator
) -> None:
    arrays = random_arrays(rng, 2, 70, 2 * group, 2)
    found = ops.attention(*arrays, window=66, isa=device_isa, threads=1)
    check_against_reference(found, arrays, window=66, kv_dtype="bf16")


def test_attention_rounds_a_bf16_cache_and_nothing_else(
    device_isa: str, rng: np.random.Generator
) -> None:
    q, k, v, sinks = random_arrays(rng, 3, 80, 4, 2)
    short_k, short_v = (reference.round_bf16(a).astype(np.float32) for a in (k, v))
    rest: dict[str, Any] = {"isa": device_isa, "threads": 1}
    bf16 = ops.attention(q, k, v, sinks, kv_dtype="bf16", **rest)
    exact = ops.attention(q, short_k, short_v, sinks, kv_dtype="float32", **rest)
    assert_same_bits(exact, bf16, "bf16")
    assert (ops.attention(q, k, v, sinks, kv_dtype="float32", **rest) != bf16).any()


def test_attention_refuses_arguments_that_do_not_fit(device_isa: str) -> None:
    call = table(device_isa).attention
    q, k = np.ones((3, 4 * SIZE), np.float32), np.ones((5, 2 * SIZE), np.float32)
    sinks = np.zeros(4, np.uint16)
    out = Output(3, 4 * SIZE)

    def refused(match: str, **changes: object) -> None:
        names = {"q": q, "k": k, "v": k, "sinks": sinks, "window": 0, "kv_dtype": "bf16"}
        names |= {"split": False, "out": out.view}
        assert_refused(lambda: call(**(names | changes)), match=match)

    refused("q: expected", q=q.astype(np.float64))
    refused("q: expected", q=q[:, ::2])
    refused("multiple of 64", q=q[:, :100])
    refused("k: expected", k=k[0])
    refused("multiple of 64", k=k[:, :63])
    refused("v: expected", v=k[:4])
    refused("v: expected", v=k[:, :SIZE])
    refused("query heads", q=q[:, : 3 * SIZE])
    refused("at most 128", q=np.ones((1, 129 * SIZE), np.float32), k=k[:, :SIZE], v=k[:, :SIZE])
    refused("at least 3 keys", k=k[:2], v=k[:2])
    refused("sinks: expected", sinks=sinks[:3])
    refused("sinks: expected", sinks=sinks.astype(np.float32))
    refused("window of 0", window=-1)
    refused("kv_dtype", kv_dtype="int8")
    refused("out: expected", out=out.view[:2])
    refused("out: expected", out=out.view[:, :SIZE])
    refused("read-only", out=read_only(out.view))
    out.assert_untouched()
