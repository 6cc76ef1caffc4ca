"""The float64 ops against torch, against transformers, and against the definitions they state."""

from __future__ import annotations

import math

import numpy as np
import pytest
from cases import SMALL_ATTENTION, AttentionCase
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import mxfp4, ops

torch = pytest.importorskip("torch")
F = torch.nn.functional


def close(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-12)


# --- MXFP4 ----------------------------------------------------------------------------------------


def test_mxfp4_low_nibble_is_the_even_element() -> None:
    block = np.zeros((1, 16), dtype=np.uint8)
    block[0, 0] = 0xF1  # codes 1 (0.5) and 15 (-6)
    values = mxfp4.decode(block, np.array([128], dtype=np.uint8))
    np.testing.assert_array_equal(values[:3], [1.0, -12.0, 0.0])


def test_mxfp4_scale_bytes_are_powers_of_two_at_both_ends() -> None:
    scales = mxfp4.decode_scales(np.array([0, 1, 127, 254, 255], dtype=np.uint8))
    np.testing.assert_array_equal(scales[:4], [2.0**-127, 2.0**-126, 1.0, 2.0**127])
    assert np.isnan(scales[4])
    # The smallest is a float32 subnormal and exact there: 2^22 times the smallest subnormal.
    assert np.float32(scales[0]) == scales[0]
    assert scales[0] / float(np.finfo(np.float32).smallest_subnormal) == 2.0**22


def test_mxfp4_every_code_has_its_ocp_value() -> None:
    expected = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    np.testing.assert_array_equal(mxfp4.E2M1, expected + [-v for v in expected])
    assert np.signbit(mxfp4.E2M1[8])


def test_mxfp4_packing_is_undone_by_unpacking(rng: np.random.Generator) -> None:
    codes = rng.integers(0, 16, (3, 5, 96), dtype=np.uint8)
    np.testing.assert_array_equal(mxfp4.unpack_codes(mxfp4.pack_codes(codes)), codes)


def test_mxfp4_encoding_is_the_nearest_code_and_stable(rng: np.random.Generator) -> None:
    x = rng.standard_normal((7, 160)) * 10.0 ** rng.uniform(-6, 6, (7, 1))
    blocks, scales = mxfp4.encode(x)
    found = mxfp4.decode(blocks, scales).reshape(-1, 32)
    grid = mxfp4.decode_scales(scales).reshape(-1, 1, 1) * mxfp4.E2M1
    x = x.reshape(-1, 32)
    best = np.abs(grid - x[..., None]).min(axis=-1)
    np.testing.assert_array_equal(np.abs(found - x), best)
    again = mxfp4.decode(*mxfp4.encode(found))
    np.testing.assert_array_equal(again, found)


def test_mxfp4_ties_round_to_the_even_code() -> None:
    ties = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]
    x = np.array([6.0, *ties, *(-t for t in ties), *([0.0] * 17)])  # 6 makes the scale 1
    found = mxfp4.decode(*mxfp4.encode(x))
    even = [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]
    np.testing.assert_array_equal(found[1:15], even + [-v for v in even])


def test_mxfp4_zeros_and_extremes_encode() -> None:
    x = np.zeros((3, 32))
    x[1, 0], x[2, 0] = 1e-300, 1e300
    blocks, scales = mxfp4.encode(x)
    np.testing.assert_array_equal(scales[:, 0], [127, 0, 254])
    np.testing.assert_array_equal(mxfp4.decode(blocks, scales)[:, 0], [0.0, 0.0, 6 * 2.0**127])
    with pytest.raises(ValueError, match="finite"):
        mxfp4.encode(np.full(32, np.nan))


def test_mxfp4_decoding_agrees_with_transformers(rng: np.random.Generator) -> None:
    integration = pytest.importorskip("transformers.integrations.mxfp4")
    blocks = rng.integers(0, 256, (2, 6, 3, 16), dtype=np.uint8)
    scales = rng.integers(100, 140, (2, 6, 3), dtype=np.uint8)
    theirs = integration.convert_moe_packed_tensors(
        torch.from_numpy(blocks), torch.from_numpy(scales), dtype=torch.float32
    )
    np.testing.assert_array_equal(mxfp4.decode(blocks, scales), theirs.numpy().swapaxes(1, 2))


# --- norms, rotation, attention -------------------------------------------------------------------


def test_rms_norm_agrees_with_torch(rng: np.random.Generator) -> None:
    x, scale = rng.standard_normal((5, 96)), rng.standard_normal(96)
    expected = F.rms_norm(torch.from_numpy(x), (96,), torch.from_numpy(scale), eps=1e-5)
    close(ops.rms_norm(x, scale), expected.numpy())


def test_rope_is_a_rotation_of_halves_that_depends_on_distance_only(
    rng: np.random.Generator,
) -> None:
    inv_freq, concentration = ops.yarn_inv_freq()
    q, k = rng.standard_normal((2, 1, 3, 64))

    def score(i: int, j: int) -> np.ndarray:
        a = ops.rope(q, *ops.yarn_table([i], inv_freq, concentration))
        b = ops.rope(k, *ops.yarn_table([j], inv_freq, concentration))
        return np.sum(a * b, axis=-1)

    # Angles are rounded to float32: at 1000 by 3e-5 at most.
    np.testing.assert_allclose(score(1017, 1000), score(17, 0), atol=2e-3)
    z = (q[..., :32] + 1j * q[..., 32:]) * np.exp(1j * 5.0 * inv_freq.astype(np.float64))
    turned = ops.rope(q, *ops.yarn_table([5], inv_freq, 1.0))
    np.testing.assert_allclose(turned, np.concatenate([z.real, z.imag], -1), atol=1e-6)


def test_yarn_angle_is_rounded_to_float32_as_in_the_published_model() -> None:
    inv_freq, _ = ops.yarn_inv_freq()
    cos, sin = ops.yarn_table([131_071], inv_freq, 1.0)
    exact = np.cos(131_071 * inv_freq.astype(np.float64))
    assert 1e-3 < np.abs(cos[0] - exact).max() < 1e-2
    angle = torch.tensor([131_071.0]) * torch.from_numpy(inv_freq)
    close(cos[0], angle.double().cos().numpy())
    close(sin[0], angle.double().sin().numpy())


@pytest.mark.parametrize("case", SMALL_ATTENTION, ids=lambda case: case.name)
def test_attention_agrees_with_a_masked_softmax_in_torch(
    case: AttentionCase, rng: np.random.Generator
) -> None:
    history, tokens = 150, 11
    q = rng.standard_normal((tokens, case.heads, case.size))
    k, v = rng.standard_normal((2, history, case.kv_heads, case.size))
    sinks = rng.standard_normal(case.heads)
    positions = np.sort(rng.choice(history, tokens, replace=False))
    found = ops.attention(q, k, v, sinks, positions=positions, window=case.window)

    group = case.heads // case.kv_heads
    wide_k, wide_v = (torch.from_numpy(np.repeat(a, group, axis=1)) for a in (k, v))
    scores = torch.einsum("qhd,khd->hqk", torch.from_numpy(q), wide_k) / math.sqrt(case.size)
    distance = torch.from_numpy(positions)[:, None] - torch.arange(history)[None]
    hidden = (distance < 0) | (distance >= (case.window or history))
    scores = scores.masked_fill(hidden[None], -math.inf)
    sink = torch.from_numpy(sinks)[:, None, None].expand(-1, tokens, 1)
    weights = torch.cat([scores, sink], dim=-1).softmax(dim=-1)[..., :-1]
    close(found, torch.einsum("hqk,khd->qhd", weights, wide_v).numpy())


def test_attention_ignores_keys_out_of_sight_even_if_they_are_nan(
    rng: np.random.Generator,
) -> None:
    q = rng.standard_normal((2, 4, 64))
    k, v = rng.standard_normal((2, 40, 2, 64))
    sinks = rng.standard_normal(4)
    clean = ops.attention(q, k, v, sinks, positions=[20, 21], window=8)
    for array in (k, v):
        array[:13] = np.nan  # 20 - 8 = 12 is the newest key the window hides
        array[22:] = np.nan
    close(ops.attention(q, k, v, sinks, positions=[20, 21], window=8), clean)


def test_attention_of_a_large_sink_is_nothing_and_of_none_is_a_mean(
    rng: np.random.Generator,
) -> None:
    q = rng.standard_normal((1, 2, 64))
    k, v = np.zeros((9, 1, 64)), rng.standard_normal((9, 1, 64))
    close(ops.attention(q, k, v, np.full(2, 1e4), positions=[8]), np.zeros((1, 2, 64)))
    mean = ops.attention(q, k, v, np.full(2, -1e4), positions=[8])
    close(mean[0, 1], v[:, 0].mean(axis=0))
    # With every score 0 and a sink of 0, the sink is the tenth of ten equals.
    close(ops.attention(q, k, v, np.zeros(2), positions=[8]), 0.9 * mean)


def test_ragged_attention_is_each_sequence_alone(rng: np.random.Generator) -> None:
    entries = []
    for history, tokens in ((5, 1), (40, 7)):
        k, v = rng.standard_normal((2, history, 2, 64))
        q = rng.standard_normal((tokens, 4, 64))
        entries.append((q, k, v, np.arange(history - tokens, history)))
    sinks = rng.standard_normal(4)
    together = ops.attention_ragged(entries, sinks, window=6)
    for (q, k, v, positions), found in zip(entries, together, strict=True):
        close(found, ops.attention(q, k, v, sinks, positions=positions, window=6))


# --- experts --------------------------------------------------------------------------------------


def test_router_takes_the_lower_index_of_equal_logits() -> None:
    logits = np.array([[1.0, 3.0, 2.0, 3.0, 2.0, 2.0], [0.0] * 6])
    experts, weights = ops.router_topk(logits, 4)
    np.testing.assert_array_equal(experts, [[1, 3, 2, 4], [0, 1, 2, 3]])
    close(weights.sum(axis=-1), np.ones(2))
    close(weights[0], np.exp([0, 0, -1, -1]) / (2 + 2 / math.e))
    close(weights[1], np.full(4, 0.25))


def test_swiglu_clamps_the_gate_above_only_and_up_on_both_sides() -> None:
    def one(gate: float, up: float) -> float:
        return float(ops.swiglu(np.array([gate, up]))[0])

    def expected(gate: float, up: float) -> float:
        return gate / (1 + math.exp(-1.702 * gate)) * (up + 1)

    assert one(1.0, 2.0) == pytest.approx(expected(1.0, 2.0))
    assert one(9.0, 2.0) == pytest.approx(expected(7.0, 2.0))
    assert one(-9.0, 2.0) == pytest.approx(expected(-9.0, 2.0))
    assert one(1.0, 9.0) == pytest.approx(expected(1.0, 7.0))
    assert one(1.0, -9.0) == pytest.approx(expected(1.0, -7.0))
    assert one(-1e6, 2.0) == 0.0
    assert math.isnan(one(math.nan, 1.0))
    assert math.isnan(one(1.0, math.nan))


def test_moe_weighs_the_second_bias_too(rng: np.random.Generator) -> None:
    x = rng.standard_normal((3, 32))
    experts, weights = ops.router_topk(rng.standard_normal((3, 4)), 2)
    gate_up, down = np.zeros((4, 64, 32)), np.zeros((4, 32, 32))
    bias = rng.standard_normal((4, 32))
    found = ops.moe(x, experts, weights, gate_up, np.zeros((4, 64)), down, bias)
    close(found, np.einsum("tkh,tk->th", bias[experts], weights))


# --- number formats -------------------------------------------------------------------------------


@given(st.floats(width=32))
@settings(max_examples=300, deadline=None)
def test_bf16_rounding_agrees_with_torch(value: float) -> None:
    theirs = torch.tensor([value], dtype=torch.float32).bfloat16().double().numpy()
    np.testing.assert_array_equal(ops.round_bf16([value]), theirs)


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=32, max_size=32))
@settings(max_examples=300, deadline=None)
def test_int8_codes_are_symmetric_and_within_half_a_step(values: list[float]) -> None:
    x = np.array(values)
    codes, scales = ops.quantize_int8(x)
    assert codes.dtype == np.int8
    assert scales.dtype == np.float32
    assert codes.min() >= -127
    np.testing.assert_array_equal(ops.quantize_int8(-x)[0], -codes)
    step = float(scales[0])
    # The scale itself is rounded, which matters most at the largest code; a subnormal one more.
    slack = 127 * step * 2.0**-23 + 127 * 2.0**-149
    assert np.abs(ops.dequantize(codes, scales) - x).max() <= step / 2 + slack


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=32, max_size=32))
@settings(max_examples=300, deadline=None)
def test_codes_of_15_bits_are_symmetric_within_half_a_step_and_two_bytes(
    values: list[float],
) -> None:
    x = np.array(values)
    codes, scales = ops.quantize_int15(x)
    assert codes.dtype == np.int16
    np.testing.assert_array_equal(ops.quantize_int15(-x)[0], -codes)
    step = float(scales[0])
    slack = 16256 * step * 2.0**-23 + 16256 * 2.0**-149
    assert np.abs(ops.dequantize(codes, scales) - x).max() <= step / 2 + slack
    high = (codes.astype(int) + 64) >> 7
    low = codes - 128 * high
    assert np.abs(high).max() <= 127
    assert low.min() >= -64
    assert low.max() <= 63


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_int8_of_a_block_with_a_non_finite_value_is_nan(bad: float) -> None:
    x = np.ones(64)
    x[40] = bad
    codes, scales = ops.quantize_int8(x)
    assert scales[0] == np.float32(1 / 127)
    assert np.isnan(scales[1])
    assert not codes[32:].any()
    assert np.isnan(ops.linear_int8(x, np.ones((1, 64)), dense=False)).all()


def test_softmax_and_its_logarithm_agree_with_torch(rng: np.random.Generator) -> None:
    x = 1000 * rng.standard_normal((4, 33))
    close(ops.softmax(x), torch.softmax(torch.from_numpy(x), -1).numpy())
    close(ops.log_softmax(x), torch.log_softmax(torch.from_numpy(x), -1).numpy())
