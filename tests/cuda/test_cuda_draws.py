"""Tokens drawn on a CUDA device are those of the host's sampler, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gpt_oss_native as gon
import numpy as np
import pytest
from gpt_oss_native import ops
from reference.op_support import normal

# One token, around a chunk of 256, more chunks than threads scan, and the published vocabulary.
VOCABULARIES = (1, 7, 255, 256, 257, 1003, 30000, 201_088)
# Rows in which many logits are equal, far apart, minus infinity or zeros of either sign.
ROWS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda rng, n: normal(rng, n, scale=2.0),
    "narrow": lambda rng, n: normal(rng, n, scale=0.01),
    "shifted": lambda rng, n: normal(rng, n, scale=0.5) + np.float32(100),
    "wide": lambda rng, n: normal(rng, n, scale=30.0),
    "equal": lambda rng, n: np.full(n, 1.5, np.float32),
    "steps": lambda rng, n: np.round(normal(rng, n, scale=4.0)) / np.float32(4),
    "zeros": lambda rng, n: np.round(normal(rng, n)) * np.float32(-1),
    "holes": lambda rng, n: np.where(rng.random(n) < 0.3, -np.inf, normal(rng, n, scale=2.0)),
    "peaks": lambda rng, n: np.where(rng.random(n) < 0.02, normal(rng, n, scale=3.0), -20.0),
    "heavy": lambda rng, n: normal(rng, n) ** 3 * np.float32(-1e4),
}


def random_sampling(rng: np.random.Generator, vocab: int) -> gon.Sampling:
    kind = int(rng.integers(0, 9))
    options: dict[str, Any] = {"seed": int(rng.integers(0, 2**63))}
    options["temperature"] = 0.0 if kind == 0 else float(rng.choice([1.0, 0.7, 0.02, 8.0]))
    if kind in (1, 2, 3):
        most = vocab + 2 if rng.random() < 0.3 else min(vocab, 200)
        options["top_k"] = int(rng.integers(1, most + 1))
    if kind in (3, 4, 5, 6):
        options["top_p"] = float(
            rng.uniform(1e-3, 1) if rng.random() < 0.3 else rng.uniform(0.8, 1)
        )
    if kind in (2, 6, 7):
        options["min_p"] = float(np.exp(-25 * rng.random()))
    return gon.Sampling(**options)


@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_a_row_gives_the_token_that_the_sampler_would_draw(
    cuda_device: str, rng: np.random.Generator, vocab: int
) -> None:
    banned = [int(t) for t in np.flatnonzero(rng.random(vocab) < 0.2)]
    allowed = np.setdiff1d(np.arange(vocab), banned)
    for name, make in ROWS.items():
        logits = np.stack([make(rng, vocab) for _ in range(6)]).astype(np.float32)
        for ids in (banned if len(allowed) else [], []):
            logits[:, rng.choice(allowed if ids else vocab)] = 1.0  # not all are -infinity
            samplings = [random_sampling(rng, vocab) for _ in logits]
            found = ops.draw_tokens(logits, samplings, banned=ids, device=cuda_device)
            expected = ops.draw_tokens(logits, samplings, banned=ids)
            np.testing.assert_array_equal(found, expected, err_msg=name)


def test_more_rows_than_one_launch_takes(cuda_device: str, rng: np.random.Generator) -> None:
    logits = normal(rng, 300, 1003, scale=2.0)
    samplings = [random_sampling(rng, 1003) for _ in logits]
    found = ops.draw_tokens(logits, samplings, device=cuda_device)
    np.testing.assert_array_equal(found, ops.draw_tokens(logits, samplings))


@pytest.mark.parametrize(
    ("value", "match"), [(np.nan, "NaN"), (np.inf, r"\+inf"), (None, "-inf only")]
)
@pytest.mark.parametrize("device", [None, "cuda"])
def test_rows_without_a_token_raise(
    request: pytest.FixtureRequest,
    rng: np.random.Generator,
    device: str | None,
    value: float | None,
    match: str,
) -> None:
    if device is not None:
        request.getfixturevalue("cuda_device")
    logits = normal(rng, 1, 700)
    if value is None:
        logits[:] = -np.inf
    else:
        logits[0, 400] = value
    for sampling in (gon.Sampling(temperature=0), gon.Sampling(top_p=0.5, seed=1)):
        with pytest.raises(gon.GptOssError, match=match):
            ops.draw_tokens(logits, [sampling], device=device)
