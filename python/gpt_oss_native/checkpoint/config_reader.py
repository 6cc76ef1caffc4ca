"""Taking checked values out of a parsed config.json, with errors that name file and key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from ..errors import CheckpointError
from .strict_json import shorten

_REQUIRED = object()


class KeyReader:
    """Reads keys of one JSON object.

    `check` takes a field's name and a value and says in words what is wrong with it, or None.
    ``null`` counts as absent, as it does in transformers.
    """

    def __init__(
        self,
        values: dict[str, Any],
        source: str,
        check: Callable[[str, object], str | None],
        *,
        parent: str = "",
    ) -> None:
        self._values = values
        self._source = source
        self._check = check
        self._parent = parent

    @property
    def prefix(self) -> str:
        """How every error about this object begins."""
        return f"[load_checkpoint] {self._source}:"

    def raw(self, key: str) -> Any:
        """The value of `key` as JSON has it, None when absent."""
        return self._values.get(key)

    def child(self, key: str) -> KeyReader | None:
        """A reader of the object under `key`, None when absent; CheckpointError when no object."""
        value = self.raw(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.fail(key, f"must be an object, found {shorten(value)}")
        return KeyReader(value, self._source, self._check, parent=f"{self._parent}{key}.")

    def field(self, name: str, *keys: str, default: Any = _REQUIRED) -> Any:
        """The checked value of field `name`, under the one of `keys` that is present.

        When several spellings are present they must agree. Without any, `default`, or a
        CheckpointError when there is none.
        """
        present = [key for key in keys if self.raw(key) is not None]
        if not present:
            if default is _REQUIRED:
                self.fail(keys[0], "must be given, found nothing")
            return default
        for key in present:
            problem = self._check(name, self.raw(key))
            if problem:
                self.fail(key, problem)
        value = self.raw(present[0])
        for key in present[1:]:
            if self.raw(key) != value:
                self.fail(key, f'must agree with "{present[0]}": {value}, found {self.raw(key)}')
        return value

    def fail(self, key: str, problem: str, *, hint: bool = True) -> NoReturn:
        """Raises the CheckpointError for `key`; `hint` asks whether the checkpoint is gpt-oss."""
        question = "; is this a gpt-oss checkpoint?" if hint else ""
        raise CheckpointError(f'{self.prefix} "{self._parent}{key}" {problem}{question}')
