"""The streaming parser: tokens in, messages and text deltas out.

It never raises on what a model wrote and never loses a token. Every message carries its span, and
the spans of :attr:`StreamableParser.messages` follow one another without a gap, so that together
with the tokens of the message under way they are the whole stream. What was odd stands in
``Message.recovered``.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from enum import Enum
from typing import Any, Final

from ._checks import HarmonyError
from .content import DEFAULT_CHANNELS
from .encoding import HarmonyEncoding
from .messages import Author, Message, Role
from .recovery import Header, parse_recovering, parse_strict, parse_unfinished

# The longest sensible header, a 64-character function name on the commentary channel spelled in
# single bytes, has about 110 tokens. Beyond this the model writes text, and a reader should see it.
_MAX_HEADER_TOKENS: Final = 128
_ENDOFTEXT: Final = "<|endoftext|>"
_REPLACEMENT: Final = "\ufffd"
_Decoder: Final = codecs.getincrementaldecoder("utf-8")


class StreamState(Enum):
    """Where in a message the parser stands."""

    EXPECT_START = "ExpectStart"
    HEADER = "Header"
    CONTENT = "Content"


class StreamableParser:
    """Incremental parser over completion tokens.

    Args:
        encoding: the harmony encoding whose tokens come.
        role: the role that the prompt has already opened with ``<|start|>``, or None.
        strict: raise HarmonyError where ``openai_harmony`` does, instead of recovering.
        channels: channel names that are in order.
        recipients: declared recipients, when only they are in order; None accepts every name.
    """

    def __init__(
        self,
        encoding: HarmonyEncoding,
        role: Role | None = None,
        *,
        strict: bool = False,
        channels: Sequence[str] = DEFAULT_CHANNELS,
        recipients: Sequence[str] | None = None,
    ) -> None:
        self._encoding = encoding
        self._strict = strict
        self._channels = tuple(channels)
        self._recipients = None if recipients is None else frozenset(recipients)
        self._stops = {token: encoding.special_ids[token] for token in encoding.stop_tokens()}
        if not strict and _ENDOFTEXT in encoding.special_tokens_set:
            self._stops[encoding.tokenizer.encode_single_token(_ENDOFTEXT)] = _ENDOFTEXT
        self._texts = encoding.texts
        self._tokens: list[int] = []
        self._messages: list[Message] = []
        self._begin = 0  # where the span of the message under way begins
        self._odd: list[str] = []
        self._role = None if role is None else Role(role)
        self._state = StreamState.EXPECT_START if role is None else StreamState.HEADER
        self._in_content = False
        self._header_begin = 0
        self._content_begin = 0
        self._header = Header()
        self._parts: list[str] = []
        self._delta: str | None = None
        self._decoder = _Decoder("replace")
        self._pending = False  # bytes of an unfinished character are held back
        self._stuck = False  # strict only: an id without bytes hides the rest of the message

    # Feeding

    def process(self, token: int) -> StreamableParser:
        """Take one token. Raises HarmonyError in strict mode only."""
        self._tokens.append(token)
        if self._in_content:
            text = self._texts.get(token)
            if text is not None and not self._pending:
                self._parts.append(text)
                self._delta = text
            else:
                self._content(token)
        elif self._state is StreamState.HEADER:
            self._in_header(token)
        else:
            self._between(token)
        return self

    def process_eos(self) -> StreamableParser:
        """Take the end of the stream: the message under way is finished as it stands."""
        if self._in_content:
            self._finish(None)
        elif self._state is StreamState.HEADER:
            if self._strict:
                raise HarmonyError(
                    "[parse] Unexpected EOS while waiting for message header to complete"
                )
            self._abandon_header(None)
        elif self._begin < len(self._tokens):
            self._add(Header(notes=["no message"]), "", None)
        return self

    # Reading

    @property
    def current_content(self) -> str:
        """The text of the message under way."""
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0] if self._parts and self._in_content else ""

    @property
    def current_role(self) -> Role | None:
        """The role of the message under way, when known."""
        return self._header.role if self._in_content else self._role

    @property
    def current_content_type(self) -> str | None:
        """The content type of the message under way, when it has one."""
        return self._header.content_type if self._in_content else None

    @property
    def current_recipient(self) -> str | None:
        """The recipient of the message under way, when it has one."""
        return self._header.recipient if self._in_content else None

    @property
    def current_channel(self) -> str | None:
        """The channel of the message under way, when it has one."""
        return self._header.channel if self._in_content else None

    @property
    def last_content_delta(self) -> str | None:
        """The text that the last token added; None when it added none (yet)."""
        return self._delta

    @property
    def messages(self) -> list[Message]:
        """The finished messages."""
        return list(self._messages)

    @property
    def tokens(self) -> list[int]:
        """Every token that came."""
        return list(self._tokens)

    @property
    def state(self) -> StreamState:
        """Where in a message the parser stands."""
        return self._state

    @property
    def state_data(self) -> dict[str, Any]:
        """The state as plain data, in the form of the OpenAI package."""
        if self._state is StreamState.HEADER:
            return {"state": "Header", "header_tokens": self._tokens[self._header_begin :]}
        if not self._in_content:
            return {"state": "ExpectStart"}
        author = {"role": self._header.role.value}
        if self._header.name is not None:
            author["name"] = self._header.name
        return {
            "state": "Content",
            "header": {
                "author": author,
                "recipient": self._header.recipient,
                "channel": self._header.channel,
                "content_type": self._header.content_type,
            },
            "content_tokens": self._tokens[self._content_begin :],
        }

    # Between messages

    def _between(self, token: int) -> None:
        encoding = self._encoding
        if token == encoding.start:
            self._open_header(len(self._tokens))
        elif self._strict:
            raise HarmonyError(
                f"[parse] Unexpected token {token} while expecting start token {encoding.start}"
            )
        elif token in self._stops:
            self._stray_end(token)
        else:
            self._odd.append(f"no {encoding.special_ids[encoding.start]}")
            self._open_header(len(self._tokens) - 1)
            if token == encoding.channel or token == encoding.message:
                self._role = Role.ASSISTANT
            self._in_header(token)

    def _stray_end(self, token: int) -> None:
        """An end where no message is: it belongs to the one before, or else to the one after."""
        note = f"{self._stops[token]} without a message"
        if not self._messages:
            self._odd.append(note)
            return
        self._extend_last(note)

    def _extend_last(self, note: str) -> None:
        last = self._messages[-1]
        begin = last.span[0] if last.span else 0
        last.span = (begin, len(self._tokens))
        last.recovered = (*last.recovered, note)
        self._begin = len(self._tokens)

    # Headers

    def _open_header(self, begin: int) -> None:
        self._state = StreamState.HEADER
        self._header_begin = begin
        self._delta = None

    def _in_header(self, token: int) -> None:
        encoding = self._encoding
        if token == encoding.message:
            self._close_header()
        elif self._strict:
            return
        elif token in self._stops:
            self._abandon_header(token)
        elif token == encoding.start:
            self._restart_header()
        elif len(self._tokens) - self._header_begin > _MAX_HEADER_TOKENS:
            self._odd.append("no <|message|> after the header")
            header, text = self._unfinished(len(self._tokens))
            self._open_content(header)
            self._parts = [text] if text else []
            self._delta = text or None

    def _header_text(self, end: int) -> str:
        tokens = self._tokens[self._header_begin : end]
        if self._strict:
            try:
                return self._encoding.decode_utf8(tokens)
            except HarmonyError as error:
                raise HarmonyError(f"[parse] could not decode header: {error}") from None
        token_bytes = self._encoding.token_bytes
        missing = _REPLACEMENT.encode()
        data = b"".join(token_bytes(token) or missing for token in tokens)
        return data.decode("utf-8", "replace")

    def _close_header(self) -> None:
        """``<|message|>`` came: read the header, the content begins."""
        self._state = StreamState.EXPECT_START  # stays so if a strict header raises
        text = self._header_text(len(self._tokens) - 1)
        if self._strict:
            header = parse_strict(text, self._role)
        else:
            recipients = None if self._recipients is None else sorted(self._recipients)
            header = parse_recovering(text, self._role, self._channels, recipients)
        self._open_content(header)

    def _unfinished(self, end: int) -> tuple[Header, str]:
        recipients = None if self._recipients is None else sorted(self._recipients)
        text = self._header_text(end)
        return parse_unfinished(text, self._role, self._channels, recipients)

    def _abandon_header(self, stop: int | None) -> None:
        """The message or the stream ended inside a header: what follows the header is the text."""
        end = len(self._tokens) - (stop is not None)
        header, text = self._unfinished(end)
        self._odd.append("ended inside the header")
        says_nothing = not (text or header.channel or header.recipient)
        if says_nothing and self._messages:
            self._extend_last("ended inside the next header")
            self._odd.clear()
        elif end > self._begin:
            self._add(header, text, stop)
        self._state = StreamState.EXPECT_START
        self._role = None
        self._delta = None

    def _restart_header(self) -> None:
        """``<|start|>`` inside a header: what stood there was text, or nothing."""
        end = len(self._tokens) - 1
        header, text = self._unfinished(end)
        if text:
            self._odd.append("no <|message|> and no end")
            self._add(header, text, None, end)
        else:
            self._odd.append("header begun twice")
        self._role = None
        self._open_header(end + 1)

    # Content

    def _open_content(self, header: Header) -> None:
        self._header = header
        self._state = StreamState.CONTENT
        self._in_content = True
        self._role = None
        self._content_begin = len(self._tokens)
        self._parts = []
        self._delta = None

    def _content(self, token: int) -> None:
        """A token that is not plain text on its own."""
        encoding = self._encoding
        if token in self._stops:
            self._finish(token)
            return
        special = encoding.special_ids.get(token)
        if special is None or self._strict:
            self._decode(token)
        elif token == encoding.start or token == encoding.channel:
            role = self._header.role if token == encoding.channel else None
            self._odd.append(f"no end before {special}")
            self._finish(None, len(self._tokens) - 1)
            self._role = role
            self._open_header(len(self._tokens) - (token == encoding.channel))
        else:
            self._odd.append(f"{special} inside the text")
            self._delta = None

    def _decode(self, token: int) -> None:
        data = self._encoding.token_bytes(token)
        if self._strict and (data is None or self._stuck):
            self._stuck = self._pending = True
            self._delta = None
            return
        if data is None:
            self._odd.append(f"token {token} is not in the vocabulary")
            data = _REPLACEMENT.encode()
        elif not self._pending:
            self._encoding.remember_text(token, data)
        text = self._decoder.decode(data)
        self._pending = bool(self._decoder.getstate()[0])
        self._delta = text or None
        if text:
            self._parts.append(text)

    def _finish(self, stop: int | None, end: int | None = None) -> None:
        if self._stuck:
            self._parts.append(_REPLACEMENT)
        if self._pending:
            self._parts.append(self._decoder.decode(b"", final=True))
        self._decoder.reset()
        self._pending = self._stuck = False
        self._in_content = False
        self._state = StreamState.EXPECT_START
        self._add(self._header, "".join(self._parts), stop, end)
        self._parts = []
        self._delta = None

    def _add(self, header: Header, text: str, stop: int | None, end: int | None = None) -> None:
        message = Message.from_model(
            Author.from_model(header.role, header.name),
            text,
            channel=header.channel,
            recipient=header.recipient,
            content_type=header.content_type,
        )
        end = len(self._tokens) if end is None else end
        message.recovered = (*self._odd, *header.notes)
        message.span = (self._begin, end)
        message.end = None if stop is None else self._stops[stop]
        if message.end == _ENDOFTEXT:
            message.recovered = (*message.recovered, f"ended by {_ENDOFTEXT}")
        self._messages.append(message)
        self._begin = end
        self._odd = []
