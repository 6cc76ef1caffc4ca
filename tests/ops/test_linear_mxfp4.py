"""linear_mxfp4: gathered rows times one expert's 4-bit matrix, int8 or float32 activations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import HIDDEN, strided
from gpt_oss_native import InvalidArgument, ops
from hypothesis import given
from hypothesis import strategies as st
from reference import mxfp4
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
)
from tolerances import assert_within, int8_linear_bound, linear_bound

PRECISIONS = ("default", "float32")
# Around the kernels' groups of tokens, and beyond the 128 that are repacked at a time.
TOKENS = (1, 2, 3, 5, 8, 9, 40, 131)


def random_matrix(
    rng: np.random.Generator, rows: int, cols: int, *, low: int = 118, high: int = 128
) -> tuple[np.ndarray, np.ndarray]:
    """Random codes, and scale bytes from low to high."""
    blocks = rng.integers(0, 256, (rows, cols // 32, 16), dtype=np.uint8)
    return blocks, rng.integers(low, high + 1, (rows, cols // 32), dtype=np.uint8)


def check_against_reference(
    found: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    *,
    precision: str,
    isa: str,
) -> None:
    b = reference.bf16_values(bias)
    expected = reference.linear(x, weight, b)
    if precision == "float32":
        assert_within(found, expected, linear_bound(x, weight, b), "linear_mxfp4 float32")
        return
    bound = int8_linear_bound(x, weight, dense=False) + linear_bound(x, weight, b)
    assert_within(found, expected, bound, "linear_mxfp4")
    # Of the codes that the activations became, the product is as good as float32 allows.
    seen = activations_seen(x, isa, dense=None)
    exact = reference.linear(seen, weight, b)
    assert_within(found, exact, linear_bound(seen, weight, b), "linear_mxfp4 as quantised")


@pytest.mark.parametrize("precision", PRECISIONS)
@given(
    seed=seeds,
    tokens=token_counts,
    rows=st.integers(1, 5),
    cols=st.integers(1, 20),
    padding=st.integers(0, 9),
    threads=st.sampled_from(THREADS),
)
@examples(30)
def test_linear_mxfp4_agrees_with_the_reference(
    device_isa: str,
    precision: str,
    seed: int,
    tokens: int,
    rows: int,
    cols: int,
    padding: int,
    threads: int,
) -> None:
    rng = np.random.default_rng(seed)
    x = normal(rng, tokens, 32 * cols)
    blocks, scales = random_matrix(rng, 32 * rows, 32 * cols)
    bias = normal_bf16(rng, 32 * rows)
    order = np.arange(tokens, dtype=np.int32)
    out = Output(tokens, 32 * rows, padding=padding)
    table(device_isa, threads).linear_mxfp4(
        strided(x, padding=padding),
        unaligned(blocks),
        unaligned(scales),
        unaligned(bias),
        order,
        order,
        precision == "default",
        out.view,
    )
    weight = mxfp4.decode(blocks, scales)
    check_against_reference(out.values(), x, weight, bias, precision=precision, isa=device_isa)


@pytest.mark.parametrize("precision", PRECISIONS)
@given(
    seed=seeds,
    chosen=st.integers(0, 70),
    available=st.integers(1, 40),
    threads=st.sampled_from(THREADS),
)
@examples(20)
def test_linear_mxfp4_gathers_repeated_rows_and_scatters_to_its_own(
    device_isa: str, precision: str, seed: int, chosen: int, available: int, threads: int
) -> None:
    rng = np.random.default_rng(seed)
    x = normal(rng, available, 96)
    blocks, scales = random_matrix(rng, 64, 96)
    bias = normal_bf16(rng, 64)
    x_rows = rng.integers(0, available, chosen, dtype=np.int32)
    out_rows = rng.permutation(chosen + 7)[:chosen].astype(np.int32)
    out = Output(chosen + 7, 64)
    call = table(device_isa, threads).linear_mxfp4
    int8 = precision == "default"
    call(x, blocks, scales, bias, x_rows, out_rows, int8, out.view)
    plain = ops.linear_mxfp4(
        x, blocks, scales, bias, precision=precision, isa=device_isa, threads=1
    )
    assert_same_bits(out.values(out_rows), plain[x_rows], "gathered")


@pytest.mark.parametrize("precision", PRECISIONS)
@given(seed=seeds, tokens=st.integers(2, 140), rows=st.integers(1, 5), cols=st.integers(1, 20))
@examples(12)
def test_linear_mxfp4_bits_do_not_depend_on_tokens_rows_or_threads(
    device_isa: str, precision: str, seed: int, tokens: int, rows: int, cols: int
) -> None:
    rng = np.random.default_rng(seed)
    x = normal(rng, tokens, 32 * cols)
    blocks, scales = random_matrix(rng, 32 * rows, 32 * cols)
    bias = normal_bf16(rng, 32 * rows)

    def product(x: np.ndarray, rows: slice = slice(None), threads: int = 1) -> np.ndarray:
        return ops.linear_mxfp4(
            x,
            blocks[rows],
            scales[rows],
            bias[rows],
            precision=precision,
            isa=device_isa,
            threads=threads,
        )

    whole = product(x)
    begin = int(rng.integers(0, tokens))
    for threads in THREADS:
        assert_same_bits(product(x, threads=threads), whole, f"{threads} threads")
        part = product(x[begin:], threads=threads)
        assert_same_bits(part, whole[begin:], f"tokens from {begin}")
    for token in {0, begin, tokens - 1}:
        one = product(x[token : token + 1])
        assert_same_bits(one, whole[token : token + 1], f"token {token} alone")
    some = slice(32 * int(rng.integers(0, rows)), 32 * rows)
    assert_same_bits(product(x, some), np.ascontiguousarray(whole[:, some]), f"rows {some}")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_linear_mxfp4_bits_do_not_depend_on_tokens_at_the_published_width(
    device_isa: str, precision: str, rng: np.random.Generator
) -> None:
    x = normal(rng, 131, HIDDEN)
    blocks, scales = random_matrix(rng, 64, HIDDEN)
    bias = normal_bf16(rng, 64)
    rest: dict[str, Any] = {"precision": precision, "isa": device_isa}
    whole = ops.linear_mxfp4(x, blocks, scales, bias, threads=2, **rest)
    for size in (*range(1, 10), 16, 64, 65, 128):
        part = ops.linear_mxfp4(x[-size:], blocks, scales, bias, threads=1, **rest)
        assert_same_bits(part, whole[-size:], f"{size} tokens")


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("byte", "magnitude"), [(0, 80), (1, 80), (254, -90), (126, 0)])
def test_linear_mxfp4_scales_are_powers_of_two_to_both_ends(
    device_isa: str,
    byte: int,
    magnitude: int,
    precision: str,
    tokens: int,
    rng: np.random.Generator,
) -> None:
    # 17 blocks: one more than the kernels decode at a time. Other blocks are zeros, so that what
    # the extreme scale gives stands alone, wherever it is.
    x = normal(rng, tokens, 544, scale=2.0**magnitude)
    blocks = np.zeros((64, 17, 16), np.uint8)
    scales = np.full((64, 17), 127, np.uint8)
    for row in range(64):
        blocks[row, row % 17] = rng.integers(0, 256, 16)
        scales[row, row % 17] = byte
    bias = np.zeros(64, np.uint16)
    found = ops.linear_mxfp4(
        x, blocks, scales, bias, precision=precision, isa=device_isa, threads=1
    )
    weight = mxfp4.decode(blocks, scales)
    assert np.abs(x @ weight.T).max() > 2.0**-60  # the result is far from underflow
    check_against_reference(found, x, weight, bias, precision=precision, isa=device_isa)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_linear_mxfp4_scale_byte_255_is_nan(
    device_isa: str, precision: str, tokens: int, rng: np.random.Generator
) -> None:
    x = normal(rng, tokens, 544)
    blocks, scales = random_matrix(rng, 64, 544)
    bad = rng.permutation(64)[:20]
    scales[bad, np.arange(20) % 17] = 255
    blocks[bad[0], 0] = 0  # NaN times zero is NaN as well
    bias = normal_bf16(rng, 64)
    found = ops.linear_mxfp4(
        x, blocks, scales, bias, precision=precision, isa=device_isa, threads=1
    )
    assert np.isnan(found[:, bad]).all()
    assert np.isfinite(np.delete(found, bad, axis=1)).all()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_linear_mxfp4_lets_nothing_that_is_not_finite_vanish(
    device_isa: str, value: float, tokens: int, precision: str, rng: np.random.Generator
) -> None:
    x = normal(rng, tokens, 544)
    blocks, scales = random_matrix(rng, 64, 544)
    blocks[3] = 0
    bias = normal_bf16(rng, 64)
    rest: dict[str, Any] = {"precision": precision, "isa": device_isa, "threads": 1}
    clean = ops.linear_mxfp4(x, blocks, scales, bias, **rest)
    token = tokens // 2
    x[token, int(rng.integers(0, 544))] = value
    found = ops.linear_mxfp4(x, blocks, scales, bias, **rest)
    assert not np.isfinite(found[token]).any()
    if precision == "default" or np.isnan(value):
        assert np.isnan(found[token]).all()
    others = np.arange(tokens) != token
    assert_same_bits(found[others], clean[others], "other tokens")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tokens", TOKENS)
def test_linear_mxfp4_does_not_saturate_at_the_extremes(
    device_isa: str, tokens: int, precision: str
) -> None:
    # Every activation code is 127 or -127, every weight 6 or -6, in all patterns of sign.
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
    x = np.resize(signs, (tokens, 96)).astype(np.float32) * np.float32(127.0)
    w = np.resize(signs, (32, 96)) * 6.0
    blocks, scales = mxfp4.encode(w)
    bias = np.zeros(32, np.uint16)
    found = ops.linear_mxfp4(
        x, blocks, scales, bias, precision=precision, isa=device_isa, threads=1
    )
    np.testing.assert_array_equal(found, x.astype(np.float64) @ w.T)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tokens", [1, 3, 5, 9, 40])
def test_linear_mxfp4_reads_every_code_at_every_place(
    device_isa: str, tokens: int, precision: str, rng: np.random.Generator
) -> None:
    # A single one among zeros: the output is that column of the matrix, exactly.
    blocks, scales = random_matrix(rng, 32, 64, low=120, high=134)
    weight = mxfp4.decode(blocks, scales)
    bias = np.zeros(32, np.uint16)
    for first in range(0, 64, tokens):
        x = np.zeros((tokens, 64), np.float32)
        places = (first + np.arange(tokens)) % 64
        x[np.arange(tokens), places] = 127.0  # scale 1, code 127
        found = ops.linear_mxfp4(
            x, blocks, scales, bias, precision=precision, isa=device_isa, threads=1
        )
        np.testing.assert_array_equal(found, 127.0 * weight[:, places].T)


@pytest.fixture(scope="module", params=[(5760, HIDDEN), (HIDDEN, HIDDEN)], ids=["up", "down"])
def published(
    request: pytest.FixtureRequest, session_seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One expert's matrix of the 20b: blocks, scales, and its values."""
    blocks, scales = random_matrix(np.random.default_rng(session_seed), *request.param)
    return blocks, scales, mxfp4.decode(blocks, scales)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_linear_mxfp4_at_a_published_expert(
    device_isa: str,
    precision: str,
    published: tuple[np.ndarray, np.ndarray, np.ndarray],
    rng: np.random.Generator,
) -> None:
    blocks, scales, weight = published
    x, bias = normal(rng, 11, HIDDEN), normal_bf16(rng, len(weight))
    rest: dict[str, Any] = {"precision": precision, "isa": device_isa, "threads": 2}
    found = ops.linear_mxfp4(x, blocks, scales, bias, **rest)
    rows = np.sort(rng.permutation(len(weight))[:700])  # of all that was computed
    check_against_reference(
        found[:, rows], x, weight[rows], bias[rows], precision=precision, isa=device_isa
    )
    one = ops.linear_mxfp4(x[4:5], blocks, scales, bias, **rest)
    assert_same_bits(one, found[4:5], "alone")


@pytest.mark.parametrize("scale", [-140, -100, -30, 30, 100])
@given(seed=seeds, tokens=st.integers(2, 40), low=st.integers(0, 254), spread=st.integers(0, 60))
@examples(15)
def test_linear_mxfp4_bits_do_not_depend_on_tokens_at_any_exponents(
    device_isa: str, scale: int, seed: int, tokens: int, low: int, spread: int
) -> None:
    # Through the subnormal numbers and beyond the largest, where a kernel may change its way.
    rng = np.random.default_rng(seed)
    x = normal(rng, tokens, 96) * np.exp2(scale + rng.integers(-9, 10, (tokens, 1)))
    x = x.astype(np.float32)
    blocks, scales = random_matrix(rng, 64, 96, low=low, high=min(low + spread, 254))
    bias = np.zeros(64, np.uint16)
    whole = ops.linear_mxfp4(x, blocks, scales, bias, isa=device_isa, threads=1)
    for token in range(tokens):
        one = ops.linear_mxfp4(
            x[token : token + 1], blocks, scales, bias, isa=device_isa, threads=1
        )
        same = (one.view(np.uint32) == whole[token].view(np.uint32)) | np.isnan(one)
        assert (same & (np.isnan(one) == np.isnan(whole[token]))).all()


def test_linear_mxfp4_refuses_arguments_that_do_not_fit(device_isa: str) -> None:
    call = table(device_isa).linear_mxfp4
    x, order = np.ones((3, 64), np.float32), np.arange(3, dtype=np.int32)
    blocks, scales = np.zeros((32, 2, 16), np.uint8), np.full((32, 2), 127, np.uint8)
    bias = np.zeros(32, np.uint16)
    out = Output(3, 32)

    def refused(match: str, **changes: object) -> None:
        names = {"x": x, "blocks": blocks, "scales": scales, "bias": bias}
        names |= {"x_rows": order, "out_rows": order, "int8": True, "out": out.view}
        for int8 in (True, False):
            arguments = names | {"int8": int8} | changes
            assert_refused(lambda: call(**arguments), match=match)  # noqa: B023

    refused("x: expected", x=x.astype(np.float64))
    refused("multiple of 32", x=np.ones((3, 48), np.float32))
    refused("blocks: expected", blocks=blocks.view(np.int8))
    refused("blocks: expected", blocks=blocks[:, :1])
    refused("blocks: expected", blocks=np.zeros((32, 2, 32), np.uint8)[:, :, ::2])
    refused("blocks: expected", blocks=blocks.reshape(32, 32))
    refused("scales: expected", scales=scales[:31])
    refused("scales: expected", scales=scales.T)
    refused("scales: expected", scales=scales.astype(np.float32))
    refused("bias: expected", bias=bias[:31])
    refused("bias: expected", bias=np.zeros(32, np.float32))
    refused("x_rows", x_rows=order.astype(np.int64))
    refused(r"x_rows\[2\].*0 to 2", x_rows=np.array([0, 1, 3], np.int32))
    refused(r"x_rows\[0\].*0 to 2", x_rows=np.array([-1, 1, 2], np.int32))
    refused(r"out_rows\[1\].*0 to 2", out_rows=np.array([0, 3, 2], np.int32))
    refused("out_rows", out_rows=order[:2])
    refused("out: expected", out=np.zeros((3, 32), np.float64))
    refused("multiple of 32", out=out.view[:, :31])
    refused("blocks: expected", out=np.zeros((3, 64), np.float32))
    refused("read-only", out=read_only(out.view))
    out.assert_untouched()
    with pytest.raises(InvalidArgument, match="precision"):
        ops.linear_mxfp4(x, blocks, scales, bias, precision="float16")
