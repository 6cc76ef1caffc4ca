"""Do two engines run the same weights? Logits say so, within what rounding explains.

Reference is this package's engine with float32 activations. Its own int8 format shows how far
rounding alone carries logits away on these weights: on random networks an eighth bit flips experts
that are nearly tied, so single rows may be far off and medians are compared. llama.cpp rounds the
activations of dense products to 8 bits, this package to 15, so it may be farther from the reference
than our own int8; a wrong packing, order of rows or bias makes rows of which nothing is right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Of the median row error. Rounding was measured at 1.4 times our own on the tiny model; the
# mildest mistake, biases in the wrong order, at 6.5 times (packing and rows: 20).
MOST_TIMES_OURS = 3.0
LEAST_BOUND = 0.02  # where our own format is nearly exact

F32 = npt.NDArray[np.float32]


def row_errors(found: F32, expected: F32) -> npt.NDArray[np.float64]:
    """Relative error of each row [rows], in the 2-norm, each row's mean left out: it does not
    change what is sampled."""
    expected = expected - expected.mean(axis=1, keepdims=True)
    found = found - found.mean(axis=1, keepdims=True)
    error = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    return np.asarray(error, np.float64)


@dataclass(frozen=True)
class Agreement:
    """Median row errors against float32 of the peer and of our own int8, and the share of rows
    whose likeliest token is the reference's."""

    peer: float
    ours: float
    peer_top: float
    ours_top: float

    @property
    def bound(self) -> float:
        """What the peer's may be."""
        return max(LEAST_BOUND, MOST_TIMES_OURS * self.ours)

    @property
    def holds(self) -> bool:
        """Whether the two run the same weights."""
        return bool(np.isfinite(self.peer)) and self.peer <= self.bound

    def text(self) -> str:
        """In words."""
        return (
            f"median row error against float32: peer {self.peer:.4f}, ours in int8 "
            f"{self.ours:.4f}, bound {self.bound:.4f}; same likeliest token: peer "
            f"{self.peer_top:.0%}, ours {self.ours_top:.0%}"
        )


def agreement(reference: F32, ours: F32, peer: F32) -> Agreement:
    """Compare logits [rows][vocab] of the same tokens."""

    def top(rows: F32) -> float:
        return float((rows.argmax(axis=1) == reference.argmax(axis=1)).mean())

    return Agreement(
        peer=float(np.median(row_errors(peer, reference))),
        ours=float(np.median(row_errors(ours, reference))),
        peer_top=top(peer),
        ours_top=top(ours),
    )
