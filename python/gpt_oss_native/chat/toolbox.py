"""The tools of a chat: how they are declared, and how calls to them are run."""

from __future__ import annotations

import contextvars
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import GptOssError, InvalidArgument
from ..harmony import (
    Author,
    DeveloperContent,
    Message,
    Role,
    SystemContent,
    ToolDescription,
    ToolNamespaceConfig,
)
from .events import ToolResult
from .functions import Function

if TYPE_CHECKING:
    from ..harmony import HarmonyEncoding
    from ..tools.protocol import Tool

#: What the models were told of in the system message; everything else is the developer's.
_BUILT_IN = ("browser", "python")
_POLL_S = 0.05  # how soon a wait for a tool sees that the turn was given up


class TurnCancelledError(Exception):
    """The turn was given up while a tool ran."""


@dataclass(frozen=True)
class Outcome:
    """What one call came to: the messages that the model reads, and the event."""

    messages: list[Message]
    event: ToolResult


class Toolbox:
    """Tools by what the model writes to call them.

    Takes functions, objects of the shape `Tool`, and schemas without a function (dictionaries,
    `ToolDescription`, `ToolNamespaceConfig`): a call to one of those ends the turn.
    Raises InvalidArgument for two tools of one name.
    """

    def __init__(self, tools: Iterable[Any], encoding: HarmonyEncoding) -> None:
        self._encoding = encoding
        self._tools: dict[str, Tool | None] = {}
        self._namespaces: dict[str, ToolNamespaceConfig] = {}
        self.schemas: dict[str, dict[str, Any]] = {}  # of the arguments, by recipient
        if not isinstance(tools, Iterable):
            raise InvalidArgument(
                f"[chat] tools: expected a list of functions, schemas or tools, got {tools!r}"
            )
        for tool in tools:
            self._add(tool)

    @property
    def recipients(self) -> tuple[str, ...]:
        """What the model may call."""
        return tuple(self._tools)

    def declare(self, system: SystemContent, developer: DeveloperContent) -> None:
        """Tells the model of the tools."""
        for namespace in self._namespaces.values():
            if namespace.name in _BUILT_IN:
                system.with_tools(namespace)
            else:
                developer.with_tools(namespace)

    def allowed(self, choice: str) -> tuple[str, ...]:
        """What may be called under a ``tool_choice``. Raises InvalidArgument for another name."""
        if choice == "none":
            return ()
        if choice in ("auto", "required"):
            if choice == "required" and not self._tools:
                raise InvalidArgument(
                    "[chat] tool_choice: expected tools to choose from for 'required', got none"
                )
            return self.recipients
        names = [name for name in self._tools if choice in (name, name.partition(".")[2])]
        names = names or [name for name in self._tools if name.partition(".")[0] == choice]
        if not names:
            raise InvalidArgument(
                f"[chat] tool_choice: expected 'auto', 'none', 'required' or one of "
                f"{', '.join(self._tools) or 'no tools'}, got {choice!r}"
            )
        return tuple(names)

    def runs(self, calls: Iterable[Message]) -> bool:
        """Whether all of these can be run here; undeclared ones can: they are told so."""
        return all(self._tools.get(call.recipient or "", self) is not None for call in calls)

    def run(
        self, calls: Sequence[Message], *, timeout: float | None, cancelled: Callable[[], bool]
    ) -> list[Outcome]:
        """Runs calls at once, each in a thread of its own, and returns their outcomes in order.

        A tool that raises, or does not return within ``timeout`` seconds, gives an error for the
        model to read. Raises TurnCancelledError once ``cancelled()`` holds.
        """
        running = [
            _Running(call, self._tools.get(call.recipient or ""), self._encoding) for call in calls
        ]
        try:
            for one in running:
                one.start(self._unknown(one.call))
            return [one.outcome(timeout, cancelled) for one in running]
        except BaseException:  # Ctrl-C too
            for one in running:
                one.interrupt()
            raise

    def _unknown(self, call: Message) -> str:
        declared = ", ".join(self._tools) or "none"
        return f"Error: there is no tool {call.recipient!r}; the tools are: {declared}"

    def _add(self, tool: Any) -> None:
        if isinstance(tool, dict):
            tool = _description(tool)
        if isinstance(tool, (ToolDescription, ToolNamespaceConfig)):
            self._declare(tool, "functions", None)
            return
        if not (hasattr(tool, "namespace") and hasattr(tool, "call")):
            tool = Function(tool)
        self._declare(tool.namespace(), tool.name.partition(".")[0], tool)

    def _declare(
        self, declared: ToolDescription | ToolNamespaceConfig, space: str, tool: Tool | None
    ) -> None:
        if isinstance(declared, ToolDescription):
            declared = ToolNamespaceConfig(name=space, tools=[declared])
        for name in declared.recipients():
            if name in self._tools:
                raise InvalidArgument(
                    f"[chat] tools: expected different names, {name} is there twice; give one of "
                    "them another with Function(f, name=...)"
                )
            self._tools[name] = tool
        for description in declared.tools:
            schema = description.parameters
            if schema is None and isinstance(tool, Function):
                schema = tool.parameters
            if schema is not None:  # else the tool may take any text
                self.schemas[f"{declared.name}.{description.name}"] = schema
        known = self._namespaces.get(declared.name)
        self._namespaces[declared.name] = ToolNamespaceConfig(
            name=declared.name,
            description=declared.description or (known.description if known else None),
            tools=[*(known.tools if known else []), *declared.tools],
        )


class _Running:
    """One call in its thread."""

    def __init__(self, call: Message, tool: Tool | None, encoding: HarmonyEncoding) -> None:
        self.call = call
        self._tool = tool
        self._encoding = encoding
        self._done = threading.Event()
        self._messages: list[Message] = []
        self._error: str | None = None
        self._begin = time.perf_counter()
        self._end = self._begin

    def start(self, unknown: str) -> None:
        """Begins; a call to no tool is over at once, with `unknown` as its result."""
        if self._tool is None:
            self._error = unknown
            self._done.set()
            return
        context = contextvars.copy_context()
        name = f"gpt-oss-native {self.call.recipient}"
        threading.Thread(target=context.run, args=(self._work,), name=name, daemon=True).start()

    def _work(self) -> None:
        assert self._tool is not None
        try:
            value = self._tool.call(self.call)
            results = value if isinstance(value, list) else [str(value)]
            self._messages = [result_message(self.call, result) for result in results]
            if isinstance(value, list):  # of a tool's own making: it must be one that can be told
                for message in self._messages:
                    self._encoding.render(message)
        except GptOssError as error:  # written to be read
            self._error = f"Error: {error}"
        except BaseException as error:  # SystemExit of a tool must not pass for a result
            self._error = f"Error: {type(error).__name__}: {error}"
        self._end = time.perf_counter()
        self._done.set()

    def outcome(self, timeout: float | None, cancelled: Callable[[], bool]) -> Outcome:
        """Waits for the end."""
        while not self._done.wait(_POLL_S):
            if cancelled():
                raise TurnCancelledError
            waited = time.perf_counter() - self._begin
            if timeout is not None and waited > timeout and not self._done.is_set():
                self.interrupt()
                return self._as_outcome(
                    f"Error: the call did not return within {timeout:g} s", waited
                )
        return self._as_outcome(self._error, self._end - self._begin)

    def interrupt(self) -> None:
        """Asks a tool that still runs to return, where it can be asked."""
        interrupt = getattr(self._tool, "interrupt", None)
        if not self._done.is_set() and callable(interrupt):
            interrupt()

    def _as_outcome(self, error: str | None, seconds: float) -> Outcome:
        messages = self._messages if error is None else [result_message(self.call, error)]
        text = "".join(message.text for message in messages)
        return Outcome(
            messages, ToolResult(self.call.recipient or "", text, error is not None, seconds)
        )


def result_message(call: Message, result: str | Message) -> Message:
    """A result as the model reads it: from the tool, to the assistant, on the call's channel."""
    if isinstance(result, str):
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", call.recipient or "") or "tool"
        result = Message.from_author_and_content(Author.new(Role.TOOL, name), result)
    if not isinstance(result, Message):
        raise InvalidArgument(
            f"[chat] result of {call.recipient}: expected text or messages, got "
            f"{type(result).__name__}"
        )
    if result.channel is None:
        result = result.with_channel(call.channel or "commentary")
    return result if result.recipient else result.with_recipient("assistant")


def _description(raw: dict[str, Any]) -> ToolDescription:
    """A function as the OpenAI interfaces write it, flat or under ``function``."""
    inner = raw.get("function", raw)
    if raw.get("type", "function") != "function" or not isinstance(inner, dict):
        raise InvalidArgument(
            f"[chat] tools: expected a schema like {{'name': ..., 'description': ..., "
            f"'parameters': ...}}, got {raw!r}"
        )
    return ToolDescription.from_dict({**inner, "description": inner.get("description") or ""})
