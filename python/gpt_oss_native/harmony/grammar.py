"""A token mask that follows the grammar of headers, so that a malformed one cannot be sampled.

A header is a finite language: fixed words, special tokens, declared names. It is built once as a
deterministic automaton over bytes and special tokens. What is allowed at a place is found by
walking the automaton's byte paths and looking each one up in the vocabulary, so every tokenisation
of a name is allowed, not only the canonical one. The result is kept for each place: later the cost
of a token is two dictionary look-ups.

    header   = role [" to=" RECIPIENT] "<|channel|>" CHANNEL [" to=" RECIPIENT] [type] "<|message|>"
    type     = [" "] "<|constrain|>" ("json") | " " ("code" | "json")      the latter for calls only
    message  = header text ("<|end|>" "<|start|>" message | "<|call|>" | "<|return|>")
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidArgument
from ._checks import check_name
from .content import DEFAULT_CHANNELS, DeveloperContent, SystemContent
from .encoding import HarmonyEncoding
from .messages import Conversation

TokenMask = NDArray[np.bool_] | NDArray[np.uint8]

_CALL_CHANNELS: Final = ("analysis", "commentary")
# A mask of the full vocabulary is 201 kB (25 kB packed); a turn visits a few dozen places.
_MAX_ROWS: Final = 256


@dataclass
class _Node:
    """A place in a header; ``content`` marks those after ``<|message|>``, where text is free."""

    bytes: dict[int, int] = field(default_factory=dict)
    specials: dict[int, int] = field(default_factory=dict)
    content: bool = False


@dataclass(frozen=True)
class _Row:
    """What is known about a place once it was visited: where each allowed token leads, its mask."""

    moves: Mapping[int, int]
    mask: TokenMask | None


class HeaderGrammar:
    """The grammar of one conversation's headers, shared by all its turns.

    Args:
        encoding: the harmony encoding that is sampled.
        recipients: what may be called: ``functions.lookup``, ``browser.search``, ``python``.
        channels: channels that a message without a recipient may have.
        call_channels: channels that a call may have.
        roles: who may write a message after ``<|end|>``.
        vocab_size: length of the masks, the model's vocabulary; by default the tokenizer's.
        packed: masks as bits, eight tokens a byte, least significant first, instead of bools.
        guard_content: also mask the texts: no special tokens inside them, ``<|call|>`` only for
            calls, ``<|return|>`` only on the final channel. Otherwise text is not masked, and a
            header token inside it begins a header, as the parser reads it.

    Raises InvalidArgument for names that are no header words, and where nothing could be written.
    """

    def __init__(
        self,
        encoding: HarmonyEncoding,
        *,
        recipients: Iterable[str] = (),
        channels: Iterable[str] = DEFAULT_CHANNELS,
        call_channels: Iterable[str] = _CALL_CHANNELS,
        roles: Iterable[str] = ("assistant",),
        vocab_size: int | None = None,
        packed: bool = False,
        guard_content: bool = False,
    ) -> None:
        self.encoding = encoding
        self.vocab_size = encoding.vocab_size if vocab_size is None else vocab_size
        self._packed = packed
        self._guard = guard_content
        self.recipients = _names("a recipient", recipients)
        self.channels = _names("a channel", channels)
        self.call_channels = _names("a channel", call_channels) if self.recipients else ()
        self.roles = _names("a role", roles)
        if not (self.channels or self.call_channels) or not self.roles:
            raise InvalidArgument(
                "[HeaderGrammar] expected a role and a channel that a message may have, got none; "
                "give channels=, or call_channels= with recipients="
            )
        self._nodes: list[_Node] = []
        self._rows: OrderedDict[int, _Row] = OrderedDict()
        self._ids: dict[bytes, int] = {}
        self._build()

    @classmethod
    def of_conversation(
        cls,
        encoding: HarmonyEncoding,
        conversation: Conversation,
        *,
        vocab_size: int | None = None,
        packed: bool = False,
        guard_content: bool = False,
    ) -> HeaderGrammar:
        """The grammar that a conversation's system and developer messages declare."""
        channels: Sequence[str] = DEFAULT_CHANNELS
        recipients: list[str] = []
        for content in (item for message in conversation for item in message.content):
            if isinstance(content, (SystemContent, DeveloperContent)):
                for namespace in (content.tools or {}).values():
                    recipients.extend(namespace.recipients())
            if isinstance(content, SystemContent) and content.channel_config is not None:
                channels = content.channel_config.valid_channels or channels
        return cls(
            encoding,
            recipients=recipients,
            channels=channels,
            call_channels=[name for name in _CALL_CHANNELS if name in channels] or channels,
            vocab_size=vocab_size,
            packed=packed,
            guard_content=guard_content,
        )

    def cursor(self, *, role_open: bool = True) -> GrammarCursor:
        """A place in one generation: after ``<|start|>`` and a role, or before ``<|start|>``."""
        return GrammarCursor(self, self._header if role_open else self._between)

    # The automaton

    def _build(self) -> None:
        encoding = self.encoding
        self._between, self._done, self._free = self._new(), self._new(), self._new()
        roles, self._header = self._new(), self._new()
        self._nodes[self._between].specials[encoding.start] = roles
        call_text = self._text_node(call=True, answer=False)
        constrained = self._constrained(call_text)
        late = self._trie(
            self.recipients, lambda node: self._call_end(node, call_text, constrained)
        )
        call_channel = self._trie(
            self.call_channels, lambda node: self._call_end(node, call_text, constrained)
        )
        early = self._trie(
            self.recipients,
            lambda node: self._nodes[node].specials.update({encoding.channel: call_channel}),
        )
        channel = self._channels(late)
        self._nodes[self._header].specials[encoding.channel] = channel
        self._to(self._header, early)
        for role in self.roles:  # every role leads into the same header
            last = self._path(roles, role[:-1].encode())
            self._nodes[last].bytes[role[-1].encode()[0]] = self._header
        self._finish_contents(roles, channel)

    def _new(self) -> int:
        self._nodes.append(_Node())
        return len(self._nodes) - 1

    def _path(self, node: int, data: bytes) -> int:
        """The place after ``data``, made where it is not there yet."""
        for byte in data:
            following = self._nodes[node].bytes.get(byte)
            if following is None:
                following = self._new()
                self._nodes[node].bytes[byte] = following
            node = following
        return node

    def _trie(self, words: Iterable[str], end: Callable[[int], object]) -> int:
        root = self._new()
        for word in words:
            end(self._path(root, word.encode()))
        return root

    def _message(self, node: int, text: int) -> None:
        self._nodes[node].specials[self.encoding.message] = text

    def _constrained(self, text: int) -> int:
        """After ``<|constrain|>``."""
        return self._trie(("json",), lambda node: self._message(node, text))

    def _to(self, node: int, names: int) -> None:
        """`` to=`` and then one of the names."""
        if self.recipients:
            self._nodes[self._path(node, b" to")].bytes[ord("=")] = names

    def _constrain(self, node: int, constrained: int) -> None:
        constrain = self.encoding.constrain
        self._nodes[node].specials[constrain] = constrained
        self._nodes[self._path(node, b" ")].specials[constrain] = constrained

    def _call_end(self, node: int, text: int, constrained: int) -> None:
        """After a call's channel and recipient: a content type, or the text."""
        self._message(node, text)
        self._constrain(node, constrained)
        for kind in (b" code", b" json"):
            self._message(self._path(node, kind), text)

    def _channels(self, late: int) -> int:
        """After ``<|channel|>`` where no recipient was written yet."""
        root = self._new()
        for name in dict.fromkeys((*self.channels, *self.call_channels)):
            node = self._path(root, name.encode())
            if name in self.channels:
                text = self._text_node(call=False, answer=name == "final")
                self._message(node, text)
                if name != "analysis":  # structured answers carry <|constrain|>json
                    self._constrain(node, self._constrained(text))
            if name in self.call_channels:
                self._to(node, late)
        return root

    def _text_node(self, *, call: bool, answer: bool) -> int:
        """A text; its specials are the ends that suit it, by which a guarded text is masked."""
        node = self._new()
        encoding = self.encoding
        self._nodes[node].content = True
        self._nodes[node].specials[encoding.end] = self._between
        if call:
            self._nodes[node].specials[encoding.call] = self._done
        if answer:
            self._nodes[node].specials[encoding.return_] = self._done
        return node

    def _finish_contents(self, roles: int, channel: int) -> None:
        """Where specials lead that come inside a text all the same."""
        encoding = self.encoding
        self._stray = {
            encoding.end: self._between,
            encoding.call: self._done,
            encoding.return_: self._done,
            encoding.start: roles,
            encoding.channel: channel,
        }
        self._recover = {**self._stray, encoding.message: self._text_node(call=True, answer=True)}

    # Masks

    def _row(self, node: int) -> _Row:
        row = self._rows.get(node)
        if row is None:
            row = self._rows[node] = self._make_row(node)
            if len(self._rows) > _MAX_ROWS:
                self._rows.popitem(last=False)
        return row

    def _make_row(self, node: int) -> _Row:
        here = self._nodes[node]
        if node in (self._done, self._free):
            return _Row(self._recover, None)
        if here.content:
            return _Row(self._stray, self._text_mask(here) if self._guard else None)
        moves = dict(here.specials)
        todo = [(node, b"")]
        while todo:
            place, data = todo.pop()
            for byte, following in self._nodes[place].bytes.items():
                longer = data + bytes((byte,))
                token = self._find(longer)
                if token >= 0:
                    moves[token] = following
                todo.append((following, longer))
        mask = np.zeros(self.vocab_size, dtype=np.bool_)
        mask[[token for token in moves if token < self.vocab_size]] = True
        return _Row(moves, self._finish_mask(mask))

    def _text_mask(self, node: _Node) -> TokenMask:
        mask = np.ones(self.vocab_size, dtype=np.bool_)
        encoding = self.encoding
        for token, text in encoding.special_ids.items():
            answer = text == "<|endoftext|>" and encoding.return_ in node.specials
            if token < self.vocab_size:
                mask[token] = token in node.specials or answer
        return self._finish_mask(mask)

    def _finish_mask(self, mask: NDArray[np.bool_]) -> TokenMask:
        out: TokenMask = np.packbits(mask, bitorder="little") if self._packed else mask
        out.flags.writeable = False
        return out

    def _find(self, data: bytes) -> int:
        """The id of the ordinary token with these bytes; -1 when there is none."""
        token = self._ids.get(data)
        if token is None:
            try:
                token = self.encoding.tokenizer.encode_single_token(data)
            except KeyError:
                token = -1
            self._ids[data] = token
        return token


class GrammarCursor:
    """Where one generation stands in the grammar. Copy it to fork: it holds one number."""

    __slots__ = ("_grammar", "_node")

    def __init__(self, grammar: HeaderGrammar, node: int) -> None:
        self._grammar = grammar
        self._node = node

    def mask(self) -> TokenMask | None:
        """Which tokens may come next, read-only; None where every token may."""
        return self._grammar._row(self._node).mask

    def accept(self, token: int) -> bool:
        """Take a token; False when the grammar did not allow it. Never raises.

        After a token that is not allowed, the cursor masks nothing until the next message begins.
        """
        grammar = self._grammar
        row = grammar._row(self._node)
        following = row.moves.get(token)
        if following is not None:
            here = grammar._nodes[self._node]
            self._node = following
            return not (grammar._guard and here.content and token not in here.specials)
        if row.mask is None or grammar._nodes[self._node].content:
            return True
        self._node = grammar._recover.get(token, grammar._free)
        return False

    def accept_all(self, tokens: Iterable[int]) -> bool:
        """Take several tokens; whether all of them were allowed."""
        return all([self.accept(token) for token in tokens])

    def copy(self) -> GrammarCursor:
        """A second cursor at the same place."""
        return GrammarCursor(self._grammar, self._node)

    @property
    def in_content(self) -> bool:
        """Whether the next token is text and not header."""
        return self._grammar._nodes[self._node].content

    @property
    def done(self) -> bool:
        """Whether the turn has ended: ``<|call|>`` or ``<|return|>`` came."""
        return self._node == self._grammar._done


def _names(what: str, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(check_name("HeaderGrammar", what, name) for name in names))
