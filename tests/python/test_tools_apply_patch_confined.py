"""apply_patch never writes outside its root, and undoes what it cannot finish."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest
from gpt_oss_native.tools import ApplyPatchTool, PatchError
from gpt_oss_native.tools import confined as confined_module
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.patch_support import patch, snapshot


@pytest.mark.parametrize("failing", ["link", "rename", "open", "interrupt"])
def test_a_write_that_fails_at_any_step_is_undone(
    root: Path, tool: ApplyPatchTool, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    (root / "a").write_text("a\n")
    (root / "b").write_text("b\n")
    (root / "c").write_text("c\n")
    text = patch(
        "*** Update File: a",
        "-a",
        "+A",
        "*** Delete File: b",
        "*** Add File: n/e/w",
        "+w",
        "*** Update File: c",
        "*** Move to: m/c",
        "-c",
        "+C",
    )
    before = snapshot(root)
    name = "rename" if failing == "interrupt" else failing
    real = getattr(os, name)
    for step in range(100):
        calls = 0

        def fails(*arguments: object, step: int = step, **options: object) -> object:
            nonlocal calls
            calls += 1
            if calls == step + 1 and (failing != "open" or options.get("dir_fd") is not None):
                raise KeyboardInterrupt if failing == "interrupt" else OSError(28, "no space left")
            return real(*arguments, **options)

        monkeypatch.setattr(confined_module.os, name, fails)
        try:
            tool.apply(text)
        except (PatchError, KeyboardInterrupt):
            assert calls > step
            monkeypatch.setattr(confined_module.os, name, real)
            assert snapshot(root) == before
        else:
            break
    assert step > 1
    monkeypatch.setattr(confined_module.os, name, real)
    assert {k for k, (_, content) in snapshot(root).items() if content} == {"a", "m/c", "n/e/w"}


def test_a_file_changed_meanwhile_is_left_alone(
    root: Path, tool: ApplyPatchTool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "a").write_text("a\n")
    real = tool._root.commit

    def commit(*arguments: object) -> None:
        (root / "a").write_text("changed by someone else\n")
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(tool._root, "commit", commit)
    with pytest.raises(PatchError, match="changed while"):
        tool.apply(patch("*** Update File: a", "-a", "+A"))
    assert snapshot(root) == {"a": ((root / "a").stat().st_mode, b"changed by someone else\n")}


OUTSIDE = [
    "../outside/secret",
    "/etc/passwd",
    "~/x",
    "a/../../outside/secret",
    "link/secret",
    "link/new",
    "file_link",
    "dangling",
    "dir/up/outside/secret",
    ".git/hooks/pre-commit",
    "sub/.GIT/config",
    "a\\b",
    "a\x00b",
    "",
    ".",
    "x/",
    "n" * 300,
]


@pytest.mark.parametrize("path", OUTSIDE)
def test_no_path_leads_outside(tmp_path: Path, root: Path, tool: ApplyPatchTool, path: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret\n")
    (root / "inside").write_text("inside\n")
    (root / "dir").mkdir()
    (root / ".git" / "hooks").mkdir(parents=True)
    (root / "link").symlink_to(outside)
    (root / "file_link").symlink_to(outside / "secret")
    (root / "dangling").symlink_to(outside / "not_there")
    (root / "dir" / "up").symlink_to("../..")
    before = snapshot(tmp_path)
    for lines in (
        [f"*** Add File: {path}", "+x"],
        [f"*** Update File: {path}", "-secret", "+x"],
        [f"*** Delete File: {path}"],
        ["*** Update File: inside", f"*** Move to: {path}", "-inside", "+x"],
        [f"*** Update File: {path}", "*** Move to: stolen"],
    ):
        with pytest.raises(PatchError) as caught:
            tool.apply(patch(*lines))
        assert "secret'" not in str(caught.value).replace(repr(path), "")
        assert snapshot(tmp_path) == before


def test_a_link_put_in_place_after_the_check_leads_nowhere(
    tmp_path: Path, root: Path, tool: ApplyPatchTool, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_text("f\n")
    (root / "d").mkdir()
    (root / "d" / "f").write_text("f\n")
    real = tool._root.commit

    def swapped(*arguments: object) -> None:
        (root / "d").rename(root / "moved")
        (root / "d").symlink_to(outside)
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(tool._root, "commit", swapped)
    with pytest.raises(PatchError, match="symbolic link"):
        tool.apply(patch("*** Update File: d/f", "-f", "+F", "*** Add File: d/n", "+n"))
    assert snapshot(outside) == {"f": ((outside / "f").stat().st_mode, b"f\n")}


def test_a_hard_link_is_replaced_and_not_written_through(
    tmp_path: Path, root: Path, tool: ApplyPatchTool
) -> None:
    (tmp_path / "elsewhere").write_text("a\n")
    os.link(tmp_path / "elsewhere", root / "f")
    tool.apply(patch("*** Update File: f", "-a", "+b"))
    assert (root / "f").read_text() == "b\n"
    assert (tmp_path / "elsewhere").read_text() == "a\n"


def test_a_fifo_is_refused_at_once(root: Path, tool: ApplyPatchTool) -> None:
    os.mkfifo(root / "f")
    with pytest.raises(PatchError, match="regular file"):
        tool.apply(patch("*** Update File: f", "-a", "+b"))


PIECES = st.sampled_from(
    [
        "*** Begin Patch",
        "*** End Patch",
        "*** Add File: ",
        "*** Delete File: ",
        "*** Update File: ",
        "*** Move to: ",
        "*** End of File",
        "@@",
        "@@ a",
        " a",
        "-a",
        "+b",
        "",
        "\n",
        *OUTSIDE,
        "in",
        "sub/in",
    ]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(PIECES, PIECES | st.text(max_size=5)), max_size=12))
def test_hostile_patches_never_write_outside_and_raise_only_patch_errors(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[str, str]]
) -> None:
    base = tmp_path_factory.getbasetemp() / "hostile"
    outside, inside = base / "outside", base / "inside"
    if not base.exists():
        outside.mkdir(parents=True)
        inside.mkdir()
        (outside / "secret").write_text("a\n")
    if not (inside / "link").is_symlink():
        (inside / "link").symlink_to(outside)
        (inside / "file_link").symlink_to(outside / "secret")
    (inside / "in").write_text("a\n")
    before = snapshot(outside)
    with ApplyPatchTool(inside) as tool, suppress(PatchError):
        tool.apply(patch(*(first + second for first, second in pieces)))
    assert snapshot(outside) == before
    assert sorted(os.listdir(base)) == ["inside", "outside"]
    assert not [name for name in os.listdir(inside) if name.startswith(".patch-")]
