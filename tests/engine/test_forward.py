"""Forward: the same logits, bit for bit, however the tokens came in."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Literal

import gpt_oss_native as gon
import numpy as np
import pytest
from gpt_oss_native.errors import InvalidArgument
from reference.engine_support import (
    CHUNK,
    F32,
    FORMATS,
    PAGE,
    SHAPES,
    SPLIT,
    directory,
    fresh_logits,
    last_logits,
    log_softmax,
    random_tokens,
    shared_model,
)

GREEDY = gon.Sampling(temperature=0)
forms = pytest.mark.parametrize("form", FORMATS)
shapes = pytest.mark.parametrize("shape", SHAPES)
LONG = SPLIT + PAGE + 37  # more than a chunk, a split, every window; ends inside a page


def assert_same_bits(found: F32, expected: F32) -> None:
    """Equal as bits, so that NaN and signed zeros count too."""
    assert found.dtype == expected.dtype == np.float32
    assert found.shape == expected.shape
    same = found.view(np.uint32) == expected.view(np.uint32)
    if not same.all():
        where = np.argwhere(~same)[0]
        worst = np.abs(found.astype(np.float64) - expected).max()
        pytest.fail(f"{(~same).sum()} of {same.size} differ, first at {where}, worst by {worst}")


# --- ways in --------------------------------------------------------------------------------------


@forms
def test_logits_are_the_same_whole_chunked_and_one_by_one(
    form: str, device_isa: str, rng: np.random.Generator
) -> None:
    model = shared_model(form, shape="long_window", isa=device_isa)
    tokens = random_tokens(rng, LONG)
    whole = fresh_logits(model, tokens)
    assert np.isfinite(whole).all()
    cuts = [0, *sorted(rng.choice(np.arange(1, LONG), 12, replace=False).tolist()), LONG]
    with model.session() as session:
        parts = [session.forward(tokens[a:b], logits="all") for a, b in pairwise(cuts)]
        assert session.tokens == tokens
    assert_same_bits(np.concatenate(parts), whole)
    with model.session() as session:
        rows = [session.forward([token]) for token in tokens]
    assert_same_bits(np.stack(rows), whole)


@forms
@pytest.mark.parametrize("size", [CHUNK - 1, CHUNK, CHUNK + 1])
def test_the_last_logits_are_the_last_row_of_all_around_a_chunk(
    form: str, size: int, rng: np.random.Generator
) -> None:
    model = shared_model(form)
    tokens = random_tokens(rng, size)
    whole = fresh_logits(model, tokens)
    assert_same_bits(last_logits(model, tokens), whole[-1])
    with model.session() as session:
        assert session.forward(tokens[:-1], logits="none") is None
        assert_same_bits(session.forward(tokens[-1:]), whole[-1])


@forms
def test_any_number_of_threads_gives_the_same_bits(
    form: str, rng: np.random.Generator, tmp_path: Path
) -> None:
    # One thread reads the long text; the others take its state from a file.
    with shared_model(form, shape="long_window").session() as session:
        session.forward(random_tokens(rng, SPLIT - 3), logits="none")
        session.save(tmp_path / "session")
    more = random_tokens(rng, 40)
    sides = [random_tokens(rng, n) for n in (3, 1, 40)]
    expected: list[F32] = []
    for threads in (1, 2, 3, 5):
        model = shared_model(form, shape="long_window", threads=threads)
        with model.restore(tmp_path / "session") as session:
            found = [session.forward(more, logits="all")]  # keys in two splits
            found.append(session.forward(more[:1]))  # one query over them
            others = [model.session() for _ in sides]
            entries = [(session, more[:1]), *zip(others, sides, strict=True)]
            found += model.forward_batch(entries)
            for other in others:
                other.close()
        expected = expected or found
        for a, b in zip(found, expected, strict=True):
            assert_same_bits(a, b)


@forms
@shapes
def test_a_batch_gives_each_sequence_what_it_gets_alone(
    form: str, shape: str, rng: np.random.Generator
) -> None:
    model = shared_model(form, shape=shape)
    # Decoding, appending and starting, before and after the window, one longer than a chunk.
    held = [0, 1, 15, 63, 64, 200, 700, 1100]
    added = [70, 1, 3, 1, 65, 1, CHUNK + 9, 1]
    texts = [random_tokens(rng, a + b) for a, b in zip(held, added, strict=True)]
    sessions = [model.session() for _ in texts]
    for session, text, count in zip(sessions, texts, held, strict=True):
        if count:
            session.forward(text[:count], logits="none")
    entries = [(s, t[c:]) for s, t, c in zip(sessions, texts, held, strict=True)]
    results = model.forward_batch(entries)
    for session, text, found in zip(sessions, texts, results, strict=True):
        assert session.tokens == text
        assert_same_bits(found, last_logits(model, text))
        session.close()


def test_an_entry_of_a_batch_that_cannot_go_leaves_every_session_as_it_was(
    rng: np.random.Generator,
) -> None:
    model = shared_model()
    a, b = model.session(), model.session(max_tokens=10)
    first = random_tokens(rng, 8)
    a.forward(first), b.forward(first)
    for bad in ([1, 2, 3], [331], []):  # full, out of range, nothing
        with pytest.raises(InvalidArgument):
            model.forward_batch([(a, [5]), (b, bad)])
        assert a.tokens == b.tokens == first
    with pytest.raises(InvalidArgument):
        model.forward_batch([(a, [5]), (a, [6])])
    assert a.tokens == first
    expected = last_logits(model, [*first, 5])
    for found in model.forward_batch([(a, [5]), (b, [5])]):
        assert_same_bits(found, expected)


@forms
@shapes
def test_rows_whose_logits_nobody_wants_change_no_bits(
    form: str, shape: str, device_isa: str, rng: np.random.Generator
) -> None:
    model = shared_model(form, shape=shape, isa=device_isa, threads=2)
    tokens = random_tokens(rng, 420)
    expected = fresh_logits(model, tokens)
    for lengths in ([3, 1, 2, 70, 1], [CHUNK // 4, 200], [1, 5, 390]):
        with model.session() as session:
            for length in lengths:
                at = session.position
                session.forward(tokens[at : at + length], logits="none")
            at = session.position
            found = session.forward(tokens[at : at + 4])
            assert_same_bits(found, expected[at + 3])
            # What they left in the last layer's cache is what all see that come after.
            assert_same_bits(
                session.forward(tokens[at + 4 : at + 9], logits="all")[-1], expected[at + 8]
            )


def test_the_last_layer_computes_only_rows_whose_logits_are_wanted(
    rng: np.random.Generator,
) -> None:
    layers = SHAPES["short_window"].num_hidden_layers

    def calls(logits: Literal["last", "all", "none"]) -> tuple[int, int]:
        """How often a step walks through the experts, and how many it meets."""
        with (
            gon.Model.load(directory(), device="cpu", num_threads=1) as model,
            model.session() as session,
        ):
            model.trace(on=True)
            session.forward(random_tokens(rng, 60), logits=logits)
            totals = model.trace_totals()
        return totals["gate_up"][0], totals["experts touched"][0]

    (whole, all_experts), (last, last_experts), (none, none_experts) = (
        calls("all"),
        calls("last"),
        calls("none"),
    )
    assert (whole, last, none) == (layers, layers, layers - 1)
    assert none_experts < last_experts < all_experts


def test_an_empty_batch_gives_nothing() -> None:
    assert shared_model().forward_batch([]) == []


@forms
def test_score_is_the_log_softmax_and_leaves_the_session_alone(
    form: str, rng: np.random.Generator
) -> None:
    model = shared_model(form)
    tokens = random_tokens(rng, 700)
    expected = log_softmax(fresh_logits(model, tokens))
    with model.session() as session:
        session.forward(tokens[:100], logits="none")
        found = session.score(tokens[100:])
        assert session.tokens == tokens[:100]
        assert session.cached == 100
        rows = expected[100:-1]
        np.testing.assert_allclose(
            found, np.take_along_axis(rows, np.array(tokens[101:])[:, None], 1)[:, 0], rtol=2e-6
        )
        assert_same_bits(session.forward(tokens[100:]), last_logits(model, tokens))


# --- forks and rewinds ----------------------------------------------------------------------------


@forms
@shapes
@pytest.mark.parametrize("length", [1, PAGE - 1, PAGE, PAGE + 1, 333])
def test_forks_go_their_own_ways(
    form: str, shape: str, length: int, rng: np.random.Generator
) -> None:
    model = shared_model(form, shape=shape)
    prefix = random_tokens(rng, length)
    parent = model.session()
    parent.forward(prefix, logits="none")
    child = parent.fork()
    grandchild = child.fork()
    assert child.tokens == prefix
    texts = [random_tokens(rng, n) for n in (5, 70, 1)]
    # The child writes first, into a page that all three share.
    for session, text in zip((child, parent, grandchild), texts, strict=True):
        assert_same_bits(session.forward(text), last_logits(model, prefix + text))
    parent.close()
    assert_same_bits(child.forward(texts[1]), last_logits(model, prefix + texts[0] + texts[1]))
    child.close()
    grandchild.close()


def rewind_positions(window: int, length: int) -> list[int]:
    """Around both ends, the window's edge and page borders near it."""
    edge = length - window
    border = edge // PAGE * PAGE
    near = {edge, border, border + PAGE, length - PAGE, length, 0, 1, 2 * PAGE, 200}
    return sorted({p + d for p in near for d in (-1, 0, 1) if 0 <= p + d <= length})


@forms
@shapes
def test_a_rewind_anywhere_equals_a_fresh_session(
    form: str, shape: str, rng: np.random.Generator
) -> None:
    model = shared_model(form, shape=shape)
    text = random_tokens(rng, 411)
    more = random_tokens(rng, 3)
    full = model.session()
    for start in range(0, len(text), 100):  # marks at 100, 200, 300, 400
        full.forward(text[start : start + 100], logits="none")
        if start < 400:
            full.mark()
    assert full.marks == [100, 200, 300, 400]
    for position in rewind_positions(SHAPES[shape].sliding_window, len(text)):
        session = full.fork()
        again = session.rewind(position)
        assert session.position == position
        assert session.cached == position - again
        assert all(mark <= session.cached for mark in session.marks)
        assert_same_bits(session.forward(more), last_logits(model, text[:position] + more))
        session.close()
    full.close()


@forms
def test_a_rewind_to_a_mark_forwards_nothing_again(form: str, rng: np.random.Generator) -> None:
    model = shared_model(form)
    text = random_tokens(rng, 600)
    session = model.session()
    for end in (64, 100, 333):
        session.forward(text[session.position : end], logits="none")
        assert session.mark() == end
        assert session.mark() == end  # once is enough
    session.forward(text[333:], logits="none")
    assert session.marks == [64, 100, 333]
    for position in (333, 100, 64):
        assert session.rewind(position) == 0
        assert session.cached == position
        assert session.marks[-1] == position
        more = random_tokens(rng, 80)
        assert_same_bits(session.forward(more), last_logits(model, text[:position] + more))


@forms
def test_a_rewind_past_dropped_marks_equals_a_fresh_session(
    form: str, rng: np.random.Generator
) -> None:
    model = shared_model(form)
    text = random_tokens(rng, 20 * 37)
    session = model.session()
    for start in range(0, len(text), 37):
        session.forward(text[start : start + 37], logits="none")
        session.mark()
    kept = [37 * (i + 1) for i in range(4, 20)]
    assert session.marks == kept  # sixteen; the oldest went first
    again = session.rewind(3 * 37)
    assert again == 3 * 37  # from the very beginning
    assert session.marks == []
    assert_same_bits(session.forward(text[:5]), last_logits(model, text[: 3 * 37] + text[:5]))


def test_tokens_that_wait_after_a_rewind_can_be_forwarded_alone(rng: np.random.Generator) -> None:
    model = shared_model()
    text = random_tokens(rng, 500)
    session = model.session()
    session.forward(text, logits="none")
    assert session.rewind(100) == 100
    assert_same_bits(session.forward([]), last_logits(model, text[:100]))
    assert session.cached == 100
    with pytest.raises(InvalidArgument):
        session.forward([])
    assert session.tokens == text[:100]


def test_a_rewind_out_of_range_changes_nothing(rng: np.random.Generator) -> None:
    session = shared_model().session()
    session.forward([1, 2, 3])
    for position in (-1, 4):
        with pytest.raises(InvalidArgument, match="position"):
            session.rewind(position)
    assert session.tokens == [1, 2, 3]


# --- memory ---------------------------------------------------------------------------------------


def own_model(form: str, shape: str) -> gon.Model:
    """A model whose memory report has no other test's sessions in it."""
    return gon.Model.load(directory(shape), device="cpu", num_threads=1, **FORMATS[form])


def pages_in_use(model: gon.Model) -> int:
    """Bytes of cache pages that sessions and marks hold."""
    memory = model.memory()
    return memory["kv_cache_full"] + memory["kv_cache_window"] - memory["kv_cache_free"]


def expected_bytes(form: str, shape: str, full_pages: int, window_pages: int) -> int:
    sizes = SHAPES[shape]
    layer = 2 * sizes.num_key_value_heads * 64 * PAGE * (4 if form == "float32" else 2)
    sliding = (sizes.num_hidden_layers + 1) // 2
    return layer * (sliding * window_pages + (sizes.num_hidden_layers - sliding) * full_pages)


@forms
@shapes
def test_pages_out_of_the_window_are_released_and_marks_keep_theirs(
    form: str, shape: str, rng: np.random.Generator
) -> None:
    model = own_model(form, shape)
    window = SHAPES[shape].sliding_window
    assert pages_in_use(model) == 0

    def window_pages(length: int) -> range:  # those which the last token's query sees
        return range(max(0, length - window) // PAGE, -(-length // PAGE))

    session = model.session()
    for count in (1, 62, 1, 1, 150, 700, 300):
        session.forward(random_tokens(rng, count), logits="none")
        n = session.position
        # The engine may keep one position more than the next query sees, so a page more.
        slack = window_pages(n - 1).start < window_pages(n).start
        least = expected_bytes(form, shape, -(-n // PAGE), len(window_pages(n)))
        most = expected_bytes(form, shape, -(-n // PAGE), len(window_pages(n)) + slack)
        assert least <= pages_in_use(model) <= most
    assert model.memory()["marks"] == 0
    session.mark()
    assert model.memory()["marks"] == 0  # the session holds the same pages
    before = pages_in_use(model)
    session.forward(random_tokens(rng, 4 * PAGE + window), logits="none")
    marked = model.memory()["marks"]
    assert expected_bytes(form, shape, 0, 1) <= marked
    assert marked <= expected_bytes(form, shape, 0, 2 + window // PAGE + 1)
    assert pages_in_use(model) > before
    fork = session.fork()
    held = pages_in_use(model)
    session.close()
    assert pages_in_use(model) == held  # the fork has them all
    fork.close()
    assert pages_in_use(model) == 0
    assert model.memory()["marks"] == 0
    memory = model.memory()
    most_kept = 8  # pages of a group kept for the next session
    assert memory["kv_cache_free"] <= expected_bytes(form, shape, most_kept, most_kept)


def test_sessions_are_counted_and_dropping_one_releases_it(rng: np.random.Generator) -> None:
    model = shared_model()
    before = model.memory()["sessions"]
    session = model.session()
    session.forward(random_tokens(rng, 100))
    fork = session.fork()
    assert model.memory()["sessions"] == before + 2
    session.close()
    session.close()  # twice is fine
    assert session.closed
    del fork
    assert model.memory()["sessions"] == before


# --- everything at once ---------------------------------------------------------------------------


@forms
@shapes
def test_random_operations_leave_what_a_fresh_session_has(
    form: str, shape: str, rng: np.random.Generator, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = own_model(form, shape)
    path = tmp_path_factory.mktemp("saved") / "session"
    texts: list[list[int]] = [[]]
    sessions = [model.session()]
    for _ in range(70):
        at = int(rng.integers(len(sessions)))
        session, text = sessions[at], texts[at]
        operation = rng.choice(
            ["forward", "decode", "rewind", "mark", "fork", "close", "generate", "batch", "save"],
            p=[0.22, 0.1, 0.22, 0.1, 0.1, 0.04, 0.1, 0.08, 0.04],
        )
        if operation == "forward" and len(text) < 900:
            new = random_tokens(rng, int(rng.integers(1, 200)))
            text += new
            assert_same_bits(session.forward(new), last_logits(model, text))
        elif operation == "decode":
            for token in random_tokens(rng, 5):
                text.append(token)
                found = session.forward([token])
            assert_same_bits(found, last_logits(model, text))
        elif operation == "rewind":
            position = int(rng.integers(len(text) + 1))
            session.rewind(position)
            del text[position:]
        elif operation == "mark":
            assert session.mark() == session.cached
        elif operation == "fork" and len(sessions) < 5:
            sessions.append(session.fork())
            texts.append(text.copy())
        elif operation == "close" and len(sessions) > 1:
            sessions.pop(at).close()
            texts.pop(at)
            continue
        elif operation == "generate" and text:
            for token in session.generate((), GREEDY, max_new_tokens=int(rng.integers(1, 9))):
                assert token == int(last_logits(model, text).argmax())
                text.append(token)
        elif operation == "batch":
            new = [random_tokens(rng, int(rng.integers(1, 40))) for _ in sessions]
            results = model.forward_batch(zip(sessions, new, strict=True))
            for other, added, found in zip(texts, new, results, strict=True):
                other += added
                assert_same_bits(found, last_logits(model, other))
        elif operation == "save" and text:
            session.save(path)
            session.close()
            session = sessions[at] = model.restore(path)
        assert session.tokens == text
        assert session.position == len(text)
    for session, text in zip(sessions, texts, strict=True):
        assert_same_bits(session.forward([3]), last_logits(model, [*text, 3]))
        session.close()
    assert pages_in_use(model) == 0
