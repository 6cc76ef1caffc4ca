"""Which tensors a gpt-oss checkpoint holds, in each of the two published layouts."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NoReturn

from ..errors import CheckpointError
from .config import MX_BLOCK, ModelConfig
from .safetensors_reader import TensorRecord
from .strict_json import shorten

Layout = Literal["huggingface", "original"]
Expected = tuple[str, str, tuple[int, ...]]  # name, dtype as the file format spells it, shape

MX_BLOCK_BYTES = MX_BLOCK // 2
BF16, U8 = "BF16", "U8"

_LAYER = re.compile(r"(?:model\.layers|block)\.([0-9]{1,9})\.(?:self_attn\.|mlp\.)?(.+)", re.DOTALL)

_log = logging.getLogger(__name__)


def expected_tensors(config: ModelConfig, layout: Layout) -> Iterator[Expected]:
    """Name, dtype ("BF16" or "U8") and shape of every tensor that `config` calls for."""
    hidden, table = (config.hidden_size,), (config.vocab_size, config.hidden_size)
    original = layout == "original"
    yield "embedding.weight" if original else "model.embed_tokens.weight", BF16, table
    layer_tensors = list((_original_layer if original else _huggingface_layer)(config))
    for layer in range(config.num_layers):
        prefix = f"block.{layer}." if original else f"model.layers.{layer}."
        for name, dtype, shape in layer_tensors:
            yield prefix + name, dtype, shape
    yield "norm.scale" if original else "model.norm.weight", BF16, hidden
    yield "unembedding.weight" if original else "lm_head.weight", BF16, table


def _huggingface_layer(config: ModelConfig) -> Iterator[Expected]:
    hidden, width, experts = config.hidden_size, config.intermediate_size, config.num_experts
    query, kv = config.query_size, config.kv_size
    yield "input_layernorm.weight", BF16, (hidden,)
    yield from _linear("self_attn.q_proj", query, hidden)
    yield from _linear("self_attn.k_proj", kv, hidden)
    yield from _linear("self_attn.v_proj", kv, hidden)
    yield from _linear("self_attn.o_proj", hidden, query)
    yield "self_attn.sinks", BF16, (config.num_heads,)
    yield "post_attention_layernorm.weight", BF16, (hidden,)
    yield from _linear("mlp.router", experts, hidden)
    for name, rows, columns in (("gate_up", 2 * width, hidden), ("down", hidden, width)):
        base, blocks = f"mlp.experts.{name}_proj", columns // MX_BLOCK
        yield base + "_blocks", U8, (experts, rows, blocks, MX_BLOCK_BYTES)
        yield base + "_scales", U8, (experts, rows, blocks)
        yield base + "_bias", BF16, (experts, rows)


def _original_layer(config: ModelConfig) -> Iterator[Expected]:
    hidden, width, experts = config.hidden_size, config.intermediate_size, config.num_experts
    query, kv = config.query_size, config.kv_size
    yield "attn.norm.scale", BF16, (hidden,)
    yield from _linear("attn.qkv", query + 2 * kv, hidden)
    yield from _linear("attn.out", hidden, query)
    yield "attn.sinks", BF16, (config.num_heads,)
    yield "mlp.norm.scale", BF16, (hidden,)
    yield from _linear("mlp.gate", experts, hidden)
    for name, rows, columns in (("mlp1", 2 * width, hidden), ("mlp2", hidden, width)):
        base, blocks = f"mlp.{name}", columns // MX_BLOCK
        yield base + "_weight.blocks", U8, (experts, rows, blocks, MX_BLOCK_BYTES)
        yield base + "_weight.scales", U8, (experts, rows, blocks)
        yield base + "_bias", BF16, (experts, rows)


def _linear(name: str, rows: int, columns: int) -> Iterator[Expected]:
    yield name + ".weight", BF16, (rows, columns)
    yield name + ".bias", BF16, (rows,)


def check_tensors(
    config: ModelConfig,
    layout: Layout,
    tensors: Mapping[str, TensorRecord],
    *,
    files: tuple[Path, ...] = (),
) -> None:
    """Checks that `tensors` are those that `config` calls for; `files` names them in errors.

    Raises CheckpointError at a missing tensor, a wrong dtype or shape, or a layer that `config`
    does not have. Other tensors that nothing asks for are logged and never read.
    """
    wanted = set()
    for name, dtype, shape in expected_tensors(config, layout):
        wanted.add(name)
        record = tensors.get(name)
        if record is None or (record.dtype, record.shape) != (dtype, shape):
            _refuse(name, dtype, shape, record, tensors, files)
    extra = [name for name in tensors if name not in wanted]
    for name in extra:
        match = _LAYER.fullmatch(name)
        if match and int(match[1]) >= config.num_layers:
            raise CheckpointError(
                f"[load_checkpoint] {_spoken(name)}: config.json has {config.num_layers} layers, "
                f"found a tensor of layer {int(match[1])}; do config and tensors belong together?"
            )
    if extra:
        _log.warning("%d tensors have no use here, such as %s", len(extra), shorten(extra[0]))


def _refuse(
    name: str,
    dtype: str,
    shape: tuple[int, ...],
    record: TensorRecord | None,
    tensors: Mapping[str, TensorRecord],
    files: tuple[Path, ...],
) -> NoReturn:
    expected = f"{_dims(shape)} {dtype.lower()}"
    advice = "is this a gpt-oss checkpoint?"
    if record is None:
        found = "no such tensor"
        unquantised = re.sub(r"(_blocks|_scales|\.blocks|\.scales)$", "", name)
        if unquantised != name and unquantised in tensors:
            found = f"unquantised {tensors[unquantised].dtype.lower()} experts"
            advice = "only checkpoints with MXFP4 experts are read"
    else:
        found = _dims(record.shape)
        if record.dtype != dtype:
            found += " " + record.dtype.lower()
        if files:
            advice += f" ({files[record.file].name})"
    raise CheckpointError(
        f"[load_checkpoint] {_spoken(name)}: expected {expected}, found {found}; {advice}"
    )


def _spoken(name: str) -> str:
    """``model.layers.3.self_attn.k_proj.weight`` as "layer 3 k_proj.weight"."""
    match = _LAYER.fullmatch(name)
    return f"layer {int(match[1])} {match[2][:80]}" if match else name[:80]


def _dims(shape: tuple[int, ...]) -> str:
    return "".join(f"[{size}]" for size in shape) or "a scalar"
