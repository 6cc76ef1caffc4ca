"""Arguments that several commands share, and what they make of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import InvalidArgument

if TYPE_CHECKING:
    from ..chat import Chat
    from ..model import Model
    from ..sampling import Sampling

Commands = Any  # argparse's own class for subparsers is private


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    help: str,
    **options: Any,
) -> argparse.ArgumentParser:
    """A subparser whose ``args.run`` is `run`; `help` is a sentence."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=help, description=f"{help[0].upper()}{help[1:]}.", allow_abbrev=False, **options
    )
    parser.set_defaults(run=run)
    parser.add_argument("-v", "--verbose", action="store_true", help="log what is loaded")
    return parser


def add_model_option(parser: argparse.ArgumentParser) -> None:
    """``--model``."""
    parser.add_argument(
        "-m",
        "--model",
        default="nano",
        metavar="MODEL",
        help='"nano" (in this package, the default), a directory, or a hub repository id',
    )


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Where and how the model runs."""
    group = parser.add_argument_group("engine")
    group.add_argument(
        "--device",
        type=_device,
        default="auto",
        metavar="DEVICE",
        help="cpu, cuda, cuda:N of several, or auto: cuda where it can be used (default)",
    )
    group.add_argument(
        "--precision",
        choices=("default", "float32"),
        default="default",
        help="float32 is slower and keeps every activation exact",
    )
    group.add_argument(
        "--dense",
        choices=("bf16", "int8"),
        default="bf16",
        help="attention and unembedding matrices: bf16 in place, or repacked to int8 at load",
    )
    group.add_argument(
        "--threads", type=int, metavar="N", help="CPU threads (default: all this process may use)"
    )
    group.add_argument(
        "--isa",
        choices=("scalar", "avx2", "avx512", "amx"),
        help="CPU instruction set (default: the best there is)",
    )


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """How tokens are chosen. None stands for the model's own default."""
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="0 takes the most likely token (default: what the checkpoint recommends, else 1)",
    )
    group.add_argument("--top-k", type=int, metavar="K", help="keep the K most likely tokens")
    group.add_argument("--top-p", type=float, metavar="P", help="keep the likeliest that reach P")
    group.add_argument(
        "--min-p", type=float, metavar="P", help="keep tokens P times as likely as the likeliest"
    )
    group.add_argument("--repetition-penalty", type=float, metavar="X", help="1 is none")
    group.add_argument("--presence-penalty", type=float, metavar="X", help="0 is none")
    group.add_argument("--frequency-penalty", type=float, metavar="X", help="0 is none")
    group.add_argument("--seed", type=int, metavar="N", help="same seed, same tokens")
    group.add_argument(
        "-n", "--max-new-tokens", type=int, metavar="N", help="most tokens, reasoning included"
    )
    group.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end the answer before this text; may be given several times",
    )


def add_chat_options(parser: argparse.ArgumentParser) -> None:
    """What the model is told, and what is shown of its reasoning."""
    group = parser.add_argument_group("conversation")
    group.add_argument(
        "--instructions",
        "--system",
        metavar="TEXT",
        help='the developer message, which is what others call "system prompt"',
    )
    group.add_argument(
        "-r",
        "--reasoning",
        choices=("none", "low", "medium", "high"),
        default="medium",
        help="effort of the reasoning (default: medium)",
    )
    group.add_argument(
        "--date",
        type=_date,
        metavar="YYYY-MM-DD",
        help="tell the model the date (default: it is not told)",
    )
    shown = group.add_mutually_exclusive_group()
    shown.add_argument(
        "--show-reasoning", action="store_true", default=None, help="print the reasoning as well"
    )
    shown.add_argument(
        "--hide-reasoning",
        dest="show_reasoning",
        action="store_false",
        help="print the answer alone",
    )


def _date(text: str) -> str:
    """The date as the models know dates."""
    from datetime import date

    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a date such as 2025-06-28, got {text!r}"
        ) from None


def _device(text: str) -> str:
    """The argument itself, if it can be a device's name."""
    kind, colon, index = text.partition(":")
    if kind in ("auto", "cpu", "cuda") and (not colon or (kind == "cuda" and index.isdecimal())):
        return text
    raise argparse.ArgumentTypeError(f"expected auto, cpu, cuda or cuda:N, got {text!r}")


def load_model(args: argparse.Namespace, name: str | None = None) -> Model:
    """The model that the arguments ask for."""
    from ..model import Model

    if getattr(args, "synthetic", None):
        return Model.synthetic(
            args.synthetic, device="cuda" if args.device == "auto" else args.device
        )
    return Model.load(
        args.model if name is None else name,
        device=args.device,
        precision=args.precision,
        dense=args.dense,
        num_threads=args.threads,
        isa=args.isa,
    )


def chat_of(args: argparse.Namespace, model: Model, **options: Any) -> Chat:
    """A chat as the arguments of `add_chat_options` and `add_sampling_options` ask for it."""
    from ..chat import Chat

    return Chat(
        model,
        instructions=args.instructions,
        reasoning=args.reasoning,
        conversation_date=args.date,
        sampling=sampling_of(args, model),
        max_new_tokens=args.max_new_tokens,
        stop=args.stop,
        **options,
    )


def sampling_of(args: argparse.Namespace, model: Model) -> Sampling:
    """What was asked for, over what the checkpoint's generation_config.json recommends."""
    from ..sampling import Sampling

    names = (
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "seed",
    )
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return Sampling(**{**recommended_sampling(model), **given})


def recommended_sampling(model: Model) -> dict[str, float]:
    """Sampling fields that generation_config.json sets, as transformers reads it: ``do_sample``
    false is temperature 0. Empty without such a file, or with one that is not understood."""
    from ..checkpoint.strict_json import read_json_object
    from ..errors import CheckpointError

    path = model.checkpoint.directory / "generation_config.json"
    if not path.is_file():
        return {}
    try:
        raw = read_json_object(path, max_bytes=1_000_000)
    except CheckpointError:
        return {}  # the model runs without this file
    if raw.get("do_sample") is False:
        return {"temperature": 0.0}
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    found = {name: raw.get(name) for name in names}
    return {
        name: int(value) if name == "top_k" else value
        for name, value in found.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def token_ids(text: str) -> list[int]:
    """Ids written as "1, 2 3". Raises InvalidArgument for anything else."""
    try:
        ids = [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        ids = []
    if not ids:
        raise InvalidArgument(f"[tokens] expected token ids such as 17,4,256, got {text[:40]!r}")
    return ids
