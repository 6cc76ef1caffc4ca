"""Conversations: questions in, typed events out, over one session that keeps the exact tokens.

What was sampled is never rendered again. A chat knows the tokens that the next prompt must begin
with; the session goes back to where it stops agreeing with them (the start of the last answer, when
its reasoning is dropped) and forwards only what follows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .errors import InvalidArgument
from .sampling import Sampling, Token
from .turn import (
    Delta,
    Done,
    Event,
    Reply,
    Timings,
    ToolCall,
    TurnReader,
    Usage,
    kept_tokens,
    stop_strings,
)

if TYPE_CHECKING:
    from types import TracebackType

    from .harmony import HarmonyEncoding, Message
    from .model import Model
    from .session import Session

__all__ = ["Chat", "Delta", "Done", "Event", "Reply", "Timings", "ToolCall", "Usage"]

_ENDOFTEXT = "<|endoftext|>"  # ends an answer like <|return|> in the published generation_config


class Chat:
    """A conversation with a model; `Model.chat` makes one. One turn at a time.

    At the next question the reasoning of the turn before is dropped, as the models were trained,
    unless ``keep_reasoning``. A turn that was stopped or ran out of budget keeps the answer as far
    as it came. A question that fails or is stopped before its first token leaves no trace.
    """

    def __init__(
        self,
        model: Model,
        *,
        instructions: str | None = None,
        reasoning: str = "medium",
        keep_reasoning: bool = False,
        sampling: Sampling | None = None,
        max_new_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        conversation_date: str | None = None,
        max_tokens: int | None = None,
    ) -> None:
        """Renders the opening messages; nothing is forwarded before the first question.

        Args:
            model: what answers.
            instructions: the developer message ("system prompt" elsewhere).
            reasoning: effort, "low", "medium" or "high".
            keep_reasoning: keep analysis in the context for the following turns.
            sampling: how tokens are chosen; default: temperature 1.
            max_new_tokens: most tokens of one turn, reasoning included; None: the context.
            stop: strings that end the answer; neither they nor what follows is part of ``final``.
            conversation_date: "YYYY-MM-DD", shown to the model; absent unless given, so that
                equal questions have equal prompts.
            max_tokens: most tokens of the conversation; None: the model's context.

        Raises:
            InvalidArgument: an unknown effort, an empty stop string, a size out of range.
            CheckpointError: the model has no tokenizer.
        """
        from .harmony import (
            Conversation,
            DeveloperContent,
            Message,
            ReasoningEffort,
            Role,
            SystemContent,
        )

        self._encoding: HarmonyEncoding = model.harmony
        self._sampling = sampling
        self._max_new_tokens = max_new_tokens
        self._keep_reasoning = keep_reasoning
        self._stop = (stop,) if isinstance(stop, str) else tuple(stop)
        stop_strings(self._stop)  # fails now and not at the first question
        system = SystemContent.new().with_reasoning_effort(ReasoningEffort(reasoning))
        if conversation_date is not None:
            system = system.with_conversation_start_date(conversation_date)
        self._messages = [Message.from_role_and_content(Role.SYSTEM, system)]
        if instructions is not None:
            developer = DeveloperContent.new().with_instructions(instructions)
            self._messages.append(Message.from_role_and_content(Role.DEVELOPER, developer))
        opening = Conversation.from_messages(self._messages)
        # What the next prompt begins with; the session is made to agree with it then.
        self._history = self._encoding.render_conversation(opening)
        self._answer = [self._encoding.start, *self._encoding.encode_text(Role.ASSISTANT.value)]
        self._stop_tokens = _turn_ends(self._encoding)
        self._running: Iterator[Event] | None = None
        self._session = model.session(max_tokens=max_tokens)

    @property
    def session(self) -> Session:
        """The session underneath, with the exact tokens; the last turn's reasoning leaves it at the
        next question."""
        return self._session

    @property
    def messages(self) -> list[Message]:
        """Every message of the conversation, reasoning included, oldest first; a copy."""
        return list(self._messages)

    def stream(
        self,
        question: str,
        *,
        sampling: Sampling | None = None,
        max_new_tokens: int | None = None,
        logprobs: int | None = None,
    ) -> Iterator[Event]:
        """Asks, and yields `Delta` and `ToolCall` as they come, then one `Done`.

        Closing the iterator stops the answer; so does asking again. What was yielded stays in the
        conversation. ``sampling`` and ``max_new_tokens`` take the place of the chat's own for this
        turn; ``logprobs`` asks for `Done.logprobs` with so many alternatives.

        Raises InvalidArgument for an empty question, one that does not fit the context, or options
        out of range; the chat stays as it was.
        """
        from .harmony import Message, Role

        if not isinstance(question, str) or not question:
            raise InvalidArgument(
                f"[chat] question: expected text of one character or more, got {question!r}"
            )
        self._end_running()
        message = Message.from_role_and_content(Role.USER, question)
        prompt = [*self._history, *self._encoding.render(message), *self._answer]
        if len(prompt) >= self._session.max_tokens:
            raise InvalidArgument(
                f"[chat] expected the conversation to leave room for an answer, but with this "
                f"question it has {len(prompt)} tokens and its context "
                f"{self._session.max_tokens}; ask less at once or begin another chat"
            )
        options = {
            "sampling": self._sampling if sampling is None else sampling,
            "max_new_tokens": self._max_new_tokens if max_new_tokens is None else max_new_tokens,
            "logprobs": logprobs,
        }
        self._running = self._turn(message, prompt, options)
        return self._running

    def ask(
        self,
        question: str,
        *,
        sampling: Sampling | None = None,
        max_new_tokens: int | None = None,
        logprobs: int | None = None,
    ) -> Reply:
        """`stream`, collected. A budget used up in reasoning gives an empty ``final`` and
        ``finish_reason`` "length", no exception."""
        texts: dict[str, list[str]] = {"final": [], "analysis": [], "commentary": []}
        calls: list[ToolCall] = []
        events = self.stream(
            question, sampling=sampling, max_new_tokens=max_new_tokens, logprobs=logprobs
        )
        for event in events:
            if isinstance(event, Delta):
                texts.setdefault(event.channel, []).append(event.delta)
            elif isinstance(event, ToolCall):
                calls.append(event)
            elif isinstance(event, Done):
                done = event
        return Reply(
            final="".join(texts["final"]),
            analysis="".join(texts["analysis"]),
            commentary="".join(texts["commentary"]),
            tool_calls=tuple(calls),
            finish_reason=done.finish_reason,
            usage=done.usage,
            timings=done.timings,
            messages=done.messages,
            tokens=done.tokens,
            logprobs=done.logprobs,
        )

    def close(self) -> None:
        """Releases the session; later questions raise InvalidArgument."""
        self._end_running()
        self._session.close()

    def __enter__(self) -> Chat:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _end_running(self) -> None:
        running, self._running = self._running, None
        try:
            if running is not None:
                running.close()  # type: ignore[attr-defined]
        except ValueError:  # "generator already executing"
            self._running = running
            raise InvalidArgument(
                "[chat] expected one question at a time, another thread's is being answered; "
                "use one chat a thread"
            ) from None

    def _turn(
        self, question: Message, prompt: list[int], options: dict[str, Any]
    ) -> Iterator[Event]:
        session = self._session
        start = first = last = time.perf_counter()
        shared = _common_prefix(session.tokens, prompt)
        if shared < session.position:
            session.rewind(shared)
        cached = min(session.cached, shared)
        reader = TurnReader(self._encoding, stop=self._stop)
        logprobs: list[Token] = []
        generation = session.generate(prompt[shared:], stop_tokens=self._stop_tokens, **options)
        try:
            with generation:
                for token in generation:
                    last = time.perf_counter()
                    if not reader.tokens:
                        first = last
                    if isinstance(token, Token):
                        logprobs.append(token)
                        token = token.id
                    yield from reader.push(token)
                    if reader.stopped:
                        break
            yield from reader.finish()
        finally:
            self._settle(question, prompt, reader)
        count = len(reader.tokens)
        usage = Usage(
            prompt_tokens=len(prompt),
            cached_tokens=cached,
            completion_tokens=count,
            reasoning_tokens=reader.reasoning_tokens(),
        )
        rate = (count - 1) / (last - first) if count > 1 and last > first else 0.0
        yield Done(
            finish_reason=reader.finish_reason(generation.finish_reason),
            usage=usage,
            timings=Timings(
                prompt_s=first - start, completion_s=last - first, tokens_per_second=rate
            ),
            messages=tuple(reader.messages),
            tokens=tuple(reader.tokens),
            logprobs=tuple(logprobs),
        )

    def _settle(self, question: Message, prompt: list[int], reader: TurnReader) -> None:
        """Takes what was sampled into the conversation; forwards nothing."""
        sampled = self._session.tokens[len(prompt) :]
        if self._session.position < len(prompt) or not sampled:
            return  # stopped before the first token: as if never asked
        if not reader.finished:  # closed or interrupted, perhaps between two tokens: read it again
            reader = TurnReader(self._encoding)
            for token in sampled:
                reader.push(token)
            reader.finish()
        self._messages += [question, *reader.messages[: reader.num_whole]]
        kept = kept_tokens(
            self._encoding, self._answer, reader, keep_reasoning=self._keep_reasoning
        )
        self._history = prompt[: len(prompt) - len(self._answer)] + kept


def _turn_ends(encoding: HarmonyEncoding) -> list[int]:
    ends = encoding.stop_tokens_for_assistant_actions()
    if _ENDOFTEXT in encoding.special_tokens_set:
        ends.append(encoding.tokenizer.encode_single_token(_ENDOFTEXT))
    return ends


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens both begin with."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))
