"""The reference sampler against transformers' logits processors and hand-made cases."""

from __future__ import annotations

import numpy as np
import pytest
from reference.sampling import SamplingOptions, distribution

VOCAB = 301


def theirs(logits: np.ndarray, history: list[int], options: SamplingOptions) -> np.ndarray:
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    scores, ids = torch.from_numpy(logits)[None], torch.tensor([history])
    steps = [process.RepetitionPenaltyLogitsProcessor(options.repetition_penalty)]
    steps.append(process.TemperatureLogitsWarper(options.temperature))
    if options.top_k:
        steps.append(process.TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        steps.append(process.TopPLogitsWarper(options.top_p))
    if options.min_p > 0:
        steps.append(process.MinPLogitsWarper(options.min_p))
    for step in steps:
        scores = step(ids, scores)
    return scores.softmax(-1)[0].numpy()


@pytest.mark.parametrize(
    "options",
    [
        SamplingOptions(),
        SamplingOptions(temperature=0.3),
        SamplingOptions(top_k=7),
        SamplingOptions(top_p=0.7),
        SamplingOptions(min_p=0.05),
        SamplingOptions(repetition_penalty=1.3),
        SamplingOptions(temperature=1.7, top_k=40, top_p=0.9, min_p=0.02, repetition_penalty=1.1),
    ],
    ids=str,
)
def test_distribution_agrees_with_transformers(
    options: SamplingOptions, rng: np.random.Generator
) -> None:
    for _ in range(20):
        logits = 3 * rng.standard_normal(VOCAB)
        history = [int(token) for token in rng.integers(0, VOCAB, 50)]
        found = distribution(logits, options, prompt=history[:20], output=history[20:])
        np.testing.assert_allclose(found, theirs(logits, history, options), atol=1e-12)


def probabilities(logits: list[float], **options: float) -> list[float]:
    return [float(p) for p in distribution(np.array(logits), SamplingOptions(**options))]


def test_temperature_zero_takes_the_lowest_of_equal_maxima() -> None:
    assert probabilities([1.0, 5.0, 5.0], temperature=0.0) == [0.0, 1.0, 0.0]


def test_top_k_keeps_exactly_k_and_the_lower_of_equal_ids() -> None:
    assert probabilities([0.0, 1.0, 1.0, 1.0], top_k=2) == [0.0, 0.5, 0.5, 0.0]


def test_top_p_keeps_the_token_that_crosses_it_and_at_least_one() -> None:
    logits = [float(x) for x in np.log([0.5, 0.3, 0.2])]
    assert probabilities(logits, top_p=0.6) == pytest.approx([0.625, 0.375, 0.0])
    assert probabilities(logits, top_p=0.0) == [1.0, 0.0, 0.0]
    assert probabilities(logits, top_p=1.0) == pytest.approx([0.5, 0.3, 0.2])


def test_presence_counts_once_and_frequency_every_time_and_neither_the_prompt() -> None:
    logits = np.zeros(3)
    options = SamplingOptions(presence_penalty=1.0, frequency_penalty=0.5)
    p = distribution(logits, options, prompt=[0, 1, 2], output=[1, 1, 2])
    np.testing.assert_allclose(np.log(p / p[0]), [0.0, -2.0, -1.5])


def test_bias_and_mask_come_before_everything_else() -> None:
    allowed = np.array([True, True, False, True])
    options = SamplingOptions(logit_bias={1: 3.0, 2: 100.0}, allowed=allowed, top_k=2)
    p = distribution(np.array([1.0, 0.0, 0.0, 0.0]), options)
    np.testing.assert_allclose(p, np.exp([1.0, 3.0, -np.inf, -np.inf]) / (np.e + np.e**3))


def test_a_penalty_of_a_forbidden_token_does_not_make_nan() -> None:
    allowed = np.array([False, True, True])
    options = SamplingOptions(
        allowed=allowed, repetition_penalty=1.5, presence_penalty=1.0, frequency_penalty=1.0
    )
    p = distribution(np.zeros(3), options, output=[0, 0, 1])
    assert p[0] == 0.0
    assert p.sum() == pytest.approx(1.0)
