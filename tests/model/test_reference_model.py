"""The float64 model against transformers, so that every other test may trust the reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from reference import ops
from reference.checkpoints import SHAPES, TINY, Checkpoint, random_checkpoint, random_shape
from reference.model import ReferenceModel, Trace
from tolerances import relative_error

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from reference.transformers_oracle import TransformersOracle, transformers_config  # noqa: E402

# Row errors in the Euclidean norm. In "float64" transformers still normalises and makes its cosines
# in float32, which leaves about 1e-6; in "float32" every product rounds to 2^-24 and softmaxes and
# norms amplify what came before: 3e-7 a layer in the median, ten times that in the worst row. A
# wrong constant anywhere is above 1e-4.
ROW_ERROR = {"float64": 1e-5, "float32": 4e-5}


def prompt_beyond_the_window(rng: np.random.Generator, checkpoint: Checkpoint) -> np.ndarray:
    length = 2 * checkpoint.shape.sliding_window + int(rng.integers(3, 20))
    return rng.integers(0, checkpoint.shape.vocab_size, length)


def assert_rows_within(actual: Trace, expected: Trace, bound: float, name: str) -> None:
    for field in ("hidden", "router_logits", "logits"):
        error = relative_error(getattr(actual, field), getattr(expected, field))
        worst = np.unravel_index(np.argmax(error), error.shape)
        assert np.all(error <= bound), (
            f"[{name}] {field} row {worst}: relative error {error[worst]:.3g}, bound {bound:.3g} "
            f"(share {error[worst] / bound:.3g})"
        )


@pytest.mark.parametrize("dtype", ROW_ERROR)
@pytest.mark.parametrize("name", SHAPES)
def test_reference_agrees_with_transformers(
    name: str, dtype: str, rng: np.random.Generator
) -> None:
    checkpoint = random_checkpoint(int(rng.integers(2**31)), SHAPES[name])
    tokens = prompt_beyond_the_window(rng, checkpoint)
    expected = ReferenceModel(checkpoint).forward(tokens)
    oracle = TransformersOracle(checkpoint, dtype=dtype)
    actual = oracle.forward(tokens, forced_experts=expected.experts)
    assert_rows_within(actual, expected, ROW_ERROR[dtype], f"{name} {dtype}")


def test_reference_agrees_with_transformers_on_a_shape_nobody_chose(
    rng: np.random.Generator,
) -> None:
    shape = random_shape(rng)
    checkpoint = random_checkpoint(int(rng.integers(2**31)), shape)
    tokens = prompt_beyond_the_window(rng, checkpoint)
    expected = ReferenceModel(checkpoint).forward(tokens)
    actual = TransformersOracle(checkpoint).forward(tokens, forced_experts=expected.experts)
    assert_rows_within(actual, expected, ROW_ERROR["float32"], str(shape))


def test_reference_chooses_the_experts_that_transformers_chooses(rng: np.random.Generator) -> None:
    checkpoint = random_checkpoint(int(rng.integers(2**31)), SHAPES["top2_window8"])
    tokens = prompt_beyond_the_window(rng, checkpoint)
    expected = ReferenceModel(checkpoint).forward(tokens)
    actual = TransformersOracle(checkpoint).forward(tokens)
    clear = (expected.router_margins > 1e-3).all(axis=0)
    assert clear.mean() > 0.5
    same = np.sort(actual.experts, axis=-1) == np.sort(expected.experts, axis=-1)
    # One flip of an unclear token may reach later tokens through attention, so count up to it.
    until = len(tokens) if clear.all() else int(np.argmin(clear))
    assert same[:, :until].all()


def test_forced_experts_replace_the_routers_choice_in_both(rng: np.random.Generator) -> None:
    checkpoint = random_checkpoint(int(rng.integers(2**31)), TINY)
    shape = checkpoint.shape
    tokens = prompt_beyond_the_window(rng, checkpoint)
    drawn = rng.random((shape.num_hidden_layers, len(tokens), shape.num_local_experts))
    forced = np.argsort(drawn, axis=-1)[..., : shape.num_experts_per_tok]
    expected = ReferenceModel(checkpoint).forward(tokens, forced_experts=forced)
    actual = TransformersOracle(checkpoint).forward(tokens, forced_experts=forced)
    np.testing.assert_array_equal(expected.experts, forced)
    assert_rows_within(actual, expected, ROW_ERROR["float32"], "forced")


def test_bfloat16_transformers_stays_near_the_reference(rng: np.random.Generator) -> None:
    checkpoint = random_checkpoint(int(rng.integers(2**31)), TINY)
    tokens = prompt_beyond_the_window(rng, checkpoint)
    expected = ReferenceModel(checkpoint).forward(tokens)
    actual = TransformersOracle(checkpoint, dtype="bfloat16").forward(
        tokens, forced_experts=expected.experts
    )
    # About thirty roundings of 2^-9 deep, adding as a random walk and amplified by norms: 2 % is
    # usual; the aggregate comparison with free routing belongs to the engine's tests.
    assert np.median(relative_error(actual.logits, expected.logits)) < 0.06


@pytest.mark.parametrize("name", SHAPES)
def test_yarn_frequencies_are_those_of_transformers(name: str) -> None:
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRotaryEmbedding

    shape = SHAPES[name]
    config = transformers_config(shape)
    assert config.rope_parameters["truncate"] is False
    theirs = GptOssRotaryEmbedding(config)
    model = ReferenceModel(random_checkpoint(0, shape))
    # Theirs are computed in float32: a power, a division, a product and two sums.
    np.testing.assert_allclose(model.inv_freq, theirs.inv_freq.numpy(), rtol=6 * 2.0**-23)
    assert model.concentration == pytest.approx(theirs.attention_scaling, rel=1e-12)


def test_published_yarn_constants() -> None:
    inv_freq, concentration = ops.yarn_inv_freq()
    theta = 150_000.0 ** (-np.arange(32) / 32)
    assert concentration == pytest.approx(1.34657, abs=5e-6)
    # The ramp runs from 8.0928 to 17.3980: up to 8 untouched, from 18 on divided by 32.
    np.testing.assert_allclose(inv_freq[:9], theta[:9], rtol=2.0**-24)
    np.testing.assert_allclose(inv_freq[18:], theta[18:] / 32, rtol=2.0**-24)
    assert theta[17] / 32 < inv_freq[17] < theta[17]


def test_checkpoints_exceed_the_clamp_and_use_their_sinks(rng: np.random.Generator) -> None:
    checkpoint = random_checkpoint(int(rng.integers(2**31)), TINY)
    tokens = prompt_beyond_the_window(rng, checkpoint)
    trace = ReferenceModel(checkpoint).forward(tokens)
    x = ops.rms_norm(trace.hidden[1], np.ones(TINY.hidden_size))
    weight = checkpoint.experts("model.layers.1.mlp.experts.gate_up_proj")[0]
    beyond = np.mean(np.abs(ops.linear(x, weight)) > TINY.swiglu_limit)
    assert 0.01 < beyond < 0.3
    assert np.std(trace.logits) > 1.0

    without = dict(checkpoint.tensors)
    for layer in range(TINY.num_hidden_layers):
        name = f"model.layers.{layer}.self_attn.sinks"
        without[name] = ops.bf16_bits(np.full(TINY.num_attention_heads, -1e4))
    deaf = ReferenceModel(dataclasses.replace(checkpoint, tensors=without)).forward(tokens)
    assert np.median(relative_error(deaf.logits, trace.logits)) > 0.02


@pytest.mark.parametrize("shards", [1, 3])
def test_transformers_loads_the_hugging_face_layout(
    shards: int,
    rng: np.random.Generator,
    session_seed: int,
    checkpoint_directory: Callable[..., Path],
) -> None:
    from transformers import GptOssForCausalLM, Mxfp4Config

    checkpoint = random_checkpoint(session_seed, TINY)
    directory = checkpoint_directory(checkpoint, shards=shards)
    loaded = GptOssForCausalLM.from_pretrained(
        directory,
        dtype=torch.bfloat16,
        quantization_config=Mxfp4Config(dequantize=True),
        attn_implementation="eager",
        experts_implementation="eager",
    )
    oracle = TransformersOracle(checkpoint, dtype="bfloat16")
    ours = oracle.model.state_dict()
    theirs = loaded.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name].to(tensor.dtype)), name
