"""Conversations in which the assistant calls a function of the developer and reports its result.

The tools a developer message declares come in a few families (weather, time, lookup, sum,
product) under varying names, argument names and descriptions; the model has to copy those, write
the call as JSON on the commentary channel, and answer with what the tool returned.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

import data

CITIES = """
Paris London Berlin Rome Madrid Vienna Oslo Tokyo Delhi Cairo Lima Quito Boston Chicago
Dublin Lisbon Prague Warsaw Athens Zurich Munich Seoul Sydney Nairobi Denver Austin Milan
""".split()  # noqa: SIM905
SKIES = ("sunny", "cloudy", "rainy", "snow", "wind", "clear")
QUESTIONS = {
    "weather": (
        "What is the weather in {}?",
        "What's the weather in {}?",
        "Weather in {}?",
        "How is the weather in {}?",
        "What is the weather like in {}?",
    ),
    "time": ("What time is it?", "What is the time?", "What is the time now?", "Time?"),
    "lookup": (
        "What is the value of {}?",
        "Find {}.",
        "Look up {}.",
        "Find the value of {}.",
    ),
    "add": tuple(form for form in data.ADD if "{b} to" not in form),
    "multiply": data.MULTIPLY,
}
SPACE = "Calls to these tools must go to the commentary channel: 'functions'."


@dataclass(frozen=True)
class Tool:
    """One declared function: how it is written for the model."""

    family: str
    name: str
    description: str
    arguments: tuple[str, ...]
    kind: str

    def declaration(self) -> str:
        """Return the function as harmony writes it, in TypeScript."""
        comment = f"// {self.description}\n" if self.description else ""
        if not self.arguments:
            return f"{comment}type {self.name} = () => any;\n\n"
        fields = "".join(f"{argument}: {self.kind},\n" for argument in self.arguments)
        return f"{comment}type {self.name} = (_: {{\n{fields}}}) => any;\n\n"


def make_tool(rng: random.Random, family: str) -> Tool:
    """Draw a tool of one family."""
    pairs = (("a", "b"), ("a", "b"), ("x", "y"), ("first", "second"))
    names, descriptions, arguments, kind = {
        "weather": (
            ("get_weather", "get_weather", "weather", "get_current_weather"),
            ("Gets the weather in a city.", "Returns the weather.", "The weather in a city."),
            (("city",), ("city",), ("location",), ("name",)),
            "string",
        ),
        "time": (
            ("get_time", "now", "time", "get_current_time"),
            ("Returns the time.", "Gets the time.", "The time."),
            ((),),
            "string",
        ),
        "lookup": (
            ("lookup", "get", "find", "search", "query"),
            ("Returns the value of a key.", "Gets a value.", "Find the value of a key."),
            (("key",), ("name",), ("query",)),
            "string",
        ),
        "add": (
            ("add", "add", "add_numbers", "sum"),
            ("Adds two numbers.", "Add two numbers.", "Returns the sum of two numbers."),
            pairs,
            "number",
        ),
        "multiply": (
            ("multiply", "multiply", "multiply_numbers", "product"),
            ("Multiply two numbers.", "Returns the product of two numbers."),
            pairs,
            "number",
        ),
    }[family]
    description = "" if rng.random() < 0.15 else rng.choice(descriptions)
    return Tool(family, rng.choice(names), description, rng.choice(arguments), kind)


def developer_message(rng: random.Random, tools: list[Tool], instructions: str) -> str:
    """Return a developer message that declares tools."""
    text = f"# Instructions\n\n{instructions}\n\n" if instructions and rng.random() < 0.5 else ""
    declared = "".join(tool.declaration() for tool in tools)
    text += (
        f"# Tools\n\n## functions\n\nnamespace functions {{\n\n{declared}}} // namespace functions"
    )
    return f"<|start|>developer<|message|>{text}<|end|>"


def ask(rng: random.Random, tool: Tool) -> tuple[str, list[object], str]:
    """Return a question for a tool, the values of its arguments, and what the tool returns."""
    form = rng.choice(QUESTIONS[tool.family])
    if tool.family == "weather":
        city = rng.choice(CITIES) if rng.random() < 0.7 else _letters(rng).capitalize()
        sky, degrees = rng.choice(SKIES), rng.randrange(-9, 40)
        result = rng.choice((sky, f"{sky}, {degrees} degrees", f"{degrees} degrees", str(degrees)))
        return form.format(city), [city], result
    if tool.family == "time":
        return form, [], f"{rng.randrange(24):02d}:{rng.randrange(60):02d}"
    if tool.family == "lookup":
        key = _letters(rng)
        result = rng.choice((str(rng.randrange(1000)), rng.choice(data.WORDS)))
        return form.format(key), [key], result
    a, b = rng.randrange(10 ** rng.randint(1, 4)), rng.randrange(10 ** rng.randint(1, 4))
    return form.format(a=a, b=b), [a, b], str(a + b if tool.family == "add" else a * b)


def exchange(rng: random.Random, tool: Tool) -> tuple[str, list[tuple[str, bool]]]:
    """Return a question and what follows <|start|>assistant: texts, and whether sampled."""
    question, values, result = ask(rng, tool)
    separators = (",", ":")
    arguments = json.dumps(dict(zip(tool.arguments, values, strict=True)), separators=separators)
    call = (
        f"<|channel|>analysis<|message|>Use {tool.name}.<|end|><|start|>assistant"
        f"<|channel|>commentary to=functions.{tool.name} <|constrain|>json"
        f"<|message|>{arguments}<|call|>"
    )
    shown = json.dumps(result) if rng.random() < 0.3 and not result.isdigit() else result
    back = (
        f"<|start|>functions.{tool.name} to=assistant<|channel|>commentary"
        f"<|message|>{shown}<|end|><|start|>assistant"
    )
    final = f"<|channel|>final<|message|>{result}<|return|>"
    return question, [(call, True), (back, False), (final, True)]


def _letters(rng: random.Random) -> str:
    return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 7)))
