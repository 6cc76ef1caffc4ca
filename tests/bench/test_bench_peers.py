"""The peer is given the same weights, and would be found out with others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gpt_oss_native._core")

from gpt_oss_native.bench.lines import Line
from gpt_oss_native.checkpoint import open_checkpoint
from gpt_oss_native.synthesize import synthesize
from peers.agreement import Agreement, agreement, row_errors
from peers.report import ratio_text, report
from peers.to_gguf import (
    MISTAKES,
    Source,
    float_of_bf16,
    mxfp4_blocks,
    q8_0,
    tensors_of,
    write_gguf,
)
from peers.workers import PACKAGE, Worker, peer_checkpoint
from reference.mxfp4 import decode

E2M1_TWICE = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize(tmp_path_factory.mktemp("peers") / "tiny", preset="tiny", seed=5)


def values_of_gguf(raw: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Values of GGUF's MXFP4 bytes [rows][blocks * 17], as ggml reads them: the scale first, low
    nibbles are elements 0 to 15 and high ones 16 to 31; codes count halves."""
    blocks = raw.reshape(len(raw), -1, 17)
    codes = np.concatenate([blocks[..., 1:] & 15, blocks[..., 1:] >> 4], axis=-1)
    scale = np.exp2(blocks[..., :1].astype(np.float64) - 128)
    return (E2M1_TWICE[codes] * scale).reshape(len(raw), -1)


def test_mxfp4_values_survive_the_other_packing(rng: np.random.Generator) -> None:
    blocks = rng.integers(0, 256, (7, 5, 16), np.uint8)
    scales = rng.integers(1, 254, (7, 5), np.uint8)
    expected = decode(blocks, scales).reshape(7, -1)
    np.testing.assert_array_equal(values_of_gguf(mxfp4_blocks(blocks, scales)), expected)


def test_q8_0_is_within_half_a_step(rng: np.random.Generator) -> None:
    matrix = rng.standard_normal((6, 96)).astype(np.float32)
    matrix[2, 32:64] = 0
    raw = q8_0(matrix).reshape(6, 3, 34)
    scale = np.ascontiguousarray(raw[..., :2]).view(np.float16).astype(np.float64)
    found = scale * np.ascontiguousarray(raw[..., 2:]).view(np.int8)
    blocks = matrix.reshape(6, 3, 32)
    most = np.abs(blocks).max(axis=-1, keepdims=True)
    # Half a code, and the rounding of the scale to 11 bits.
    assert (np.abs(found - blocks) <= most * (0.5 / 127 + 2.0**-11)).all()
    assert not found[2, 1].any()


def data_of(source: Source, name: str, mistake: str | None = None) -> np.ndarray[Any, Any]:
    tensor = next(t for t in tensors_of(source, 4, mistake=mistake) if t.name == name)
    data = np.concatenate([np.ascontiguousarray(piece) for piece in tensor.pieces()])
    assert data.nbytes == tensor.nbytes
    return data


def test_gate_and_up_are_the_even_and_the_odd_rows(tiny: Path) -> None:
    source = Source(open_checkpoint(tiny))
    experts = "model.layers.1.mlp.experts."
    blocks, scales, bias = (
        source[f"{experts}gate_up_proj_{part}"] for part in ("blocks", "scales", "bias")
    )
    for start, name in ((0, "gate"), (1, "up")):
        found = values_of_gguf(data_of(source, f"blk.1.ffn_{name}_exps.weight"))
        expected = decode(blocks, scales)[:, start::2]
        np.testing.assert_array_equal(found, expected.reshape(found.shape))
        found_bias = data_of(source, f"blk.1.ffn_{name}_exps.bias")
        np.testing.assert_array_equal(found_bias, float_of_bf16(bias)[:, start::2])


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_on_purpose_changes_what_it_names(tiny: Path, mistake: str) -> None:
    source = Source(open_checkpoint(tiny))
    name = "blk.0.ffn_gate_exps." + ("bias" if mistake == "bias" else "weight")
    assert (data_of(source, name) != data_of(source, name, mistake)).any()


def test_every_tensor_of_the_checkpoint_is_written(tiny: Path) -> None:
    checkpoint = open_checkpoint(tiny)
    names = {tensor.name for tensor in tensors_of(Source(checkpoint), 4)}
    # Blocks and scales are one tensor, gate and up are two.
    assert len(names) == len(checkpoint.tensors)


def test_gguf_reads_back_what_was_written(tiny: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    checkpoint = open_checkpoint(tiny)
    write_gguf(checkpoint, tmp_path / "tiny.gguf", layers=2)
    reader = gguf.GGUFReader(tmp_path / "tiny.gguf")
    found = {tensor.name: tensor for tensor in reader.tensors}
    source = Source(checkpoint)
    for tensor in tensors_of(source, 2):
        values = gguf.dequantize(found[tensor.name].data, found[tensor.name].tensor_type)
        if tensor.kind == "MXFP4" and "down" in tensor.name:
            ours = f"model.layers.{tensor.name.split('.')[1]}.mlp.experts.down_proj_"
            expected = decode(source[f"{ours}blocks"], source[f"{ours}scales"])
            np.testing.assert_array_equal(values.reshape(expected.shape), expected)
    assert len(found) == len(list(tensors_of(source, 2)))


def test_the_small_checkpoint_holds_the_first_layers_as_they_are(
    tiny: Path, tmp_path: Path
) -> None:
    for layers in (2, 4):
        peer_checkpoint(tiny, tmp_path / str(layers), layers)
        whole, part = open_checkpoint(tiny), open_checkpoint(tmp_path / str(layers))
        assert part.config.num_layers == layers
        assert part.config.rope_truncate
        ours, theirs = Source(part), Source(whole)
        for name in part.tensors:
            np.testing.assert_array_equal(ours[name], theirs[name])
    assert (tmp_path / "4" / "model.safetensors").is_symlink()


def test_rounding_agrees_and_other_weights_do_not(rng: np.random.Generator) -> None:
    reference = rng.standard_normal((30, 500)).astype(np.float32)

    def near(share: float) -> np.ndarray[Any, Any]:
        return reference + share * rng.standard_normal(reference.shape).astype(np.float32)

    assert agreement(reference, near(0.1), near(0.15)).holds
    assert not agreement(reference, near(0.1), near(0.5)).holds
    assert not agreement(reference, near(0.1), rng.permuted(reference, axis=1)).holds
    assert not agreement(reference, near(0.1), np.full_like(reference, np.nan)).holds
    assert agreement(reference, reference, near(0.01)).holds


def test_row_errors_leave_out_what_does_not_change_the_choice(rng: np.random.Generator) -> None:
    reference = rng.standard_normal((4, 50)).astype(np.float32)
    assert row_errors(reference + np.float32(3), reference).max() < 1e-5
    assert Agreement(0.1, 0.05, 1, 1).bound == pytest.approx(0.15)


def test_the_engine_answers_as_a_contestant(tiny: Path, tmp_path: Path) -> None:
    import sys

    assert (Path(PACKAGE) / "gpt_oss_native").is_dir()
    with Worker("engine", sys.executable) as worker:
        loaded = worker.call("load", path=str(tiny), threads=1, context=64)
        assert loaded["seconds"] > 0
        assert worker.call("prefill", tokens=[1, 2, 3])["token"] >= 0
        assert len(worker.call("generate", count=5, token=4)["tokens"]) == 5
        worker.call("save", path=str(tmp_path / "state"))
        worker.call("reset")
        rows = worker.logits([1, 2, 3])
        assert rows.shape == (3, 1003)
        worker.call("restore", path=str(tmp_path / "state"))
        assert worker.use().private > 0
        assert worker.call("token_bytes", dense="int8", position=5)["bytes"] > 0
        with pytest.raises(RuntimeError, match="engine"):
            worker.call("prefill", tokens=[10**6])


def result(who: str, op: str = "generate at 0", **more: Any) -> Line:
    extra = {"who": who, "layers": 24, "dense": "int8", "major_faults": 0, **more}
    return Line(
        op=op,
        case="20b shapes, 24 layers, int8 dense",
        device="cpu",
        engine=who,
        threads=2,
        warm=True,
        seconds=(0.1, 0.2, 0.1) if who == "engine" else (0.2, 0.2, 0.4),
        num_bytes=2e9 if who == "engine" else None,
        read_peak=40e9,
        extra=extra,
    )


def header() -> dict[str, Any]:
    machine = {"cpu": "x", "cpus": 2, "memory_bytes": 24e9, "system": "y", "flags": ["fma"]}
    return {"machine": machine | {"commit": "abc"}, "time": "now"}


def test_ratios_are_those_of_the_pairs_of_one_run() -> None:
    assert ratio_text(result("engine"), result("llama")) == "2.00 (1.00 to 4.00)"
    text = report([header()], [result("engine"), result("llama")])
    assert "2.00 (1.00 to 4.00)" in text
    assert "50%" in text


@pytest.mark.parametrize(("private", "verdict"), [(2 << 30, "met"), (3 << 30, "missed")])
def test_memory_stands_beside_its_goal(private: int, verdict: str) -> None:
    lines = [result("engine", "memory at 4096", private=private, file=0)]
    assert f"2.5 GiB {verdict}" in report([header()], lines)


def test_a_report_of_nothing_says_so() -> None:
    make: Callable[..., str] = report
    assert make([header()], []).count("nothing measured") == 2
