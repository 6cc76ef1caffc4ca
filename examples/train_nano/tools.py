"""Conversations in which the assistant calls a function of the developer and reports its result.

The tools a developer message declares come in a few families (calculator, lookup, weather, time,
sum, product) under varying names, argument names and descriptions; the model has to copy those,
write the call as JSON on the commentary channel, and answer with what the tool returned.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

import wordings

FAMILIES = ("calculator", "lookup", "weather", "time", "add", "multiply")
CITIES = """
Paris London Berlin Rome Madrid Vienna Oslo Tokyo Delhi Cairo Lima Quito Boston Chicago
Dublin Lisbon Prague Warsaw Athens Zurich Munich Seoul Sydney Nairobi Denver Austin Milan
""".split()  # noqa: SIM905
SKIES = ("sunny", "cloudy", "rainy", "snow", "wind", "clear")
SIGNS = {"add": "+", "subtract": "-", "multiply": "*"}
ARITHMETIC = {
    "add": wordings.ADD,
    "subtract": wordings.SUBTRACT,
    "multiply": wordings.MULTIPLY,
}
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
        "What's the value of {}?",
        'What is the value of "{}"?',
        "Find {}.",
        "Look up {}.",
        'Look up "{}".',
        "Look up the value of {}.",
        "Find the value of {}.",
    ),
    "calculator": ("Use the calculator: {}", "What is {}?", "Calculate {}.", "Compute {}."),
    "add": tuple(form for form in wordings.ADD if "{b} to" not in form),
    "multiply": wordings.MULTIPLY,
}
SPACE = "Calls to these tools must go to the commentary channel: 'functions'."
_PAIRS = (("a", "b"), ("a", "b"), ("x", "y"), ("first", "second"))
# Of each family: names, descriptions, names of the arguments and their type.
KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[tuple[str, ...], ...], str]] = {
    "calculator": (
        ("calculator", "calculator", "calculator", "calculate", "calc"),
        (
            "Calculates.",
            "A calculator.",
            "Evaluates an expression.",
            "Evaluates an arithmetic expression.",
            "Evaluate an arithmetic expression.",
            "Evaluates an arithmetic expression and returns the result.",
            "Calculates the value of an expression.",
            "Calculate the value of an arithmetic expression.",
            "Returns the value of an arithmetic expression.",
            "Computes an arithmetic expression such as 2 + 3.",
        ),
        (("expression",), ("expression",), ("expression",), ("query",), ("a", "operator", "b")),
        "string",
    ),
    "lookup": (
        ("lookup", "lookup", "get", "find", "search", "query"),
        (
            "Returns the value of a key.",
            "Gets a value.",
            "Finds a value.",
            "Find the value of a key.",
            "Looks up a value.",
            "Looks up the value of a key.",
            "Look up a key.",
            "Looks up a word and returns its value.",
        ),
        (("key",), ("key",), ("name",), ("query",), ("word",)),
        "string",
    ),
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
    "add": (
        ("add", "add", "add_numbers", "sum"),
        ("Adds two numbers.", "Add two numbers.", "Returns the sum of two numbers."),
        _PAIRS,
        "number",
    ),
    "multiply": (
        ("multiply", "multiply", "multiply_numbers", "product"),
        ("Multiplies two numbers.", "Multiply two numbers.", "Returns the product of two numbers."),
        _PAIRS,
        "number",
    ),
}
NOTES = ("the {}", "The {}.", "the name of the {}", "the {} to find", "the value of {}")


@dataclass(frozen=True)
class Tool:
    """One declared function: how it is written for the model."""

    family: str
    name: str
    description: str
    arguments: tuple[str, ...]
    kinds: tuple[str, ...]
    notes: tuple[str, ...]  # what is said of each argument, possibly nothing

    def declaration(self) -> str:
        """Return the function as harmony writes it, in TypeScript."""
        comment = f"// {self.description}\n" if self.description else ""
        if not self.arguments:
            return f"{comment}type {self.name} = () => any;\n\n"
        fields = "".join(
            (f"// {note}\n" if note else "") + f"{argument}: {kind},\n"
            for argument, kind, note in zip(self.arguments, self.kinds, self.notes, strict=True)
        )
        return f"{comment}type {self.name} = (_: {{\n{fields}}}) => any;\n\n"

    def schema(self) -> dict[str, object]:
        """Return the arguments as a JSON schema."""
        properties: dict[str, dict[str, str]] = {}
        for argument, kind, note in zip(self.arguments, self.kinds, self.notes, strict=True):
            properties[argument] = {"type": kind} | ({"description": note} if note else {})
        return {"type": "object", "properties": properties, "required": list(self.arguments)}


def make_tool(rng: random.Random, family: str) -> Tool:
    """Draw a tool of one family."""
    names, descriptions, arguments, kind = KINDS[family]
    description = "" if rng.random() < 0.15 else rng.choice(descriptions)
    name, chosen = rng.choice(names), rng.choice(arguments)
    notes = tuple(rng.choice(NOTES).format(argument) for argument in chosen)
    return Tool(
        family,
        name,
        description,
        chosen,
        tuple("number" if argument in ("a", "b") else kind for argument in chosen),
        notes if rng.random() < 0.2 else ("",) * len(chosen),
    )


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
    if tool.family == "calculator":
        return _calculation(rng, tool)
    form = rng.choice(QUESTIONS[tool.family])
    if tool.family == "weather":
        city = rng.choice(CITIES) if rng.random() < 0.7 else _letters(rng).capitalize()
        sky, degrees = rng.choice(SKIES), rng.randrange(-9, 40)
        result = rng.choice((sky, f"{sky}, {degrees} degrees", f"{degrees} degrees", str(degrees)))
        return form.format(city), [city], result
    if tool.family == "time":
        return form, [], f"{rng.randrange(24):02d}:{rng.randrange(60):02d}"
    if tool.family == "lookup":
        key = rng.choice(wordings.WORDS) if rng.random() < 0.4 else _letters(rng)
        result = rng.choice((str(rng.randrange(1000)), rng.choice(wordings.WORDS)))
        return form.format(key), [key], result
    a, b = _operands(rng)
    return form.format(a=a, b=b), [a, b], str(a + b if tool.family == "add" else a * b)


def exchange(
    rng: random.Random, tool: Tool, *, analysis: bool = True
) -> tuple[str, list[tuple[str, bool]]]:
    """Return a question and what follows <|start|>assistant: texts, and whether sampled."""
    question, values, result = ask(rng, tool)
    separators = (",", ":")
    arguments = json.dumps(dict(zip(tool.arguments, values, strict=True)), separators=separators)
    thought = f"<|channel|>analysis<|message|>Use {tool.name}.<|end|><|start|>assistant"
    call = (
        f"{thought if analysis else ''}"
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


def _calculation(rng: random.Random, tool: Tool) -> tuple[str, list[object], str]:
    """A question for a calculator: of two numbers in words, or any expression as it stands."""
    kind = rng.choice(tuple(SIGNS))
    a, b = _operands(rng)
    result = {"add": a + b, "subtract": a - b, "multiply": a * b}[kind]
    if len(tool.arguments) > 1:
        values: list[object] = [a, SIGNS[kind], b]
        return rng.choice(ARITHMETIC[kind]).format(a=a, b=b), values, str(result)
    expression = f"{a} {SIGNS[kind]} {b}"
    if rng.random() < 0.7:
        return rng.choice(ARITHMETIC[kind]).format(a=a, b=b), [expression], str(result)
    if rng.random() < 0.5:
        c = rng.randrange(100)
        expression, result = f"{expression} + {c}", result + c
    question = rng.choice(QUESTIONS["calculator"]).format(expression)
    return question, [expression], str(result)


def _operands(rng: random.Random) -> tuple[int, int]:
    return rng.randrange(10 ** rng.randint(1, 4)), rng.randrange(10 ** rng.randint(1, 4))


def _letters(rng: random.Random) -> str:
    return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 7)))
