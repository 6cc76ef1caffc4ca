"""Files keep the conventions that can be read off them: size, names, nothing left behind."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = {".py", ".pyi", ".cc", ".h", ".cu", ".cuh", ".cmake"}
TEXT = SOURCE | {".md", ".toml", ".json", ".yaml", ".yml", ".sh", ".txt", ".cfg"}
MAX_LINES = 400
# Where a rule of size would hurt the reader, the reader wins: file -> why.
LONGER: dict[str, str] = {
    "csrc/cpu/kernels/attention-inl.h": "one product, its softmax and its merge, read in order",
    "tests/engine/test_bad_input.py": "every kind of bad input, over shared checkpoints",
    "tests/engine/test_forward.py": "one contract, whose cases share their checkpoints",
    "tests/engine/test_generate.py": "one contract, whose cases share their checkpoints",
    "tests/engine/test_sampler.py": "one object, every option of it",
    "tests/python/test_checkpoint.py": "every way in which a checkpoint's files can lie",
}
# A directory at the start of some machine's path; /proc and /sys are the same on all of them.
MACHINE_PATH = re.compile(r"""(?:^|[\s"'`(=:])/(?:work|tmp|root|opt|home|Users)/\w""")
LEFT_BEHIND = re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b")
# An op's product is one, whatever its formats: linear_bf16 and linear_int8 are `linear`.
SPECIALISATIONS = re.compile(r"_(?:bf16|int8|float32)$|_(?:(?:bf16|int8)_)?amx$")
# Steps of other ops, reached and tested through them.
PARTS = {
    "table": "the table itself",
    "int8_product": "what the int8 products share",
    "byte_tokens": "what products on tiles of bytes share",
    "int8_byte_tiles": "linear of seven and eight tokens on AMX",
    "mxfp4_quads": "linear_mxfp4 of three to six tokens on AMX",
    "mxfp4_lanes": "linear_mxfp4 of one or two tokens on AMX",
    "mxfp4_stream": "linear_mxfp4 of few tokens",
    "amx_product": "what the products on tiles share",
    "pack_int8": "linear with dense='int8' packs",
    "quantize_bf16": "linear_mxfp4 and linear on AMX round their activations",
    "kv_write": "attention writes its keys and values",
}


def tracked() -> Iterator[Path]:
    """Every text file that git knows, or where there is no git, every one in source places."""
    if shutil.which("git") and (ROOT / ".git").exists():
        listing = subprocess.run(
            ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True
        )
        paths = [ROOT / name for name in listing.stdout.split("\0") if name]
    else:
        places = ("csrc", "python", "tests", "benchmarks", "examples", "cmake")
        paths = [path for place in places for path in (ROOT / place).rglob("*")]
    for path in sorted(paths):
        if path.is_file() and (path.suffix in TEXT or path.name in {"Makefile", "run"}):
            yield path


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def lines_matching(pattern: re.Pattern[str]) -> list[str]:
    """file:line of every match, but in this file."""
    return [
        f"{name_of(path)}:{number}: {line.strip()}"
        for path in tracked()
        if path != Path(__file__).resolve()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]


def test_no_source_file_is_longer_than_400_lines_without_a_reason() -> None:
    lengths = {
        name_of(path): len(path.read_text(encoding="utf-8").splitlines())
        for path in tracked()
        if path.suffix in SOURCE
    }
    too_long = {
        name: lines for name, lines in lengths.items() if lines > MAX_LINES and name not in LONGER
    }
    assert not too_long, too_long
    needless = [name for name in LONGER if lengths.get(name, 0) <= MAX_LINES]
    assert not needless, f"short enough now, take them off the list: {needless}"


def test_no_file_names_a_path_of_a_machine() -> None:
    found = lines_matching(MACHINE_PATH)
    assert not found, found


def test_nothing_is_left_to_be_done() -> None:
    found = lines_matching(LEFT_BEHIND)
    assert not found, found


def test_files_end_with_one_newline_and_hold_no_tabs_or_trailing_blanks() -> None:
    wrong = []
    for path in tracked():
        text = path.read_text(encoding="utf-8")
        if text and (not text.endswith("\n") or text.endswith("\n\n")):
            wrong.append(f"{name_of(path)}: end")
        if path.suffix in SOURCE and ("\t" in text or re.search(r"[ \t\r]$", text, re.MULTILINE)):
            wrong.append(f"{name_of(path)}: blanks")
    assert not wrong, wrong


def kernel_ops() -> set[str]:
    """Ops that have a kernel file, each under the name it has everywhere."""
    files = (ROOT / "csrc" / "cpu" / "kernels").glob("*-inl.h")
    names = {path.name.removesuffix("-inl.h") for path in files} - set(PARTS)
    keep = {"quantize_int8", "quantize_int15"}  # the format is what it makes
    return {name if name in keep else SPECIALISATIONS.sub("", name) for name in names}


def test_every_kernel_has_a_test_of_its_name() -> None:
    missing = {op for op in kernel_ops() if not (ROOT / f"tests/ops/test_{op}.py").is_file()}
    assert not missing, missing


def test_every_op_test_has_a_kernel_of_its_name() -> None:
    tests = {path.stem.removeprefix("test_") for path in (ROOT / "tests/ops").glob("test_*.py")}
    assert tests - {"yarn"} == kernel_ops()  # the rotary table is host arithmetic


@pytest.mark.parametrize(
    ("path", "pattern"),
    [
        ("csrc/backend/op_table.h", r"virtual void {}\w*\("),
        ("csrc/cpu/kernel_table.h", r"\(\*{}\w*\)\("),
        ("csrc/bindings/ops.cc", r'\.def\("{}"'),
        ("python/gpt_oss_native/_core.pyi", r"    def {}\("),
        ("python/gpt_oss_native/ops.py", r"^def {}\("),
    ],
)
def test_an_op_has_one_name_everywhere(path: str, pattern: str) -> None:
    text = (ROOT / path).read_text()
    missing = [
        op for op in sorted(kernel_ops()) if not re.search(pattern.format(op), text, re.MULTILINE)
    ]
    assert not missing, missing


def test_no_test_asserts_on_the_clock() -> None:
    timed = re.compile(r"^\s*assert\b.*\b(?:perf_counter|monotonic|time\.time|elapsed)\b")
    found = [line for line in lines_matching(timed) if line.startswith("tests/")]
    assert not found, found
