"""A 20b checkpoint in files: from the page cache to ready, its logits against the CPU engine in
float32, and transformers' GptOssForCausalLM on the GPU with the same weights (dequantised to
bfloat16), one sequence.

The file is made of one block of random values a tensor kind, repeated, with the distributions of
`gpt_oss_native.synthesize`: full size in a few seconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpt_oss_native as gon
import numpy as np
from cuda_bench.counts import table, tokens_of, touched_experts
from gpt_oss_native.checkpoint.safetensors_writer import TensorSpec, write_safetensors
from gpt_oss_native.ops import to_bf16
from gpt_oss_native.synthesize import (
    PRESETS,
    Shape,
    hugging_face_config,
    hugging_face_tensors,
    scale_centre,
    weight_distribution,
)

GREEDY = gon.Sampling(temperature=0)
# Of rows of logits: a fault of a kernel gives 1, rounding of activations to bfloat16 about 0.01.
MOST_DIFFERENCE = 0.05
_PIECE = 8 << 20
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def write_checkpoint(directory: Path, shape: Shape) -> int:
    """Bytes written."""
    rng = np.random.default_rng(2)
    normal = rng.standard_normal(_PIECE // 2, np.float32)
    codes = rng.integers(0, 256, _PIECE, np.uint8)

    def piece_of(spec: TensorSpec) -> np.ndarray:
        if spec.dtype == "BF16":
            mean, deviation = weight_distribution(spec)
            return to_bf16(mean + deviation * normal).view(np.uint8)
        return codes % 4 + scale_centre(spec) - 2 if spec.name.endswith("_scales") else codes

    def data(spec: TensorSpec) -> Iterator[np.ndarray]:
        piece, left = piece_of(spec), spec.nbytes
        while left > 0:
            yield piece[: min(left, len(piece))]
            left -= len(piece)

    size = write_safetensors(
        directory / "model.safetensors", hugging_face_tensors(shape), data=data
    )
    (directory / "config.json").write_text(json.dumps(hugging_face_config(shape)))
    return size


def load_seconds(directory: Path, repeats: int = 3) -> list[float]:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        with gon.Model.load(directory, device="cuda"):
            times.append(time.perf_counter() - start)
    return times


def our_token_seconds(model: gon.Model, prompt: list[int], count: int = 150) -> float:
    with model.session() as session:
        session.forward(prompt[:-1], logits="none")
        stamps = []
        for _ in session.generate(prompt[-1:], GREEDY, max_new_tokens=count):
            stamps.append(time.perf_counter())
    return float(np.diff(stamps[20:]).mean())


def check_logits(directory: Path, vocab: int) -> None:
    """Ends the program where the device's logits are not those of the CPU engine in float32, up to
    rounding of activations: few rows at a time, and at once."""
    tokens = tokens_of(40, vocab)
    found = {}
    with gon.Model.load(directory, device="cuda") as model:
        for size in (1, 20, 40):
            with model.session() as session:
                parts = range(0, len(tokens), size)
                rows = [session.forward(tokens[a : a + size], logits="all") for a in parts]
            found[size] = np.concatenate(rows)
    start = time.perf_counter()
    with (
        gon.Model.load(directory, device="cpu", precision="float32") as model,
        model.session() as session,
    ):
        exact = session.forward(tokens, logits="all")
    print(f"the same by the CPU engine in float32: {time.perf_counter() - start:.1f} s")
    table_rows = [["tokens at a time", "median", "worst", "likeliest agrees"]]
    medians = []
    for size, logits in found.items():
        error = np.linalg.norm(logits - exact, axis=1) / np.linalg.norm(exact, axis=1)
        agree = float((logits.argmax(axis=1) == exact.argmax(axis=1)).mean())
        medians.append(float(np.median(error)))
        table_rows.append(
            [str(size), f"{medians[-1]:.4f}", f"{float(error.max()):.4f}", f"{agree:.0%}"]
        )
    table(f"logits of {len(tokens)} tokens, relative difference of rows to float32", table_rows)
    if not max(medians) < MOST_DIFFERENCE:
        sys.exit(f"expected a median below {MOST_DIFFERENCE}")


# --- transformers ---------------------------------------------------------------------------------


def transformers_model(model: gon.Model, shape: Shape) -> Any:
    """GptOssForCausalLM in bfloat16 on the GPU, from the checkpoint's files."""
    import torch
    from transformers import GptOssConfig, GptOssForCausalLM

    published = hugging_face_config(shape)
    del published["quantization_config"]  # dequantised here
    file = np.memmap(model.checkpoint.files[0], np.uint8, "c")
    types = {"BF16": torch.bfloat16, "U8": torch.uint8}

    def tensor(record: Any) -> Any:
        data = torch.from_numpy(np.asarray(file[record.begin : record.end])).cuda()
        return data.view(types[record.dtype]).view(tuple(record.shape))

    table = torch.tensor([*_E2M1, *(-v for v in _E2M1)], device="cuda", dtype=torch.bfloat16)
    records = model.checkpoint.tensors
    state = {}
    for name, record in records.items():
        if name.endswith("_blocks"):
            blocks = tensor(record).long()  # [experts][rows][blocks][16]
            codes = torch.stack([blocks & 15, blocks >> 4], dim=-1).flatten(-2)
            scales = tensor(records[name.replace("_blocks", "_scales")]).float()
            values = table[codes] * torch.exp2(scales - 127).bfloat16()[..., None]
            name = name.removesuffix("_blocks")
            state[name] = values.flatten(-2).transpose(1, 2).contiguous()
        elif not name.endswith("_scales"):
            state[name] = tensor(record)
    with torch.device("meta"):
        other = GptOssForCausalLM(GptOssConfig(**published))
    other.load_state_dict(state, strict=True, assign=True)
    rotary = type(other.model.rotary_emb)(config=other.config)
    other.model.rotary_emb = rotary.cuda()
    return other.eval()


def their_token_seconds(other: Any, prompt: list[int], count: int = 24) -> float:
    import torch

    times = []
    with torch.inference_mode():
        ids = torch.tensor([prompt], device="cuda")
        out = other(input_ids=ids, use_cache=True, logits_to_keep=1)
        for _ in range(count):
            ids = out.logits[:, -1:].argmax(-1)
            torch.cuda.synchronize()
            start = time.perf_counter()
            out = other(input_ids=ids, past_key_values=out.past_key_values, use_cache=True)
            out.logits.sum().item()
            times.append(time.perf_counter() - start)
    return statistics.median(times[8:])


def compare(model: gon.Model, shape: Shape) -> float:
    """How many times faster the engine is; prints the table."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    start = time.perf_counter()
    other = transformers_model(model, shape)
    print(f"transformers' model made in {time.perf_counter() - start:.1f} s", flush=True)
    prompt = tokens_of(512, shape.vocab_size)
    choices: list[Any] = []
    hooks = [
        layer.mlp.router.register_forward_hook(lambda _m, _in, out: choices.append(out[2].cpu()))
        for layer in other.model.layers
    ]
    with torch.inference_mode(), model.session() as session:
        ids = torch.tensor([prompt[:64]], device="cuda")
        theirs = other(input_ids=ids).logits[0].float().cpu().numpy()
        ours = session.forward(prompt[:64], logits="all")
    for hook in hooks:
        hook.remove()
    for count in (16, 64):
        touched = statistics.mean(len(layer[:count].unique()) for layer in choices)
        expected = touched_experts(model.config, count)
        print(
            f"experts of a layer that {count} tokens touch: {touched:.1f}, counted {expected:.1f}"
        )
    error = np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
    agree = float((ours.argmax(axis=1) == theirs.argmax(axis=1)).mean())
    print(
        f"logits of 64 tokens against theirs: relative difference of rows {np.median(error):.3f} "
        f"(median), {error.max():.3f} (worst); the likeliest token agrees in {agree:.0%}"
    )
    rows = [["", "us a token", "times"]]
    mine = our_token_seconds(model, prompt)
    rows.append(["gpt-oss-native", f"{1e6 * mine:.0f}", ""])
    best = float("inf")
    for kind in (None, "eager", "batched_mm", "grouped_mm"):
        try:
            if kind is not None:
                other.config._experts_implementation = kind
            seconds = their_token_seconds(other, prompt)
        except Exception as error:  # what an installation lacks
            rows.append([f"transformers, experts {kind}", f"{type(error).__name__}", ""])
            continue
        name = kind or f"as it comes ({other.config._experts_implementation})"
        rows.append([f"transformers, experts {name}", f"{1e6 * seconds:.0f}", ""])
        rows[-1][2] = f"{seconds / mine:.1f}"
        best = min(best, seconds)
    attention = other.config._attn_implementation
    title = (
        f"decode at context 512, {shape.num_hidden_layers} layers; transformers "
        f"{transformers.__version__}, torch {torch.__version__}, attention {attention}"
    )
    table(title, rows)
    return best / mine


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--layers", type=int, default=24, help="of the 20b")
    parser.add_argument("--directory", help="where the file lies for a while")
    parser.add_argument("--no-transformers", action="store_true")
    parser.add_argument("--reached", type=Path, help="where to write the goals reached, JSON")
    args = parser.parse_args()
    shape = dataclasses.replace(PRESETS["20b"], num_hidden_layers=args.layers)
    reached = {}
    with tempfile.TemporaryDirectory(dir=args.directory) as name:
        directory = Path(name)
        start = time.perf_counter()
        size = write_checkpoint(directory, shape)
        print(f"{size / 1e9:.2f} GB written in {time.perf_counter() - start:.1f} s", flush=True)
        times = load_seconds(directory)
        rows = [[str(i + 1), f"{s:.2f}", f"{size / s / 1e9:.1f}"] for i, s in enumerate(times)]
        table("from the page cache to ready", [["attempt", "s", "GB/s"], *rows])
        if args.layers == PRESETS["20b"].num_hidden_layers:
            reached["20b load"] = statistics.median(times)
        check_logits(directory, shape.vocab_size)
        if not args.no_transformers and importlib.util.find_spec("transformers"):
            with gon.Model.load(directory, device="cuda") as model:
                reached["20b transformers"] = compare(model, shape)
    if args.reached:
        args.reached.write_text(json.dumps(reached))


if __name__ == "__main__":
    main()
