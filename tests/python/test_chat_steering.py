"""What may be sampled: budgets of reasoning, the loop guard, schemas after the header only."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gpt_oss_native._core")

from gpt_oss_native import InvalidArgument, Model, Sampling, structured
from gpt_oss_native.chat import Chat
from gpt_oss_native.chat.steering import LONGEST_CYCLE, CycleCounter
from reference.scripted_chat import ScriptedChat, answer

GREEDY = Sampling(temperature=0)
POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer", "maximum": 99}, "name": {"enum": ["a", "b"]}},
    "required": ["x", "name"],
    "additionalProperties": False,
}
needs_llguidance = pytest.mark.skipif(not structured.is_available(), reason="needs llguidance")


@pytest.mark.parametrize("mask_headers", [True, False])
def test_at_the_budget_reasoning_is_closed_and_the_answer_comes(
    scripted: ScriptedChat, mask_headers: bool
) -> None:
    thought = " ".join(str(number) for number in range(60))
    chat, model = scripted(answer(thought, "3"), mask_headers=mask_headers)
    reply = chat.ask("1 + 2", max_reasoning_tokens=10)
    assert (reply.final, reply.finish_reason) == ("3", "stop")
    assert len(model.harmony.encode(reply.analysis)) == 10
    assert thought.startswith(reply.analysis)
    assert reply.usage.completion_tokens == len(reply.tokens)


def test_the_budget_holds_for_all_reasoning_of_a_turn(scripted: ScriptedChat) -> None:
    def f() -> str:
        return "r"

    call = "<|start|>assistant<|channel|>commentary to=functions.f<|message|>{}<|call|>"
    first = f"<|channel|>analysis<|message|>1 2 3 4<|end|>{call}"
    second = f"{answer('5 6 7 8', '9')}"
    chat, model = scripted(first, second, tools=[f], max_reasoning_tokens=9)
    spent = len(model.harmony.encode("1 2 3 4"))
    reply = chat.ask("go")
    assert (reply.final, len(reply.tool_results)) == ("9", 1)
    left = len(model.harmony.encode(reply.analysis.removeprefix("1 2 3 4")))
    assert spent + left == 9


def test_any_budget_brings_an_answer_of_the_model_itself(nano: Model) -> None:
    for budget in (0, 1, 5):
        with Chat(nano, sampling=GREEDY, max_reasoning_tokens=budget, max_new_tokens=60) as chat:
            reply = chat.ask("What is 57 + 68?")
        assert len(nano.harmony.encode(reply.analysis)) <= budget
        assert (reply.finish_reason, bool(reply.final)) == ("stop", True)


def test_without_reasoning_an_empty_analysis_stands_before_the_answer(nano: Model) -> None:
    with Chat(nano, reasoning="none", sampling=GREEDY, max_new_tokens=40) as chat:
        reply = chat.ask("What is 3 + 4?")
        text = nano.harmony.decode(chat.session.tokens)
        assert "<|channel|>analysis<|message|><|end|><|start|>assistant<|channel|>final" in text
        assert (reply.analysis, bool(reply.final), reply.usage.reasoning_tokens) == ("", True, 0)
        chat.ask("And 4 + 4?")
        text = nano.harmony.decode(chat.session.tokens)
        assert text.count("analysis<|message|><|end|>") == 1  # that of the turn before is dropped


def test_without_reasoning_keep_reasoning_forwards_nothing_twice(scripted: ScriptedChat) -> None:
    finals = ["<|channel|>final<|message|>a<|return|>"] * 4
    chat, model = scripted(*finals, reasoning="none", keep_reasoning=True)
    sampled = sum(len(tokens) - 1 for tokens in model.script)
    for _ in finals:
        chat.ask("on")
    assert sum(model.forwarded) == chat.session.cached - sampled


def test_a_loop_in_reasoning_leads_to_the_answer(scripted: ScriptedChat) -> None:
    chat, _ = scripted(answer("again and " * 100, "3"), loop_guard=64)
    reply = chat.ask("1 + 2")
    assert (reply.final, reply.finish_reason) == ("3", "stop")
    assert 0 < len(reply.analysis) < 500


def test_a_loop_in_the_answer_ends_it(scripted: ScriptedChat) -> None:
    chat, _ = scripted(answer("x", "again and " * 100), answer("y", "7"), loop_guard=64)
    reply = chat.ask("1 + 2")
    assert reply.finish_reason == "repetition"
    assert 0 < len(reply.final) < 500
    assert chat.ask("on").final == "7"


def test_cycles_are_seen_at_their_length_and_not_before(rng: np.random.Generator) -> None:
    for _ in range(50):
        period = int(rng.integers(1, LONGEST_CYCLE + 1))
        cycle = rng.permutation(1000)[:period].tolist()
        counter = CycleCounter(256)
        before = rng.integers(2000, 3000, rng.integers(0, 100)).tolist()
        seen = [counter.push(token) for token in (before + cycle * 300)[: len(before) + 300]]
        first = seen.index(True) + 1 - len(before)
        assert 256 <= first < 256 + 16
    counter = CycleCounter(256)
    assert not any(counter.push(int(token)) for token in rng.integers(0, 1000, 5000))


@needs_llguidance
def test_answers_follow_the_schema_and_reasoning_does_not(nano: Model) -> None:
    for seed in range(5):
        sampling = Sampling(temperature=1.0, seed=seed)
        options: dict[str, Any] = {"sampling": sampling, "max_new_tokens": 300}
        with Chat(nano, response_format=POINT, **options) as chat:
            reply = chat.ask("What is 57 + 68?")
        if reply.finish_reason == "stop":
            assert set(reply.parsed) == {"x", "name"}
            assert reply.parsed["x"] <= 99
            assert json.loads(reply.final) == reply.parsed
    assert not reply.analysis.startswith("{")


@needs_llguidance
def test_a_schema_holds_after_the_final_header_only(scripted: ScriptedChat) -> None:
    wanted = '{"x": 12, "name": "b"}'
    script = answer("not json at all", f"Sure!<|constrain|>{wanted}")
    chat, model = scripted(script, response_format=POINT)
    reply = chat.ask("point")
    assert reply.analysis == "not json at all"
    assert reply.parsed == {"x": 12, "name": "b"}
    assert model.refused
    text = model.harmony.decode(chat.session.tokens)
    assert '# Response Formats\n\n## response\n\n{"type":"object"' in text


@needs_llguidance
def test_a_pydantic_model_is_a_response_format(scripted: ScriptedChat) -> None:
    pydantic = pytest.importorskip("pydantic")

    class City(pydantic.BaseModel):  # type: ignore[name-defined, misc]
        name: str
        people: int

    final = '{"name":"Oslo","people":700}'
    chat, _ = scripted(answer("x", final), answer("x", final), response_format=City)
    assert chat.ask("city").parsed == City(name="Oslo", people=700)
    assert chat.ask("city", max_new_tokens=12).parsed is None  # cut


@needs_llguidance
def test_arguments_follow_the_schema_of_their_tool(scripted: ScriptedChat) -> None:
    def pick(colour: str, number: int) -> str:
        return f"{colour} {number}"

    sampled = (
        "<|channel|>commentary to=functions.pick<|message|>Well:<|constrain|>"
        '{"colour":"red","number":<|constrain|>"x<|constrain|>7}<|call|>'
    )
    chat, model = scripted(sampled, answer("x", "y"), tools=[pick])
    reply = chat.ask("pick")
    assert model.refused
    assert [r.is_error for r in reply.tool_results] == [False]


@needs_llguidance
def test_arguments_follow_what_can_be_followed_of_a_schema(scripted: ScriptedChat) -> None:
    """The rest is checked when the call has come."""

    def pick(numbers: set[int]) -> str:
        return str(sorted(numbers))

    begin = "<|channel|>commentary to=functions.pick<|message|>"
    double, fine = '{"numbers": <|constrain|>[1, x1]}', '{"numbers": [1, 2]}'
    chat, model = scripted(
        f"{begin}{double}<|call|>", f"{begin}{fine}<|call|>", answer("x", "y"), tools=[pick]
    )
    reply = chat.ask("pick")
    assert [r.is_error for r in reply.tool_results] == [True, False]
    assert set(model.harmony.encode("x")) <= set(model.refused)


@needs_llguidance
def test_a_schema_that_cannot_be_followed_is_refused(nano: Model) -> None:
    with pytest.raises(InvalidArgument, match="not"):
        Chat(nano, response_format={"type": "object", "not": {}})
    with pytest.raises(InvalidArgument, match="response_format"):
        Chat(nano, response_format="json")


@needs_llguidance
def test_a_question_may_have_a_format_of_its_own(scripted: ScriptedChat) -> None:
    wanted = '{"x": 12, "name": "b"}'
    script = answer("free {", f"Sure!<|constrain|>{wanted}")
    chat, model = scripted(script, answer("a", "Free!"), script, answer("a", "7"))
    assert chat.ask("point", response_format=POINT).parsed == {"x": 12, "name": "b"}
    refused = len(model.refused)
    told = '<|start|>developer<|message|># Response Formats\n\n## response\n\n{"type":"object"'
    assert model.harmony.decode(chat.session.tokens).count(told) == 1
    reply = chat.ask("free")
    assert (reply.final, reply.parsed) == ("Free!", None)
    assert len(model.refused) == refused > 0
    roles = [message.author.role.value for message in chat.messages]
    assert roles[1:4] == ["developer", "user", "assistant"]
    with pytest.raises(InvalidArgument, match="response_format"):
        chat.ask("point", response_format=3)
    assert len(chat.messages) == len(roles)


@needs_llguidance
def test_a_question_may_go_without_the_format_of_the_chat(scripted: ScriptedChat) -> None:
    chat, model = scripted(answer("a", "Free!"), answer("a", "{}"), response_format=POINT)
    assert chat.ask("free", response_format={"type": "text"}).parsed is None
    assert model.refused == []
    assert chat.ask("point").parsed is None  # cut: {} alone was refused
    assert model.refused


@needs_llguidance
def test_any_object_is_a_format(scripted: ScriptedChat) -> None:
    chat, model = scripted(answer("a", '[<|constrain|>{"any":[1,2]}'))
    assert chat.ask("x", response_format={"type": "json_object"}).parsed == {"any": [1, 2]}
    assert model.refused


def test_without_the_extra_a_response_format_names_it(
    nano: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(structured, "is_available", lambda: False)
    with pytest.raises(InvalidArgument, match=r"gpt-oss-native\[grammar\]"):
        Chat(nano, response_format=POINT)
    Chat(nano, tools=[{"name": "f", "parameters": POINT}])


def test_options_of_the_turn_are_checked(nano: Model) -> None:
    for options in (
        {"max_reasoning_tokens": -1},
        {"max_tool_calls": -1},
        {"loop_guard": 1},
        {"tool_choice": "required"},
        {"tools": [{"name": "f"}, {"name": "f"}]},
        {"tools": [3]},
        {"tools": print},
        {"tools": None},
        {"max_new_tokens": -1},
        {"max_new_tokens": "3"},
        {"max_tool_calls": True},
        {"max_reasoning_tokens": 2.5},
        {"tool_timeout": -1},
        {"sampling": 0.5},
        {"tools": [{"name": "f"}], "tool_choice": "g"},
    ):
        with pytest.raises(InvalidArgument):
            Chat(nano, **options)  # type: ignore[arg-type]


def test_headers_are_well_formed_at_any_temperature(nano: Model) -> None:
    tools = [{"name": "lookup", "parameters": POINT}]
    for seed in range(8):
        sampling = Sampling(temperature=3.0, seed=seed)
        with Chat(nano, tools=tools, sampling=sampling, max_new_tokens=120) as chat:
            reply = chat.ask("What is 57 + 68?")
        whole = [message for message in reply.messages if message.end is not None]
        assert all(message.recovered == () for message in whole)
