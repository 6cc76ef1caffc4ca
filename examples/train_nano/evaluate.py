"""Measure a saved state on unseen questions: the share of final answers that are exactly right.

    python evaluate.py RUN/final.pt --count 500

Float32 arithmetic on the values that are exported (experts as MXFP4, the rest rounded to bf16).
A reply is first compared with the worked one, in one pass; only where they part is it decoded.
"""

from __future__ import annotations

import argparse
import random
import re
from collections import Counter
from pathlib import Path

import conversations
import data
import torch
import vocabulary
from export import load_state
from model import Nano, bf16_fake_round

LONGEST_REPLY = 400
MULTIPLE = 32


def round_to_exported(model: Nano) -> None:
    """Round in place what export.py stores in bf16; the experts round themselves."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith(("gate_up_proj", "down_proj")):
                parameter.copy_(bf16_fake_round(parameter))


def logits(model: Nano, tokens: list[int]) -> torch.Tensor:
    """Return the logits of every token [len(tokens)][vocabulary]."""
    padded = tokens + [0] * (-len(tokens) % MULTIPLE)
    with torch.no_grad():
        hidden, _ = model(torch.tensor([padded]))
        return model.lm_head(hidden[0, : len(tokens)])


def greedy_final(model: Nano, prompt: list[int], worked: list[int]) -> str:
    """Return the final message of the greedy reply; `worked` is a guess that saves work."""
    chosen = logits(model, prompt + worked)[len(prompt) - 1 : -1].argmax(-1).tolist()
    agreed = next((i for i, (a, b) in enumerate(zip(chosen, worked, strict=True)) if a != b), None)
    reply = worked if agreed is None else [*worked[:agreed], chosen[agreed]]
    last = vocabulary.encoding().encode_single_token("<|return|>")
    while reply[-1] != last and len(reply) < LONGEST_REPLY:
        reply.append(int(logits(model, prompt + reply)[-1].argmax()))
    text = vocabulary.encoding().decode(reply)
    found = re.search(r"<\|channel\|>final<\|message\|>(.*)<\|return\|>", text, re.DOTALL)
    return found[1] if found else ""


def main() -> None:
    """Read the command line, ask, and print the shares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("state", type=Path)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--effort", choices=data.EFFORTS, help="default: each in turn, at random")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_state(options.state)
    round_to_exported(model)
    rng = random.Random("evaluation openings")
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for question in data.held_out_questions(options.count, seed=options.seed):
        effort = options.effort or rng.choice(data.EFFORTS)
        opening = conversations.system_message(rng, effort)
        prompt = vocabulary.encode(conversations.prompt(question.text, opening))
        worked = vocabulary.encode(conversations.completion(question, effort))
        final = greedy_final(model, prompt, worked)
        asked[question.task] += 1
        right[question.task] += data.is_correct(final, question)
        if not data.is_correct(final, question):
            print(f"wrong: {question.text} -> {final!r}, not {question.answer!r}")
    for task, total in asked.items():
        print(f"{task} {right[task]}/{total}")
    print(f"all {sum(right.values())}/{sum(asked.values())}")


if __name__ == "__main__":
    main()
