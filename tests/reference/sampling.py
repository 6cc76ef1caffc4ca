"""The sampler in float64: logits and what came before in, the next token's exact distribution out.

The order is transformers' and vLLM's: logit bias, mask, penalties, temperature, top-k, top-p,
min-p. llama.cpp applies the temperature last by default, which makes top-p and min-p see other
probabilities; OpenAI's API offers temperature and top-p only, in this order. Where those disagree:

- repetition penalty (CTRL, arXiv 1909.05858; transformers): for each token of the prompt or
  the output once, a positive logit is divided by it and a negative one multiplied.
- frequency and presence penalty (OpenAI), over the output only: logit -= count * frequency +
  (count > 0) * presence.
- top-k keeps exactly k; of equal logits at the boundary the lower ids stay (transformers keeps
  all).
- top-p keeps the smallest set, most probable first, lower ids first among equals, whose probability
  reaches p: the token that crosses p stays, and at least one does.
- min-p keeps what has at least min_p times the largest probability.
- temperature 0 is the largest logit, the lowest id among equals; the filters then change nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .ops import F64, softmax


@dataclass(frozen=True)
class SamplingOptions:
    """The defaults change nothing: OpenAI's temperature 1 and top-p 1."""

    temperature: float = 1.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed: npt.NDArray[np.bool_] | None = None  # [vocab]; False is never sampled


def adjusted_logits(
    logits: F64,
    options: SamplingOptions,
    *,
    prompt: Iterable[int] = (),
    output: Iterable[int] = (),
) -> F64:
    """Return the logits [vocab] after bias, mask and penalties, before temperature."""
    out = np.array(logits, dtype=np.float64)
    for token, bias in options.logit_bias.items():
        out[token] += bias
    if options.allowed is not None:
        out[~options.allowed] = -np.inf
    count = np.bincount(np.array([*output], dtype=np.int64), minlength=len(out))
    seen = count > 0
    seen[np.array([*prompt], dtype=np.int64)] = True
    penalised = np.where(
        out > 0, out / options.repetition_penalty, out * options.repetition_penalty
    )
    out = np.where(seen, penalised, out)
    return out - count * options.frequency_penalty - (count > 0) * options.presence_penalty


def distribution(
    logits: F64,
    options: SamplingOptions,
    *,
    prompt: Iterable[int] = (),
    output: Iterable[int] = (),
) -> F64:
    """Return the probability [vocab] of each token to be sampled next."""
    out = adjusted_logits(logits, options, prompt=prompt, output=output)
    order = np.argsort(-out, kind="stable")  # most probable first, lower id first among equals
    if options.temperature == 0:
        return np.eye(1, len(out), order[0])[0]
    with np.errstate(invalid="ignore"):  # -inf / temperature
        out = out / options.temperature
    keep = np.zeros(len(out), dtype=bool)
    keep[order[: options.top_k or len(out)]] = True
    p = softmax(np.where(keep, out, -np.inf))
    before = np.concatenate([[0.0], np.cumsum(p[order])[:-1]])  # mass of everything likelier
    if options.top_p < 1.0:
        nucleus = before < options.top_p
        nucleus[0] = True
        keep[order[~nucleus]] = False
    keep &= p >= options.min_p * p.max()
    return softmax(np.where(keep, out, -np.inf))
