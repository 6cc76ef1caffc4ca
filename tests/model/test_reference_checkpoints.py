"""The random checkpoints and both layouts they are written in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from reference.checkpoints import (
    SHAPES,
    TINY,
    original_tensors,
    random_checkpoint,
    read_hugging_face,
    read_safetensors,
)

# The keys of config.json of openai/gpt-oss-20b and -120b.
PUBLISHED_KEYS = """
    architectures attention_bias attention_dropout eos_token_id experts_per_token head_dim
    hidden_act hidden_size initial_context_length initializer_range intermediate_size layer_types
    max_position_embeddings model_type num_attention_heads num_experts_per_tok num_hidden_layers
    num_key_value_heads num_local_experts output_router_logits pad_token_id quantization_config
    rms_norm_eps rope_scaling rope_theta router_aux_loss_coef sliding_window swiglu_limit
    tie_word_embeddings transformers_version use_cache vocab_size
"""
ORIGINAL_KEYS = """
    num_hidden_layers num_experts experts_per_token vocab_size hidden_size intermediate_size
    swiglu_limit head_dim num_attention_heads num_key_value_heads sliding_window
    initial_context_length rope_theta rope_scaling_factor rope_ntk_alpha rope_ntk_beta
"""


@pytest.mark.parametrize(("shards", "slack"), [(1, 0), (1, 3), (4, 0), (3, 1)])
@pytest.mark.parametrize("name", ["tiny", "no_groups_short_context"])
def test_hugging_face_layout_reads_back_at_any_alignment(
    name: str,
    shards: int,
    slack: int,
    session_seed: int,
    checkpoint_directory: Callable[..., Path],
) -> None:
    checkpoint = random_checkpoint(session_seed, SHAPES[name])
    directory = checkpoint_directory(checkpoint, shards=shards, slack=slack)
    read = read_hugging_face(directory)
    assert read.shape == checkpoint.shape
    assert read.tensors.keys() == checkpoint.tensors.keys()
    for tensor in read.tensors:
        np.testing.assert_array_equal(read.tensors[tensor], checkpoint.tensors[tensor])
    for path in directory.glob("*.safetensors"):
        begin = 8 + int.from_bytes(path.read_bytes()[:8], "little")
        assert (begin % 8 != 0) == (slack != 0)
    assert (directory / "model.safetensors.index.json").exists() == (shards > 1)


def test_configs_have_exactly_the_published_keys(
    session_seed: int, checkpoint_directory: Callable[..., Path]
) -> None:
    checkpoint = random_checkpoint(session_seed, TINY)
    for layout, keys in (("hugging_face", PUBLISHED_KEYS), ("original", ORIGINAL_KEYS)):
        directory = checkpoint_directory(checkpoint, layout=layout)
        config = json.loads((directory / "config.json").read_text())
        assert sorted(config) == sorted(keys.split())


def test_original_layout_stacks_q_then_k_then_v(
    session_seed: int, checkpoint_directory: Callable[..., Path]
) -> None:
    checkpoint = random_checkpoint(session_seed, TINY)
    directory = checkpoint_directory(checkpoint, layout="original", slack=5)
    read = read_safetensors(directory / "model.safetensors")
    assert read.keys() == original_tensors(checkpoint).keys()
    ends = np.cumsum([0, 4 * 64, 2 * 64, 2 * 64])
    for part, begin, end in zip("qkv", ends[:-1], ends[1:], strict=True):
        for kind in ("weight", "bias"):
            found = read[f"block.1.attn.qkv.{kind}"][begin:end]
            held = checkpoint.tensors[f"model.layers.1.self_attn.{part}_proj.{kind}"]
            np.testing.assert_array_equal(found, held)
    np.testing.assert_array_equal(
        read["block.0.mlp.mlp1_weight.blocks"],
        checkpoint.tensors["model.layers.0.mlp.experts.gate_up_proj_blocks"],
    )


@pytest.mark.parametrize("name", SHAPES)
def test_edge_scales_are_there_and_harmless(name: str, rng: np.random.Generator) -> None:
    checkpoint = random_checkpoint(int(rng.integers(2**31)), SHAPES[name])
    for tensor, scales in checkpoint.tensors.items():
        if tensor.endswith("_scales"):
            assert {0, 1, 254} <= set(np.unique(scales))
            assert 255 not in scales
            matrices = checkpoint.experts(tensor.removesuffix("_scales"))
            largest = max(np.abs(matrices[expert]).max() for expert in range(len(matrices)))
            assert 0 < largest < 100


def test_a_seed_makes_one_checkpoint(rng: np.random.Generator) -> None:
    seed = int(rng.integers(2**31))
    first, again, other = (random_checkpoint(s, TINY) for s in (seed, seed, seed + 1))
    for tensor in first.tensors:
        np.testing.assert_array_equal(first.tensors[tensor], again.tensors[tensor])
        assert not np.array_equal(first.tensors[tensor], other.tensors[tensor])
