"""``gpt-oss-native chat``: a conversation in the terminal."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING, Any

from ..errors import InvalidArgument
from . import options, toolset

if TYPE_CHECKING:
    from ..chat import Chat, Done
    from ..model import Model

_EPILOG = """\
A line that ends with a backslash goes on in the next; three double quotes begin a text of several
lines, and three end it. Ctrl-C stops an answer and keeps the conversation, Ctrl-D ends it.
Reasoning is dimmed on a terminal (not where NO_COLOR is set) and labelled elsewhere.
"""


def add_parser(commands: options.Commands) -> None:
    """Declares the command."""
    parser = options.add_command(
        commands, "chat", run, "talk with a model in the terminal", epilog=_EPILOG
    )
    options.add_model_option(parser)
    parser.add_argument("--once", metavar="QUESTION", help="answer this question, then exit")
    parser.add_argument(
        "--save", metavar="FILE", help="write the conversation to a file after every answer"
    )
    parser.add_argument(
        "--resume", metavar="FILE", help="go on with the conversation that --save wrote"
    )
    parser.add_argument(
        "--no-history", action="store_true", help="neither read nor write the file of past lines"
    )
    toolset.add_options(parser)
    options.add_sampling_options(parser)
    options.add_chat_options(parser)
    parser.add_argument(
        "--keep-reasoning",
        action="store_true",
        help="keep the reasoning of earlier answers in the context",
    )
    options.add_engine_options(parser)


def run(args: argparse.Namespace) -> int:
    """Holds the conversation and returns the exit code."""
    if args.once is not None and not args.once.strip():
        raise InvalidArgument("[chat] --once: expected a question, got an empty text")
    with options.load_model(args) as model:
        if model.checkpoint.tokenizer_path is None:
            raise InvalidArgument(
                f"[chat] expected a model with a tokenizer, {args.model} has no tokenizer.json; "
                "gpt-oss-native generate --tokens works without"
            )
        with toolset.Toolset(args, model) as tools:
            chat = options.chat_of(
                args, model, tools=tools.tools, keep_reasoning=args.keep_reasoning
            )
            if args.resume is not None:
                chat.resume(args.resume)
            if args.once is None:
                return _converse(chat, model, tools, args)
            try:
                _answer(chat, args.once, tools, args)
            finally:
                _save(chat, args)
            return 0


def _converse(chat: Chat, model: Model, tools: toolset.Toolset, args: argparse.Namespace) -> int:
    from .questions import line_history, questions
    from .terminal import dim

    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if terminal:
        about = f"{args.model}, {model.device}. Ctrl-C stops an answer, Ctrl-D ends."
        if args.resume is not None:
            about += f" {len(chat.messages)} messages from {args.resume}."
        sys.stdout.write(dim(about, sys.stdout) + "\n")
    with line_history(enabled=terminal and not args.no_history):
        for question in questions(terminal=terminal):
            try:
                _answer(chat, question, tools, args)
            except KeyboardInterrupt:
                sys.stdout.write(dim("(stopped)", sys.stdout) + "\n")
            except InvalidArgument as error:  # e.g. too long: the conversation goes on
                _complain(error)
            try:
                _save(chat, args)
            except OSError as error:  # e.g. no space left: what was said is still here
                _complain(error)
    return 0


def _save(chat: Chat, args: argparse.Namespace) -> None:
    if args.save is not None:
        chat.save(args.save)


def _complain(error: Exception) -> None:
    sys.stderr.write(f"gpt-oss-native: error: {error}\n")


def _answer(chat: Chat, question: str, tools: toolset.Toolset, args: argparse.Namespace) -> None:
    """Streams one answer. On Ctrl-C the answer so far stays in the conversation."""
    from ..chat import Done
    from .terminal import AnswerPrinter, dim, is_terminal

    printer = AnswerPrinter(sys.stdout, show_reasoning=args.show_reasoning is not False)
    events: Any = chat.stream(question)
    with contextlib.closing(events):
        try:
            for event in events:
                printer.show(event)
                if isinstance(event, Done):
                    printer.end()
                    for line in tools.sources(printer.answer):
                        sys.stdout.write(dim(printer.plain(line), sys.stdout) + "\n")
                    if is_terminal(sys.stderr):
                        summary = _summary(chat, event, answered=bool(printer.answer))
                        sys.stderr.write(dim(summary, sys.stderr) + "\n")
                    elif event.finish_reason == "length":
                        cut = _cut(answered=bool(printer.answer))
                        sys.stderr.write(f"gpt-oss-native: {cut}\n")
        finally:
            printer.end()


def _summary(chat: Chat, done: Done, *, answered: bool) -> str:
    """What the turn cost, in a line."""
    session = chat.session
    parts = [
        f"{done.usage.completion_tokens} tokens",
        f"{done.timings.tokens_per_second:,.0f} tokens/s",
        f"first after {done.timings.prompt_s * 1e3:,.0f} ms",
        f"context {session.position:,} of {session.max_tokens:,}, "
        f"{session.position / session.max_tokens:.0%}",
    ]
    if done.timings.tools_s:
        parts.append(f"tools {done.timings.tools_s:,.1f} s")
    if done.finish_reason == "length":
        parts.append(_cut(answered=answered))
    if done.finish_reason == "repetition":
        parts.append("the answer went round in circles and was ended")
    if done.finish_reason == "tool_calls":
        parts.append("the model made more calls than it may")
    return f"({', '.join(parts)})"


def _cut(*, answered: bool) -> str:
    if answered:
        return "the answer was cut at the token limit"
    return "the token limit was reached before an answer; --max-new-tokens raises it"
