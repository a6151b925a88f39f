"""How many new tokens a second ``generate`` writes against the batch, without a plan and under one.

Run it with ``python -m benchmarks.throughput``: bundled architectures with random weights, on a CPU, or on a GPU with
``--device cuda``. Prompts are of one length. A token's time holds its share of the prefill. The plan keeps four heads
of each layer in generation; ways are those of ``overhead``: ``plain`` (no plan), ``ours`` and ``runner``.
"""

import argparse
import dataclasses
from pathlib import Path

import torch

from benchmarks import by_hand
from benchmarks.overhead import BASE, NEW_TOKENS, generated, plain_generate, runner
from benchmarks.subjects import MODELS, Subject, needle_prompts, subject
from benchmarks.timing import Timed, append, interleaved, table

BATCHES = (1, 4, 16, 64)
PROMPT = 128


def measure(subject: Subject, prompt: int, batch: int, new: int, rounds: int) -> list[Timed]:
    """The three ways at one batch."""
    plan = by_hand.plans(subject)[by_hand.KEEP]
    prompts = needle_prompts(subject, prompt, batch)
    ways = {
        BASE: generated(plain_generate(subject.plain), prompts.ids),
        "ours": generated(subject.model.intervene(plan).generate, prompts.ids),
        "runner": runner(subject.model, prompts.samples, plan),
    }
    rows = interleaved(
        "throughput",
        f"{subject.name}, batch {batch}",
        {name: lambda way=way: way(new) for name, way in ways.items()},
        BASE,
        rounds=rounds,
    )
    return [dataclasses.replace(row, notes={"new tokens a second": batch * new / row.seconds}) for row in rows]


def main() -> None:
    """Print a table for each model and batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--prompt", type=int, default=PROMPT)
    parser.add_argument("--new", type=int, default=NEW_TOKENS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, help="a file that JSON lines are appended to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        for name in options.models:
            made = subject(name, device=options.device)
            for batch in options.batches:
                rows = measure(made, options.prompt, batch, options.new, options.rounds)
                print(table(rows), flush=True)
                if options.out is not None:
                    append(options.out, rows)


if __name__ == "__main__":
    main()
