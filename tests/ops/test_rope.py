"""rope: rotation of each head's halves, in place."""

from __future__ import annotations

import numpy as np
import pytest
from cases import strided
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
    read_only,
    seeds,
    table,
    token_counts,
    where,
)
from tolerances import EPS_F32, TINY_F32, assert_within

HALF = 32


def table_of(rng: np.random.Generator, tokens: int) -> np.ndarray:
    """Cosines, then sines, of random positions, with the concentration."""
    inv_freq, concentration = reference.yarn_inv_freq()
    positions = rng.integers(0, 131072, tokens)
    cos, sin = reference.yarn_table(positions, inv_freq, concentration)
    return np.concatenate([cos, sin], axis=1).astype(np.float32)


def check_against_reference(found: np.ndarray, x: np.ndarray, cos_sin: np.ndarray) -> None:
    heads = x.reshape(len(x), -1, 2 * HALF).astype(np.float64)
    cos, sin = (part.astype(np.float64) for part in np.split(cos_sin, 2, axis=1))
    expected = reference.rope(heads, cos, sin)
    # Two products and a sum, each rounded once.
    size = reference.rope(np.abs(heads), np.abs(cos), -np.abs(sin))
    size[..., HALF:] = reference.rope(np.abs(heads), np.abs(cos), np.abs(sin))[..., HALF:]
    bound = 2.0 * EPS_F32 * size + TINY_F32
    assert_within(found.reshape(heads.shape), expected, bound, "rope")


@given(
    seed=seeds,
    tokens=token_counts,
    heads=st.integers(1, 17),
    padding=st.integers(0, 9),
    threads=st.sampled_from(THREADS),
)
@examples(25)
def test_rope_agrees_with_the_reference(
    op_device: str, seed: int, tokens: int, heads: int, padding: int, threads: int
) -> None:
    rng = np.random.default_rng(seed)
    x, cos_sin = normal(rng, tokens, 64 * heads), table_of(rng, tokens)
    out = Output(tokens, 64 * heads, padding=padding)
    out.view[:] = x
    table(op_device, threads).rope(out.view, strided(cos_sin, padding=padding))
    check_against_reference(out.values(), x, cos_sin)


def test_rope_turns_halves_and_not_pairs(op_device: str) -> None:
    # A quarter turn moves element i to i + 32, and i + 32 to i with the sign changed.
    x = np.arange(1, 129, dtype=np.float32)[None]
    cos_sin = np.concatenate([np.zeros(HALF), np.ones(HALF)]).astype(np.float32)[None]
    found = ops.rope(x, cos_sin, **where(op_device), threads=1)
    head = np.arange(1, 33, dtype=np.float32)
    np.testing.assert_array_equal(found[0, :64], np.concatenate([-(head + 32), head]))
    np.testing.assert_array_equal(found[0, 64:], np.concatenate([-(head + 96), head + 64]))
    np.testing.assert_array_equal(x[0], np.arange(1, 129))  # ops.rope leaves its argument alone


def test_rope_turns_every_dimension_by_its_own_angle(
    op_device: str, rng: np.random.Generator
) -> None:
    x, cos_sin = normal(rng, 1, 64), table_of(rng, 1)
    whole = ops.rope(x, cos_sin, **where(op_device), threads=1)
    for place in range(HALF):
        other = cos_sin.copy()
        other[0, [place, place + HALF]] = [0.25, -0.5]
        found = ops.rope(x, other, **where(op_device), threads=1)
        changed = np.flatnonzero(found[0] != whole[0])
        np.testing.assert_array_equal(changed, [place, place + HALF])


@given(seed=seeds, tokens=st.integers(2, 70), heads=st.integers(1, 9))
@examples(12)
def test_rope_bits_do_not_depend_on_what_is_beside(
    op_device: str, seed: int, tokens: int, heads: int
) -> None:
    rng = np.random.default_rng(seed)
    x, cos_sin = normal(rng, tokens, 64 * heads), table_of(rng, tokens)
    whole = ops.rope(x, cos_sin, **where(op_device), threads=1)
    first, head = int(rng.integers(0, tokens)), int(rng.integers(0, heads))
    for threads in THREADS:
        part = ops.rope(x[first:], cos_sin[first:], **where(op_device), threads=threads)
        assert_same_bits(part, whole[first:], f"tokens from {first}")
    columns = slice(64 * head, 64 * head + 64)
    one = ops.rope(x[:, columns], cos_sin, **where(op_device), threads=1)
    assert_same_bits(one, np.ascontiguousarray(whole[:, columns]), f"head {head}")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rope_keeps_what_is_not_finite(
    op_device: str, value: float, rng: np.random.Generator
) -> None:
    x, cos_sin = normal(rng, 3, 128), table_of(rng, 3)
    cos_sin[:, :3] = [1.0, 0.0, 1.0]  # an infinity times zero is NaN
    clean = ops.rope(x, cos_sin, **where(op_device), threads=1)
    for place in range(64):
        bad = x.copy()
        bad[1, 64 + place] = value
        found = ops.rope(bad, cos_sin, **where(op_device), threads=1)
        hit = np.zeros((3, 128), bool)
        hit[1, [64 + place, 64 + (place + HALF) % 64]] = True
        assert not np.isfinite(found[hit]).any()
        assert_same_bits(found[~hit], clean[~hit], "the others")


def test_rope_refuses_arguments_that_do_not_fit(op_device: str) -> None:
    call = table(op_device).rope
    out = Output(3, 128)
    cos_sin = np.ones((3, 64), np.float32)
    assert_refused(call, out.view.astype(np.float64), cos_sin, match="x: expected")
    assert_refused(call, out.view[:, :96], cos_sin, match="multiple of 64")
    assert_refused(call, out.view[0], cos_sin, match="x: expected")
    assert_refused(call, out.view, cos_sin[:2], match="cos_sin: expected")
    assert_refused(call, out.view, np.ones((3, 32), np.float32), match="cos_sin: expected")
    assert_refused(call, out.view, cos_sin.astype(np.float64), match="cos_sin: expected")
    assert_refused(call, read_only(out.view), cos_sin, match="read-only")
    out.assert_untouched()
