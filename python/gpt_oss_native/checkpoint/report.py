"""What a checkpoint holds and what a token costs: for the load log and ``gpt-oss-native info``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from .config import MX_BLOCK, ModelConfig
from .opening import Checkpoint
from .tensors import Layout, expected_tensors

BF16_BYTES = 2
INT8_BLOCK_BYTES = MX_BLOCK + 2  # 32 values and one 16-bit scale: the least that dense="int8" reads


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointReport:
    """Counts of one model. All `*_bytes` are bytes, parameters are counted, not stored, values.

    `token_bytes_bf16` and `token_bytes_int8` are the weights that one decoded token at batch 1
    cannot avoid reading, with dense matrices in bf16 or in int8 blocks; keys and values come on
    top. `active_parameters` counts as the model card does (arXiv 2508.10925, table 1): experts by
    the share that is used, the unembedding whole, the embedding not at all.
    """

    layout: Layout
    num_files: int
    file_bytes: int
    num_tensors: int
    bf16_bytes: int
    mxfp4_block_bytes: int
    mxfp4_scale_bytes: int
    unused_tensors: int
    unused_bytes: int
    parameters: int
    active_parameters: int
    token_bytes_bf16: int
    token_bytes_int8: int

    def lines(self) -> list[str]:
        """The report in words, one fact a line."""
        lines = [
            f"layout        {self.layout}, {_files(self.num_files)}, {_bytes(self.file_bytes)}",
            f"tensors       {self.num_tensors}: bf16 {_bytes(self.bf16_bytes)}, "
            f"mxfp4 blocks {_bytes(self.mxfp4_block_bytes)}, "
            f"scales {_bytes(self.mxfp4_scale_bytes)}",
            f"parameters    {_count(self.parameters)}, "
            f"{_count(self.active_parameters)} active a token",
            f"a token reads {_bytes(self.token_bytes_bf16)} with bf16 dense matrices, "
            f"{_bytes(self.token_bytes_int8)} with int8, and its keys and values",
        ]
        if self.unused_tensors:
            lines.append(
                f"unused        {self.unused_tensors} tensors, {_bytes(self.unused_bytes)}"
            )
        return lines

    def __str__(self) -> str:
        return "\n".join(self.lines())


def describe(checkpoint: Checkpoint) -> CheckpointReport:
    """The report of an opened checkpoint; reads no file."""
    wanted = {name for name, _, _ in expected_tensors(checkpoint.config, checkpoint.layout)}
    unused = [record for name, record in checkpoint.tensors.items() if name not in wanted]
    return report_on(
        checkpoint.config,
        layout=checkpoint.layout,
        num_files=len(checkpoint.files),
        file_bytes=sum(checkpoint.file_sizes),
        unused=[record.num_bytes for record in unused],
    )


def report_on(
    config: ModelConfig,
    *,
    layout: Layout = "huggingface",
    num_files: int = 0,
    file_bytes: int = 0,
    unused: Iterable[int] = (),
) -> CheckpointReport:
    """The report of the model that `config` describes, whether or not its files exist.

    `unused` are the byte sizes of tensors in the files that the model does not use.
    """
    embedding = config.vocab_size * config.hidden_size
    count = bf16 = blocks = scales = 0
    matrices = vectors = expert_values = expert_biases = 0
    for name, dtype, shape in expected_tensors(config, layout):
        size = prod(shape)
        count += 1
        if dtype == "U8" and name.endswith("blocks"):
            blocks += size
            expert_values += 2 * size  # two 4-bit values a byte
        elif dtype == "U8":
            scales += size
        else:
            bf16 += BF16_BYTES * size
            if "mlp.mlp" in name or "experts" in name:
                expert_biases += size
            elif len(shape) == 2 and "router" not in name and "gate" not in name:
                matrices += size
            else:
                vectors += size  # and the router, which no format shrinks
    matrices -= embedding  # of which a token reads one row
    used, total = config.experts_per_token, config.num_experts
    active_experts = (expert_values + expert_biases) * used // total
    fixed_bytes = (blocks + scales + BF16_BYTES * expert_biases) * used // total
    fixed_bytes += BF16_BYTES * (vectors + config.hidden_size)
    unused_sizes = list(unused)
    return CheckpointReport(
        layout=layout,
        num_files=num_files,
        file_bytes=file_bytes,
        num_tensors=count + len(unused_sizes),
        bf16_bytes=bf16,
        mxfp4_block_bytes=blocks,
        mxfp4_scale_bytes=scales,
        unused_tensors=len(unused_sizes),
        unused_bytes=sum(unused_sizes),
        parameters=embedding + matrices + vectors + expert_values + expert_biases,
        active_parameters=matrices + vectors + active_experts,
        token_bytes_bf16=fixed_bytes + BF16_BYTES * matrices,
        token_bytes_int8=fixed_bytes + matrices // MX_BLOCK * INT8_BLOCK_BYTES,
    )


def _bytes(size: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size} B"


def _count(number: int) -> str:
    for unit, scale in (("billion", 1e9), ("million", 1e6)):
        if number >= scale:
            return f"{number / scale:.2f} {unit}"
    return f"{number:,}"


def _files(number: int) -> str:
    return "1 file" if number == 1 else f"{number} files"
