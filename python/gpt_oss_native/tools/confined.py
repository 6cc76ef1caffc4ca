"""Files below one directory, and a set of changes to them that happens as a whole or not at all.

Every path is walked from the root's own descriptor, one component at a time, never through a
symbolic link; what is opened stays open until it is used. So a link put in place between a check
and a write leads nowhere. A hard link to a file elsewhere is replaced, never written through.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .patch_format import PatchError

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE_MODE: Final = 0o666  # less the umask
_LONGEST_NAME: Final = 255

Path_ = tuple[str, ...]  # the components of a checked path


@dataclass(frozen=True)
class FileState:
    """A regular file as it was read: its bytes, permissions, owner, and what a change alters."""

    data: bytes
    mode: int
    owner: tuple[int, int]
    stamp: tuple[int, int, int, int] | None = None  # device, inode, size, time of change


class ConfinedRoot:
    """A directory that paths cannot leave."""

    def __init__(
        self, root: str | os.PathLike[str], *, protected: tuple[str, ...], max_file_bytes: int
    ) -> None:
        """Opens the directory; it may itself be reached through links.

        Raises PatchError when it is no directory.
        """
        self.path = Path(root).resolve()
        self._protected = frozenset(name.casefold() for name in protected)
        self._max_file_bytes = max_file_bytes
        try:
            self._fd = os.open(self.path, _DIRECTORY)
            self._release = weakref.finalize(self, os.close, self._fd)
        except OSError as error:
            raise PatchError(
                f"[apply_patch] expected a directory, got {str(root)!r}: {error.strerror}"
            ) from error

    def close(self) -> None:
        """Gives the descriptor back; nothing can be read or written afterwards."""
        self._fd = -1
        self._release()

    def components(self, path: str) -> Path_:
        """The checked components of a relative path. Raises PatchError for any other path."""
        wrong = None
        parts = tuple(part for part in path.split("/") if part not in ("", "."))
        if not path or not parts:
            wrong = "it is empty"
        elif path.startswith(("/", "~")):
            wrong = "it is absolute"
        elif ".." in parts:
            wrong = "it has '..'"
        elif path.endswith("/"):
            wrong = "it names a directory"
        elif any(ord(character) < 32 or character in "\x7f\\" for character in path):
            wrong = "it has control characters or backslashes"
        elif any(_encoded_length(part) > _LONGEST_NAME for part in parts):
            wrong = "it has a name that no file system takes"
        elif any(part.casefold() in self._protected for part in parts):
            wrong = f"{', '.join(sorted(self._protected))} must not be changed"
        if wrong:
            raise PatchError(
                f"[apply_patch] path {path[:200]!r}: expected a path below the root directory, "
                f"but {wrong}; write it relative to the root, such as 'src/app.py'"
            )
        return parts

    def read(self, parts: Path_) -> FileState | None:
        """The file, or None when there is none. Raises PatchError for links, directories, devices
        and files that are too large or may not be read."""
        name = "/".join(parts)
        with ExitStack() as stack:
            try:
                directory = stack.enter_context(self._parent(parts))
                descriptor = os.open(parts[-1], _READ, dir_fd=directory)
            except FileNotFoundError:
                return None
            except OSError as error:
                raise _refused(name, error) from error
            stack.callback(os.close, descriptor)
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise PatchError(
                    f"[apply_patch] {name}: expected a regular file, found something else"
                )
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read(self._max_file_bytes + 1)
        if len(data) > self._max_file_bytes:
            raise PatchError(
                f"[apply_patch] {name}: expected at most {self._max_file_bytes} bytes, found "
                f"{found.st_size}; change it another way"
            )
        mode = stat.S_IMODE(found.st_mode) & 0o777
        return FileState(data, mode, (found.st_uid, found.st_gid), _stamp(found))

    def commit(
        self, before: Mapping[Path_, FileState | None], after: Mapping[Path_, FileState | None]
    ) -> None:
        """Makes every file of ``after`` so, None being absence.

        ``before`` is what was read of the same paths. New contents are written beside their places
        first, then put there one rename each; when a step fails, or a file is no longer as it was
        read, the steps before it are undone. Raises PatchError then.
        """
        steps: list[_Step] = []
        made: list[Path_] = []
        name = ""
        with ExitStack() as stack:
            try:
                for parts in after:
                    if after[parts] == before[parts]:
                        continue
                    name = "/".join(parts)
                    if after[parts] is not None:
                        self._make_directories(parts[:-1], made)
                    directory = stack.enter_context(self._parent(parts))
                    steps.append(_Step(directory, parts, before[parts], after[parts]))
                    steps[-1].prepare()
                for step in steps:
                    name = step.name
                    step.commit()
            except BaseException as error:
                for step in reversed(steps):
                    step.undo()
                for parts in reversed(made):
                    with suppress(OSError), self._parent(parts) as directory:
                        os.rmdir(parts[-1], dir_fd=directory)
                if isinstance(error, OSError):
                    raise _refused(name, error) from error
                raise
            for step in steps:
                step.finish()

    @contextmanager
    def _parent(self, parts: Path_) -> Iterator[int]:
        """A descriptor of the directory that holds the last component."""
        descriptor = os.dup(self._fd)
        try:
            for part in parts[:-1]:
                inner = os.open(part, _DIRECTORY, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)

    def _make_directories(self, parts: Path_, made: list[Path_]) -> None:
        """Makes what is missing of a directory, and appends what it made, outermost first."""
        for length in range(1, len(parts) + 1):
            with self._parent(parts[:length]) as directory, suppress(FileExistsError):
                os.mkdir(parts[length - 1], dir_fd=directory)
                made.append(parts[:length])


class _Step:
    """One file brought from one state to another, beside its place first."""

    def __init__(
        self, directory: int, parts: Path_, before: FileState | None, after: FileState | None
    ) -> None:
        self.name = "/".join(parts)
        self._committed = False
        self._directory = directory
        self._file = parts[-1]
        self._before = before
        self._after = after
        tag = secrets.token_hex(8)
        self._new = f".patch-{tag}.new"
        self._old = f".patch-{tag}.old"
        self._saved = False

    def prepare(self) -> None:
        """Writes the new content under another name."""
        if self._after is None:
            return
        descriptor = os.open(self._new, _CREATE, _NEW_FILE_MODE, dir_fd=self._directory)
        with open(descriptor, "wb") as file:
            file.write(self._after.data)
            if self._after.stamp is not None:  # an existing file's permissions go with it
                with suppress(OSError):
                    os.fchown(descriptor, *self._after.owner)
                os.fchmod(descriptor, self._after.mode)

    def commit(self) -> None:
        """Puts the file in place; the former one stays under another name until `finish`."""
        if self._before is not None:
            self._saved = True  # before it is, so that an interruption finds it
            # The place is never empty while a file is replaced, where links can be made.
            if self._after is None or not self._link(self._file, self._old):
                os.rename(self._file, self._old, **self._here)
            found = os.stat(self._old, dir_fd=self._directory, follow_symlinks=False)
            if _stamp(found) != self._before.stamp:
                raise OSError(errno.EBUSY, "it was changed while the patch was being applied")
            if self._after is not None:
                os.rename(self._new, self._file, **self._here)
        elif not self._link(self._new, self._file):
            # link, unlike rename, never replaces what someone else has just put there.
            os.rename(self._new, self._file, **self._here)
        self._committed = True

    def undo(self) -> None:
        """Back to the state before, as far as it had come."""
        with suppress(OSError):
            if self._saved:
                os.rename(self._old, self._file, **self._here)
                self._remove(self._old)  # renaming a link to its own file does nothing
            elif self._committed or self._is_mine():
                os.unlink(self._file, dir_fd=self._directory)
        self._remove(self._new)

    def finish(self) -> None:
        """Removes what only `undo` needed."""
        self._remove(self._new)
        if self._saved:
            self._remove(self._old)

    def _is_mine(self) -> bool:
        """Whether the file in place is the one that `prepare` wrote."""
        placed = os.stat(self._file, dir_fd=self._directory, follow_symlinks=False)
        written = os.stat(self._new, dir_fd=self._directory, follow_symlinks=False)
        return os.path.samestat(placed, written)

    def _link(self, source: str, target: str) -> bool:
        """A second name for a file; False where the file system or the owner forbids it."""
        try:
            os.link(source, target, follow_symlinks=False, **self._here)
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                return False
            raise
        return True

    @property
    def _here(self) -> dict[str, int]:
        return {"src_dir_fd": self._directory, "dst_dir_fd": self._directory}

    def _remove(self, name: str) -> None:
        with suppress(OSError):
            os.unlink(name, dir_fd=self._directory)


def _encoded_length(name: str) -> int:
    try:
        return len(name.encode())
    except UnicodeEncodeError:
        return _LONGEST_NAME + 1


def _stamp(found: os.stat_result) -> tuple[int, int, int, int]:
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _refused(name: str, error: OSError) -> PatchError:
    """What to tell of a failed system call, in the words of the format."""
    reasons = {
        errno.ELOOP: "it is a symbolic link; name the file itself",
        errno.ENOTDIR: "a part of the path is a file or a symbolic link; name the file itself",
        errno.EISDIR: "it is a directory",
        errno.EEXIST: "it exists already; use '*** Update File: '",
        errno.EACCES: "permission denied",
        errno.EBADF: "the tool was closed",
        errno.ENXIO: "it is not a regular file",
    }
    reason = reasons.get(error.errno or 0, error.strerror or str(error))
    return PatchError(f"[apply_patch] {name}: {reason}; no file was changed")
