"""The tools that ``gpt-oss-native chat`` was asked for, and what they leave to show."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from contextlib import ExitStack
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ..errors import InvalidArgument

if TYPE_CHECKING:
    from ..model import Model
    from ..tools import BrowserTool


def add_options(parser: argparse.ArgumentParser) -> None:
    """What the model may call."""
    group = parser.add_argument_group("tools")
    group.add_argument(
        "--python",
        action="store_true",
        help="let it run Python in a process of its own, without network where the system allows, "
        "but with your files; needs the extra python-tool",
    )
    group.add_argument(
        "--browser",
        action="append",
        default=[],
        metavar="DIR",
        help="let it search and read the text and HTML files of a folder; may be given again",
    )
    group.add_argument(
        "--apply-patch", metavar="DIR", help="let it change files below this folder, by patches"
    )
    group.add_argument(
        "--tools",
        action="append",
        default=[],
        metavar="MODULE:FUNCTION",
        help="let it call a Python function (or a tool, or a list of them), looked up from the "
        "current folder on; may be given again",
    )


class Toolset:
    """The tools of one program run; closing it ends what they started."""

    def __init__(self, args: argparse.Namespace, model: Model) -> None:
        """Makes them. Raises InvalidArgument for a function or an extra that is not there,
        BrowserError or OSError for a folder that is not."""
        from .. import tools

        self.tools: list[Any] = []
        self._browser: BrowserTool | None = None
        self._open = ExitStack()
        if args.python:
            _require_python_tool()
            self.tools.append(self._open.enter_context(tools.PythonTool()))
        if args.browser:
            self._browser = tools.BrowserTool(tools.LocalFiles(args.browser), model.tokenizer)
            self.tools.append(self._browser)
        if args.apply_patch is not None:
            patch = tools.ApplyPatchTool(args.apply_patch)
            self._open.callback(patch.close)
            self.tools.append(patch)
        for name in args.tools:
            found = _imported(name)
            self.tools += found if isinstance(found, (list, tuple)) else [found]

    def sources(self, answer: str) -> list[str]:
        """A line for each source that an answer cites: its number, title and address."""
        if self._browser is None:
            return []
        cited = self._browser.resolve_citations(answer)[1]
        lines = {c.number: f"[{c.number}] {c.title} ({c.url})" for c in cited}
        return [lines[number] for number in sorted(lines)]

    def __enter__(self) -> Toolset:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()


def _require_python_tool() -> None:
    """Says so at the start; the tool itself would tell the model, at its first call."""
    missing = [name for name in ("jupyter_client", "ipykernel") if find_spec(name) is None]
    if missing:
        raise InvalidArgument(
            f"[chat] --python: expected {' and '.join(missing)}, found none; run pip install "
            "'gpt-oss-native[python-tool]'"
        )


def _imported(name: str) -> Any:
    module, _, attributes = name.partition(":")
    if not module or not attributes:
        raise InvalidArgument(
            f"[chat] --tools: expected MODULE:FUNCTION such as mytools:get_weather, got {name!r}"
        )
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
        for attribute in attributes.split("."):
            found = getattr(found, attribute)
    except (ImportError, AttributeError) as error:
        raise InvalidArgument(
            f"[chat] --tools: expected {name} to be a function that can be imported from "
            f"{os.getcwd()} or from what is installed, got: {error}"
        ) from error
    finally:
        sys.path.remove(os.getcwd())
    return found
