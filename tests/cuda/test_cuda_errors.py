"""What can go wrong on a CUDA device: a clear error each time, and the model and its other sessions
go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gpt_oss_native as gon
import numpy as np
import pytest
from gpt_oss_native.errors import InvalidArgument, OutOfMemory
from reference.checkpoints import Checkpoint, write_hugging_face
from reference.engine_support import (
    F32,
    SHAPES,
    checkpoint,
    directory,
    fresh_logits,
    random_tokens,
)
from tolerances import relative_error

GREEDY = gon.Sampling(temperature=0)
MIB = 1 << 20
BF16_NAN = 0x7FC0
# Rows of a step in which one row is damaged: one token, of the small regime, and past it.
BATCHES = (1, 7, 32, 60)


@pytest.fixture(scope="module")
def model(cuda_device: str) -> Iterator[gon.Model]:
    with gon.Model.load(directory(), device=cuda_device) as loaded:
        yield loaded


@contextmanager
def memory_taken(left: int) -> Iterator[None]:
    """All of the device's memory but some `left` bytes."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch has no CUDA here")
    torch.empty(1, device="cuda")  # what PyTorch keeps for itself
    taken = [torch.empty(torch.cuda.mem_get_info()[0] - left, dtype=torch.uint8, device="cuda")]
    try:
        yield
    finally:
        taken.clear()
        torch.cuda.empty_cache()


def load_changed(path: Path, changed: dict[str, Any], device: str) -> gon.Model:
    """The small model with some of its tensors replaced."""
    origin = checkpoint()
    write_hugging_face(Checkpoint(origin.shape, origin.seed, origin.tensors | changed), path)
    return gon.Model.load(path, device=device)


def assert_same_bits(found: F32, expected: F32) -> None:
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


# --- memory ---------------------------------------------------------------------------------------


def test_a_cache_that_does_not_fit_is_refused_with_numbers_and_sessions_go_on(
    model: gon.Model, rng: np.random.Generator
) -> None:
    tokens = random_tokens(rng, 200)
    long = random_tokens(rng, 70_000)  # several slabs of pages
    expected = fresh_logits(model, tokens)
    with model.session() as session, model.session() as other:
        session.forward(tokens[:150], logits="none")
        other.forward(tokens[:20], logits="none")
        with memory_taken(24 * MIB):
            numbers = r"expected \d+ bytes of device memory, \d+ of \d+ are free; close other"
            with pytest.raises(OutOfMemory, match=numbers):
                other.forward(long, logits="none")
            assert other.tokens == tokens[:20]
            again = session.forward(tokens[150:], logits="all")
            assert len(list(session.generate([], GREEDY, max_new_tokens=3))) == 3
        other.forward(long, logits="none")
        assert other.position == 20 + len(long)
    with model.session() as same:
        same.forward(tokens[:150], logits="none")
        assert_same_bits(again, same.forward(tokens[150:], logits="all"))
    assert_same_bits(fresh_logits(model, tokens), expected)


def test_a_model_that_does_not_fit_beside_another_is_refused_and_the_other_goes_on(
    cuda_device: str, model: gon.Model, rng: np.random.Generator
) -> None:
    tokens = random_tokens(rng, 40)
    expected = fresh_logits(model, tokens)
    with model.session() as session:
        session.forward(tokens[:-1], logits="none")
        with memory_taken(12 << 30):
            numbers = r"expected \d+ bytes of device memory for weights and \d+ for .* are free"
            with pytest.raises(OutOfMemory, match=numbers):
                gon.Model.synthetic("20b", device=cuda_device)
            assert_same_bits(fresh_logits(model, tokens), expected)
        assert np.isfinite(session.forward(tokens[-1:])).all()


def test_closing_a_model_leaves_the_one_beside_it(
    cuda_device: str, rng: np.random.Generator
) -> None:
    tokens = random_tokens(rng, 80)
    models = {s: gon.Model.load(directory(s), device=cuda_device) for s in SHAPES}
    alone = {}
    for shape in SHAPES:
        with gon.Model.load(directory(shape), device=cuda_device) as one:
            alone[shape] = fresh_logits(one, tokens)
    first, second = SHAPES
    with models[second].session() as session:
        running = session.generate(tokens[:9], GREEDY, max_new_tokens=40)
        begun = [next(running) for _ in range(5)]
        assert_same_bits(fresh_logits(models[first], tokens), alone[first])
        models[first].close()
        begun += list(running)
    with models[second].session() as session:
        assert begun == list(session.generate(tokens[:9], GREEDY, max_new_tokens=40))
    assert_same_bits(fresh_logits(models[second], tokens), alone[second])
    models[second].close()


# --- requests -------------------------------------------------------------------------------------


def test_a_text_longer_than_the_session_is_refused_and_nothing_changes(
    model: gon.Model, rng: np.random.Generator
) -> None:
    tokens = random_tokens(rng, 100)
    with pytest.raises(InvalidArgument, match="max_tokens"):
        model.session(max_tokens=model.config.max_context + 1)
    with model.session(max_tokens=100) as session:
        session.forward(tokens[:90], logits="none")
        with pytest.raises(InvalidArgument, match="at most 10 more tokens"):
            session.forward(tokens[:11])
        assert session.tokens == tokens[:90]
        assert len(list(session.generate(tokens[90:95], GREEDY))) <= 5
        assert session.position <= 100


@pytest.mark.parametrize("token", [331, -1, 1 << 31])
def test_a_token_out_of_range_is_refused_and_nothing_changes(model: gon.Model, token: int) -> None:
    with model.session() as session, model.session() as other:
        session.forward([1, 2])
        for call in (
            lambda: session.forward([3, token]),
            lambda: session.generate([token]),
            lambda: model.forward_batch([(other, [1]), (session, [token])]),
        ):
            with pytest.raises(InvalidArgument):
                call()
        assert (session.tokens, other.tokens) == ([1, 2], [])
        assert np.isfinite(session.forward([3])).all()


@pytest.mark.parametrize("sampling", [GREEDY, gon.Sampling(top_p=0.9, seed=3)])
def test_a_model_closes_while_tokens_are_under_way(
    cuda_device: str, rng: np.random.Generator, sampling: gon.Sampling
) -> None:
    for begun in range(5):
        model = gon.Model.load(directory(), device=cuda_device)
        running = [
            model.session().generate(random_tokens(rng, 9), sampling, max_new_tokens=60)
            for _ in range(3)
        ]
        for _ in range(begun):
            for generation in running:
                next(generation)
        model.close()
        for generation in running:
            with pytest.raises(InvalidArgument, match="closed"):
                next(generation)
        model.close()


# --- values that are not numbers ------------------------------------------------------------------


def test_weights_that_are_not_numbers_come_out_as_such_and_draw_no_token(
    cuda_device: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    norm = checkpoint().tensors["model.norm.weight"].copy()
    norm[3] = BF16_NAN
    with load_changed(tmp_path, {"model.norm.weight": norm}, cuda_device) as damaged:
        for count in BATCHES:
            assert np.isnan(fresh_logits(damaged, random_tokens(rng, count))).all()
            with damaged.session() as session:
                for sampling in (GREEDY, gon.Sampling(top_p=0.5, seed=1)):
                    with pytest.raises(gon.GptOssError, match="NaN"):
                        list(session.generate(random_tokens(rng, count), sampling))


@pytest.mark.parametrize("count", BATCHES)
def test_activations_that_are_not_numbers_stay_in_their_own_sequence(
    cuda_device: str, model: gon.Model, tmp_path: Path, rng: np.random.Generator, count: int
) -> None:
    bad = 17
    embedding = checkpoint().tensors["model.embed_tokens.weight"].copy()
    embedding[bad] = BF16_NAN
    tokens = [t if t != bad else bad + 1 for t in random_tokens(rng, count)]
    at = int(rng.integers(0, count))
    with load_changed(tmp_path, {"model.embed_tokens.weight": embedding}, cuda_device) as damaged:

        def rows(values: list[int]) -> list[F32]:
            sessions = [damaged.session() for _ in values]
            found = damaged.forward_batch([(s, [t]) for s, t in zip(sessions, values, strict=True)])
            for session in sessions:
                session.close()
            return found

        sound = rows(tokens)
        found = rows([*tokens[:at], bad, *tokens[at + 1 :]])
        assert np.isnan(found[at]).all()
        for i in set(range(count)) - {at}:
            if count <= 32:
                assert_same_bits(found[i], sound[i])
            else:
                # Which rows share a tile of an expert changes with the damaged one's experts.
                assert relative_error(found[i][None], sound[i][None]).max() < 0.02
        with damaged.session() as session, pytest.raises(gon.GptOssError, match="NaN"):
            list(session.generate([1, bad], GREEDY, max_new_tokens=4))
        assert_same_bits(fresh_logits(damaged, [1, 2]), fresh_logits(model, [1, 2]))


# --- scales at the end of their range -------------------------------------------------------------


def test_blocks_of_the_smallest_scale_count_as_zero_where_activations_are_of_sane_size(
    cuda_device: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    """Scale byte 0 is 2^-127. The kernels of few rows take it as zero: what such a block adds is at
    most 2^-124.4 times the sum of its activations' magnitudes, below what their sums resolve
    (2^-87) for any sum below 2^37. Here it vanishes beside the biases on every path."""
    first: dict[str, Any] = {}
    second: dict[str, Any] = {}
    for layer in range(checkpoint().shape.num_hidden_layers):
        name = f"model.layers.{layer}.mlp.experts.gate_up_proj"
        scales = checkpoint().tensors[f"{name}_scales"].copy()
        blocks = checkpoint().tensors[f"{name}_blocks"].copy()
        chosen = rng.random(scales.shape) < 0.5
        scales[chosen] = 0
        first[f"{name}_scales"] = second[f"{name}_scales"] = scales
        zeros = blocks.reshape(*scales.shape, 16).copy()
        zeros[chosen] = 0
        first[f"{name}_blocks"] = blocks
        second[f"{name}_blocks"] = zeros.reshape(blocks.shape)
    with (
        load_changed(tmp_path / "scales", first, cuda_device) as small,
        load_changed(tmp_path / "zeros", second, cuda_device) as none,
        load_changed(tmp_path / "scales_again", first, "cpu") as host,
    ):
        for count in BATCHES:
            tokens = random_tokens(rng, count)
            found = fresh_logits(small, tokens)
            assert_same_bits(found, fresh_logits(none, tokens))
            assert np.median(relative_error(found, fresh_logits(host, tokens))) < 0.05
