"""What tests of apply_patch share: writing patches, and all that is below a directory."""

from __future__ import annotations

import os
from pathlib import Path


def patch(*lines: str) -> str:
    """A patch of these lines."""
    return "\n".join(["*** Begin Patch", *lines, "*** End Patch"])


def snapshot(directory: Path) -> dict[str, tuple[int, bytes | str]]:
    """Every name below a directory with its kind, and content or target."""
    found: dict[str, tuple[int, bytes | str]] = {}
    for path in sorted(directory.rglob("*")):
        mode = path.lstat().st_mode
        content: bytes | str = b""
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = path.read_bytes()
        found[str(path.relative_to(directory))] = (mode, content)
    return found
