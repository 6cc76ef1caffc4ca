"""Whether merging by token id, which is what tiktoken does, follows a file's own list of merges.

Two procedures start from the bytes of a piece and merge two neighbours again and again:

- the file's: the pair that stands earliest in the list of merges, the leftmost of equals;
- tiktoken's: the pair whose concatenation has the lowest id in the vocabulary, the leftmost of
  equals, **whether the list has that pair or not**; and a piece that is in the vocabulary as a
  whole is taken at once.

They agree on every piece if three things hold. Let F(t) be what the file's procedure makes of the
bytes of token t alone.

1. F(t) is never two tokens. If it is [l][r], the pair (l, r) is not in the list, yet tiktoken
   merges it wherever the two meet.
2. If F(t) is three tokens or more, the file takes whole pieces from the vocabulary at once
   (``ignore_merges``), as tiktoken does.
3. Where F(t) is [t], the last pair it merged is *the* pair of t, and these pairs stand in the
   list in the order of the ids.

Why that is enough: suppose l and r are neighbours at some moment of either procedure on some
piece. No merge has crossed the ends of l + r, so the merges within it are those that l + r alone
would have gone through, in the same order, and F's procedure on l + r alone passes [l][r]. If
l + r is a token t, then by 1 that pair is the pair of t, and no other pair that gives t is ever
seen. So both procedures always choose among the same pairs, by 3 in the same order.

F(t) is found for all tokens together, shortest first. For a pair (l, r) of known l and r, alone,
only the tokens at the boundary matter: undo the merges of both sides from the latest on, and at
each moment ask whether the two tokens that then touched would have merged first. (The test is
that of Hendrik van Antwerpen's "So many tokens, so little time", GitHub 2024, in array form.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

_Ints = npt.NDArray[np.int64]

_NEVER = np.iinfo(np.int64).max
_FILTER_BITS = 24


@dataclass(frozen=True)
class Disagreement:
    """The first token, as an index into the tokens, on which tiktoken would not follow the file."""

    kind: str  # "two" (rule 1), "whole" (rule 2) or "order" (rule 3)
    token: int
    parts: tuple[int, ...]  # F(token) for the first two, the token before in the list for the last


class MergeTable:
    """The list of merges, by pair; the priority of a pair is its place in the list."""

    def __init__(self, left: _Ints, right: _Ints, result: _Ints, num_tokens: int) -> None:
        self.left, self.right, self.result = left, right, result
        self._num_tokens = num_tokens
        keys = left * num_tokens + right
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]
        # Most questions are about pairs that are not in the list: one bit answers nearly all.
        self._filter = np.zeros(1 << _FILTER_BITS, dtype=np.bool_)
        self._filter[self._hash(keys)] = True

    @staticmethod
    def _hash(keys: _Ints) -> npt.NDArray[np.uint64]:
        mixed = keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        return mixed >> np.uint64(64 - _FILTER_BITS)

    def duplicate(self) -> int | None:
        """The place of a pair that stands in the list twice, or None."""
        twice = np.flatnonzero(self._keys[1:] == self._keys[:-1])
        return int(self._order[twice[0] + 1]) if twice.size else None

    def priority(self, left: _Ints, right: _Ints) -> _Ints:
        """The priority of each pair, `_NEVER` for those that are not in the list."""
        keys = left * self._num_tokens + right
        found = np.full(keys.shape, _NEVER, dtype=np.int64)
        maybe = np.flatnonzero(self._filter[self._hash(keys)])
        if maybe.size and self._keys.size:
            place = np.searchsorted(self._keys, keys[maybe])
            place[place == self._keys.size] = 0
            hit = self._keys[place] == keys[maybe]
            found[maybe[hit]] = self._order[place[hit]]
        return found


class _Trees:
    """For each token F(t) = [t] found so far: the pair merged last and that pair's priority."""

    def __init__(self, lengths: _Ints) -> None:
        self.known = lengths == 1
        self.priority = np.full(lengths.shape, -1, dtype=np.int64)
        self.left = np.full(lengths.shape, -1, dtype=np.int64)
        self.right = np.full(lengths.shape, -1, dtype=np.int64)

    def set(
        self, token: _Ints | int, left: _Ints | int, right: _Ints | int, at: _Ints | int
    ) -> None:
        self.left[token], self.right[token] = left, right
        self.priority[token] = at
        self.known[token] = True


def _reached(table: MergeTable, trees: _Trees, pairs: _Ints) -> _Ints:
    """Those of `pairs` (places in the list) whose two sides, alone, come to stand side by side.

    Only for pairs later in the list than the merges inside their sides.
    """
    x, y = table.left[pairs], table.right[pairs]
    alive = np.arange(pairs.size)
    blocked = np.zeros(pairs.size, dtype=np.bool_)
    while alive.size:
        made_x, made_y = trees.priority[x], trees.priority[y]
        inner = np.maximum(made_x, made_y) >= 0
        if not inner.all():
            alive, x, y = alive[inner], x[inner], y[inner]
            made_x, made_y = made_x[inner], made_y[inner]
        # Of two equal merges the right one came later, as the leftmost goes first.
        undo_y = made_y >= made_x
        undone = np.where(undo_y, made_y, made_x)
        x, y = np.where(undo_y, x, trees.right[x]), np.where(undo_y, trees.left[y], y)
        crossing = table.priority(x, y)
        # An equal crossing merge stands left of y's own merge and right of x's.
        first = (crossing < undone) | ((crossing == undone) & undo_y)
        blocked[alive[first]] = True
        alive, x, y = alive[~first], x[~first], y[~first]
    return pairs[~blocked]


def _grow_trees(table: MergeTable, lengths: _Ints) -> _Trees:
    trees = _Trees(lengths)
    pair_lengths = lengths[table.result]
    by_length = np.argsort(pair_lengths, kind="stable")
    starts = np.flatnonzero(np.diff(pair_lengths[by_length], prepend=-1))
    for begin, end in pairwise([*starts.tolist(), by_length.size]):
        pairs = by_length[begin:end]
        left, right = table.left[pairs], table.right[pairs]
        inner = np.maximum(trees.priority[left], trees.priority[right])
        pairs = pairs[trees.known[left] & trees.known[right] & (inner < pairs)]
        pairs = _reached(table, trees, pairs)
        trees.set(table.result[pairs], table.left[pairs], table.right[pairs], pairs)
    return trees


def merge_steps(
    parts: list[int], merges: dict[tuple[int, int], tuple[int, int]]
) -> Iterator[list[int]]:
    """The file's procedure, state by state, from `parts` on to the final one.

    `merges` maps a pair to its priority and the merged token. For short pieces: O(n^2).
    """
    yield parts
    while len(parts) > 1:
        steps = [(merges.get(pair, (_NEVER, -1)), at) for at, pair in enumerate(pairwise(parts))]
        (priority, merged), at = min(steps)
        if priority == _NEVER:
            return
        parts = [*parts[:at], merged, *parts[at + 2 :]]
        yield parts


def find_disagreement(
    tokens: Sequence[bytes], table: MergeTable, *, whole_pieces_first: bool
) -> Disagreement | None:
    """The first reason why tiktoken would not follow the list, or None if it always does.

    `tokens` are the vocabulary's in the order of their ids, all 256 bytes among them;
    `whole_pieces_first` is the file's ``ignore_merges``.
    """
    lengths = np.fromiter(map(len, tokens), dtype=np.int64, count=len(tokens))
    trees = _grow_trees(table, lengths)
    others = np.flatnonzero(~trees.known).tolist()
    if others:
        index = {token: at for at, token in enumerate(tokens) if len(token) == 1}
        single = [index[bytes([value])] for value in range(256)]
        pairs = zip(table.left.tolist(), table.right.tolist(), strict=True)
        merged = enumerate(table.result.tolist())
        merges = dict(zip(pairs, merged, strict=True))
        for token in others:
            states = list(merge_steps([single[value] for value in tokens[token]], merges))
            final = tuple(states[-1])
            if len(final) == 2:
                return Disagreement("two", token, final)
            if len(final) == 1:  # merged by a rule that stands before its parts' own
                left, right = states[-2]
                trees.set(token, left, right, merges[left, right][0])
            elif not whole_pieces_first:
                return Disagreement("whole", token, final)
    merged_tokens = np.flatnonzero(trees.priority >= 0)
    disorder = np.flatnonzero(np.diff(trees.priority[merged_tokens]) < 0)
    if disorder.size:
        at = int(disorder[0])
        return Disagreement("order", int(merged_tokens[at + 1]), (int(merged_tokens[at]),))
    return None
