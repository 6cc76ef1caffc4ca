"""config.json in both spellings: what is read, what is refused, and with which words."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from gpt_oss_native.checkpoint.config import ModelConfig, load_config, parse_config
from gpt_oss_native.errors import CheckpointError, InvalidArgument
from gpt_oss_native.synthesize import PRESETS, hugging_face_config
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import checkpoints

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def published(**changes: Any) -> dict[str, Any]:
    """The published 20b config.json with `changes`; a change to ... takes the key out."""
    values = hugging_face_config(PRESETS["20b"]) | changes
    return {key: value for key, value in values.items() if value is not ...}


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(CheckpointError) as caught:
        parse_config(values)
    message = str(caught.value)
    assert message.startswith("[load_checkpoint] config.json: ")
    return message


def small_config(**changes: Any) -> ModelConfig:
    fields: dict[str, Any] = {
        "num_layers": 2,
        "hidden_size": 96,
        "intermediate_size": 64,
        "num_experts": 8,
        "experts_per_token": 4,
        "num_heads": 4,
        "num_kv_heads": 2,
        "vocab_size": 1003,
        "sliding_window": 16,
        "layer_windows": (True, False),
        "max_context": 4096,
    }
    return ModelConfig(**(fields | changes))


def test_the_published_config_is_read_whole() -> None:
    config = parse_config(published())
    assert config == ModelConfig(
        num_layers=24,
        hidden_size=2880,
        intermediate_size=2880,
        num_experts=32,
        experts_per_token=4,
        num_heads=64,
        num_kv_heads=8,
        head_dim=64,
        vocab_size=201_088,
        sliding_window=128,
        layer_windows=(True, False) * 12,
        max_context=131_072,
        rope_theta=150_000.0,
        rope_factor=32.0,
        rope_original_context=4096,
        rope_beta_fast=32.0,
        rope_beta_slow=1.0,
        rope_truncate=False,
        swiglu_limit=7.0,
        swiglu_alpha=1.702,
        rms_norm_eps=1e-5,
        eos_token_ids=(200_002,),
        pad_token_id=199_999,
    )
    low, high = config.yarn_ramp()
    assert math.isclose(low, 8.0928, abs_tol=5e-5)
    assert math.isclose(high, 17.3980, abs_tol=5e-5)
    assert (config.query_size, config.kv_size) == (4096, 512)


@pytest.mark.parametrize("name", checkpoints.SHAPES)
def test_both_spellings_say_the_same(name: str) -> None:
    shape = checkpoints.SHAPES[name]
    ours = parse_config(hugging_face_config(shape))
    flat = parse_config(checkpoints.original_config(shape))
    assert flat == dataclasses.replace(ours, eos_token_ids=(), pad_token_id=None)


def test_rope_parameters_of_newer_transformers_are_read() -> None:
    old = published()
    rope = old["rope_scaling"] | {"rope_theta": old["rope_theta"]}
    new = published(rope_scaling=..., rope_theta=..., rope_parameters=rope)
    assert parse_config(new) == parse_config(old)


def test_transformers_own_files_are_read_and_mean_the_same(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GptOssConfig(
        num_hidden_layers=3,
        num_local_experts=16,
        hidden_size=96,
        intermediate_size=64,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=1003,
        sliding_window=24,
        eos_token_id=[1002, 7],
    )
    theirs.save_pretrained(tmp_path)
    ours = load_config(tmp_path / "config.json")
    assert (ours.num_layers, ours.num_experts, ours.num_heads) == (3, 16, 8)
    assert ours.layer_windows == (True, False, True)
    assert ours.eos_token_ids == (1002, 7)
    rope = theirs.rope_parameters
    assert ours.rope_theta == rope["rope_theta"]
    assert ours.rope_truncate is rope["truncate"] is False
    assert ours.rope_original_context == rope["original_max_position_embeddings"]


def test_absent_layer_types_alternate_from_sliding() -> None:
    assert parse_config(published(layer_types=...)).layer_windows == (True, False) * 12


def test_layer_types_are_taken_as_they_are() -> None:
    kinds = ["full_attention"] * 23 + ["sliding_attention"]
    assert parse_config(published(layer_types=kinds)).layer_windows == (False,) * 23 + (True,)


def test_a_window_is_needed_only_where_a_layer_slides() -> None:
    full = published(layer_types=["full_attention"] * 24, sliding_window=None)
    assert not any(parse_config(full).layer_windows)
    assert '"sliding_window" must be given' in refusal(published(sliding_window=None))


def test_plain_rotary_embedding_is_yarn_with_factor_one() -> None:
    config = parse_config(published(rope_scaling={"rope_type": "default"}))
    assert config.rope_factor == 1.0


def test_end_tokens_of_the_generation_config_come_first(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(published()))
    generation = {"eos_token_id": [200_012, 200_002, 199_999]}
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert load_config(tmp_path / "config.json").eos_token_ids == (200_012, 200_002, 199_999)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": ["x"]}')
    with pytest.raises(CheckpointError, match=r'generation_config.json: "eos_token_id" must'):
        load_config(tmp_path / "config.json")


REQUIRED = (
    "num_hidden_layers hidden_size intermediate_size num_local_experts num_attention_heads "
    "num_key_value_heads head_dim vocab_size rope_theta"
)


@pytest.mark.parametrize("key", REQUIRED.split())
def test_no_size_is_assumed(key: str) -> None:
    assert f'{key}" must' in refusal(published(**{key: ...}))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("num_hidden_layers", 0, "must be an integer from 1 to 1024, found 0"),
        ("num_hidden_layers", True, "found True"),
        ("num_hidden_layers", 24.0, "found 24.0"),
        ("num_hidden_layers", "24", "found '24'"),
        ("hidden_size", 2881, "must be a multiple of 32, found 2881"),
        ("hidden_size", 2**40, "must be an integer from 32 to 65536"),
        ("intermediate_size", 48, "must be a multiple of 32"),
        ("head_dim", 128, "must be 64, found 128"),
        ("num_key_value_heads", 7, "multiple of num_kv_heads, found 64 and 7"),
        ("num_local_experts", 3, "experts_per_token must be at most num_experts, found 4 of 3"),
        ("experts_per_token", 8, 'must agree with "num_experts_per_tok": 4, found 8'),
        ("vocab_size", -1, "must be an integer"),
        ("vocab_size", 100, "must be below vocab_size 100"),
        ("sliding_window", 0, "must be an integer from 1"),
        ("max_position_embeddings", 2**30, "must be an integer from 1 to 16777216"),
        ("rms_norm_eps", 0, "must be a number"),
        ("swiglu_limit", float("inf"), "must be a number"),
        ("rope_theta", float("nan"), "must be a number"),
        ("rope_theta", [150000], "must be a number"),
        ("layer_types", ["sliding_attention"] * 23, "must be a list of 24 names, found 23 of them"),
        ("layer_types", ["chunked_attention"] * 24, "found 'chunked_attention'"),
        ("layer_types", {}, "must be a list"),
        ("attention_bias", False, "must be true, found False"),
        ("tie_word_embeddings", True, "must be false, found True"),
        ("hidden_act", "gelu", "must be silu, found 'gelu'"),
        (
            "model_type",
            "llama",
            "must be \"gpt_oss\", found 'llama'; is this a gpt-oss checkpoint?",
        ),
        ("quantization_config", {"quant_method": "gptq"}, "\"mxfp4\", found 'gptq'"),
        ("quantization_config", 4, '"mxfp4"'),
        ("eos_token_id", [1, -1], "must be token ids, found -1"),
        ("pad_token_id", 1.5, "must be a token id"),
        ("rope_scaling", "yarn", "must be an object, found 'yarn'"),
        ("rope_scaling", {"rope_type": "linear"}, "found 'linear'"),
        ("rope_scaling", {"rope_type": "yarn"}, '"rope_scaling.factor" must be given'),
        ("rope_scaling", {"rope_type": "yarn", "factor": 0.5}, "must be a number from 1"),
        ("rope_scaling", {"rope_type": "yarn", "factor": 32, "truncate": 0}, "true or false"),
        ("rope_scaling", {"rope_type": "yarn", "factor": 32, "beta_fast": 0.5}, "ramp must rise"),
        ("rope_scaling", {"rope_type": "yarn", "factor": 32, "rope_theta": 1e4}, "one number"),
        ("rope_scaling", {"rope_type": "yarn", "factor": 32, "attention_factor": 1}, "1.346574"),
        ("rope_scaling", {"rope_type": "yarn", "factor": 32, "partial_rotary_factor": 0.5}, "1 or"),
        (
            "rope_scaling",
            {"rope_type": "yarn", "factor": 32, "mscale": 1, "mscale_all_dim": 1},
            "must be absent",
        ),
    ],
)
def test_a_wrong_value_is_refused_by_its_key(key: str, value: Any, words: str) -> None:
    assert words in refusal(published(**{key: value}))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "invalid JSON"),
        (b"[]", "found list"),
        (b"{", "invalid JSON"),
        (b'{"a": 1, "a": 2}', "duplicate key 'a'"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": 1' + b"0" * 400 + b"}", "integer of 401 digits"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": "\\ud800"}', "lone surrogate"),
        (b'{"a":' * 100_000, "nested too deep"),
        (b'{"a": [' + b"0," * 2_000_001 + b"0]}", "more than 2000000 values"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value,
)
def test_text_that_is_no_json_is_refused(tmp_path: Path, text: bytes, words: str) -> None:
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(CheckpointError, match=words):
        load_config(tmp_path / "config.json")


def test_a_giant_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with open(tmp_path / "config.json", "wb") as file:
        file.truncate(2**40)  # sparse: takes no space
    with pytest.raises(CheckpointError, match="at most 16000000 bytes of JSON"):
        load_config(tmp_path / "config.json")


def test_a_config_made_by_hand_is_checked_too() -> None:
    assert small_config().num_layers == 2
    for changes in (
        {"num_layers": 3},
        {"layer_windows": [True, False]},
        {"num_kv_heads": 3},
        {"rms_norm_eps": float("nan")},
        {"pad_token_id": 1003},
    ):
        with pytest.raises(InvalidArgument, match=r"^\[ModelConfig\] "):
            small_config(**changes)


@given(key=st.sampled_from(sorted(published())), value=JSON)
@settings(max_examples=150, deadline=None)
def test_any_value_under_any_key_is_read_or_refused(key: str, value: Any) -> None:
    try:
        config = parse_config(published(**{key: value}))
    except CheckpointError as error:
        str(error).encode("utf-8", "surrogatepass")
        return
    assert isinstance(config, ModelConfig)


@given(values=st.dictionaries(st.sampled_from(sorted(published())), JSON))
@settings(max_examples=100, deadline=None)
def test_any_object_is_read_or_refused(values: dict[str, Any]) -> None:
    try:
        parse_config(values)
    except CheckpointError:
        return


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX pipes")
def test_a_pipe_in_the_place_of_a_file_does_not_block(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="device or pipe"):
        load_config(tmp_path / "config.json")
