"""What a gpt-oss checkpoint says about itself: `ModelConfig`, read from config.json.

Two spellings are read: that of Hugging Face (transformers, models/gpt_oss/configuration_gpt_oss.py;
old ``rope_scaling`` and new ``rope_parameters``) and the flat one of the published ``original/``
folder (openai/gpt-oss, gpt_oss/torch/model.py). Sizes are never assumed. Every value is checked for
type and range, and the ranges are such that no product of sizes that the engine forms exceeds 63
bits.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, InvalidArgument
from .config_reader import KeyReader
from .strict_json import read_json_object, shorten

MX_BLOCK = 32  # values that share one scale in MXFP4, along the input dimension
HEAD_DIM = 64  # the only head size the kernels are written for
MAX_CONFIG_BYTES = 16_000_000

# experts * 2 * width * hidden * layers, the largest product, is below 2**56 with these.
_INT_BOUNDS = {
    "num_layers": (1, 1024),
    "hidden_size": (MX_BLOCK, 65536),
    "intermediate_size": (MX_BLOCK, 65536),
    "num_experts": (1, 4096),
    "experts_per_token": (1, 256),
    "num_heads": (1, 1024),
    "num_kv_heads": (1, 1024),
    "head_dim": (HEAD_DIM, HEAD_DIM),
    "vocab_size": (1, 2**24),
    "sliding_window": (1, 2**24),
    "rope_original_context": (1, 2**24),
    "max_context": (1, 2**24),  # positions are float32 in the rotary angle, exact up to here
}
_FLOAT_BOUNDS = {
    "rope_theta": (2.0, 1e12),
    "rope_factor": (1.0, 1e4),
    "rope_beta_fast": (1e-3, 1e6),
    "rope_beta_slow": (1e-3, 1e6),
    "swiglu_limit": (1e-3, 1e6),
    "swiglu_alpha": (1e-3, 1e3),
    "rms_norm_eps": (1e-12, 0.1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The architecture of one gpt-oss model. Sizes count elements, contexts and windows tokens.

    ``layer_windows[i]`` is True where layer i sees only the last `sliding_window` tokens. Token ids
    are those of the checkpoint's own files; `eos_token_ids` is empty where they name none. Raises
    InvalidArgument when a value has the wrong type or range or two do not fit each other.
    """

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_experts: int
    experts_per_token: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    sliding_window: int
    layer_windows: tuple[bool, ...]
    max_context: int
    head_dim: int = HEAD_DIM
    rope_theta: float = 150000.0
    rope_factor: float = 32.0
    rope_original_context: int = 4096
    rope_beta_fast: float = 32.0
    rope_beta_slow: float = 1.0
    rope_truncate: bool = False
    swiglu_limit: float = 7.0
    swiglu_alpha: float = 1.702
    rms_norm_eps: float = 1e-5
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    bos_token_id: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            problem = check_value(field.name, getattr(self, field.name))
            if problem:
                raise InvalidArgument(f"[ModelConfig] {field.name} {problem}")
        for problem in self._disagreements():
            raise InvalidArgument(f"[ModelConfig] {problem}")

    def _disagreements(self) -> list[str]:
        """What is wrong between the fields, in words; empty for a config that can be run."""
        problems = []
        if self.num_heads % self.num_kv_heads:
            problems.append(
                f"num_heads must be a multiple of num_kv_heads, found {self.num_heads} and "
                f"{self.num_kv_heads}"
            )
        if self.experts_per_token > self.num_experts:
            problems.append(
                f"experts_per_token must be at most num_experts, found {self.experts_per_token} "
                f"of {self.num_experts}"
            )
        if len(self.layer_windows) != self.num_layers:
            problems.append(
                f"layer_windows must name {self.num_layers} layers, found {len(self.layer_windows)}"
            )
        if self.rope_factor > 1.0:
            low, high = self.yarn_ramp()
            if not low < high:
                problems.append(
                    f"YaRN's ramp must rise, found limits {low:.4f} and {high:.4f} from "
                    f"beta {self.rope_beta_fast:g} and {self.rope_beta_slow:g}, context "
                    f"{self.rope_original_context}, theta {self.rope_theta:g}"
                )
        for name in ("eos_token_ids", "pad_token_id", "bos_token_id"):
            value = getattr(self, name)
            ids = value if isinstance(value, tuple) else () if value is None else (value,)
            if any(token >= self.vocab_size for token in ids):
                problems.append(
                    f"{name} must be below vocab_size {self.vocab_size}, found {shorten(value)}"
                )
        return problems

    def yarn_ramp(self) -> tuple[float, float]:
        """First and last rotary dimension of YaRN's ramp (arXiv 2309.00071, 3.2), kept in range."""

        def dimension(rotations: float) -> float:
            ratio = self.rope_original_context / (rotations * 2 * math.pi)
            return self.head_dim / 2 * math.log(ratio) / math.log(self.rope_theta)

        low, high = dimension(self.rope_beta_fast), dimension(self.rope_beta_slow)
        if self.rope_truncate:
            low, high = math.floor(low), math.ceil(high)
        return max(low, 0.0), min(high, self.head_dim - 1.0)

    @property
    def query_size(self) -> int:
        """Rows of the query projection."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Rows of the key projection, and of the value projection."""
        return self.num_kv_heads * self.head_dim


def check_value(name: str, value: object) -> str | None:
    """What is wrong with `value` as the field `name` of ModelConfig, in words; None when nothing
    is."""
    found = f"found {shorten(value)}"
    if name in _INT_BOUNDS:
        low, high = _INT_BOUNDS[name]
        if type(value) is not int or not low <= value <= high:
            if low == high:
                return f"must be {low}, {found}"
            return f"must be an integer from {low} to {high}, {found}"
        if name in ("hidden_size", "intermediate_size") and value % MX_BLOCK:
            return f"must be a multiple of {MX_BLOCK}, {found}"
    elif name in _FLOAT_BOUNDS:
        floor, ceiling = _FLOAT_BOUNDS[name]
        if type(value) not in (int, float) or not floor <= value <= ceiling:  # type: ignore[operator]
            return f"must be a number from {floor:g} to {ceiling:g}, {found}"
    elif name == "layer_windows":
        if not isinstance(value, tuple) or any(type(item) is not bool for item in value):
            return f"must be a tuple of bool, {found}"
    elif name == "rope_truncate":
        if type(value) is not bool:
            return f"must be true or false, {found}"
    elif name == "eos_token_ids":
        if not isinstance(value, tuple) or any(not _is_token(item) for item in value):
            return f"must be token ids, {found}"
    elif value is not None and not _is_token(value):
        return f"must be a token id, {found}"
    return None


def _is_token(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**24


def load_config(path: Path) -> ModelConfig:
    """Reads config.json at `path`, and generation_config.json beside it for the end tokens.

    Raises CheckpointError, naming file and key, when either is damaged or describes another model.
    """
    values = read_json_object(path, max_bytes=MAX_CONFIG_BYTES)
    generation_path = path.with_name("generation_config.json")
    generation = None
    if os.path.exists(generation_path):  # False also where the folder may not be searched
        generation = read_json_object(generation_path, max_bytes=MAX_CONFIG_BYTES)
    return parse_config(values, generation=generation, source=str(path))


def parse_config(
    values: dict[str, Any],
    *,
    generation: dict[str, Any] | None = None,
    source: str = "config.json",
) -> ModelConfig:
    """The ModelConfig that the JSON object `values` describes, in either spelling.

    `generation` is the content of generation_config.json, whose end tokens count before those of
    `values`. Raises CheckpointError, naming `source` and the key.
    """
    reader = KeyReader(values, source, check_value)
    _require_gpt_oss(reader)
    num_layers = reader.field("num_layers", "num_hidden_layers")
    windows, window = _windows(reader, num_layers)
    arguments: dict[str, Any] = {
        "num_layers": num_layers,
        "hidden_size": reader.field("hidden_size", "hidden_size"),
        "intermediate_size": reader.field("intermediate_size", "intermediate_size"),
        "num_experts": reader.field("num_experts", "num_local_experts", "num_experts"),
        "experts_per_token": reader.field(
            "experts_per_token", "num_experts_per_tok", "experts_per_token"
        ),
        "num_heads": reader.field("num_heads", "num_attention_heads"),
        "num_kv_heads": reader.field("num_kv_heads", "num_key_value_heads"),
        "head_dim": reader.field("head_dim", "head_dim"),
        "vocab_size": reader.field("vocab_size", "vocab_size"),
        "sliding_window": window,
        "layer_windows": windows,
        "swiglu_limit": float(reader.field("swiglu_limit", "swiglu_limit", default=7.0)),
        "swiglu_alpha": float(reader.field("swiglu_alpha", "swiglu_alpha", default=1.702)),
        "rms_norm_eps": float(reader.field("rms_norm_eps", "rms_norm_eps", default=1e-5)),
        "pad_token_id": reader.field("pad_token_id", "pad_token_id", default=None),
        "bos_token_id": reader.field("bos_token_id", "bos_token_id", default=None),
        "eos_token_ids": _end_tokens(reader, generation),
        **_rope(reader),
    }
    arguments["max_context"] = reader.field(
        "max_context",
        "max_position_embeddings",
        default=round(arguments["rope_original_context"] * arguments["rope_factor"]),
    )
    try:
        return ModelConfig(**arguments)
    except InvalidArgument as error:
        raise CheckpointError(str(error).replace("[ModelConfig]", reader.prefix, 1)) from error


def _require_gpt_oss(reader: KeyReader) -> None:
    model_type = reader.raw("model_type")
    if model_type is not None and model_type != "gpt_oss":
        reader.fail("model_type", f'must be "gpt_oss", found {shorten(model_type)}')
    for key, wanted in (
        ("attention_bias", True),
        ("tie_word_embeddings", False),
        ("hidden_act", "silu"),
    ):
        value = reader.raw(key)
        if value is not None and value is not wanted and value != wanted:
            reader.fail(key, f"must be {str(wanted).lower()}, found {shorten(value)}")
    quantization = reader.raw("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        if method != "mxfp4":
            reader.fail(
                "quantization_config",
                f'must have the quant_method "mxfp4", found {shorten(method)}; '
                "only checkpoints with MXFP4 experts are read",
                hint=False,
            )


def _windows(reader: KeyReader, num_layers: int) -> tuple[tuple[bool, ...], int]:
    """Which layers slide, and the window in tokens."""
    kinds = reader.raw("layer_types")
    if kinds is None:
        windows = tuple(layer % 2 == 0 for layer in range(num_layers))
    else:
        names = {"sliding_attention": True, "full_attention": False}
        if not isinstance(kinds, list) or len(kinds) != num_layers:
            found = f"{len(kinds)} of them" if isinstance(kinds, list) else shorten(kinds)
            reader.fail("layer_types", f"must be a list of {num_layers} names, found {found}")
        for kind in kinds:
            if not isinstance(kind, str) or kind not in names:
                reader.fail(
                    "layer_types",
                    f"must name sliding_attention or full_attention, found {shorten(kind)}",
                )
        windows = tuple(names[kind] for kind in kinds)
    if any(windows) or reader.raw("sliding_window") is not None:
        return windows, reader.field("sliding_window", "sliding_window")
    return windows, 2**24  # no layer slides: a window that no context reaches


def _rope(reader: KeyReader) -> dict[str, Any]:
    """The rotary fields: from the flat keys, ``rope_parameters`` or ``rope_scaling``."""
    nested = reader.child("rope_parameters") or reader.child("rope_scaling")
    flat_context = reader.field("rope_original_context", "initial_context_length", default=4096)
    if nested is None:
        # The flat spelling; where even it says nothing, both published codes have these defaults.
        return {
            "rope_theta": float(reader.field("rope_theta", "rope_theta")),
            "rope_factor": float(reader.field("rope_factor", "rope_scaling_factor", default=32.0)),
            "rope_original_context": flat_context,
            "rope_beta_fast": float(reader.field("rope_beta_fast", "rope_ntk_beta", default=32.0)),
            "rope_beta_slow": float(reader.field("rope_beta_slow", "rope_ntk_alpha", default=1.0)),
            "rope_truncate": False,
        }
    theta = reader.field("rope_theta", "rope_theta", default=None)
    inner_theta = nested.field("rope_theta", "rope_theta", default=theta)
    if inner_theta is None or (theta is not None and inner_theta != theta):
        nested.fail("rope_theta", f"must be one number here or beside it, found {inner_theta}")
    kind = nested.raw("rope_type") or nested.raw("type")
    if kind == "default":
        return {
            "rope_theta": float(inner_theta),
            "rope_factor": 1.0,
            "rope_original_context": flat_context,
        }
    if kind != "yarn":
        nested.fail("rope_type", f'must be "yarn" or "default", found {shorten(kind)}')
    factor = float(nested.field("rope_factor", "factor"))
    _require_standard_attention_factor(nested, factor)
    return {
        "rope_theta": float(inner_theta),
        "rope_factor": factor,
        "rope_original_context": nested.field(
            "rope_original_context", "original_max_position_embeddings", default=flat_context
        ),
        "rope_beta_fast": float(nested.field("rope_beta_fast", "beta_fast", default=32.0)),
        "rope_beta_slow": float(nested.field("rope_beta_slow", "beta_slow", default=1.0)),
        # What transformers takes when the key is absent; every published checkpoint says false.
        "rope_truncate": nested.field("rope_truncate", "truncate", default=True),
    }


def _require_standard_attention_factor(nested: KeyReader, factor: float) -> None:
    standard = 0.1 * math.log(factor) + 1.0
    given = nested.raw("attention_factor")
    if given is not None and (
        type(given) not in (int, float) or not abs(given - standard) <= 1e-6 * standard
    ):
        nested.fail("attention_factor", f"must be {standard:.6f} or absent, found {shorten(given)}")
    if nested.raw("mscale") is not None and nested.raw("mscale_all_dim") is not None:
        nested.fail("mscale_all_dim", "must be absent, found a value")
    if nested.raw("partial_rotary_factor") not in (None, 1, 1.0):
        nested.fail("partial_rotary_factor", "must be 1 or absent")


def _end_tokens(reader: KeyReader, generation: dict[str, Any] | None) -> tuple[int, ...]:
    found: dict[int, None] = {}  # an ordered set
    readers = [reader]
    if generation is not None:
        readers.insert(0, KeyReader(generation, "generation_config.json", check_value))
    for source in readers:
        value = source.raw("eos_token_id")
        ids = value if isinstance(value, list) else [] if value is None else [value]
        for token in ids:
            problem = check_value("eos_token_ids", (token,))
            if problem:
                source.fail("eos_token_id", f"must be token ids, found {shorten(token)}")
            found[token] = None
    return tuple(found)
