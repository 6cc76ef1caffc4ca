"""The native sampler on given logits, against the float64 one of reference/sampling.py."""

from __future__ import annotations

import math
from typing import Any

import gpt_oss_native as gon
import numpy as np
import numpy.typing as npt
import pytest
from gpt_oss_native import _core
from gpt_oss_native.errors import GptOssError, InvalidArgument
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import sampling as reference

F32 = npt.NDArray[np.float32]
VOCAB = 301

# The sampler's weights are integers of 44 bits against the likeliest token, so a probability is off
# by at most 2^-45 of the largest, and their sum by as much for each token of the vocabulary.
BOUND = 1e-9


def random_logits(rng: np.random.Generator, vocab: int = VOCAB, *, spread: float = 3.0) -> F32:
    return (spread * rng.standard_normal(vocab)).astype(np.float32)


def both(
    logits: F32,
    options: dict[str, Any],
    *,
    prompt: list[int] | None = None,
    output: list[int] | None = None,
    allowed: npt.NDArray[np.bool_] | None = None,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The distributions of the native sampler and of the reference, in the same state."""
    prompt = prompt or []
    bias = options.get("logit_bias", {})
    output = [token for token in output or [] if bias.get(token) != -math.inf]  # never sampled
    sampler = _core.Sampler(gon.Sampling(**options), len(logits), prompt=prompt)
    for token in output:  # the state is what was sampled: let each token be the only choice
        only = np.zeros(len(logits), dtype=bool)
        only[token] = True
        assert sampler.sample(logits, only) == token
    found = sampler.distribution(logits, allowed)
    expected = reference_distribution(logits, options, prompt, output, allowed)
    return found, expected


def reference_distribution(
    logits: F32,
    options: dict[str, Any],
    prompt: list[int],
    output: list[int],
    allowed: npt.NDArray[np.bool_] | None,
) -> npt.NDArray[np.float64]:
    # The engine computes in double and keeps float32: the bias, what is left after it, and what is
    # left after the penalties. The reference gets the same roundings.
    bias = {token: float(np.float32(b)) for token, b in options.get("logit_bias", {}).items()}
    adjusted = logits.astype(np.float64)
    for part in (
        reference.SamplingOptions(logit_bias=bias, allowed=allowed),
        reference.SamplingOptions(**{k: v for k, v in options.items() if k.endswith("penalty")}),
    ):
        adjusted = reference.adjusted_logits(adjusted, part, prompt=prompt, output=output)
        adjusted = adjusted.astype(np.float32).astype(np.float64)
    cuts = ("temperature", "top_k", "top_p", "min_p")
    cut = reference.SamplingOptions(**{k: options[k] for k in cuts if k in options})
    return reference.distribution(adjusted, cut)


OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "greedy": {"temperature": 0.0},
    "cold": {"temperature": 0.05},
    "hot": {"temperature": 7.5},
    "top_k": {"top_k": 7},
    "top_k_one": {"top_k": 1},
    "top_k_of_all": {"top_k": VOCAB},
    "top_k_beyond": {"top_k": VOCAB + 50},
    "top_p": {"top_p": 0.7},
    "tiny_top_p": {"top_p": 1e-9},
    "nearly_all_top_p": {"top_p": 0.9999},
    "min_p": {"min_p": 0.05},
    "min_p_one": {"min_p": 1.0},
    "repetition": {"repetition_penalty": 1.7},
    "repetition_below_one": {"repetition_penalty": 0.6},
    "presence": {"presence_penalty": 1.3},
    "frequency": {"frequency_penalty": 0.8},
    "negative_penalties": {"presence_penalty": -1.3, "frequency_penalty": -0.4},
    "bias": {"logit_bias": {3: 5.0, 9: -4.0, 17: -math.inf}},
    "everything": {
        "temperature": 0.8,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.02,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.2,
        "logit_bias": {1: 2.0, 2: -math.inf, 5: 0.25},
    },
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "masked"])
def test_the_distribution_is_the_references(
    name: str, masked: bool, rng: np.random.Generator
) -> None:
    for _ in range(5):
        logits = random_logits(rng)
        prompt = rng.integers(0, VOCAB, 30).tolist()
        output = [*rng.integers(0, VOCAB, 12).tolist(), prompt[0], prompt[0]]
        allowed = rng.random(VOCAB) < 0.5 if masked else None
        found, expected = both(logits, OPTIONS[name], prompt=prompt, output=output, allowed=allowed)
        np.testing.assert_allclose(found, expected, rtol=0, atol=BOUND)
        assert ((found > 0) <= (expected > 0)).all(), "a token that was cut off can be sampled"


@settings(deadline=None, max_examples=120)
@given(
    seed=st.integers(0, 2**32 - 1),
    temperature=st.sampled_from([0.0, 0.1, 0.7, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 2, 5, 64]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.05]),
    min_p=st.sampled_from([0.0, 0.01, 0.3]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    presence_penalty=st.sampled_from([0.0, 0.5, -0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.25]),
    vocab=st.sampled_from([1, 2, 63, 64, 65, 301, 1025]),
)
def test_every_combination_of_options_is_the_references(
    seed: int, vocab: int, **options: Any
) -> None:
    rng = np.random.default_rng(seed)
    logits = random_logits(rng, vocab)
    prompt, output = (rng.integers(0, vocab, n).tolist() for n in rng.integers(0, 20, 2))
    allowed = rng.random(vocab) < 0.8
    allowed[rng.integers(vocab)] = True
    if rng.random() < 0.5:
        options["logit_bias"] = {int(rng.integers(vocab)): float(rng.normal())}
    found, expected = both(logits, options, prompt=prompt, output=output, allowed=allowed)
    near_cut = cut_margin(logits, options, prompt, output, allowed) < 1e-9
    if not near_cut:
        np.testing.assert_allclose(found, expected, rtol=0, atol=BOUND)


def cut_margin(
    logits: F32,
    options: dict[str, Any],
    prompt: list[int],
    output: list[int],
    allowed: npt.NDArray[np.bool_],
) -> float:
    """How near a cumulated probability is to top-p, or a probability to min-p: where rounding
    decides, either answer is right."""
    if options["temperature"] == 0:
        return math.inf
    cuts = {**options, "top_p": 1.0, "min_p": 0.0}
    p = reference_distribution(logits, cuts, prompt, output, allowed)
    margin = math.inf
    if options["top_p"] < 1:
        margin = np.abs(np.cumsum(-np.sort(-p)) - options["top_p"]).min()
    if options["min_p"] > 0:
        margin = min(margin, np.abs(p / p.max() - options["min_p"]).min())
    return float(margin)


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 3},
        {"top_p": 0.2},
        {"temperature": 0.0},
        {"min_p": 1.0},
        {"top_k": 3, "top_p": 0.5},
    ],
    ids=str,
)
def test_of_equal_logits_the_lower_ids_stay(options: dict[str, Any]) -> None:
    for logits in (np.zeros(10, np.float32), np.float32([1, 2, 2, 2, 2, 2, 0, 2, 2, 1])):
        found, expected = both(logits, options)
        np.testing.assert_allclose(found, expected, rtol=0, atol=BOUND)


def test_positive_and_negative_zero_are_equal() -> None:
    logits = np.float32([-0.0, 0.0, -0.0, 0.0])
    for options in ({"temperature": 0.0}, {"top_k": 1}):
        found, _ = both(logits, options)
        assert found.tolist() == [1, 0, 0, 0]


def test_minus_infinity_is_never_sampled(rng: np.random.Generator) -> None:
    logits = random_logits(rng)
    logits[rng.random(VOCAB) < 0.9] = -np.inf
    logits[7] = 1.0
    for options in OPTIONS.values():
        found, expected = both(logits, options)
        np.testing.assert_allclose(found, expected, rtol=0, atol=BOUND)


def test_extreme_logits_and_options_stay_finite() -> None:
    largest = float(np.finfo(np.float32).max)
    logits = np.float32([largest, -largest, 0, 1])
    for options in (
        {},
        {"temperature": 1e-30},
        {"temperature": 1e30},
        {"logit_bias": {0: largest, 1: -largest}},
        {"logit_bias": {3: largest}, "top_p": 0.9},
        {"repetition_penalty": 1e-30, "presence_penalty": 1e300},
    ):
        sampler = _core.Sampler(gon.Sampling(**options), 4, prompt=[0, 1])
        found = sampler.distribution(logits)
        assert np.isfinite(found).all()
        assert found.sum() == pytest.approx(1.0)


# --- masks, bans ----------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab", [1, 8, 9, 301])
def test_packed_bits_and_bytes_mask_the_same(vocab: int, rng: np.random.Generator) -> None:
    logits = random_logits(rng, vocab)
    sampler = _core.Sampler(gon.Sampling(), vocab)
    for _ in range(5):
        allowed = rng.random(vocab) < 0.4
        allowed[rng.integers(vocab)] = True
        bits = np.packbits(allowed, bitorder="little")
        expected = sampler.distribution(logits, allowed)
        assert (sampler.distribution(logits, bits) == expected).all()
        assert (sampler.distribution(logits, np.append(bits, np.uint8(255))) == expected).all()
        assert (expected[~allowed] == 0).all()


def test_banned_ids_are_never_sampled_whatever_the_bias(rng: np.random.Generator) -> None:
    sampling = gon.Sampling(logit_bias={3: 100.0})
    sampler = _core.Sampler(sampling, VOCAB, banned=[3, 5])
    found = sampler.distribution(random_logits(rng))
    assert found[3] == found[5] == 0


def test_wrong_masks_are_refused(rng: np.random.Generator) -> None:
    sampler = _core.Sampler(gon.Sampling(), VOCAB)
    logits = random_logits(rng)
    for mask in (
        np.ones(VOCAB - 1, bool),
        np.ones(VOCAB + 1, bool),
        np.ones((1, VOCAB), bool),
        np.ones(2 * VOCAB, bool)[::2],
        np.ones(37, np.uint8),  # one byte too few
        np.ones(VOCAB, np.float32),
        np.ones(VOCAB, np.int64),
    ):
        with pytest.raises(InvalidArgument, match="mask"):
            sampler.sample(logits, mask)
    assert sampler.draws == 0


def test_nothing_left_to_sample_is_an_error_and_the_state_stays(rng: np.random.Generator) -> None:
    logits = random_logits(rng)
    for sampler, mask in (
        (_core.Sampler(gon.Sampling(seed=1), VOCAB), np.zeros(VOCAB, bool)),
        (_core.Sampler(gon.Sampling(seed=1), VOCAB, banned=list(range(VOCAB))), None),
        (
            _core.Sampler(
                gon.Sampling(seed=1, logit_bias=dict.fromkeys(range(VOCAB), -math.inf)), VOCAB
            ),
            None,
        ),
    ):
        with pytest.raises(InvalidArgument, match="allow"):
            sampler.sample(logits, mask)
        with pytest.raises(InvalidArgument, match="allow"):
            sampler.distribution(logits, mask)
        assert sampler.draws == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_and_infinity_are_errors_wherever_they_are(
    temperature: float, rng: np.random.Generator
) -> None:
    sampler = _core.Sampler(gon.Sampling(temperature=temperature), VOCAB)
    for value in (np.nan, np.inf):
        for at in (0, 17, VOCAB - 1):
            logits = random_logits(rng)
            logits[at] = value
            with pytest.raises(GptOssError, match="finite"):
                sampler.sample(logits)
    with pytest.raises(GptOssError, match="finite"):
        sampler.sample(np.full(VOCAB, -np.inf, np.float32))
    with pytest.raises(InvalidArgument, match="logits"):
        sampler.sample(random_logits(rng, VOCAB - 1))
    assert sampler.draws == 0


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"top_p": math.nan},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": math.inf},
        {"presence_penalty": math.nan},
        {"frequency_penalty": math.inf},
        {"logit_bias": {VOCAB: 1.0}},
        {"logit_bias": {-1: 1.0}},
        {"logit_bias": {0: math.nan}},
        {"logit_bias": {0: math.inf}},
    ],
    ids=str,
)
def test_an_option_out_of_range_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match=next(iter(options))):
        _core.Sampler(gon.Sampling(**options), VOCAB)


# --- drawing --------------------------------------------------------------------------------------


def philox(seed: int, counter: int) -> int:
    """Philox4x32-10 of Salmon et al., SC 2011: the low 64 bits."""
    mask = 0xFFFFFFFF
    c = [counter & mask, counter >> 32, 0, 0]
    k = [seed & mask, seed >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & mask, (a >> 32) ^ c[3] ^ k[1], a & mask]
        k = [(k[0] + 0x9E3779B9) & mask, (k[1] + 0xBB67AE85) & mask]
    return c[1] << 32 | c[0]


def test_the_random_numbers_are_philox() -> None:
    # Known answer of the Random123 distribution: counter and key 0, key all ones.
    assert philox(0, 0) == 0xE169C58D6627E8D5
    for seed in (0, 1, 2**63 + 5, 2**64 - 1, -1, 2**64 + 7):
        # Equal logits over 2^8 ids: the id is the number's highest byte.
        sampler = _core.Sampler(gon.Sampling(seed=seed), 256)
        assert sampler.seed == seed % 2**64
        logits = np.zeros(256, np.float32)
        for counter in range(8):
            assert sampler.draws == counter
            assert sampler.sample(logits) == philox(seed % 2**64, counter) >> 56


def test_fresh_seeds_differ_and_repeat_a_draw(rng: np.random.Generator) -> None:
    logits = random_logits(rng)
    samplers = [_core.Sampler(gon.Sampling(), VOCAB) for _ in range(5)]
    assert len({sampler.seed for sampler in samplers}) == 5
    first = samplers[0]
    drawn = [first.sample(logits) for _ in range(20)]
    again = _core.Sampler(gon.Sampling(seed=first.seed), VOCAB)
    assert [again.sample(logits) for _ in range(20)] == drawn


@pytest.mark.parametrize("name", ["defaults", "hot", "top_k", "top_p", "min_p", "everything"])
def test_draws_follow_the_distribution(name: str, rng: np.random.Generator) -> None:
    options = OPTIONS[name]
    logits = random_logits(rng, spread=1.5)
    draws = 20_000
    sampler = _core.Sampler(gon.Sampling(**options, seed=int(rng.integers(2**32))), VOCAB)
    expected = draws * sampler.distribution(logits)
    if name == "everything":  # penalties change the distribution with every draw: one draw each
        seeds = rng.integers(2**63, size=draws)
        found = [
            _core.Sampler(gon.Sampling(**options, seed=int(seed)), VOCAB).sample(logits)
            for seed in seeds
        ]
    else:
        found = [sampler.sample(logits) for _ in range(draws)]
    counts = np.bincount(found, minlength=VOCAB).astype(float)
    assert (counts[expected == 0] == 0).all()
    # Rare tokens together, so that each bin expects at least ten.
    rare = expected < 10
    if rare.any():
        counts = np.append(counts[~rare], counts[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    used = expected > 0
    statistic = ((counts[used] - expected[used]) ** 2 / expected[used]).sum()
    freedom = max(int(used.sum()) - 1, 1)
    # Mean + 7 standard deviations of chi-square: a false alarm in far more than a million runs.
    assert statistic < freedom + 7 * math.sqrt(2 * freedom) + 20


# --- log-probabilities ----------------------------------------------------------------------------


def test_logprobs_are_the_models_own_and_sorted(rng: np.random.Generator) -> None:
    logits = random_logits(rng)
    logits[[4, 9]] = logits.max()  # equal ones: the lower id first
    shifted = logits - logits.max().astype(np.float64)
    expected = shifted - math.log(np.exp(shifted).sum())
    for options in ({}, OPTIONS["everything"], {"temperature": 0.0}):
        for count in (0, 1, 20, VOCAB):
            sampler = _core.Sampler(gon.Sampling(**options), VOCAB, num_logprobs=count)
            token, logprob, top = sampler.sample(logits)
            assert logprob == pytest.approx(expected[token], abs=1e-9)
            order = np.argsort(-expected, kind="stable")[:count]
            assert [t for t, _ in top] == order.tolist()
            np.testing.assert_allclose([p for _, p in top], expected[order], rtol=0, atol=1e-9)


def test_more_logprobs_than_the_vocabulary_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="logprobs"):
        _core.Sampler(gon.Sampling(), VOCAB, num_logprobs=VOCAB + 1)
