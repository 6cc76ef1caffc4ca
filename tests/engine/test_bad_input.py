"""What a user or a file may do wrong, through Model.load and Session: a clear error each time, and
the model and its other sessions go on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpt_oss_native as gon
import numpy as np
import pytest
from gpt_oss_native import _core
from gpt_oss_native.errors import CheckpointError, DeviceError, InvalidArgument
from reference.checkpoints import write_hugging_face, write_original
from reference.engine_support import (
    checkpoint,
    directory,
    fresh_logits,
    last_logits,
    random_tokens,
    shared_model,
)

VOCAB = 331


def load(path: Path, **options: Any) -> gon.Model:
    return gon.Model.load(path, **({"device": "cpu", "num_threads": 1} | options))


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A checkpoint that the test may damage."""
    return Path(shutil.copytree(directory(), tmp_path / "checkpoint"))


def change_header(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Applies `change` to a safetensors header; the data stays."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])


def assert_still_works(model: gon.Model) -> None:
    assert np.array_equal(last_logits(model, [1, 2, 3]), last_logits(shared_model(), [1, 2, 3]))


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused(share: float, copied: Path) -> None:
    file = copied / "model.safetensors"
    os.truncate(file, int(share * file.stat().st_size))
    with pytest.raises(CheckpointError, match=r"\[load_checkpoint\]"):
        load(copied)


def test_overlapping_tensors_are_refused(copied: Path) -> None:
    def overlap(header: dict[str, Any]) -> None:
        first = header["model.layers.0.self_attn.k_proj.weight"]
        header["model.layers.0.self_attn.v_proj.weight"]["data_offsets"] = first["data_offsets"]

    change_header(copied / "model.safetensors", overlap)
    with pytest.raises(CheckpointError, match=r"\[load_checkpoint\]"):
        load(copied)


def rename(header: dict[str, Any]) -> None:
    header["model.norm.wait"] = header.pop("model.norm.weight")


def retype(header: dict[str, Any]) -> None:
    header["model.norm.weight"]["dtype"] = "F16"


def reshape(header: dict[str, Any]) -> None:
    weight = header["model.layers.1.self_attn.o_proj.weight"]
    weight["shape"] = weight["shape"][::-1]


@pytest.mark.parametrize(
    ("change", "word"),
    [(rename, "model.norm.weight"), (retype, "bf16"), (reshape, "o_proj.weight")],
)
def test_a_missing_tensor_a_wrong_dtype_and_a_wrong_shape_are_named(
    change: Callable[[dict[str, Any]], None], word: str, copied: Path
) -> None:
    change_header(copied / "model.safetensors", change)
    with pytest.raises(CheckpointError, match=word):
        load(copied)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_hugging_face(checkpoint(), tmp_path, shards=3)
    load(tmp_path).close()
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00001-of-00002"):
        load(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 96},
        {"num_hidden_layers": 5},
        {"num_local_experts": 9},
        {"vocab_size": 332},
        {"num_key_value_heads": 1},
        {"intermediate_size": 96},
        {"head_dim": 128},
    ],
    ids=str,
)
def test_a_config_that_disagrees_with_the_tensors_is_refused(
    changes: dict[str, int], copied: Path
) -> None:
    path = copied / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError, match=r"\[load_\w+\]"):
        load(copied)


def put_scale(directory: Path, name: str, index: int, value: int) -> None:
    file = directory / "model.safetensors"
    data = bytearray(file.read_bytes())
    end = 8 + int.from_bytes(data[:8], "little")
    begin, last = json.loads(data[8:end])[name]["data_offsets"]
    data[end + (begin + index if index >= 0 else last + index)] = value
    file.write_bytes(data)


@pytest.mark.parametrize("index", [0, 1000, -1])
@pytest.mark.parametrize("matrix", ["gate_up", "down"])
def test_a_scale_that_is_not_a_number_is_found_at_load(
    matrix: str, index: int, copied: Path
) -> None:
    put_scale(copied, f"model.layers.3.mlp.experts.{matrix}_proj_scales", index, 255)
    with pytest.raises(CheckpointError, match=f"layer 3 {matrix}.*NaN"):
        load(copied)
    # Unchecked it comes out as NaN logits where the expert is used, never as a plausible number,
    # and sampling refuses those. Every expert of a short text is used by some token.
    for options in ({}, {"dense": "int8"}, {"precision": "float32"}):
        for isa in _core.available_isas():
            model = load(copied, check_scales=False, isa=isa, **options)
            logits = fresh_logits(model, list(range(60)))
            assert np.isnan(logits[~np.isfinite(logits).all(axis=1)]).all()
            assert np.isnan(logits).any()
            with pytest.raises(gon.GptOssError, match="NaN"):
                list(model.session().generate(list(range(60)), max_new_tokens=80))


def test_a_file_that_shrinks_is_noticed_at_the_next_prompt(copied: Path) -> None:
    model = load(copied)
    session = model.session()
    session.forward([1, 2, 3])
    file = copied / "model.safetensors"
    whole = file.read_bytes()
    os.truncate(file, len(whole) - 1)  # the last page stays mapped: no signal yet
    for call in (
        lambda: session.forward([4, 5]),
        lambda: next(session.generate([4, 5])),
        lambda: session.score([4, 5]),
        lambda: model.forward_batch([(session, [4, 5])]),
        lambda: model.session(),
    ):
        with pytest.raises(CheckpointError, match="copy=True"):
            call()
    assert session.tokens == [1, 2, 3]
    file.write_bytes(whole)  # in place: the mapping sees it
    assert np.array_equal(session.forward([4, 5]), last_logits(shared_model(), [1, 2, 3, 4, 5]))


def test_a_copied_checkpoint_does_not_need_its_files(copied: Path) -> None:
    model = load(copied, copy=True)
    (copied / "model.safetensors").write_bytes(b"")
    shutil.rmtree(copied)
    assert_still_works(model)
    assert model.memory()["mapped"] > 0 or model.memory()["weights"] > 0


def test_a_mapped_checkpoint_outlives_its_name(copied: Path) -> None:
    model = load(copied)
    shutil.rmtree(copied)  # the file itself stays while it is mapped
    assert_still_works(model)


def test_files_can_be_locked_in_memory_and_a_limit_is_told() -> None:
    assert_still_works(load(directory(), lock=True))
    script = """
        import resource
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (4096, 4096))
        try:
            gon.Model.load(path, device="cpu", lock=True)
        except gon.OutOfMemory as error:
            print("told:", error)
        except Exception as error:
            print("wrong:", repr(error))
        else:
            print("locked")  # a process with CAP_IPC_LOCK has no limit
        print(len(gon.Model.load(path, device="cpu").session().forward([1])))
    """
    told, size = in_process(script).splitlines()
    assert told == "locked" or (told.startswith("told: [load_checkpoint]") and "4096" in told)
    assert size == "331"


@pytest.mark.parametrize("path", ["nothing/here", ".", "/dev/null"])
def test_what_is_no_checkpoint_is_refused(path: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((CheckpointError, InvalidArgument)):
        gon.Model.load(path, device="cpu")


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"device": "tpu"},
        {"device": None},
        {"precision": "float16"},
        {"dense": "int4"},
        {"isa": "avx1024"},
        {"num_threads": 0},
        {"num_threads": -1},
        {"num_threads": 100_000},
        {"num_threads": 1.5},
        {"num_threads": True},
        {"precision": "float32", "dense": "int8"},
    ],
    ids=str,
)
def test_an_unknown_option_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        load(directory(), **options)
    name, value = list(options.items())[-1]
    assert str(caught.value).startswith("[")
    assert name.split("_")[-1] in str(caught.value) or str(value) in str(caught.value)


@pytest.mark.skipif(not _core.cuda_status(), reason="this machine has a CUDA device")
def test_cuda_where_there_is_none_is_a_device_error() -> None:
    with pytest.raises(DeviceError, match="CUDA"):
        load(directory(), device="cuda")
    assert load(directory(), device="auto").device == "cpu"


@pytest.mark.parametrize("max_tokens", [0, -1, 1 << 40])
def test_a_session_of_impossible_size_is_refused(max_tokens: int) -> None:
    with pytest.raises(InvalidArgument, match="max_tokens"):
        shared_model().session(max_tokens=max_tokens)


# --- tokens ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tokens",
    [
        [VOCAB],
        [1, 2, -1],
        [1 << 31],
        [1 << 63],
        [1 << 70],
        [True, False],
        [1.0],
        [None],
        ["a"],
        "text",
        b"bytes",
        5,
        None,
        [[1, 2]],
        {1: 2},
        {1, 2},
        np.zeros((2, 2), np.int64),
        np.zeros(3, np.float32),
        np.zeros(3, bool),
        np.array([1, VOCAB]),
        np.array([2**63], np.uint64),
    ],
    ids=repr,
)
def test_what_is_no_token_is_refused_and_nothing_changes(tokens: Any) -> None:
    model = shared_model()
    session, other = model.session(), model.session()
    session.forward([1, 2])
    for call in (
        lambda: session.forward(tokens),
        lambda: session.forward(tokens, logits="all"),
        lambda: session.generate(tokens),
        lambda: session.score(tokens),
        lambda: model.forward_batch([(other, [1]), (session, tokens)]),
    ):
        with pytest.raises(InvalidArgument):
            call()
    assert session.tokens == [1, 2]
    assert other.tokens == []
    assert np.array_equal(session.forward([3]), last_logits(model, [1, 2, 3]))


@pytest.mark.parametrize("wrong", [None, "a", 1.0, 1 << 70, [1]], ids=repr)
def test_the_first_element_that_is_no_token_is_named(wrong: Any) -> None:
    with pytest.raises(InvalidArgument) as caught:
        shared_model().session().forward([1, 2, wrong, 3])
    assert str(caught.value).startswith("[forward] tokens[2]: ")
    assert str(caught.value).endswith(f"got {wrong!r}")


@pytest.mark.parametrize(
    "tokens",
    [
        (1, 2, 3),
        range(1, 4),
        np.array([1, 2, 3], np.int8),
        np.array([1, 2, 3], np.uint32),
        np.array([1, 0, 2, 0, 3], np.int64)[::2],
        np.array([1, 2, 3], ">i4"),
    ],
    ids=repr,
)
def test_any_sequence_of_integers_is_taken(tokens: Any) -> None:
    assert np.array_equal(
        shared_model().session().forward(tokens), last_logits(shared_model(), [1, 2, 3])
    )


def test_nothing_to_forward_a_full_context_and_unknown_logits_are_told() -> None:
    model = shared_model()
    session = model.session(max_tokens=5)
    for empty in ([], (), np.array([], np.int64), np.array([])):
        with pytest.raises(InvalidArgument, match="token"):
            session.forward(empty)
        with pytest.raises(InvalidArgument, match="token"):
            session.score([1])
    with pytest.raises(InvalidArgument, match="max_tokens"):
        session.forward([1] * 6)
    session.forward([1] * 5)
    with pytest.raises(InvalidArgument, match="max_tokens"):
        session.forward([1])
    session.rewind(3)
    with pytest.raises(InvalidArgument, match="logits"):
        session.forward([1], logits="some")  # type: ignore[call-overload]
    assert session.tokens == [1] * 3
    assert np.array_equal(session.forward([2]), last_logits(model, [1, 1, 1, 2]))


def test_forced_experts_of_another_shape_are_refused() -> None:
    model = shared_model()
    session = model.session()
    good = np.zeros((4, 2, 4), np.int32) + np.arange(4, dtype=np.int32)
    for experts in (
        good[:3],
        good[:, :1],
        good[..., :3],
        good.astype(np.int64),
        good.astype(np.float32),
        good[0],
        good + 8,
        good - 1,
    ):
        with pytest.raises(InvalidArgument):
            session._core.forward_forced([1, 2], experts)
    assert session.tokens == []
    assert session._core.forward_forced([1, 2], good).shape == (2, VOCAB)


# --- processes: environment and memory ------------------------------------------------------------


def in_process(script: str, *, path: Path | None = None, **environment: str) -> str:
    """What a Python process of its own prints; `gon` is imported and `path` names a checkpoint."""
    head = f"import gpt_oss_native as gon\npath = {str(path or directory())!r}\n"
    source = Path(gon.__file__).parents[1]
    result = subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(script)],
        env=os.environ | {"PYTHONPATH": str(source)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512", "amx"])
def test_the_environment_chooses_the_isa(isa: str) -> None:
    script = """
        try:
            model = gon.Model.load(path, device="cpu", num_threads=1)
        except gon.DeviceError as error:
            print(error)
        else:
            print(model.session().forward([1, 2, 3]).tobytes().hex())
    """
    found = in_process(script, GPT_OSS_NATIVE_ISA=isa).strip()
    if isa in _core.available_isas():
        expected = last_logits(shared_model(isa=isa), [1, 2, 3])
        assert found == expected.tobytes().hex()
    else:
        assert f"got {isa}" in found


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("GPT_OSS_NATIVE_ISA", "sse9"),
        ("GPT_OSS_NATIVE_THREADS", "0"),
        ("GPT_OSS_NATIVE_THREADS", "-3"),
        ("GPT_OSS_NATIVE_THREADS", "many"),
        ("GPT_OSS_NATIVE_THREADS", "2 or 3"),
        ("GPT_OSS_NATIVE_THREADS", "99999999999999999999"),
    ],
)
def test_a_bad_environment_variable_is_named(variable: str, value: str) -> None:
    script = """
        try:
            gon.Model.load(path, device="cpu")
        except gon.InvalidArgument as error:
            print(error)
    """
    found = in_process(script, **{variable: value})
    assert variable in found
    assert value in found


LIMIT = """
    import resource
    import numpy as np

    def limit(more):
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + more, resource.RLIM_INFINITY))

    model = gon.Model.load(path, device="cpu", num_threads=1)
    rng = np.random.default_rng(5)
    tokens = rng.integers(0, 331, 20_000).tolist()
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc/self/statm")
def test_logits_larger_than_memory_are_told_with_their_size() -> None:
    script = (
        LIMIT
        + """
    session, other = model.session(), model.session()
    expected = other.forward(tokens[:20])
    limit(16 << 20)
    try:
        session.forward(5 * tokens, logits="all")
    except gon.OutOfMemory as error:
        print(error)
    assert session.tokens == []
    assert np.array_equal(session.forward(tokens[:20]), expected)
    assert other.forward([1]).shape == (331,)
    """
    )
    found = in_process(script)
    assert str(100_000 * 331 * 4) in found
    assert found.startswith("[forward]")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc/self/statm")
def test_pages_that_cannot_be_had_leave_the_session_usable() -> None:
    script = (
        LIMIT
        + """
    session, other = model.session(), model.session()
    other.forward(tokens[:1100])  # the workspace of a whole chunk is there
    expected = other.forward([7])
    other.close()
    session.forward(tokens[:10])
    limit(3 << 20)
    for _ in range(3):
        try:
            session.forward(tokens[10:])
        except gon.OutOfMemory as error:
            print(str(error).split("]")[0])
        assert session.tokens == tokens[:10]
        assert session.cached == 10
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    session.forward(tokens[10:1100])
    assert np.array_equal(session.forward([7]), expected)
    """
    )
    found = in_process(script).splitlines()
    assert len(found) == 3
    assert all(line.startswith("[") for line in found)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc/self/statm")
def test_weights_that_do_not_fit_are_told(tmp_path: Path) -> None:
    script = (
        LIMIT
        + """
    limit(1 << 18)
    for options in ({"copy": True}, {"dense": "int8"}):
        try:
            gon.Model.load(path, device="cpu", num_threads=1, **options)
        except (gon.OutOfMemory, MemoryError) as error:
            print("out of memory")
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(len(model.session().forward([1])))
    """
    )
    assert in_process(script).split()[-1] == "331"


# --- nothing is lost ------------------------------------------------------------------------------


def test_after_every_error_the_model_and_its_other_sessions_work(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    write_original(checkpoint(), tmp_path)
    model = load(tmp_path)
    text = random_tokens(rng, 100)
    witness = model.session()
    witness.forward(text[:50])
    victim = model.session(max_tokens=60)
    for call in (
        lambda: victim.forward([VOCAB]),
        lambda: victim.forward([1] * 61),
        lambda: victim.forward([]),
        lambda: victim.rewind(1),
        lambda: victim.score([1]),
        lambda: victim.generate([]),
        lambda: victim.save(tmp_path / "no" / "folder"),
        lambda: model.restore(tmp_path / "config.json"),
        lambda: model.session(max_tokens=-1),
        lambda: next(victim.generate([1], mask=lambda: np.zeros(VOCAB, bool))),
        lambda: victim.forward([1]) if not victim.close() else None,
    ):
        with pytest.raises(gon.GptOssError, match=r"^\["):
            call()
        with witness.fork() as fork:
            expected = last_logits(shared_model(), text[:50] + text[90:])
            assert np.array_equal(fork.forward(text[90:]), expected)
    assert np.array_equal(witness.forward(text[50:]), last_logits(shared_model(), text))
