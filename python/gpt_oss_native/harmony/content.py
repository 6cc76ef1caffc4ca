"""What a message holds: text, the system block, or the developer block.

Builders (``with_...``) change the object and return it, as callers of the OpenAI package expect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field
from enum import Enum
from typing import Any

from ._checks import check_mapping, check_optional_text, check_text, invalid
from .tools import ToolDescription, ToolNamespaceConfig, as_namespaces

DEFAULT_IDENTITY = "You are ChatGPT, a large language model trained by OpenAI."
DEFAULT_CUTOFF = "2024-06"
DEFAULT_CHANNELS = ("analysis", "commentary", "final")


class ReasoningEffort(str, Enum):  # noqa: UP042  # str() as in openai_harmony
    """How much the model should reason before it answers."""

    LOW = "Low"
    MEDIUM = "Medium"
    HIGH = "High"

    @classmethod
    def _missing_(cls, value: object) -> ReasoningEffort:
        for member in cls:
            if isinstance(value, str) and value.lower() == member.value.lower():
                return member
        raise invalid(f"[ReasoningEffort] expected 'Low', 'Medium' or 'High', got {value!r}")


class Content:
    """Base of everything that can stand in :attr:`Message.content`."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data with a ``type`` key."""
        raise NotImplementedError


@dataclass
class TextContent(Content):
    """Plain text; special-token strings in it stay text."""

    text: str
    type: InitVar[str | None] = None  # accepted and ignored, for TextContent(**to_dict())

    def __post_init__(self, type: str | None) -> None:
        check_text("TextContent", "text", self.text)

    def to_dict(self) -> dict[str, Any]:
        """``{"type": "text", "text": ...}``."""
        return {"type": "text", "text": self.text}


@dataclass
class ChannelConfig:
    """The channels that the system message names, and whether each message must carry one."""

    valid_channels: list[str]
    channel_required: bool

    def __post_init__(self) -> None:
        self.valid_channels = [
            check_text("ChannelConfig", "a channel", channel) for channel in self.valid_channels
        ]
        if not isinstance(self.channel_required, bool):
            raise invalid(
                "[ChannelConfig] expected channel_required as a bool, "
                f"got {self.channel_required!r}"
            )

    @classmethod
    def require_channels(cls, channels: Sequence[str]) -> ChannelConfig:
        """These channels, one of them on every message."""
        return cls(valid_channels=list(channels), channel_required=True)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "valid_channels": list(self.valid_channels),
            "channel_required": self.channel_required,
        }


def _default_channels() -> ChannelConfig | None:
    return ChannelConfig.require_channels(DEFAULT_CHANNELS)


@dataclass
class SystemContent(Content):
    """The system block: identity, dates, reasoning effort, built-in tools, channels.

    A field set to None is not rendered.
    """

    model_identity: str | None = DEFAULT_IDENTITY
    reasoning_effort: ReasoningEffort | None = ReasoningEffort.MEDIUM
    conversation_start_date: str | None = None
    knowledge_cutoff: str | None = DEFAULT_CUTOFF
    channel_config: ChannelConfig | None = field(default_factory=_default_channels)
    tools: dict[str, ToolNamespaceConfig] | None = None
    type: InitVar[str | None] = None  # accepted and ignored, for SystemContent(**to_dict())

    def __post_init__(self, type: str | None) -> None:
        check_optional_text("SystemContent", "model_identity", self.model_identity)
        check_optional_text(
            "SystemContent", "conversation_start_date", self.conversation_start_date
        )
        check_optional_text("SystemContent", "knowledge_cutoff", self.knowledge_cutoff)
        if self.reasoning_effort is not None:
            self.reasoning_effort = ReasoningEffort(self.reasoning_effort)
        if isinstance(self.channel_config, dict):
            raw = self.channel_config
            self.channel_config = ChannelConfig(
                raw.get("valid_channels", ()), raw.get("channel_required", False)
            )
        self.tools = as_namespaces("SystemContent", self.tools)

    @classmethod
    def new(cls) -> SystemContent:
        """The defaults: identity, knowledge cut-off, medium effort, three channels."""
        return cls()

    def with_model_identity(self, model_identity: str) -> SystemContent:
        """Set the first line."""
        self.model_identity = check_optional_text("with_model_identity", "it", model_identity)
        return self

    def with_reasoning_effort(self, reasoning_effort: ReasoningEffort) -> SystemContent:
        """Set the effort that the ``Reasoning:`` line names; None leaves the line out."""
        effort = None if reasoning_effort is None else ReasoningEffort(reasoning_effort)
        self.reasoning_effort = effort
        return self

    def with_conversation_start_date(self, conversation_start_date: str) -> SystemContent:
        """Set the current date, as text."""
        self.conversation_start_date = check_optional_text(
            "with_conversation_start_date", "the date", conversation_start_date
        )
        return self

    def with_knowledge_cutoff(self, knowledge_cutoff: str) -> SystemContent:
        """Set the knowledge cut-off, as text."""
        self.knowledge_cutoff = check_optional_text("with_knowledge_cutoff", "it", knowledge_cutoff)
        return self

    def with_channel_config(self, channel_config: ChannelConfig) -> SystemContent:
        """Set the channels that the model may use."""
        self.channel_config = channel_config
        return self

    def with_required_channels(self, channels: list[str]) -> SystemContent:
        """Set the channels and require one on every message."""
        self.channel_config = ChannelConfig.require_channels(channels)
        return self

    def with_tools(self, ns_config: ToolNamespaceConfig) -> SystemContent:
        """Add a namespace, or replace the one of that name."""
        self.tools = {**(self.tools or {}), ns_config.name: ns_config}
        return self

    def with_browser_tool(self) -> SystemContent:
        """Add the built-in ``browser`` namespace."""
        return self.with_tools(ToolNamespaceConfig.browser())

    def with_python_tool(self) -> SystemContent:
        """Add the built-in ``python`` tool."""
        return self.with_tools(ToolNamespaceConfig.python())

    def to_dict(self) -> dict[str, Any]:
        """Plain data with ``"type": "system_content"``; None fields are left out."""
        out: dict[str, Any] = {
            "model_identity": self.model_identity,
            "reasoning_effort": self.reasoning_effort,
            "conversation_start_date": self.conversation_start_date,
            "knowledge_cutoff": self.knowledge_cutoff,
        }
        if self.channel_config is not None:
            out["channel_config"] = self.channel_config.to_dict()
        out["tools"] = _tools_to_dict(self.tools)
        out["type"] = "system_content"
        return {key: value for key, value in out.items() if value is not None}

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> SystemContent:
        """The inverse of :meth:`to_dict`: absent fields have their defaults, others are ignored."""
        return cls(**_known(cls, raw))


@dataclass
class DeveloperContent(Content):
    """The developer block: instructions and the tools offered to the model."""

    instructions: str | None = None
    tools: dict[str, ToolNamespaceConfig] | None = None
    type: InitVar[str | None] = None  # accepted and ignored

    def __post_init__(self, type: str | None) -> None:
        check_optional_text("DeveloperContent", "instructions", self.instructions)
        self.tools = as_namespaces("DeveloperContent", self.tools)

    @classmethod
    def new(cls) -> DeveloperContent:
        """An empty block."""
        return cls()

    def with_instructions(self, instructions: str) -> DeveloperContent:
        """Set the instructions ("system prompt" elsewhere)."""
        self.instructions = check_optional_text("with_instructions", "instructions", instructions)
        return self

    def with_tools(self, ns_config: ToolNamespaceConfig) -> DeveloperContent:
        """Add a namespace, or replace the one of that name."""
        self.tools = {**(self.tools or {}), ns_config.name: ns_config}
        return self

    def with_function_tools(self, tools: Sequence[ToolDescription]) -> DeveloperContent:
        """Set the ``functions`` namespace."""
        return self.with_tools(
            ToolNamespaceConfig(name="functions", description=None, tools=list(tools))
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data with ``"type": "developer_content"``; None fields are left out."""
        out = {
            "instructions": self.instructions,
            "tools": _tools_to_dict(self.tools),
            "type": "developer_content",
        }
        return {key: value for key, value in out.items() if value is not None}

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> DeveloperContent:
        """The inverse of :meth:`to_dict`; unknown keys are ignored."""
        return cls(**_known(cls, raw))


def content_from_dict(raw: object) -> Content:
    """A content object from its plain form; the ``type`` key decides. Raises InvalidArgument."""
    raw = check_mapping("Message.from_dict", raw)
    kind = raw.get("type")
    if kind == "text":
        return TextContent(raw.get("text"))  # type: ignore[arg-type]  # None is refused by name
    if kind == "system_content":
        return SystemContent.from_dict(raw)
    if kind == "developer_content":
        return DeveloperContent.from_dict(raw)
    raise invalid(
        f"[Message.from_dict] expected content of type text, system_content or developer_content, "
        f"got {kind!r}"
    )


def _tools_to_dict(tools: dict[str, ToolNamespaceConfig] | None) -> dict[str, Any] | None:
    return None if tools is None else {name: config.to_dict() for name, config in tools.items()}


def _known(cls: Any, raw: dict[str, Any]) -> dict[str, Any]:
    fields = cls.__dataclass_fields__
    return {key: value for key, value in check_mapping(cls.__name__, raw).items() if key in fields}
