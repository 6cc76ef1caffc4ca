"""Opening a checkpoint: every layout that is read, and every damage that is refused in words."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpt_oss_native.checkpoint import expected_tensors, open_checkpoint
from gpt_oss_native.checkpoint.config import parse_config
from gpt_oss_native.checkpoint.report import describe, report_on
from gpt_oss_native.checkpoint.safetensors_reader import DTYPE_BITS, read_header
from gpt_oss_native.checkpoint.safetensors_writer import (
    TensorSpec,
    safetensors_header,
    write_safetensors,
)
from gpt_oss_native.errors import CheckpointError, InvalidArgument
from gpt_oss_native.synthesize import PRESETS, hugging_face_config, hugging_face_tensors
from reference import checkpoints

Written = Callable[..., Path]
LAYER_3 = "model.layers.3.self_attn.k_proj.weight"


@pytest.fixture(scope="module")
def held() -> checkpoints.Checkpoint:
    return checkpoints.random_checkpoint(5, checkpoints.SHAPES["five_layers_odd_groups"])


@pytest.fixture
def copied(held: checkpoints.Checkpoint, checkpoint_directory: Written, tmp_path: Path) -> Written:
    """``copied(layout=..., shards=...)``: the checkpoint in a directory that the test may
    damage."""

    def copy(**options: Any) -> Path:
        return Path(shutil.copytree(checkpoint_directory(held, **options), tmp_path / "copy"))

    return copy


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert str(caught.value).startswith("[load_checkpoint] ")
    return str(caught.value)


def rewrite_header(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Applies `change` to the header of the safetensors file at `path`; the data stays."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def empty_tensors(directory: Path, specs: list[TensorSpec]) -> None:
    """Writes model.safetensors whose data is a hole in the file: any size costs nothing."""
    header = safetensors_header(specs)
    with open(directory / "model.safetensors", "wb") as file:
        file.write(header)
        file.truncate(len(header) + sum(spec.nbytes for spec in specs))


# --- what is read --------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"shards": 3}, {"slack": 3}, {"layout": "original"}])
def test_records_point_at_the_tensors_bytes(
    held: checkpoints.Checkpoint, checkpoint_directory: Written, options: dict[str, Any]
) -> None:
    found = open_checkpoint(checkpoint_directory(held, **options))
    original = options.get("layout") == "original"
    tensors = checkpoints.original_tensors(held) if original else held.tensors
    assert found.layout == ("original" if original else "huggingface")
    assert found.tensors.keys() == tensors.keys()
    for name, array in tensors.items():
        record = found.tensors[name]
        assert (record.name, record.shape) == (name, array.shape)
        assert record.dtype == ("BF16" if array.dtype == np.uint16 else "U8")
        with open(found.files[record.file], "rb") as file:
            file.seek(record.begin)
            assert file.read(record.end - record.begin) == array.tobytes()
    assert found.file_sizes == tuple(path.stat().st_size for path in found.files)


@pytest.mark.parametrize("name", checkpoints.SHAPES)
def test_both_layouts_of_one_model_agree_in_config_and_size(
    name: str, checkpoint_directory: Written
) -> None:
    held = checkpoints.random_checkpoint(6, checkpoints.SHAPES[name])
    ours = open_checkpoint(checkpoint_directory(held))
    flat = open_checkpoint(checkpoint_directory(held, layout="original"))
    ours_report, flat_report = describe(ours), describe(flat)
    for field in ("parameters", "active_parameters", "token_bytes_bf16", "token_bytes_int8"):
        assert getattr(ours_report, field) == getattr(flat_report, field)
    assert ours_report.parameters == sum(
        array.size * (2 if key.endswith("_blocks") else 1)
        for key, array in held.tensors.items()
        if not key.endswith("_scales")
    )


@pytest.mark.parametrize("options", [{}, {"shards": 3}, {"layout": "original"}])
def test_files_of_a_checkpoint_stand_for_its_directory(copied: Written, options: Any) -> None:
    directory = copied(**options)
    expected = open_checkpoint(directory)
    for path in directory.iterdir():
        found = open_checkpoint(path)
        assert (found.files, found.layout) == (expected.files, expected.layout)
        assert found.tensors == expected.tensors


def test_a_single_weight_file_of_any_name_is_read(copied: Written) -> None:
    directory = copied()
    (directory / "model.safetensors").rename(directory / "weights.safetensors")
    assert open_checkpoint(directory).files == (directory / "weights.safetensors",)
    assert open_checkpoint(directory / "weights.safetensors").files[0].name == "weights.safetensors"


def test_a_folder_that_only_holds_original_is_read(copied: Written, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    copied(layout="original").rename(root / "original")
    (root / "config.json").write_text("{}")
    (root / "tokenizer.json").write_text("{}")
    found = open_checkpoint(root)
    assert (found.directory, found.layout) == (root / "original", "original")
    assert found.tokenizer_path == root / "tokenizer.json"


def test_tensor_names_and_not_folder_names_decide_the_layout(
    copied: Written, tmp_path: Path
) -> None:
    moved = copied().rename(tmp_path / "original")
    assert open_checkpoint(moved).layout == "huggingface"


@pytest.mark.parametrize("first", [0, 1])
def test_shards_without_an_index_are_read(
    held: checkpoints.Checkpoint, tmp_path: Path, first: int
) -> None:
    """As in the published ``original`` folder of the 120b (from 1), and the root of the 20b (from
    0)."""
    tensors = checkpoints.original_tensors(held)
    (tmp_path / "config.json").write_text(json.dumps(checkpoints.original_config(held.shape)))
    names, total = list(tensors), 3 if first else 2
    for number in range(3):
        part = names[number::3]
        write_safetensors(
            tmp_path / f"model--{number + first:05}-of-{total:05}.safetensors",
            [
                TensorSpec(n, "BF16" if tensors[n].itemsize == 2 else "U8", tensors[n].shape)
                for n in part
            ],
            data=lambda spec: [np.ascontiguousarray(tensors[spec.name])],
        )
    found = open_checkpoint(tmp_path)
    assert (len(found.files), len(found.tensors)) == (3, len(tensors))
    for gone in found.files:
        content = gone.read_bytes()
        gone.unlink()
        words = refusal(tmp_path)
        # Counted from 0, a set without its first or last file is one counted from 1, or to less.
        if first or gone == found.files[1]:
            assert words.startswith(f"[load_checkpoint] {gone}: expected")
            assert "this one is missing; is the download complete?" in words
        else:
            assert "found no such tensor" in words
        gone.write_bytes(content)


def test_links_are_followed_as_the_hub_cache_needs(copied: Written, tmp_path: Path) -> None:
    directory, snapshot = copied(shards=2), tmp_path / "snapshot"
    snapshot.mkdir()
    for path in directory.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert len(open_checkpoint(snapshot).tensors) == len(open_checkpoint(directory).tensors)
    (directory / "model-00000-of-00001.safetensors").unlink()
    assert "a link to a file that is gone" in refusal(snapshot)


@pytest.mark.parametrize("preset", ["20b", "120b"])
def test_headers_alone_are_read(preset: str, tmp_path: Path) -> None:
    """The files are sparse and larger than memory: reading any of the data would show."""
    shape = PRESETS[preset]
    (tmp_path / "config.json").write_text(json.dumps(hugging_face_config(shape)))
    empty_tensors(tmp_path, hugging_face_tensors(shape))
    report = describe(open_checkpoint(tmp_path))
    assert report.file_bytes > {"20b": 13e9, "120b": 65e9}[preset]


@pytest.mark.parametrize(
    ("preset", "parameters", "active", "token_bytes"),
    [("20b", 20.91e9, 3.61e9, 3.71e9), ("120b", 116.83e9, 5.13e9, 5.00e9)],
)
def test_the_report_counts_as_the_model_card_does(
    preset: str, parameters: float, active: float, token_bytes: float
) -> None:
    """Parameters of arXiv 2508.10925, table 1, and the bytes of the published formats."""
    report = report_on(parse_config(hugging_face_config(PRESETS[preset])))
    assert report.parameters == pytest.approx(parameters, rel=1e-3)
    assert report.active_parameters == pytest.approx(active, rel=2e-3)
    assert report.token_bytes_bf16 == pytest.approx(token_bytes, rel=2e-3)
    assert report.token_bytes_int8 < 0.75 * report.token_bytes_bf16
    assert report.mxfp4_block_bytes == 16 * report.mxfp4_scale_bytes
    assert "billion" in str(report)


def test_expected_tensors_are_those_of_the_published_files() -> None:
    shape = PRESETS["20b"]
    config = parse_config(hugging_face_config(shape))
    expected = {
        name: (dtype, size) for name, dtype, size in expected_tensors(config, "huggingface")
    }
    assert expected == {s.name: (s.dtype, s.shape) for s in hugging_face_tensors(shape)}


def test_tensors_without_a_use_are_logged_and_ignored(
    copied: Written, caplog: pytest.LogCaptureFixture
) -> None:
    directory = copied()
    size = (directory / "model.safetensors").stat().st_size
    held_bytes = sum(record.num_bytes for record in open_checkpoint(directory).tensors.values())

    def add(header: dict[str, Any]) -> None:
        entry = {"dtype": "F32", "shape": [3], "data_offsets": [held_bytes, held_bytes + 12]}
        header["model.rotary_emb.inv_freq"] = entry

    rewrite_header(directory / "model.safetensors", add)
    with open(directory / "model.safetensors", "ab") as file:
        file.write(bytes(12))
    with caplog.at_level(logging.INFO, "gpt_oss_native"):
        report = describe(open_checkpoint(directory))
    assert (report.unused_tensors, report.unused_bytes) == (1, 12)
    assert report.file_bytes > size
    assert "1 tensors have no use here, such as 'model.rotary_emb.inv_freq'" in caplog.text
    assert "opened" in caplog.text


# --- what is refused -----------------------------------------------------------------------------


def test_a_wrong_shape_is_told_by_layer_and_name(copied: Written) -> None:
    directory = copied()

    def swap(header: dict[str, Any]) -> None:
        header[LAYER_3]["shape"].reverse()

    rewrite_header(directory / "model.safetensors", swap)
    assert refusal(directory) == (
        "[load_checkpoint] layer 3 k_proj.weight: expected [192][224] bf16, found [224][192]; "
        "is this a gpt-oss checkpoint? (model.safetensors)"
    )


def test_a_wrong_dtype_is_told(copied: Written) -> None:
    directory = copied()

    def to_half(header: dict[str, Any]) -> None:
        header[LAYER_3]["dtype"] = "F16"

    rewrite_header(directory / "model.safetensors", to_half)
    assert "expected [192][224] bf16, found [192][224] f16; is this" in refusal(directory)


@pytest.mark.parametrize("layout", ["huggingface", "original"])
def test_every_tensor_must_be_there(
    held: checkpoints.Checkpoint, copied: Written, layout: str, rng: np.random.Generator
) -> None:
    directory = copied(layout="original" if layout == "original" else "hugging_face")
    file = directory / "model.safetensors"
    whole = file.read_bytes()
    for name in rng.permutation(list(open_checkpoint(directory).tensors))[:12]:

        def rename(header: dict[str, Any], name: str = name) -> None:
            header["x"] = header.pop(name)

        rewrite_header(file, rename)
        assert "found no such tensor; is this a gpt-oss checkpoint?" in refusal(directory)
        file.write_bytes(whole)


def test_unquantised_experts_are_named_as_such(tmp_path: Path) -> None:
    shape = checkpoints.TINY
    (tmp_path / "config.json").write_text(
        json.dumps(hugging_face_config(shape) | {"quantization_config": None})
    )
    specs = [
        TensorSpec(s.name.removesuffix("_blocks"), "BF16", (8, 96, 128))
        if s.name.endswith("_blocks")
        else s
        for s in hugging_face_tensors(shape)
    ]
    empty_tensors(tmp_path, specs)
    assert "found unquantised bf16 experts; only checkpoints with MXFP4" in refusal(tmp_path)


@pytest.mark.parametrize("changed", [4, 6])
def test_config_and_tensors_must_have_the_same_layers(copied: Written, changed: int) -> None:
    directory = copied()
    change_json(directory / "config.json", num_hidden_layers=changed, layer_types=None)
    words = refusal(directory)
    if changed == 4:
        assert "config.json has 4 layers, found a tensor of layer 4" in words
    else:
        assert "layer 5 input_layernorm.weight" in words


@pytest.mark.parametrize(
    "change",
    [{"vocab_size": 519}, {"num_local_experts": 8}, {"hidden_size": 256}, {"head_dim": 32}],
)
def test_a_config_that_disagrees_with_the_tensors_is_refused(
    copied: Written, change: dict[str, int]
) -> None:
    directory = copied()
    change_json(directory / "config.json", **change)
    assert "is this a gpt-oss checkpoint?" in refusal(directory)


def test_a_file_cut_anywhere_is_refused(
    held: checkpoints.Checkpoint, copied: Written, rng: np.random.Generator
) -> None:
    directory = copied()
    file = directory / "model.safetensors"
    size = file.stat().st_size
    for cut in (size - 1, *map(int, np.sort(rng.integers(8, size, 10))[::-1]), 8, 7, 0):
        os.truncate(file, cut)
        assert "is the download complete?" in refusal(directory)


def test_a_file_that_goes_on_behind_its_tensors_is_refused(copied: Written) -> None:
    directory = copied()
    with open(directory / "model.safetensors", "ab") as file:
        file.write(b"\0")
    assert "the file goes on to" in refusal(directory)


@pytest.mark.parametrize(
    ("length", "words"),
    [
        (0, "begins with '{', found b''"),
        (1, "invalid JSON"),
        (2**63, "a header of at most 100000000 bytes"),
        (100_000_001, "a header of at most 100000000 bytes"),
        (99_999_999, "is the download complete?"),
        (-7, "is the download complete?"),
    ],
)
def test_a_header_length_that_lies_is_refused(copied: Written, length: int, words: str) -> None:
    directory = copied()
    path = directory / "model.safetensors"
    with open(path, "r+b") as file:
        file.write((length % path.stat().st_size if length < 0 else length).to_bytes(8, "little"))
    assert words in refusal(directory)


def test_overlaps_and_holes_are_refused(copied: Written) -> None:
    directory = copied()
    file = directory / "model.safetensors"
    whole = file.read_bytes()
    for by, word in ((-2, "overlaps"), (2, "leaves a hole")):

        def shift(header: dict[str, Any], by: int = by) -> None:
            begin, end = header[LAYER_3]["data_offsets"]
            header[LAYER_3]["data_offsets"] = [begin + by, end + by]

        rewrite_header(file, shift)
        assert word in refusal(directory)
        file.write_bytes(whole)


def test_a_missing_shard_is_named(copied: Written) -> None:
    directory = copied(shards=3)
    (directory / "model-00001-of-00002.safetensors").unlink()
    words = refusal(directory)
    assert "model-00001-of-00002.safetensors: model.safetensors.index.json names this" in words
    assert "is the download complete?" in words


def test_index_and_shards_must_belong_together(copied: Written) -> None:
    directory = copied(shards=3)
    index = directory / "model.safetensors.index.json"
    right = json.loads(index.read_text())["weight_map"]
    change_json(index, weight_map=right | {LAYER_3: "model-00000-of-00002.safetensors"})
    assert "do index and files belong together?" in refusal(directory)
    change_json(index, weight_map=right | {"more": "model-00000-of-00002.safetensors"})
    assert "tensor 'more' in this file, it is nowhere" in refusal(directory)
    shutil.copy(directory / right[LAYER_3], directory / "again.safetensors")
    change_json(index, weight_map=right | {LAYER_3: "again.safetensors"})
    assert "once, found it in again.safetensors too" in refusal(directory)


@pytest.mark.parametrize(
    "file", ["../x.safetensors", "/x.safetensors", "a\\x.safetensors", "x.bin", "\0.safetensors", 3]
)
def test_an_index_cannot_lead_out_of_its_folder(copied: Written, file: Any) -> None:
    directory = copied(shards=2)
    change_json(directory / "model.safetensors.index.json", weight_map={"model.norm.weight": file})
    assert "must name a .safetensors file beside it" in refusal(directory)


@pytest.mark.parametrize("weight_map", [None, {}, [], "x"])
def test_an_index_without_a_map_is_refused(copied: Written, weight_map: Any) -> None:
    directory = copied(shards=2)
    change_json(directory / "model.safetensors.index.json", weight_map=weight_map)
    assert '"weight_map" must map tensors to files' in refusal(directory)


def test_what_is_no_checkpoint_is_told(copied: Written, tmp_path: Path) -> None:
    directory = copied()
    assert "found nothing at that path" in refusal(tmp_path / "none")
    assert "expected *.safetensors files in the directory" in refusal(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    assert "index or safetensors file" in refusal(tmp_path / "notes.txt")
    (directory / "config.json").unlink()
    assert "config.json: expected a readable file, found no such file" in refusal(directory)
    (directory / "config.json").mkdir()
    assert "expected a file, found a directory" in refusal(directory)


def test_a_checkpoint_that_is_being_written_is_refused(copied: Written) -> None:
    directory = copied()
    (directory / "INCOMPLETE").touch()
    assert "expected a whole checkpoint, found one being written" in refusal(directory)


def test_a_pointer_of_git_lfs_is_named_as_such(copied: Written) -> None:
    directory = copied()
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n"
    (directory / "model.safetensors").write_text(pointer)
    assert "run `git lfs pull`" in refusal(directory)


def test_another_model_is_told_apart(copied: Written) -> None:
    directory = copied()
    change_json(directory / "config.json", model_type="llama")
    assert "found 'llama'; is this a gpt-oss checkpoint?" in refusal(directory)
    change_json(directory / "config.json", model_type="gpt_oss")
    empty_tensors(directory, [TensorSpec("h.0.attn.weight", "F16", (4, 4))])
    assert "expected tensors such as model.embed_tokens.weight" in refusal(directory)


def test_an_unreadable_file_is_told(copied: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = copied()
    opened = os.open

    def refuse_weights(path: Any, flags: int, *rest: Any) -> int:
        if str(path).endswith(".safetensors"):  # by hand: chmod does not stop root
            raise PermissionError(13, "Permission denied")
        return opened(path, flags, *rest)

    monkeypatch.setattr(os, "open", refuse_weights)
    assert "model.safetensors: expected a readable file, found: Permission" in refusal(directory)


@pytest.mark.parametrize("path", [None, 3, b"x", "", "a\0b", ["x"]])
def test_what_is_no_path_is_an_invalid_argument(path: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^\[load_checkpoint\] expected"):
        open_checkpoint(path)


def test_every_dtype_of_the_format_has_its_size(tmp_path: Path) -> None:
    for dtype, bits in DTYPE_BITS.items():
        shape = [8, 3]
        size = prod(shape) * bits // 8
        entry = {"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}
        text = json.dumps(entry).encode()
        path = tmp_path / "one.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
        records, file_size = read_header(path)
        assert records["a"].end == file_size
