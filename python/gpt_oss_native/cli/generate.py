"""``gpt-oss-native generate``: one prompt in, one answer out, for scripts and pipes."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from ..errors import InvalidArgument
from . import options

if TYPE_CHECKING:
    from ..model import Model
    from ..sampling import Token

_EPILOG = """\
The prompt is a user's question to the model, and the answer alone is printed; --show-reasoning
prints the reasoning to stderr. With --raw the prompt is a text to continue, with --tokens a list of
ids to continue, also for a checkpoint without a tokenizer.
"""


def add_parser(commands: options.Commands) -> None:
    """Declares the command."""
    parser = options.add_command(
        commands, "generate", run, "answer one prompt, given here or on stdin", epilog=_EPILOG
    )
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help='text; "-" or nothing: stdin')
    options.add_model_option(parser)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--raw", action="store_true", help="continue the prompt as it stands")
    kind.add_argument("--tokens", metavar="IDS", help='continue these ids, e.g. "17,4,256"')
    parser.add_argument(
        "--special",
        action="store_true",
        help="with --raw: read <|start|> and the like in the prompt as special tokens",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    parser.add_argument(
        "--logprobs", type=int, metavar="N", help="with --json: log-probabilities, N alternatives"
    )
    options.add_sampling_options(parser)
    options.add_chat_options(parser)
    options.add_engine_options(parser)


def run(args: argparse.Namespace) -> int:
    """Answers and returns the exit code."""
    _check(args)
    prompt = None if args.tokens else _prompt(args.prompt)
    start = time.perf_counter()
    with options.load_model(args) as model:
        load_s = time.perf_counter() - start
        if prompt is not None and model.checkpoint.tokenizer_path is None:
            raise InvalidArgument(
                f"[generate] expected a model with a tokenizer, {args.model} has no tokenizer.json;"
                " give token ids with --tokens"
            )
        if prompt is not None and not args.raw:
            return _answer(args, model, prompt, load_s)
        return _continue(args, model, _ids(args, model, prompt), load_s)


def _check(args: argparse.Namespace) -> None:
    if args.logprobs is not None and not args.json:
        raise InvalidArgument("[generate] --logprobs needs --json to print them")
    if args.special and not args.raw:
        raise InvalidArgument("[generate] --special needs --raw: a question is always plain text")
    if args.tokens and args.prompt is not None:
        raise InvalidArgument("[generate] expected PROMPT or --tokens, got both")


def _prompt(argument: str | None) -> str:
    """The prompt as text, from the argument or stdin."""
    if argument is None and sys.stdin.isatty():
        raise InvalidArgument("[generate] expected a prompt as an argument or on stdin, got none")
    text = argument
    if argument is None or argument == "-":
        try:
            text = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidArgument(
                f"[generate] expected UTF-8 text on stdin, got something else at byte {error.start}"
            ) from None
    if not text:
        raise InvalidArgument("[generate] expected a prompt, got an empty text")
    return text


def _ids(args: argparse.Namespace, model: Model, prompt: str | None) -> list[int]:
    if prompt is None:
        return options.token_ids(args.tokens)
    if args.special:
        return model.harmony.encode(prompt, allowed_special="all")
    return model.harmony.encode_text(prompt)


def _answer(args: argparse.Namespace, model: Model, question: str, load_s: float) -> int:
    """The prompt as a question to the assistant."""
    from ..chat import Done
    from .terminal import AnswerPrinter

    chat = options.chat_of(args, model)
    if args.json:
        reply = chat.ask(question, logprobs=args.logprobs)
        result: dict[str, Any] = {
            "model": args.model,
            "text": reply.final,
            "reasoning": reply.analysis,
            "tool_calls": [vars(call) for call in reply.tool_calls],
            "finish_reason": reply.finish_reason,
            "tokens": list(reply.tokens),
            "usage": vars(reply.usage),
            "timings": {"load_s": load_s, **vars(reply.timings)},
        }
        _print_json(result, args, reply.logprobs)
        return 0
    answer = AnswerPrinter(sys.stdout, show_reasoning=False)
    reasoning = AnswerPrinter(sys.stderr, show_reasoning=True)
    try:
        for event in chat.stream(question):
            if event.channel != "analysis":
                answer.show(event)
            elif args.show_reasoning:
                reasoning.show(event)
            if isinstance(event, Done) and event.finish_reason == "length":
                reasoning.end()
                sys.stderr.write("gpt-oss-native: the answer was cut at the token limit\n")
    finally:
        reasoning.end()
        answer.end()
    return 0


def _continue(args: argparse.Namespace, model: Model, prompt: list[int], load_s: float) -> int:
    """The prompt as tokens to continue."""
    from ..detokenizer import StopStrings, StreamingDetokenizer

    named = model.checkpoint.tokenizer_path is not None
    if args.stop and not named:
        raise InvalidArgument(f"[generate] --stop needs a tokenizer, {args.model} has none")
    detokenizer = StreamingDetokenizer(model.tokenizer) if named else None
    holder = StopStrings(args.stop)
    session = model.session()
    tokens: list[Token] = []
    texts: list[str] = []

    def show(delta: str) -> None:
        texts.append(delta)
        if not args.json:
            sys.stdout.write(delta)
            sys.stdout.flush()

    start = first = time.perf_counter()
    with session.generate(
        prompt,
        options.sampling_of(args, model),
        max_new_tokens=args.max_new_tokens,
        stop_tokens=model.config.eos_token_ids,
        logprobs=args.logprobs or 0,
    ) as generation:
        for token in generation:
            first = first if tokens else time.perf_counter()
            tokens.append(token)
            if detokenizer is None:
                show(f"{token.id} ")
            elif token.id not in model.config.eos_token_ids:
                show(holder.push(detokenizer.push(token.id))[0])
                if holder.stopped:
                    break
    last = time.perf_counter()
    if detokenizer is not None:
        show(holder.push(detokenizer.flush())[0] + holder.flush())
    if not args.json:
        sys.stdout.write("\n")
        return 0
    count = len(tokens)
    result: dict[str, Any] = {
        "model": args.model,
        "text": "".join(texts) if named else None,
        "finish_reason": "stop" if holder.stopped else generation.finish_reason,
        "tokens": [token.id for token in tokens],
        "usage": {"prompt_tokens": len(prompt), "completion_tokens": count},
        "timings": {
            "load_s": load_s,
            "prompt_s": first - start,
            "completion_s": last - first,
            "tokens_per_second": (count - 1) / (last - first) if count > 1 else 0.0,
        },
    }
    _print_json(result, args, tokens)
    return 0


def _print_json(
    result: dict[str, Any], args: argparse.Namespace, tokens: list[Token] | tuple[Token, ...]
) -> None:
    if args.logprobs is not None:
        result["logprobs"] = [
            {"id": t.id, "logprob": t.logprob, "top": [list(pair) for pair in t.top]}
            for t in tokens
        ]
    sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")
