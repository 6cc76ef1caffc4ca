"""Authors, messages and conversations, with the names of OpenAI's ``openai_harmony`` package.

Builders (``with_...``, ``adding_content``) change the object and return it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from ._checks import check_content_type, check_mapping, check_optional_name, check_text, invalid
from .content import Content, TextContent, content_from_dict


class Role(str, Enum):  # noqa: UP042  # str() as in openai_harmony
    """Who wrote a message."""

    USER = "user"
    ASSISTANT = "assistant"
    SYSTEM = "system"
    DEVELOPER = "developer"
    TOOL = "tool"

    @classmethod
    def _missing_(cls, value: object) -> Role:
        raise invalid(f"[Role] expected user, assistant, system, developer or tool, got {value!r}")


@dataclass
class Author:
    """A role, and a name: required for tools (``functions.lookup``), optional for the others."""

    role: Role
    name: str | None = None

    def __post_init__(self) -> None:
        self.role = Role(self.role)
        check_optional_name("Author", "an author name", self.name)

    @classmethod
    def new(cls, role: Role, name: str) -> Author:
        """The same as the constructor; kept for callers of the OpenAI package."""
        return cls(role=role, name=name)

    @classmethod
    def from_model(cls, role: Role, name: str | None) -> Author:
        """An author as a model wrote it, unchecked; rendering checks it again."""
        author = cls.__new__(cls)
        author.role = role
        author.name = name
        return author

    def to_dict(self) -> dict[str, Any]:
        """``{"role": ..., "name": ...}``; the name may be None."""
        return {"role": self.role, "name": self.name}


@dataclass
class Message:
    """One message. The last three fields say how a parser found it and take no part in comparisons.

    Attributes:
        recovered: what was odd about the header or the end, a phrase each; empty when well-formed.
        span: first and one past last index of its tokens in the parsed stream, or None.
        end: the special token that ended it, such as ``<|call|>``; None when there was none.
    """

    author: Author
    content: list[Content] = field(default_factory=list)
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None
    recovered: tuple[str, ...] = field(default=(), compare=False, repr=False)
    span: tuple[int, int] | None = field(default=None, compare=False, repr=False)
    end: str | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.author, dict):
            raw = self.author
            self.author = Author(role=Role(raw.get("role")), name=raw.get("name"))
        if not isinstance(self.author, Author):
            raise invalid(
                f"[Message] expected an Author, got {type(self.author).__name__}; "
                "use Message.from_role_and_content(role, content)"
            )
        if isinstance(self.content, (str, dict)) or not isinstance(self.content, Sequence):
            raise invalid(
                f"[Message] expected content as a list, got {type(self.content).__name__}; "
                "use Message.from_role_and_content(role, text)"
            )
        self.content = [_as_content(item) for item in self.content]
        check_optional_name("Message", "a channel", self.channel)
        check_optional_name("Message", "a recipient", self.recipient)
        check_content_type("Message", self.content_type)

    @classmethod
    def from_author_and_content(cls, author: Author, content: str | Content) -> Message:
        """A message with one content; a string becomes :class:`TextContent`."""
        return cls(author=author, content=[_text_or_content(content)])

    @classmethod
    def from_role_and_content(cls, role: Role, content: str | Content) -> Message:
        """A message of an unnamed author with one content; a string becomes text content."""
        return cls.from_author_and_content(Author(role=role), content)

    @classmethod
    def from_role_and_contents(cls, role: Role, contents: Sequence[Content]) -> Message:
        """A message of an unnamed author with several contents, rendered one after another."""
        return cls(author=Author(role=role), content=list(contents))

    @classmethod
    def from_model(
        cls,
        author: Author,
        text: str,
        *,
        channel: str | None = None,
        recipient: str | None = None,
        content_type: str | None = None,
    ) -> Message:
        """A message as a model wrote it, header unchecked; rendering checks it again."""
        message = cls(author=author, content=[TextContent(text)])
        message.channel = channel
        message.recipient = recipient
        message.content_type = content_type
        return message

    @property
    def text(self) -> str:
        """The text contents, joined; empty for system and developer blocks."""
        return "".join(item.text for item in self.content if isinstance(item, TextContent))

    def adding_content(self, content: str | Content) -> Message:
        """Append a content; a string becomes :class:`TextContent`."""
        self.content.append(_text_or_content(content))
        return self

    def with_channel(self, channel: str) -> Message:
        """Set the channel."""
        self.channel = check_optional_name("with_channel", "a channel", channel)
        return self

    def with_recipient(self, recipient: str) -> Message:
        """Set the recipient, such as ``functions.lookup``."""
        self.recipient = check_optional_name("with_recipient", "a recipient", recipient)
        return self

    def with_content_type(self, content_type: str) -> Message:
        """Set the content type: a word, or ``<|constrain|>`` and a word."""
        self.content_type = check_content_type("with_content_type", content_type)
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain data; absent header fields are left out, ``name`` may be None."""
        out: dict[str, Any] = {
            **self.author.to_dict(),
            "content": [item.to_dict() for item in self.content],
        }
        for key in ("channel", "recipient", "content_type"):
            value = getattr(self, key)
            if value is not None:
                out[key] = value
        return out

    def to_json(self) -> str:
        """:meth:`to_dict` as JSON text."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Message:
        """The inverse of :meth:`to_dict`; ``content`` may also be one string.

        Raises InvalidArgument for anything else.
        """
        data = check_mapping("Message.from_dict", data)
        missing = [key for key in ("role", "content") if key not in data]
        if missing:
            raise invalid(
                f"[Message.from_dict] expected 'role' and 'content', {missing[0]!r} is absent"
            )
        raw = data["content"]
        items = [{"type": "text", "text": raw}] if isinstance(raw, str) else raw
        if not isinstance(items, list):
            raise invalid("[Message.from_dict] expected content as a string or a list")
        return cls(
            author=Author(role=data["role"], name=data.get("name")),
            content=[content_from_dict(item) for item in items],
            channel=data.get("channel"),
            recipient=data.get("recipient"),
            content_type=data.get("content_type"),
        )

    @classmethod
    def from_json(cls, payload: str) -> Message:
        """The inverse of :meth:`to_json`. Raises InvalidArgument on other JSON."""
        return cls.from_dict(json.loads(payload))


@dataclass
class Conversation:
    """A list of messages in order; iterating over it yields them."""

    messages: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.messages = [_as_message(message) for message in self.messages]

    @classmethod
    def from_messages(cls, messages: Sequence[Message]) -> Conversation:
        """A conversation of these messages (the list is copied, the messages are not)."""
        return cls(messages=list(messages))

    def __iter__(self) -> Iterator[Message]:
        return iter(self.messages)

    def __len__(self) -> int:
        return len(self.messages)

    def to_dict(self) -> dict[str, Any]:
        """``{"messages": [...]}``."""
        return {"messages": [message.to_dict() for message in self.messages]}

    def to_json(self) -> str:
        """:meth:`to_dict` as JSON text."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Conversation:
        """The inverse of :meth:`to_dict`. Raises InvalidArgument."""
        raw = check_mapping("Conversation.from_dict", data).get("messages")
        if not isinstance(raw, list):
            raise invalid("[Conversation.from_dict] expected a list under 'messages'")
        return cls(messages=[Message.from_dict(message) for message in raw])

    @classmethod
    def from_json(cls, payload: str) -> Conversation:
        """The inverse of :meth:`to_json`. Raises InvalidArgument on other JSON."""
        return cls.from_dict(json.loads(payload))


def _text_or_content(content: object) -> Content:
    return TextContent(content) if isinstance(content, str) else _as_content(content)


def _as_content(item: object) -> Content:
    if isinstance(item, Content):
        return item
    if isinstance(item, dict):
        return content_from_dict(item)
    check_text("Message", "content", item)
    raise invalid("[Message] expected TextContent, got a bare string; wrap it")


def _as_message(message: object) -> Message:
    if isinstance(message, Message):
        return message
    if isinstance(message, dict):
        return Message.from_dict(message)
    raise invalid(
        "[Conversation] Input should be a valid dictionary or instance of Message, "
        f"got {type(message).__name__}; wrap it with Message.from_role_and_content"
    )
