"""What a benchmark of a model counts and compares."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

pytest.importorskip("gpt_oss_native._core")

from gpt_oss_native import InvalidArgument, Model
from gpt_oss_native.bench import model as bench
from gpt_oss_native.bench.process import process_use
from gpt_oss_native.synthesize import synthesize


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize(tmp_path_factory.mktemp("bench") / "tiny", preset="tiny")


def test_decode_is_compared_with_the_read_bandwidth_of_the_same_run(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "_sweep_bytes", lambda token_bytes: 4 << 20)
    with Model.load(tiny, num_threads=1, device="cpu") as model:
        result = bench.ModelBencher(model, num_threads=1, repeats=3).decode(4)
    assert result.read_bytes_per_second is not None
    assert result.share is not None
    assert 0 < result.share < 1


def test_a_token_reads_the_keys_and_values_that_it_sees(tiny: Path) -> None:
    with Model.load(tiny, num_threads=1) as model:
        bencher = bench.ModelBencher(model)
        weights = model.report().token_bytes_bf16
        config = model.config
    per_position = 2 * 2 * config.num_kv_heads * 64  # keys and values in bf16
    assert bencher.token_bytes(100) - weights == per_position * 100 * 4
    assert bencher.token_bytes(1000) - weights == per_position * (1000 * 2 + 128 * 2)


def test_a_result_as_a_line_is_that_of_one_token(tiny: Path) -> None:
    with Model.load(tiny, num_threads=1, isa="scalar", device="cpu") as model:
        bencher = bench.ModelBencher(model, num_threads=1, repeats=2)
        prefill, decode = bencher.prefill(8), bencher.decode(4, depth=5)
    line = prefill.line()
    assert (line.device, line.engine, line.threads) == ("cpu", "scalar", 1)
    assert line.seconds == tuple(seconds / 8 for seconds in prefill.seconds)
    assert line.operations_per_second == pytest.approx(1e9 * (prefill.gflops or 0))
    assert decode.line().num_bytes == decode.token_bytes
    assert decode.line().extra["depth"] == 5


@pytest.mark.parametrize("dense", ["bf16", "int8"])
def test_a_batch_reads_once_what_its_tokens_share(
    tiny: Path, dense: Literal["bf16", "int8"], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, steps, depth = 3, 4, 9
    with Model.load(tiny, num_threads=1, device="cpu", dense=dense) as model:
        bencher = bench.ModelBencher(model, dense=dense, num_threads=1, repeats=2)
        one = bencher.decode_batch(1, steps, depth=depth)
        some = bencher.decode_batch(batch, steps, depth=depth)
        # The same text everywhere chooses the same experts everywhere.
        monkeypatch.setattr(bencher, "_prompt", lambda count: [7] * count)
        same = bencher.decode_batch(batch, steps, depth=depth)
        keys_and_values = bencher.token_bytes(depth + steps // 2) - bencher.token_bytes(0)
        weights = bencher.token_bytes(0)
    assert one.token_bytes == weights + keys_and_values
    assert (some.op, some.tokens, some.depth) == (f"decode x {batch}", batch * steps, depth)
    assert same.token_bytes == pytest.approx(weights / batch + keys_and_values, abs=1)
    assert some.token_bytes is not None
    assert same.token_bytes is not None
    assert same.token_bytes <= some.token_bytes < one.token_bytes


def test_a_batch_as_a_line_is_one_token_of_it(tiny: Path) -> None:
    with Model.load(tiny, num_threads=1, isa="scalar", device="cpu") as model:
        result = bench.ModelBencher(model, num_threads=1, repeats=2).decode_batch(2, 3, depth=5)
    line = result.line()
    assert (line.op, line.num_bytes) == ("decode x 2", result.token_bytes)
    assert line.seconds == tuple(seconds / 6 for seconds in result.seconds)
    assert {"attention", "gate_up", "down"} <= set(result.zones)
    assert not any("experts" in zone for zone in result.zones)


@pytest.mark.parametrize(("batch", "steps"), [(0, 1), (1, 0), (-1, 3)])
def test_a_batch_of_nothing_is_refused(tiny: Path, batch: int, steps: int) -> None:
    with (
        Model.load(tiny, num_threads=1, device="cpu") as model,
        pytest.raises(InvalidArgument, match="expected 1 or more"),
    ):
        bench.ModelBencher(model).decode_batch(batch, steps)


def test_a_deep_session_is_computed_once_and_then_read(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    depth = 1024
    drawn: list[int] = []
    draw = bench.ModelBencher._prompt

    def count_drawn(self: bench.ModelBencher, count: int) -> list[int]:
        drawn.append(count)
        return draw(self, count)

    monkeypatch.setattr(bench.ModelBencher, "_prompt", count_drawn)
    with Model.load(tiny, num_threads=1, device="cpu") as model:
        for _ in range(2):
            bencher = bench.ModelBencher(model, num_threads=1, repeats=1, states=tmp_path)
            assert bencher.decode(2, depth=depth).depth == depth
            bencher.decode(2, depth=5)
            bencher.prefill(3, depth=depth)
        assert drawn.count(depth) == 1
        assert drawn.count(5) == 2
        assert len(list(tmp_path.iterdir())) == 1
        with pytest.raises(InvalidArgument, match="directory"):
            bench.ModelBencher(model, states=tmp_path / "none")
    with Model.load(tiny, num_threads=1, device="cpu", dense="int8") as model:
        other = bench.ModelBencher(model, dense="bf16", states=tmp_path)
        with pytest.raises(InvalidArgument, match="dense format"):
            other.decode(2, depth=depth)


def test_memory_counts_what_this_process_alone_holds() -> None:
    before = process_use()
    if before is None:
        pytest.skip("the system does not tell")
    held = bytearray(b"x") * (64 << 20)
    after = process_use()
    assert after is not None
    assert after.private - before.private > 60 << 20
    assert after.peak >= after.private
    assert len(held) == 64 << 20
