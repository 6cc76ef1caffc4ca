"""Layers look downward only: what C++ files include, what Python modules import."""

from __future__ import annotations

import ast
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
PACKAGE = ROOT / "python" / "gpt_oss_native"

# bindings -> engine -> backend -> model -> base; cpu -> backend; cuda -> backend.
MAY_INCLUDE = {
    "base": {"base"},
    "model": {"model", "base"},
    "backend": {"backend", "model", "base"},
    "cpu": {"cpu", "backend", "model", "base"},
    "cuda": {"cuda", "backend", "model", "base"},
    "engine": {"engine", "backend", "model", "base"},
    "bindings": {"bindings", "engine", "backend", "model", "base"},
}
INCLUDE = re.compile(r'^\s*#\s*include\s*(?:"([^"]+)"|<([^>]+)>)', re.MULTILINE)
PYTHON_HEADER = re.compile(r"^(pybind11/|Python\.h$|numpy/)")
INTRINSICS_HEADER = re.compile(r"^(immintrin|x86intrin|[a-z]mmintrin|arm_neon|arm_sve)\.h$")
SOURCES = {".cc", ".h", ".cu", ".cuh"}

# cli -> bench, chat -> {structured, harmony, session, tools} -> model -> _core; the rest is
# beneath, and knows of nothing but its equals. Whoever adds a module says here where it belongs.
LAYERS = (
    {"errors"},
    {"checkpoint", "sampling", "tokenizer", "detokenizer", "synthesize", "nano"},
    {"_core"},
    {"ops", "model"},
    {"session", "harmony", "structured", "tools"},
    {"chat", "bench"},
    {"cli", "server", "__main__"},
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
NEEDED = {"numpy", "tiktoken"}  # the whole run-time list of the base wheel
EXTRAS = {"huggingface_hub", "rich", "starlette", "uvicorn", "llguidance"}
EXTRAS |= {"ipykernel", "jupyter_client", "matplotlib"}
HEAVY = EXTRAS | {"torch", "transformers", "safetensors", "tokenizers", "openai_harmony"}


def sources() -> list[Path]:
    return sorted(path for path in CSRC.rglob("*") if path.suffix in SOURCES)


def includes(path: Path) -> tuple[list[str], list[str]]:
    """What a file includes of ours, and of others."""
    found = INCLUDE.findall(path.read_text())
    return [ours for ours, _ in found if ours], [others for _, others in found if others]


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the package: the part of its name below the package, and its file."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def line_of(node: ast.AST) -> int:
    """The line of a node that has one."""
    return getattr(node, "lineno", 0)


def runs_on_import(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements that importing executes: not function bodies, not ``if TYPE_CHECKING``."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            waiting.extend(node.orelse)
            continue
        if isinstance(node, ast.stmt):
            yield node
        waiting.extend(ast.iter_child_nodes(node))


def imported(node: ast.AST, module: str, path: Path) -> Iterator[tuple[bool, str]]:
    """(whether it is ours, first name below the package or the foreign package)."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            first, _, rest = alias.name.partition(".")
            yield (True, rest.split(".")[0]) if first == "gpt_oss_native" else (False, first)
    elif isinstance(node, ast.ImportFrom) and node.level == 0:
        first, _, rest = (node.module or "").partition(".")
        if first != "gpt_oss_native":
            yield False, first
        else:
            for name in [rest] if rest else [alias.name for alias in node.names]:
                yield True, name.split(".")[0]
    elif isinstance(node, ast.ImportFrom):
        package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
        base = [part for part in package if part][: len(package) - node.level + 1]
        target = base + (node.module.split(".") if node.module else [])
        for name in [target[0]] if target else [alias.name for alias in node.names]:
            yield True, name


def test_every_source_directory_has_its_place_in_the_layers() -> None:
    assert {path.name for path in CSRC.iterdir() if path.is_dir()} <= set(MAY_INCLUDE)
    assert len(sources()) > 50


def test_includes_look_downward() -> None:
    wrong = []
    for path in sources():
        layer = path.relative_to(CSRC).parts[0]
        for name in includes(path)[0]:
            if name.split("/")[0] not in MAY_INCLUDE[layer]:
                wrong.append(f"{path.relative_to(ROOT)} includes {name}")
    assert not wrong, wrong


def test_includes_are_named_from_the_source_root_and_exist() -> None:
    missing = [
        f"{path.relative_to(ROOT)} includes {name}"
        for path in sources()
        for name in includes(path)[0]
        if not (CSRC / name).is_file()
    ]
    assert not missing, missing


def test_only_bindings_know_python() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} includes {name}"
        for path in sources()
        for name in itertools.chain(*includes(path))
        if PYTHON_HEADER.match(name) and path.relative_to(CSRC).parts[0] != "bindings"
    ]
    assert not wrong, wrong


def test_intrinsics_stand_only_where_an_instruction_set_is_named() -> None:
    # simd/ has the lanes of the kernels; a pause or a non-temporal load elsewhere is one file's.
    allowed = {"csrc/cpu/simd", "csrc/base"}
    wrong = [
        f"{path.relative_to(ROOT)} includes {name}"
        for path in sources()
        for name in includes(path)[1]
        if INTRINSICS_HEADER.match(name) and path.parent.relative_to(ROOT).as_posix() not in allowed
    ]
    assert not wrong, wrong


def test_kernel_files_begin_with_what_they_compute() -> None:
    kernels = sorted((CSRC / "cuda" / "kernels").glob("*.cu"))
    assert len(kernels) > 10
    wrong = [path.name for path in kernels if not path.read_text().startswith("// ")]
    assert not wrong, wrong


def test_absence_is_a_file_and_not_an_ifdef() -> None:
    # Whether there is CUDA is decided by linking cuda/ or cuda/no_cuda.cc.
    wrong = [
        str(path.relative_to(ROOT))
        for path in sources()
        if path.relative_to(CSRC).parts[0] != "cuda"
        and re.search(r"^\s*#\s*(if|ifdef|ifndef|elif)\b.*CUDA", path.read_text(), re.MULTILINE)
    ]
    assert not wrong, wrong


def test_every_python_module_has_its_place_in_the_layers() -> None:
    unknown = {name.split(".")[0] for name, _ in modules() if name} - set(RANK)
    assert not unknown, f"{unknown}: add them to LAYERS"


def test_python_imports_look_downward() -> None:
    wrong = []
    for module, path in modules():
        own = module.split(".")[0]
        rank = RANK[own] if own else RANK["errors"] + 1  # the package itself: only errors
        for statement in runs_on_import(ast.parse(path.read_text())):
            for ours, name in imported(statement, module, path):
                if not ours or name == own:
                    continue
                above = name not in RANK or RANK[name] > rank
                if above or ("_core" in (name, own) and rank < RANK["_core"]):
                    wrong.append(f"{path.relative_to(ROOT)}:{statement.lineno} imports {name}")
    assert not wrong, wrong


def test_nothing_below_the_command_line_imports_it() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line_of(node)}"
        for module, path in modules()
        if module.split(".")[0] not in LAYERS[-1]
        for node in ast.walk(ast.parse(path.read_text()))
        for ours, name in imported(node, module, path)
        if ours and name in LAYERS[-1]
    ]
    assert not wrong, wrong


def test_harmony_and_the_foundation_never_reach_the_engine() -> None:
    forbidden = {"_core", "model", "session", "ops", "chat"}
    wrong = [
        f"{path.relative_to(ROOT)}:{line_of(node)} imports {name}"
        for module, path in modules()
        if module.split(".")[0] in LAYERS[0] | LAYERS[1] | {"harmony"}
        for node in ast.walk(ast.parse(path.read_text()))
        for ours, name in imported(node, module, path)
        if ours and name in forbidden
    ]
    assert not wrong, wrong


def test_foreign_packages_are_the_base_wheels_two_and_extras_on_use() -> None:
    wrong = []
    for module, path in modules():
        tree = ast.parse(path.read_text())
        at_import = set(runs_on_import(tree))
        for node in ast.walk(tree):
            for ours, name in imported(node, module, path):
                if ours or name in sys.stdlib_module_names or name in NEEDED:
                    continue
                if name not in EXTRAS or node in at_import:
                    wrong.append(f"{path.relative_to(ROOT)}:{line_of(node)} imports {name}")
    assert not wrong, wrong


def modules_after(*statements: str) -> set[str]:
    """Names in sys.modules of a fresh interpreter after these statements."""
    import gpt_oss_native

    program = "; ".join((*statements, "import sys", "print(*sys.modules, sep='\\n')"))
    where = str(Path(gpt_oss_native.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": where}
    run = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(run.stdout.split())


def test_importing_the_package_loads_only_its_errors() -> None:
    loaded = modules_after("import gpt_oss_native")
    ours = {name for name in loaded if name.startswith("gpt_oss_native")}
    assert ours == {"gpt_oss_native", "gpt_oss_native.errors"}
    assert not loaded & (NEEDED | HEAVY)


@pytest.mark.parametrize("name", ["harmony", "tokenizer", "checkpoint", "synthesize"])
def test_pure_python_modules_do_not_load_the_core(name: str) -> None:
    loaded = modules_after(f"import gpt_oss_native.{name}")
    assert f"gpt_oss_native.{name}" in loaded
    assert "gpt_oss_native._core" not in loaded
    assert not loaded & HEAVY


def test_importing_every_module_loads_no_extra() -> None:
    pytest.importorskip("gpt_oss_native._core", reason="the compiled core is not installed")
    names = [
        f"import gpt_oss_native.{name}"
        for name, _ in modules()
        if name and not name.endswith("__main__")
    ]
    loaded = modules_after(*names)
    assert "gpt_oss_native._core" in loaded
    assert not loaded & HEAVY


def test_public_names_are_found_on_first_use() -> None:
    import gpt_oss_native

    pytest.importorskip("gpt_oss_native._core", reason="the compiled core is not installed")
    for name in gpt_oss_native.__all__:
        assert getattr(gpt_oss_native, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Modle'"):
        _ = gpt_oss_native.Modle
