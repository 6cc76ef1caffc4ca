"""The package of tools: cheap to import, and every public name is there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gpt_oss_native
import pytest
from gpt_oss_native import tools

SOURCES = sorted(Path(tools.__file__).parent.glob("*.py"))


def test_importing_every_tool_loads_no_extra_and_not_the_core() -> None:
    names = [f"gpt_oss_native.tools.{path.stem}" for path in SOURCES if path.stem != "__init__"]
    program = f"import importlib, sys; [importlib.import_module(n) for n in {names}]"
    run = subprocess.run(
        [sys.executable, "-c", program + "; print(*sys.modules)"],
        env=os.environ | {"PYTHONPATH": str(Path(gpt_oss_native.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(run.stdout.split())
    assert set(names) <= loaded
    foreign = {"jupyter_client", "ipykernel", "IPython", "zmq", "gpt_oss_native._core"}
    assert not loaded & foreign


def test_public_names_are_found_on_first_use() -> None:
    for name in tools.__all__:
        assert getattr(tools, name) is not None
    assert dir(tools) == sorted(tools.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Hammer'"):
        _ = tools.Hammer
