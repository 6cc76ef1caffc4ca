"""From a stream of ids to a stream of text: incremental decoding, and stop strings held back."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from contextlib import suppress

import tiktoken

from .errors import InvalidArgument
from .tokenizer.ids import token_bytes

# Python's decoder keeps the first two bytes of an encoded surrogate, though nothing can follow that
# would make them text.
_SURROGATE = (b"\xed\xa0", b"\xed\xbf")

_new_decoder = codecs.getincrementaldecoder("utf-8")


class StreamingDetokenizer:
    """Ids in, text out, as early as it is certain.

    All deltas of ``push`` and the one of ``flush``, joined, are ``decode_text`` of all ids. A
    delta holds no character, U+FFFD included, that a later id could change: the bytes of an
    unfinished character wait. An id seen before costs well under a microsecond.
    """

    def __init__(self, encoding: tiktoken.Encoding) -> None:
        self._encoding = encoding
        self._decoder = _new_decoder("replace")
        self._waiting = False  # whether the decoder holds bytes back
        self._texts: dict[int, str] = {}  # ids that are whole characters by themselves
        self._bytes: dict[int, bytes] = {}  # the others

    def push(self, token: int) -> str:
        """The text that `token` settles, often all of its own, possibly "". Never raises on an
        integer: an id without a name is U+FFFD."""
        if not self._waiting:
            text = self._texts.get(token)
            if text is not None:
                return text
        data = self._bytes.get(token)
        if data is None:
            data = self._learn(token)
        delta = self._decoder.decode(data)
        waiting = self._decoder.getstate()[0]
        if len(waiting) == 2 and _SURROGATE[0] <= waiting <= _SURROGATE[1]:
            return delta + self.flush()
        self._waiting = bool(waiting)
        return delta

    def flush(self) -> str:
        """What still waited, as U+FFFD, or "". The detokenizer is then as new."""
        delta = self._decoder.decode(b"", True)
        self._waiting = False
        return delta

    def _learn(self, token: int) -> bytes:
        data = self._bytes[token] = token_bytes(self._encoding, token)
        with suppress(UnicodeDecodeError):
            self._texts[token] = data.decode()
        return data


class StopStrings:
    """Lets text through up to the first stop string and holds back what may become one.

    The match that *begins* earliest in the whole text wins, however the text was cut into deltas;
    so with "abcd" and "bc", the text "abc" waits for the next character. All text let through is
    the text before that match, or all text if there is none. Linear in the length of the text and
    of the strings, whatever they are (Aho and Corasick, "Efficient string matching", 1975).

    Raises InvalidArgument for an empty stop string. No strings at all let everything through.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        if isinstance(strings, str):
            strings = (strings,)
        self._strings = tuple(dict.fromkeys(strings))
        if not all(isinstance(string, str) and string for string in self._strings):
            raise InvalidArgument(
                f"[StopStrings] expected strings of one character or more, found "
                f"{list(self._strings)!r}; leave the others out"
            )
        self._starts = frozenset(string[0] for string in self._strings)
        self._build()
        self._state = 0  # the longest end of the text that begins a stop string
        self._end = 0  # length of the text so far
        self._match: tuple[int, str] | None = None  # where the earliest match begins, and what
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found; from then on no text comes out."""
        return self._stopped

    @property
    def matched(self) -> str | None:
        """The stop string that was found, or None as long as ``stopped`` is False."""
        return self._match[1] if self._match and self._stopped else None

    def push(self, delta: str) -> tuple[str, bool]:
        """The text that `delta` lets through, and whether a stop string was found."""
        if self._stopped:
            return "", True
        if self._state == 0 and self._match is None and self._starts.isdisjoint(delta):
            self._end += len(delta)
            return delta, False
        before, begin = self._state, self._end - self._depth[self._state]
        state, steps, fallback, depth = before, self._steps, self._fallback, self._depth
        for end, character in enumerate(delta, self._end + 1):
            while state and character not in steps[state]:
                state = fallback[state]
            state = steps[state].get(character, 0)
            found = self._found[state]
            if found is not None and (self._match is None or end - len(found) < self._match[0]):
                self._match = end - len(found), found
            # A longer candidate that began before the match could still win.
            if self._match is not None and end - depth[state] >= self._match[0]:
                self._stopped = True
                return self._released(before, delta, self._match[0] - begin), True
        self._state = state
        self._end += len(delta)
        return self._released(before, delta, self._end - depth[state] - begin), False

    def flush(self) -> str:
        """The text still held back, when no more will come: up to a match, if there was one."""
        if self._stopped:
            return ""
        state, self._state = self._state, 0
        count = self._depth[state]
        if self._match is not None:
            self._stopped = True
            count -= self._end - self._match[0]
        return self._released(state, "", count)

    def _released(self, state: int, delta: str, count: int) -> str:
        """The first `count` characters of what `state` holds back and `delta`, at that cost."""
        depth = self._depth[state]
        if count <= depth:
            return self._owner[state][:count]
        return self._owner[state][:depth] + delta[: count - depth]

    def _build(self) -> None:
        """The automaton: one state for each beginning of a stop string, 0 for the empty one."""
        self._steps: list[dict[str, int]] = [{}]
        self._depth = [0]
        self._owner = [""]  # a stop string that begins with the state's text
        self._found: list[str | None] = [None]  # the longest stop string that ends the state's text
        self._fallback = [0]  # the longest other state that ends the state's text
        for string in self._strings:
            state = 0
            for depth, character in enumerate(string, 1):
                if character not in self._steps[state]:
                    self._steps[state][character] = len(self._steps)
                    self._steps.append({})
                    self._depth.append(depth)
                    self._owner.append(string)
                    self._found.append(None)
                    self._fallback.append(0)
                state = self._steps[state][character]
            self._found[state] = string
        order = list(self._steps[0].values())
        for state in order:  # grows as it goes: breadth first
            for character, following in self._steps[state].items():
                order.append(following)
                fallback = self._fallback[state]
                while fallback and character not in self._steps[fallback]:
                    fallback = self._fallback[fallback]
                fallback = self._steps[fallback].get(character, 0)
                self._fallback[following] = fallback
                if self._found[following] is None:
                    self._found[following] = self._found[fallback]
