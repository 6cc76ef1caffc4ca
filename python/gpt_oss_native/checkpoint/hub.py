"""From what a user calls a model to the directory it lies in: ``nano``, a path, or a hub
repository.

Downloading needs the extra ``hub`` (huggingface_hub), whose cache, progress bars, environment
variables and access tokens apply as they are. Nothing here opens a network connection for a local
path.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, InvalidArgument
from .strict_json import shorten

NANO = "nano"

#: All that the engine, the tokenizer and the chat read. Patterns match whole paths, and ``*``
#: crosses folders, hence the second list: it leaves out the copies in ``original/`` and ``metal/``.
ALLOW_PATTERNS = (
    "*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
IGNORE_PATTERNS = ("*/*",)

_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_FILE_ENDINGS = (".safetensors", ".json")

_log = logging.getLogger(__name__)


def resolve(name_or_path: str | os.PathLike[str], *, revision: str | None = None) -> Path:
    """The local path of a model: a directory, or the file in it that the caller named.

    "nano" is the checkpoint inside this package (``./nano`` a folder of that name); whatever exists
    on disk is taken as it is; ``org/name`` is a hub repository, downloaded to or found in the hub's
    cache, at `revision` (branch, tag or commit) when given. Raises InvalidArgument for what can be
    none of them, CheckpointError when it cannot be had.
    """
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise InvalidArgument(f"[resolve] expected a name or a path, found {shorten(name_or_path)}")
    text = os.fspath(name_or_path)
    if not isinstance(text, str) or not text or "\0" in text:
        raise InvalidArgument(f"[resolve] expected a name or a path, found {shorten(text)}")
    if name_or_path == NANO:
        return _nano()
    path = _expand(text)
    if os.path.exists(path):
        return path
    if isinstance(name_or_path, str) and not _looks_like_path(text) and _REPOSITORY.fullmatch(text):
        return _download(text, revision)
    if _looks_like_path(text) or not isinstance(name_or_path, str):
        raise CheckpointError(
            f"[resolve] {path}: expected a checkpoint, found nothing at that path"
        )
    raise CheckpointError(
        f"[resolve] {shorten(text)} is neither a directory here nor a model's name; expected "
        f'"{NANO}", a directory, or a hub repository such as "openai/gpt-oss-20b"'
    )


def _nano() -> Path:
    directory = Path(__file__).resolve().parent.parent / NANO
    if not (directory / "config.json").is_file():
        raise CheckpointError(
            f"[resolve] {directory}: expected the embedded model, found none; reinstall the package"
        )
    return directory


def _expand(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # no home directory, or no such user
        raise CheckpointError(f"[resolve] {shorten(text)}: {error}") from error


def _looks_like_path(text: str) -> bool:
    return (
        os.path.isabs(text)
        or text.startswith((".", "~"))
        or text.endswith(("/", os.sep, *_FILE_ENDINGS))
        or text.count("/") > 1
        or "\\" in text
    )


def _download(repository: str, revision: str | None) -> Path:
    try:
        import huggingface_hub
    except ImportError as error:
        raise CheckpointError(
            f"[resolve] {repository}: no such directory, and downloading it needs huggingface_hub; "
            'install it with: pip install "gpt-oss-native[hub]"'
        ) from error
    _log.info("looking for %s on the hub", repository)
    try:
        found = huggingface_hub.snapshot_download(
            repository,
            revision=revision,
            allow_patterns=list(ALLOW_PATTERNS),
            ignore_patterns=list(IGNORE_PATTERNS),
        )
    except KeyboardInterrupt:
        raise
    except Exception as error:
        raise CheckpointError(
            f"[resolve] {repository}: {_reason(huggingface_hub, error)}"
        ) from error
    return Path(found)


def _reason(hub: Any, error: Exception) -> str:
    """What went wrong and what to do, from the hub library's own exceptions."""
    # Subclasses first: a gated repository is also a repository not found.
    for name, text in (
        (
            "GatedRepoError",
            "access to it is gated; accept its terms on its page, then `hf auth login`",
        ),
        ("RepositoryNotFoundError", "no such directory here and no such repository on the hub"),
        ("RevisionNotFoundError", "the repository has no such revision"),
        ("IncompleteSnapshotError", "the hub cannot be reached and its cache holds only a part"),
        ("LocalEntryNotFoundError", "the hub cannot be reached and the model is not in its cache"),
        ("OfflineModeIsEnabled", "offline mode is on (HF_HUB_OFFLINE) and the model is not cached"),
        ("HFValidationError", "not a valid repository name; and no such directory here"),
    ):
        kind = getattr(getattr(hub, "errors", None), name, None)
        if isinstance(kind, type) and isinstance(error, kind):
            return text
    summary = str(error).strip().splitlines()
    return f"downloading failed: {type(error).__name__}: {summary[0] if summary else 'no reason'}"
