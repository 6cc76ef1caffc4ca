"""What may be sampled next in a turn: well-formed headers, a reasoning budget, forced calls, JSON.

Headers follow `HeaderGrammar`, one for each choice of channels and recipients, taken anew at every
message: so a call can be required, or reasoning closed, without a word in the prompt. Texts that
have a schema (an answer with a response format, the arguments of a call) follow it from their
``<|message|>`` on; reasoning never does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from ..harmony.grammar import GrammarCursor, HeaderGrammar

if TYPE_CHECKING:
    from ..harmony import HarmonyEncoding
    from ..structured import Matcher
    from .reader import TurnReader

_log = logging.getLogger("gpt_oss_native")

Mask = npt.NDArray[np.bool_] | npt.NDArray[np.uint8] | None

#: Longest cycle, in tokens, that the loop guard sees.
LONGEST_CYCLE: Final = 64
_LOOK_EVERY: Final = 16
_CHANNELS: Final = ("analysis", "commentary", "final")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What holds for all turns of a chat.

    Attributes:
        encoding: the chat's harmony encoding.
        vocab_size: length of a mask.
        mask_headers: let only well-formed headers be sampled.
        reasoning: whether analysis may be written at all.
        arguments: makes the matcher of the arguments of a call from its recipient, or None.
    """

    encoding: HarmonyEncoding
    vocab_size: int
    mask_headers: bool = True
    reasoning: bool = True
    arguments: Callable[[str], Matcher | None]
    _grammars: dict[tuple[tuple[str, ...], tuple[str, ...]], HeaderGrammar] = field(
        default_factory=dict
    )

    def grammar(self, channels: tuple[str, ...], recipients: tuple[str, ...]) -> HeaderGrammar:
        """The grammar of these, made once; texts are guarded, too."""
        key = (channels, recipients)
        if key not in self._grammars:
            self._grammars[key] = HeaderGrammar(
                self.encoding,
                recipients=recipients,
                channels=channels,
                vocab_size=self.vocab_size,
                packed=True,
                guard_content=True,
            )
        return self._grammars[key]


class Steering:
    """Follows one turn: `mask` before each token, `accept` after it."""

    def __init__(
        self,
        rules: Rules,
        reader: TurnReader,
        *,
        allowed: tuple[str, ...],
        required: bool,
        max_calls: int | None,
        max_reasoning_tokens: int | None,
        loop_guard: int | None,
        answer: Callable[[], Matcher] | None = None,
    ) -> None:
        """``allowed`` may be called; with ``required`` one of them must, before any answer.
        ``answer`` makes the matcher of a final text."""
        self._rules = rules
        self._reader = reader
        self._allowed = allowed
        self._required = required and bool(allowed)
        self._answer = answer
        self._calls_left = max_calls
        self._budget = max_reasoning_tokens
        self._cycle = None if loop_guard is None else CycleCounter(loop_guard)
        self._reasoned = 0  # tokens of reasoning so far
        self._thought = False  # a message was finished in this turn
        self._spent = max_reasoning_tokens == 0  # no more reasoning
        self._thinking = False  # a text of reasoning is under way
        self._ends = (rules.encoding.end, rules.encoding.call)
        self._forced: list[int] = []
        self._cursor: GrammarCursor | None = None
        self._matcher: Matcher | None = None
        self.looping = False  # outside of reasoning: the answer must be ended
        self.out_of_calls = False  # the last call that may be made was just written

    def begin(self) -> None:
        """A generation begins, after ``<|start|>assistant``."""
        self._forced.clear()
        self._matcher = None
        self._thinking = False
        self.out_of_calls = False
        if self._cycle is not None:
            self._cycle.reset()
        self._cursor = None
        if self._rules.mask_headers or self._required:
            self._cursor = self._grammar(after_call=False).cursor()
        elif self._spent:
            self._forced = self._encode("<|channel|>final<|message|>")

    def mask(self) -> Mask:
        """Which tokens may come next, packed bits; None where every token may."""
        if self._forced:
            only = np.zeros((self._rules.vocab_size + 7) // 8, dtype=np.uint8)
            only[self._forced[0] >> 3] = 1 << (self._forced[0] & 7)
            return only
        if self._matcher is not None:
            bits = self._matcher.mask()
            if bits is not None:
                return bits
            _log.warning("a schema could not be followed further: %s", self._matcher.error)
            self._matcher = None
        return None if self._cursor is None else self._cursor.mask()

    def accept(self, token: int) -> None:
        """Takes a token that the reader has taken before."""
        if self._cursor is not None:
            self._cursor.accept(token)
        if self._forced:
            self._forced.pop(0)
        reader = self._reader
        looping = self._cycle is not None and self._cycle.push(token)
        if reader.opened:
            channel, recipient = reader.channel, reader.recipient
            self._matcher = self._matcher_of(channel, recipient)
            self._thinking = channel == "analysis" and recipient is None
        elif not reader.in_text:
            self._matcher = None
            self._thinking = False
            if token in self._ends:
                self._message_ended()
            return
        elif self._thinking:
            self._reasoned += 1
        elif self._matcher is not None:
            self._matcher.accept(token)
        if self._forced:
            return
        if not self._thinking:
            self.looping = looping
        elif looping or (self._budget is not None and self._reasoned >= self._budget):
            self._close_reasoning()

    def _message_ended(self) -> None:
        messages = self._reader.messages
        is_call = bool(messages) and messages[-1].recipient not in (None, "all")
        if is_call:
            self._required = False
            if self._calls_left is not None:
                self._calls_left -= 1
                self.out_of_calls = self._calls_left <= 0
        self._thought = True
        self._cursor = None
        if self._rules.mask_headers or self._required:
            self._cursor = self._grammar(after_call=is_call).cursor(role_open=False)

    def _matcher_of(self, channel: str | None, recipient: str | None) -> Matcher | None:
        if recipient is not None:
            return self._rules.arguments(recipient)
        is_answer = (channel or "final") == "final"
        return self._answer() if is_answer and self._answer is not None else None

    def _close_reasoning(self) -> None:
        """Ends the analysis; the answer comes next, or a call where one may be made."""
        self._spent = True
        if self._cycle is not None:
            self._cycle.reset()
        rest = "" if self._cursor is not None else "<|start|>assistant<|channel|>final<|message|>"
        self._forced = self._encode(f"<|end|>{rest}")

    def _encode(self, text: str) -> list[int]:
        return self._rules.encoding.encode(text, allowed_special="all")

    def _grammar(self, *, after_call: bool) -> HeaderGrammar:
        """What the next message may be. After a call without its ``<|call|>`` that is a call."""
        allowed = () if self._calls_left is not None and self._calls_left <= 0 else self._allowed
        thinks = self._rules.reasoning and not self._spent
        if after_call and allowed:
            return self._rules.grammar((), allowed)
        if self._required and allowed:
            return self._rules.grammar(
                ("analysis",) if thinks and not self._thought else (), allowed
            )
        if self._spent:
            return self._rules.grammar(("final",), allowed)
        return self._rules.grammar(_CHANNELS if thinks else _CHANNELS[1:], allowed)


class CycleCounter:
    """Sees when the last tokens are one cycle of up to `LONGEST_CYCLE` over and over."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._recent: list[int] = []

    def reset(self) -> None:
        """Forgets what came."""
        self._recent.clear()

    def push(self, token: int) -> bool:
        """Whether the last ``limit`` tokens repeat a cycle; looked at every few tokens."""
        recent = self._recent
        recent.append(token)
        if len(recent) < self._limit or len(recent) % _LOOK_EVERY:
            return False
        recent = self._recent = recent[-self._limit :]
        return any(
            recent[-1 - period] == token and recent[period:] == recent[:-period]
            for period in range(1, min(LONGEST_CYCLE, self._limit // 2) + 1)
        )
