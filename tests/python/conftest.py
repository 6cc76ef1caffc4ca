"""What tests of chats share: the embedded model, and chats whose samples are scripted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from gpt_oss_native import Model
    from gpt_oss_native.chat import Chat
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
