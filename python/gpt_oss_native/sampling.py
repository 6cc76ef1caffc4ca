"""How the next token is chosen from the logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Options of `Session.generate`. The defaults are OpenAI's: temperature 1, nothing cut off.

    The order is: ``logit_bias``, ``allowed_tokens``, penalties, temperature, top-k, top-p, min-p
    (csrc/engine/sampler.h has the formulas).
    Values out of range raise InvalidArgument when a generation starts.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token (ties: the lowest id).
        top_k: keeps the k most likely tokens; 0 keeps all.
        top_p: keeps the smallest set of tokens whose probability reaches this; in (0, 1].
        min_p: keeps tokens at least this fraction as likely as the most likely one; in [0, 1].
        repetition_penalty: divides positive and multiplies negative logits of tokens in the prompt
            or the generation (arXiv 1909.05858).
        presence_penalty: subtracted once from tokens already generated.
        frequency_penalty: subtracted for each time a token was generated.
        logit_bias: added to the logits of these ids; -inf bans one.
        allowed_tokens: bool array [vocab]; only these ids are sampled.
        seed: same seed, same tokens, on every platform; None draws a fresh one.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_tokens: npt.NDArray[np.bool_] | None = None
    seed: int | None = None


GREEDY = Sampling(temperature=0.0)


class Token(NamedTuple):
    """One generated token where log-probabilities were asked for.

    They are natural logarithms of the model's own distribution, before temperature and filters.
    """

    id: int
    logprob: float
    top: list[tuple[int, float]]
