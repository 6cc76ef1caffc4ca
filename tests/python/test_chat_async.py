"""Chats in asyncio: the same events, cancellation, results of the caller."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

pytest.importorskip("gpt_oss_native._core")

from gpt_oss_native import InvalidArgument
from gpt_oss_native.chat import Done
from reference.scripted_chat import ScriptedChat, answer, call, final, lookup, result


def test_astream_yields_what_stream_does(scripted: ScriptedChat) -> None:
    script = (call('{"key":"a"}'), final("it is a"))
    chat, _ = scripted(*script, tools=[lookup])
    other, _ = scripted(*script, tools=[lookup])

    async def collect() -> list[Any]:
        return [event async for event in chat.astream("find a")]

    events = asyncio.run(collect())
    assert events[:-1] == list(other.stream("find a"))[:-1]
    assert isinstance(events[-1], Done)


def test_results_of_the_caller_go_on_with_an_asynchronous_turn(scripted: ScriptedChat) -> None:
    schema = {"name": "lookup", "description": "Finds."}
    chat, model = scripted(call("{}"), call("{}"), final("x"), answer("y", "z"), tools=[schema])

    async def ask() -> None:
        assert (await chat.aask("find")).finish_reason == "tool_calls"
        assert (await chat.aask_results(["a"])).finish_reason == "tool_calls"
        events = [event async for event in chat.astream_results(["b"])]
        assert events[-1].finish_reason == "stop"
        with pytest.raises(InvalidArgument, match="0 calls"):
            await chat.aask_results(["late"])

    asyncio.run(ask())
    text = model.harmony.decode(chat.session.tokens)
    assert result("a") in text
    assert result("b") in text
    assert chat.ask("on").final == "z"


def test_cancelling_astream_stops_a_tool_and_keeps_the_chat_usable(scripted: ScriptedChat) -> None:
    finished = []

    def wait() -> None:
        time.sleep(5)
        finished.append(True)

    chat, _ = scripted(call("{}", "functions.wait"), answer("y", "7"), tools=[wait])

    async def ask() -> Any:
        task = asyncio.create_task(chat.aask("wait"))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await chat.aask("on")

    assert asyncio.run(ask()).final == "7"
    assert not finished  # the tool was not waited for
