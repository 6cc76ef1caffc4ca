"""Tools as the models were told of them: descriptions, and namespaces with the two built-in ones.

The texts of :meth:`ToolNamespaceConfig.browser` and :meth:`ToolNamespaceConfig.python` are part of
the prompt format that gpt-oss was trained on; every character of them is data, not prose.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from ._checks import check_mapping, check_name, check_optional_text, check_text, invalid


@dataclass
class ToolDescription:
    """One callable tool: its name, a description for the model, parameters as a JSON schema."""

    name: str
    description: str
    parameters: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        check_name("ToolDescription", "a tool name", self.name)
        check_text("ToolDescription", "the description", self.description)
        if self.parameters is not None and not isinstance(self.parameters, dict):
            raise invalid(
                "[ToolDescription] expected parameters as a JSON schema dictionary or None, "
                f"got {type(self.parameters).__name__}"
            )

    @classmethod
    def new(
        cls, name: str, description: str, parameters: dict[str, Any] | None = None
    ) -> ToolDescription:
        """The same as the constructor; kept for callers of the OpenAI package."""
        return cls(name=name, description=description, parameters=parameters)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; ``parameters`` is left out when there are none."""
        out: dict[str, Any] = {"name": self.name, "description": self.description}
        if self.parameters is not None:
            out["parameters"] = copy.deepcopy(self.parameters)
        return out

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> ToolDescription:
        """The inverse of :meth:`to_dict`; unknown keys are ignored."""
        raw = check_mapping("ToolDescription.from_dict", raw)
        return cls(
            name=raw.get("name"),  # type: ignore[arg-type]  # None is refused by name
            description=raw.get("description"),  # type: ignore[arg-type]
            parameters=raw.get("parameters"),
        )


@dataclass
class ToolNamespaceConfig:
    """A namespace of tools, called as ``namespace.tool``; one without tools is called itself."""

    name: str
    description: str | None = None
    tools: list[ToolDescription] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_name("ToolNamespaceConfig", "a namespace name", self.name)
        check_optional_text("ToolNamespaceConfig", "the description", self.description)
        self.tools = [_as_tool(tool) for tool in self.tools]

    def to_dict(self) -> dict[str, Any]:
        """Plain data; ``description`` is left out when there is none."""
        out: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            out["description"] = self.description
        out["tools"] = [tool.to_dict() for tool in self.tools]
        return out

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> ToolNamespaceConfig:
        """The inverse of :meth:`to_dict`; unknown keys are ignored."""
        raw = check_mapping("ToolNamespaceConfig.from_dict", raw)
        return cls(
            name=raw.get("name"),  # type: ignore[arg-type]  # None is refused by name
            description=raw.get("description"),
            tools=raw.get("tools", []),
        )

    def recipients(self) -> list[str]:
        """The recipients that a model may write for this namespace."""
        if not self.tools:
            return [self.name]
        return [f"{self.name}.{tool.name}" for tool in self.tools]

    @staticmethod
    def browser() -> ToolNamespaceConfig:
        """The browsing tool of the training data: ``search``, ``open`` and ``find``."""
        return ToolNamespaceConfig(
            name="browser",
            description=_BROWSER,
            tools=[
                ToolDescription("search", _SEARCH, _object({"query": "string"}, _SEARCH_OPTIONS)),
                ToolDescription("open", _OPEN, _object({}, _OPEN_OPTIONS)),
                ToolDescription("find", _FIND, _object({"pattern": "string"}, _CURSOR)),
            ],
        )

    @staticmethod
    def python() -> ToolNamespaceConfig:
        """The stateful Python tool of the training data, addressed as ``python`` itself."""
        return ToolNamespaceConfig(name="python", description=_PYTHON, tools=[])


def _as_tool(tool: object) -> ToolDescription:
    if isinstance(tool, ToolDescription):
        return tool
    if isinstance(tool, dict):
        return ToolDescription.from_dict(tool)
    raise invalid(
        f"[ToolNamespaceConfig] expected ToolDescription objects, got {type(tool).__name__}; "
        "build them with ToolDescription.new(name, description, parameters)"
    )


def as_namespaces(operation: str, tools: object) -> dict[str, ToolNamespaceConfig] | None:
    """Namespaces by name from objects or plain data; None stays None."""
    if tools is None:
        return None
    out: dict[str, ToolNamespaceConfig] = {}
    for key, value in check_mapping(operation, tools).items():
        is_config = isinstance(value, ToolNamespaceConfig)
        out[str(key)] = value if is_config else ToolNamespaceConfig.from_dict(value)
    return out


def _object(required: dict[str, str], optional: dict[str, dict[str, Any]]) -> dict[str, Any]:
    properties: dict[str, Any] = {name: {"type": kind} for name, kind in required.items()}
    properties |= copy.deepcopy(optional)
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    return schema | ({"required": list(required)} if required else {})


_CURSOR: dict[str, dict[str, Any]] = {"cursor": {"type": "number", "default": -1}}
_SEARCH_OPTIONS: dict[str, dict[str, Any]] = {
    "topn": {"type": "number", "default": 10},
    "source": {"type": "string"},
}
_OPEN_OPTIONS: dict[str, dict[str, Any]] = {
    "id": {"type": ["number", "string"], "default": -1},
    **_CURSOR,
    "loc": {"type": "number", "default": -1},
    "num_lines": {"type": "number", "default": -1},
    "view_source": {"type": "boolean", "default": False},
    "source": {"type": "string"},
}
_BROWSER = (
    "Tool for browsing.\n"
    "The `cursor` appears in brackets before each browsing display: `[{cursor}]`.\n"
    "Cite information from the tool using the following format:\n"
    "`【{cursor}†L{line_start}(-L{line_end})?】`, for example: `【6†L9-L11】` or `【8†L3】`.\n"
    "Do not quote more than 10 words directly from the tool output.\n"
    "sources=web (default: web)"
)
_SEARCH = "Searches for information related to `query` and displays `topn` results."
_OPEN = (
    "Opens the link `id` from the page indicated by `cursor` starting at line number `loc`, "
    "showing `num_lines` lines.\n"
    "Valid link ids are displayed with the formatting: `【{id}†.*】`.\n"
    "If `cursor` is not provided, the most recent page is implied.\n"
    "If `id` is a string, it is treated as a fully qualified URL associated with `source`.\n"
    "If `loc` is not provided, the viewport will be positioned at the beginning of the document "
    "or centered on the most relevant passage, if available.\n"
    "Use this function without `id` to scroll to a new location of an opened page."
)
_FIND = "Finds exact matches of `pattern` in the current page, or the page given by `cursor`."
_PYTHON = (
    "Use this tool to execute Python code in your chain of thought. The code will not be shown to "
    "the user. This tool should be used for internal reasoning, but not for code that is intended "
    "to be visible to the user (e.g. when creating plots, tables, or files).\n\n"
    "When you send a message containing Python code to python, it will be executed in a stateful "
    "Jupyter notebook environment. python will respond with the output of the execution or time "
    "out after 120.0 seconds. The drive at '/mnt/data' can be used to save and persist user files. "
    "Internet access for this session is UNKNOWN. Depends on the cluster."
)
