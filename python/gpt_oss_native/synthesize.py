"""Full-size checkpoints of seeded random weights, in the published Hugging Face layout.

For benchmarks and tests without a download: shapes, formats, file names and config.json are those
of the published gpt-oss models, the weights are random of a magnitude that keeps activations finite
and routers spread. There is no tokenizer.json: what such a model writes means nothing, so it is
prompted with token ids. There is no generation_config.json and no chat template either.
"""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
import statistics
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .checkpoint.safetensors_writer import PARTIAL_SUFFIX, TensorSpec, write_safetensors
from .errors import CheckpointError, InvalidArgument

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


# --- values ---------------------------------------------------------------------------------------

GATE_UP_STD = 3.5  # of the first expert product, so that some gates and ups exceed the clamp at 7
DOWN_STD = 0.25
_E2M1_RMS = 2.926  # of uniformly random codes: sqrt(8.5625)
_CHUNK = 1 << 18  # elements: the chunk, its indices and the table stay within a second-level cache


def weight_distribution(spec: TensorSpec) -> tuple[float, float]:
    """Return mean and standard deviation of a bfloat16 tensor's values.

    Products keep unit variance; attention scores (about 3) and router logits (about 2) are spread,
    so that attention is neither uniform nor one-hot and all experts are used.
    """
    name, fan_in = spec.name, math.sqrt(spec.shape[-1])
    if name.endswith("norm.weight"):
        return 1.0, 0.2
    if name.endswith("sinks"):
        return 1.0, 1.5
    if name.endswith("bias"):
        return 0.0, 0.3
    if name == "model.embed_tokens.weight":
        return 0.0, 1.0
    if name.endswith(("q_proj.weight", "k_proj.weight")):
        return 0.0, 1.3 / fan_in
    if name.endswith(("router.weight", "lm_head.weight")):
        return 0.0, 2.0 / fan_in
    return 0.0, 1.0 / fan_in


def scale_centre(spec: TensorSpec) -> int:
    """Return the scale byte around which an MXFP4 tensor's scales lie; its codes are uniform."""
    wanted = GATE_UP_STD if "gate_up" in spec.name else DOWN_STD
    weight = wanted / math.sqrt(spec.shape[-1] * MX_BLOCK)  # scales are [..., inputs / 32]
    return 127 + round(math.log2(weight / (1.2 * _E2M1_RMS)))


@functools.cache
def _normal_quantiles() -> npt.NDArray[np.float64]:
    """The 65,536 midpoint quantiles of the normal distribution: 16 random bits index one."""
    normal = statistics.NormalDist()
    upper = np.array([normal.inv_cdf((i + 0.5) / 65536) for i in range(32768, 65536)])
    return np.concatenate([-upper[::-1], upper])


def _bf16_bits(values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint16]:
    """Finite values rounded to the nearest bfloat16, ties to even."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16).astype(np.uint16)


def _random_chunks(spec: TensorSpec, seed: int) -> Iterator[npt.NDArray[Any]]:
    """Yield a tensor's values from its own stream: neither order nor sharding changes them."""
    source = np.random.SFC64(np.random.SeedSequence([seed, zlib.crc32(spec.name.encode())]))

    def random_bytes(count: int) -> npt.NDArray[np.uint8]:
        return source.random_raw((count + 7) // 8).view(np.uint8)[:count]

    count = math.prod(spec.shape)
    lengths = [min(_CHUNK, count - start) for start in range(0, count, _CHUNK)]
    if spec.dtype == "BF16":
        mean, std = weight_distribution(spec)
        table = _bf16_bits(mean + std * _normal_quantiles())
        for length in lengths:
            yield table[random_bytes(2 * length).view(np.uint16)]
    elif spec.name.endswith("_scales"):
        smallest = np.uint8(scale_centre(spec) - 2)
        for length in lengths:
            yield (random_bytes(length) & np.uint8(3)) + smallest
    else:
        for length in lengths:
            yield random_bytes(length)


# --- files ----------------------------------------------------------------------------------------


def synthesize(
    directory: str | os.PathLike[str],
    *,
    preset: str,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a checkpoint of random weights and return its directory.

    ``preset`` is "20b" (13.8 GB), "120b" (65 GB) or "tiny" (4 MB); the same preset and seed give
    the same bytes. ``progress(done, total)`` is called with bytes as they are written. Memory use
    is a few megabytes.

    While it runs, the directory holds a file INCOMPLETE and no config.json; an interrupted run
    leaves it so, and running again starts over. Raises InvalidArgument for an unknown preset, a
    directory that holds anything else, or too little free space, and CheckpointError when writing
    fails.
    """
    if preset not in PRESETS:
        raise InvalidArgument(
            f"[synthesize] expected a preset of {', '.join(PRESETS)}, found {preset!r}"
        )
    if seed < 0:
        raise InvalidArgument(f"[synthesize] expected a seed of 0 or more, found {seed}")
    target = Path(directory)
    specs = hugging_face_tensors(PRESETS[preset])
    try:
        _prepare(target, needed=sum(spec.nbytes for spec in specs), preset=preset, seed=seed)
        _write(target, specs, preset, seed, progress)
    except OSError as error:
        raise CheckpointError(
            f"[synthesize] could not write {error.filename or target}: {error.strerror}; "
            "what was written is marked INCOMPLETE, and running again starts over"
        ) from error
    return target


def _prepare(target: Path, *, needed: int, preset: str, seed: int) -> None:
    """Check the directory and the space, clear an interrupted run's files, and mark a new one."""
    if target.exists() and not target.is_dir():
        raise InvalidArgument(f"[synthesize] expected a directory, found the file {target}")
    held = [path for path in target.iterdir()] if target.exists() else []
    if held and not (target / INCOMPLETE).exists():
        raise InvalidArgument(
            f"[synthesize] expected an empty or new directory, found {held[0].name!r} in {target}; "
            "choose another"
        )
    for path in held:
        if path.name.startswith("model") or path.name.startswith("config.json"):
            path.unlink()
    existing = next(path for path in [target, *target.absolute().parents] if path.exists())
    free = shutil.disk_usage(existing).free
    margin = 16 << 20  # headers, the index, and the file system's own
    if free < needed + margin:
        raise InvalidArgument(
            f"[synthesize] expected {(needed + margin) / 1e9:.2f} GB free for preset {preset}, "
            f"found {free / 1e9:.2f} GB at {existing}; free some or choose another disk"
        )
    target.mkdir(parents=True, exist_ok=True)
    (target / INCOMPLETE).write_text(
        f"The synthesis of preset {preset}, seed {seed}, has not finished. Unless it still runs, "
        "run it again or delete this directory.\n"
    )


def _write(
    target: Path,
    specs: list[TensorSpec],
    preset: str,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Write the shards, the index, then config.json; then take the mark away."""
    total = sum(spec.nbytes for spec in specs)
    done = 0

    def report(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    weight_map: dict[str, str] = {}
    shards = _split(specs, 1 + _LAST_SHARD[preset])
    for index, shard in enumerate(shards):
        name = "model.safetensors"
        if len(shards) > 1:
            name = f"model-{index:05d}-of-{len(shards) - 1:05d}.safetensors"
        write_safetensors(
            target / name,
            shard,
            data=functools.partial(_random_chunks, seed=seed),
            metadata={"format": "pt"},
            progress=report,
        )
        weight_map |= {spec.name: name for spec in shard}
    if len(shards) > 1:
        index_json = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_text(target / INDEX_NAME, json.dumps(index_json, indent=2, sort_keys=True))
    config = hugging_face_config(PRESETS[preset])
    _write_text(target / "config.json", json.dumps(config, indent=2))
    (target / INCOMPLETE).unlink()


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    partial.write_text(text + "\n")
    os.replace(partial, path)


def _split(specs: list[TensorSpec], shards: int) -> list[list[TensorSpec]]:
    """Split into shards of about equal bytes, in order."""
    total = sum(spec.nbytes for spec in specs)
    parts: list[list[TensorSpec]] = [[] for _ in range(shards)]
    before = 0
    for spec in specs:
        middle = before + spec.nbytes // 2
        parts[min(shards - 1, middle * shards // total)].append(spec)
        before += spec.nbytes
    return parts
