"""Harmony text around the questions: system and developer messages, one turn or several.

A conversation is a list of pieces of harmony text; only pieces the assistant would sample are
trained on. Effort decides how long the analysis is. The analysis of a finished turn is dropped and
its final message ends with <|end|>, as harmony asks; the answer that is sampled ends with
<|return|>.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import data
import tools
import wordings

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

TOOL_SHARE = 0.2
_EFFORTS = ("low", "medium", "medium", "high")


@dataclass(frozen=True)
class Piece:
    """Harmony text, special tokens written out; `sampled` if the assistant wrote it."""

    text: str
    sampled: bool


def system_message(rng: random.Random, effort: str | None = None) -> str:
    """Return a system message as renderers write it, in one of its common variations."""
    text = IDENTITIES[0] if rng.random() < 0.85 else rng.choice(IDENTITIES)
    text += "\nKnowledge cutoff: 2024-06"
    if rng.random() < 0.4:
        day = f"{rng.randint(2024, 2029)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
        text += f"\nCurrent date: {day}"
    text += f"\n\nReasoning: {effort or rng.choice(_EFFORTS)}\n\n{CHANNELS}"
    return f"<|start|>system<|message|>{text}<|end|>"


def opening(rng: random.Random) -> tuple[str, str]:
    """Return what stands before the first user message (often a system message, rarely more), and
    the effort that it asks for."""
    effort = rng.choice(_EFFORTS)
    has_system = effort != "medium" or rng.random() < 0.4
    text = system_message(rng, effort) if has_system else ""
    if rng.random() < 0.08:
        instructions = rng.choice(INSTRUCTIONS)
        text += f"<|start|>developer<|message|># Instructions\n\n{instructions}<|end|>"
    return text, effort


def turn(rng: random.Random, task: str | None) -> data.Question:
    """Return the question, the analysis and the answer of one turn."""
    if rng.random() < 0.02:
        text = rng.choice(wordings.SMALL_TALK)
        return data.Question("talk", text, "Small talk.", wordings.SMALL_TALK_ANSWER, False)
    return data.make_question(rng, task, held_out=False)


def prompt(question: str, opening_text: str = "") -> str:
    """Return the harmony text up to where the assistant begins to sample."""
    return f"{opening_text}<|start|>user<|message|>{question}<|end|><|start|>assistant"


def answered(question: data.Question) -> str:
    """Return a finished turn as harmony keeps it."""
    return prompt(question.text) + f"<|channel|>final<|message|>{question.answer}<|end|>"


def completion(question: data.Question, effort: str = "medium") -> str:
    """Return what the assistant samples for one question."""
    return (
        f"<|channel|>analysis<|message|>{question.reasoning(effort)}<|end|>"
        f"<|start|>assistant<|channel|>final<|message|>{question.answer}<|return|>"
    )


def reply(rng: random.Random, text: str, question: data.Question, effort: str) -> list[Piece]:
    """Return the last turn; rarely one whose analysis the prompt leaves empty."""
    before = prompt(question.text, text)
    if effort == "low" and rng.random() < 0.1:
        before += "<|channel|>analysis<|message|><|end|><|start|>assistant"
        answer = f"<|channel|>final<|message|>{question.answer}<|return|>"
        return [Piece(before, sampled=False), Piece(answer, sampled=True)]
    return [Piece(before, sampled=False), Piece(completion(question, effort), sampled=True)]


def tool_conversation(rng: random.Random) -> list[Piece]:
    """Draw a conversation with tools declared; most ask for one of them, some for none."""
    families = rng.sample(tools.FAMILIES, rng.choice((1, 1, 2, 3)))
    if "calculator" in families:
        families = [family for family in families if family not in ("add", "multiply")]
    declared = [tools.make_tool(rng, family) for family in families]
    effort = rng.choice(_EFFORTS)
    text = system_message(rng, effort).replace("<|end|>", f"\n{tools.SPACE}<|end|>")
    text += tools.developer_message(rng, declared, rng.choice(INSTRUCTIONS))
    own = [task for task in data.TASKS if not _calls(families, task)]
    for _ in range(rng.choices((0, 1, 2), (0.7, 0.2, 0.1))[0]):
        if rng.random() < 0.3:
            text += answered(data.make_question(rng, rng.choice(own), held_out=False))
            continue
        question, pieces = tools.exchange(rng, rng.choice(declared), analysis=False)
        kept = "".join(piece for piece, _ in pieces).replace("<|return|>", "<|end|>")
        text += prompt(question) + kept
    if rng.random() < 0.25:
        return reply(rng, text, turn(rng, rng.choice(own)), effort)
    question, pieces = tools.exchange(rng, rng.choice(declared))
    return [
        Piece(prompt(question, text), sampled=False),
        *(Piece(piece, sampled) for piece, sampled in pieces),
    ]


def _calls(families: list[str], task: str) -> bool:
    """Whether a question of a task is one for the tools."""
    return task in families or ("calculator" in families and task in tools.SIGNS)


def conversation(rng: random.Random, task: str | None = None) -> list[Piece]:
    """Draw a conversation of one to three turns, of one task or any; the last is trained on."""
    if task is None and rng.random() < TOOL_SHARE:
        return tool_conversation(rng)
    text, effort = opening(rng)
    question = turn(rng, task)
    for _ in range(rng.choices((0, 1, 2), (0.75, 0.18, 0.07))[0]):
        following = data.follow_up(rng, question, held_out=False) if rng.random() < 0.6 else None
        text += answered(question)
        question = following or turn(rng, task)
    return reply(rng, text, question, effort)
