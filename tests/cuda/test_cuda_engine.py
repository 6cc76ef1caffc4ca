"""The engine on a CUDA device: against the CPU engine in float32, in both regimes, and its bits."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from pathlib import Path

import gpt_oss_native as gon
import numpy as np
import pytest
from gpt_oss_native import _core
from gpt_oss_native.errors import DeviceError, InvalidArgument, OutOfMemory
from reference import checkpoints
from reference.engine_support import (
    F32,
    PAGE,
    SHAPES,
    checkpoint,
    directory,
    fresh_logits,
    random_tokens,
    shared_model,
)
from tolerances import relative_error

SMALL = 32  # rows whose logits do not depend on the batch
GREEDY = gon.Sampling(temperature=0)
# Steps of one token, of the small regime, around its end, and past pages and windows.
LENGTHS = (1, 5, SMALL, SMALL + 1, 200, 700)
ROWS_JUDGED = 500


@pytest.fixture(scope="module", params=list(SHAPES))
def shape(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(cuda_device: str, shape: str) -> Iterator[gon.Model]:
    """A small model on the device."""
    with gon.Model.load(directory(shape), device=cuda_device) as loaded:
        yield loaded


def assert_same_bits(found: F32, expected: F32) -> None:
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("length", LENGTHS)
def test_logits_are_as_near_to_float32_as_bfloat16_activations_allow(
    model: gon.Model, shape: str, length: int, rng: np.random.Generator
) -> None:
    # On random networks a rounding flips near-tied experts, in all rows after it: rows of several
    # prompts are judged together. The CPU's int8 activations round about as much.
    errors: list[F32] = []
    others: list[F32] = []
    for _ in range(max(4, ROWS_JUDGED // length)):
        tokens = random_tokens(rng, length)
        exact = fresh_logits(shared_model("float32", shape=shape), tokens)
        errors.append(relative_error(fresh_logits(model, tokens), exact))
        cpu = fresh_logits(shared_model("bf16", shape=shape), tokens)
        others.append(relative_error(cpu, exact))
    error, other = (np.median(np.concatenate(found)) for found in (errors, others))
    assert error <= max(2.0 * other, 0.02), (error, other)


def test_forced_experts_leave_rounding_alone(
    model: gon.Model, shape: str, rng: np.random.Generator
) -> None:
    config = SHAPES[shape]
    for length in (7, 90):
        tokens = random_tokens(rng, length)
        sizes = (config.num_hidden_layers, length, config.num_experts_per_tok)
        experts = np.empty(sizes, np.int32)
        for layer in range(sizes[0]):
            for token in range(length):
                experts[layer, token] = rng.choice(config.num_local_experts, sizes[2], False)
        with model.session() as session:
            found = session._core.forward_forced(tokens, experts)
        with shared_model("float32", shape=shape).session() as session:
            exact = session._core.forward_forced(tokens, experts)
        with shared_model("bf16", shape=shape).session() as session:
            cpu = session._core.forward_forced(tokens, experts)
        error = relative_error(found, exact)
        other = relative_error(cpu, exact)
        # Random experts can cancel out, and what is left of a row then shows its rounding larger:
        # a few in a thousand rows exceed 0.05, where a fault gives about 1.
        assert error.max() < max(0.15, 2.0 * other.max()), (length, error.max(), other.max())
        assert np.median(error) < 0.02, (length, np.median(error))


def test_a_traced_step_of_many_rows_counts_the_experts_that_each_layer_touches(
    model: gon.Model, shape: str, rng: np.random.Generator
) -> None:
    config = SHAPES[shape]
    rows = SMALL + 5
    pool = rng.permutation(config.num_local_experts)[: config.num_experts_per_tok + 1]
    experts = np.empty((config.num_hidden_layers, rows, config.num_experts_per_tok), np.int32)
    for layer in range(config.num_hidden_layers):
        for row in range(rows):
            experts[layer, row] = rng.choice(pool, config.num_experts_per_tok, False)
    model.trace()
    with model.session() as session:
        session._core.forward_forced(random_tokens(rng, rows), experts)
    touched = model.trace_totals()["experts touched"][0]
    model.trace(on=False)
    assert touched == sum(len(np.unique(layer)) for layer in experts)


def test_rows_of_the_small_regime_have_the_same_bits_however_they_come(
    model: gon.Model, rng: np.random.Generator
) -> None:
    tokens = random_tokens(rng, 3 * SMALL)
    whole = np.concatenate([fresh_logits(model, tokens[:SMALL])])
    with model.session() as session:
        rows = np.stack([session.forward([token]) for token in tokens[:SMALL]])
    assert_same_bits(rows, whole)
    with model.session() as session:
        parts = [session.forward(tokens[a : a + 5], logits="all") for a in range(0, SMALL - 2, 5)]
    assert_same_bits(np.concatenate(parts)[: SMALL - 2], whole[: SMALL - 2])


def test_a_batch_of_up_to_32_gives_each_what_it_gets_alone(
    model: gon.Model, rng: np.random.Generator
) -> None:
    past = [random_tokens(rng, int(n)) for n in rng.integers(1, 150, SMALL)]
    new = random_tokens(rng, SMALL)
    sessions = []
    for tokens in past:
        sessions.append(model.session())
        sessions[-1].forward(tokens, logits="none")
    forks = [session.fork() for session in sessions]
    together = model.forward_batch([(s, [t]) for s, t in zip(sessions, new, strict=True)])
    for fork, token, found in zip(forks, new, together, strict=True):
        assert_same_bits(fork.forward([token]), found)


def test_large_steps_are_the_same_every_time(model: gon.Model, rng: np.random.Generator) -> None:
    tokens = random_tokens(rng, 500)
    first = fresh_logits(model, tokens)
    for _ in range(3):
        assert_same_bits(fresh_logits(model, tokens), first)


def test_chunks_on_a_warm_cache_see_all_older_keys(
    model: gon.Model, shape: str, rng: np.random.Generator
) -> None:
    tokens = random_tokens(rng, 700)
    whole = fresh_logits(model, tokens)
    with model.session() as session:
        parts = [session.forward(tokens[a : a + 171], logits="all") for a in range(0, 700, 171)]
    error = relative_error(np.concatenate(parts), whole)
    assert np.median(error) < 0.02, np.median(error)


def test_both_layouts_of_a_checkpoint_give_the_same_bits(
    cuda_device: str, shape: str, model: gon.Model, tmp_path: Path, rng: np.random.Generator
) -> None:
    checkpoints.write_original(checkpoint(shape), tmp_path)
    tokens = random_tokens(rng, 50)
    with gon.Model.load(tmp_path, device=cuda_device) as other:
        assert_same_bits(fresh_logits(other, tokens), fresh_logits(model, tokens))


def test_fork_rewind_save_and_restore_keep_the_bits(
    model: gon.Model, tmp_path: Path, rng: np.random.Generator
) -> None:
    tokens = random_tokens(rng, 3 * PAGE + 5)
    with model.session() as session:
        session.forward(tokens[:-20], logits="none")
        session.mark()
        expected = session.forward(tokens[-20:])
        session.save(tmp_path / "session")
        session.rewind(len(tokens) - 20)
        assert_same_bits(session.forward(tokens[-20:]), expected)
        more = session.forward([3])
    with model.restore(tmp_path / "session") as restored, restored.fork() as fork:
        assert_same_bits(restored.forward([3]), more)
        assert_same_bits(fork.forward([3]), more)


@pytest.mark.parametrize(("preset", "smem"), [("20b", 166912), ("20b", 130000), ("tiny", 110000)])
def test_less_shared_memory_takes_rows_in_smaller_groups_with_the_same_bits(
    cuda_device: str,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    preset: str,
    smem: int,
) -> None:
    with gon.Model.synthetic(preset, device=cuda_device) as model:
        tokens = random_tokens(rng, SMALL + 3, model.config.vocab_size)
        with model.session() as session:
            expected = [session.forward(tokens[:SMALL], logits="all"), session.forward(tokens[-3:])]
    monkeypatch.setenv("GPT_OSS_NATIVE_CUDA_SMEM", str(smem))
    with gon.Model.synthetic(preset, device=cuda_device) as model, model.session() as session:
        assert re.search(r"few rows [1-9]\d* at a time", repr(model)), repr(model)
        assert_same_bits(session.forward(tokens[:SMALL], logits="all"), expected[0])
        assert_same_bits(session.forward(tokens[-3:]), expected[1])


def test_the_least_shared_memory_leaves_all_steps_to_the_large_kernels(
    cuda_device: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, shape: str
) -> None:
    monkeypatch.setenv("GPT_OSS_NATIVE_CUDA_SMEM", "101376")  # of 8.6, 8.9 and 12.0
    monkeypatch.setenv("GPT_OSS_NATIVE_CUDA_ARCH", "80")
    exact = shared_model("float32", shape=shape)
    with gon.Model.load(directory(shape), device=cuda_device) as model:
        assert "few rows 0 at a time" in repr(model)
        errors = []
        for _ in range(20):
            tokens = random_tokens(rng, 24)
            with model.session() as session:
                parts = [session.forward(tokens[:9], logits="all")]
                parts += [session.forward([t])[None] for t in tokens[9:]]
            errors.append(relative_error(np.concatenate(parts), fresh_logits(exact, tokens)))
        assert np.median(np.concatenate(errors)) <= 0.03
        with model.session() as session:
            assert len(list(session.generate(tokens, GREEDY, max_new_tokens=20))) == 20


# --- drawing on the device ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sampling",
    [
        GREEDY,
        gon.Sampling(seed=1),
        gon.Sampling(temperature=0.7, top_k=20, seed=2),
        gon.Sampling(top_p=0.8, seed=3),
        gon.Sampling(min_p=0.1, seed=4),
        gon.Sampling(top_k=50, top_p=0.9, min_p=0.01, seed=5),
    ],
)
def test_the_device_draws_what_the_host_would(
    model: gon.Model, sampling: gon.Sampling, rng: np.random.Generator
) -> None:
    prompt = random_tokens(rng, 9)
    with model.session() as there, model.session() as here:
        drawn = list(there.generate(prompt, sampling, max_new_tokens=80))
        # Log-probabilities are the host's work, so this one samples there.
        sampled = [t.id for t in here.generate(prompt, sampling, max_new_tokens=80, logprobs=0)]
        assert drawn == sampled
        assert there.tokens == here.tokens == prompt + drawn
        assert there.position == here.position


def test_a_generation_left_at_any_moment_leaves_no_trace(
    model: gon.Model, rng: np.random.Generator
) -> None:
    prompt = random_tokens(rng, PAGE - 5)
    with model.session() as session:
        whole = list(session.generate(prompt, GREEDY, max_new_tokens=20))
    for count in range(1, 12):  # across a page's edge
        with model.session() as session:
            generation = session.generate(prompt, GREEDY, max_new_tokens=20)
            begun = [next(generation) for _ in range(count)]
            generation.close()
            assert begun == whole[:count]
            assert session.tokens == prompt + begun
            with session.fork() as fork:
                rest = list(fork.generate([], GREEDY, max_new_tokens=20 - count))
            assert begun + rest == whole
            with model.session() as same:
                same.forward(prompt, logits="none")
                for token in begun:
                    same.forward([token], logits="none")
                assert_same_bits(session.forward([7]), same.forward([7]))


def test_masks_and_draws_take_turns(model: gon.Model, rng: np.random.Generator) -> None:
    prompt = random_tokens(rng, 10)
    only = np.zeros(model.config.vocab_size, np.bool_)
    only[17] = True
    with model.session() as session:
        generation = _core.Generation(session._core, prompt, GREEDY, 30, [], -1)
        found = []
        for step in range(20):
            found.append(generation.next(only if step % 3 == 1 else None))
            if step % 3 == 1:
                assert found[-1] == 17
        assert session.tokens == prompt + found
        assert session.forward([1]) is not None


# --- memory and processes -------------------------------------------------------------------------


def free_bytes() -> int:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch has no CUDA here")
    return int(torch.cuda.mem_get_info()[0])


def test_nothing_stays_allocated_after_close(cuda_device: str, rng: np.random.Generator) -> None:
    def use() -> None:
        with gon.Model.load(directory(), device=cuda_device) as model:
            with model.session() as session:
                session.forward(random_tokens(rng, 300), logits="none")
                list(session.generate([1], GREEDY, max_new_tokens=40))
            model.close()

    use()  # what the runtime keeps for itself
    gc.collect()
    before = free_bytes()
    for _ in range(5):
        use()
    gc.collect()
    assert free_bytes() >= before - (4 << 20)


def test_many_steps_leave_memory_as_it_was(cuda_device: str) -> None:
    with gon.Model.load(directory(), device=cuda_device) as model, model.session() as session:

        def run(count: int) -> None:
            for _ in session.generate([1], GREEDY, max_new_tokens=count):
                pass
            session.rewind(0)

        run(500)
        before, held = free_bytes(), model.memory()
        for _ in range(20):
            run(500)
        assert free_bytes() >= before - (4 << 20)
        assert model.memory() == held


def test_a_model_that_does_not_fit_is_refused_with_numbers_before_anything_is_allocated(
    cuda_device: str,
) -> None:
    held = free_bytes()
    torch = pytest.importorskip("torch")
    taken = torch.empty(held - (12 << 30), dtype=torch.uint8, device="cuda")
    before = free_bytes()
    with pytest.raises(OutOfMemory, match=r"\d+ bytes of device memory for weights and \d+ for"):
        gon.Model.synthetic("20b", device=cuda_device)
    assert free_bytes() >= before - (4 << 20)
    del taken
    torch.cuda.empty_cache()


def test_several_models_live_side_by_side(
    cuda_device: str, model: gon.Model, shape: str, rng: np.random.Generator
) -> None:
    tokens = random_tokens(rng, 40)
    expected = fresh_logits(model, tokens)
    with gon.Model.load(directory(shape), device=cuda_device) as other, other.session() as session:
        session.forward(tokens[:20], logits="none")
        assert_same_bits(fresh_logits(model, tokens), expected)
        assert_same_bits(fresh_logits(other, tokens), expected)


@pytest.mark.parametrize("options", [{"dense": "int8"}, {"precision": "float32"}])
def test_formats_of_the_cpu_are_refused(cuda_device: str, options: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument, match="device='cpu'"):
        gon.Model.load(directory(), device=cuda_device, **options)


def test_a_device_that_is_not_there_is_a_device_error(cuda_device: str) -> None:
    with pytest.raises(DeviceError, match="there is no device 4096"):
        gon.Model.load(directory(), device=f"{cuda_device}:4096")
