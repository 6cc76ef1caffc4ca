"""Small models for tests of the engine: their shapes, their formats, and fresh answers."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gpt_oss_native as gon
import numpy as np
import numpy.typing as npt

from .checkpoints import TINY, Checkpoint, random_checkpoint, write_hugging_face

F32 = npt.NDArray[np.float32]

PAGE = 64  # positions of a page of the cache
CHUNK = 512  # most tokens of a step
SPLIT = 1024  # attention adds up in pieces of so many keys

# Every format of activations, dense matrices and cache.
FORMATS: dict[str, dict[str, Any]] = {
    "float32": {"precision": "float32"},
    "bf16": {"dense": "bf16"},
    "int8": {"dense": "int8"},
}
# A window within a page, and one of several pages whose edge moves through them.
_SMALL = replace(TINY, vocab_size=331, eos_token_id=330, pad_token_id=329)
SHAPES = {
    "short_window": replace(_SMALL, num_hidden_layers=4, hidden_size=64, sliding_window=16),
    "long_window": replace(
        _SMALL,
        num_hidden_layers=3,
        num_experts_per_tok=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        sliding_window=150,
    ),
}


@functools.cache
def checkpoint(shape: str = "short_window") -> Checkpoint:
    """The checkpoint of a shape; always the same one."""
    return random_checkpoint(7, SHAPES[shape])


@functools.cache
def _held() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="gpt-oss-native-tests-")  # removed at exit


@functools.cache
def directory(shape: str = "short_window") -> Path:
    """Where that checkpoint lies. Tests must not change it."""
    path = Path(_held().name) / shape
    write_hugging_face(checkpoint(shape), path)
    return path


@functools.cache
def shared_model(
    form: str = "bf16", *, shape: str = "short_window", threads: int = 1, isa: str | None = None
) -> gon.Model:
    """An open model that tests share; they must not close it."""
    return gon.Model.load(
        directory(shape), device="cpu", num_threads=threads, isa=isa, **FORMATS[form]
    )


def fresh_logits(model: gon.Model, tokens: Sequence[int]) -> F32:
    """Logits [len(tokens)][vocab] of a session that sees these tokens at once."""
    with model.session() as session:
        return session.forward(tokens, logits="all")


def last_logits(model: gon.Model, tokens: Sequence[int]) -> F32:
    """Logits [vocab] after the last of these tokens, from a session that sees them at once."""
    with model.session() as session:
        return session.forward(tokens)


def random_tokens(rng: np.random.Generator, count: int, vocab: int = 331) -> list[int]:
    """Ids below the vocabulary of these shapes."""
    return [int(token) for token in rng.integers(0, vocab, count)]


def log_softmax(logits: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Natural logarithms of the probabilities, along the last axis, in float64."""
    x = np.asarray(logits, dtype=np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    result: npt.NDArray[np.float64] = x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return result
