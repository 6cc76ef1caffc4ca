"""The command line ``gpt-oss-native``: one module a command, imported cheaply, working lazily.

Exit codes: 0 done; 1 a checkpoint, a device, memory or a file failed; 2 a mistake in the call;
130 stopped by Ctrl-C; 141 the reader of a pipe went away.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from ..errors import GptOssError, InvalidArgument
from . import bench, chat, generate, info, synthesize

PROGRAM = "gpt-oss-native"
_DESCRIPTION = "gpt-oss language models inside one process, on the CPU or a CUDA device."
_EPILOG = f"""\
examples:
  {PROGRAM} chat                                   talk with the model in this package
  {PROGRAM} chat --once "What is 57 + 68?"
  {PROGRAM} chat --model openai/gpt-oss-20b        needs: pip install "gpt-oss-native[hub]"
  {PROGRAM} generate --json "Sort 7, 3, 5."
  {PROGRAM} info ./gpt-oss-20b
"""


class _Parser(argparse.ArgumentParser):
    """Reports a mistake in one line, as every other error of the program."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Leaves no argument to the parser above, whose help does not list this command's."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        _complain(f"{message}; see {self.prog} --help")
        raise SystemExit(2)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code; `argv` are the arguments without the program's
    name, by default those of the process."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows "?" for the rest
    try:
        args = _parser().parse_args(argv)
        if args.verbose:
            logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        return 130
    except BrokenPipeError:
        # Python flushes stdout once more at exit: give it something that takes what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except InvalidArgument as error:
        return _complain(error, 2)
    except (GptOssError, OSError) as error:
        return _complain(error, 1)
    except ImportError as error:
        if not (error.name or "").startswith("gpt_oss_native") and "_core" not in str(error):
            raise
        return _complain(f"the compiled core is missing ({error}); reinstall gpt-oss-native", 1)


def _complain(error: object, code: int = 2) -> int:
    line = " ".join(str(error).split())
    sys.stderr.write(f"{PROGRAM}: error: {line}\n")
    return code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version)
    parser.set_defaults(verbose=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (chat, generate, info, bench, synthesize):
        command.add_parser(commands)
    return parser


class _Version(argparse.Action):
    """Prints the version of the package; looked up only then."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        sys.stdout.write(f"{PROGRAM} {package_version()}\n")
        parser.exit()


def package_version() -> str:
    """The version of the installed distribution, else that of the compiled core."""
    from importlib import metadata

    try:
        return metadata.version(PROGRAM)
    except metadata.PackageNotFoundError:  # run from a checkout
        from .. import _core

        return str(_core.__version__)
