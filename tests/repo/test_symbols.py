"""What the compiled objects leave to the linker, and what the module shows to the process."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HIGHER_ISAS = ("avx2", "avx512", "amx")
# The compiler puts these in by itself, for copies and fills.
COMPILER_CALLS = {"memcpy", "memset", "memmove", "memcmp", "__stack_chk_fail"}


def symbols(path: Path, *options: str) -> list[tuple[str, str]]:
    """(type, demangled name) of every symbol, as nm prints them for a 64-bit file."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm is not installed")
    run = subprocess.run(
        [nm, "--demangle", *options, str(path)], capture_output=True, text=True, check=True
    )
    return [(line[17], line[19:]) for line in run.stdout.splitlines()]  # "%016x type name"


def is_sanitized(found: list[tuple[str, str]]) -> bool:
    return any("__asan" in name or "__ubsan" in name for _, name in found)


def objects(isa: str) -> list[Path]:
    """That ISA's object in each build tree of the checkout but the sanitizers'."""
    paths = sorted((ROOT / "build").glob(f"**/isa_{isa}.cc.o"))
    return [path for path in paths if not is_sanitized(symbols(path))]


@pytest.fixture(params=HIGHER_ISAS)
def isa_symbols(request: pytest.FixtureRequest) -> list[tuple[str, str]]:
    """The symbols of a higher ISA's newest object."""
    paths = objects(request.param)
    if not paths:
        pytest.skip(f"no isa_{request.param} object below build/: build from the checkout first")
    return symbols(max(paths, key=lambda path: path.stat().st_mtime))


def test_higher_isas_emit_no_weak_symbols(isa_symbols: list[tuple[str, str]]) -> None:
    # The linker keeps one of several weak definitions: code for AVX-512 could run anywhere.
    weak = [name for kind, name in isa_symbols if kind in "WwVvu"]
    assert not weak, weak


def test_higher_isas_define_their_table_alone(isa_symbols: list[tuple[str, str]]) -> None:
    defined = [name for kind, name in isa_symbols if kind.isupper() and kind not in "UWV"]
    assert len(defined) == 1, defined
    assert defined[0].startswith("gptoss::cpu::a")
    assert defined[0].endswith("_kernels()")


def test_higher_isas_call_nothing_but_copies_and_fills(isa_symbols: list[tuple[str, str]]) -> None:
    # An inline function of the library, emitted elsewhere for this ISA, would be such a call.
    called = {name for kind, name in isa_symbols if kind == "U"}
    assert called <= COMPILER_CALLS | {"_GLOBAL_OFFSET_TABLE_"}, called


def core_file() -> Path:
    core = pytest.importorskip("gpt_oss_native._core", reason="the compiled core is not installed")
    return Path(core.__file__)


@pytest.mark.skipif(platform.system() != "Linux", reason="reads ELF symbols")
def test_the_module_exports_its_entry_alone() -> None:
    found = symbols(core_file(), "--dynamic")
    if is_sanitized(found):
        pytest.skip("a sanitizer adds symbols of its own")
    exported = [name for kind, name in found if kind not in "Uwv"]
    assert exported == ["PyInit__core"], exported


@pytest.mark.skipif(platform.system() != "Linux", reason="reads ELF symbols")
def test_the_module_needs_no_library_of_a_device() -> None:
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("readelf is not installed")
    run = subprocess.run(
        [readelf, "--dynamic", str(core_file())], capture_output=True, text=True, check=True
    )
    needed = [
        line.split("[")[1].rstrip("]") for line in run.stdout.splitlines() if "NEEDED" in line
    ]
    assert needed
    system = ("libc.", "libm.", "libstdc++.", "libgcc_s.", "libpthread.", "libdl.", "librt.", "ld-")
    sanitizers = ("libasan.", "libubsan.")
    foreign = [name for name in needed if not name.startswith(system + sanitizers)]
    assert not foreign, foreign
