"""From a model's name to its directory: the embedded model, paths, and a stand-in for the hub."""

from __future__ import annotations

import fnmatch
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from gpt_oss_native.checkpoint import hub
from gpt_oss_native.errors import CheckpointError, InvalidArgument

REPOSITORY = "openai/gpt-oss-20b"


class FakeHub(ModuleType):
    """huggingface_hub as far as it is used: records the call, returns a folder or raises."""

    def __init__(self, answer: Path | Exception) -> None:
        super().__init__("huggingface_hub")
        self.answer = answer
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        repository_error = type("RepositoryNotFoundError", (OSError,), {})
        self.errors = SimpleNamespace(
            RepositoryNotFoundError=repository_error,
            GatedRepoError=type("GatedRepoError", (repository_error,), {}),
            LocalEntryNotFoundError=type("LocalEntryNotFoundError", (OSError,), {}),
        )

    def snapshot_download(self, *args: Any, **kwargs: Any) -> str:
        self.calls.append((args, kwargs))
        if isinstance(self.answer, Exception):
            raise self.answer
        return str(self.answer)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    module = FakeHub(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module


def refusal(name: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        hub.resolve(name)
    return str(caught.value)


def test_nano_is_the_embedded_model_even_beside_a_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package"
    (package / "nano").mkdir(parents=True)
    (package / "nano" / "config.json").write_text("{}")
    (tmp_path / "nano").mkdir()
    monkeypatch.setattr(hub, "__file__", str(package / "checkpoint" / "hub.py"))
    assert hub.resolve("nano") == (package / "nano").resolve()
    assert hub.resolve("./nano") == Path("nano")
    assert hub.resolve(Path("nano")) == Path("nano")


def test_a_package_without_its_model_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "__file__", str(tmp_path / "checkpoint" / "hub.py"))
    assert "reinstall the package" in refusal("nano")


def test_what_exists_is_taken_as_it_is(tmp_path: Path, fake: FakeHub) -> None:
    (tmp_path / "openai" / "gpt-oss-20b").mkdir(parents=True)
    (tmp_path / "model.safetensors").touch()
    assert hub.resolve(REPOSITORY) == Path(REPOSITORY)
    assert hub.resolve(tmp_path) == tmp_path
    assert hub.resolve("model.safetensors") == Path("model.safetensors")
    assert not fake.calls


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert hub.resolve("~") == tmp_path


@pytest.mark.parametrize(
    "name",
    ["./x", "../x", "/none/such", "~/none/such", "a/b/c", "x/", "a\\b", "o/model.safetensors"],
)
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(name: str, fake: FakeHub) -> None:
    assert "found nothing at that path" in refusal(name)
    assert "found nothing at that path" in refusal(Path("openai/gpt-oss-20b"))
    assert not fake.calls


@pytest.mark.parametrize("name", ["gpt-oss", "org/na me", "-a/b", "org/", "öl/x"])
def test_what_is_neither_path_nor_name_is_told(name: str, fake: FakeHub) -> None:
    assert refusal(name).startswith("[resolve] ")
    assert not fake.calls


@pytest.mark.parametrize("name", [None, 3, b"nano", "", "a\0b"])
def test_what_is_no_text_is_an_invalid_argument(name: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^\[resolve\] expected a name or a path"):
        hub.resolve(name)


def test_a_repository_is_downloaded_without_its_copies(tmp_path: Path, fake: FakeHub) -> None:
    assert hub.resolve(REPOSITORY, revision="main") == tmp_path
    [(args, options)] = fake.calls
    assert args == (REPOSITORY,)
    assert options["revision"] == "main"

    def wanted(path: str) -> bool:  # as huggingface_hub filters
        allowed = any(fnmatch.fnmatch(path, p) for p in options["allow_patterns"])
        return allowed and not any(fnmatch.fnmatch(path, p) for p in options["ignore_patterns"])

    for path in (
        "config.json",
        "generation_config.json",
        "model-00000-of-00002.safetensors",
        "model.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ):
        assert wanted(path), path
    for path in (
        "original/model.safetensors",
        "original/config.json",
        "metal/model.bin",
        "pytorch_model.bin",
        "README.md",
        "images/x.png",
    ):
        assert not wanted(path), path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("GatedRepoError", "access to it is gated"),
        ("RepositoryNotFoundError", "no such repository on the hub"),
        ("LocalEntryNotFoundError", "cannot be reached and the model is not in its cache"),
    ],
)
def test_what_the_hub_answers_is_put_in_words(kind: str, words: str, fake: FakeHub) -> None:
    fake.answer = getattr(fake.errors, kind)("403 Client Error")
    assert words in refusal(REPOSITORY)


def test_any_other_failure_keeps_its_reason(fake: FakeHub) -> None:
    fake.answer = OSError(28, "No space left on device")
    assert refusal(REPOSITORY) == (
        f"[resolve] {REPOSITORY}: downloading failed: OSError: [Errno 28] No space left on device"
    )


def test_an_interrupt_is_not_swallowed(fake: FakeHub) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> str:
        raise KeyboardInterrupt

    fake.snapshot_download = interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        hub.resolve(REPOSITORY)


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # its import now fails
    assert 'pip install "gpt-oss-native[hub]"' in refusal(REPOSITORY)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The real huggingface_hub, offline, with an empty cache in the folder returned."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_offline_the_cache_is_used(offline: Path) -> None:
    assert "not in its cache" in refusal(REPOSITORY)
    folder, commit = offline / "models--openai--gpt-oss-20b", "0" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "snapshots" / commit / "config.json").write_text("{}")
    assert hub.resolve(REPOSITORY).resolve() == (folder / "snapshots" / commit).resolve()


def test_a_name_that_only_the_hub_refuses_is_told(offline: Path) -> None:
    assert "not a valid repository name" in refusal("a--b/c..d")
