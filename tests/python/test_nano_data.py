"""The nano checkpoint's questions, vocabulary and files keep what its training promises."""

from __future__ import annotations

import importlib
import json
import random
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "examples" / "train_nano"
NANO = ROOT / "python" / "gpt_oss_native" / "nano"


@pytest.fixture(scope="module")
def modules() -> dict[str, ModuleType]:
    """The program's modules, which import each other by plain name."""
    pytest.importorskip("tiktoken")
    pytest.importorskip("regex")
    sys.path.insert(0, str(PROGRAM))
    try:
        names = ("data", "wordings", "tools", "conversations", "vocabulary")
        return {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(PROGRAM))


def numbers_in(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def expected_answer(task: str, text: str) -> str | None:
    """Work the answer out from the wording alone, not from what the generator knows."""
    numbers = numbers_in(text)
    if task == "add":
        return str(numbers[0] + numbers[1])
    if task == "subtract":
        first, second = numbers
        swapped = "from" in text or text.startswith("Take")
        return str(second - first if swapped else first - second)
    if task == "multiply":
        return str(numbers[0] * numbers[1])
    if task == "sort":
        return ", ".join(map(str, sorted(numbers)))
    return str(max(numbers)) if task == "largest" else None


def test_answers_agree_with_the_wording_of_their_question(modules: dict[str, ModuleType]) -> None:
    data = modules["data"]
    for question in data.held_out_questions(1200, seed=5):
        if question.task == "reverse":
            assert question.answer[::-1] in re.findall(r"[a-z]+", question.text)
            continue
        assert question.answer == expected_answer(question.task, question.text), question.text


def test_every_sum_and_product_in_the_reasoning_is_true(modules: dict[str, ModuleType]) -> None:
    data = modules["data"]
    checked = 0
    for question in data.held_out_questions(1200, seed=6):
        for left, right in re.findall(r"([\d+*-]*[+*-][\d+*-]*)=(\d+)", question.analysis):
            terms = re.sub(r"\b0+(?=\d)", "", left)
            assert eval(terms) == int(right), (question.analysis, left)
            checked += 1
    assert checked > 1000


def test_follow_ups_go_on_with_the_answer_before_them(modules: dict[str, ModuleType]) -> None:
    data = modules["data"]
    rng, asked = random.Random(12), 0
    for question in data.held_out_questions(600, seed=8):
        following = data.follow_up(rng, question, held_out=True)
        if following is None:
            continue
        asked += 1
        if question.task == "reverse":
            assert following.answer == question.answer[::-1]
            continue
        text = f"{question.answer} {following.text}"
        first, second = numbers_in(text)
        results = {
            "add": first + second,
            "subtract": first - second,
            "multiply": first * second,
        }
        assert following.answer == str(results[following.task]), text
    assert asked > 200


def test_more_effort_is_longer_reasoning(modules: dict[str, ModuleType]) -> None:
    data = modules["data"]
    for question in data.held_out_questions(600, seed=9):
        low, medium, high = (question.reasoning(effort) for effort in data.EFFORTS)
        assert len(low) < len(medium) < len(high)
        assert medium == question.analysis


def test_held_out_questions_and_training_questions_share_no_operands(
    modules: dict[str, ModuleType],
) -> None:
    data = modules["data"]
    rng = random.Random(11)
    trained = {data.make_question(rng, held_out=False).text for _ in range(20_000)}
    assert not trained & {question.text for question in data.held_out_questions(500)}


def test_the_checker_accepts_the_exact_answer_only(modules: dict[str, ModuleType]) -> None:
    data = modules["data"]
    question = data.held_out_questions(1)[0]
    assert data.is_correct(f" {question.answer}\n", question)
    assert not data.is_correct(question.answer + "0", question)
    assert not data.is_correct("", question)


def test_questions_can_be_drawn_without_torch() -> None:
    code = "import sys, data; data.held_out_questions(3); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=PROGRAM, check=True)


def test_digits_and_letters_of_words_stay_single_tokens(modules: dict[str, ModuleType]) -> None:
    wordings, encoding = modules["wordings"], modules["vocabulary"].encoding()
    rng = random.Random(7)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=7)) for _ in range(500)]
    for word in {*words, *wordings.WORDS} - set(wordings.WHOLE_WORDS):
        spelled = [ord(letter) for letter in word]
        assert encoding.encode_ordinary(word) == spelled
        assert encoding.encode_ordinary(f" {word}") == [ord(" "), *spelled]
    assert encoding.encode_ordinary("1234567") == [ord(digit) for digit in "1234567"]


def test_tokenizer_file_is_the_vocabulary_the_program_trains_with(
    modules: dict[str, ModuleType],
) -> None:
    stored = json.loads((NANO / "tokenizer.json").read_text(encoding="utf-8"))
    assert stored == modules["vocabulary"].tokenizer_json()


def test_tokenizer_file_splits_text_as_tiktoken_does(modules: dict[str, ModuleType]) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    stored = tokenizers.Tokenizer.from_file(str(NANO / "tokenizer.json"))
    rng = random.Random(8)
    for _ in range(300):
        pieces = modules["conversations"].conversation(rng)
        text = "".join(piece.text for piece in pieces)
        assert stored.encode(text).ids == modules["vocabulary"].encode(text)


def test_the_embedded_checkpoint_stays_below_eight_megabytes() -> None:
    assert sum(file.stat().st_size for file in NANO.iterdir()) <= 8_000_000
