"""One turn: generations and tools by turns until the answer, over the chat's session.

Everything after the question is one run of tokens that only grows: what the model samples, then
what tools return, then what it samples next. So nothing is forwarded twice inside a turn.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..sampling import Sampling, Token
from .events import Done, Event, FinishReason, Timings, Usage
from .reader import TurnReader
from .steering import Rules, Steering
from .toolbox import Toolbox, TurnCancelledError, result_message

if TYPE_CHECKING:
    from ..harmony import Message
    from ..session import Session
    from .response_format import ResponseFormat

#: Tokens that a result leaves for what the model writes after it.
_ROOM = 64
# A session keeps 16 marks, one for each generation; before the turn's first is dropped, a fork is
# left there, which shares what it holds.
_GENERATIONS_BEFORE_ANCHOR = 12


@dataclass(frozen=True, kw_only=True)
class TurnOptions:
    """What may change from turn to turn; `Chat` explains each."""

    sampling: Sampling | None
    max_new_tokens: int | None
    max_reasoning_tokens: int | None
    max_tool_calls: int
    tool_timeout: float | None
    loop_guard: int | None
    allowed: tuple[str, ...]
    required: bool
    stop: tuple[str, ...]
    logprobs: int | None
    format: ResponseFormat | None


class Turn:
    """Runs one turn; `run` starts it, and goes on with it once results are there."""

    def __init__(
        self,
        session: Session,
        rules: Rules,
        toolbox: Toolbox,
        *,
        asked: Sequence[Message],
        prompt: list[int],
        answer: list[int],
        stop_tokens: list[int],
        options: TurnOptions,
    ) -> None:
        """``asked`` are the messages that are new, ``prompt`` all tokens before the first sampled
        one, ``answer`` those that open a message of the assistant."""
        self.asked = asked
        self.format = options.format
        self.prompt = prompt
        self.cancelled = threading.Event()
        self.due: list[Message] = []  # calls whose results the caller must give
        self.anchor: Session | None = None  # a fork where the turn began, in a turn of many calls
        self.reader = TurnReader(rules.encoding, stop=options.stop)
        self._session = session
        self._encoding = rules.encoding
        self._toolbox = toolbox
        self._answer = answer
        self._stop_tokens = stop_tokens
        self._options = options
        self._steering = Steering(
            rules,
            self.reader,
            allowed=options.allowed,
            required=options.required,
            max_calls=options.max_tool_calls,
            max_reasoning_tokens=options.max_reasoning_tokens,
            loop_guard=options.loop_guard,
            answer=None if options.format is None else options.format.matcher,
        )
        self._sampled: list[int] = []
        self._logprobs: list[Token] = []
        self._num_calls = 0
        self._num_generations = 0
        self._tool_tokens = 0
        self._tools_s = 0.0
        self._cached = 0

    def run(self, results: Sequence[Message] = ()) -> Iterator[Event]:
        """The events of the turn; ``results`` go on with one that waits for them."""
        self.cancelled.clear()
        self._start = self._first = self._last = time.perf_counter()
        self._run_begin, self._tools_s = len(self._sampled), 0.0
        tokens = self._result_tokens(results) if results else self._open()
        self.due = []
        self.reader.finished = False
        reason: FinishReason | None = "length"
        while tokens is not None:
            reason = yield from self._generate(tokens)
            if reason is not None:
                break
            given = yield from self._run_tools()
            if given is None:
                reason = "tool_calls"
                break
            reason = "length"
            tokens = self._result_tokens(given)
        if self.cancelled.is_set():
            return
        yield from self.reader.finish()
        if reason == "stop" or reason is None:
            reason = self.reader.finish_reason("stop")
        yield self._done(reason)

    def _open(self) -> list[int]:
        """Takes the session back to what it has in common with the prompt; returns the rest."""
        session = self._session
        shared = common_prefix(session.tokens, self.prompt)
        if shared < session.position:
            session.rewind(shared)
        self._cached = min(session.cached, shared)
        return self.prompt[shared:]

    def _generate(self, tokens: list[int]) -> Generator[Event, None, FinishReason | None]:
        """One generation; returns why the turn ends with it, or None where calls are due."""
        left = self._left()
        if left == 0:
            return "length"
        reader, steering, options = self.reader, self._steering, self._options
        steering.begin()
        self._num_generations += 1
        if self._num_generations == _GENERATIONS_BEFORE_ANCHOR:
            self.anchor = self._session.fork()
            self.anchor.rewind(len(self.prompt))
        generation = self._session.generate(
            tokens,
            options.sampling,
            max_new_tokens=left,
            stop_tokens=self._stop_tokens,
            logprobs=options.logprobs,
            mask=steering.mask,
        )
        if self._sampled:
            reader.give(tokens)
        with generation:
            for token in generation:
                self._take_time()
                if isinstance(token, Token):
                    self._logprobs.append(token)
                    token = token.id
                self._sampled.append(token)
                events = reader.push(token)
                steering.accept(token)
                yield from events
                if reader.stopped or steering.looping or self.cancelled.is_set():
                    break
                if steering.out_of_calls and token == self._encoding.end:
                    return None
        if steering.looping:
            return "repetition"
        if reader.stopped or self.cancelled.is_set():
            return "stop"
        if generation.finish_reason != "stop":
            return "length"
        return None if reader.calls_due() else "stop"

    def _take_time(self) -> None:
        self._last = time.perf_counter()
        if len(self._sampled) == self._run_begin:
            self._first = self._last

    def _left(self) -> int | None:
        most = self._options.max_new_tokens
        return None if most is None else max(most - len(self._sampled), 0)

    def _run_tools(self) -> Generator[Event, None, list[Message] | None]:
        """Runs the calls that are due; returns the results, or None where the caller must."""
        due, options = self.reader.calls_due(), self._options
        self._num_calls += len(due)
        if self._num_calls > options.max_tool_calls or not self._toolbox.runs(due):
            self.due = due
            return None
        begin = time.perf_counter()
        try:
            outcomes = self._toolbox.run(
                due, timeout=options.tool_timeout, cancelled=self.cancelled.is_set
            )
        except TurnCancelledError:
            return None
        finally:
            self._tools_s += time.perf_counter() - begin
        for outcome in outcomes:
            yield outcome.event
        return [message for outcome in outcomes for message in outcome.messages]

    def _result_tokens(self, results: Sequence[Message]) -> list[int] | None:
        """Results and the opening of the next message; None where they do not fit the context.

        A result that is too long is replaced by a notice of that.
        """
        room = self._session.max_tokens - self._session.position - len(self._answer) - _ROOM
        tokens: list[int] = []
        for message in results:
            rendered = self._encoding.render(message)
            if len(tokens) + len(rendered) > room:
                notice = (
                    f"Error: the result has {len(rendered)} tokens and does not fit what is left "
                    f"of the context, {max(room - len(tokens), 0)}; ask for less"
                )
                rendered = self._encoding.render(result_message(_call_of(message), notice))
            tokens += rendered
        self._tool_tokens += len(tokens)
        tokens += self._answer
        return tokens if self._session.position + len(tokens) < self._session.max_tokens else None

    def _done(self, reason: FinishReason) -> Done:
        count = len(self._sampled) - self._run_begin
        seconds = self._last - self._first - self._tools_s
        return Done(
            finish_reason=reason,
            usage=Usage(
                prompt_tokens=len(self.prompt),
                cached_tokens=self._cached,
                completion_tokens=len(self._sampled),
                reasoning_tokens=self.reader.reasoning_tokens(),
                tool_tokens=self._tool_tokens,
            ),
            timings=Timings(
                prompt_s=self._first - self._start,
                completion_s=max(seconds, 0.0),
                tokens_per_second=(count - 1) / seconds if count > 1 and seconds > 0 else 0.0,
                tools_s=self._tools_s,
            ),
            messages=tuple(self.reader.messages),
            tokens=tuple(self._sampled),
            logprobs=tuple(self._logprobs),
        )


def _call_of(result: Any) -> Any:
    """A call that would have had this result."""
    from ..harmony import Message, Role

    call = Message.from_role_and_content(Role.ASSISTANT, "")
    call.recipient, call.channel = result.author.name, result.channel
    return call


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens both begin with."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))
