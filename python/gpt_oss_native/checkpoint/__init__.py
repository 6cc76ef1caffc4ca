"""Checkpoints on disk: finding them, reading their configuration and headers, describing them."""

from __future__ import annotations

from .config import ModelConfig
from .hub import resolve
from .opening import Checkpoint, open_checkpoint
from .report import CheckpointReport, describe
from .safetensors_reader import TensorRecord
from .tensors import Layout, expected_tensors

__all__ = [
    "Checkpoint",
    "CheckpointReport",
    "Layout",
    "ModelConfig",
    "TensorRecord",
    "describe",
    "expected_tensors",
    "open_checkpoint",
    "resolve",
]
