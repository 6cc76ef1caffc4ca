"""apply_patch: edits are exact, whole or not at all, and never outside the root."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
from gpt_oss_native.harmony import Author, Message, Role
from gpt_oss_native.tools import ApplyPatchTool, PatchError, Tool
from gpt_oss_native.tools.patch_format import parse_patch
from reference.patch_support import patch, snapshot


def test_it_is_a_tool_of_the_functions_namespace(tool: ApplyPatchTool) -> None:
    assert isinstance(tool, Tool)
    assert tool.name == f"functions.{tool.namespace().name}"


def test_one_patch_adds_updates_moves_and_deletes(root: Path, tool: ApplyPatchTool) -> None:
    (root / "app.py").write_text('def greet():\n    print("Hi")\n\ngreet()\n')
    (root / "old.txt").write_text("gone\n")
    text = patch(
        "*** Add File: docs/notes.txt",
        "+one",
        "+",
        "+three",
        "*** Update File: app.py",
        "*** Move to: src/main.py",
        "@@ def greet():",
        '-    print("Hi")',
        '+    print("Hello")',
        "*** Delete File: old.txt",
    )
    author = Author(Role.ASSISTANT)
    result = tool.call(Message.from_author_and_content(author, text))
    assert result.splitlines()[1:] == [
        "A docs/notes.txt",
        "R app.py -> src/main.py",
        "D old.txt",
    ]
    files = {name for name, (_, content) in snapshot(root).items() if content}
    assert files == {"docs/notes.txt", "src/main.py"}
    assert (root / "docs/notes.txt").read_text() == "one\n\nthree\n"
    assert (root / "src/main.py").read_text() == 'def greet():\n    print("Hello")\n\ngreet()\n'


def test_a_patch_inside_json_is_the_same_patch(root: Path, tool: ApplyPatchTool) -> None:
    text = patch("*** Add File: a", "+1")
    message = Message.from_role_and_content(Role.ASSISTANT, json.dumps({"input": text}))
    tool.call(message)
    assert (root / "a").read_text() == "1\n"
    for wrong in ('{"input": 3}', '{"a": "x", "b": "y"}', '{"input": "'):
        with pytest.raises(ValueError, match=r"\[apply_patch\] expected"):
            tool.call(Message.from_role_and_content(Role.ASSISTANT, wrong))


def test_operations_on_one_file_see_each_other(root: Path, tool: ApplyPatchTool) -> None:
    (root / "b").write_text("b\n")
    tool.apply(
        patch(
            "*** Add File: a",
            "+1",
            "+2",
            "*** Update File: a",
            "-2",
            "+3",
            "*** Delete File: b",
            "*** Add File: b",
            "+new",
        )
    )
    assert (root / "a").read_text() == "1\n3\n"
    assert (root / "b").read_text() == "new\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a\r\nb\r\nc\r\n", "a\r\nB\r\nnew\r\nc\r\n"),
        ("a\nb\nc", "a\nB\nnew\nc"),
        ("a\nb", "a\nB\nnew"),
        ("a\r\nb", "a\r\nB\r\nnew"),
        ("\ufeffa\nb\n", "\ufeffa\nB\nnew\n"),
        ("a\nb\r\nc\n", "a\nB\r\nnew\r\nc\n"),
        ("a\nb\n\x0c\u2028x\n", "a\nB\nnew\n\x0c\u2028x\n"),
    ],
)
def test_line_ends_marks_and_the_missing_newline_are_kept(
    root: Path, tool: ApplyPatchTool, before: str, after: str
) -> None:
    (root / "f").write_bytes(before.encode())
    (root / "f").chmod(0o750)
    tool.apply(patch("*** Update File: f", "@@", " a", "-b", "+B", "+new"))
    assert (root / "f").read_bytes() == after.encode()
    assert (root / "f").stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize(
    ("context", "level"),
    [("\tone  ", None), ("\tone", "trailing"), ("one", "surrounding")],
)
def test_context_is_found_exactly_then_without_trailing_then_surrounding_whitespace(
    root: Path, tool: ApplyPatchTool, context: str, level: str | None
) -> None:
    (root / "f").write_text("\tone  \ntwo\n")
    result = tool.apply(patch("*** Update File: f", "@@", f" {context}", "-two", "+2"))
    assert (root / "f").read_text() == "\tone  \n2\n"  # the file's own context stays
    assert (level in result) if level else ("matched" not in result)


def test_an_exact_match_further_down_wins_over_a_fuzzy_one(
    root: Path, tool: ApplyPatchTool
) -> None:
    (root / "f").write_text("  x\nx\n")
    tool.apply(patch("*** Update File: f", "@@", "-x", "+y"))
    assert (root / "f").read_text() == "  x\ny\n"


def test_anchors_choose_among_equal_places(root: Path, tool: ApplyPatchTool) -> None:
    text = "class A:\n  def f():\n    pass\nclass B:\n  def f():\n    pass\n"
    (root / "f").write_text(text)
    tool.apply(patch("*** Update File: f", "@@ class B:", "@@   def f():", "-    pass", "+    go"))
    assert (root / "f").read_text() == text[: -len("pass\n")] + "go\n"
    # The first of several is taken, and said; an anchor may be repeated as context.
    result = tool.apply(patch("*** Update File: f", "@@ class A:", " class A:", "-  def f():"))
    assert "first of" not in result
    (root / "g").write_text("x\nx\n")
    result = tool.apply(patch("*** Update File: g", "@@", "-x", "+y"))
    assert (root / "g").read_text() == "y\nx\n"
    assert "first of 2 matches, line 1 (others: 2)" in result


def test_the_end_of_the_file_can_be_meant(root: Path, tool: ApplyPatchTool) -> None:
    (root / "f").write_text("x\ny\nx\n")
    tool.apply(patch("*** Update File: f", "@@", "-x", "+z", "*** End of File"))
    assert (root / "f").read_text() == "x\ny\nz\n"
    tool.apply(patch("*** Update File: f", "@@", "+end", "*** End of File"))
    assert (root / "f").read_text() == "x\ny\nz\nend\n"
    with pytest.raises(PatchError, match="at the end of the file, found them before it"):
        tool.apply(patch("*** Update File: f", "@@", "-y", "*** End of File"))


def test_what_is_beyond_doubt_is_read_leniently(root: Path, tool: ApplyPatchTool) -> None:
    (root / "f").write_text("a\n\nb\nc\n")
    text = patch("", "*** Update File: f", " a", "", "-b", "+B", "", "*** Add File: g", "+g", "")
    tool.apply("\n" + text.replace("\n", "\r\n") + "\n")
    assert (root / "f").read_text() == "a\n\nB\nc\n"
    assert (root / "g").read_text() == "g\n"
    tool.apply(patch("*** Update File: f", "@@ -3,2 +3,2 @@ def", " B", "-c", "+C"))
    assert (root / "f").read_text() == "a\n\nB\nC\n"
    tool.apply(patch("*** Update File: ./f", "@@ a", "+after a"))
    assert (root / "f").read_text() == "a\nafter a\n\nB\nC\n"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((), "the patch names none"),
        (("hello",), "line 2 of the patch: expected '\\*\\*\\* Add File"),
        (("*** Add File: n", "no plus"), "line 3 of the patch: expected '\\+'"),
        (("*** Add File: f", "+x"), "expected no file of this name"),
        (("*** Delete File: nothing",), "expected an existing file"),
        (("*** Delete File: d",), "regular file|directory"),
        (("*** Update File: f",), "expected '@@'"),
        (("*** Update File: f", "@@"), "got none"),
        (("*** Update File: f", "@@", "?x"), "got '\\?x'"),
        (("*** Update File: f", "@@", " a", "*** Oops"), "got '\\*\\*\\* Oops'"),
        (("*** Update File: f", "@@ zzz", "-a"), "expected a line 'zzz'"),
        (("*** Update File: f", "@@", "-a", "-X"), "expected 'X' at line 2, found 'b'"),
        (("*** Update File: f", "@@", "-nowhere"), "found none like it"),
        (("*** Update File: f", "@@", "-b", "@@", "-a"), "in the order of the file"),
        (("*** Update File: f", "*** Move to: d", "@@", "-a"), "regular file|directory"),
        (("*** Update File: f", "*** Move to: g", "@@", "-a"), "expected no file of this name"),
        (("*** Update File: latin", "@@", "-a"), "expected UTF-8 text"),
        (("*** Update File: large", "@@", "-a"), "at most 64 bytes"),
        (("*** Add File: f/below", "+x"), "part of the path is a file"),
        (("*** Add File: s", "+\ud800"), "surrogate"),
        (("*** Add File: x", "+x", "*** Add File: x/y", "+x"), "no file was changed"),
    ],
)
def test_what_does_not_fit_is_said_and_changes_nothing(
    root: Path, lines: tuple[str, ...], message: str
) -> None:
    (root / "f").write_text("a\nb\n")
    (root / "g").write_text("g\n")
    (root / "d").mkdir()
    (root / "latin").write_bytes(b"a\xff\n")
    (root / "large").write_bytes(b"a\n" * 40)
    before = snapshot(root)
    with ApplyPatchTool(root, max_file_bytes=64) as tool:
        with pytest.raises(PatchError, match=message):
            tool.apply(patch(*lines))
        # Neither do sound operations before it.
        with pytest.raises(PatchError):
            tool.apply(
                patch(
                    "*** Add File: new/deep/file",
                    "+x",
                    "*** Update File: g",
                    "-g",
                    "+G",
                    *(lines or ["hello"]),
                )
            )
    assert snapshot(root) == before


def test_a_closed_tool_says_so(root: Path) -> None:
    tool = ApplyPatchTool(root)
    tool.close()
    tool.close()
    with pytest.raises(PatchError, match="the tool was closed"):
        tool.apply(patch("*** Add File: a", "+x"))
    with pytest.raises(PatchError, match="expected a directory"):
        ApplyPatchTool(root / "absent")


def test_an_unfinished_patch_is_refused(tool: ApplyPatchTool) -> None:
    with pytest.raises(PatchError, match="may have been cut off"):
        tool.apply("*** Begin Patch\n*** Add File: a\n+x")
    with pytest.raises(PatchError, match="write the patch alone"):
        tool.apply("apply_patch <<EOF\n*** Begin Patch")


def random_patch(rng: random.Random, old: list[str]) -> tuple[list[str], list[str]]:
    """The lines of hunks with three lines of context, and of the file after them. Every line of
    ``old`` is different, so that a context names one place."""
    body: list[str] = []
    new: list[str] = []
    kept: list[bool] = []
    for at, line in enumerate([*old, None]):
        while rng.random() < 0.08:
            added = rng.choice(["", " ", "*** End Patch", "@@", "+", f"new {rng.random()}", "\tü"])
            body.append(f"+{added}")
            kept.append(False)
            new.append(added)
        if line is None:
            break
        removed = rng.random() < 0.1
        body.append(f"-{line}" if removed else f" {old[at]}")
        kept.append(not removed)
        if not removed:
            new.append(line)
    shown = [not all(kept[max(0, at - 3) : at + 4]) for at in range(len(body))]
    lines: list[str] = []
    for at, line in enumerate(body):
        if shown[at]:
            if at == 0 or not shown[at - 1]:
                lines.append("@@")
            lines.append(line)
    return lines, new


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_random_edits_written_as_patches_give_the_exact_file(
    root: Path, tool: ApplyPatchTool, session_seed: int, newline: str
) -> None:
    rng = random.Random(f"{session_seed} {newline!r}")
    indent = ["", "  ", "\t", "    "]
    applied = 0
    for _ in range(150):
        count = rng.randrange(1, 60)
        old = [f"{rng.choice(indent)}line {at}{rng.choice(['', ' '])}" for at in range(count)]
        lines, new = random_patch(rng, old)
        if not lines:
            continue
        # One line without an end does not say which newline the file has.
        end = rng.choice([newline, ""]) if count > 1 else newline
        # Copied with other blanks, the lines still name their places: the file's own are kept.
        worn = rng.choice([str, str.rstrip, str.strip])
        lines = [line[0] + worn(line[1:]) if line[0] in " -" else line for line in lines]
        (root / "f").write_bytes((newline.join(old) + end).encode())
        tool.apply(patch("*** Update File: f", *lines))
        expected = newline.join(new) + end if new else ""
        assert (root / "f").read_bytes().decode() == expected
        assert sorted(os.listdir(root)) == ["f"]
        applied += 1
    assert applied > 50


def test_parsing_reads_no_file() -> None:
    (operation,) = parse_patch(patch("*** Delete File: ../anything"))
    assert operation.path == "../anything"
