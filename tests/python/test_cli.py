"""The command line: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("gpt_oss_native._core")

import gpt_oss_native
from gpt_oss_native import synthesize
from gpt_oss_native.cli import options
from gpt_oss_native.cli.synthesize import PRESETS
from reference.cli_support import NANO, Run, command, environment


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint without a tokenizer, made by the command itself."""
    directory = tmp_path_factory.mktemp("synthesized") / "tiny"
    done = subprocess.run(
        command("synthesize", "--preset", "tiny", "--seed", "1", str(directory)),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{directory}: ")
    return str(directory)


# --- the program ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "chat", "generate", "info", "bench", "synthesize"])
def test_help_explains_every_command(run: Run, name: str) -> None:
    result = run(*filter(None, [name]), "--help")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"usage: gpt-oss-native{' ' + name if name else ''} ")


def test_help_loads_neither_numpy_nor_the_core() -> None:
    program = (
        "import sys; from gpt_oss_native.cli import main\n"
        "try: main(['chat', '--help'])\nexcept SystemExit: pass\n"
        "heavy = {'numpy', 'tiktoken', 'gpt_oss_native._core'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_an_unknown_option_points_to_the_help_of_its_command(run: Run) -> None:
    result = run("generate", "--max-tokens", "3", "hi")
    assert result.code == 2
    assert "--max-tokens" in result.err
    assert result.err.endswith("see gpt-oss-native generate --help\n")


def test_version_is_printed(run: Run) -> None:
    result = run("--version")
    assert result.code == 0
    assert re.fullmatch(r"gpt-oss-native \d+\.\d+\S*\n", result.out)


MISTAKES = {
    "no command": ((), 2),
    "unknown command": (("sing",), 2),
    "unknown option": (("chat", "--loud"), 2),
    "not a number": (("generate", "--temperature", "hot", "hi"), 2),
    "no date": (("chat", "--date", "tomorrow", "--once", "hi"), 2),
    "no such model": (("chat", "-m", "/no/such/place", "--once", "hi"), 1),
    "temperature out of range": (("generate", "--temperature", "-1", "hi"), 2),
    "threads out of range": (("generate", "--threads", "0", "hi"), 2),
    "empty stop": (("generate", "--stop", "", "hi"), 2),
    "empty prompt": (("generate", ""), 2),
    "empty question": (("chat", "--once", " "), 2),
    "ids that are none": (("generate", "--tokens", "1,x"), 2),
    "id out of range": (("generate", "--tokens", "1,999999"), 2),
    "both kinds of prompt": (("generate", "--tokens", "1", "hi"), 2),
    "logprobs without json": (("generate", "--logprobs", "2", "hi"), 2),
    "special without raw": (("generate", "--special", "hi"), 2),
    "nothing to measure": (("bench", "--prefill", "0", "--decode", "0"), 2),
    "an empty batch": (("bench", "--batch", "0", "--prefill", "0"), 2),
    "states that are no directory": (("bench", "--states", __file__), 2),
    "no repeats": (("bench", "--repeats", "0"), 2),
    "beyond the context": (("bench", "--depth", "131072"), 2),
    "unknown preset": (("synthesize", "--preset", "7b", "x"), 2),
    "negative seed": (("synthesize", "--preset", "tiny", "--seed", "-1", "x"), 2),
    "a file for a directory": (("synthesize", "--preset", "tiny", __file__), 2),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_no_traceback(run: Run, mistake: str) -> None:
    args, code = MISTAKES[mistake]
    result = run(*args)
    assert (result.code, result.out) == (code, "")
    assert result.err.startswith("gpt-oss-native: error: ")
    assert result.err.count("\n") == 1


def test_a_missing_device_is_exit_code_1(run: Run) -> None:
    if gpt_oss_native.Model.load("nano").device == "cuda":
        pytest.skip("this machine has a CUDA device")
    result = run("generate", "--device", "cuda", "hi")
    assert result.code == 1
    assert "CUDA" in result.err


def test_a_pipe_that_closes_early_is_quiet(tiny: str) -> None:
    process = subprocess.Popen(
        command("generate", "-m", tiny, "--tokens", "1,2,3"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(20)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141


def test_ctrl_c_ends_the_program_with_130(tiny: str) -> None:
    process = subprocess.Popen(
        command("generate", "-m", tiny, "--tokens", "1,2,3"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert (process.returncode, err.strip()) == (130, b"")


# --- generate -------------------------------------------------------------------------------------


def test_generate_prints_one_json_object(run: Run) -> None:
    result = run("generate", "--json", "--logprobs", "2", *NANO, "What is 5 + 6?")
    assert (result.code, result.err) == (0, "")
    found = json.loads(result.out)
    assert found["model"] == "nano"
    assert isinstance(found["text"], str)
    assert found["finish_reason"] in ("stop", "length", "tool_calls")
    assert len(found["tokens"]) == found["usage"]["completion_tokens"] == len(found["logprobs"])
    assert [entry["id"] for entry in found["logprobs"]] == found["tokens"]
    assert all(len(entry["top"]) == 2 for entry in found["logprobs"])
    assert found["timings"]["prompt_s"] > 0


def test_generate_reads_stdin_and_prints_the_answer_alone(run: Run) -> None:
    asked = run("generate", *NANO, "--json", "What is 5 + 6?")
    result = run("generate", *NANO, stdin=b"What is 5 + 6?")
    assert result.code == 0
    assert result.out.strip() == json.loads(asked.out)["text"].strip()


def test_generate_refuses_bytes_that_are_no_text(run: Run) -> None:
    result = run("generate", "-", stdin=b"caf\xe9")
    assert result.code == 2
    assert "UTF-8" in result.err


def test_raw_generation_continues_the_prompt_as_it_stands(run: Run) -> None:
    plain = json.loads(run("generate", "--raw", "--json", *NANO, "<|start|>").out)
    special = json.loads(run("generate", "--raw", "--special", "--json", *NANO, "<|start|>").out)
    assert plain["usage"]["prompt_tokens"] > 1
    assert special["usage"]["prompt_tokens"] == 1


def test_a_model_without_tokenizer_says_so_and_takes_ids(run: Run, tiny: str) -> None:
    result = run("generate", "-m", tiny, "hello")
    assert result.code == 2
    assert "tokenizer" in result.err
    assert "--tokens" in result.err
    assert "tokenizer" in run("chat", "-m", tiny, "--once", "hello").err
    result = run("generate", "-m", tiny, "--tokens", "1, 2 3", "-n", "5", "--seed", "2")
    assert result.code == 0
    ids = [int(word) for word in result.out.split()]
    assert len(ids) == 5
    result = run("generate", "-m", tiny, "--tokens", "1,2,3", "-n", "5", "--seed", "2", "--json")
    assert json.loads(result.out)["tokens"] == ids
    assert json.loads(result.out)["text"] is None


def test_generation_config_gives_the_defaults_and_flags_win(tmp_path: Path) -> None:
    model: Any = SimpleNamespace(checkpoint=SimpleNamespace(directory=tmp_path))
    assert options.recommended_sampling(model) == {}
    path = tmp_path / "generation_config.json"
    path.write_text('{"do_sample": true, "temperature": 0.5, "top_k": 7.0, "eos_token_id": [1]}')
    assert options.recommended_sampling(model) == {"temperature": 0.5, "top_k": 7}
    path.write_text('{"do_sample": false, "temperature": 0.5}')
    assert options.recommended_sampling(model) == {"temperature": 0.0}
    path.write_text("[")
    assert options.recommended_sampling(model) == {}


# --- info, synthesize, bench ----------------------------------------------------------------------


def test_info_describes_the_machine_and_a_model(run: Run, tiny: str) -> None:
    result = run("info")
    assert result.code == 0
    assert "cuda " in result.out
    result = run("info", tiny)
    assert result.code == 0
    assert "a token reads" in result.out
    found = json.loads(run("info", "nano", "--json").out)
    assert found["machine"]["isa"] in found["machine"]["available_isas"]
    assert found["model"]["tokenizer"] == "tokenizer.json"
    assert found["checkpoint"]["layout"] == "huggingface"
    assert found["load"]["time_s"] >= 0


def test_synthesize_offers_the_presets_there_are() -> None:
    assert set(PRESETS) == set(synthesize.PRESETS)


def test_synthesize_refuses_a_directory_in_use(run: Run, tiny: str) -> None:
    result = run("synthesize", "--preset", "tiny", tiny)
    assert result.code == 2
    assert "empty" in result.err


def test_bench_prints_a_table_and_json_lines(run: Run, tiny: str) -> None:
    args = ("bench", "-m", tiny, "--prefill", "40", "--decode", "5", "--depth", "70", "--repeats")
    args += ("2", "--threads", "1", "--beside")
    result = run(*args)
    assert (result.code, result.err) == (0, "")
    assert "tokens/s" in result.out
    assert "zone (decode)" in result.out
    result = run(*args, "--json")
    prefill, decode = (json.loads(line) for line in result.out.splitlines())
    assert (prefill["op"], prefill["tokens"], prefill["depth"]) == ("prefill", 40, 70)
    assert (decode["op"], decode["tokens"], decode["depth"]) == ("decode", 5, 70)
    for line in (prefill, decode):
        assert len(line["seconds"]) == 2
        assert line["tokens_per_second"] > 0
        assert {"attention", "gate_up", "down"} <= set(line["zones"])
    assert decode["bytes_per_second"] == pytest.approx(
        decode["token_bytes"] * decode["tokens_per_second"]
    )


def test_bench_measures_batches_beside_one(run: Run, tiny: str) -> None:
    args = ("bench", "-m", tiny, "--prefill", "0", "--decode", "3", "--batch", "1", "2", "4")
    args += ("--repeats", "1", "--threads", "1", "--beside")
    result = run(*args)
    assert (result.code, result.err) == (0, "")
    assert "decode x 4" in result.out
    assert "zone (decode x 2)" in result.out
    lines = [json.loads(line) for line in run(*args, "--json").out.splitlines()]
    assert [(line["op"], line["tokens"]) for line in lines] == [
        ("decode", 3),
        ("decode x 2", 6),
        ("decode x 4", 12),
    ]
    for line in lines:
        assert line["bytes_per_second"] == pytest.approx(
            line["token_bytes"] * line["tokens_per_second"]
        )
    assert lines[0]["token_bytes"] > lines[1]["token_bytes"]
