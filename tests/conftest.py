"""Fixtures of every test: a fresh seed, the ISA levels of this machine, checkpoints, o200k.

This directory is put on the import path: ``from reference import ops``, ``import tolerances``.
"""

from __future__ import annotations

import os
import signal
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

SEED_VARIABLE = "GPT_OSS_NATIVE_TEST_SEED"
SLOW_VARIABLE = "GPT_OSS_NATIVE_SLOW_TESTS"
SESSION_SEED = int(os.environ.get(SEED_VARIABLE) or int.from_bytes(os.urandom(4), "little"))


def available_isas() -> list[str]:
    """The ISA levels the compiled core can run here; empty where it is not built."""
    try:
        from gpt_oss_native import _core
    except ImportError:
        return []
    return list(_core.available_isas())


def cuda_text() -> str:
    """The CUDA device of this machine, or why there is none."""
    try:
        from gpt_oss_native import _core
    except ImportError:
        return "the compiled core is not installed"
    return _core.cuda_status() or _core.cuda_device_text()


def has_cuda() -> bool:
    """Whether ops and models run on a CUDA device here."""
    try:
        from gpt_oss_native import _core
    except ImportError:
        return False
    return not _core.cuda_status()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_configure(config: pytest.Config) -> None:
    # A runner started in the background ignores Ctrl-C, and its children with it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", f"slow: runs only with --slow or {SLOW_VARIABLE}=1")


def pytest_report_header(config: pytest.Config) -> str:
    isas = ", ".join(available_isas()) or "none: the compiled core is not installed"
    return f"{SEED_VARIABLE}={SESSION_SEED}; ISA levels: {isas}; CUDA: {cuda_text()}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow") or os.environ.get(SLOW_VARIABLE) == "1":
        return
    skip = pytest.mark.skip(reason=f"slow; run with --slow or {SLOW_VARIABLE}=1")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``device_isa``: the test runs once for each ISA level of this machine; ``op_device``: and for
    "cuda", where a device can be used."""
    for name in {"device_isa", "op_device"} & set(metafunc.fixturenames):
        where = available_isas()
        if name == "op_device" and has_cuda():
            where = [*where, "cuda"]
        missing = pytest.param(
            "", marks=pytest.mark.skip(reason="the compiled core is not installed")
        )
        metafunc.parametrize(name, where or [missing])


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome: Any = yield
    report = outcome.get_result()
    if report.failed:
        report.sections.append(("seed", f"repeat with {SEED_VARIABLE}={SESSION_SEED}"))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Fresh random numbers each run, the test's own whatever else runs; the seed is in the header
    and with every failure, and ``GPT_OSS_NATIVE_TEST_SEED`` sets it."""
    return np.random.default_rng([SESSION_SEED, zlib.crc32(request.node.nodeid.encode())])


@pytest.fixture(scope="session")
def session_seed() -> int:
    """The seed of this run, for fixtures wider than one test."""
    return SESSION_SEED


@pytest.fixture(scope="session")
def cuda_device() -> str:
    """The name of a CUDA device; skips where none can be used."""
    core = pytest.importorskip("gpt_oss_native._core", reason="the compiled core is not installed")
    if reason := core.cuda_status():
        pytest.skip(f"no CUDA device: {reason}")
    return "cuda"


@pytest.fixture(scope="session")
def checkpoint_directory(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``checkpoint_directory(checkpoint, layout="hugging_face", shards=1, slack=0)``: the
    directory of a ``reference.checkpoints.Checkpoint``, written once a session; layouts are
    "hugging_face" and "original". Tests must not change it: they copy it."""
    from reference import checkpoints

    written: dict[tuple[Any, ...], Path] = {}

    def directory(
        checkpoint: checkpoints.Checkpoint,
        *,
        layout: str = "hugging_face",
        shards: int = 1,
        slack: int = 0,
    ) -> Path:
        key = (checkpoint.seed, checkpoint.shape, layout, shards, slack)
        if key not in written:
            path = tmp_path_factory.mktemp("checkpoint")
            if layout == "hugging_face":
                checkpoints.write_hugging_face(checkpoint, path, shards=shards, slack=slack)
            else:
                checkpoints.write_original(checkpoint, path, slack=slack)
            written[key] = path
        return written[key]

    return directory


@pytest.fixture(scope="session")
def o200k() -> Path:
    """The file o200k_base.tiktoken, from the directory ``TIKTOKEN_ENCODINGS_BASE`` names."""
    base = os.environ.get("TIKTOKEN_ENCODINGS_BASE")
    path = Path(base or ".") / "o200k_base.tiktoken"
    if not base or not path.is_file():
        pytest.skip("TIKTOKEN_ENCODINGS_BASE does not name a directory with o200k_base.tiktoken")
    return path
