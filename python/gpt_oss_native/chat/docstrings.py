"""What a docstring says: its first paragraphs, and a line for each parameter.

Google's, NumPy's and reST's ways of listing parameters are read alike.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

_SECTION = re.compile(
    r"(args|arguments|params|parameters|keyword args|keyword arguments|other parameters|returns?|"
    r"yields?|raises|examples?|notes?|see also|attributes|warnings?|references|todo)\s*:?$",
    re.IGNORECASE,
)
_PARAMETERS = re.compile(r"(.* )?(arg(ument)?|param(eter)?)s\s*:?$", re.IGNORECASE)
_REST = re.compile(r":(\w+)(?:\s+[^:]*?)?(?:\s*\*{0,2}(\w+))?:\s*(.*)$")
_GOOGLE = re.compile(r"\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s+(.*)$")
_NUMPY = re.compile(r"\*{0,2}(\w+(?:\s*,\s*\w+)*)\s*(?::.*)?$")


def parse_docstring(function: Any) -> tuple[str, dict[str, str]]:
    """The summary of an object's docstring and its parameters' descriptions; "" and {} for none."""
    text = inspect.getdoc(function) or ""
    summary: list[str] = []
    parameters: dict[str, list[str]] = {}
    section: str | None = None  # "parameters", another one, or None before the first
    current: list[str] | None = None
    indent = 0
    for line in text.splitlines():
        bare = line.strip()
        depth = len(line) - len(line.lstrip())
        field = _REST.match(bare)
        if field and bare.startswith(":") and depth == 0:
            section, current = "fields", None
            if field[1] in ("param", "parameter", "arg", "argument", "key", "keyword"):
                name = field[2] or ""
                current = parameters.setdefault(name, [field[3]])
                indent = 0
        elif depth == 0 and _SECTION.match(bare):
            section = "parameters" if _PARAMETERS.match(bare) else "other"
            current, indent = None, -1
        elif section is None:
            summary.append(line)
        elif section == "fields":
            if current is not None and depth > indent:
                current.append(bare)
        elif section == "parameters" and bare and not set(bare) <= {"-", "="}:
            indent = depth if indent < 0 else indent
            if depth > indent and current is not None:
                current.append(bare)
            else:
                current = _begin(bare, parameters)
    joined = {name: " ".join(filter(None, lines)) for name, lines in parameters.items()}
    return "\n".join(summary).strip(), {name: line for name, line in joined.items() if line}


def _begin(line: str, parameters: dict[str, list[str]]) -> list[str] | None:
    """A line that names a parameter, or several; the list that takes what is said of them."""
    match = _GOOGLE.match(line)
    # "x : int" is NumPy's, with the description on the lines below; "x: the text" is Google's.
    if match and not re.match(r"\*{0,2}\w+\s+:", line):
        return parameters.setdefault(match[1], [match[2]])
    match = _NUMPY.match(line)
    if not match:
        return None
    lines: list[str] = []
    for name in match[1].split(","):
        parameters.setdefault(name.strip(), lines)
    return lines
