"""Chats with tools forward the exact minimum of tokens: answers scripted, forwards real."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("gpt_oss_native._core")

from reference.scripted_chat import START, ScriptedChat, answer, call, lookup, result


def test_twenty_turns_with_ten_calls_forward_the_exact_minimum(scripted: ScriptedChat) -> None:
    """After each turn only the question, and of the turn before what is kept, are forwarded."""
    thought = " ".join(str(number) for number in range(100))  # longer than the window
    script, kept, questions = [], [], []
    for i in range(20):
        questions.append(f"<|start|>user<|message|>question {i}?<|end|>{START}")
        if i % 2:
            script.append(answer(thought, f"{i}"))
            kept.append(f"<|channel|>final<|message|>{i}<|end|>")
        else:
            arguments = f'{{"key":"k{i}"}}'
            script += [call(arguments, thought=thought), answer(thought, f"{i}")]
            kept.append(
                f"{call(arguments)}{result(f'<k{i}>')}{START}<|channel|>final<|message|>{i}<|end|>"
            )
    chat, model = scripted(*script, tools=[lookup])

    def count(text: str) -> int:
        return len(model.harmony.encode(text, allowed_special="all"))

    expected = []
    for i in range(20):
        kept_before = count(kept[i - 1]) if i else len(chat._history)
        expected.append(kept_before + count(questions[i]))
        if i % 2 == 0:  # <|call|>, which was sampled last, the result, and the next header
            expected.append(1 + count(result(f"<k{i}>") + START))
    for i in range(20):
        assert chat.ask(f"question {i}?").final == str(i)
    assert model.forwarded == expected


def test_with_keep_reasoning_twenty_turns_with_ten_calls_forward_nothing_twice(
    scripted: ScriptedChat,
) -> None:
    script = []
    for i in range(20):
        script += [call('{"key":"k"}', thought="hm " * 60)] if i % 2 else []
        script += [answer("so " * 60, f"{i}")]
    chat, model = scripted(*script, tools=[lookup], keep_reasoning=True)
    sampled = sum(len(tokens) - 1 for tokens in model.script)  # each last one is in a prompt
    for i in range(20):
        chat.ask(f"question {i}?")
    assert sum(model.forwarded) == chat.session.cached - sampled
    assert chat.session.cached == chat.session.position - 1
    text = model.harmony.decode(chat.session.tokens)
    assert text.count("analysis<|message|>") == 30
    assert text.count("<|call|>") == 10


@pytest.mark.parametrize("num_calls", [11, 12, 20])
def test_a_turn_of_many_calls_is_forwarded_again_from_its_begin_only(
    scripted: ScriptedChat, num_calls: int
) -> None:
    """A session keeps 16 marks; the place where such a turn began is not lost with them."""
    thought = " ".join(str(number) for number in range(30))
    calls = [call('{"key":"a"}', thought=thought)] * num_calls
    before = answer("x", "y")
    chat, model = scripted(before, *calls, before, before, tools=[lookup])
    chat.ask("warm up")
    begin = chat.ask("find").usage.prompt_tokens
    usage = chat.ask("on").usage
    assert usage.cached_tokens == begin
    assert model.forwarded[-1] == usage.prompt_tokens - begin
    with model.model.session() as fresh:  # the fork holds what a fresh session would
        tokens = chat.session.tokens
        expected = fresh.forward(tokens)
    chat.session.rewind(len(tokens) - 1)
    assert np.array_equal(chat.session.forward(tokens[-1:]), expected)
