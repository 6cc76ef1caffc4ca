"""Questions as they are typed: a line, or several, with the history of earlier programs."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from ..errors import InvalidArgument

_HISTORY_LINES = 1000
_PROMPT, _MORE = "> ", ". "
_QUOTES = '"""'


def questions(*, terminal: bool) -> Iterator[str]:
    """One question a line until the end of the input, empty ones passed over. A line that ends
    with a backslash goes on in the next; three quotes begin a text of lines up to the next three.

    Ctrl-C at the prompt of a terminal drops what was typed. Raises InvalidArgument for input that
    is no UTF-8.
    """
    while True:
        try:
            text = _question(terminal)
        except KeyboardInterrupt:
            if not terminal:
                raise
            sys.stdout.write("\n")
            continue
        if text is None:
            if terminal:
                sys.stdout.write("\n")
            return
        if text.strip():
            yield text


def _question(terminal: bool) -> str | None:
    """One question; None at the end of the input."""
    line = _line(_PROMPT, terminal)
    if line is None:
        return None
    lines = []
    if line.lstrip().startswith(_QUOTES):
        line = line.lstrip()[len(_QUOTES) :]
        while line is not None and not line.rstrip().endswith(_QUOTES):
            lines.append(line)
            line = _line(_MORE, terminal)
        if line is not None:
            lines.append(line.rstrip()[: -len(_QUOTES)])
        return "\n".join(lines).strip("\n")
    while line is not None and line.endswith("\\"):
        lines.append(line[:-1])
        line = _line(_MORE, terminal)
    return "\n".join([*lines, *([] if line is None else [line])])


def _line(prompt: str, terminal: bool) -> str | None:
    try:
        return input(prompt if terminal else "")
    except EOFError:
        return None
    except UnicodeDecodeError:
        raise InvalidArgument("[chat] expected UTF-8 text on stdin, got something else") from None


@contextlib.contextmanager
def line_history(*, enabled: bool) -> Iterator[None]:
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
