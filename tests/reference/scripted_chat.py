"""Conversations with scripted answers: real sessions and forwards, chosen samples."""

from __future__ import annotations

from typing import Any

import numpy as np
from gpt_oss_native import Model, Sampling
from gpt_oss_native.harmony import (
    Conversation,
    DeveloperContent,
    HarmonyEncoding,
    Message,
    RenderConversationConfig,
    Role,
    SystemContent,
)


class ScriptedSession:
    """A real session whose samples are scripted, and that counts what its prompts forward.

    Ctrl-C comes where the script has <|endofprompt|>.
    """

    def __init__(self, inner: Any, script: list[list[int]], forwarded: list[int]) -> None:
        self.inner, self.script, self.forwarded = inner, script, forwarded
        self.interrupt = inner.model.tokenizer.encode_single_token("<|endofprompt|>")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def generate(self, tokens: list[int], sampling: Sampling | None, **options: Any) -> Any:
        answer = iter(self.script.pop(0))
        interrupt = self.interrupt
        allowed = np.zeros(self.inner.model.config.vocab_size, dtype=np.bool_)

        def only_the_next() -> np.ndarray:
            allowed[:] = False
            token = next(answer)
            if token == interrupt:
                raise KeyboardInterrupt
            allowed[token] = True
            return allowed

        self.forwarded.append(self.inner.position + len(tokens) - self.inner.cached)
        return self.inner.generate(tokens, sampling, mask=only_the_next, **options)


class ScriptedModel:
    def __init__(self, model: Model, answers: list[str]) -> None:
        self.model, self.harmony = model, model.harmony
        self.script = [self.harmony.encode(text, allowed_special="all") for text in answers]
        self.forwarded: list[int] = []

    def session(self, *, max_tokens: int | None = None) -> ScriptedSession:
        return ScriptedSession(
            self.model.session(max_tokens=max_tokens), self.script, self.forwarded
        )


def answer(analysis: str, final: str) -> str:
    return (
        f"<|channel|>analysis<|message|>{analysis}<|end|>"
        f"<|start|>assistant<|channel|>final<|message|>{final}<|return|>"
    )


def rendered(
    harmony: HarmonyEncoding, *turns: tuple[str, ...], instructions: str = ""
) -> list[int]:
    """What a renderer makes of (question, final) turns, the last question open."""
    messages = [Message.from_role_and_content(Role.SYSTEM, SystemContent.new())]
    if instructions:
        content = DeveloperContent.new().with_instructions(instructions)
        messages.append(Message.from_role_and_content(Role.DEVELOPER, content))
    for question, *finals in turns:
        messages.append(Message.from_role_and_content(Role.USER, question))
        for text in finals:
            final = Message.from_role_and_content(Role.ASSISTANT, text)
            messages.append(final.with_channel("final"))
    config = RenderConversationConfig(auto_drop_analysis=False)
    return harmony.render_conversation_for_completion(
        Conversation.from_messages(messages), Role.ASSISTANT, config
    )
