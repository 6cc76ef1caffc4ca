"""``apply_patch``: edits to files below one directory, all of them or none."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from ..errors import InvalidArgument
from ..harmony import Message, ToolDescription
from .confined import ConfinedRoot, FileState, Path_
from .patch_format import AddFile, DeleteFile, Operation, PatchError, UpdateFile, parse_patch
from .patch_match import apply_hunks

__all__ = ["ApplyPatchTool", "PatchError"]

_BOM: Final = "\ufeff"
_DESCRIPTION: Final = (
    "Edits files. The patch has this form, with paths relative to the root of the project:\n"
    "*** Begin Patch\n"
    "*** Update File: src/app.py\n"
    "*** Move to: src/main.py\n"
    "@@ def greet():\n"
    " a line that stays\n"
    "-a line that goes\n"
    "+a line that comes\n"
    "*** Add File: notes.txt\n"
    "+each line of a new file\n"
    "*** Delete File: old.txt\n"
    "*** End Patch\n"
    "'*** Move to: ' and the text after '@@' (a whole line above the change that tells the place "
    "from others like it) may be left out. Give three lines of context around each change, and "
    "changes in the order of the file. Nothing is changed unless all of the patch applies."
)


class ApplyPatchTool:
    """The tool ``functions.apply_patch`` over one directory.

    A call's content is the patch itself, or JSON with the patch as its only string. All files and
    hunks are checked before the first write; when a write fails, those before it are undone, so a
    failure changes nothing. Paths that are absolute, have ``..``, or pass through a symbolic link
    are refused, and so are protected names. Line ends, permissions, and a missing newline at the
    end of a file are kept. How hunks find their place: `patch_match`.

    One object may be called from several threads; other processes that rename the root's own
    directories while a patch is applied are not guarded against.
    """

    name = "functions.apply_patch"

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        protected: Sequence[str] = (".git",),
        max_file_bytes: int = 16 * 2**20,
    ) -> None:
        """A tool for the files below ``root``.

        Args:
            root: an existing directory.
            protected: names that may not occur in a path, whatever their case: what stands in
                ``.git`` can be executed by the next git command.
            max_file_bytes: larger files are not updated or deleted.

        Raises PatchError when ``root`` is no directory.
        """
        self._root = ConfinedRoot(root, protected=tuple(protected), max_file_bytes=max_file_bytes)
        self._lock = threading.Lock()

    def namespace(self) -> ToolDescription:
        """A function with one string, ``input``."""
        parameters = {
            "type": "object",
            "properties": {"input": {"type": "string", "description": "The patch."}},
            "required": ["input"],
        }
        return ToolDescription("apply_patch", _DESCRIPTION, parameters)

    def call(self, message: Message) -> str:
        """Applies the patch in the message; returns what was done to each file.

        Raises PatchError (nothing was changed) with what to do about it.
        """
        return self.apply(_patch_of(message.text))

    def apply(self, patch: str) -> str:
        """Applies a patch; returns a line for each file: ``A`` added, ``M`` modified, ``D``
        deleted or ``R`` renamed, then notes on inexact matches.

        Raises PatchError; nothing was changed then.
        """
        operations = parse_patch(patch)
        with self._lock:
            plan = _Plan(self._root)
            for operation in operations:
                plan.add(operation)
            self._root.commit(plan.before, plan.after)
        return "\n".join(["The patch was applied.", *plan.done, *plan.notes])

    def close(self) -> None:
        """Gives the directory back; later calls raise PatchError."""
        self._root.close()

    def __enter__(self) -> ApplyPatchTool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Plan:
    """What the files are and what they become, operation after operation."""

    def __init__(self, root: ConfinedRoot) -> None:
        self.before: dict[Path_, FileState | None] = {}
        self.after: dict[Path_, FileState | None] = {}
        self.done: list[str] = []
        self.notes: list[str] = []
        self._root = root

    def add(self, operation: Operation) -> None:
        parts = self._root.components(operation.path)
        if isinstance(operation, AddFile):
            self._expect_absent(parts)
            text = "".join(line + "\n" for line in operation.lines)
            self.after[parts] = FileState(_encode(text, operation.path), 0, (0, 0))
            self.done.append(f"A {operation.path}")
        elif isinstance(operation, DeleteFile):
            self._existing(parts)
            self.after[parts] = None
            self.done.append(f"D {operation.path}")
        else:
            self._update(operation, parts)

    def _update(self, operation: UpdateFile, parts: Path_) -> None:
        state = self._existing(parts)
        if operation.hunks:
            text = _decode(state.data, operation.path)
            mark = _BOM if text.startswith(_BOM) else ""
            edited = apply_hunks(text.removeprefix(_BOM), operation.hunks, path=operation.path)
            state = replace(state, data=_encode(mark + edited.text, operation.path))
            self.notes.extend(edited.notes)
        target = parts if operation.move_to is None else self._root.components(operation.move_to)
        if target == parts:
            self.done.append(f"M {operation.path}")
        else:
            self._expect_absent(target)
            self.after[parts] = None
            self.done.append(f"R {operation.path} -> {operation.move_to}")
        self.after[target] = state

    def _state(self, parts: Path_) -> FileState | None:
        if parts not in self.after:
            self.before[parts] = self.after[parts] = self._root.read(parts)
        return self.after[parts]

    def _existing(self, parts: Path_) -> FileState:
        state = self._state(parts)
        if state is None:
            raise PatchError(
                f"[apply_patch] {'/'.join(parts)}: expected an existing file, found none; check "
                "the path, or use '*** Add File: '"
            )
        return state

    def _expect_absent(self, parts: Path_) -> None:
        if self._state(parts) is not None:
            raise PatchError(
                f"[apply_patch] {'/'.join(parts)}: expected no file of this name, found one; use "
                "'*** Update File: ', or another name"
            )


def _patch_of(content: str) -> str:
    """The patch in a call's content: all of it, or the only string of a JSON object."""
    if not content.lstrip().startswith("{"):
        return content
    try:
        arguments = json.loads(content)
    except json.JSONDecodeError as error:
        raise InvalidArgument(
            f"[apply_patch] expected the patch or JSON with it, got JSON that ends early or is "
            f"wrong: {error}"
        ) from error
    texts = list(arguments.values())
    if len(texts) != 1 or not isinstance(texts[0], str):
        raise InvalidArgument(
            '[apply_patch] expected {"input": "*** Begin Patch ..."}, got the keys '
            f"{list(arguments)[:8]}; give the patch alone"
        )
    return texts[0]


def _decode(data: bytes, path: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise PatchError(
            f"[apply_patch] {path}: expected UTF-8 text, found byte {data[error.start]:#04x} at "
            f"{error.start}; a patch cannot change this file"
        ) from error


def _encode(text: str, path: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise PatchError(
            f"[apply_patch] {path}: expected text, got half a surrogate pair in the patch; write "
            "the character itself"
        ) from error
