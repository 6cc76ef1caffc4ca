"""A Python function as a tool: the model calls it, reads what it returns, and answers.

python examples/tools.py
"""

import gpt_oss_native as gon
from gpt_oss_native.chat import Delta, ToolCall, ToolResult


def get_weather(city: str) -> str:
    """Gets the weather in a city."""
    return {"Paris": "sunny", "Oslo": "snow"}.get(city, "cloudy")


with gon.Model.load("nano") as model:
    chat = model.chat(tools=[get_weather], sampling=gon.Sampling(temperature=0))
    for event in chat.stream("What is the weather in Oslo?"):
        if isinstance(event, ToolCall):
            print(f"\ncall: {event.name} {event.parsed}")
        elif isinstance(event, ToolResult):
            print(f"result: {event.text}")
        elif isinstance(event, Delta):
            print(event.delta, end="", flush=True)
    print()
