"""What a turn is told as: typed events, then one `Done`; or a `Reply` with all of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..sampling import Token

if TYPE_CHECKING:
    from ..harmony import Message

FinishReason = Literal["stop", "length", "tool_calls", "repetition"]


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens of one turn. ``prompt_tokens`` is the whole context that the turn began with,
    ``cached_tokens`` the part of it that was not forwarded again, ``completion_tokens`` all that
    was sampled, ``reasoning_tokens`` what of that was analysis, ``tool_tokens`` what tools
    returned, with headers."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    tool_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Seconds of one turn: until the first sampled token, from it to the last without the time in
    tools, and in tools."""

    prompt_s: float
    completion_s: float
    tokens_per_second: float  # after the first; 0 where there was only one
    tools_s: float = 0.0


@dataclass(frozen=True)
class Delta:
    """More text on a channel: "analysis", "commentary" (what the model says before a call) or
    "final"."""

    channel: str
    delta: str


@dataclass(frozen=True)
class ToolCall:
    """The model called ``name`` (such as "functions.lookup") with ``arguments``, its text;
    ``parsed`` are the arguments as an object where they are one."""

    channel: ClassVar[None] = None
    delta: ClassVar[str] = ""
    name: str
    arguments: str
    parsed: dict[str, Any] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class ToolResult:
    """What a call gave back to the model; ``is_error`` where that is why it failed."""

    channel: ClassVar[None] = None
    delta: ClassVar[str] = ""
    name: str
    text: str
    is_error: bool = False
    seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True, kw_only=True)
class Done:
    """The turn is over.

    Attributes:
        finish_reason: "stop"; "length", the budget or the context is used up, ``final`` may be cut
            or empty; "tool_calls", the model waits for results (`Chat.stream_results`);
            "repetition", the loop guard ended the answer.
        usage: token counts.
        timings: seconds.
        messages: what the model wrote, and what tools returned, parsed.
        tokens: what the model wrote, as sampled.
        logprobs: a `Token` for each of ``tokens``, where asked for.
    """

    channel: ClassVar[None] = None
    delta: ClassVar[str] = ""
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    messages: tuple[Message, ...]
    tokens: tuple[int, ...]
    logprobs: tuple[Token, ...] = ()


#: What `Chat.stream` yields. Each has ``channel`` and ``delta``, None and "" where it is no text.
Event = Delta | ToolCall | ToolResult | Done


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One whole turn; ``final`` is the answer, ``analysis`` the reasoning. See `Done`.

    ``parsed`` is the answer as the ``response_format`` asks: plain data for a schema, an
    instance for a pydantic model; None without one, and where the answer was cut.
    """

    final: str
    analysis: str
    commentary: str
    tool_calls: tuple[ToolCall, ...]
    tool_results: tuple[ToolResult, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    messages: tuple[Message, ...]
    tokens: tuple[int, ...]
    logprobs: tuple[Token, ...]
    parsed: Any = None

    @classmethod
    def of(cls, events: Sequence[Event], *, parse: Callable[[str], Any] | None) -> Reply:
        """The events of one turn, which end with `Done`; ``parse`` makes ``parsed`` of the
        answer."""
        texts: dict[str, list[str]] = {"final": [], "analysis": [], "commentary": []}
        for event in events:
            if isinstance(event, Delta):
                texts.setdefault(event.channel, []).append(event.delta)
        done = events[-1]
        assert isinstance(done, Done)
        final = "".join(texts["final"])
        return cls(
            final=final,
            analysis="".join(texts["analysis"]),
            commentary="".join(texts["commentary"]),
            tool_calls=tuple(e for e in events if isinstance(e, ToolCall)),
            tool_results=tuple(e for e in events if isinstance(e, ToolResult)),
            finish_reason=done.finish_reason,
            usage=done.usage,
            timings=done.timings,
            messages=done.messages,
            tokens=done.tokens,
            logprobs=done.logprobs,
            parsed=None if parse is None else parse(final),
        )
