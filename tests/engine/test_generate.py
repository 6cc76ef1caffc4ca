"""Generation: what is sampled, when it ends, and what the session holds afterwards."""

from __future__ import annotations

import collections
import contextlib
import functools
import os
import signal
import threading
from collections.abc import Iterator
from itertools import islice
from typing import Any

import gpt_oss_native as gon
import numpy as np
import numpy.typing as npt
import pytest
from gpt_oss_native.errors import InvalidArgument
from gpt_oss_native.tokenizer import reserved_ids
from reference.engine_support import (
    FORMATS,
    last_logits,
    log_softmax,
    random_tokens,
    shared_model,
)

GREEDY = gon.Sampling(temperature=0)
VOCAB = 331
forms = pytest.mark.parametrize("form", FORMATS)


@pytest.fixture
def prompt(rng: np.random.Generator) -> list[int]:
    return random_tokens(rng, 90)


@functools.cache
def nano() -> gon.Model:
    return gon.Model.load("nano", device="cpu", num_threads=1)


def nano_prompt(question: str = "What is 57 + 68?") -> list[int]:
    text = f"<|start|>user<|message|>{question}<|end|><|start|>assistant"
    return nano().tokenizer.encode(text, allowed_special="all")


def assert_continues_as_fresh(model: gon.Model, session: gon.Session, held: list[int]) -> None:
    """The session holds exactly these tokens, and what follows is what a fresh one gives."""
    assert session.tokens == held
    assert session.position == len(held)
    expected = last_logits(model, [*held, 7])
    assert np.array_equal(session.forward([7]), expected)


# --- which tokens ---------------------------------------------------------------------------------


@forms
def test_greedy_takes_the_largest_logit_of_forward(form: str, prompt: list[int]) -> None:
    model = shared_model(form)
    held = list(prompt)
    with model.session() as session:
        for token in session.generate(prompt, GREEDY, max_new_tokens=40):
            assert token == int(last_logits(model, held).argmax())
            held.append(token)
        assert len(held) == len(prompt) + 40
        assert_continues_as_fresh(model, session, held)


@forms
def test_a_seed_gives_the_same_tokens_on_any_threads_and_in_any_company(
    form: str, prompt: list[int], rng: np.random.Generator
) -> None:
    sampling = gon.Sampling(temperature=1.5, seed=int(rng.integers(2**63)))
    runs = []
    for threads, count in ((1, 30), (2, 6)):
        model = shared_model(form, threads=threads)
        with model.session() as session:
            runs.append(list(session.generate(prompt, sampling, max_new_tokens=count)))
        # Two generations turn by turn, one of them on a fork of the other's prompt.
        a, b = model.session(), model.session()
        b.forward(prompt[:50], logits="none")
        c = b.fork()
        pairs = zip(
            a.generate(prompt, sampling, max_new_tokens=count),
            c.generate(prompt[50:], sampling, max_new_tokens=count),
            strict=True,
        )
        for token_a, token_c in pairs:
            assert token_a == token_c
        runs.append(a.tokens[len(prompt) :])
        for session in (a, b, c):
            session.close()
    assert all(run == runs[0][: len(run)] for run in runs)
    assert len(set(runs[0])) > 5


def test_the_seed_of_a_generation_repeats_it(prompt: list[int]) -> None:
    model = shared_model()
    first, second = model.session(), model.session()
    generation = first.generate(prompt, max_new_tokens=20)
    tokens = list(generation)
    again = gon.Sampling(seed=generation.seed)
    assert list(second.generate(prompt, again, max_new_tokens=20)) == tokens
    other = model.session().generate(prompt, max_new_tokens=20)
    assert other.seed != generation.seed


@forms
def test_logprobs_are_the_log_softmax_of_forward(form: str, prompt: list[int]) -> None:
    model = shared_model(form)
    held = list(prompt)
    sampling = gon.Sampling(temperature=0.7, top_p=0.9, seed=3)
    with model.session() as session:
        generation = session.generate(prompt, sampling, max_new_tokens=8, logprobs=5)
        for token in generation:
            assert isinstance(token, gon.Token)
            expected = log_softmax(last_logits(model, held))
            assert token.logprob == pytest.approx(expected[token.id], abs=1e-5)
            order = np.argsort(-expected, kind="stable")[:5]
            assert [entry[0] for entry in token.top] == order.tolist()
            np.testing.assert_allclose([e[1] for e in token.top], expected[order], atol=1e-5)
            held.append(token.id)
        assert session.tokens == held
    with model.session() as session:
        plain = list(session.generate(prompt, sampling, max_new_tokens=8))
        assert plain == held[len(prompt) :]  # asking for them changes nothing
    with model.session() as session:
        own = next(session.generate(prompt, sampling, logprobs=0))
        assert own.top == []


def test_penalties_see_the_prompt_and_the_output(prompt: list[int]) -> None:
    model = shared_model()
    with model.session() as session:
        sampling = gon.Sampling(temperature=0, frequency_penalty=1e6)
        tokens = list(session.generate(prompt, sampling, max_new_tokens=60))
        assert len(set(tokens)) == 60  # none twice
    expected = last_logits(model, prompt).astype(np.float64)
    seen = np.unique(prompt)
    expected[seen] = np.where(expected[seen] > 0, expected[seen] / 1e6, expected[seen] * 1e6)
    for split in (0, 40, len(prompt) - 1):  # held before, or given with the call
        with model.session() as session:
            if split:
                session.forward(prompt[:split])
            sampling = gon.Sampling(temperature=0, repetition_penalty=1e6)
            assert next(session.generate(prompt[split:], sampling)) == int(expected.argmax())


# --- where it ends --------------------------------------------------------------------------------


@forms
def test_the_last_token_is_forwarded_with_the_next_call(form: str, prompt: list[int]) -> None:
    model = shared_model(form)
    with model.session() as session:
        generation = session.generate(prompt, GREEDY, max_new_tokens=9)
        tokens = list(generation)
        assert generation.finish_reason == "length"
        assert session.position == len(prompt) + 9
        assert session.cached == session.position - 1
        assert next(generation, None) is None  # and stays so
        assert len(prompt) in session.marks  # where the generation began
        assert_continues_as_fresh(model, session, prompt + tokens)


@forms
def test_generations_in_pieces_are_one_generation(form: str, prompt: list[int]) -> None:
    model = shared_model(form)
    with model.session() as whole, model.session() as pieces, model.session() as held:
        expected = list(whole.generate(prompt, GREEDY, max_new_tokens=20))
        found = list(pieces.generate(prompt, GREEDY, max_new_tokens=7))
        while len(found) < 20:  # nothing is given: it goes on with what is held
            found += pieces.generate((), GREEDY, max_new_tokens=min(3, 20 - len(found)))
        assert found == expected
        held.forward(prompt, logits="none")  # everything is cached: the last is forwarded again
        assert list(held.generate((), GREEDY, max_new_tokens=20)) == expected


def test_a_stop_token_is_yielded_last(prompt: list[int]) -> None:
    model = shared_model()
    with model.session() as session:
        tokens = list(session.generate(prompt, GREEDY, max_new_tokens=20))
    stop = tokens[6]
    expected = tokens[: next(i for i, token in enumerate(tokens) if token in (stop, 330)) + 1]
    with model.session() as session:
        generation = session.generate(prompt, GREEDY, max_new_tokens=20, stop_tokens=[stop, 330])
        assert list(generation) == expected
        assert generation.finish_reason == "stop"
        assert_continues_as_fresh(model, session, prompt + expected)


def test_next_tokens_gives_each_generation_what_it_gets_alone(rng: np.random.Generator) -> None:
    model = shared_model()
    prompts = [random_tokens(rng, count) for count in (1, 9, 70)]
    budgets = (7, 3, 12)
    alone = []
    for prompt, budget in zip(prompts, budgets, strict=True):
        with model.session() as session:
            alone.append(list(session.generate(prompt, GREEDY, max_new_tokens=budget)))
    sessions = [model.session() for _ in prompts]
    running = [
        session.generate(prompt, GREEDY, max_new_tokens=budget)
        for session, prompt, budget in zip(sessions, prompts, budgets, strict=True)
    ]
    together: list[list[int]] = [[] for _ in prompts]
    for _ in range(max(budgets) + 1):
        for found, token in zip(together, model.next_tokens(running), strict=True):
            if token is not None:
                found.append(token)
    assert together == alone
    assert [generation.finish_reason for generation in running] == ["length"] * 3
    for session, prompt, tokens_alone in zip(sessions, prompts, alone, strict=True):
        assert session.tokens == prompt + tokens_alone
        session.close()


def test_a_full_context_ends_with_length(prompt: list[int]) -> None:
    model = shared_model()
    session = model.session(max_tokens=len(prompt) + 5)
    generation = session.generate(prompt, GREEDY)
    assert len(list(generation)) == 5
    assert generation.finish_reason == "length"
    assert session.position == session.max_tokens
    for call in (
        lambda: session.generate((), GREEDY),
        lambda: session.generate([1], GREEDY),
        lambda: session.forward([1]),
    ):
        with pytest.raises(InvalidArgument, match="max_tokens"):
            call()
    # The last token still has no keys and values; there is room for those.
    assert np.array_equal(session.forward([]), last_logits(model, session.tokens))
    session.rewind(10)
    assert_continues_as_fresh(model, session, prompt[:10])


@pytest.mark.parametrize("how", ["close", "with", "exception", "forgotten", "never begun"])
def test_a_generation_left_early_keeps_what_was_yielded(how: str, prompt: list[int]) -> None:
    model = shared_model()
    session = model.session()
    generation = session.generate(prompt, GREEDY)
    tokens: list[int] = []
    if how == "close":
        tokens += islice(generation, 5)
        generation.close()
        generation.close()
        assert generation.finish_reason == "closed"
        assert next(generation, None) is None
    elif how == "with":
        with generation:
            tokens += islice(generation, 5)
        assert generation.finish_reason == "closed"
    elif how == "exception":
        with contextlib.suppress(KeyError), generation:
            for token in generation:
                tokens.append(token)
                if len(tokens) == 5:
                    raise KeyError
        assert generation.finish_reason == "closed"
    elif how == "forgotten":
        tokens += islice(generation, 5)
    del generation
    held = prompt + tokens if how != "never begun" else []
    assert_continues_as_fresh(model, session, held)


def test_a_generation_ends_when_the_session_was_changed(prompt: list[int]) -> None:
    model = shared_model()
    session = model.session()
    generation = session.generate(prompt, GREEDY)
    tokens = list(islice(generation, 3))
    session.forward([5])
    with pytest.raises(InvalidArgument, match="changed"):
        next(generation)
    assert_continues_as_fresh(model, session, [*prompt, *tokens, 5])
    late = session.generate([1], GREEDY)
    session.rewind(3)
    with pytest.raises(InvalidArgument, match="changed"):
        next(late)
    assert_continues_as_fresh(model, session, prompt[:3])


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"stop_tokens": [VOCAB]}, "stop"),
        ({"stop_tokens": [-1]}, "generate"),
        ({"stop_tokens": ["a"]}, "generate"),
        ({"logprobs": VOCAB + 1}, "logprobs"),
        ({"sampling": gon.Sampling(top_p=0.0)}, "top_p"),
        ({"sampling": gon.Sampling(temperature=-1.0)}, "temperature"),
        ({"sampling": gon.Sampling(logit_bias={VOCAB: 1.0})}, "logit_bias"),
        ({"tokens": [VOCAB]}, "331"),
        ({"tokens": [1] * 41}, "40"),
        ({"tokens": [1] * 40}, "40"),  # no room for one new token
        ({"tokens": [1.5]}, "tokens"),
        ({"sampling": gon.Sampling(allowed_tokens=np.ones(VOCAB))}, "allowed_tokens"),
    ],
    ids=str,
)
def test_a_bad_argument_changes_nothing(arguments: dict[str, Any], word: str) -> None:
    model = shared_model()
    session = model.session(max_tokens=40)
    with pytest.raises(InvalidArgument, match=word):
        session.generate(**({"tokens": [1, 2]} | arguments))
    assert session.tokens == []
    with pytest.raises(InvalidArgument, match="prompt"):
        session.generate((), GREEDY)
    assert_continues_as_fresh(model, session, [])


# --- masks and bans -------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True], ids=["bool", "packed"])
def test_a_mask_is_asked_before_each_token(
    packed: bool, prompt: list[int], rng: np.random.Generator
) -> None:
    model = shared_model()
    masks = [rng.random(VOCAB) < 0.02 for _ in range(12)]
    for mask in masks:
        mask[rng.integers(VOCAB)] = True
    steps: Iterator[npt.NDArray[np.bool_]] = iter(masks)

    def next_mask() -> Any:
        mask = next(steps)
        return np.packbits(mask, bitorder="little") if packed else mask

    held = list(prompt)
    with model.session() as session:
        generation = session.generate(prompt, GREEDY, max_new_tokens=12, mask=next_mask)
        for mask, token in zip(masks, generation, strict=True):
            logits = np.where(mask, last_logits(model, held), -np.inf)
            assert token == int(logits.argmax())
            held.append(token)


def test_allowed_tokens_and_masks_both_count(prompt: list[int], rng: np.random.Generator) -> None:
    model = shared_model()
    allowed = rng.random(VOCAB) < 0.5
    step = rng.random(VOCAB) < 0.5
    step[:4] = allowed[:4] = True
    sampling = gon.Sampling(temperature=3.0, allowed_tokens=allowed, seed=1)
    for mask, both in (
        (None, allowed),
        (lambda: None, allowed),
        (lambda: step, allowed & step),
        (lambda: np.packbits(step, bitorder="little"), allowed & step),
    ):
        with model.session() as session:
            tokens = list(session.generate(prompt, sampling, max_new_tokens=60, mask=mask))
            assert both[tokens].all()
            assert len(set(tokens)) > 5


def test_after_a_failed_mask_another_can_be_tried(prompt: list[int]) -> None:
    model = shared_model()
    masks: list[Any] = [np.zeros(VOCAB, bool), np.ones(3, bool), np.ones(VOCAB, bool)]
    with model.session() as session:
        generation = session.generate(prompt, GREEDY, mask=lambda: masks.pop(0))
        for word in ("allow", "mask"):
            with pytest.raises(InvalidArgument, match=word):
                next(generation)
            assert session.tokens == prompt
        token = next(generation)
        assert token == int(last_logits(model, prompt).argmax())
        generation.close()
        assert_continues_as_fresh(model, session, [*prompt, token])


def test_an_error_in_a_mask_function_comes_out_and_nothing_is_lost(prompt: list[int]) -> None:
    model = shared_model()

    def fails() -> None:
        raise LookupError("mine")

    with model.session() as session:
        with pytest.raises(LookupError, match="mine"):
            list(session.generate(prompt, GREEDY, mask=fails))
        assert_continues_as_fresh(model, session, [])


def test_logit_bias_decides(prompt: list[int]) -> None:
    model = shared_model()
    with model.session() as session:
        wanted = gon.Sampling(temperature=0, logit_bias={200: 1e6})
        assert list(session.generate(prompt, wanted, max_new_tokens=3)) == [200] * 3
        likeliest = int(last_logits(model, session.tokens).argmax())
        banned = gon.Sampling(temperature=0, logit_bias={likeliest: -np.inf})
        assert next(session.generate((), banned)) != likeliest


def test_ids_without_a_name_are_never_sampled() -> None:
    model = nano()
    reserved = list(reserved_ids(model.tokenizer, model.config.vocab_size))
    assert reserved
    bias = dict.fromkeys(reserved[:5], 1e6)
    with model.session() as session:
        for sampling in (
            gon.Sampling(temperature=50.0, seed=1),
            gon.Sampling(logit_bias=bias, seed=1),
            gon.Sampling(temperature=0, logit_bias=bias),
        ):
            tokens = list(session.generate([1, 2, 3], sampling, max_new_tokens=300))
            assert not set(tokens) & set(reserved)
        only = np.zeros(model.config.vocab_size, bool)
        only[reserved] = True
        with pytest.raises(InvalidArgument, match="allow"):
            next(session.generate((), gon.Sampling(allowed_tokens=only)))


# --- text -----------------------------------------------------------------------------------------


def nano_text(**arguments: Any) -> tuple[str, gon.Session]:
    session = nano().session()
    pieces = list(session.stream_text(nano_prompt(), GREEDY, max_new_tokens=40, **arguments))
    assert all(pieces)
    return "".join(pieces), session


def test_streamed_text_is_the_decoded_tokens() -> None:
    text, session = nano_text()
    generated = session.tokens[len(nano_prompt()) :]
    assert text == nano().tokenizer.decode(generated)
    assert len(generated) == 40


def test_a_stop_string_ends_the_generation_and_stays_out_of_the_text() -> None:
    whole, _ = nano_text()
    for begin, end in ((5, 8), (12, 13), (20, 27)):
        stop = whole[begin:end]
        text, session = nano_text(stop=["never this", stop])
        assert text == whole[: whole.index(stop)]
        with nano().session() as other:
            generation = other.generate(nano_prompt(), GREEDY, max_new_tokens=40, stop=stop)
            tokens = list(generation)
            assert generation.finish_reason == "stop"
            held = nano_prompt() + tokens
            assert stop in nano().tokenizer.decode(tokens)
            assert stop not in nano().tokenizer.decode(tokens[:-1])
            assert_continues_as_fresh(nano(), other, held)
        assert session.tokens == held
    assert nano_text(stop="never this")[0] == whole


def test_a_stop_token_is_not_part_of_the_text() -> None:
    whole, session = nano_text()
    generated = session.tokens[len(nano_prompt()) :]
    text, _ = nano_text(stop_tokens=[generated[9]])
    assert text == nano().tokenizer.decode(generated[: generated.index(generated[9])])
    assert whole.startswith(text)


# --- signals --------------------------------------------------------------------------------------


def interrupt_soon(seconds: float) -> threading.Timer:
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    return timer


def test_ctrl_c_between_tokens_leaves_the_session_as_documented(prompt: list[int]) -> None:
    model = shared_model()
    session = model.session()
    tokens: list[int] = []
    timer = interrupt_soon(0.05)
    with pytest.raises(KeyboardInterrupt):
        collections.deque(map(tokens.append, session.generate(prompt, GREEDY)), maxlen=0)
    timer.join()
    held = session.tokens
    # Python may be interrupted between a token's sampling and the line that keeps it.
    assert held in (prompt + tokens, [*prompt, *tokens, held[-1]])
    assert_continues_as_fresh(model, session, held)


def test_ctrl_c_in_a_long_prompt_changes_nothing(rng: np.random.Generator) -> None:
    model = shared_model("float32", isa="scalar")
    tokens = random_tokens(rng, 60_000)  # takes far longer than the timer
    session = model.session()
    session.forward(tokens[:70], logits="none")
    for call in (
        lambda: session.forward(tokens[70:]),
        lambda: next(session.generate(tokens[70:], GREEDY)),
        lambda: session.score(tokens[70:]),
        lambda: model.forward_batch([(session, tokens[70:])]),
    ):
        timer = interrupt_soon(0.15)
        with pytest.raises(KeyboardInterrupt):
            call()
        timer.join()
        assert session.tokens == tokens[:70]
        assert session.cached == 70
    assert_continues_as_fresh(model, session, tokens[:70])


def test_a_handler_that_returns_does_not_disturb(prompt: list[int]) -> None:
    model = shared_model()
    with model.session() as session:
        expected = list(session.generate(prompt, GREEDY, max_new_tokens=60))
    calls: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: calls.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        with model.session() as session:
            found = list(session.generate(prompt, GREEDY, max_new_tokens=60))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert found == expected
    assert calls


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sampling": {"temperature": 0}}, r"\[generate\] sampling: .*'temperature'"),
        ({"sampling": 0.5}, r"\[generate\] sampling: .*0\.5"),
        ({"sampling": gon.Sampling(temperature="hot")}, r"\[sampling\] temperature: .*'hot'"),
        ({"sampling": gon.Sampling(top_k=1.5)}, r"\[sampling\] top_k: .*1\.5"),
        ({"sampling": gon.Sampling(seed=1.5)}, r"\[sampling\] seed: .*1\.5"),
        ({"sampling": gon.Sampling(logit_bias={"a": 1})}, r"\[sampling\] logit_bias: .*'a'"),
        ({"logprobs": -1}, r"\[generate\] logprobs: .*-1"),
        ({"mask": np.ones(VOCAB, bool)}, r"\[generate\] mask: .*ndarray.*allowed_tokens"),
    ],
    ids=str,
)
def test_an_option_of_another_kind_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        shared_model().session().generate([1], **options)


def test_any_integer_is_a_seed() -> None:
    seeds = [np.int64(-1), -1, 2**64 - 1, 2**70 - 1]
    found = {shared_model().session().generate([1], gon.Sampling(seed=seed)).seed for seed in seeds}
    assert found == {2**64 - 1}
