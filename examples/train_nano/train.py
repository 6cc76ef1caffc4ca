"""Train the nano checkpoint on the CPU.

    python train.py --out RUN --steps 12000 --decay 2500

The learning rate is held, then falls in a straight line to zero over the last `--decay` steps.
Batches depend on the seed and the step alone, so a run that is resumed from a saved state
(`--resume RUN/step_8000.pt`), also with more steps, goes on exactly as one long run would.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import conversations
import data
import torch
import torch.nn.functional as F  # noqa: N812
import vocabulary
from model import Nano, NanoConfig
from torch import Tensor

# Rows are padded to one of these lengths: few shapes, so that each is compiled once.
LENGTHS = (96, 128, 192, 288)
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


def batches_from(seed: int, step: int, batch_tokens: int) -> Iterator[Batch]:
    """Yield the batches of a run from a step on."""
    pool, skip = divmod(step, POOL_BATCHES)
    while True:
        yield from pool_of_batches(seed, pool, batch_tokens)[skip:]
        pool, skip = pool + 1, 0


def evaluation(rng: random.Random, task: str, count: int) -> list[list[conversations.Piece]]:
    """Return conversations about unseen questions of one task, or with tools."""
    if task == "tools":
        return [conversations.tool_conversation(rng) for _ in range(count)]
    return [
        [
            conversations.Piece(
                conversations.prompt(question.text, conversations.opening(rng)), False
            ),
            conversations.Piece(conversations.completion(question.analysis, question.answer), True),
        ]
        for question in data.held_out_questions(count, seed=1, task=task)
    ]


def exact_share(model: Nano, forward: torch.nn.Module, task: str, count: int) -> float:
    """Return the share of unseen questions whose whole reply is the model's greedy choice.

    The reply is determined by the question, so greedy decoding reproduces it if and only if each
    of its tokens is the most likely one given those before: one forward pass decides.
    """
    rng = random.Random("evaluation openings")
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
            batch = make_batch(part, length, 6144 // length)
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
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
    optimiser = make_optimiser(model, options.rate)
    step = 0
    if options.resume:
        state = torch.load(options.resume, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        step = state["step"]
    if options.steps == 0:
        save(options.out / "final.pt", model, optimiser, step)
        return
    forward = torch.compile(model) if options.compile else model
    started, seen, losses = time.time(), 0, []
    for batch in batches_from(options.seed, step, options.batch_tokens):
        if step == options.steps:
            break
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, options)
        with torch.autocast("cpu", torch.bfloat16):
            hidden, balance = forward(batch.tokens)
            logits = model.lm_head(hidden.flatten(0, 1)[batch.places])
        loss = F.cross_entropy(logits.float(), batch.targets)
        (loss + BALANCE_WEIGHT * balance).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
        seen += batch.tokens.numel()
        step += 1
        if step % 100 == 0:
            rate = seen / (time.time() - started)
            mean = sum(losses) / len(losses)
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
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--resume", type=Path, help="a saved state to go on from")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
