"""Harmony, the chat format of gpt-oss: messages, rendering, parsing, and a grammar for headers.

The public names are those of OpenAI's ``openai_harmony`` 0.0.8, so that code written for it runs
after changing the import. Pure Python over a ``tiktoken.Encoding``; no network, no compiled core.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._checks import HarmonyError
from .content import (
    ChannelConfig,
    Content,
    DeveloperContent,
    ReasoningEffort,
    SystemContent,
    TextContent,
)
from .encoding import HarmonyEncoding, HarmonyEncodingName
from .messages import Author, Conversation, Message, Role
from .parser import StreamableParser, StreamState
from .render import RenderConversationConfig, RenderOptions
from .tools import ToolDescription, ToolNamespaceConfig
from .vocabulary import load_harmony_encoding

if TYPE_CHECKING:
    from .grammar import GrammarCursor, HeaderGrammar

__all__ = [
    "Author",
    "ChannelConfig",
    "Content",
    "Conversation",
    "DeveloperContent",
    "GrammarCursor",
    "HarmonyEncoding",
    "HarmonyEncodingName",
    "HarmonyError",
    "HeaderGrammar",
    "Message",
    "ReasoningEffort",
    "RenderConversationConfig",
    "RenderOptions",
    "Role",
    "StreamState",
    "StreamableParser",
    "SystemContent",
    "TextContent",
    "ToolDescription",
    "ToolNamespaceConfig",
    "load_harmony_encoding",
]


def __getattr__(name: str) -> Any:
    if name in ("GrammarCursor", "HeaderGrammar"):  # these alone need numpy
        return getattr(importlib.import_module(".grammar", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
