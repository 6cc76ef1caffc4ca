"""Tools that a model can call: Python code, browsing, patches to files, and what makes one.

Names are loaded on first use; importing this package imports no extra. `PythonTool` needs
``gpt-oss-native[python-tool]`` once it is called.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .apply_patch import ApplyPatchTool, PatchError
    from .protocol import Tool
    from .python import PythonTool
    from .python_process import ProcessDied

_LAZY = {
    "ApplyPatchTool": "apply_patch",
    "PatchError": "patch_format",
    "ProcessDied": "python_process",
    "PythonTool": "python",
    "Tool": "protocol",
}

__all__ = [
    "ApplyPatchTool",
    "PatchError",
    "ProcessDied",
    "PythonTool",
    "Tool",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
