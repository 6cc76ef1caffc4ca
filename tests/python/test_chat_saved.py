"""A conversation in a file: what was said, token for token, or a clear refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gpt_oss_native._core")

from gpt_oss_native import InvalidArgument, Model
from reference.scripted_chat import ScriptedChat, answer, call, final, lookup


def test_a_resumed_chat_has_the_tokens_and_messages_of_the_saved_one(
    scripted: ScriptedChat, tmp_path: Path
) -> None:
    path = tmp_path / "chat.json"
    script = (call('{"key":"k"}', thought="hm"), answer("so", "one <|end|>"), answer("a", "two"))
    chat, _ = scripted(*script, answer("b", "three"), tools=[lookup])
    chat.ask("find <|start|>")
    chat.ask("again")
    chat.save(path)
    other, model = scripted(answer("b", "three"), tools=[lookup])
    other.resume(path)
    assert [m.to_dict() for m in other.messages[1:]] == [m.to_dict() for m in chat.messages[1:]]
    assert chat.ask("last").final == other.ask("last").final == "three"
    assert chat.session.tokens == other.session.tokens
    begin = other.session.tokens.index(model.harmony.channel)
    assert model.forwarded[0] == len(other.session.tokens) - len(answer_tokens(model)) > begin


def answer_tokens(model: Any) -> list[int]:
    tokens: list[int] = model.harmony.encode(answer("b", "three"), allowed_special="all")
    return tokens


def test_the_opening_may_be_another(scripted: ScriptedChat, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    chat, _ = scripted(answer("x", "y"), instructions="Be kind.")
    chat.ask("one")
    chat.save(path)
    other, model = scripted(final("z"), instructions="Be brief.", reasoning="low")
    other.resume(path)
    other.ask("two")
    text = model.harmony.decode(other.session.tokens)
    assert "Be brief." in text
    assert "Be kind." not in text
    assert "one<|end|><|start|>assistant<|channel|>final<|message|>y<|end|>" in text


def test_odd_headers_of_a_model_are_kept(scripted: ScriptedChat, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    odd = "<|channel|>commentary to=functions.no such<|message|>{}<|end|>" + "<|start|>assistant"
    chat, _ = scripted(odd + final("x"), mask_headers=False)
    chat.ask("one")
    chat.save(path)
    other, _ = scripted(final("y"))
    other.resume(path)
    assert [m.recipient for m in other.messages] == [m.recipient for m in chat.messages]
    assert other.ask("two").final == "y"


def test_a_chat_under_way_takes_up_no_other(scripted: ScriptedChat, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    chat, _ = scripted(final("x"))
    chat.ask("one")
    chat.save(path)
    with pytest.raises(InvalidArgument, match="not asked anything"):
        chat.resume(path)


def test_what_is_no_conversation_of_this_vocabulary_is_refused(
    nano: Model, scripted: ScriptedChat, tmp_path: Path
) -> None:
    path = tmp_path / "chat.json"
    chat, _ = scripted(final("x"))
    chat.ask("one")
    chat.save(path)
    good = json.loads(path.read_text())
    message = good["messages"][0]
    for content in (
        [],
        {},
        good | {"format": "x"},
        good | {"version": 2},
        good | {"tokens": ["1"]},
        good | {"tokens": [True]},
        good | {"tokens": None},
        good | {"tokens": [1, 2, 3]},
        good | {"checksum": 0},
        good | {"messages": [1]},
        good | {"messages": [message | {"role": "king"}]},
        good | {"messages": [message | {"text": None}]},
        good | {"messages": [message | {"channel": 3}]},
    ):
        path.write_text(json.dumps(content))
        with nano.chat() as fresh, pytest.raises(InvalidArgument, match="expected a conversation"):
            fresh.resume(path)
    for data in (b"", b"\xff\xfe", b"[" * 100_000):
        path.write_bytes(data)
        with nano.chat() as fresh, pytest.raises(InvalidArgument, match="expected a conversation"):
            fresh.resume(path)
    with nano.chat() as fresh, pytest.raises(OSError, match="absent"):
        fresh.resume(tmp_path / "absent.json")


def test_a_conversation_longer_than_the_context_is_refused(
    nano: Model, scripted: ScriptedChat, tmp_path: Path
) -> None:
    path = tmp_path / "chat.json"
    chat, _ = scripted(final("word " * 200))
    chat.ask("one")
    chat.save(path)
    with nano.chat(max_tokens=150) as short:
        with pytest.raises(InvalidArgument, match="max_tokens"):
            short.resume(path)
        assert len(short.messages) == 1


def test_saving_replaces_a_file_at_once_or_leaves_it(
    scripted: ScriptedChat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "chat.json"
    path.write_text("before")
    chat, _ = scripted(final("x"))
    chat.ask("one")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(json, "dump", full)
        with pytest.raises(OSError, match="space"):
            chat.save(path)
    assert path.read_text() == "before"
    assert [file.name for file in tmp_path.iterdir()] == ["chat.json"]
    chat.save(path)
    assert path.read_text() != "before"
