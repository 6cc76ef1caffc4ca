"""Full-size checkpoints of seeded random weights, in the published Hugging Face layout.

For benchmarks and tests without a download: shapes, formats, file names and config.json are those
of the published gpt-oss models, the weights are random of a magnitude that keeps activations finite
and routers spread. There is no tokenizer.json: what such a model writes means nothing, so it is
prompted with token ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .safetensors_writer import TensorSpec

MX_BLOCK = 32
INCOMPLETE = "INCOMPLETE"  # lies in the directory until the checkpoint is whole
INDEX_NAME = "model.safetensors.index.json"


@dataclass(frozen=True)
class Shape:
    """The sizes of a gpt-oss model; the defaults are the published gpt-oss-20b."""

    num_hidden_layers: int = 24
    num_local_experts: int = 32
    num_experts_per_tok: int = 4
    hidden_size: int = 2880
    intermediate_size: int = 2880
    num_attention_heads: int = 64
    num_key_value_heads: int = 8
    head_dim: int = 64
    vocab_size: int = 201_088
    sliding_window: int = 128
    initial_context_length: int = 4096
    max_position_embeddings: int = 131_072
    rope_theta: float = 150_000
    rope_factor: float = 32.0
    rope_beta_fast: float = 32.0
    rope_beta_slow: float = 1.0
    swiglu_limit: float = 7.0
    rms_norm_eps: float = 1e-5
    eos_token_id: int = 200_002
    pad_token_id: int = 199_999


PRESETS = {
    "20b": Shape(),
    "120b": Shape(num_hidden_layers=36, num_local_experts=128),
    "tiny": Shape(
        num_hidden_layers=4,
        num_local_experts=8,
        hidden_size=192,
        intermediate_size=160,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=1003,
        eos_token_id=1002,
        pad_token_id=1001,
    ),
}
# Shards as published: numbered from 0, "of" the last number.
_LAST_SHARD = {"20b": 2, "120b": 14, "tiny": 0}


def hugging_face_config(shape: Shape) -> dict[str, Any]:
    """Return config.json with the keys and constants of the published models."""
    kinds = ("sliding_attention", "full_attention")
    return {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": shape.eos_token_id,
        "experts_per_token": shape.num_experts_per_tok,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "initial_context_length": shape.initial_context_length,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate_size,
        "layer_types": [kinds[layer % 2] for layer in range(shape.num_hidden_layers)],
        "max_position_embeddings": shape.max_position_embeddings,
        "model_type": "gpt_oss",
        "num_attention_heads": shape.num_attention_heads,
        "num_experts_per_tok": shape.num_experts_per_tok,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_key_value_heads": shape.num_key_value_heads,
        "num_local_experts": shape.num_local_experts,
        "output_router_logits": False,
        "pad_token_id": shape.pad_token_id,
        "quantization_config": {
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
            "quant_method": "mxfp4",
        },
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_scaling": {
            "beta_fast": shape.rope_beta_fast,
            "beta_slow": shape.rope_beta_slow,
            "factor": shape.rope_factor,
            "original_max_position_embeddings": shape.initial_context_length,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": shape.rope_theta,
        "router_aux_loss_coef": 0.9,
        "sliding_window": shape.sliding_window,
        "swiglu_limit": shape.swiglu_limit,
        "tie_word_embeddings": False,
        "transformers_version": "4.55.0.dev0",
        "use_cache": True,
        "vocab_size": shape.vocab_size,
    }


def hugging_face_tensors(shape: Shape) -> list[TensorSpec]:
    """Return every tensor of the Hugging Face layout, in the order they are written."""
    hidden, width, experts = shape.hidden_size, shape.intermediate_size, shape.num_local_experts
    q_rows = shape.num_attention_heads * shape.head_dim
    kv_rows = shape.num_key_value_heads * shape.head_dim
    layer: list[tuple[str, str, tuple[int, ...]]] = [
        ("input_layernorm.weight", "BF16", (hidden,)),
        ("self_attn.q_proj.weight", "BF16", (q_rows, hidden)),
        ("self_attn.q_proj.bias", "BF16", (q_rows,)),
        ("self_attn.k_proj.weight", "BF16", (kv_rows, hidden)),
        ("self_attn.k_proj.bias", "BF16", (kv_rows,)),
        ("self_attn.v_proj.weight", "BF16", (kv_rows, hidden)),
        ("self_attn.v_proj.bias", "BF16", (kv_rows,)),
        ("self_attn.o_proj.weight", "BF16", (hidden, q_rows)),
        ("self_attn.o_proj.bias", "BF16", (hidden,)),
        ("self_attn.sinks", "BF16", (shape.num_attention_heads,)),
        ("post_attention_layernorm.weight", "BF16", (hidden,)),
        ("mlp.router.weight", "BF16", (experts, hidden)),
        ("mlp.router.bias", "BF16", (experts,)),
        ("mlp.experts.gate_up_proj_blocks", "U8", (experts, 2 * width, hidden // MX_BLOCK, 16)),
        ("mlp.experts.gate_up_proj_scales", "U8", (experts, 2 * width, hidden // MX_BLOCK)),
        ("mlp.experts.gate_up_proj_bias", "BF16", (experts, 2 * width)),
        ("mlp.experts.down_proj_blocks", "U8", (experts, hidden, width // MX_BLOCK, 16)),
        ("mlp.experts.down_proj_scales", "U8", (experts, hidden, width // MX_BLOCK)),
        ("mlp.experts.down_proj_bias", "BF16", (experts, hidden)),
    ]
    specs = [TensorSpec("model.embed_tokens.weight", "BF16", (shape.vocab_size, hidden))]
    for index in range(shape.num_hidden_layers):
        specs += [TensorSpec(f"model.layers.{index}.{n}", d, s) for n, d, s in layer]
    specs.append(TensorSpec("model.norm.weight", "BF16", (hidden,)))
    specs.append(TensorSpec("lm_head.weight", "BF16", (shape.vocab_size, hidden)))
    return specs
