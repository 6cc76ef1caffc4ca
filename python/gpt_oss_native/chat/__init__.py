"""Conversations: questions in, typed events out, over one session that keeps the exact tokens."""

from __future__ import annotations

from .chat import Chat
from .events import Delta, Done, Event, Reply, Timings, ToolCall, ToolResult, Usage
from .functions import Function

__all__ = [
    "Chat",
    "Delta",
    "Done",
    "Event",
    "Function",
    "Reply",
    "Timings",
    "ToolCall",
    "ToolResult",
    "Usage",
]
