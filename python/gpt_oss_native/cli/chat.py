"""``gpt-oss-native chat``: a conversation in the terminal."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidArgument
from . import options

if TYPE_CHECKING:
    from ..chat import Chat, Done
    from ..model import Model

_HISTORY_LINES = 1000
_PROMPT = "> "
_EPILOG = """\
Ctrl-C stops an answer and keeps the conversation, Ctrl-D ends it. Reasoning is dimmed on a terminal
(not where NO_COLOR is set) and labelled elsewhere.
"""


def add_parser(commands: options.Commands) -> None:
    """Declares the command."""
    parser = options.add_command(
        commands, "chat", run, "talk with a model in the terminal", epilog=_EPILOG
    )
    options.add_model_option(parser)
    parser.add_argument("--once", metavar="QUESTION", help="answer this question, then exit")
    parser.add_argument(
        "--no-history", action="store_true", help="neither read nor write the file of past lines"
    )
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
    from ..chat import Chat

    if args.once is not None and not args.once.strip():
        raise InvalidArgument("[chat] --once: expected a question, got an empty text")
    with options.load_model(args) as model:
        if model.checkpoint.tokenizer_path is None:
            raise InvalidArgument(
                f"[chat] expected a model with a tokenizer, {args.model} has no tokenizer.json; "
                "gpt-oss-native generate --tokens works without"
            )
        chat = Chat(
            model,
            instructions=args.instructions,
            reasoning=args.reasoning,
            conversation_date=args.date,
            keep_reasoning=args.keep_reasoning,
            sampling=options.sampling_of(args, model),
            max_new_tokens=args.max_new_tokens,
            stop=args.stop,
        )
        if args.once is not None:
            _answer(chat, args.once, args)
            return 0
        return _converse(chat, model, args)


def _converse(chat: Chat, model: Model, args: argparse.Namespace) -> int:
    from .terminal import dim

    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if terminal:
        sys.stdout.write(
            dim(f"{args.model}, {model.device}. Ctrl-C stops an answer, Ctrl-D ends.", sys.stdout)
            + "\n"
        )
    with _line_history(enabled=terminal and not args.no_history):
        for question in _questions(terminal):
            try:
                _answer(chat, question, args)
            except KeyboardInterrupt:
                sys.stdout.write(dim("(stopped)", sys.stdout) + "\n")
            except InvalidArgument as error:  # e.g. too long: the conversation goes on
                sys.stderr.write(f"gpt-oss-native: error: {error}\n")
    return 0


def _questions(terminal: bool) -> Iterator[str]:
    """One line at a time, until the end of the input; empty lines are passed over."""
    while True:
        try:
            line = input(_PROMPT if terminal else "")
        except EOFError:
            if terminal:
                sys.stdout.write("\n")
            return
        except KeyboardInterrupt:
            if not terminal:
                raise
            sys.stdout.write("\n")
            continue
        except UnicodeDecodeError:
            raise InvalidArgument(
                "[chat] expected UTF-8 text on stdin, got something else"
            ) from None
        if line.strip():
            yield line


def _answer(chat: Chat, question: str, args: argparse.Namespace) -> None:
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
                    if is_terminal(sys.stderr):
                        sys.stderr.write(
                            dim(_summary(chat, event, printer.answered), sys.stderr) + "\n"
                        )
                    elif event.finish_reason == "length":
                        sys.stderr.write(f"gpt-oss-native: {_cut(printer.answered)}\n")
        finally:
            printer.end()


def _summary(chat: Chat, done: Done, answered: bool) -> str:
    """What the turn cost, in a line."""
    parts = [
        f"{done.usage.completion_tokens} tokens",
        f"{done.timings.tokens_per_second:,.0f} tokens/s",
        f"first after {done.timings.prompt_s * 1e3:,.0f} ms",
        f"context {chat.session.position:,} of {chat.session.max_tokens:,}",
    ]
    if done.finish_reason == "length":
        parts.append(_cut(answered))
    if done.finish_reason == "tool_calls":
        parts.append("the model called a tool, and there is none")
    return f"({', '.join(parts)})"


def _cut(answered: bool) -> str:
    if answered:
        return "the answer was cut at the token limit"
    return "the token limit was reached before an answer; --max-new-tokens raises it"


@contextlib.contextmanager
def _line_history(*, enabled: bool) -> Iterator[None]:
    """Line editing with the lines of earlier conversations, where the system has readline."""
    try:
        import readline
    except ImportError:
        enabled = False
    if not enabled:
        yield
        return
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    path = Path(state, "gpt-oss-native", "chat_history")
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            readline.set_history_length(_HISTORY_LINES)
            readline.write_history_file(path)
