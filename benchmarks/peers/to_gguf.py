"""Writes a gpt-oss checkpoint as GGUF, for llama.cpp: MXFP4 experts, Q8_0 dense matrices.

    python benchmarks/peers/to_gguf.py DIR OUT.gguf [--layers 10]

Needs ``gguf`` and numpy, and this package on the path; not its core. The formats differ:

- MXFP4: the published byte j holds elements 2j and 2j + 1 of a block, GGUF's j and j + 16, with the
  block's scale in front of its bytes.
- The first expert matrix: published rows alternate gate and up, GGUF has two matrices; biases too.
- Dense matrices: bf16 becomes Q8_0, 32 values with a float16 scale.

The vocabulary is only counted ("no vocab"): the peer is given token ids.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gpt_oss_native.checkpoint import Checkpoint, open_checkpoint

BLOCK = 32
Array = npt.NDArray[Any]
# A mistake to make on purpose, so that the check of the logits can be checked.
MISTAKES = ("packing", "rows", "bias")
_ROWS_AT_ONCE = 1 << 14


def mxfp4_blocks(blocks: Array, scales: Array) -> Array:
    """GGUF bytes [..., inputs / 32 * 17] of published blocks [..., inputs / 32, 16] and scales."""
    low, high = blocks & 15, blocks >> 4  # elements 0, 2, 4 ... and 1, 3, 5 ...
    elements = np.stack([low, high], axis=-1).reshape(*blocks.shape[:-1], BLOCK)
    packed = elements[..., : BLOCK // 2] | elements[..., BLOCK // 2 :] << 4
    out = np.concatenate([scales[..., None], packed], axis=-1)
    return out.reshape(*blocks.shape[:-2], -1)


def gate_and_up(array: Array, axis: int = 1) -> tuple[Array, Array]:
    """The even and the odd entries along an axis: those of the gate and of the up projection."""
    gate, up = (np.take(array, range(start, array.shape[axis], 2), axis) for start in (0, 1))
    return gate, up


def float_of_bf16(bits: Array) -> npt.NDArray[np.float32]:
    """float32 values of bf16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def q8_0(matrix: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """GGUF bytes [rows][inputs / 32 * 34]: a float16 scale, then 32 int8 codes."""
    rows, cols = matrix.shape
    blocks = matrix.reshape(rows, cols // BLOCK, BLOCK)
    scale = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    inverse = np.divide(1, scale, where=scale > 0, out=np.zeros_like(scale))
    codes = np.rint(blocks * inverse).astype(np.int8)
    scale_bytes = scale.astype(np.float16).view(np.uint8)
    return np.concatenate([scale_bytes, codes.view(np.uint8)], axis=-1).reshape(rows, -1)


@dataclass(frozen=True)
class Tensor:
    """A GGUF tensor: its name, format ("F32", "Q8_0", "MXFP4"), shape in bytes or elements, and
    what makes its data, in pieces along the first axis."""

    name: str
    kind: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[Array]]

    @property
    def nbytes(self) -> int:
        """Of the data."""
        return int(np.prod(self.shape)) * (4 if self.kind == "F32" else 1)


class Source:
    """The tensors of a checkpoint in the Hugging Face layout, mapped."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._files = [np.memmap(path, np.uint8, "r") for path in checkpoint.files]

    def __getitem__(self, name: str) -> Array:
        record = self._checkpoint.tensors[name]
        raw = self._files[record.file][record.begin : record.end]
        dtype = {"BF16": np.uint16, "U8": np.uint8}[record.dtype]
        return np.asarray(raw).view(dtype).reshape(record.shape)


def tensors_of(source: Source, layers: int, *, mistake: str | None = None) -> Iterator[Tensor]:
    """Every tensor of the GGUF file, in order; ``mistake`` is one of `MISTAKES`."""
    yield _dense("token_embd.weight", source["model.embed_tokens.weight"])
    for index in range(layers):
        here, there = f"model.layers.{index}.", f"blk.{index}."
        attention, mlp = here + "self_attn.", here + "mlp."
        yield _floats(there + "attn_norm.weight", source[here + "input_layernorm.weight"])
        for ours, theirs in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "output")):
            name = f"{there}attn_{theirs}"
            yield _dense(f"{name}.weight", source[f"{attention}{ours}_proj.weight"])
            yield _floats(f"{name}.bias", source[f"{attention}{ours}_proj.bias"])
        yield _floats(there + "attn_sinks.weight", source[attention + "sinks"])
        norm = source[here + "post_attention_layernorm.weight"]
        yield _floats(there + "post_attention_norm.weight", norm)
        yield _floats(there + "ffn_gate_inp.weight", source[mlp + "router.weight"])
        yield _floats(there + "ffn_gate_inp.bias", source[mlp + "router.bias"])
        yield from _experts(source, mlp + "experts.", there, mistake)
    yield _floats("output_norm.weight", source["model.norm.weight"])
    yield _dense("output.weight", source["lm_head.weight"])


def _experts(source: Source, ours: str, theirs: str, mistake: str | None) -> Iterator[Tensor]:
    parts = {
        name: source[f"{ours}{name}"]
        for name in ("gate_up_proj_blocks", "gate_up_proj_scales", "gate_up_proj_bias")
    }
    for half, name in enumerate(("gate", "up")):
        blocks, scales, bias = (_half(part, half, mistake == "rows") for part in parts.values())
        if mistake == "bias":
            bias = _half(parts["gate_up_proj_bias"], half, True)
        yield _mxfp4(f"{theirs}ffn_{name}_exps.weight", blocks, scales, mistake)
        yield _floats(f"{theirs}ffn_{name}_exps.bias", bias)
    blocks, scales = source[ours + "down_proj_blocks"], source[ours + "down_proj_scales"]
    yield _mxfp4(theirs + "ffn_down_exps.weight", blocks, scales, mistake)
    yield _floats(theirs + "ffn_down_exps.bias", source[ours + "down_proj_bias"])


def _half(array: Array, half: int, in_halves: bool) -> Array:
    """The gate's or the up's rows, as a view; ``in_halves`` is the mistake of taking them to lie
    one after the other."""
    if not in_halves:
        return array[:, half::2]
    middle = array.shape[1] // 2
    return array[:, half * middle : (half + 1) * middle]


def _floats(name: str, bits: Array) -> Tensor:
    return Tensor(name, "F32", bits.shape, lambda: iter([float_of_bf16(bits)]))


def _dense(name: str, bits: Array) -> Tensor:
    def pieces() -> Iterator[Array]:
        for start in range(0, len(bits), _ROWS_AT_ONCE):
            yield q8_0(float_of_bf16(bits[start : start + _ROWS_AT_ONCE]))

    return Tensor(name, "Q8_0", (len(bits), bits.shape[1] // BLOCK * 34), pieces)


def _mxfp4(name: str, blocks: Array, scales: Array, mistake: str | None) -> Tensor:
    def pieces() -> Iterator[Array]:
        for expert in range(len(blocks)):
            if mistake == "packing":
                raw = np.concatenate([scales[expert][..., None], blocks[expert]], axis=-1)
                yield raw.reshape(len(raw), -1)
            else:
                yield mxfp4_blocks(blocks[expert], scales[expert])

    shape = (*blocks.shape[:2], blocks.shape[2] * (1 + BLOCK // 2))
    return Tensor(name, "MXFP4", shape, pieces)


def write_gguf(
    checkpoint: Checkpoint, path: Path, *, layers: int | None = None, mistake: str | None = None
) -> None:
    """Write the first ``layers`` layers (None: all). The file has its name only once it is whole.

    Raises ImportError without gguf.
    """
    import gguf

    count = layers or checkpoint.config.num_layers
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    writer = gguf.GGUFWriter(partial, "gpt-oss")
    _add_config(writer, gguf, checkpoint, count)
    tensors = list(tensors_of(Source(checkpoint), count, mistake=mistake))
    for tensor in tensors:
        raw = None if tensor.kind == "F32" else gguf.GGMLQuantizationType[tensor.kind]
        dtype = np.dtype(np.float32 if raw is None else np.uint8)
        writer.add_tensor_info(tensor.name, tensor.shape, dtype, tensor.nbytes, raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    file = writer.fout[0]
    for tensor in tensors:
        writer.write_padding(file, file.tell())
        written = 0
        for piece in tensor.pieces():
            np.ascontiguousarray(piece).tofile(file)
            written += piece.nbytes
        if written != tensor.nbytes:
            raise ValueError(f"[to_gguf] {tensor.name}: expected {tensor.nbytes}, wrote {written}")
    writer.write_padding(file, file.tell())
    writer.close()
    partial.replace(path)


def _add_config(writer: Any, gguf: Any, checkpoint: Checkpoint, layers: int) -> None:
    config = checkpoint.config
    writer.add_name("gpt-oss, random weights")
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config.vocab_size)
    writer.add_block_count(layers)
    writer.add_context_length(config.max_context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_expert_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_expert_count(config.num_experts)
    writer.add_expert_used_count(config.experts_per_token)
    writer.add_sliding_window(config.sliding_window)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(config.rope_factor)
    writer.add_rope_scaling_orig_ctx_len(config.rope_original_context)


def main() -> int:
    """The program; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, metavar="N", help="the first N layers only")
    parser.add_argument("--mistake", choices=MISTAKES, help="convert wrongly, on purpose")
    arguments = parser.parse_args()
    checkpoint = open_checkpoint(arguments.checkpoint)
    write_gguf(checkpoint, arguments.out, layers=arguments.layers, mistake=arguments.mistake)
    sys.stdout.write(f"{arguments.out}: {arguments.out.stat().st_size / 1e9:.2f} GB\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
