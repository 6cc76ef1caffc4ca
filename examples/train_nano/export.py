"""Write a trained state as a Hugging Face gpt-oss checkpoint: bf16, with the experts in MXFP4.

    python export.py STATE.pt DIR

The safetensors file is written here by hand (its format is a length, a JSON header and the
bytes), with the expert blocks packed two values a byte, low nibble first.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import torch
import vocabulary
from model import E2M1_VALUES, MX_BLOCK, Nano, NanoConfig, mx_round, mx_scale_exponent
from torch import Tensor

EXPONENT_BIAS = 127


def pack_mxfp4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return blocks [...][in / 32][16] uint8 and scales [...][in / 32] uint8 of a weight."""
    blocks = weight.detach().float().unflatten(-1, (-1, MX_BLOCK))
    exponent = mx_scale_exponent(blocks)
    values = mx_round(blocks / torch.exp2(exponent))
    codes = torch.searchsorted(torch.tensor(E2M1_VALUES), values.abs()).to(torch.uint8)
    codes += (torch.signbit(values) & (codes > 0)).to(torch.uint8) * 8
    packed = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return packed, (exponent.squeeze(-1) + EXPONENT_BIAS).to(torch.uint8)


def checkpoint_tensors(model: Nano) -> dict[str, Tensor]:
    """Return the tensors under their Hugging Face names."""
    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if name.endswith(("gate_up_proj", "down_proj")):
            prefix = f"model.{name.replace('.mlp.', '.mlp.experts.')}"
            tensors[f"{prefix}_blocks"], tensors[f"{prefix}_scales"] = pack_mxfp4(value)
            continue
        if name.endswith(("gate_up_proj_bias", "down_proj_bias")):
            name = name.replace(".mlp.", ".mlp.experts.")
        full = name if name.startswith("lm_head") else f"model.{name}"
        tensors[full] = value.detach().to(torch.bfloat16)
    return tensors


def write_safetensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors (bf16 or uint8) as one safetensors file, the data 8-byte aligned."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset, chunks = 0, []
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        data = tensor.flatten().view(torch.uint8).numpy().tobytes()
        header[name] = {
            "dtype": "BF16" if tensor.dtype == torch.bfloat16 else "U8",
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + len(data)],
        }
        chunks.append(data)
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(chunks))


def config_json(config: NanoConfig) -> dict[str, Any]:
    """Return config.json, with the keys of the published gpt-oss checkpoints."""
    special = vocabulary.encoding().encode_single_token
    kinds = ("sliding_attention", "full_attention")
    return {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": special("<|return|>"),
        "experts_per_token": config.num_experts_per_tok,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initial_context_length": config.original_context,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "layer_types": [kinds[layer % 2] for layer in range(config.num_hidden_layers)],
        "max_position_embeddings": int(config.original_context * config.rope_factor),
        "model_type": "gpt_oss",
        "num_attention_heads": config.num_attention_heads,
        "num_experts_per_tok": config.num_experts_per_tok,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "num_local_experts": config.num_local_experts,
        "output_router_logits": False,
        "pad_token_id": special("<|endoftext|>"),
        "quantization_config": {
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
            "quant_method": "mxfp4",
        },
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": {
            "beta_fast": config.beta_fast,
            "beta_slow": config.beta_slow,
            "factor": config.rope_factor,
            "original_max_position_embeddings": config.original_context,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": config.rope_theta,
        "router_aux_loss_coef": 0.01,
        "sliding_window": config.sliding_window,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }


def generation_config_json() -> dict[str, Any]:
    """Return generation_config.json: the tokens that begin and end a generation."""
    special = vocabulary.encoding().encode_single_token
    return {
        "bos_token_id": special("<|startoftext|>"),
        "do_sample": False,
        "eos_token_id": [special(t) for t in ("<|return|>", "<|endoftext|>", "<|call|>")],
        "pad_token_id": special("<|endoftext|>"),
    }


def load_state(path: Path) -> Nano:
    """Return the network of a state that train.py saved."""
    state = torch.load(path, weights_only=True, map_location="cpu")
    model = Nano(NanoConfig(**state["config"]))
    model.load_state_dict(state["model"])
    return model.eval()


def export(model: Nano, directory: Path) -> None:
    """Write config, weights, tokenizer and generation config into a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("config.json", config_json(model.config)),
        ("generation_config.json", generation_config_json()),
    ):
        (directory / name).write_text(json.dumps(content, indent=2) + "\n")
    vocabulary.write(directory)
    write_safetensors(directory / "model.safetensors", checkpoint_tensors(model))


if __name__ == "__main__":
    export(load_state(Path(sys.argv[1])), Path(sys.argv[2]))
