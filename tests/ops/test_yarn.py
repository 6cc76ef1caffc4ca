"""yarn_angles: the rotary table of the whole model, one for every layer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from gpt_oss_native import ops
from gpt_oss_native.checkpoint.config import ModelConfig
from hypothesis import given
from hypothesis import strategies as st
from reference import ops as reference
from reference.op_support import examples
from tolerances import assert_within, relative_bound

pytest.importorskip("gpt_oss_native._core", reason="the compiled core is not installed")

LAST = 131_071


def config_with(**changes: Any) -> ModelConfig:
    """A small config with the published rotary constants, or others."""
    sizes: dict[str, Any] = {
        "num_layers": 1,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_experts": 4,
        "experts_per_token": 2,
        "num_heads": 2,
        "num_kv_heads": 1,
        "vocab_size": 100,
        "sliding_window": 8,
        "layer_windows": (True,),
        "max_context": LAST + 1,
    }
    return ModelConfig(**(sizes | changes))


def check_against_reference(config: ModelConfig, positions: list[int]) -> None:
    inv_freq, concentration = reference.yarn_inv_freq(
        theta=config.rope_theta,
        factor=config.rope_factor,
        original_context=config.rope_original_context,
        beta_fast=config.rope_beta_fast,
        beta_slow=config.rope_beta_slow,
    )
    expected = reference.yarn_table(positions, inv_freq, concentration)
    found = ops.yarn_angles(config, positions)
    for name, ours, theirs in zip(("cos", "sin"), found, expected, strict=True):
        assert ours.dtype == np.float32
        # The function, the concentration and their product round once each.
        assert_within(ours, theirs, relative_bound(theirs, 3.0), f"yarn {name}")


def test_yarn_agrees_with_the_reference_at_all_magnitudes(rng: np.random.Generator) -> None:
    edges = [0, 1, 2, 127, 128, 4095, 4096, 4097, 65_535, LAST - 1, LAST]
    check_against_reference(config_with(), edges + rng.integers(0, LAST, 500).tolist())


@given(
    theta=st.floats(1e4, 1e6),
    factor=st.sampled_from([1.0, 2.0, 32.0, 64.0]),
    original_context=st.integers(64, 8192),
    position=st.integers(0, 4096),
)
@examples(40)
def test_yarn_agrees_with_the_reference_for_other_constants(
    theta: float, factor: float, original_context: int, position: int
) -> None:
    config = config_with(
        rope_theta=theta, rope_factor=factor, rope_original_context=original_context
    )
    inv_freq, concentration = reference.yarn_inv_freq(
        theta=theta, factor=factor, original_context=original_context
    )
    cos, sin = reference.yarn_table([position], inv_freq, concentration)
    found = ops.yarn_angles(config, [position])
    # A power rounded the other way moves a float32 frequency, and so the angle, by one roundoff.
    slack = (position * inv_freq * 2.0**-23 + 2.0**-22) * concentration
    assert_within(found[0], cos, slack[None], "cos")
    assert_within(found[1], sin, slack[None], "sin")


def ramp_limits(config: ModelConfig) -> tuple[float, float]:
    """Where the ramp begins and ends, from the angles of position 1 alone."""
    cos, sin = (part[0].astype(np.float64) for part in ops.yarn_angles(config, [1]))
    inverse = np.arctan2(sin, cos)
    plain = config.rope_theta ** (-np.arange(32) / 32)
    ramp = (1.0 - inverse / plain) / (1.0 - 1.0 / config.rope_factor)
    inside = np.flatnonzero((ramp > 1e-4) & (ramp < 1 - 1e-4))
    slope, offset = np.polyfit(inside, ramp[inside], 1)
    # Below the limit nothing is stretched, above everything is.
    np.testing.assert_allclose(ramp[: inside[0]], 0.0, atol=1e-5)
    np.testing.assert_allclose(ramp[inside[-1] + 1 :], 1.0, atol=1e-4)
    return -offset / slope, (1.0 - offset) / slope


def test_yarn_ramp_limits_of_the_published_models_are_not_rounded() -> None:
    low, high = ramp_limits(config_with())
    assert low == pytest.approx(8.0928, abs=1e-3)
    assert high == pytest.approx(17.3980, abs=1e-3)


def test_yarn_ramp_limits_are_rounded_where_the_config_says_truncate() -> None:
    low, high = ramp_limits(config_with(rope_truncate=True))
    assert low == pytest.approx(8.0, abs=1e-3)
    assert high == pytest.approx(18.0, abs=1e-3)


def test_yarn_concentration_scales_cosines_and_sines() -> None:
    cos, sin = ops.yarn_angles(config_with(), [0, 77])
    np.testing.assert_allclose(cos[0], 0.1 * math.log(32.0) + 1.0, rtol=2.0**-23)
    assert not sin[0].any()
    radius = np.hypot(cos[1].astype(np.float64), sin[1])
    np.testing.assert_allclose(radius, 1.3465735902799727, rtol=2.0**-22)


def test_yarn_without_a_factor_is_plain_rope() -> None:
    cos, sin = ops.yarn_angles(config_with(rope_factor=1.0), [3])
    angle = np.float32(3.0) * (150000.0 ** (-np.arange(32) / 32)).astype(np.float32)
    np.testing.assert_allclose(cos[0], np.cos(angle.astype(np.float64)), atol=1e-6)
    np.testing.assert_allclose(sin[0], np.sin(angle.astype(np.float64)), atol=1e-6)


def test_yarn_rounds_the_angle_to_float32_as_the_published_model_does() -> None:
    inv_freq, concentration = reference.yarn_inv_freq()
    cos, _ = ops.yarn_angles(config_with(), [LAST])
    exact = np.cos(LAST * inv_freq.astype(np.float64)) * concentration
    assert np.abs(cos[0] - exact).max() > 1e-4
    rounded = (np.float32(LAST) * inv_freq).astype(np.float64)
    np.testing.assert_allclose(cos[0], np.cos(rounded) * concentration, atol=1e-6)
