"""Random gpt-oss checkpoints from a seed, in both published layouts.

Small and odd on purpose: widths that are multiples of one MXFP4 block only, odd vocabularies,
windows shorter than the prompts, YaRN ramps of every kind, activations beyond the clamp, sinks and
biases that matter, MXFP4 codes of all sixteen kinds and scale bytes at both ends of their range.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gpt_oss_native.checkpoint.safetensors_writer import TensorSpec, write_safetensors
from gpt_oss_native.synthesize import (
    Shape,
    hugging_face_config,
    hugging_face_tensors,
    scale_centre,
    weight_distribution,
)

from . import mxfp4, ops
from .ops import F64

Stored = npt.NDArray[np.uint16] | npt.NDArray[np.uint8]  # bfloat16 bits, or bytes

TINY = Shape(
    num_hidden_layers=2,
    num_local_experts=8,
    num_experts_per_tok=4,
    hidden_size=96,
    intermediate_size=64,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=1003,
    sliding_window=16,
    initial_context_length=4096,
    max_position_embeddings=131_072,
    eos_token_id=1002,
    pad_token_id=1001,
)
# One shape for each thing that can go wrong; tests that need "some checkpoint" take SHAPES["tiny"].
SHAPES = {
    "tiny": TINY,
    "top2_window8": replace(
        TINY,
        num_hidden_layers=3,
        num_experts_per_tok=2,
        hidden_size=160,
        intermediate_size=96,
        sliding_window=8,
        num_attention_heads=8,
        num_key_value_heads=1,
    ),
    "experts128": replace(
        TINY, num_local_experts=128, hidden_size=64, intermediate_size=32, sliding_window=32
    ),
    "five_layers_odd_groups": replace(
        TINY,
        num_hidden_layers=5,
        num_local_experts=9,
        hidden_size=224,
        intermediate_size=160,
        num_attention_heads=6,
        num_key_value_heads=3,
        vocab_size=517,
        eos_token_id=516,
        pad_token_id=515,
        sliding_window=128,
    ),
    "no_groups_short_context": replace(
        TINY,
        num_attention_heads=2,
        num_key_value_heads=2,
        hidden_size=32,
        intermediate_size=96,
        initial_context_length=512,
        max_position_embeddings=4096,
        rope_factor=8.0,
        rope_theta=10_000.0,
        rope_beta_fast=16.0,
        rope_beta_slow=2.0,
        swiglu_limit=5.0,
        sliding_window=31,
    ),
}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint in memory, by Hugging Face names; bfloat16 tensors hold their bits."""

    shape: Shape
    seed: int
    tensors: dict[str, Stored]

    def values(self, name: str) -> F64:
        """Return a bfloat16 tensor's values."""
        bits = self.tensors[name]
        assert bits.dtype == np.uint16, name
        return ops.bf16_values(bits)

    def experts(self, name: str) -> mxfp4.ExpertMatrices:
        """Return an MXFP4 tensor (``...gate_up_proj`` or ``...down_proj``)."""
        blocks, scales = self.tensors[name + "_blocks"], self.tensors[name + "_scales"]
        return mxfp4.ExpertMatrices(blocks.astype(np.uint8), scales.astype(np.uint8))

    @property
    def specs(self) -> list[TensorSpec]:
        return hugging_face_tensors(self.shape)


def random_shape(rng: np.random.Generator) -> Shape:
    """Return a small random shape, for tests that want many."""
    kv_heads, group = rng.choice([(1, 8), (2, 2), (3, 2), (2, 1), (1, 4)])
    vocab = 2 * int(rng.integers(100, 700)) + 1
    original = int(rng.choice([512, 1024, 4096]))
    factor = float(rng.choice([4.0, 8.0, 32.0]))
    return replace(
        TINY,
        num_hidden_layers=int(rng.integers(2, 6)),
        num_local_experts=int(rng.choice([8, 9, 16, 32, 128])),
        num_experts_per_tok=int(rng.choice([2, 4])),
        hidden_size=32 * int(rng.integers(1, 8)),
        intermediate_size=32 * int(rng.integers(1, 6)),
        num_attention_heads=int(kv_heads * group),
        num_key_value_heads=int(kv_heads),
        vocab_size=vocab,
        eos_token_id=vocab - 1,
        pad_token_id=vocab - 2,
        sliding_window=int(rng.integers(8, 129)),
        initial_context_length=original,
        max_position_embeddings=int(original * factor),
        rope_theta=float(rng.choice([10_000.0, 150_000.0])),
        rope_factor=factor,
        rope_beta_fast=float(rng.choice([16.0, 32.0])),
        rope_beta_slow=float(rng.choice([1.0, 2.0])),
    )


def random_checkpoint(seed: int, shape: Shape = TINY, *, edge_scales: bool = True) -> Checkpoint:
    """Return a checkpoint of sane magnitude: unit-variance activations, spread routers.

    With ``edge_scales`` some MXFP4 blocks have scale byte 0 or 1 (2^-127, 2^-126), and some 254
    (2^127) over codes that are all zero, so that every decoder meets them and no product overflows.
    """
    tensors: dict[str, Stored] = {}
    for index, spec in enumerate(hugging_face_tensors(shape)):
        rng = np.random.default_rng([seed, index])
        if spec.name.endswith("_blocks"):
            tensors[spec.name] = rng.integers(0, 256, spec.shape, dtype=np.uint8)
        elif spec.name.endswith("_scales"):
            centre = scale_centre(spec)
            tensors[spec.name] = rng.integers(centre - 2, centre + 2, spec.shape, dtype=np.uint8)
        else:
            mean, std = weight_distribution(spec)
            tensors[spec.name] = ops.bf16_bits(mean + std * rng.standard_normal(spec.shape))
    if edge_scales:
        _put_edge_scales(np.random.default_rng([seed, 1 << 20]), tensors)
    return Checkpoint(shape, seed, tensors)


def _put_edge_scales(rng: np.random.Generator, tensors: dict[str, Stored]) -> None:
    for name in [name for name in tensors if name.endswith("_scales")]:
        scales = tensors[name].reshape(-1)
        blocks = tensors[name.replace("_scales", "_blocks")].reshape(len(scales), -1)
        chosen = rng.choice(len(scales), size=max(4, len(scales) // 200), replace=False)
        scales[chosen] = rng.choice([0, 1, 254], size=len(chosen))
        scales[chosen[:3]] = (0, 1, 254)
        largest = chosen[scales[chosen] == 254]
        signs = rng.integers(0, 4, (len(largest), blocks.shape[1]))
        blocks[largest] = np.array([0x00, 0x08, 0x80, 0x88], dtype=np.uint8)[signs]


# --- writing --------------------------------------------------------------------------------------


def write_hugging_face(
    checkpoint: Checkpoint, directory: Path, *, shards: int = 1, slack: int = 0
) -> None:
    """Write config.json and model.safetensors, or shards with model.safetensors.index.json.

    ``slack`` shifts the data off its 8-byte alignment by that many bytes.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(
        json.dumps(hugging_face_config(checkpoint.shape), indent=2)
    )
    specs = checkpoint.specs
    if shards == 1:
        _write(directory / "model.safetensors", specs, checkpoint.tensors, slack)
        return
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        name = f"model-{shard:05d}-of-{shards - 1:05d}.safetensors"
        part = specs[shard * len(specs) // shards : (shard + 1) * len(specs) // shards]
        _write(directory / name, part, checkpoint.tensors, slack and slack + shard)
        weight_map |= {spec.name: name for spec in part}
    total = sum(spec.nbytes for spec in specs)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _write(path: Path, specs: list[TensorSpec], tensors: dict[str, Stored], slack: int) -> None:
    for spec in specs:
        assert tensors[spec.name].shape == spec.shape, spec.name
    write_safetensors(
        path,
        specs,
        data=lambda spec: [np.ascontiguousarray(tensors[spec.name])],
        metadata={"format": "pt"},
        slack=slack,
    )


_ORIGINAL_LAYER_NAMES = {
    "input_layernorm.weight": "attn.norm.scale",
    "self_attn.sinks": "attn.sinks",
    "self_attn.o_proj.weight": "attn.out.weight",
    "self_attn.o_proj.bias": "attn.out.bias",
    "post_attention_layernorm.weight": "mlp.norm.scale",
    "mlp.router.weight": "mlp.gate.weight",
    "mlp.router.bias": "mlp.gate.bias",
    "mlp.experts.gate_up_proj_blocks": "mlp.mlp1_weight.blocks",
    "mlp.experts.gate_up_proj_scales": "mlp.mlp1_weight.scales",
    "mlp.experts.gate_up_proj_bias": "mlp.mlp1_bias",
    "mlp.experts.down_proj_blocks": "mlp.mlp2_weight.blocks",
    "mlp.experts.down_proj_scales": "mlp.mlp2_weight.scales",
    "mlp.experts.down_proj_bias": "mlp.mlp2_bias",
}


def original_config(shape: Shape) -> dict[str, object]:
    """Return the flat config.json of the ``original/`` layout."""
    same = (
        "num_hidden_layers vocab_size hidden_size intermediate_size swiglu_limit head_dim "
        "num_attention_heads num_key_value_heads sliding_window initial_context_length rope_theta"
    )
    return {name: getattr(shape, name) for name in same.split()} | {
        "num_experts": shape.num_local_experts,
        "experts_per_token": shape.num_experts_per_tok,
        "rope_scaling_factor": shape.rope_factor,
        "rope_ntk_alpha": shape.rope_beta_slow,
        "rope_ntk_beta": shape.rope_beta_fast,
    }


def original_tensors(checkpoint: Checkpoint) -> dict[str, Stored]:
    """Return the tensors by the names of the ``original/`` layout, q, k and v rows stacked."""
    held = checkpoint.tensors
    out: dict[str, Stored] = {"embedding.weight": held["model.embed_tokens.weight"]}
    for layer in range(checkpoint.shape.num_hidden_layers):
        source, target = f"model.layers.{layer}.", f"block.{layer}."
        for kind in ("weight", "bias"):
            parts = [held[f"{source}self_attn.{p}_proj.{kind}"] for p in "qkv"]
            out[f"{target}attn.qkv.{kind}"] = np.concatenate(parts)
        for theirs, ours in _ORIGINAL_LAYER_NAMES.items():
            out[target + ours] = held[source + theirs]
    out["norm.scale"] = held["model.norm.weight"]
    out["unembedding.weight"] = held["lm_head.weight"]
    return out


def write_original(checkpoint: Checkpoint, directory: Path, *, slack: int = 0) -> None:
    """Write config.json and model.safetensors as in the published ``original/`` directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(original_config(checkpoint.shape)))
    tensors = original_tensors(checkpoint)
    specs = [
        TensorSpec(name, "BF16" if array.dtype == np.uint16 else "U8", array.shape)
        for name, array in tensors.items()
    ]
    _write(directory / "model.safetensors", specs, tensors, slack)


# --- reading --------------------------------------------------------------------------------------


def read_safetensors(path: Path) -> dict[str, Stored]:
    """Return the tensors of a file, mapped; bfloat16 ones as bits, at whatever alignment."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    data = np.memmap(path, dtype=np.uint8, mode="r")[8 + length :]
    tensors: dict[str, Stored] = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            dtype = {"BF16": np.uint16, "U8": np.uint8}[entry["dtype"]]
            tensors[name] = data[begin:end].view(dtype).reshape(entry["shape"])
    return tensors


def read_hugging_face(directory: Path) -> Checkpoint:
    """Return the checkpoint of a directory, mapped: also a full-size one, or a trained one."""
    config = json.loads((directory / "config.json").read_text())
    scaling = config["rope_scaling"]
    same = {name: config[name] for name in Shape.__dataclass_fields__ if name in config}
    shape = Shape(
        **same
        | {
            "initial_context_length": scaling["original_max_position_embeddings"],
            "rope_factor": scaling["factor"],
            "rope_beta_fast": scaling["beta_fast"],
            "rope_beta_slow": scaling["beta_slow"],
        }
    )
    tensors: dict[str, Stored] = {}
    for path in sorted(directory.glob("*.safetensors")):
        tensors |= read_safetensors(path)
    return Checkpoint(shape, -1, tensors)
