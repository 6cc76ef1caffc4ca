"""The embedded checkpoint answers unseen questions through the engine: the proof from end to end.

Every op, the tokenizer, the harmony text and the sampler have to be right for it to add up.
"""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("gpt_oss_native._core", reason="the compiled core is not installed")

import gpt_oss_native as gon
from gpt_oss_native.harmony import Role

TRAINING = Path(__file__).resolve().parents[2] / "examples" / "train_nano"
QUESTIONS = 500
REQUIRED = 0.95
LONGEST_REPLY = 400  # with high effort


@pytest.fixture(scope="module")
def training() -> Iterator[tuple[ModuleType, ModuleType]]:
    """The modules `data` and `conversations` of the training program; no torch in them."""
    sys.path.insert(0, str(TRAINING))
    yield importlib.import_module("data"), importlib.import_module("conversations")
    sys.path.remove(str(TRAINING))


@pytest.mark.parametrize(
    ("precision", "dense"), [("default", "bf16"), ("default", "int8"), ("float32", "bf16")]
)
def test_nano_answers_unseen_questions_exactly(
    training: tuple[ModuleType, ModuleType], precision: str, dense: str
) -> None:
    data, conversations = training
    openings = random.Random("evaluation openings")
    wrong = []
    with gon.Model.load("nano", precision=precision, dense=dense) as model:  # type: ignore[arg-type]
        harmony = model.harmony
        stops = harmony.stop_tokens_for_assistant_actions()
        for question in data.held_out_questions(QUESTIONS, seed=0):
            text = conversations.prompt(question.text, conversations.system_message(openings))
            prompt = harmony.encode(text, allowed_special="all")
            with model.session() as session:
                reply = list(
                    session.generate(
                        prompt,
                        gon.Sampling(temperature=0),
                        max_new_tokens=LONGEST_REPLY,
                        stop_tokens=stops,
                    )
                )
            messages = harmony.parse_messages_from_completion_tokens(reply, Role.ASSISTANT)
            finals = [message.text for message in messages if message.channel == "final"]
            final = finals[-1] if finals else ""
            if not data.is_correct(final, question):
                wrong.append(f"{question.text} -> {final!r}, not {question.answer!r}")
    right = QUESTIONS - len(wrong)
    print(f"nano, {precision}, dense {dense}: {right} of {QUESTIONS}")
    assert right >= REQUIRED * QUESTIONS, "\n".join(wrong)
