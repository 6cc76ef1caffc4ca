"""Finding the vocabulary without a network, and encodings over other vocabularies."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import tiktoken
from gpt_oss_native import CheckpointError, InvalidArgument, harmony
from reference import harmony_support as support
from reference import vocabulary

CACHE_KEY = hashlib.sha1(
    b"https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken"
).hexdigest()
VARIABLES = [
    "TIKTOKEN_ENCODINGS_BASE", "TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR", "TIKTOKEN_RS_CACHE_DIR",
]  # fmt: skip


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No variable set, empty caches; the folder is the hub cache."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "temporary"))
    return tmp_path / "hub"


def write_tokenizer(folder: Path) -> Path:
    """A checkpoint folder with the small tokenizer."""
    folder.mkdir(parents=True)
    data = vocabulary.tokenizer_dict(
        vocabulary.small_ranks(),
        vocabulary.SMALL_SPECIAL,
        merges=list(vocabulary.small_merges()),
    )
    (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    return folder


def test_an_absent_vocabulary_is_an_error_that_names_the_ways(bare_machine: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        harmony.load_harmony_encoding("HarmonyGptOss")
    for way in ("directory=", "hub cache", *VARIABLES[:2], "model.harmony"):
        assert way in str(caught.value)


def test_a_damaged_vocabulary_file_is_named(
    bare_machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_ENCODINGS_BASE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"o200k_base\.tiktoken does not exist"):
        harmony.load_harmony_encoding()
    (tmp_path / "o200k_base.tiktoken").write_text("AA== 0\n")
    with pytest.raises(CheckpointError, match="sha256 differs"):
        harmony.load_harmony_encoding()


def test_a_checkpoint_directory_gives_its_own_vocabulary(
    bare_machine: Path, tmp_path: Path
) -> None:
    folder = write_tokenizer(tmp_path / "checkpoint")
    encoding = harmony.load_harmony_encoding("HarmonyGptOss", directory=folder)
    message = harmony.Message.from_role_and_content(harmony.Role.USER, "The fox's question")
    assert encoding.render(message) == support.small_encoding().render(message)
    assert harmony.load_harmony_encoding("HarmonyGptOss", directory=str(folder)) is encoding


def test_a_checkpoint_in_the_hub_cache_is_found(bare_machine: Path) -> None:
    write_tokenizer(bare_machine / "models--openai--gpt-oss-20b" / "snapshots" / "abc")
    assert harmony.load_harmony_encoding().encode_text("fox")


def test_a_broken_checkpoint_in_the_hub_cache_is_named(bare_machine: Path) -> None:
    folder = bare_machine / "models--openai--gpt-oss-120b" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"model\.harmony") as caught:
        harmony.load_harmony_encoding()
    assert str(folder) in str(caught.value)


def test_the_published_file_is_found_in_either_cache(
    o200k: Path, bare_machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_ENCODINGS_BASE", str(o200k.parent))
    from_base = harmony.load_harmony_encoding("HarmonyGptOss")
    assert from_base.encode_text("hello world") == [24912, 2375]
    monkeypatch.delenv("TIKTOKEN_ENCODINGS_BASE")
    (tmp_path / "cache").mkdir()
    shutil.copy(o200k, tmp_path / "cache" / CACHE_KEY)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    from_cache = harmony.load_harmony_encoding(harmony.HarmonyEncodingName.HARMONY_GPT_OSS)
    assert from_cache.special_ids == from_base.special_ids


def test_another_name_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="HarmonyGptOss"):
        harmony.load_harmony_encoding("HarmonyOther")


def test_a_vocabulary_without_harmony_is_refused() -> None:
    plain = tiktoken.Encoding(
        "plain", pat_str=".", mergeable_ranks=vocabulary.byte_ranks(), special_tokens={}
    )
    with pytest.raises(InvalidArgument, match="special tokens of harmony"):
        harmony.HarmonyEncoding(plain)
    with pytest.raises(InvalidArgument, match=r"expected a tiktoken\.Encoding"):
        harmony.HarmonyEncoding("HarmonyGptOss")  # type: ignore[arg-type]
