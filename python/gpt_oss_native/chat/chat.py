"""`Chat`: a conversation with a model, its tools, and the exact tokens of both.

What was sampled is never rendered again. A chat knows the tokens that the next prompt must begin
with; the session goes back to where it stops agreeing with them (the start of the last answer, when
its reasoning is dropped) and forwards only what follows.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Unpack

from ..errors import InvalidArgument
from ..sampling import Sampling
from . import saved
from .events import Event, Reply
from .opening import Opening
from .options import AskOptions, TurnDefaults
from .reader import TurnReader, kept_tokens, stop_strings
from .toolbox import result_message
from .turn import Turn, common_prefix

if TYPE_CHECKING:
    from types import TracebackType

    from ..harmony import HarmonyEncoding, Message
    from ..model import Model
    from ..session import Session

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
        tools: Sequence[Any] = (),
        tool_choice: str = "auto",
        response_format: Any = None,
        sampling: Sampling | None = None,
        max_new_tokens: int | None = None,
        max_reasoning_tokens: int | None = None,
        max_tool_calls: int = 32,
        tool_timeout: float | None = 180.0,
        loop_guard: int | None = 512,
        mask_headers: bool = True,
        stop: str | Sequence[str] = (),
        conversation_date: str | None = None,
        max_tokens: int | None = None,
    ) -> None:
        """Renders the opening messages; nothing is forwarded before the first question.

        Args:
            model: what answers.
            instructions: the developer message ("system prompt" elsewhere).
            reasoning: effort, "low", "medium" or "high"; "none" answers without analysis.
            keep_reasoning: keep analysis in the context for the following turns.
            tools: what the model may call: Python functions (their signature and docstring are
                what it is told), `Function`, objects of the shape `tools.protocol.Tool`, or schemas
                without a function, as dictionaries or harmony's classes.
            tool_choice: "auto", "none", "required" (a call comes before any answer) or the name of
                the tool that must be called.
            response_format: a JSON schema or a pydantic model that every answer follows (extra
                ``grammar``); reasoning is free.
            sampling: how tokens are chosen; default: temperature 1.
            max_new_tokens: most tokens of one turn, reasoning included; None: the context.
            max_reasoning_tokens: after so many tokens of analysis in a turn it is closed and the
                answer comes, or a call; None: no limit.
            max_tool_calls: most calls in a turn; then the model has to answer.
            tool_timeout: seconds after which a call counts as failed; None: no limit. The default
                is longer than that of the Python tool, which ends its code itself.
            loop_guard: so many tokens of one repeated cycle (of up to 64) close the analysis, or
                end the answer with ``finish_reason`` "repetition"; None: never.
            mask_headers: let only well-formed messages to declared tools be sampled.
            stop: strings that end the answer; neither they nor what follows is part of ``final``.
            conversation_date: "YYYY-MM-DD", shown to the model; absent unless given, so that
                equal questions have equal prompts.
            max_tokens: most tokens of the conversation; None: the model's context.

        Raises:
            InvalidArgument: an unknown effort, an empty stop string, a size out of range, a tool
                without a schema, a response format without the extra.
            CheckpointError: the model has no tokenizer.
        """
        self._encoding: HarmonyEncoding = model.harmony
        self._keep_reasoning = keep_reasoning
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        stop_strings(stop)  # fails now and not at the first question
        self._opening = Opening(
            model,
            instructions=instructions,
            reasoning=reasoning,
            conversation_date=conversation_date,
            tools=tools,
            response_format=response_format,
            mask_headers=mask_headers,
        )
        self._defaults = TurnDefaults(
            self._opening,
            sampling=sampling,
            max_new_tokens=max_new_tokens,
            max_reasoning_tokens=max_reasoning_tokens,
            max_tool_calls=max_tool_calls,
            tool_choice=tool_choice,
            tool_timeout=tool_timeout,
            loop_guard=loop_guard,
            stop=stop,
        )
        self._messages: list[Message] = list(self._opening.messages)
        # What the next prompt begins with; the session is made to agree with it then.
        self._history = list(self._opening.tokens)
        self._answer = self._opening.answer
        self._stop_tokens = _turn_ends(self._encoding)
        self._running: Iterator[Event] | None = None
        self._turn: Turn | None = None
        self._session = model.session(max_tokens=max_tokens)

    @property
    def session(self) -> Session:
        """The session underneath, with the exact tokens; the last turn's reasoning leaves it at the
        next question. After a turn of a dozen calls that may be another session."""
        return self._session

    @property
    def messages(self) -> list[Message]:
        """Every message of the conversation, reasoning included, oldest first; a copy."""
        return list(self._messages)

    def stream(self, question: str, **options: Unpack[AskOptions]) -> Iterator[Event]:
        """Asks, and yields `Delta`, `ToolCall` and `ToolResult` as they come, then one `Done`.

        Closing the iterator stops the answer; so does asking again. What was yielded stays in the
        conversation. The keywords take the place of the chat's own for this turn: ``sampling``,
        ``max_new_tokens``, ``max_reasoning_tokens``, ``max_tool_calls``, ``tool_choice`` and
        ``response_format`` (told in a developer message before the question; ``{"type": "text"}``
        is none). ``logprobs`` asks for `Done.logprobs` with so many alternatives.

        Raises InvalidArgument for an empty question, one that does not fit the context, or options
        out of range; the chat stays as it was.
        """
        from ..harmony import Message, Role

        if not isinstance(question, str) or not question:
            raise InvalidArgument(
                f"[chat] question: expected text of one character or more, got {question!r}"
            )
        chosen = self._defaults.turn(options)
        if self._session.closed:
            raise InvalidArgument("[chat] expected an open chat, this one was closed; make another")
        self._end_running()
        asked = [Message.from_role_and_content(Role.USER, question)]
        if chosen.format is not None and chosen.format is not self._opening.format:
            told = Message.from_role_and_content(Role.DEVELOPER, chosen.format.prompt())
            asked.insert(0, told)
        rendered = [token for message in asked for token in self._encoding.render(message)]
        prompt = [*self._history, *rendered, *self._opening.prefill, *self._answer]
        if len(prompt) >= self._session.max_tokens:
            raise InvalidArgument(
                f"[chat] expected the conversation to leave room for an answer, but with this "
                f"question it has {len(prompt)} tokens and its context "
                f"{self._session.max_tokens}; ask less at once or begin another chat"
            )
        self._go_back_to_anchor(prompt)
        self._turn = Turn(
            self._session,
            self._opening.rules,
            self._opening.toolbox,
            asked=asked,
            prompt=prompt,
            answer=self._answer,
            stop_tokens=self._stop_tokens,
            options=chosen,
        )
        self._running = self._run(self._turn, (), len(self._messages))
        return self._running

    def stream_results(self, results: Sequence[str]) -> Iterator[Event]:
        """Goes on with a turn that ended with "tool_calls": the results of its calls, in order.

        For tools that were declared without a function. Raises InvalidArgument where no calls wait
        or their number is another.
        """
        turn = self._turn
        due = turn.due if turn is not None else []
        if turn is None or not due or len(results) != len(due):
            raise InvalidArgument(
                f"[chat] results: expected one for each of the {len(due)} calls that wait, got "
                f"{len(results)}"
            )
        self._end_running()
        messages = [result_message(call, text) for call, text in zip(due, results, strict=True)]
        earlier = len(self._messages) - len(turn.asked) - turn.reader.num_whole
        self._running = self._run(turn, messages, earlier)
        return self._running

    def ask(self, question: str, **options: Unpack[AskOptions]) -> Reply:
        """`stream`, collected; the same keywords. A budget used up in reasoning gives an empty
        ``final`` and ``finish_reason`` "length", no exception."""
        return self._reply(list(self.stream(question, **options)))

    def ask_results(self, results: Sequence[str]) -> Reply:
        """`stream_results`, collected."""
        return self._reply(list(self.stream_results(results)))

    def astream(self, question: str, **options: Unpack[AskOptions]) -> AsyncIterator[Event]:
        """`stream` for asyncio: the work is done in a thread, an event at a time.

        Cancelling the task, or closing the iterator, stops the answer after the token under way;
        what was sampled stays in the conversation.
        """
        return self._in_thread(lambda: self.stream(question, **options))

    def astream_results(self, results: Sequence[str]) -> AsyncIterator[Event]:
        """`stream_results` for asyncio, like `astream`."""
        return self._in_thread(lambda: self.stream_results(results))

    async def aask(self, question: str, **options: Unpack[AskOptions]) -> Reply:
        """`astream`, collected."""
        return self._reply([event async for event in self.astream(question, **options)])

    async def aask_results(self, results: Sequence[str]) -> Reply:
        """`astream_results`, collected."""
        return self._reply([event async for event in self.astream_results(results)])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the conversation to a file that `resume` reads: what was said and the exact
        tokens, not keys and values, and not the opening messages.

        Raises OSError, with what was there before left as it was.
        """
        opening = self._opening
        begin = len(opening.tokens)
        said = self._messages[len(opening.messages) :]
        saved.write(path, self._encoding, said, self._history[begin:])

    def resume(self, path: str | os.PathLike[str]) -> None:
        """Goes on with the conversation of a file, behind this chat's own opening: instructions,
        tools and effort may be others. The next question forwards all of it once.

        Raises InvalidArgument where this chat was asked before, for a file that `save` did not
        write or wrote with another vocabulary, and for one that leaves no room in the context;
        OSError where it cannot be read.
        """
        opening = self._opening
        if len(self._messages) > len(opening.messages):
            raise InvalidArgument(
                "[chat] resume: expected a chat that was not asked anything yet; make another one"
            )
        found = saved.read(path, self._encoding)
        tokens = [*opening.tokens, *found.tokens]
        if len(tokens) >= self._session.max_tokens:
            raise InvalidArgument(
                f"[chat] resume: expected a conversation of less than {self._session.max_tokens} "
                f"tokens, the context, got one of {len(tokens)}; make the chat with more max_tokens"
            )
        self._messages += found.messages
        self._history = tokens

    def close(self) -> None:
        """Releases the session; later questions raise InvalidArgument."""
        self._end_running()
        if self._turn is not None and self._turn.anchor is not None:
            self._turn.anchor.close()
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

    def _go_back_to_anchor(self, prompt: list[int]) -> None:
        """Takes the fork that a turn of many calls left at its begin, where the session itself
        would have to forward more again."""
        anchor = None if self._turn is None else self._turn.anchor
        if self._turn is None or anchor is None:
            return
        self._turn.anchor = None
        shared = common_prefix(self._session.tokens, prompt)
        reached = max((mark for mark in self._session.marks if mark <= shared), default=0)
        if shared < self._session.position and reached < anchor.position <= shared:
            self._session, anchor = anchor, self._session
        anchor.close()

    def _run(self, turn: Turn, results: Sequence[Message], earlier: int) -> Iterator[Event]:
        try:
            yield from turn.run(results)
        finally:
            self._settle(turn, earlier)

    async def _in_thread(self, start: Callable[[], Iterator[Event]]) -> AsyncIterator[Event]:
        events = start()
        turn = self._turn
        assert turn is not None
        loop = asyncio.get_running_loop()
        pool = ThreadPoolExecutor(1, thread_name_prefix="gpt-oss-native chat")
        try:
            while True:
                event = await loop.run_in_executor(pool, next, events, None)
                if event is None:
                    return
                yield event
        finally:
            turn.cancelled.set()
            pool.submit(events.close)  # type: ignore[attr-defined]
            # The token under way ends first; other tasks go on meanwhile, cancelled or not.
            await asyncio.shield(asyncio.to_thread(pool.shutdown))

    def _settle(self, turn: Turn, earlier: int) -> None:
        """Takes what was sampled into the conversation; forwards nothing."""
        prompt, reader = turn.prompt, turn.reader
        sampled = self._session.tokens[len(prompt) :]
        if self._session.position < len(prompt) or not sampled:
            return  # stopped before the first token: as if never asked
        if not reader.finished:  # closed or interrupted, perhaps between two tokens: read it again
            reader = TurnReader(self._encoding)
            for token in sampled:
                reader.push(token)
            reader.finish()
        del self._messages[earlier:]
        self._messages += [*turn.asked, *reader.messages[: reader.num_whole]]
        kept = kept_tokens(
            self._encoding, self._answer, reader, keep_reasoning=self._keep_reasoning
        )
        prefill = self._opening.prefill
        base = prompt[: len(prompt) - len(self._answer) - len(prefill)]
        self._history = base + (prefill if kept and self._keep_reasoning else []) + kept

    def _reply(self, events: list[Event]) -> Reply:
        answer_format = self._turn.format if self._turn is not None else None
        return Reply.of(events, parse=None if answer_format is None else answer_format.parse)


def _turn_ends(encoding: HarmonyEncoding) -> list[int]:
    ends = encoding.stop_tokens_for_assistant_actions()
    if _ENDOFTEXT in encoding.special_tokens_set:
        ends.append(encoding.tokenizer.encode_single_token(_ENDOFTEXT))
    return ends
