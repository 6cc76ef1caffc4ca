"""``gpt-oss-native info``: what the machine offers, what a checkpoint holds, what loading costs."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import options

if TYPE_CHECKING:
    from ..checkpoint import CheckpointReport

Facts = dict[str, Any]  # name to value, in the order of printing


def add_parser(commands: options.Commands) -> None:
    """Declares the command."""
    parser = options.add_command(
        commands, "info", run, "describe this machine and, where one is given, a model"
    )
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help='"nano", a directory, or a hub repository id'
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options.add_engine_options(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the sections and returns the exit code."""
    sections: dict[str, Facts] = {"machine": machine()}
    report = None
    if args.model is not None:
        found, report = _model(args)
        sections.update(found)
    if args.json:
        from dataclasses import asdict

        if report is not None:
            sections["checkpoint"] = asdict(report)
        sys.stdout.write(json.dumps(sections) + "\n")
        return 0
    width = max(len(_label(name)) for facts in sections.values() for name in facts)
    for title, facts in sections.items():
        sys.stdout.write(f"{title}\n")
        for name, value in facts.items():
            sys.stdout.write(f"  {_label(name):<{width}}  {_text(name, value)}\n")
    if report is not None:
        sys.stdout.writelines(["checkpoint\n", *(f"  {line}\n" for line in report.lines())])
    return 0


def machine() -> Facts:
    """What the machine and this build offer; nothing is measured."""
    import platform

    from .. import _core
    from . import package_version

    isas = _core.available_isas()
    cuda = _core.cuda_status()
    total, available = system_memory()
    return {
        "version": package_version(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": _core.cpu_model_name(),
        "isa": _core.default_isa(),
        "available_isas": list(isas),
        "threads": _core.default_num_threads(),
        "memory_bytes": total,
        "memory_available_bytes": available,
        "cuda": f"not used: {cuda}" if cuda else _core.cuda_device_text(),
    }


def _model(args: argparse.Namespace) -> tuple[dict[str, Facts], CheckpointReport]:
    private = _private_bytes()
    start = time.perf_counter()
    with options.load_model(args) as model:
        load_s = time.perf_counter() - start
        private = max(0, _private_bytes() - private)
        config, memory = model.config, model.memory()
        tokenizer = model.checkpoint.tokenizer_path
        sections: dict[str, Facts] = {
            "model": {
                "directory": str(model.checkpoint.directory),
                "layers": config.num_layers,
                "experts": config.num_experts,
                "experts_per_token": config.experts_per_token,
                "hidden_size": config.hidden_size,
                "vocabulary": config.vocab_size,
                "context": config.max_context,
                "sliding_window": config.sliding_window,
                "tokenizer": "none" if tokenizer is None else tokenizer.name,
            },
            "load": {
                "device": model.device,
                "engine": model._core.describe(),
                "precision": args.precision,
                "dense": args.dense,
                "time_s": round(load_s, 4),
                "private_bytes": private,
                "weights_bytes": memory["weights"],
                "mapped_bytes": memory["mapped"],
            },
        }
        return sections, model.report()


def _label(name: str) -> str:
    """A name without its unit, which the text has."""
    return name.removesuffix("_s").removesuffix("_bytes").replace("_", " ")


def _text(name: str, value: Any) -> str:
    from .terminal import size

    if isinstance(value, list):
        return ", ".join(map(str, value))
    if "bytes" in name.split("_") and isinstance(value, int):
        return size(value)
    if isinstance(value, int):
        return f"{value:,}"
    if name.endswith("_s"):
        return f"{value:.3f} s"
    return str(value)


def system_memory() -> tuple[int, int]:
    """Bytes of memory in the machine, and available; 0 where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        return sizes["MemTotal"], sizes["MemAvailable"]
    except (OSError, KeyError, ValueError, IndexError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), 0


def _private_bytes() -> int:
    """Bytes that this process alone holds (mapped checkpoints are not among them); 0 if unknown."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0
