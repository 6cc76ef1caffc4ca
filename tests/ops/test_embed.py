"""embed: rows of a bfloat16 table, widened exactly."""

from __future__ import annotations

import numpy as np
import pytest
from cases import HIDDEN, VOCAB
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
    fit,
    read_only,
    seeds,
    table,
    token_counts,
    unaligned_rows,
    where,
)


def random_bits(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Every bfloat16 there is: subnormals, infinities and NaN too."""
    return rng.integers(0, 2**16, shape, dtype=np.uint16)


def widened(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


@given(
    seed=seeds,
    tokens=token_counts,
    vocab=st.integers(1, 60),
    hidden=st.integers(1, 200),
    padding=st.integers(0, 9),
    threads=st.sampled_from(THREADS),
)
@examples(25)
def test_embed_copies_the_rows_of_its_tokens_bit_for_bit(
    op_device: str, seed: int, tokens: int, vocab: int, hidden: int, padding: int, threads: int
) -> None:
    rng = np.random.default_rng(seed)
    hidden = fit(op_device, hidden)
    weights = random_bits(rng, vocab, hidden)
    ids = rng.integers(0, vocab, tokens, dtype=np.int32)
    out = Output(tokens, hidden, padding=padding)
    stored = unaligned_rows(weights, padding=padding)
    table(op_device, threads).embed(ids, stored, out.view)
    assert_same_bits(out.values(), widened(weights[ids]), "embed")


def test_embed_values_are_those_of_the_reference(op_device: str, rng: np.random.Generator) -> None:
    weights = random_bits(rng, 5, 2880)
    finite = np.isfinite(reference.bf16_values(weights))
    weights = np.where(finite, weights, 0).astype(np.uint16)
    found = ops.embed(np.array([4, 0, 4, 2], np.int32), weights, **where(op_device), threads=1)
    np.testing.assert_array_equal(found, reference.bf16_values(weights)[[4, 0, 4, 2]])


def test_embed_reaches_the_last_row_of_the_published_vocabulary(
    op_device: str, rng: np.random.Generator
) -> None:
    weights = np.zeros((VOCAB, HIDDEN), np.uint16)  # untouched pages cost nothing
    ids = np.array([0, VOCAB - 1, VOCAB // 2], np.int32)
    weights[ids] = random_bits(rng, 3, HIDDEN)
    found = ops.embed(ids, weights, **where(op_device), threads=2)
    assert_same_bits(found, widened(weights[ids]), "embed")


@pytest.mark.parametrize("token", [-1, 7, 2**31 - 1, -(2**31)])
def test_embed_refuses_tokens_outside_the_table(op_device: str, token: int) -> None:
    weights = np.zeros((7, 32), np.uint16)
    out = Output(3, 32)
    ids = np.array([0, token, 1], np.int32)
    call = table(op_device).embed
    assert_refused(call, ids, weights, out.view, match=r"tokens\[1\].*0 to 6")
    out.assert_untouched()


def test_embed_refuses_arguments_that_do_not_fit(op_device: str) -> None:
    call = table(op_device).embed
    ids, weights = np.zeros(3, np.int32), np.zeros((7, 32), np.uint16)
    out = Output(3, 32)
    assert_refused(call, ids.astype(np.int64), weights, out.view, match="tokens")
    assert_refused(call, ids[:2], weights, out.view, match="tokens")
    assert_refused(call, np.zeros(6, np.int32)[::2], weights, out.view, match="tokens")
    assert_refused(call, ids[:, None], weights, out.view, match="tokens")
    assert_refused(call, ids, weights.astype(np.float32), out.view, match="table")
    assert_refused(call, ids, weights[0], out.view, match="table")
    assert_refused(call, ids, weights[:, ::2], out.view[:, :16], match="table")
    assert_refused(call, ids, weights, out.view[:, :31], match="out")
    assert_refused(call, ids, weights, read_only(out.view), match="read-only")
    assert_refused(call, ids, weights, np.empty((3, 32), np.float64), match="out")
    assert_refused(call, ids, weights, np.empty((3, 32), ">f4"), match="out")
    out.assert_untouched()


def test_embed_of_no_tokens_is_empty(op_device: str) -> None:
    found = ops.embed(np.zeros(0, np.int32), np.zeros((3, 32), np.uint16), **where(op_device))
    assert found.shape == (0, 32)
