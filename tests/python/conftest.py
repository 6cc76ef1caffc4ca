"""What tests share: the embedded model, chats whose samples are scripted, the command line."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from gpt_oss_native import Model
    from gpt_oss_native.chat import Chat
    from gpt_oss_native.tools import ApplyPatchTool
    from reference.cli_support import Run
    from reference.scripted_chat import ScriptedChat, ScriptedModel


@pytest.fixture(scope="session")
def nano() -> Iterator[Model]:
    """The embedded model, on one thread."""
    pytest.importorskip("gpt_oss_native._core", reason="the compiled core is not installed")
    from gpt_oss_native import Model

    with Model.load("nano", num_threads=1) as model:
        yield model


@pytest.fixture
def scripted(nano: Model) -> ScriptedChat:
    """``scripted(answer, ..., **options)``: a chat that will sample these answers in turn."""
    from gpt_oss_native.chat import Chat
    from reference.scripted_chat import ScriptedModel

    def make(*answers: str, **options: Any) -> tuple[Chat, ScriptedModel]:
        model = ScriptedModel(nano, list(answers))
        return Chat(model, **options), model  # type: ignore[arg-type]

    return make


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """``run(*args, stdin=b"")``: code, out and err of one command in this process."""

    from gpt_oss_native.cli import main

    def call(*args: str, stdin: bytes = b"") -> SimpleNamespace:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        code: object
        try:
            code = main(args)
        except SystemExit as error:
            code = error.code
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return call


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty folder beside which others may be."""
    directory = tmp_path / "root"
    directory.mkdir()
    return directory


@pytest.fixture
def tool(root: Path) -> Iterator[ApplyPatchTool]:
    """apply_patch, confined to the folder ``root``."""
    from gpt_oss_native.tools import ApplyPatchTool

    with ApplyPatchTool(root) as tool:
        yield tool
