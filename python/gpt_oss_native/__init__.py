"""gpt-oss inside your Python process: a native engine and a thin Python layer.

Public names are loaded on first use, so that importing the package costs little and the pure-Python
parts (``harmony``, ``tokenizer``) work without the compiled core.
"""

from __future__ import annotations

import importlib
from typing import Any

from .errors import CheckpointError, DeviceError, GptOssError, InvalidArgument, OutOfMemory

_LAZY = {
    "Model": "model",
    "Session": "session",
    "Sampling": "sampling",
    "Token": "sampling",
    "Chat": "chat",
}
_SUBMODULES = ("harmony", "ops", "tokenizer")

__all__ = [
    "CheckpointError",
    "DeviceError",
    "GptOssError",
    "InvalidArgument",
    "OutOfMemory",
    *_LAZY,
    *_SUBMODULES,
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
        globals()[name] = value
        return value
    if name in _SUBMODULES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
