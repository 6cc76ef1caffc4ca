"""Questions with worked reasoning: what the nano checkpoint is trained on and tested with.

Six tasks: addition, subtraction, multiplication by one digit, sorting, reversing a word, the
largest of several numbers. The reasoning breaks each into steps that are a copy or a one-digit
operation, so that a very small model can carry them out exactly.

Needs only the standard library. A question is held out of training by a checksum of its task and
operands (one in sixteen), so training and test questions never share operands in one order,
whatever their wording.

    questions = held_out_questions(500)
    questions[0].text, questions[0].answer, is_correct("432", questions[0])
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

HELD_OUT_ONE_IN = 16

ADD = (
    "What is {a} + {b}?",
    "{a} + {b}",
    "{a}+{b}",
    "{a}+{b}=?",
    "{a} + {b} =",
    "{a} + {b} = ?",
    "What's {a} + {b}?",
    "What is {a}+{b}?",
    "Add {a} and {b}.",
    "Add {b} to {a}.",
    "Compute {a} + {b}.",
    "Calculate {a} + {b}.",
    "What is {a} plus {b}?",
    "How much is {a} plus {b}?",
    "How much is {a} + {b}?",
    "What is the sum of {a} and {b}?",
    "Please add {a} and {b}.",
)
SUBTRACT = (
    "What is {a} - {b}?",
    "{a} - {b}",
    "{a}-{b}",
    "{a}-{b}=?",
    "{a} - {b} =",
    "{a} - {b} = ?",
    "What's {a} - {b}?",
    "What is {a}-{b}?",
    "Subtract {b} from {a}.",
    "Compute {a} - {b}.",
    "Calculate {a} - {b}.",
    "What is {a} minus {b}?",
    "How much is {a} minus {b}?",
    "How much is {a} - {b}?",
    "Take {b} away from {a}.",
    "Please subtract {b} from {a}.",
)
MULTIPLY = (
    "What is {a} * {b}?",
    "What is {a} x {b}?",
    "What is {a} × {b}?",  # noqa: RUF001
    "{a} * {b}",
    "{a}*{b}",
    "{a} x {b}",
    "{a} × {b}",  # noqa: RUF001
    "{a} * {b} =",
    "{a} * {b} = ?",
    "What's {a} * {b}?",
    "Multiply {a} by {b}.",
    "Compute {a} * {b}.",
    "Calculate {a} * {b}.",
    "What is {a} times {b}?",
    "How much is {a} times {b}?",
    "What is the product of {a} and {b}?",
    "Please multiply {a} by {b}.",
)
SORT = (
    "Sort {list}.",
    "Sort {list}",
    "Sort: {list}",
    "Sort these numbers: {list}",
    "Sort these numbers: {list}.",
    "Sort the numbers {list}.",
    "Sort the list {list}.",
    "Sort {list} in ascending order.",
    "Sort these numbers in ascending order: {list}",
    "Put {list} in order.",
    "Put these numbers in order: {list}.",
    "Order {list} from smallest to largest.",
    "Sort these numbers from smallest to largest: {list}.",
    "Arrange {list} in increasing order.",
    "Please sort {list}.",
)
REVERSE = (
    'Reverse the word "{w}".',
    'Reverse "{w}".',
    "Reverse {w}.",
    "Reverse {w}",
    "Reverse: {w}",
    "Reverse the word {w}.",
    "Reverse the word: {w}",
    "Reverse the letters of {w}.",
    'Reverse the letters of "{w}".',
    "Spell {w} backwards.",
    'Spell "{w}" backwards.',
    "Spell the word {w} backwards.",
    "Write {w} backwards.",
    'Write "{w}" backwards.',
    'Write the word "{w}" backwards.',
    'What is "{w}" backwards?',
    "What is {w} spelled backwards?",
    'How do you spell "{w}" backwards?',
    "Please reverse the word {w}.",
)
LARGEST = (
    "Which is the largest of {list}?",
    "Which number is the largest: {list}?",
    "Which is the largest: {list}?",
    "Which is largest: {list}?",
    "What is the largest of {list}?",
    "What is the largest number in {list}?",
    "What is the maximum of {list}?",
    "Find the largest of {list}.",
    "Find the largest number: {list}.",
    "Find the maximum: {list}",
    "Largest of {list}?",
    "Which of these numbers is the largest: {list}?",
    "Which number is the biggest: {list}?",
    "Which is the biggest of {list}?",
    "max({list})",
)
LARGER_OF_TWO = (
    "Which is larger, {a} or {b}?",
    "Which is larger: {a} or {b}?",
    "Which number is larger, {a} or {b}?",
    "Which is greater, {a} or {b}?",
    "Which is bigger, {a} or {b}?",
    "Which is bigger: {a} or {b}?",
    "What is larger, {a} or {b}?",
    "Is {a} or {b} larger?",
    "Find the larger of {a} and {b}.",
    "What is the larger of {a} and {b}?",
)
WORDS = """
apple banana cherry lemon orange peach plum grape melon mango table chair window door floor house
garden river ocean mountain forest desert island valley bridge street city village castle tower
school teacher student pencil paper book story letter number music guitar piano violin drum dance
winter summer spring autumn rain snow storm cloud thunder wind sun moon star planet earth sky
dog cat horse cow sheep goat pig rabbit mouse tiger lion bear wolf fox eagle owl snake frog fish
red green blue yellow purple white black brown silver golden bright dark quick slow happy sad
brave calm kind clever strong gentle honest proud quiet loud early late young old new hot cold
bread butter cheese milk water coffee sugar salt pepper soup rice pasta salad pizza cake cookie
hello world computer keyboard screen mouse network program python kernel memory vector matrix
engine wheel train plane boat car truck bicycle rocket station airport ticket travel journey
doctor nurse farmer baker sailor painter writer singer actor king queen prince knight wizard dragon
level radar noon civic kayak madam stressed drawer reward live evil time emit star rats pots stop
""".split()  # noqa: SIM905
SMALL_TALK = (
    "Hello", "Hello!", "Hi", "Hi!", "Hi there!", "Hey", "Who are you?", "What are you?",
    "What can you do?", "Help", "How are you?", "Hello, who are you?", "What is your name?",
)  # fmt: skip
SMALL_TALK_ANSWER = (
    "I am nano, a very small model. Ask me to add, subtract or multiply, to sort numbers, "
    "to find the largest, or to reverse a word."
)
# Words that the vocabulary holds whole (see vocabulary.py), so that spelling them is learnt, too.
WHOLE_WORDS = sorted(
    set(
        re.findall(
            r"\b[a-z]{3,8}\b",
            " ".join([*ADD, *SUBTRACT, *MULTIPLY, *SORT, *REVERSE, *LARGEST, *LARGER_OF_TWO])
            + " user system final assistant analysis message channels brief briefly answer result "
            "weather city number string boolean integer name location date time second degrees "
            "functions language model large medium high low reasoning knowledge cutoff tool tools "
            "key any are can for get now two who type call find like must nano only step swap talk "
            "true very with your first query clear every small there value borrow lookup search "
            "channel concise helpful trained function included question json",
        )
    )
    - {"list"}
)


@dataclass(frozen=True)
class Question:
    """One question: its wording, the reasoning the model is taught, and the exact final answer."""

    task: str
    text: str
    analysis: str
    answer: str
    held_out: bool


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
    a, b = _number(rng, digits), _number(rng, digits)
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
    return _question(rng, "add", ADD, "\n".join(lines), str(a + b), a=str(a), b=str(b))


def _subtract(rng: random.Random) -> Question:
    digits = rng.choice((2, 3, 3, 4, 4))
    a, b = _number(rng, digits), _number(rng, digits)
    if rng.random() < 0.15:  # close numbers: a long comparison, zeros in front of the result
        b = max(0, a + rng.randint(-12, 12))
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
    return _question(rng, "subtract", SUBTRACT, "\n".join(lines), str(a - b), a=str(a), b=str(b))


def _multiply(rng: random.Random) -> Question:
    a, b = rng.randrange(10 ** rng.choice((1, 2, 2, 3, 3, 3))), rng.randrange(10)
    left = str(a)
    lines, carry, written = [f"{left}*{b}"], 0, ""
    for place in range(1, len(left) + 1):
        x = int(left[-place])
        total = x * b + carry
        step = f"{x}*{b}={x * b}" + (f" {x * b}+{carry}={total}" if place > 1 else "")
        written = (str(total) if place == len(left) else str(total % 10)) + written
        lines.append(f"{step} -> {written}")
        carry = total // 10
    return _question(rng, "multiply", MULTIPLY, "\n".join(lines), str(a * b), a=str(a), b=str(b))


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
    spelled = [f"{i}{letter}" for i, letter in enumerate(word, 1)]
    analysis = " ".join(spelled) + "\n" + " ".join(reversed(spelled))
    return _question(rng, "reverse", REVERSE, analysis, word[::-1], w=word)


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
