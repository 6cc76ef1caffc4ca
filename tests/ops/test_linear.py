"""linear: float32 activations times bfloat16 weights, or in blocks of 32 with a scale 15-bit ones
times int8 weights."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from cases import HIDDEN, SMALL_LINEAR, LinearCase, strided
from gpt_oss_native import InvalidArgument, ops
from hypothesis import given
from hypothesis import strategies as st
from reference import ops as reference
from reference.op_support import (
    THREADS,
    Output,
    activations_seen,
    assert_refused,
    assert_same_bits,
    examples,
    normal,
    normal_bf16,
    read_only,
    seeds,
    table,
    token_counts,
    unaligned,
    unaligned_rows,
)
from tolerances import EPS_BF16, assert_within, int8_linear_bound, linear_bound

DENSE = ("bf16", "int8")


def check_against_reference(
    found: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    *,
    dense: str,
    isa: str,
) -> None:
    w = reference.bf16_values(weight)
    b = None if bias is None else reference.bf16_values(bias)
    expected = reference.linear(x, w, b)
    seen = activations_seen(x, isa, dense=dense)
    if dense == "bf16":
        x_eps = EPS_BF16 if isa == "amx" else 0.0
        assert_within(found, expected, linear_bound(x, w, b, x_eps=x_eps), "linear")
        exact = reference.linear(seen, w, b)
        assert_within(found, exact, linear_bound(seen, w, b), "linear as rounded")
        return
    # Near the real product as far as the weights' 8 bits allow, and near the product of what was
    # quantised as closely as float32 allows.
    bound = int8_linear_bound(x, w, dense=True) + linear_bound(x, w, b)
    if isa == "amx":  # eight significant bits, and a grid that adds nothing to them
        bound = bound + linear_bound(x, w, b, x_eps=EPS_BF16)
    assert_within(found, expected, bound, "linear int8")
    stored = reference.round_packed(w)
    exact = reference.linear(seen, stored, b)
    assert_within(found, exact, linear_bound(seen, stored, b), "linear int8 as quantised")


@pytest.mark.parametrize("dense", DENSE)
@given(
    seed=seeds,
    tokens=token_counts,
    rows=st.integers(1, 90),
    cols=st.integers(1, 19),
    ragged=st.integers(0, 31),
    with_bias=st.booleans(),
    padding=st.integers(0, 9),
    threads=st.sampled_from(THREADS),
)
@examples(30)
def test_linear_agrees_with_the_reference(
    device_isa: str,
    dense: str,
    seed: int,
    tokens: int,
    rows: int,
    cols: int,
    ragged: int,
    with_bias: bool,
    padding: int,
    threads: int,
) -> None:
    rng = np.random.default_rng(seed)
    size = 32 * cols + (ragged if dense == "bf16" else 0)
    x = normal(rng, tokens, size)
    weight = normal_bf16(rng, rows, size)
    bias = normal_bf16(rng, rows) if with_bias else None
    out = Output(tokens, rows, padding=padding)
    table(device_isa, threads).linear(
        strided(x, padding=padding),
        unaligned_rows(weight, padding=padding),
        None if bias is None else unaligned(bias),
        False,
        dense == "int8",
        out.view,
    )
    check_against_reference(out.values(), x, weight, bias, dense=dense, isa=device_isa)


@given(seed=seeds, tokens=st.integers(1, 6), rows=st.integers(1, 20), cols=st.integers(1, 40))
@examples(15)
def test_linear_takes_any_number_of_columns_in_bf16(
    device_isa: str, seed: int, tokens: int, rows: int, cols: int
) -> None:
    rng = np.random.default_rng(seed)
    x, weight = normal(rng, tokens, cols), normal_bf16(rng, rows, cols)
    out = Output(tokens, rows)
    args = (strided(x), unaligned_rows(weight, padding=3), None, False, False, out.view)
    table(device_isa).linear(*args)
    check_against_reference(out.values(), x, weight, None, dense="bf16", isa=device_isa)


@given(seed=seeds, tokens=token_counts, rows=st.integers(1, 90), cols=st.integers(1, 600))
@examples(20)
def test_linear_in_float32_rounds_no_activation_on_any_instruction_set(
    device_isa: str, seed: int, tokens: int, rows: int, cols: int
) -> None:
    rng = np.random.default_rng(seed)
    x, weight, bias = normal(rng, tokens, cols), normal_bf16(rng, rows, cols), None
    if rows % 2:
        bias = normal_bf16(rng, rows)
    out = Output(tokens, rows, padding=3)
    args = (strided(x, padding=5), unaligned_rows(weight, padding=3), bias, False, False)
    table(device_isa, 2).linear(*args, out.view, True)
    # The bound of the instruction sets that never round them, on all.
    check_against_reference(out.values(), x, weight, bias, dense="bf16", isa="scalar")
    keywords = {"precision": "float32", "isa": device_isa, "threads": 1}
    whole = ops.linear(x, weight, bias, **keywords)
    assert_same_bits(whole, out.values(), "strided, 2 threads")
    assert_same_bits(ops.linear(x[-1:], weight, bias, **keywords), whole[-1:], "alone")
    residual = normal(rng, tokens, rows, scale=50.0)
    expected = residual + whole
    found = ops.linear(x, weight, bias, add_to=residual, **keywords)
    assert found is residual
    assert_same_bits(found, expected, "residual")
    if device_isa != "amx":
        assert_same_bits(ops.linear(x, weight, bias, isa=device_isa), whole, "the default")


@pytest.mark.parametrize("case", SMALL_LINEAR, ids=lambda case: case.name)
@pytest.mark.parametrize("dense", DENSE)
def test_linear_agrees_with_the_reference_on_the_shared_cases(
    device_isa: str, dense: str, case: LinearCase, rng: np.random.Generator
) -> None:
    weight = normal_bf16(rng, case.n, case.k)
    bias = normal_bf16(rng, case.n) if case.bias else None
    x = normal(rng, 11, case.k)
    found = ops.linear(x, weight, bias, dense=dense, isa=device_isa, threads=2)
    check_against_reference(found, x, weight, bias, dense=dense, isa=device_isa)


@pytest.mark.parametrize("dense", DENSE)
@given(seed=seeds, tokens=st.integers(2, 140), rows=st.integers(2, 90), cols=st.integers(1, 20))
@examples(12)
def test_linear_bits_do_not_depend_on_tokens_rows_or_threads(
    device_isa: str, dense: str, seed: int, tokens: int, rows: int, cols: int
) -> None:
    rng = np.random.default_rng(seed)
    size = 32 * cols + (int(rng.integers(0, 32)) if dense == "bf16" else 0)
    x, weight = normal(rng, tokens, size), normal_bf16(rng, rows, size)
    bias = normal_bf16(rng, rows)
    whole = ops.linear(x, weight, bias, dense=dense, isa=device_isa, threads=1)
    begin, end = sorted(rng.integers(0, tokens + 1, 2))
    first, last = sorted(rng.integers(0, rows + 1, 2))
    end, last = max(end, begin + 1), max(last, first + 1)
    begin, first = min(begin, tokens - 1), min(first, rows - 1)
    for threads in THREADS:
        again = ops.linear(x, weight, bias, dense=dense, isa=device_isa, threads=threads)
        assert_same_bits(again, whole, f"{threads} threads")
        part = ops.linear(x[begin:end], weight, bias, dense=dense, isa=device_isa, threads=threads)
        assert_same_bits(part, whole[begin:end], f"tokens {begin} to {end}")
    for token in {0, int(begin), tokens - 1}:
        one = ops.linear(x[token : token + 1], weight, bias, dense=dense, isa=device_isa, threads=1)
        assert_same_bits(one, whole[token : token + 1], f"token {token} alone")
    some = ops.linear(
        x, weight[first:last], bias[first:last], dense=dense, isa=device_isa, threads=1
    )
    assert_same_bits(some, np.ascontiguousarray(whole[:, first:last]), f"rows {first} to {last}")


@pytest.mark.parametrize("dense", DENSE)
@pytest.mark.parametrize(("rows", "cols"), [(1, 32), (33, 96), (131, 160), (19, 2880), (48, 4096)])
def test_linear_bits_do_not_depend_on_tokens_of_any_number(
    device_isa: str, dense: str, rows: int, cols: int, rng: np.random.Generator
) -> None:
    x, weight = normal(rng, 131, cols), normal_bf16(rng, rows, cols)
    whole = ops.linear(x, weight, dense=dense, isa=device_isa, threads=2)
    for size in (*range(1, 18), 64, 65, 128):
        part = ops.linear(x[-size:], weight, dense=dense, isa=device_isa, threads=1)
        assert_same_bits(part, whole[-size:], f"{size} tokens")


@pytest.mark.parametrize("dense", DENSE)
@given(seed=seeds, tokens=token_counts, rows=st.integers(1, 70), with_bias=st.booleans())
@examples(10)
def test_linear_adds_to_the_residual_what_it_would_store(
    device_isa: str, dense: str, seed: int, tokens: int, rows: int, with_bias: bool
) -> None:
    rng = np.random.default_rng(seed)
    x, weight = normal(rng, tokens, 96), normal_bf16(rng, rows, 96)
    bias = normal_bf16(rng, rows) if with_bias else None
    product = ops.linear(x, weight, bias, dense=dense, isa=device_isa, threads=1)
    residual = normal(rng, tokens, rows, scale=50.0)
    padded = Output(tokens, rows)
    padded.view[:] = residual
    table(device_isa, 2).linear(x, weight, bias, True, dense == "int8", padded.view)
    # One float32 addition: the bits are known.
    assert_same_bits(padded.values(), residual + product, "residual")
    found = ops.linear(x, weight, bias, dense=dense, add_to=residual, isa=device_isa, threads=1)
    assert found is residual


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("tokens", [1, 3, 8, 40])
@pytest.mark.parametrize("dense", DENSE)
def test_linear_lets_nothing_that_is_not_finite_vanish(
    device_isa: str, dense: str, tokens: int, value: float, rng: np.random.Generator
) -> None:
    x, weight = normal(rng, tokens, 160), normal_bf16(rng, 37, 160)
    weight[5] = 0
    clean = ops.linear(x, weight, dense=dense, isa=device_isa, threads=1)
    token, place = tokens // 2, int(rng.integers(0, 160))
    weight[:, place] = np.where(weight[:, place] == 0, 0x3F80, weight[:, place])
    x[token, place] = 0.0
    clean = ops.linear(x, weight, dense=dense, isa=device_isa, threads=1)
    x[token, place] = value
    found = ops.linear(x, weight, dense=dense, isa=device_isa, threads=1)
    assert not np.isfinite(found[token]).any()
    if dense == "int8" or np.isnan(value):
        assert np.isnan(found[token]).all()
    rest = np.arange(tokens) != token
    assert_same_bits(found[rest], clean[rest], "other tokens")


@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_linear_int8_weights_that_are_not_finite_give_nan(
    device_isa: str, tokens: int, rng: np.random.Generator
) -> None:
    x, weight = normal(rng, tokens, 96), normal_bf16(rng, 20, 96)
    weight[3, 40], weight[18, 95] = 0x7F80, 0xFFC1
    found = ops.linear(x, weight, dense="int8", isa=device_isa, threads=1)
    assert np.isnan(found[:, [3, 18]]).all()
    assert np.isfinite(np.delete(found, [3, 18], axis=1)).all()


@pytest.mark.parametrize("tokens", [1, 2, 5, 7, 8, 40, 130])
def test_linear_int8_does_not_saturate_at_the_extremes(device_isa: str, tokens: int) -> None:
    # Every code is as large as it can be, and so are sums of products: 32 * 127 * 16256 a block, of
    # which float32 holds all bits. Rows and tokens cover equal signs, opposite signs, and signs
    # that alternate by element and by pair.
    column = np.arange(96)
    signs = np.stack(
        [
            np.ones(96),
            -np.ones(96),
            np.where(column % 2, 1.0, -1.0),
            np.where(column % 4 < 2, 1.0, -1.0),
            np.where(column % 8 < 4, 1.0, -1.0),
        ]
    )
    x = np.resize(signs, (tokens, 96)).astype(np.float32) * np.float32(16256.0)
    w = np.resize(signs, (41, 96)) * 127.0
    found = ops.linear(x, reference.bf16_bits(w), dense="int8", isa=device_isa, threads=1)
    np.testing.assert_array_equal(found, x.astype(np.float64) @ w.T)


@pytest.mark.parametrize("low", [-64, 63])
@pytest.mark.parametrize("tokens", [1, 2, 5, 7, 8, 40, 130])
def test_linear_int8_is_exact_where_the_low_bytes_are_extreme(
    device_isa: str, tokens: int, low: int
) -> None:
    x = np.full((tokens, 64), 128 * 126 + low, np.float32)
    x[::2] *= -1
    x[:, ::32] = 16256.0  # makes the scales 1
    w = np.where(np.arange(19 * 64).reshape(19, 64) % 3, 127.0, -127.0)
    if device_isa == "amx":
        x = reference.round_grid(x).astype(np.float32)
    found = ops.linear(x, reference.bf16_bits(w), dense="int8", isa=device_isa, threads=1)
    exact = x.astype(np.float64) @ w.T
    assert_within(found, exact, 2.0**-22 * np.abs(exact).max(), "exact integers")


def test_linear_int8_loses_little_to_its_activations_beside_what_its_weights_cost(
    device_isa: str, rng: np.random.Generator
) -> None:
    x, weight = normal(rng, 9, HIDDEN), normal_bf16(rng, 40, HIDDEN)
    found = ops.linear(x, weight, dense="int8", isa=device_isa, threads=1)
    stored = reference.round_packed(reference.bf16_values(weight))
    from_weights = np.linalg.norm(x @ stored.T - reference.linear(x, reference.bf16_values(weight)))
    share = 0.35 if device_isa == "amx" else 0.02  # eight significant bits there, 15 elsewhere
    assert np.linalg.norm(found - x.astype(np.float64) @ stored.T) < share * from_weights


@pytest.mark.parametrize("scale", [-140, -100, 90, 104, 112])
@given(seed=seeds, tokens=st.integers(2, 40))
@examples(10)
def test_linear_int8_bits_do_not_depend_on_tokens_at_any_exponents(
    device_isa: str, scale: int, seed: int, tokens: int
) -> None:
    rng = np.random.default_rng(seed)
    x = normal(rng, tokens, 96) * np.exp2(scale + rng.integers(-9, 10, (tokens, 1)))
    x, weight = x.astype(np.float32), normal_bf16(rng, 21, 96)
    whole = ops.linear(x, weight, dense="int8", isa=device_isa, threads=1)
    for token in range(tokens):
        one = ops.linear(x[token : token + 1], weight, dense="int8", isa=device_isa, threads=1)
        same = (one.view(np.uint32) == whole[token].view(np.uint32)) | np.isnan(one)
        assert (same & (np.isnan(one) == np.isnan(whole[token]))).all()


@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("dense", DENSE)
def test_linear_keeps_tiny_weights_and_zeros(
    device_isa: str, dense: str, tokens: int, rng: np.random.Generator
) -> None:
    scale = 10.0 ** rng.uniform(-30, 4, (33, 1))
    weight = reference.bf16_bits(rng.standard_normal((33, 64)) * scale)
    weight[4] = 0
    weight[7, 32:] = 0
    x = normal(rng, tokens, 64)
    x[:, 32:] *= 1e-3
    found = ops.linear(x, weight, dense=dense, isa=device_isa, threads=1)
    check_against_reference(found, x, weight, None, dense=dense, isa=device_isa)
    assert (found[:, 4] == 0).all()


@pytest.mark.parametrize("tokens", [1, 33])
@pytest.mark.parametrize("dense", DENSE)
def test_linear_on_a_slice_of_the_published_unembedding(
    device_isa: str, dense: str, tokens: int, rng: np.random.Generator
) -> None:
    weight = normal_bf16(rng, 1003, HIDDEN, scale=0.05)
    x = normal(rng, tokens, HIDDEN, scale=3.0)
    found = ops.linear(x, weight, dense=dense, isa=device_isa, threads=2)
    check_against_reference(found, x, weight, None, dense=dense, isa=device_isa)


@pytest.mark.parametrize("dense", DENSE)
def test_linear_may_be_called_from_several_threads_at_once(
    device_isa: str, dense: str, rng: np.random.Generator
) -> None:
    shapes = [(1, 32), (3, 4096), (40, 256), (2, 2880)]
    arguments = [(normal(rng, t, k), normal_bf16(rng, 24, k)) for t, k in shapes]
    isa = device_isa
    expected = [ops.linear(x, w, dense=dense, isa=isa, threads=1) for x, w in arguments]
    failures: list[BaseException] = []

    def work(index: int) -> None:
        try:
            x, w = arguments[index]
            for _ in range(12):
                found = ops.linear(x, w, dense=dense, isa=isa, threads=2)
                assert_same_bits(found, expected[index], f"thread {index}")
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(shapes))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]


def test_linear_refuses_arguments_that_do_not_fit(device_isa: str) -> None:
    call = table(device_isa).linear
    x, w, b = np.ones((3, 64), np.float32), np.ones((9, 64), np.uint16), np.ones(9, np.uint16)
    out = Output(3, 9)
    for int8 in (False, True):
        rest = (False, int8, out.view)
        assert_refused(call, x.astype(np.float16), w, b, *rest, match="x: expected")
        assert_refused(call, x[:, :63], w, b, *rest, match="weight: expected")
        assert_refused(call, x[0], w, b, *rest, match="x: expected")
        assert_refused(call, x, w.view(np.int16), b, *rest, match="weight: expected")
        assert_refused(call, x, w.T, b, *rest, match="weight: expected")
        assert_refused(call, x, w[:, ::2], b, *rest, match="weight: expected")
        assert_refused(call, x, w, b[:8], *rest, match="bias: expected")
        assert_refused(call, x, w, b.astype(np.float32), *rest, match="bias: expected")
        assert_refused(call, x, w[:8], None, *rest, match="out: expected")
        assert_refused(call, x[:2], w, b, *rest, match="out: expected")
        assert_refused(call, x, w, b, False, int8, read_only(out.view), match="read-only")
    odd = (x[:, :48], w[:, :48].copy(), b, False, True, out.view)
    assert_refused(call, *odd, match="multiple of 32")
    out.assert_untouched()
    for keywords in ({"dense": "int4"}, {"dense": "int8", "precision": "float32"}):
        with pytest.raises(InvalidArgument, match="dense"):
            ops.linear(x, w, b, **keywords)
    with pytest.raises(InvalidArgument, match="precision"):
        ops.linear(x, w, b, precision="double")
