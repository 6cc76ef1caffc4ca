"""Tools that a model can call: Python code, browsing, patches to files, and what makes one.

Names are loaded on first use; importing this package imports no extra. `PythonTool` needs
``gpt-oss-native[python-tool]`` once it is called.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .apply_patch import ApplyPatchTool, PatchError
    from .browser import BrowserTool
    from .browser_backend import Backend, BrowserError, JsonSearch, SearchApi, SearchHit, Web
    from .browser_index import LocalFiles
    from .browser_page import Page, page_from_html, page_from_text
    from .citations import Citation, pending_citation
    from .protocol import Tool
    from .python import PythonTool
    from .python_process import ProcessDied

_LAZY = {
    "ApplyPatchTool": "apply_patch",
    "Backend": "browser_backend",
    "BrowserError": "browser_backend",
    "BrowserTool": "browser",
    "Citation": "citations",
    "JsonSearch": "browser_backend",
    "LocalFiles": "browser_index",
    "Page": "browser_page",
    "PatchError": "patch_format",
    "ProcessDied": "python_process",
    "PythonTool": "python",
    "SearchApi": "browser_backend",
    "SearchHit": "browser_backend",
    "Tool": "protocol",
    "Web": "browser_backend",
    "page_from_html": "browser_page",
    "page_from_text": "browser_page",
    "pending_citation": "citations",
}

__all__ = [
    "ApplyPatchTool",
    "Backend",
    "BrowserError",
    "BrowserTool",
    "Citation",
    "JsonSearch",
    "LocalFiles",
    "Page",
    "PatchError",
    "ProcessDied",
    "PythonTool",
    "SearchApi",
    "SearchHit",
    "Tool",
    "Web",
    "page_from_html",
    "page_from_text",
    "pending_citation",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
