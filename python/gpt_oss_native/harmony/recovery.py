"""Reading a message header: by the letter, or to what the model most plausibly meant.

A header is what stands between ``<|start|>`` and ``<|message|>``: a role or a tool's name, a
recipient (``to=functions.x``) before or after the channel, ``<|channel|>`` and its name, and a
content type (``json`` or ``<|constrain|>json``). Models also write headers that are almost that.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from ._checks import CONSTRAIN, NAME, HarmonyError
from .messages import Role

CHANNEL: Final = "<|channel|>"
_ROLES: Final = {role.value: role for role in Role}
_CONTENT_TYPES: Final = ("json", "code", "text")
# What the Rust standard library calls white space; Python's str.split also takes \x1c to \x1f.
_SPACE: Final = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_CHANNEL_END: Final = re.compile(f"[{_SPACE}<]")
_EDGES: Final = re.compile(rf"\A[{_SPACE}]+|[{_SPACE}]+\Z")
_WORDS: Final = re.compile(r"[^\t\n\x0c\r ]+")
_TYPE: Final = re.compile(r"(?:<\|constrain\|>)?[A-Za-z0-9_.+/-]+")

_CHANNEL_ITEM: Final = re.compile(r"<\|channel\|>[ ]?([A-Za-z0-9_.-]*)")
_CONSTRAIN_ITEM: Final = re.compile(r"<\|constrain\|>[ ]?([A-Za-z0-9_.+/-]*)")
_SPECIAL_ITEM: Final = re.compile(r"<\|[A-Za-z0-9_]+\|>")
_TO_ITEM: Final = re.compile(r"to\s*[=:]\s*([^\s<]*)")
_ROLE_ITEM: Final = re.compile(r"(user|assistant|system|developer|tool)(?::([A-Za-z0-9_.-]+))?")
_WORD_ITEM: Final = re.compile(r"[^\s<]+|<")
_GAP: Final = re.compile(r"\s*")


@dataclass
class Header:
    """What a header says; ``notes`` holds one phrase for each thing that was odd about it."""

    role: Role = Role.ASSISTANT
    name: str | None = None
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None
    notes: list[str] = field(default_factory=list)


def _trim(text: str) -> str:
    return _EDGES.sub("", text)


def parse_by_the_letter(text: str, role: Role | None) -> tuple[Header, list[str], bool]:
    """The header, the words left over, and whether its recipient stood without ``to=``.

    ``role`` is the role that the prompt opened, None when the header names it. Raises HarmonyError
    for a channel mark without a channel, an absent role and an unknown role.
    """
    header = Header()
    before, mark, after = text.partition(CHANNEL)
    if mark:
        end = _CHANNEL_END.search(after)
        header.channel = after[: end.start()] if end else after
        if not header.channel:
            raise HarmonyError(
                "[parse] channel marker present but no channel value found in header"
            )
        text = before + after[len(header.channel) :]
    words = _WORDS.findall(_trim(_trim(text).replace(CONSTRAIN, f" {CONSTRAIN}")))
    if role is None:
        header.role, header.name = _role_by_the_letter(words)
    else:
        header.role = role
    if words and words[0] == header.role.value:
        words.pop(0)
    bare = False
    if words:
        alone = len(words) == 1
        last = words.pop()
        if last.startswith("to="):
            header.recipient = last[3:]
        elif alone:
            header.recipient, bare = last, True
        else:
            header.content_type = last
            named = words.pop()
            bare = not named.startswith("to=")
            header.recipient = named.removeprefix("to=")
    return header, words, bare


def _role_by_the_letter(words: list[str]) -> tuple[Role, str | None]:
    if not words:
        raise HarmonyError("[parse] message header did not contain a role")
    first = words[0]
    if first in _ROLES:
        role = _ROLES[first]
        return role, first if role == Role.TOOL else None
    if len(words) > 1 or first.startswith("to="):
        words.pop(0)
        return Role.TOOL, first
    raise HarmonyError(f"[parse] Unknown role: {first}")


def parse_strict(text: str, role: Role | None) -> Header:
    """The header, or HarmonyError for anything left over."""
    header, rest, _ = parse_by_the_letter(text, role)
    if rest:
        raise HarmonyError(
            f'[parse] unexpected tokens remaining in message header: Some("{" ".join(rest)}")'
        )
    return header


def parse_recovering(
    text: str, role: Role | None, channels: Sequence[str], recipients: Sequence[str] | None
) -> Header:
    """The header by the letter if that makes sense, else the most plausible one; never raises."""
    try:
        header, rest, bare = parse_by_the_letter(text, role)
    except HarmonyError:
        header, rest, bare = Header(), [text], False
    if not rest and not bare and _is_clean(header, channels, recipients):
        return header
    reader = _Reader(text, role, channels)
    reader.read(closed=True)
    header = reader.finish(recipients)
    named = header.name is not None and header.role != Role.TOOL
    typed = header.recipient is None and (header.content_type or "").startswith(CONSTRAIN)
    if not (header.notes or named or typed):  # these two are in order, though not by the letter
        header.notes.append("header out of order")
    return header


def parse_unfinished(
    text: str, role: Role | None, channels: Sequence[str], recipients: Sequence[str] | None
) -> tuple[Header, str]:
    """A header that never reached ``<|message|>``: what it says, and the text that follows it."""
    reader = _Reader(text, role, channels)
    end = reader.read(closed=False)
    return reader.finish(recipients), text[end:].strip()


def _is_clean(header: Header, channels: Sequence[str], recipients: Sequence[str] | None) -> bool:
    for word in (header.name, header.channel, header.recipient):
        if word is not None and NAME.fullmatch(word) is None:
            return False
    if header.content_type is not None and _TYPE.fullmatch(header.content_type) is None:
        return False
    if header.channel is not None and header.channel not in channels:
        return False
    if header.role == Role.TOOL:  # an unknown first word is a tool's name when it answers somebody
        return header.name is None or header.recipient in (None, "all", *_ROLES)
    if header.role == Role.ASSISTANT and header.recipient in _ROLES:
        return False
    return recipients is None or header.recipient is None or header.recipient in recipients


class _Reader:
    """Reads header items in any order and collects what fits nowhere."""

    def __init__(self, text: str, role: Role | None, channels: Sequence[str]) -> None:
        self.text = text
        self.channels = channels
        self.header = Header(role=role or Role.ASSISTANT)
        self.role_known = role is not None
        self.named = False  # a role word was read
        self.rest: list[str] = []

    def note(self, phrase: str) -> None:
        self.header.notes.append(phrase)

    def read(self, *, closed: bool) -> int:
        """Read items from the start; where the text begins when not ``closed``, else its end."""
        text, pos = self.text, 0
        while True:
            pos = self.gap(pos)
            if pos == len(text):
                return pos
            after = self.item(pos)
            if after is None:
                if not closed:
                    return pos
                word = _WORD_ITEM.match(text, pos)
                after = word.end() if word else pos + 1
                self.rest.append(text[pos:after])
            pos = after

    def gap(self, pos: int) -> int:
        match = _GAP.match(self.text, pos)
        return match.end() if match else pos

    def item(self, pos: int) -> int | None:
        """Read one header item at ``pos``; one past its end, or None when none stands there."""
        text = self.text
        if match := _CHANNEL_ITEM.match(text, pos):
            return match.end() - len(self.channel(match[1]))
        if match := _CONSTRAIN_ITEM.match(text, pos):
            if " " in match[0]:
                self.note(f"space after {CONSTRAIN}")
            if self.header.content_type is None:
                self.header.content_type = CONSTRAIN + match[1]
            else:
                self.note("second content type")
            return match.end()
        if match := _SPECIAL_ITEM.match(text, pos):
            self.note(f"{match[0]} inside the header")
            return match.end()
        if match := _TO_ITEM.match(text, pos):
            if match[0] != f"to={match[1]}":
                self.note(f"recipient after {match[0].removesuffix(match[1])!r}")
            self.recipient(match[1])
            return match.end()
        if not self.named and not self.rest and (match := _ROLE_ITEM.match(text, pos)):
            return self.role(match)
        return None

    def role(self, match: re.Match[str]) -> int | None:
        glued = self.text[match.end() :]
        channel = next((name for name in self.channels if glued.startswith(name)), None)
        if glued[:1] not in ("", "<") and not glued[:1].isspace() and channel is None:
            return None
        role = _ROLES[match[1]]
        if self.role_known and role != self.header.role:
            self.note(f"role {role.value} where {self.header.role.value} was open")
        else:
            self.header.role, self.header.name = role, match[2]
        self.named = self.role_known = True
        if channel is None:
            return match.end()
        self.note(f"no {CHANNEL} before {channel}")
        self.header.channel = channel
        return match.end() + len(channel)

    def channel(self, value: str) -> str:
        """Take a channel; returns the part of ``value`` that is not of the channel's name."""
        if self.header.channel is not None:
            self.note("second channel")
        if not value:
            self.note("channel mark without a channel")
            return ""
        if value in self.channels:
            self.header.channel = value
            return ""
        low = value.lower()
        for name in self.channels:
            if low.startswith(name) or (len(low) >= 3 and name.startswith(low)):
                self.note(f"channel {value!r}")
                self.header.channel = name
                return value[len(name) :]
        self.note(f"unknown channel {value!r}")
        self.header.channel = value
        return ""

    def recipient(self, value: str) -> None:
        match = NAME.search(value)
        if match is None:
            self.note("recipient without a name")
            return
        if match[0] != value:
            self.note(f"recipient {value!r}")
        if self.header.recipient is not None and self.header.recipient != match[0]:
            self.note("second recipient")
        self.header.recipient = match[0]

    def finish(self, recipients: Sequence[str] | None) -> Header:
        header = self.header
        if not self.role_known:
            self._unknown_role()
        for word in list(self.rest):
            if header.content_type is None and word in _CONTENT_TYPES:
                header.content_type = word
                self.rest.remove(word)
                if header.recipient is None:
                    self.note("content type without a recipient")
        self._bare_recipient()
        if header.role == Role.ASSISTANT and header.recipient in _ROLES:
            self.note(f"recipient {header.recipient!r} of an assistant message")
            header.recipient = None
        if recipients is not None and header.recipient is not None:
            self._declared(header.recipient, recipients)
        if self.rest:
            self.note(f"unexpected text in the header: {' '.join(self.rest)!r}")
        if header.content_type == CONSTRAIN:
            self.note(f"{CONSTRAIN} without a type")
            header.content_type = None
        return header

    def _unknown_role(self) -> None:
        """No role was open and none was written: a tool that answers, or an assistant."""
        header, word = self.header, self.rest[0] if self.rest else ""
        answers = header.recipient in (None, "all", *_ROLES)
        if word in self.channels and header.channel is None:
            header.channel = self.rest.pop(0)
            self.note(f"no {CHANNEL} before {header.channel}")
        elif NAME.fullmatch(word) and answers and ("." in word or header.recipient is not None):
            header.role, header.name = Role.TOOL, self.rest.pop(0)
            if header.recipient is None:
                self.note("tool message without a recipient")
            return
        self.note("no role")

    def _bare_recipient(self) -> None:
        header = self.header
        if header.recipient is not None or header.role != Role.ASSISTANT or len(self.rest) != 1:
            return
        if NAME.fullmatch(self.rest[0]):
            header.recipient = self.rest.pop()
            self.note("recipient without 'to='")

    def _declared(self, name: str, recipients: Sequence[str]) -> None:
        """Replace an undeclared recipient by the declared one that it most plausibly means."""
        if name in recipients:
            return
        self.note(f"undeclared recipient {name!r}")
        same = [known for known in recipients if known.rpartition(".")[2] == name]
        inside = [known for known in recipients if name.startswith(known)]
        candidates = same or inside
        if candidates:
            self.header.recipient = max(candidates, key=len)
