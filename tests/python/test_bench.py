"""What a benchmark of a model counts and compares."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("gpt_oss_native._core")

from gpt_oss_native import Model, bench
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
