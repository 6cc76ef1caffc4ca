"""_core.pyi says what the compiled module has: every name, every argument."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
STUB = ROOT / "python" / "gpt_oss_native" / "_core.pyi"


@dataclass(frozen=True)
class Argument:
    """One argument of a function: how it may be given, and whether it may be left out."""

    name: str
    keyword_only: bool
    has_default: bool


Signature = tuple[Argument, ...]


@pytest.fixture(scope="module")
def core() -> ModuleType:
    module: ModuleType = pytest.importorskip(
        "gpt_oss_native._core", reason="the compiled core is not installed"
    )
    return module


@pytest.fixture(scope="module")
def stub() -> ast.Module:
    return ast.parse(STUB.read_text())


def stub_signature(function: ast.FunctionDef) -> Signature:
    """The arguments after self of a function of the stub."""
    given = function.args
    assert given.vararg is None
    assert given.kwarg is None
    without_default = len(given.args) - len(given.defaults)
    positional = [
        Argument(arg.arg, keyword_only=False, has_default=i >= without_default)
        for i, arg in enumerate(given.args)
    ]
    named = [
        Argument(arg.arg, keyword_only=True, has_default=default is not None)
        for arg, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)
    ]
    return tuple(arg for arg in positional + named if arg.name != "self")


def compiled_signature(function: Any) -> Signature:
    """The same, from the line that pybind11 puts before a docstring."""
    line = function.__doc__.splitlines()[0]
    match = re.fullmatch(r"\w+\((.*)\)(?: -> .*)?", line)
    assert match, line
    arguments, keyword_only = [], False
    for text in split_at_commas(match[1]):
        if text == "*":
            keyword_only = True
            continue
        name, _, rest = text.partition(":")
        arguments.append(Argument(name.strip(), keyword_only, " = " in rest or "=" in name))
    return tuple(arg for arg in arguments if arg.name != "self")


def split_at_commas(text: str) -> list[str]:
    """Parts between commas that no bracket encloses."""
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    parts.append(text[start:].strip())
    return [part for part in parts if part]


def members(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """What a module or class of the stub defines, by public name."""
    found: dict[str, ast.stmt] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = node
    public = {"__init__", "__version__"}
    return {name: node for name, node in found.items() if name[0] != "_" or name in public}


def is_property(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef) and any(
        ast.unparse(decorator) == "property" for decorator in node.decorator_list
    )


def classes(stub: ast.Module) -> list[ast.ClassDef]:
    return [node for node in stub.body if isinstance(node, ast.ClassDef)]


def test_the_stub_names_what_the_module_has(core: ModuleType, stub: ast.Module) -> None:
    there = {name for name in dir(core) if name[0] != "_"} | {"__version__"}
    assert set(members(stub.body)) == there


def test_the_stubs_functions_take_what_the_modules_take(core: ModuleType, stub: ast.Module) -> None:
    functions = [node for node in stub.body if isinstance(node, ast.FunctionDef)]
    assert functions
    for function in functions:
        found = compiled_signature(getattr(core, function.name))
        assert stub_signature(function) == found, function.name


def test_the_stubs_classes_have_the_members_of_the_modules(
    core: ModuleType, stub: ast.Module
) -> None:
    for described in classes(stub):
        compiled = getattr(core, described.name)
        there = {name for name in vars(compiled) if name[0] != "_"}
        if _constructible(vars(compiled).get("__init__")):
            there.add("__init__")
        assert set(members(described.body)) == there, described.name


def test_the_stubs_methods_take_what_the_modules_take(core: ModuleType, stub: ast.Module) -> None:
    for described in classes(stub):
        compiled = getattr(core, described.name)
        for name, node in members(described.body).items():
            where = f"{described.name}.{name}"
            member = vars(compiled).get(name)
            assert is_property(node) == isinstance(member, property), where
            if is_property(node):
                continue
            assert isinstance(node, ast.FunctionDef), where
            assert stub_signature(node) == compiled_signature(member), where


def _constructible(init: Any) -> bool:
    """Whether pybind11 documents arguments; a class without a constructor has one that raises."""
    return init is not None and (init.__doc__ or "").startswith("__init__(self: ")


def test_the_stubs_annotations_are_complete(stub: ast.Module) -> None:
    for node in ast.walk(stub):
        if isinstance(node, ast.FunctionDef):
            assert node.returns is not None, node.name
            for arg in node.args.args + node.args.kwonlyargs:
                assert arg.annotation is not None or arg.arg == "self", (node.name, arg.arg)


def test_the_op_table_of_the_stub_is_that_of_the_design(stub: ast.Module) -> None:
    table = next(node for node in classes(stub) if node.name == "Ops")
    ops = set(members(table.body)) - {"__init__"}
    python = ast.parse((STUB.parent / "ops.py").read_text())
    public = {node.name for node in python.body if isinstance(node, ast.FunctionDef)}
    assert ops <= public
