"""Conversations with scripted answers: real sessions and forwards, chosen samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gpt_oss_native import Model, Sampling
from gpt_oss_native.chat import Chat
from gpt_oss_native.harmony import (
    Conversation,
    DeveloperContent,
    HarmonyEncoding,
    Message,
    RenderConversationConfig,
    Role,
    SystemContent,
)

START = "<|start|>assistant"


class ScriptedSession:
    """A real session whose samples are scripted, and that counts what its prompts forward.

    A scripted token that the chat's own mask forbids is passed over, like a sampler would. Ctrl-C
    comes where the script has <|endofprompt|>.
    """

    def __init__(self, inner: Any, model: ScriptedModel) -> None:
        self.inner, self.model = inner, model
        self.interrupt = model.model.tokenizer.encode_single_token("<|endofprompt|>")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def fork(self) -> ScriptedSession:
        """A fork that follows the same script."""
        return ScriptedSession(self.inner.fork(), self.model)

    def generate(
        self,
        tokens: list[int],
        sampling: Sampling | None,
        *,
        mask: Callable[[], np.ndarray | None],
        **options: Any,
    ) -> Any:
        answer = iter(self.model.script.pop(0))
        only = np.zeros(self.model.config.vocab_size, dtype=np.bool_)

        def only_the_next() -> np.ndarray:
            allowed = mask()
            for token in answer:
                if token == self.interrupt:
                    raise KeyboardInterrupt
                if allowed is None or _holds(allowed, token):
                    break
                self.model.refused.append(token)
            else:
                raise StopIteration  # also asked after the last token, in vain
            only[:] = False
            only[token] = True
            return only

        self.model.forwarded.append(self.inner.position + len(tokens) - self.inner.cached)
        return self.inner.generate(tokens, sampling, mask=only_the_next, **options)


class ScriptedModel:
    """A model whose sessions are scripted: each answer is what one generation samples.

    ``forwarded`` has how many tokens each of them forwarded before it sampled, ``refused`` the
    tokens that masks forbade.
    """

    def __init__(self, model: Model, answers: list[str]) -> None:
        self.model, self.harmony, self.config = model, model.harmony, model.config
        self.script = [self.harmony.encode(text, allowed_special="all") for text in answers]
        self.forwarded: list[int] = []
        self.refused: list[int] = []

    def session(self, *, max_tokens: int | None = None) -> ScriptedSession:
        """A scripted session of the model."""
        return ScriptedSession(self.model.session(max_tokens=max_tokens), self)


#: What the fixture ``scripted`` makes.
ScriptedChat = Callable[..., tuple[Chat, ScriptedModel]]


def _holds(mask: np.ndarray, token: int) -> bool:
    if mask.dtype == np.bool_:
        return bool(mask[token])
    return bool(mask[token >> 3] >> (token & 7) & 1)


def answer(analysis: str, final: str) -> str:
    """What is sampled for an answer with reasoning."""
    return (
        f"<|channel|>analysis<|message|>{analysis}<|end|>"
        f"{START}<|channel|>final<|message|>{final}<|return|>"
    )


def final(text: str) -> str:
    """What is sampled for an answer without."""
    return f"<|channel|>final<|message|>{text}<|return|>"


def call(
    arguments: str, name: str = "functions.lookup", *, end: str = "<|call|>", thought: str = ""
) -> str:
    """What is sampled for a call, with the recipient after the channel."""
    before = f"<|channel|>analysis<|message|>{thought}<|end|>{START}" if thought else ""
    return f"{before}<|channel|>commentary to={name} <|constrain|>json<|message|>{arguments}{end}"


def result(text: str, name: str = "functions.lookup") -> str:
    """What a tool gives back."""
    return f"<|start|>{name} to=assistant<|channel|>commentary<|message|>{text}<|end|>"


def lookup(key: str) -> str:
    """Finds a value."""
    return f"<{key}>"


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
