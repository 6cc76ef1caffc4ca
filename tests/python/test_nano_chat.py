"""What the embedded checkpoint answers through `Chat`, greedy: questions, two turns, tools.

The samples are fixed, drawn by the programs that drew its training data, from questions that it was
not trained on where those tell them apart.
"""

from __future__ import annotations

import random
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
def nano() -> Iterator[Model]:
    with Model.load("nano", num_threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def programs() -> Iterator[dict[str, ModuleType]]:
    """The modules ``data`` and ``tools`` of examples/train_nano."""
    directory = str(Path(__file__).parents[2] / "examples" / "train_nano")
    names = ("data", "tools")
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
    questions = data.held_out_questions(100, seed=3)
    for question in questions:
        with nano.chat(sampling=GREEDY, max_new_tokens=LONGEST) as chat:
            final = chat.ask(question.text).final
        if not data.is_correct(final, question):
            wrong.append((question.text, final, question.answer))
    assert len(wrong) <= 0.05 * len(questions), wrong


def test_a_second_turn_is_right_19_times_of_20(
    nano: Model, programs: dict[str, ModuleType]
) -> None:
    data = programs["data"]
    wrong = []
    first, second = data.held_out_questions(60, seed=4), data.held_out_questions(60, seed=5)
    random.Random(6).shuffle(second)
    for one, two in zip(first, second, strict=True):
        with nano.chat(sampling=GREEDY, max_new_tokens=LONGEST) as chat:
            finals = chat.ask(one.text).final, chat.ask(two.text).final
        if not data.is_correct(finals[1], two):
            wrong.append((one.text, two.text, finals, two.answer))
    assert len(wrong) <= 0.05 * len(first), wrong


def test_tool_questions_are_right_9_times_of_10(
    nano: Model, programs: dict[str, ModuleType]
) -> None:
    """The right function is called with the right arguments, and its result is the answer."""
    tools, rng, wrong, count = programs["tools"], random.Random(7), [], 100
    for i in range(count):
        tool = tools.make_tool(rng, ("weather", "time", "lookup", "add", "multiply")[i % 5])
        question, values, result = tools.ask(rng, tool)
        calls: list[Any] = []

        def function(_calls: list[Any] = calls, _result: str = result, **arguments: Any) -> str:
            _calls.append(arguments)
            return _result

        properties = {name: {"type": tool.kind} for name in tool.arguments}
        schema = {"type": "object", "properties": properties, "required": list(tool.arguments)}
        declared = Function(
            function, name=tool.name, description=tool.description, parameters=schema
        )
        with nano.chat(tools=[declared], sampling=GREEDY, max_new_tokens=LONGEST) as chat:
            final = chat.ask(question).final
        expected = dict(zip(tool.arguments, values, strict=True))
        if calls != [expected] or final != result:
            wrong.append((question, tool, calls, final, result))
    assert len(wrong) <= 0.1 * count, wrong
