"""Saved sessions: the same bits afterwards, and no file that is damaged or not ours is taken."""

from __future__ import annotations

import os
from pathlib import Path

import gpt_oss_native as gon
import numpy as np
import pytest
from gpt_oss_native.errors import CheckpointError, InvalidArgument
from reference.checkpoints import random_checkpoint, write_hugging_face
from reference.engine_support import (
    FORMATS,
    PAGE,
    SHAPES,
    directory,
    last_logits,
    random_tokens,
    shared_model,
)

forms = pytest.mark.parametrize("form", FORMATS)
shapes = pytest.mark.parametrize("shape", SHAPES)


@forms
@shapes
@pytest.mark.parametrize("length", [0, 1, PAGE, 3 * PAGE + 5, 700])
def test_a_restored_session_goes_on_bit_for_bit(
    form: str, shape: str, length: int, rng: np.random.Generator, tmp_path: Path
) -> None:
    model = shared_model(form, shape=shape)
    text = random_tokens(rng, length)
    path = tmp_path / "session"
    session = model.session(max_tokens=1000)
    if text:
        session.forward(text, logits="none")
    session.save(path)
    restored = model.restore(path)
    assert restored.tokens == text
    assert restored.max_tokens == 1000
    assert restored.cached == length
    more = random_tokens(rng, 70)
    expected = last_logits(model, text + more)
    assert np.array_equal(restored.forward(more), expected)
    assert np.array_equal(session.forward(more), expected)  # saving changed nothing
    for position in (max(length - 1, 0), length // 2):
        restored.rewind(position)
        expected = last_logits(model, text[:position] + more)
        assert np.array_equal(restored.forward(more), expected)


def test_waiting_tokens_are_saved_and_forwarded_later(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    model = shared_model()
    prompt = random_tokens(rng, 500)
    session = model.session()
    tokens = list(session.generate(prompt, gon.Sampling(temperature=0), max_new_tokens=4))
    session.rewind(300)
    waiting = session.position - session.cached
    assert waiting > 0
    session.save(tmp_path / "session")
    restored = model.restore(tmp_path / "session")
    assert restored.tokens == (prompt + tokens)[:300]
    assert restored.cached == session.cached
    expected = last_logits(model, [*prompt[:300], 1])
    assert np.array_equal(restored.forward([1]), expected)


def test_equal_sessions_make_equal_files(rng: np.random.Generator, tmp_path: Path) -> None:
    # Pages are taken from the pool with old contents; nothing of those may show in a file.
    model = shared_model()
    text = random_tokens(rng, 150)
    files = []
    for at in range(3):
        with model.session() as other:
            other.forward(random_tokens(rng, 300), logits="none")
        with model.session() as session:
            for token_range in (text[: 40 * at], text[40 * at :]):
                if token_range:
                    session.forward(token_range)
            session.save(tmp_path / str(at))
        files.append((tmp_path / str(at)).read_bytes())
    assert files[0] == files[1] == files[2]


def test_another_process_may_load_it_with_other_threads(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    text = random_tokens(rng, 200)
    session = shared_model().session()
    session.forward(text, logits="none")
    session.save(tmp_path / "session")
    other = gon.Model.load(directory(), device="cpu", num_threads=3)
    restored = other.restore(str(tmp_path / "session"))
    assert np.array_equal(restored.forward([1]), last_logits(shared_model(), [*text, 1]))


def test_a_session_of_another_model_precision_or_format_is_refused(tmp_path: Path) -> None:
    session = shared_model("bf16").session()
    session.forward([1, 2, 3])
    path = tmp_path / "session"
    session.save(path)
    retrained = tmp_path / "retrained"
    write_hugging_face(random_checkpoint(8, SHAPES["short_window"]), retrained)
    others = [
        shared_model("float32"),
        shared_model("int8"),
        shared_model("bf16", shape="long_window"),
        gon.Model.load(retrained, device="cpu", num_threads=1),
    ]
    for model in others:
        with pytest.raises(InvalidArgument, match="another model"):
            model.restore(path)
        assert len(last_logits(model, [1])) == 331


@pytest.fixture
def saved(tmp_path: Path, rng: np.random.Generator) -> Path:
    session = shared_model().session()
    session.generate(random_tokens(rng, 80), max_new_tokens=1).__next__()
    session.save(tmp_path / "session")
    return tmp_path / "session"


def test_a_file_cut_anywhere_is_refused(saved: Path, rng: np.random.Generator) -> None:
    whole = saved.read_bytes()
    for size in [0, 1, 8, 55, 56, 57, len(whole) - 1, *rng.integers(0, len(whole), 10).tolist()]:
        saved.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="truncated"):
            shared_model().restore(saved)
    saved.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError):
        shared_model().restore(saved)


def test_a_file_with_any_byte_changed_is_refused(saved: Path, rng: np.random.Generator) -> None:
    whole = saved.read_bytes()
    model = shared_model()
    before = model.memory()["sessions"]
    places = [*range(60), *range(len(whole) - 9, len(whole))]
    places += rng.integers(60, len(whole), 60).tolist()
    for at in places:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(rng.integers(8))
        saved.write_bytes(damaged)
        # A changed fingerprint is another model's; all else is damage.
        kind = InvalidArgument if 16 <= at < 24 else CheckpointError
        with pytest.raises(kind, match="restore"):
            model.restore(saved)
    assert model.memory()["sessions"] == before  # nothing half restored is left
    saved.write_bytes(whole)
    assert model.restore(saved).position == 81


def test_what_is_no_session_is_refused(tmp_path: Path) -> None:
    model = shared_model()
    (tmp_path / "text").write_text("a text of more bytes than the header of a saved session has\n")
    for path in (tmp_path / "nothing", tmp_path / "text", tmp_path):
        with pytest.raises(CheckpointError, match="restore"):
            model.restore(path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_no_space_and_no_folder_are_told_and_the_session_goes_on(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    model = shared_model()
    text = random_tokens(rng, 100)
    session = model.session()
    session.forward(text)
    with pytest.raises(CheckpointError, match="save"):
        session.save(tmp_path / "missing" / "session")
    # The file is written beside its place first: there, a link to the device that is always full.
    (tmp_path / f"session.partial-{os.getpid()}").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match="space"):
        session.save(tmp_path / "session")
    assert list(tmp_path.iterdir()) == []
    session.save(tmp_path / "session")
    assert model.restore(tmp_path / "session").tokens == text
    assert np.array_equal(session.forward([1]), last_logits(model, [*text, 1]))


def test_a_failed_save_leaves_the_file_that_was_there(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    model = shared_model()
    session = model.session()
    session.forward([1, 2, 3])
    path = tmp_path / "session"
    session.save(path)
    before = path.read_bytes()
    session.forward(random_tokens(rng, 100))
    if Path("/dev/full").exists():
        (tmp_path / f"session.partial-{os.getpid()}").symlink_to("/dev/full")
        with pytest.raises(CheckpointError):
            session.save(path)
        assert path.read_bytes() == before
    session.save(path)
    assert model.restore(path).position == 103
