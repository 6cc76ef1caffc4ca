"""The harmony encoding over a tokenizer: rendering, parsing, encoding and decoding."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from collections.abc import Set as AbstractSet
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from ..errors import InvalidArgument
from ._checks import HarmonyError
from .messages import Conversation, Message, Role
from .render import RenderConversationConfig, RenderOptions, render_message, render_messages

if TYPE_CHECKING:
    import tiktoken

_SPECIAL = {
    "start": "<|start|>",
    "message": "<|message|>",
    "channel": "<|channel|>",
    "constrain": "<|constrain|>",
    "end": "<|end|>",
    "return": "<|return|>",
    "call": "<|call|>",
}


class HarmonyEncodingName(StrEnum):
    """The one published encoding; only for callers of the OpenAI package."""

    HARMONY_GPT_OSS = "HarmonyGptOss"


class HarmonyEncoding:
    """Renders and parses harmony over any vocabulary that has its seven special tokens.

    Raises InvalidArgument when one of them is missing from ``encoding``.
    """

    def __init__(self, encoding: tiktoken.Encoding, *, name: str = "HarmonyGptOss") -> None:
        if not hasattr(encoding, "special_tokens_set"):
            raise InvalidArgument(
                f"[HarmonyEncoding] expected a tiktoken.Encoding, got {type(encoding).__name__}; "
                "use model.harmony or load_harmony_encoding(name, directory=...)"
            )
        missing = [text for text in _SPECIAL.values() if text not in encoding.special_tokens_set]
        if missing:
            raise InvalidArgument(
                f"[HarmonyEncoding] expected the special tokens of harmony, {', '.join(missing)} "
                f"missing from {encoding.name!r}; is this the tokenizer of a gpt-oss checkpoint?"
            )
        self.name = str(name)
        self.tokenizer = encoding
        ids = {key: encoding.encode_single_token(text) for key, text in _SPECIAL.items()}
        self.start, self.message, self.channel = ids["start"], ids["message"], ids["channel"]
        self.constrain, self.end, self.call = ids["constrain"], ids["end"], ids["call"]
        self.return_ = ids["return"]
        self._encode_text = _text_encoder(encoding)
        self._bytes: dict[int, bytes] = {}
        self.texts: dict[int, str] = {}  # ordinary tokens whose bytes are whole characters

    def __repr__(self) -> str:
        return f"<HarmonyEncoding {self.name!r} over {self.tokenizer.name!r}>"

    @cached_property
    def special_tokens_set(self) -> set[str]:
        """The special tokens of the vocabulary, as text."""
        return set(self.tokenizer.special_tokens_set)

    @cached_property
    def special_ids(self) -> dict[int, str]:
        """The special tokens of the vocabulary: id to text."""
        encode = self.tokenizer.encode_single_token
        return {encode(text): text for text in sorted(self.special_tokens_set)}

    @property
    def vocab_size(self) -> int:
        """One more than the greatest token id."""
        return int(self.tokenizer.max_token_value) + 1

    # Rendering

    def render_conversation_for_completion(
        self,
        conversation: Conversation,
        next_turn_role: Role,
        config: RenderConversationConfig | None = None,
    ) -> list[int]:
        """The conversation and the opening of the next message: ``<|start|>`` and its role."""
        out = self.render_conversation(conversation, config)
        return [*out, self.start, *self.encode_text(Role(next_turn_role).value)]

    def render_conversation(
        self, conversation: Conversation, config: RenderConversationConfig | None = None
    ) -> list[int]:
        """The messages of a conversation, one after another."""
        return render_messages(self, conversation, config)

    def render_conversation_for_training(
        self, conversation: Conversation, config: RenderConversationConfig | None = None
    ) -> list[int]:
        """The same, with ``<|return|>`` for the last ``<|end|>`` when an answer ends it."""
        out = self.render_conversation(conversation, config)
        messages = list(conversation)
        last = messages[-1] if messages else None
        if last is not None and last.author.role == Role.ASSISTANT and last.channel == "final":
            out[-1] = self.return_
        return out

    def render(self, message: Message, render_options: RenderOptions | None = None) -> list[int]:
        """One message, from ``<|start|>`` to ``<|end|>`` or ``<|call|>``."""
        return render_message(self, message, render_options)

    # Parsing

    def parse_messages_from_completion_tokens(
        self, tokens: Sequence[int], role: Role | None = None, *, strict: bool = False
    ) -> list[Message]:
        """The messages in ``tokens``, the last one ended by the end of the sequence.

        ``role`` is the role that the prompt has already opened, if any. Malformed headers are
        recovered (see :class:`StreamableParser`); with ``strict`` they raise HarmonyError.
        """
        from .parser import StreamableParser

        parser = StreamableParser(self, role, strict=strict)
        for token in tokens:
            parser.process(token)
        return parser.process_eos().messages

    # Text

    def encode_text(self, text: str) -> list[int]:
        """Tokens of ordinary text; special-token strings in it stay text.

        Halves of surrogate pairs, which JSON can carry into a string, are joined or replaced.
        """
        try:
            return self._encode_text(text)
        except ValueError:
            whole = _without_surrogates(text)
            if whole == text:
                raise
            return self._encode_text(whole)

    def encode(
        self,
        text: str,
        *,
        allowed_special: Literal["all"] | AbstractSet[str] = frozenset(),
        disallowed_special: Literal["all"] | Collection[str] = "all",
    ) -> list[int]:
        """Tokens of ``text``, with the special tokens of ``allowed_special`` recognised in it.

        Raises HarmonyError when a string of ``disallowed_special`` occurs ("all": every special
        token that is not allowed); pass ``()`` to encode such strings as text.
        """
        specials = self.special_tokens_set
        allowed = specials if allowed_special == "all" else set(allowed_special) & specials
        refused = specials - allowed if disallowed_special == "all" else set(disallowed_special)
        found = [token for token in refused if token in text]
        if found:
            first = min(found, key=text.index)
            raise HarmonyError(
                "[encode] Encountered text corresponding to disallowed special token "
                f"{first!r}; name it in allowed_special to encode the token, or pass "
                "disallowed_special=() to encode it as text"
            )
        if not allowed:
            return self.encode_text(text)
        out: list[int] = []
        marks = "|".join(re.escape(token) for token in sorted(allowed, key=len, reverse=True))
        for index, part in enumerate(re.split(f"({marks})", text)):
            if index % 2:
                out.append(self.tokenizer.encode_single_token(part))
            elif part:
                out.extend(self.encode_text(part))
        return out

    def decode(self, tokens: Sequence[int], errors: str = "replace") -> str:
        """Text of ``tokens``; invalid UTF-8 is treated as ``errors`` says (replaced by default)."""
        return self._decode_bytes(tokens).decode("utf-8", errors=errors)

    def decode_utf8(self, tokens: Sequence[int]) -> str:
        """Text of ``tokens``. Raises HarmonyError when they are not valid UTF-8."""
        try:
            return self._decode_bytes(tokens).decode("utf-8")
        except UnicodeDecodeError as error:
            raise HarmonyError(
                f"[decode_utf8] Invalid utf-8: {error}; decode() replaces it"
            ) from None

    def _decode_bytes(self, tokens: Sequence[int]) -> bytes:
        out = []
        for token in tokens:
            data = self.token_bytes(token)
            if data is None:
                raise HarmonyError(
                    f"[decode] Invalid token for decoding: {token}; "
                    f"{self.tokenizer.name!r} has {self.vocab_size} tokens"
                )
            out.append(data)
        return b"".join(out)

    def token_bytes(self, token: int) -> bytes | None:
        """The bytes of one token; None for an id that the vocabulary does not name."""
        data = self._bytes.get(token)
        if data is None:
            try:
                data = self.tokenizer.decode_single_token_bytes(token)
            except (KeyError, OverflowError, TypeError):
                return None
            self._bytes[token] = data
        return data

    def remember_text(self, token: int, data: bytes) -> None:
        """Keep the text of an ordinary token, if it has one, for the parsers' fast path."""
        if token not in self.special_ids:
            try:
                self.texts[token] = data.decode("utf-8")
            except UnicodeDecodeError:
                return

    def is_special_token(self, token: int) -> bool:
        """Whether the id is a special token."""
        return token in self.special_ids

    # Stop tokens

    def stop_tokens(self) -> list[int]:
        """The ids that end a message."""
        return sorted({self.return_, self.end, self.call})

    def stop_tokens_for_assistant_actions(self) -> list[int]:
        """The ids at which the caller has to act: an answer is done, or a tool is called."""
        return sorted({self.return_, self.call})


def _without_surrogates(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _text_encoder(encoding: Any) -> Callable[[str], list[int]]:
    """The tokenizer module's encoder, which also survives hostile text, where there is one."""
    try:
        from ..tokenizer import encode_text
    except ImportError:
        return lambda text: list(encoding.encode_ordinary(text))
    return lambda text: list(encode_text(encoding, text))
