"""What a benchmark of a model counts and compares."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("gpt_oss_native._core")

from gpt_oss_native import Model
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
