"""One turn of the assistant: sampled tokens in, typed events out, and what stays of it after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from .sampling import Token

if TYPE_CHECKING:
    from .detokenizer import StopStrings
    from .harmony import HarmonyEncoding, Message

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens of one turn. ``prompt_tokens`` is the whole context that the answer began with,
    ``cached_tokens`` the part of it that was not forwarded again, ``completion_tokens`` all that
    was sampled, ``reasoning_tokens`` what of that was analysis."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Seconds of one turn: until the first sampled token, and from it to the last."""

    prompt_s: float
    completion_s: float
    tokens_per_second: float  # after the first; 0 where there was only one


@dataclass(frozen=True)
class Delta:
    """More text on a channel: "analysis", "commentary" or "final"."""

    channel: str
    delta: str


@dataclass(frozen=True)
class ToolCall:
    """The model called ``name`` (such as "functions.lookup") with ``arguments``, its text."""

    channel: ClassVar[None] = None
    delta: ClassVar[str] = ""
    name: str
    arguments: str


@dataclass(frozen=True, kw_only=True)
class Done:
    """The turn is over.

    Attributes:
        finish_reason: "stop"; "length", the budget or the context is used up, ``final`` may be cut
            or empty; "tool_calls", the model waits for a result.
        usage: token counts.
        timings: seconds.
        messages: what the model wrote, parsed.
        tokens: the same as sampled.
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
Event = Delta | ToolCall | Done


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One whole turn; ``final`` is the answer, ``analysis`` the reasoning. See `Done`."""

    final: str
    analysis: str
    commentary: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    messages: tuple[Message, ...]
    tokens: tuple[int, ...]
    logprobs: tuple[Token, ...]


class TurnReader:
    """Sampled tokens in, events out: the deltas of a message are its text, none lost or twice."""

    def __init__(self, encoding: HarmonyEncoding, *, stop: Sequence[str] = ()) -> None:
        from .harmony import Role, StreamableParser

        self._assistant = Role.ASSISTANT
        self._parser = StreamableParser(encoding, Role.ASSISTANT)
        self._stops = stop_strings(stop)
        self._num_messages = 0  # finished ones, whose events are out
        self._sent = 0  # characters of the message under way that are out
        self.tokens: list[int] = []
        self.messages: list[Message] = []
        self.num_whole = 0  # of messages; one more may be what was left of a header cut short
        self.stopped = False  # by a stop string
        self.finished = False

    def push(self, token: int) -> list[Event]:
        """The events that `token` brings."""
        parser = self._parser
        parser.process(token)
        self.tokens.append(token)
        delta = parser.last_content_delta
        if delta is None:
            return self._finished_messages()
        if parser.current_recipient not in (None, "all"):
            return []  # a call comes whole
        self._sent += len(delta)
        return self._text(parser.current_role, parser.current_channel, delta)

    def finish(self) -> list[Event]:
        """No more tokens: the events of what was under way."""
        from .harmony import StreamState

        in_header = self._parser.state is StreamState.HEADER and self._num_messages > 0
        self._parser.process_eos()
        self.messages = self._parser.messages
        self.num_whole = self._num_messages if in_header else len(self.messages)
        self.finished = True
        return [] if in_header else self._finished_messages()

    def finish_reason(self, reason: str | None) -> FinishReason:
        """Why the turn ended, from why the generation did."""
        if self.stopped:
            return "stop"
        if self.messages and self.messages[-1].end == "<|call|>":
            return "tool_calls"
        return "stop" if reason == "stop" else "length"

    def reasoning_tokens(self) -> int:
        """Tokens of analysis messages, headers included."""
        spans = (m.span for m in self.messages if m.channel == "analysis" and m.span)
        return sum(end - begin for begin, end in spans)

    def _finished_messages(self) -> list[Event]:
        events: list[Event] = []
        found = self._parser.messages
        self.messages = found
        for message in found[self._num_messages :]:
            text, sent = message.text, self._sent
            self._sent = 0
            if message.recipient not in (None, "all"):
                if message.end is not None:  # a call cut short calls nothing
                    events.append(ToolCall(message.recipient or "", text))
                continue
            role, channel = message.author.role, message.channel
            events += self._text(role, channel, text[sent:], last=True)
        self._num_messages = len(found)
        return events

    def _text(
        self, role: Any, channel: str | None, text: str, *, last: bool = False
    ) -> list[Event]:
        """`text` as an event; what role or channel the model invents is not shown as an answer."""
        if role != self._assistant:
            return []
        channel = channel or "final"
        if channel == "final" and self._stops is not None:
            text, self.stopped = self._stops.push(text)
            if last:
                text += self._stops.flush()
        return [Delta(channel, text)] if text else []


def kept_tokens(
    encoding: HarmonyEncoding, answer: list[int], reader: TurnReader, *, keep_reasoning: bool
) -> list[int]:
    """What stays of a finished turn, as sampled: its messages from ``<|start|>``, each ended.

    `answer` are the tokens that opened the turn. Analysis is left out unless `keep_reasoning`.
    ``<|return|>`` reads ``<|end|>`` in a history; ``<|call|>`` stays. The last message, when it was
    cut, is ended where it stands; a call or a header cut short is left out.
    """
    out: list[int] = []
    messages = reader.messages[: reader.num_whole]
    for index, message in enumerate(messages):
        if message.span is None or (message.channel == "analysis" and not keep_reasoning):
            continue
        begin, end = message.span
        tokens = reader.tokens[begin:end]
        cut = message.end is None and index == len(messages) - 1
        if cut and (message.recipient not in (None, "all") or not message.text):
            continue
        if begin == 0 or (tokens[0] != encoding.start and not keep_reasoning):
            out += answer
        if message.end is not None:
            while encoding.special_ids.get(tokens[-1]) != message.end:
                tokens.pop()  # a stray end, or a header that was begun and left
            if tokens[-1] != encoding.call:
                tokens[-1] = encoding.end
        elif cut or not keep_reasoning:
            tokens.append(encoding.end)
        # Else the model began the next message without ending this one: nothing is forwarded again.
        out += tokens
    return out


def stop_strings(strings: Sequence[str]) -> StopStrings | None:
    if not strings:
        return None
    from .detokenizer import StopStrings

    return StopStrings(strings)
