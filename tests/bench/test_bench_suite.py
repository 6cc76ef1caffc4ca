"""Every op is measured, over the bytes and operations that it cannot do without."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("gpt_oss_native._core")

from gpt_oss_native import InvalidArgument, _core, ops
from gpt_oss_native.bench import harness, machine
from gpt_oss_native.bench.arguments import add_measuring_options, add_output_options
from gpt_oss_native.bench.harness import Harness, OpCase, Settings
from gpt_oss_native.bench.lines import read_lines
from gpt_oss_native.bench.run import run_ops
from gpt_oss_native.bench.suite import SUITE, visible_pairs

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bandwidth and peaks measured too briefly to mean anything."""
    monkeypatch.setattr(harness, "_SWEEP_BYTES", 4 << 20)
    monkeypatch.setattr(harness, "_PEAK_SECONDS", 0.001)


def named(op: str, text: str = "") -> OpCase:
    """The op's first case with this text."""
    return next(case for case in SUITE[op]() if text in case.case)


def test_every_op_has_its_program_and_every_program_its_op() -> None:
    programs = {path.stem.removeprefix("bench_") for path in ROOT.glob("benchmarks/bench_*.py")}
    whole = {"model", "cuda", "cuda_files"}  # of whole models, and on a device
    assert programs - whole == set(SUITE)


def test_every_op_of_the_table_is_measured() -> None:
    offered = {name for name in vars(_core.Ops) if not name.startswith("_")}
    offered = offered & set(vars(ops)) - {"time_kernels", "kernel_seconds", "linear"}
    offered -= {"draw_tokens"}  # "sampler" on a CUDA device: a part of a token's kernels there
    assert offered | {"linear_bf16", "linear_int8", "sampler"} == set(SUITE)


def test_cases_of_an_op_have_names_of_their_own() -> None:
    for op, cases in SUITE.items():
        made = list(cases())
        assert len({case.case for case in made}) == len(made) > 1
        assert {case.op for case in made} == {op}
        assert all(case.num_bytes > 0 for case in made)
        assert all((case.operations is None) == (case.arithmetic is None) for case in made)


@pytest.mark.parametrize("op", [op for op in SUITE if op != "linear_int8"])
def test_bytes_are_those_of_the_arrays_that_the_op_touches(
    op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # linear_mxfp4 and attention read their activations, keys and values in narrower formats.
    touched: list[int] = []

    def record(name: str, called: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            keywords.pop("device", None)
            result = called(*arguments, **keywords)
            outputs = result if isinstance(result, tuple) else (result,)
            arrays = [a for a in (*arguments, *outputs) if isinstance(a, np.ndarray)]
            if name == "moe_combine":  # changed in place, and given back
                arrays.pop()
            if name == "rope":  # so is what it takes a copy of first
                arrays.pop(0)
            if name == "embed":  # of the table, only the rows asked for
                arrays[1] = arrays[1][: arrays[0].size]
            touched.append(sum(array.nbytes for array in arrays))
            return result

        return call

    function = "linear" if op == "linear_bf16" else op
    case = named(op, "k_proj, 1 token" if op == "linear_bf16" else "")
    if case.timed_whole:
        assert case.num_bytes == 201_088 * 4
        return
    monkeypatch.setattr(ops, function, record(function, getattr(ops, function)))
    case.make(np.random.default_rng(0))(isa=None, threads=1)
    (found,) = touched
    if op == "attention":  # bf16 in the cache, one window of them
        queries = 2 * 64 * 64 * 4
        assert case.num_bytes == queries + 2 * 128 * 8 * 64 * 2
    else:
        assert found == pytest.approx(case.num_bytes, rel=0.02)


def test_int8_weights_are_counted_at_eight_and_a_half_bits() -> None:
    case = named("linear_int8", "unembedding, 1 token")
    assert case.num_bytes == 201_088 * 2880 * 8.5 / 8 + (201_088 + 2880) * 4


@given(st.integers(1, 40), st.integers(0, 60), st.one_of(st.none(), st.integers(1, 50)))
def test_visible_pairs_are_those_of_the_mask(queries: int, before: int, window: int | None) -> None:
    history = queries + before
    i = np.arange(history)[before:, None]
    j = np.arange(history)[None, :]
    mask = (j <= i) & (i - j < (window or history))
    assert visible_pairs(queries, history, window) == (mask.sum(), mask.any(axis=0).sum())


def test_the_harness_measures_kernels_alone_and_says_beside_what() -> None:
    settings = Settings(isa="scalar", threads=1, repeats=3, evict_bytes=1 << 20)
    cases = [named("linear_bf16", "router_20b, 1 token"), named("rope")]
    product, rope = Harness(settings).run(cases)
    assert (product.device, product.engine, product.threads) == ("cpu", "scalar", 1)
    assert len(product.seconds) == 3
    assert not product.warm
    assert product.peak_name == "fma_scalar"
    assert product.peak is not None
    assert product.read_peak is not None
    assert (rope.peak, rope.peak_name, rope.operations) == (None, None, None)


def test_without_a_sweep_a_line_is_warm() -> None:
    (line,) = Harness(Settings(threads=1, repeats=1, warm=True)).run([named("rope")])
    assert line.warm
    (line,) = Harness(Settings(threads=1, repeats=1)).run([named("sampler", "greedy")])
    assert line.warm  # timed from outside, as it is called


@pytest.mark.parametrize("op", SUITE)
def test_a_case_of_each_op_runs(op: str) -> None:
    case = named(op, "k_proj" if op.startswith("linear") and op != "linear_mxfp4" else "")
    settings = Settings(threads=1, repeats=1, evict_bytes=1 << 16)
    (line,) = Harness(settings).run([case])
    assert line.op == op
    assert line.median > 0


def test_a_call_after_timing_runs_once() -> None:
    out = np.zeros((1, 4), np.float32)
    expert_out, weights = np.ones((1, 4), np.float32), np.ones((1, 1), np.float32)
    with ops.time_kernels(3, threads=1):
        ops.moe_combine(expert_out, weights, out, threads=1)
        assert len(ops.kernel_seconds(threads=1)) == 3
    np.testing.assert_array_equal(out, np.full((1, 4), 3, np.float32))  # in place, so often
    ops.moe_combine(expert_out, weights, out, threads=1)
    np.testing.assert_array_equal(out, np.full((1, 4), 4, np.float32))
    assert ops.kernel_seconds(threads=1) == []


def test_timing_leaves_results_as_they_are(rng: np.random.Generator) -> None:
    x = rng.standard_normal((3, 64), np.float32)
    weight = ops.to_bf16(rng.standard_normal((7, 64), np.float32))
    for dense in ("bf16", "int8"):
        plain = ops.linear(x, weight, dense=dense, threads=1)
        with ops.time_kernels(2, evict_bytes=1 << 16, threads=1):
            timed = ops.linear(x, weight, dense=dense, threads=1)
        np.testing.assert_array_equal(plain, timed)


def test_peaks_are_of_what_the_machine_has() -> None:
    peaks = _core.arithmetic_peaks(1, 0.005)
    assert next(iter(peaks)) == "fma_scalar"
    assert all(rate > 0 for rate in peaks.values())
    flags = machine.describe_machine()["flags"]
    assert ("fma_avx512" in peaks) == ("avx512f" in flags)
    assert ("fma_avx2" in peaks) == ("avx2" in flags and "fma" in flags)
    for seconds in (0.0, -1.0, float("nan")):
        with pytest.raises(InvalidArgument, match="seconds"):
            _core.arithmetic_peaks(1, seconds)


def test_the_sweep_covers_the_last_level_cache_within_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for cache, swept in ((0, 64 << 20), (256 << 20, 256 << 20), (8 << 30, 1 << 30)):
        monkeypatch.setattr(machine, "last_level_cache_bytes", lambda cache=cache: cache)
        assert machine.cold_bytes() == swept


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_measuring_options(parser)
    add_output_options(parser)
    parser.set_defaults(device="cpu", isa=None, threads=1, repeats=1)
    return parser.parse_args(["--beside", *words])


def test_ops_by_name_and_filter_make_a_table_and_a_file(tmp_path: Path) -> None:
    path = tmp_path / "lines.json"
    written: list[str] = []
    options = arguments("--filter", "1 token", "--evict-mb", "1", "--json", str(path))
    assert run_ops(["rope", "swiglu"], options, written.append) == 0
    text = "".join(written)
    assert "peaks in GFLOP/s" in text
    assert "512 tokens" not in text
    headers, lines = read_lines(path)
    assert [line.op for line in lines] == ["rope", "swiglu"]
    assert headers[0]["conditions"]["threads"] == 1
    assert run_ops([], arguments("--compare", str(path), str(path)), written.append) == 0
    assert "within noise" in "".join(written)


def test_json_alone_prints_lines_and_nothing_else(tmp_path: Path) -> None:
    written: list[str] = []
    options = arguments("--filter", "1 token", "--warm", "--json")
    assert run_ops(["rope"], options, written.append) == 0
    path = tmp_path / "lines.json"
    path.write_text("".join(written))
    headers, lines = read_lines(path)
    assert (headers, len(lines)) == ([], 1)


def test_listing_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core, "read_bandwidth", None)
    written: list[str] = []
    assert run_ops([], arguments("--list"), written.append) == 0
    assert len(written) == sum(len(list(cases())) for cases in SUITE.values())


def test_mistakes_say_what_there_is() -> None:
    with pytest.raises(InvalidArgument, match="there are embed"):
        run_ops(["einsum"], arguments(), print)
    with pytest.raises(InvalidArgument, match="nowhere"):
        run_ops([], arguments("--filter", "nowhere"), print)
    with pytest.raises(InvalidArgument, match="repeats"):
        Settings(repeats=0)
    with pytest.raises(InvalidArgument, match="device"):
        Settings(device="tpu")
