"""Tokens of one turn in, typed events out, and what stays of the turn after it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .events import Delta, Event, FinishReason, ToolCall

if TYPE_CHECKING:
    from ..detokenizer import StopStrings
    from ..harmony import HarmonyEncoding, Message


class TurnReader:
    """Tokens in, events out: the deltas of a message are its text, none lost or twice.

    One reader takes a whole turn: what the model sampled (`push`) and what tools returned (`give`).
    """

    def __init__(self, encoding: HarmonyEncoding, *, stop: Sequence[str] = ()) -> None:
        from ..harmony import Role, StreamableParser, StreamState

        self._assistant = Role.ASSISTANT
        self._header, self._content = StreamState.HEADER, StreamState.CONTENT
        self._parser = StreamableParser(encoding, Role.ASSISTANT)
        self._stops = stop_strings(stop)
        self._num_messages = 0  # finished ones, whose events are out
        self._sent = 0  # characters of the message under way that are out
        self.tokens: list[int] = []
        self.messages: list[Message] = []
        self.num_whole = 0  # of messages; one more may be what was left of a header cut short
        self.stopped = False  # by a stop string
        self.finished = False
        self.in_text = False  # a text is under way
        self.opened = False  # the last token began it

    @property
    def channel(self) -> str | None:
        """The channel of the text under way."""
        return self._parser.current_channel

    @property
    def recipient(self) -> str | None:
        """Whom the text under way calls; None where it is no call."""
        recipient = self._parser.current_recipient
        return None if recipient == "all" else recipient

    def push(self, token: int) -> list[Event]:
        """The events that `token` brings."""
        parser = self._parser
        parser.process(token)
        self.tokens.append(token)
        before, self.in_text = self.in_text, parser.state is self._content
        self.opened = self.in_text and not before
        delta = parser.last_content_delta
        if delta is None:
            return self._finished_messages()
        if parser.current_recipient not in (None, "all"):
            return []  # a call comes whole
        self._sent += len(delta)
        return self._text(parser.current_role, parser.current_channel, delta)

    def give(self, tokens: Iterable[int]) -> None:
        """Takes what the model did not write: results of tools, and the header after them."""
        for token in tokens:
            self._parser.process(token)
            self.tokens.append(token)
        self.messages = self._parser.messages
        self._num_messages = len(self.messages)
        self._sent = 0
        self.in_text = False

    def finish(self) -> list[Event]:
        """No more tokens: the events of what was under way."""
        in_header = self._parser.state is self._header and self._num_messages > 0
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
        """Tokens of the model's analysis messages, headers included."""
        spans = (
            m.span
            for m in self.messages
            if m.channel == "analysis" and m.author.role == self._assistant and m.span
        )
        return sum(end - begin for begin, end in spans)

    def calls_due(self) -> list[Message]:
        """The calls after which nothing was answered yet, in order; none after a final text."""
        due: list[Message] = []
        for message in reversed(self.messages):
            if message.author.role != self._assistant:
                break
            if message.recipient not in (None, "all"):
                if message.end is not None:
                    due.append(message)
            elif (message.channel or "final") == "final" and message.text:
                return []
        return due[::-1]

    def _finished_messages(self) -> list[Event]:
        events: list[Event] = []
        found = self._parser.messages
        self.messages = found
        for message in found[self._num_messages :]:
            text, sent = message.text, self._sent
            self._sent = 0
            role, channel = message.author.role, message.channel
            if message.recipient not in (None, "all"):
                if message.end is not None and role == self._assistant:  # one cut calls nothing
                    events.append(ToolCall(message.recipient or "", text, as_object(text)))
                continue
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


def as_object(text: str) -> dict[str, Any] | None:
    """The arguments of a call as a dictionary; None where the text is no JSON object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def kept_tokens(
    encoding: HarmonyEncoding, answer: list[int], reader: TurnReader, *, keep_reasoning: bool
) -> list[int]:
    """What stays of a finished turn, as sampled: its messages from ``<|start|>``, each ended.

    `answer` are the tokens that opened the turn. Analysis, and calls and results on its channel,
    are left out unless `keep_reasoning`. ``<|return|>`` reads ``<|end|>`` in a history;
    ``<|call|>`` stays. The last message, when it was cut, is ended where it stands; a call or a
    header cut short is left out.
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
    """A matcher of these strings, None for none. Raises InvalidArgument for an empty one."""
    if not strings:
        return None
    from ..detokenizer import StopStrings

    return StopStrings(strings)
