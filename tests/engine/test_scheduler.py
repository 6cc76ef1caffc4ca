"""Several callers at once: combined steps, failures of one, forks of the process, closing."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gpt_oss_native as gon
import numpy as np
import pytest
from gpt_oss_native.errors import GptOssError, InvalidArgument
from reference.engine_support import (
    FORMATS,
    directory,
    last_logits,
    random_tokens,
    shared_model,
)

forms = pytest.mark.parametrize("form", FORMATS)


def together(calls: list[Callable[[], Any]]) -> list[Any]:
    """What the calls return or raise, each in a thread of its own, begun at the same time."""
    start = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        start.wait()
        try:
            return call()
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(run, calls))


@forms
def test_threads_that_generate_at_once_get_what_they_get_alone(
    form: str, rng: np.random.Generator
) -> None:
    model = shared_model(form)
    prompts = [random_tokens(rng, n) for n in (3, 70, 600, 20, 1)]
    samplings = [gon.Sampling(seed=int(s)) for s in rng.integers(2**32, size=len(prompts))]

    def generate(at: int) -> list[int]:
        with model.session() as session:
            return list(session.generate(prompts[at], samplings[at], max_new_tokens=15))

    expected = [generate(at) for at in range(len(prompts))]
    found = together([lambda at=at: generate(at) for at in range(len(prompts))])
    assert found == expected


def test_prefill_and_batches_join_generations(rng: np.random.Generator) -> None:
    model = shared_model()
    prompt, text = random_tokens(rng, 40), random_tokens(rng, 1300)
    greedy = gon.Sampling(temperature=0)

    def generate() -> list[int]:
        with model.session() as session:
            return list(session.generate(prompt, greedy, max_new_tokens=40))

    def prefill() -> Any:
        return last_logits(model, text)

    def batch() -> Any:
        sessions = [model.session() for _ in range(3)]
        results = []
        for at in range(10):
            results += model.forward_batch([(s, text[at : at + 2 + at % 3]) for s in sessions])
        return np.stack(results)

    calls = [generate, prefill, batch]
    alone = [call() for call in calls]
    for found, expected in zip(together(calls), alone, strict=True):
        assert np.array_equal(found, expected)


def test_one_failing_caller_fails_alone(rng: np.random.Generator) -> None:
    model = shared_model()
    prompt = random_tokens(rng, 30)
    greedy = gon.Sampling(temperature=0)

    def generate() -> list[int]:
        with model.session() as session:
            return list(session.generate(prompt, greedy, max_new_tokens=40))

    def fail() -> int:
        failures = 0
        with model.session(max_tokens=31) as session:
            session.forward(prompt)
            for bad in ([331], [-1], [], [1, 2], [1.5]) * 8:
                try:
                    session.forward(bad)
                except InvalidArgument:
                    failures += 1
            assert session.tokens == prompt
        return failures

    expected = generate()
    assert together([generate, fail, generate]) == [expected, 40, expected]


def test_two_calls_at_once_on_one_session_are_refused(rng: np.random.Generator) -> None:
    model = shared_model("float32", isa="scalar")
    tokens = random_tokens(rng, 2500)
    session = model.session()
    session.forward(tokens[:5])

    def forward_rest() -> None:
        with contextlib.suppress(InvalidArgument):  # met a rewind from below: once more
            session.forward(tokens[5:])
            return
        forward_rest()

    worker = threading.Thread(target=forward_rest)
    worker.start()
    refused: InvalidArgument | None = None
    while refused is None and worker.is_alive():
        try:
            session.rewind(session.position)  # does nothing, until the other call is under way
        except InvalidArgument as error:
            refused = error
    assert refused is not None
    assert "another call" in str(refused)
    for call in (
        lambda: session.forward([1]),
        lambda: session.fork(),
        lambda: session.score([1, 2]),
        lambda: session.mark(),
        lambda: session.close(),
        lambda: session.generate([1]),
        lambda: model.forward_batch([(session, [1])]),
    ):
        with pytest.raises(InvalidArgument, match="another call"):
            call()
    assert session.tokens == tokens[:5]  # readers need not wait, and see the state before
    assert session.position == 5
    worker.join()
    assert session.tokens == tokens
    assert session.cached == len(tokens)


# --- os.fork --------------------------------------------------------------------------------------


def in_child(body: Callable[[], None]) -> int:
    """The exit status of a forked child that runs `body`: 0 if nothing went wrong."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(60)  # a child that hangs is a failure, not a hang of the tests
            body()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@forms
def test_a_forked_child_can_use_the_model_and_the_parent_goes_on(
    form: str, rng: np.random.Generator
) -> None:
    model = shared_model(form, threads=2)
    prompt = random_tokens(rng, 100)
    greedy = gon.Sampling(temperature=0)
    session = model.session()
    generation = session.generate(prompt, greedy, max_new_tokens=5)
    held = [*prompt, next(generation)]
    expected = last_logits(model, [*held, 5])
    with model.session() as other:
        rest = list(other.generate(held, greedy, max_new_tokens=4))

    def child() -> None:
        assert list(generation) == rest  # the parent's own generation goes on in both
        assert np.array_equal(last_logits(model, [*held, 5]), expected)
        with model.session() as mine:
            assert list(mine.generate(held, greedy, max_new_tokens=4)) == rest

        def grandchild() -> None:
            assert np.array_equal(last_logits(model, [*held, 5]), expected)

        assert in_child(grandchild) == 0

    assert in_child(child) == 0
    assert list(generation) == rest
    assert session.tokens == held + rest


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_forked_while_other_threads_generate_can_use_the_model(
    rng: np.random.Generator,
) -> None:
    model = shared_model(threads=2)
    prompt = random_tokens(rng, 30)
    expected = last_logits(model, prompt)
    stop = threading.Event()

    def generate() -> None:
        with model.session() as session:
            for _ in session.generate(prompt, gon.Sampling(seed=1)):
                if stop.is_set():
                    return

    def child() -> None:
        assert np.array_equal(last_logits(model, prompt), expected)

    threads = [threading.Thread(target=generate) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        statuses = [in_child(child) for _ in range(4)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert statuses == [0] * 4
    assert np.array_equal(last_logits(model, prompt), expected)


# --- closing --------------------------------------------------------------------------------------


def test_closing_a_model_while_others_generate_ends_them_with_a_clear_error() -> None:
    for wait in (0.0, 0.003, 0.02):
        model = gon.Model.load(directory(), device="cpu", num_threads=2)
        begun = threading.Barrier(4)

        def generate(model: gon.Model = model, begun: threading.Barrier = begun) -> None:
            session = model.session()
            generation = session.generate([1, 2, 3])
            next(generation)
            begun.wait()
            for _ in generation:
                pass

        def close(model: gon.Model = model, wait: float = wait) -> None:
            begun.wait()  # noqa: B023
            time.sleep(wait)
            model.close()

        *results, closed = together([generate, generate, generate, close])
        assert closed is None
        for error in results:
            assert isinstance(error, InvalidArgument)
            assert "closed" in str(error)


def test_a_closed_model_and_its_sessions_say_so() -> None:
    model = gon.Model.load(directory(), device="cpu", num_threads=1)
    session = model.session()
    session.forward([1, 2, 3])
    generation = session.generate([4])
    next(generation)
    with model:
        pass
    model.close()
    assert model.closed
    assert "closed" in repr(model)
    for call in (
        lambda: model.session(),
        lambda: model.memory(),
        lambda: model.restore("nothing"),
        lambda: session.forward([1]),
        lambda: session.fork(),
        lambda: session.rewind(0),
        lambda: session.mark(),
        lambda: session.score([1, 2]),
        lambda: session.generate([1]),
        lambda: next(generation),
        lambda: model.forward_batch([(session, [1])]),
    ):
        with pytest.raises(GptOssError, match="closed"):
            call()
    assert session.closed
    session.close()


def test_a_closed_session_says_so_and_the_others_go_on() -> None:
    model = shared_model()
    session, other = model.session(), model.session()
    generation = session.generate([4])
    next(generation)
    other.forward([1, 2])
    session.close()
    for call in (
        lambda: session.forward([1]),
        lambda: session.fork(),
        lambda: session.rewind(0),
        lambda: session.save("nowhere"),
        lambda: session.generate([1]),
        lambda: next(generation),
        lambda: model.forward_batch([(other, [3]), (session, [1])]),
    ):
        with pytest.raises(InvalidArgument, match="closed"):
            call()
    assert other.tokens == [1, 2]
    assert np.array_equal(other.forward([3]), last_logits(model, [1, 2, 3]))
    assert "closed" in repr(session)
