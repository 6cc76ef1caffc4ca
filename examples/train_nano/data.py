"""Questions with worked reasoning: what the nano checkpoint is trained on and tested with.

Six tasks: addition, subtraction, multiplication by one digit, sorting, reversing a word, the
largest of several numbers. The reasoning breaks each into steps that are a copy or a one-digit
operation, so that a very small model can carry them out exactly. It comes in three lengths, one for
each effort. A follow-up asks to go on with the answer before it ("Add 5 to that.").

Needs only the standard library. A question is held out of training by a checksum of its task and
operands (one in sixteen), so training and test questions never share operands in one order,
whatever their wording.

    questions = held_out_questions(500)
    questions[0].text, questions[0].answer, is_correct("432", questions[0])
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from wordings import (
    ADD,
    LARGER_OF_TWO,
    LARGEST,
    MULTIPLY,
    REVERSE,
    SORT,
    SUBTRACT,
    THEN_ADD,
    THEN_MULTIPLY,
    THEN_REVERSE,
    THEN_SUBTRACT,
    WHOLE_WORDS,
    WORDS,
)

HELD_OUT_ONE_IN = 16

EFFORTS = ("low", "medium", "high")


@dataclass(frozen=True)
class Question:
    """One question: its wording, the reasoning the model is taught, and the exact final answer."""

    task: str
    text: str
    analysis: str
    answer: str
    held_out: bool

    def reasoning(self, effort: str) -> str:
        """Return the analysis at an effort: the steps alone, what is asked and the steps, or all
        of that twice."""
        if effort == "medium":
            return self.analysis
        if effort == "high":
            return f"{self.analysis}\nCheck.\n{self.analysis}"
        lines = self.analysis.split("\n")
        if self.task == "largest":
            return "\n".join(line.rpartition(" ")[2] for line in lines)
        return "\n".join(line.removeprefix("min ") for line in lines[1:])


def is_correct(final_text: str, question: Question) -> bool:
    """Say whether a final message answers the question exactly (outer whitespace ignored)."""
    return final_text.strip() == question.answer


def _question(
    rng: random.Random, task: str, forms: Sequence[str], analysis: str, answer: str, **operands: str
) -> Question:
    key = "|".join([task, *operands.values()])
    held_out = zlib.crc32(key.encode()) % HELD_OUT_ONE_IN == 0
    return Question(task, rng.choice(forms).format(**operands), analysis, answer, held_out)


def _number(rng: random.Random, max_digits: int) -> int:
    return rng.randrange(10 ** rng.randint(1, max_digits))


def _add(rng: random.Random) -> Question:
    digits = rng.choice((2, 3, 3, 4, 4))
    return _sum(rng, ADD, _number(rng, digits), _number(rng, digits))


def _sum(rng: random.Random, forms: Sequence[str], a: int, b: int) -> Question:
    left, right = _padded(a, b)
    lines, carry, written = [f"{left}+{right}"], 0, ""
    for place in range(1, len(left) + 1):
        x, y = int(left[-place]), int(right[-place])
        total = x + y + carry
        step = f"{x}+{y}" + (f"+{carry}" if place > 1 else "")
        last = place == len(left)
        written = (str(total) if last else str(total % 10)) + written
        lines.append(f"{step}={total} -> {written}")
        carry = total // 10
    return _question(rng, "add", forms, "\n".join(lines), str(a + b), a=str(a), b=str(b))


def _subtract(rng: random.Random) -> Question:
    digits = rng.choice((2, 3, 3, 4, 4))
    a, b = _number(rng, digits), _number(rng, digits)
    if rng.random() < 0.15:  # close numbers: a long comparison, zeros in front of the result
        b = max(0, a + rng.randint(-12, 12))
    return _difference(rng, SUBTRACT, a, b)


def _difference(rng: random.Random, forms: Sequence[str], a: int, b: int) -> Question:
    left, right = _padded(a, b)
    compared = []
    for x, y in zip(left, right, strict=True):
        compared.append(f"{x}{'=' if x == y else '<' if x < y else '>'}{y}")
        if x != y:
            break
    if a < b:
        compared.append("swap")
    lines = [f"{left}-{right}", " ".join(compared)]
    if a < b:
        left, right = right, left
    lines.append(f"{left}-{right}")
    borrow, written = 0, ""
    for place in range(1, len(left) + 1):
        top, bottom = int(left[-place]), int(right[-place])
        minus = f"-{bottom}" + (f"-{borrow}" if place > 1 else "")
        step = f"{top}{minus}"
        difference = top - bottom - borrow
        borrow = 0
        if difference < 0:
            difference, borrow = difference + 10, 1
            step += f" borrow 1{top}{minus}"
        written = str(difference) + written
        lines.append(f"{step}={difference} -> {written}")
    return _question(rng, "subtract", forms, "\n".join(lines), str(a - b), a=str(a), b=str(b))


def _multiply(rng: random.Random) -> Question:
    a, b = rng.randrange(10 ** rng.choice((1, 2, 2, 3, 3, 3))), rng.randrange(10)
    return _product(rng, MULTIPLY, a, b)


def _product(rng: random.Random, forms: Sequence[str], a: int, b: int) -> Question:
    left = str(a)
    lines, carry, written = [f"{left}*{b}"], 0, ""
    for place in range(1, len(left) + 1):
        x = int(left[-place])
        total = x * b + carry
        step = f"{x}*{b}={x * b}" + (f" {x * b}+{carry}={total}" if place > 1 else "")
        written = (str(total) if place == len(left) else str(total % 10)) + written
        lines.append(f"{step} -> {written}")
        carry = total // 10
    return _question(rng, "multiply", forms, "\n".join(lines), str(a * b), a=str(a), b=str(b))


def _sort(rng: random.Random) -> Question:
    numbers = [_number(rng, 2) if rng.random() < 0.4 else rng.randrange(100)
               for _ in range(rng.randint(3, 6))]  # fmt: skip
    left = [f"{n:02d}" for n in numbers]
    lines = [" ".join(left)]
    while left:
        smallest = min(left)
        left.remove(smallest)
        lines.append(f"min {smallest}" + (": " + " ".join(left) if left else ""))
    answer = ", ".join(str(n) for n in sorted(numbers))
    return _question(rng, "sort", SORT, "\n".join(lines), answer, list=_listed(rng, numbers))


def _reverse(rng: random.Random) -> Question:
    kind = rng.random()
    if kind < 0.25:
        word = rng.choice(WORDS)
    elif kind < 0.3:
        word = rng.choice(WHOLE_WORDS)
    else:
        word = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 8)))
    return _backwards(rng, REVERSE, word)


def _backwards(rng: random.Random, forms: Sequence[str], word: str) -> Question:
    spelled = [f"{i}{letter}" for i, letter in enumerate(word, 1)]
    analysis = " ".join(spelled) + "\n" + " ".join(reversed(spelled))
    return _question(rng, "reverse", forms, analysis, word[::-1], w=word)


def _largest(rng: random.Random) -> Question:
    numbers = [_number(rng, 3) if rng.random() < 0.5 else rng.randrange(1000)
               for _ in range(rng.choice((2, 2, 3, 4, 5, 6)))]  # fmt: skip
    if rng.random() < 0.2:  # the same first digits: the comparison has to go on to the last
        numbers = [min(999, max(0, numbers[0] + rng.randint(-15, 15))) for _ in numbers]
    lines, largest = [], numbers[0]
    for n in numbers[1:]:
        lines.append(f"{largest:03d} {n:03d}: {max(largest, n):03d}")
        largest = max(largest, n)
    if len(numbers) == 2:
        a, b = map(str, numbers)
        return _question(rng, "largest", LARGER_OF_TWO, "\n".join(lines), str(largest), a=a, b=b)
    listed = _listed(rng, numbers)
    return _question(rng, "largest", LARGEST, "\n".join(lines), str(largest), list=listed)


def _padded(a: int, b: int) -> tuple[str, str]:
    width = max(len(str(a)), len(str(b)))
    return f"{a:0{width}d}", f"{b:0{width}d}"


def _listed(rng: random.Random, numbers: Sequence[int]) -> str:
    words = [str(n) for n in numbers]
    style = rng.random()
    if style < 0.7:
        return ", ".join(words)
    if style < 0.85:
        return ", ".join(words[:-1]) + " and " + words[-1]
    return " ".join(words)


TASKS = {
    "add": _add,
    "subtract": _subtract,
    "multiply": _multiply,
    "sort": _sort,
    "reverse": _reverse,
    "largest": _largest,
}


def make_question(rng: random.Random, task: str | None = None, *, held_out: bool) -> Question:
    """Draw one question, of one task or of any; `held_out` says from which side of the split."""
    make = TASKS[task or rng.choice(tuple(TASKS))]
    while True:
        question = make(rng)
        if question.held_out == held_out:
            return question


def follow_up(rng: random.Random, before: Question, *, held_out: bool) -> Question | None:
    """Draw a question about the answer of another; None where its answer is no fit operand."""
    if before.task == "reverse":
        question = _backwards(rng, THEN_REVERSE, before.answer)
        return question if question.held_out == held_out else None
    if not before.answer.isdigit() or len(before.answer) > 4:
        return None
    a = int(before.answer)
    while True:
        kind = rng.choice(("add", "subtract", "multiply"))
        if kind == "multiply" and a < 1000:
            question = _product(rng, THEN_MULTIPLY, a, rng.randrange(10))
        elif kind == "subtract":
            question = _difference(rng, THEN_SUBTRACT, a, _number(rng, rng.choice((1, 2, 3, 4))))
        else:
            question = _sum(rng, THEN_ADD, a, _number(rng, rng.choice((1, 2, 3, 4))))
        if question.held_out == held_out:
            return question


def held_out_questions(count: int, *, seed: int = 0, task: str | None = None) -> list[Question]:
    """Return `count` distinct questions never trained on, the six tasks in turn (or one task)."""
    rng = random.Random(f"held out {seed}")
    names = [task] if task else list(TASKS)
    seen: set[str] = set()
    questions: list[Question] = []
    while len(questions) < count:
        question = make_question(rng, names[len(questions) % len(names)], held_out=True)
        if question.text not in seen:
            seen.add(question.text)
            questions.append(question)
    return questions
