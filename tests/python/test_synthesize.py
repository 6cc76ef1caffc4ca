"""Synthesised checkpoints and the safetensors writer under them."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from gpt_oss_native import CheckpointError, InvalidArgument
from gpt_oss_native import synthesize as module
from gpt_oss_native.checkpoint.safetensors_writer import TensorSpec, write_safetensors
from gpt_oss_native.synthesize import INCOMPLETE, PRESETS, hugging_face_tensors, synthesize
from reference import mxfp4, ops
from reference.checkpoints import read_hugging_face, read_safetensors
from reference.model import ReferenceModel


def digests(directory: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in directory.iterdir()}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize(tmp_path_factory.mktemp("tiny") / "checkpoint", preset="tiny", seed=7)


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(
    tiny: Path, tmp_path: Path
) -> None:
    again = digests(synthesize(tmp_path / "again", preset="tiny", seed=7))
    other = digests(synthesize(tmp_path / "other", preset="tiny", seed=8))
    assert again == digests(tiny)
    assert other["config.json"] == again["config.json"]
    assert other["model.safetensors"] != again["model.safetensors"]


def test_synthesised_model_runs_with_finite_spread_outputs(
    tiny: Path, rng: np.random.Generator
) -> None:
    tensors = read_safetensors(tiny / "model.safetensors")
    assert list(tensors) == [spec.name for spec in hugging_face_tensors(PRESETS["tiny"])]
    checkpoint = read_hugging_face(tiny)
    assert checkpoint.shape == PRESETS["tiny"]
    trace = ReferenceModel(checkpoint).forward(rng.integers(0, 1003, 40))
    assert np.isfinite(trace.logits).all()
    assert 0.5 < np.std(trace.logits) < 10
    assert 0.5 < np.std(trace.router_logits) < 10
    assert np.std(trace.hidden[-1]) < 10
    assert len(np.unique(trace.experts)) == 8


def test_other_readers_accept_the_file(tiny: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    pytest.importorskip("torch")
    with safetensors.safe_open(tiny / "model.safetensors", "pt") as file:
        assert sorted(file.keys()) == sorted(s.name for s in hugging_face_tensors(PRESETS["tiny"]))
        assert file.get_tensor("lm_head.weight").shape == (1003, 192)


def test_sharded_layout_has_an_index_that_names_every_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read_safetensors(synthesize(tmp_path / "one", preset="tiny") / "model.safetensors")
    monkeypatch.setitem(module._LAST_SHARD, "tiny", 2)
    directory = synthesize(tmp_path / "three", preset="tiny")
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    names = [f"model-{i:05d}-of-00002.safetensors" for i in range(3)]
    assert sorted(set(index["weight_map"].values())) == names
    found = {}
    for name in names:
        shard = read_safetensors(directory / name)
        assert all(index["weight_map"][tensor] == name for tensor in shard)
        found |= shard
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in found.values())
    assert found.keys() == whole.keys()
    assert all(np.array_equal(found[name], whole[name]) for name in whole)


@pytest.mark.parametrize(
    ("preset", "layers", "experts", "gigabytes"), [("20b", 24, 32, 13.76), ("120b", 36, 128, 65.25)]
)
def test_presets_have_the_published_sizes(
    preset: str, layers: int, experts: int, gigabytes: float
) -> None:
    shape = PRESETS[preset]
    specs = {spec.name: spec for spec in hugging_face_tensors(shape)}
    assert sum(spec.nbytes for spec in specs.values()) / 1e9 == pytest.approx(gigabytes, abs=0.01)
    blocks = f"model.layers.{layers - 1}.mlp.experts.gate_up_proj_blocks"
    assert specs[blocks].shape == (experts, 5760, 90, 16)
    assert specs["model.layers.0.self_attn.q_proj.weight"].shape == (4096, 2880)
    assert specs["lm_head.weight"].shape == (201_088, 2880)
    config = module.hugging_face_config(shape)
    assert config["layer_types"] == ["sliding_attention", "full_attention"] * (layers // 2)
    assert config["rope_scaling"]["truncate"] is False


def test_values_have_the_distribution_their_tensor_asks_for() -> None:
    spec = TensorSpec("model.layers.3.self_attn.v_proj.weight", "BF16", (300, 2880))
    values = ops.bf16_values(np.concatenate(list(module._random_chunks(spec, 1))))
    assert values.size == 300 * 2880
    assert np.std(values) == pytest.approx(2880**-0.5, rel=0.01)
    assert abs(np.mean(values)) < 6 * 2880**-0.5 / values.size**0.5
    assert np.abs(values).max() > 4 * 2880**-0.5  # a normal tail, not a uniform one
    neighbours = np.corrcoef(values[:-1], values[1:])[0, 1]
    assert abs(neighbours) < 6 / values.size**0.5


def test_scales_are_small_powers_of_two_and_never_nan() -> None:
    for name in ("gate_up", "down"):
        spec = TensorSpec(f"model.layers.0.mlp.experts.{name}_proj_scales", "U8", (2, 99, 90))
        scales = np.concatenate(list(module._random_chunks(spec, 1)))
        assert set(np.unique(scales)) == set(range(scales.min(), scales.min() + 4))
        assert np.all((mxfp4.decode_scales(scales) >= 2.0**-13) & (scales < 127))


def test_progress_counts_every_byte_once(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    synthesize(
        tmp_path / "x", preset="tiny", progress=lambda done, total: calls.append((done, total))
    )
    total = sum(spec.nbytes for spec in hugging_face_tensors(PRESETS["tiny"]))
    done = [d for d, _ in calls]
    assert done == sorted(done)
    assert done[-1] == total
    assert {t for _, t in calls} == {total}


def test_an_interrupted_run_is_recognisable_and_can_be_repeated(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize(tmp_path, preset="tiny", progress=stop)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {INCOMPLETE, "model.safetensors.partial"}
    assert "tiny" in (tmp_path / INCOMPLETE).read_text()

    synthesize(tmp_path, preset="tiny")
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


def test_too_little_space_is_an_error_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    with pytest.raises(InvalidArgument, match=r"expected 13\.78 GB free.*found 1\.00 GB"):
        synthesize(tmp_path / "new" / "deep", preset="20b")
    assert not (tmp_path / "new").exists()


def test_a_directory_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InvalidArgument, match=r"notes\.txt"):
        synthesize(tmp_path, preset="tiny")
    with pytest.raises(InvalidArgument, match="expected a directory"):
        synthesize(tmp_path / "notes.txt", preset="tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(("preset", "seed"), [("7b", 0), ("tiny", -1)])
def test_unknown_presets_and_negative_seeds_are_refused(
    tmp_path: Path, preset: str, seed: int
) -> None:
    with pytest.raises(InvalidArgument, match=r"\[synthesize\] expected"):
        synthesize(tmp_path / "x", preset=preset, seed=seed)


def test_a_failing_disk_is_a_checkpoint_error_that_says_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> int:
        raise OSError(28, "No space left on device", "shard")

    monkeypatch.setattr(module, "write_safetensors", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*INCOMPLETE"):
        synthesize(tmp_path, preset="tiny")
    assert (tmp_path / INCOMPLETE).exists()


@pytest.mark.parametrize("slack", range(8))
def test_writer_places_data_at_any_alignment(tmp_path: Path, slack: int) -> None:
    path = tmp_path / "x.safetensors"
    data = {"a": b"\x01\x02\x03", "b": bytes(range(8)), "empty": b""}
    specs = [
        TensorSpec("a", "U8", (3,)),
        TensorSpec("empty", "U8", (0, 5)),
        TensorSpec("b", "BF16", (2, 2)),
    ]
    size = write_safetensors(path, specs, data=lambda spec: [data[spec.name]], slack=slack)
    assert path.stat().st_size == size
    raw = path.read_bytes()
    begin = 8 + int.from_bytes(raw[:8], "little")
    assert begin % 8 == slack
    assert raw[begin:] == data["a"] + data["b"]
    assert read_safetensors(path)["b"].tobytes() == data["b"]


def test_writer_refuses_wrong_lengths_and_repeated_names(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    spec = TensorSpec("a", "U8", (3,))
    for wrong in (b"ab", b"abcd"):
        with pytest.raises(InvalidArgument, match="expected 3 bytes"):
            write_safetensors(path, [spec], data=lambda _, wrong=wrong: [wrong])
        assert not path.exists()
    with pytest.raises(InvalidArgument, match="given twice"):
        write_safetensors(path, [spec, spec], data=lambda _: [b"abc"])


def test_values_are_made_in_little_memory() -> None:
    tracemalloc.start()
    try:
        for dtype, suffix in (("BF16", "weight"), ("U8", "_blocks"), ("U8", "_scales")):
            for _ in module._random_chunks(TensorSpec("x" + suffix, dtype, (64 << 20,)), 1):
                pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16e6


def test_synthesising_does_not_need_the_compiled_core(tmp_path: Path) -> None:
    code = (
        "import sys; from gpt_oss_native.synthesize import synthesize\n"
        "synthesize(sys.argv[1], preset='tiny')\n"
        "assert 'gpt_oss_native._core' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "x")], check=True)
