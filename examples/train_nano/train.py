"""Train the nano checkpoint, on a GPU in minutes or on the CPU in hours.

    python train.py --out RUN --device cuda --no-compile

The learning rate is held, then falls in a straight line to zero over the last `--decay` steps.
Batches depend on the seed and the step alone, so a run that is resumed from a saved state
(`--resume RUN/step_8000.pt`), also with more steps, goes on exactly as one long run would.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import conversations
import data
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
import vocabulary
from model import Nano, NanoConfig
from numpy.typing import NDArray
from torch import Tensor

# Rows are padded to one of these lengths: few shapes, so that each is compiled once.
LENGTHS = (96, 128, 192, 256, 384)
POOL_BATCHES = 50
BALANCE_WEIGHT = 0.01


@dataclass(frozen=True)
class Row:
    """One conversation in tokens, and which of them the assistant writes."""

    tokens: list[int]
    sampled: list[bool]


def encode_row(pieces: list[conversations.Piece]) -> Row:
    """Encode a conversation; pieces meet at special tokens, so each encodes on its own."""
    tokens: list[int] = []
    sampled: list[bool] = []
    for piece in pieces:
        encoded = vocabulary.encode(piece.text)
        tokens += encoded
        sampled += [piece.sampled] * len(encoded)
    return Row(tokens, sampled)


@dataclass(frozen=True)
class Batch:
    """Tokens [rows][time], and the places (flat) whose next token is trained on."""

    tokens: Tensor
    places: Tensor
    targets: Tensor

    def to(self, device: str) -> Batch:
        """Return it on a device."""
        return Batch(self.tokens.to(device), self.places.to(device), self.targets.to(device))


def make_batch(rows: list[Row], length: int, count: int) -> Batch:
    """Pad rows to [count][length]; what the assistant writes is trained on."""
    tokens = torch.zeros(count, length, dtype=torch.long)
    places, targets = [], []
    for number, row in enumerate(rows):
        tokens[number, : len(row.tokens)] = torch.tensor(row.tokens)
        wanted = [place for place, sampled in enumerate(row.sampled) if sampled]
        places += [number * length + place - 1 for place in wanted]
        targets += [row.tokens[place] for place in wanted]
    return Batch(tokens, torch.tensor(places), torch.tensor(targets))


def pool_of_batches(seed: int, pool: int, batch_tokens: int) -> list[Batch]:
    """Return the batches of one pool: conversations of like length together, in random order."""
    rng = random.Random(f"train {seed} {pool}")
    waiting: dict[int, list[Row]] = {length: [] for length in LENGTHS}
    batches: list[Batch] = []
    while len(batches) < POOL_BATCHES:
        row = encode_row(conversations.conversation(rng))
        length = next((n for n in LENGTHS if len(row.tokens) <= n), None)
        if length is None:
            continue
        waiting[length].append(row)
        if len(waiting[length]) == batch_tokens // length:
            batches.append(make_batch(waiting[length], length, len(waiting[length])))
            waiting[length] = []
    rng.shuffle(batches)
    return batches


def _as_arrays(seed: int, pool: int, batch_tokens: int) -> list[tuple[NDArray[np.int64], ...]]:
    """Return a pool as plain arrays; tensors would pass between processes as open files."""
    batches = pool_of_batches(seed, pool, batch_tokens)
    return [(b.tokens.numpy(), b.places.numpy(), b.targets.numpy()) for b in batches]


def batches_from(seed: int, step: int, batch_tokens: int, workers: int) -> Iterator[Batch]:
    """Yield the batches of a run from a step on, drawn ahead by so many processes."""
    pool, skip = divmod(step, POOL_BATCHES)
    if not workers:
        while True:
            yield from pool_of_batches(seed, pool, batch_tokens)[skip:]
            pool, skip = pool + 1, 0
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as executor:
        ahead: deque[Future[list[tuple[NDArray[np.int64], ...]]]] = deque()
        while True:
            while len(ahead) < 2 * workers:
                drawn = executor.submit(_as_arrays, seed, pool + len(ahead), batch_tokens)
                ahead.append(drawn)
            for arrays in ahead.popleft().result()[skip:]:
                yield Batch(*map(torch.from_numpy, arrays))
            pool, skip = pool + 1, 0


def evaluation(rng: random.Random, task: str, count: int) -> list[list[conversations.Piece]]:
    """Return conversations about unseen questions of one task, or with tools."""
    if task == "tools":
        return [conversations.tool_conversation(rng) for _ in range(count)]
    found = []
    for question in data.held_out_questions(count, seed=1, task=task):
        text, effort = conversations.opening(rng)
        before = conversations.prompt(question.text, text)
        reply = conversations.completion(question, effort)
        found.append([conversations.Piece(before, False), conversations.Piece(reply, True)])
    return found


def exact_share(model: Nano, forward: torch.nn.Module, task: str, count: int) -> float:
    """Return the share of unseen questions whose whole reply is the model's greedy choice.

    The reply is determined by the question, so greedy decoding reproduces it if and only if each
    of its tokens is the most likely one given those before: one forward pass decides.
    """
    rng, device = random.Random("evaluation openings"), model.lm_head.weight.device.type
    right = total = 0
    by_length: dict[int, list[Row]] = {length: [] for length in LENGTHS}
    for pieces in evaluation(rng, task, count):
        row = encode_row(pieces)
        fits = next((n for n in LENGTHS if len(row.tokens) <= n), None)
        if fits:
            by_length[fits].append(row)
    for length, rows in by_length.items():
        for start in range(0, len(rows), 6144 // length):
            part = rows[start : start + 6144 // length]
            batch = make_batch(part, length, 6144 // length).to(device)
            with torch.no_grad(), torch.autocast(device, torch.bfloat16):
                hidden, _ = forward(batch.tokens)
                chosen = model.lm_head(hidden.flatten(0, 1)[batch.places]).argmax(-1)
            wrong = set((batch.places[chosen != batch.targets] // length).tolist())
            right += len(part) - len(wrong)
            total += len(part)
    return right / total


def learning_rate(step: int, options: argparse.Namespace) -> float:
    """Return the rate of a step: a short rise, held, then straight down to zero."""
    rise = min(1.0, (step + 1) / options.warmup)
    fall = min(1.0, (options.steps - step) / options.decay)
    return float(options.rate * min(rise, fall))


def make_optimiser(model: Nano, rate: float) -> torch.optim.AdamW:
    """Return AdamW with weight decay on matrices only."""
    matrices = [p for n, p in model.named_parameters() if p.dim() > 1 and "bias" not in n]
    others = [p for n, p in model.named_parameters() if p.dim() <= 1 or "bias" in n]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), foreach=True)


def save(path: Path, model: Nano, optimiser: torch.optim.Optimizer, step: int) -> None:
    """Save all that a resumed run needs."""
    torch.save(
        {
            "config": model.config.as_dict(),
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "step": step,
        },
        path,
    )


def report(model: Nano, forward: torch.nn.Module, step: int, count: int) -> None:
    """Print the share of exact replies for each task."""
    shares = {task: exact_share(model, forward, task, count) for task in (*data.TASKS, "tools")}
    print(f"step {step} exact " + " ".join(f"{t} {s:.3f}" for t, s in shares.items()), flush=True)


def train(options: argparse.Namespace) -> None:
    """Run the training the options describe."""
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    model = Nano(NanoConfig(vocab_size=vocabulary.padded_size(), num_hidden_layers=options.layers))
    model.to(options.device)
    optimiser = make_optimiser(model, options.rate)
    step = 0
    if options.resume:
        state = torch.load(options.resume, weights_only=True, map_location=options.device)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        step = state["step"]
    if options.steps == 0:
        save(options.out / "final.pt", model, optimiser, step)
        return
    forward = torch.compile(model) if options.compile else model
    started, seen = time.time(), 0
    losses: list[Tensor] = []
    for drawn in batches_from(options.seed, step, options.batch_tokens, options.workers):
        if step == options.steps:
            break
        batch = drawn.to(options.device)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, options)
        with torch.autocast(options.device, torch.bfloat16):
            hidden, balance = forward(batch.tokens)
            logits = model.lm_head(hidden.flatten(0, 1)[batch.places])
        loss = F.cross_entropy(logits.float(), batch.targets)
        (loss + BALANCE_WEIGHT * balance).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.detach())
        seen += batch.tokens.numel()
        step += 1
        if step % 100 == 0:
            rate = seen / (time.time() - started)
            mean = torch.stack(losses).mean().item()
            print(f"step {step} loss {mean:.4f} balance {balance.item():.2f} "
                  f"norm {norm.item():.2f} tokens/s {rate:.0f}", flush=True)  # fmt: skip
            losses = []
        if step % options.save_every == 0:
            save(options.out / f"step_{step}.pt", model, optimiser, step)
            report(model, forward, step, 120)
    save(options.out / "final.pt", model, optimiser, step)
    report(model, forward, step, 500)
    print(f"seconds {time.time() - started:.0f}", flush=True)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="directory for saved states")
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--decay", type=int, default=2500, help="last steps, rate falling to 0")
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--batch-tokens", type=int, default=6144)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0, help="processes that draw batches")
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--resume", type=Path, help="a saved state to go on from")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
