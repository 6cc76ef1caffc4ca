"""Harmony text around the questions: system and developer messages, one turn or several.

A conversation is a list of pieces of harmony text; only pieces the assistant would sample are
trained on. The analysis of a finished turn is dropped and its final message ends with <|end|>, as
harmony asks; the answer that is sampled ends with <|return|>.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import data
import tools

IDENTITIES = (
    "You are ChatGPT, a large language model trained by OpenAI.",
    "You are a helpful assistant.",
    "You are nano, a very small model.",
)
INSTRUCTIONS = (
    "Answer briefly.",
    "Be brief.",
    "Be concise.",
    "You are a helpful assistant.",
    "Answer with the result only.",
    "Think step by step.",
    "Answer the question of the user.",
    "Give only the final answer.",
)
CHANNELS = (
    "# Valid channels: analysis, commentary, final. Channel must be included for every message."
)

TOOL_SHARE = 0.06


@dataclass(frozen=True)
class Piece:
    """Harmony text, special tokens written out; `sampled` if the assistant wrote it."""

    text: str
    sampled: bool


def system_message(rng: random.Random) -> str:
    """Return a system message as renderers write it, in one of its common variations."""
    text = IDENTITIES[0] if rng.random() < 0.85 else rng.choice(IDENTITIES)
    text += "\nKnowledge cutoff: 2024-06"
    if rng.random() < 0.4:
        day = f"{rng.randint(2024, 2029)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
        text += f"\nCurrent date: {day}"
    effort = rng.choice(("low", "medium", "medium", "high"))
    text += f"\n\nReasoning: {effort}\n\n{CHANNELS}"
    return f"<|start|>system<|message|>{text}<|end|>"


def opening(rng: random.Random) -> str:
    """Return what stands before the first user message: often a system message, rarely more."""
    text = system_message(rng) if rng.random() < 0.6 else ""
    if rng.random() < 0.08:
        instructions = rng.choice(INSTRUCTIONS)
        text += f"<|start|>developer<|message|># Instructions\n\n{instructions}<|end|>"
    return text


def turn(rng: random.Random, task: str | None) -> tuple[str, str, str]:
    """Return the question, the analysis and the answer of one turn."""
    if rng.random() < 0.02:
        return rng.choice(data.SMALL_TALK), "Small talk.", data.SMALL_TALK_ANSWER
    question = data.make_question(rng, task, held_out=False)
    return question.text, question.analysis, question.answer


def prompt(question: str, opening_text: str = "") -> str:
    """Return the harmony text up to where the assistant begins to sample."""
    return f"{opening_text}<|start|>user<|message|>{question}<|end|><|start|>assistant"


def completion(analysis: str, answer: str) -> str:
    """Return what the assistant samples for one question."""
    return (
        f"<|channel|>analysis<|message|>{analysis}<|end|>"
        f"<|start|>assistant<|channel|>final<|message|>{answer}<|return|>"
    )


def tool_conversation(rng: random.Random) -> list[Piece]:
    """Draw a conversation with tools declared; most ask for one of them, some for none."""
    families = rng.sample(("weather", "time", "lookup", "add", "multiply"), rng.choice((1, 1, 2)))
    declared = [tools.make_tool(rng, family) for family in families]
    text = system_message(rng).replace("<|end|>", f"\n{tools.SPACE}<|end|>")
    text += tools.developer_message(rng, declared, rng.choice(INSTRUCTIONS))
    if rng.random() < 0.15:
        question, analysis, answer = turn(rng, rng.choice(("sort", "reverse", "largest")))
        return [
            Piece(prompt(question, text), sampled=False),
            Piece(completion(analysis, answer), sampled=True),
        ]
    question, pieces = tools.exchange(rng, rng.choice(declared))
    return [
        Piece(prompt(question, text), sampled=False),
        *(Piece(piece, sampled) for piece, sampled in pieces),
    ]


def conversation(rng: random.Random, task: str | None = None) -> list[Piece]:
    """Draw a conversation of one to three turns, of one task or any; the last is trained on."""
    if task is None and rng.random() < TOOL_SHARE:
        return tool_conversation(rng)
    text = opening(rng)
    for _ in range(rng.choices((0, 1, 2), (0.88, 0.09, 0.03))[0]):
        question, _, answer = turn(rng, task)
        text += prompt(question) + f"<|channel|>final<|message|>{answer}<|end|>"
    question, analysis, answer = turn(rng, task)
    return [
        Piece(prompt(question, text), sampled=False),
        Piece(completion(analysis, answer), sampled=True),
    ]
