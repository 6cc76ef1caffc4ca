"""What the embedded checkpoint answers through `Chat`, greedy: questions, follow-ups, tools.

The samples are fixed, drawn by the programs that drew its training data, from questions that it was
not trained on where those tell them apart.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("gpt_oss_native._core")

from gpt_oss_native import Model, Sampling
from gpt_oss_native.chat import Function

GREEDY = Sampling(temperature=0)
LONGEST = 400  # tokens of a turn


@pytest.fixture(scope="module")
def programs() -> Iterator[dict[str, ModuleType]]:
    """The modules of examples/train_nano that draw questions."""
    directory = str(Path(__file__).parents[2] / "examples" / "train_nano")
    names = ("data", "tools", "wordings")
    before = {name: sys.modules.pop(name, None) for name in names}
    sys.path.insert(0, directory)
    try:
        yield {name: __import__(name) for name in names}
    finally:
        sys.path.remove(directory)
        for name in names:
            sys.modules.pop(name, None)
            if before[name] is not None:
                sys.modules[name] = before[name]  # type: ignore[assignment]


def test_one_turn_is_right_19_times_of_20(nano: Model, programs: dict[str, ModuleType]) -> None:
    data = programs["data"]
    wrong = []
    questions = data.held_out_questions(200, seed=3)
    for question in questions:
        with nano.chat(sampling=GREEDY, max_new_tokens=LONGEST) as chat:
            final = chat.ask(question.text).final
        if not data.is_correct(final, question):
            wrong.append((question.text, final, question.answer))
    print(f"one turn: {len(questions) - len(wrong)} of {len(questions)}")
    assert len(wrong) <= 0.05 * len(questions), wrong


def test_a_second_turn_is_right_19_times_of_20(
    nano: Model, programs: dict[str, ModuleType]
) -> None:
    """Half of them ask to go on with the first answer ("Add 5 to that."), half something else."""
    data, rng = programs["data"], random.Random(6)
    wrong, num_asked = [], {True: 0, False: 0}
    for one in data.held_out_questions(160, seed=4):
        following = data.follow_up(rng, one, held_out=True)
        if num_asked[True] > num_asked[False]:
            following = None
        num_asked[following is not None] += 1
        two = following or data.make_question(rng, held_out=True)
        with nano.chat(sampling=GREEDY, max_new_tokens=LONGEST) as chat:
            finals = chat.ask(one.text).final, chat.ask(two.text).final
        if not data.is_correct(finals[1], two):
            wrong.append((one.text, two.text, finals, two.answer))
    count = sum(num_asked.values())
    print(f"two turns: {count - len(wrong)} of {count}, {num_asked[True]} of them follow-ups")
    assert num_asked[True] >= 0.4 * count
    assert len(wrong) <= 0.05 * count, wrong


def test_effort_decides_how_long_the_reasoning_is(
    nano: Model, programs: dict[str, ModuleType]
) -> None:
    data = programs["data"]
    questions = data.held_out_questions(60, seed=5)
    means, wrong = {}, []
    for effort in data.EFFORTS:
        tokens = 0
        for question in questions:
            with nano.chat(reasoning=effort, sampling=GREEDY, max_new_tokens=LONGEST) as chat:
                reply = chat.ask(question.text)
            tokens += reply.usage.reasoning_tokens
            if not data.is_correct(reply.final, question):
                wrong.append((effort, question.text, reply.final))
        means[effort] = tokens / len(questions)
    print(f"mean tokens of reasoning: {means}; {len(wrong)} of {3 * len(questions)} wrong")
    assert 1.2 * means["low"] < means["medium"] < 0.7 * means["high"]
    assert len(wrong) <= 0.05 * 3 * len(questions), wrong


def test_tool_questions_are_right_9_times_of_10(
    nano: Model, programs: dict[str, ModuleType]
) -> None:
    """The right function is called with the right arguments, and its result is the answer."""
    tools, rng, wrong, count = programs["tools"], random.Random(7), [], 150
    for i in range(count):
        tool = tools.make_tool(rng, tools.FAMILIES[i % len(tools.FAMILIES)])
        question, values, result = tools.ask(rng, tool)
        calls: list[Any] = []

        def function(_calls: list[Any] = calls, _result: str = result, **arguments: Any) -> str:
            _calls.append(arguments)
            return _result

        declared = Function(
            function, name=tool.name, description=tool.description, parameters=tool.schema()
        )
        with nano.chat(tools=[declared], sampling=GREEDY, max_new_tokens=LONGEST) as chat:
            final = chat.ask(question).final
        expected = dict(zip(tool.arguments, values, strict=True))
        if calls != [expected] or final != result:
            wrong.append((question, tool, calls, final, result))
    print(f"tools: {count - len(wrong)} of {count}")
    assert len(wrong) <= 0.1 * count, wrong


def test_a_calculator_and_a_lookup_are_used_over_several_turns(
    nano: Model, programs: dict[str, ModuleType]
) -> None:
    """Two real functions, read from their signatures; each chat goes on for three questions."""
    data, rng = programs["data"], random.Random(8)
    words = programs["wordings"].WORDS
    values = {word: str(rng.randrange(1000)) for word in words}

    def calculator(expression: str) -> int:
        """Evaluates an arithmetic expression."""
        left, sign, right = re.fullmatch(r"(-?\d+) ([-+*]) (\d+)", expression).groups()  # type: ignore[union-attr]
        a, b = int(left), int(right)
        return {"+": a + b, "-": a - b, "*": a * b}[sign]

    def lookup(key: str) -> str:
        """Looks up the value of a key."""
        return values[key]

    wrong, count = [], 0
    for _ in range(30):
        with nano.chat(tools=[calculator, lookup], sampling=GREEDY, max_new_tokens=LONGEST) as chat:
            for _ in range(3):
                count += 1
                if rng.random() < 0.5:
                    word = rng.choice(words)
                    question, answer, name = f"Look up {word}.", values[word], "lookup"
                else:
                    task = rng.choice(("add", "subtract", "multiply"))
                    drawn = data.make_question(rng, task, held_out=True)
                    question, answer, name = drawn.text, drawn.answer, "calculator"
                reply = chat.ask(question)
                called = [call.name for call in reply.tool_calls]
                if reply.final != answer or called != [f"functions.{name}"]:
                    wrong.append((question, reply.tool_calls, reply.final, answer))
    print(f"calculator and lookup: {count - len(wrong)} of {count}")
    assert len(wrong) <= 0.1 * count, wrong
