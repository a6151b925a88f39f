"""How fast prompts are read together and one by one, and what the forms for a CPU save of that.

Run it with ``python -m benchmarks.reading``, on a GPU with ``--device cuda``. The comparisons:

- prompts of one length read one by one and so many together, up to a budget of tokens on a CPU, or by number on a GPU;
- on a CPU, a batch of prompts read and 64 rows decoded, with the matrix products and scans of transformers, and with
  the fast ones of this package (``scans`` and ``matmuls`` of ``sg.load_model``).

Weights of published models are random, and they have the first comparison only. Logits after the prompts are compared
with those of the base.
"""

import argparse
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

import segregation as sg
from benchmarks.published import PUBLISHED
from benchmarks.subjects import MODELS, subject
from benchmarks.timing import Timed, append, interleaved, table
from segregation.models.hybrid import HybridModel
from segregation.models.memory import Memory, merge
from segregation.runs import fitting
from segregation.runs.launch import Prompt, Row, run_rows
from segregation.runs.prefill import prefill

LENGTHS = {"cpu": (24, 64, 200, 512), "cuda": (256, 1024, 4096)}
BUDGETS = (320, 640, 1280, 2560, 5120)
"""Tokens that a CPU reads together at most."""
NUMBERS = (2, 4, 8, 16)
"""Prompts that a GPU reads together."""
ROWS, STEPS = 64, 8
"""Rows that are decoded, and for how many tokens."""

Found = dict[str, Tensor]


def random_prompts(model: HybridModel, tokens: int, number: int) -> list[Prompt]:
    """Prompts of random tokens."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.hf_model.config.vocab_size
    return [tuple(torch.randint(8, vocabulary, (tokens,), generator=generator).tolist()) for _ in range(number)]


def groups_of(model: HybridModel, prompts: Sequence[Prompt], budget: int) -> list[list[int]]:
    """The prompts that are read together where a CPU's budget is this."""
    before, fitting.CPU_TOKENS = fitting.CPU_TOKENS, budget
    try:
        return list(fitting.read_together(model, [len(prompt) - 1 for prompt in prompts]))
    finally:
        fitting.CPU_TOKENS = before


def together(name: str, model: HybridModel, tokens: int, rounds: int, device: str) -> list[Timed]:
    """Prompts of this many tokens, read one by one and together."""
    number = 16 if device == "cuda" else max(10, 5120 // tokens)
    prompts = random_prompts(model, tokens + 1, number)
    memories: dict[str, Memory] = {}

    def read(label: str, groups: list[list[int]]) -> None:
        memories[label] = merge([prefill(model, [prompts[i] for i in group]) for group in groups])

    ways: dict[str, list[list[int]]] = {"one by one": [[i] for i in range(number)]}
    if device == "cuda":
        ways |= {f"{n} together": [list(range(i, i + n)) for i in range(0, number, n)] for n in NUMBERS}
    else:
        ways |= {f"at most {budget} tokens": groups_of(model, prompts, budget) for budget in BUDGETS}
    rows = interleaved(
        "reading",
        f"{name}, {number} prompts of {tokens} tokens",
        {label: functools.partial(read, label, groups) for label, groups in ways.items()},
        "one by one",
        rounds=rounds,
        warm_up=1,
    )
    return noted(
        rows, {label: last_logits(model, prompts, memory) for label, memory in memories.items()}, number * tokens
    )


def forms(name: str, rounds: int) -> Iterator[Timed]:
    """Reading and decoding with transformers' forms, and with ours."""
    models = {
        "transformers": sg.load_model(name, scans="transformers", matmuls="transformers"),
        "fast scans": sg.load_model(name, matmuls="transformers"),
        "fast scans and products": sg.load_model(name),
    }
    prompts = random_prompts(models["transformers"], 201, 10)
    ready: dict[str, Memory] = {}
    found: Found = {}

    def read(label: str) -> None:
        ready[label] = prefill(models[label], prompts)

    def decode(label: str) -> None:
        memory = ready[label].select(torch.arange(ROWS) % len(prompts))
        found[label] = last_logits(models[label], [prompts[i % len(prompts)] for i in range(ROWS)], memory, STEPS)

    reads: dict[str, Callable[[], object]] = {label: functools.partial(read, label) for label in models}
    case = f"{name}, 10 prompts of 200 tokens read"
    rows = interleaved("reading", case, reads, "transformers", rounds=rounds)
    copies = {label: memory.select(torch.arange(len(prompts))) for label, memory in ready.items()}
    logits = {label: last_logits(models[label], prompts, memory) for label, memory in copies.items()}
    yield from noted(rows, logits, len(prompts) * 200)
    steps: dict[str, Callable[[], object]] = {label: functools.partial(decode, label) for label in models}
    case = f"{name}, {STEPS} tokens decoded in {ROWS} rows"
    yield from noted(interleaved("reading", case, steps, "transformers", rounds=rounds), found, ROWS * STEPS)


def opened(name: str, device: str) -> HybridModel:
    """A published model with random weights, or a bundled one."""
    return subject(name, device=device).model if name in PUBLISHED else sg.load_model(name, device_map=device)


def last_logits(model: HybridModel, prompts: Sequence[Prompt], memory: Memory, steps: int = 1) -> Tensor:
    """The logits after the last of so many tokens: the prompts' last one, then 9 in every row.

    So that what is read does not depend on logits, which rounding may decide.
    """
    seen: list[Tensor] = []

    def step(running: Tensor, number: int, logits: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(logits)
        done = torch.full_like(running, number + 1 == steps, dtype=torch.bool)
        return torch.full_like(running, 9), done

    run_rows(model, [Row(i, prompt, sg.Plan()) for i, prompt in enumerate(prompts)], memory, steps, step)
    return seen[-1].float()


def noted(rows: list[Timed], found: Found, tokens: int) -> list[Timed]:
    """The rows with tokens a second, and how far the logits are from those of the base."""
    for row in rows:
        notes: dict[str, float | str] = row.notes  # type: ignore[assignment]
        notes["tokens a second"] = float(round(tokens / row.seconds))
        notes["largest gap of logits"] = float((found[row.way] - found[row.base]).abs().max())
    return rows


def main() -> None:
    """Print a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a file that JSON lines are appended to")
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1)
    for name in options.models or (MODELS if options.device == "cpu" else ("google/recurrentgemma-2b",)):
        with torch.inference_mode():
            model = opened(name, options.device)
            rows = [
                row
                for tokens in LENGTHS[options.device]
                for row in together(name, model, tokens, options.rounds, options.device)
            ]
            if options.device == "cpu" and name not in PUBLISHED:
                rows += forms(name, options.rounds)
        if options.out is not None:
            append(options.out, rows)
        print(table(rows), flush=True)


if __name__ == "__main__":
    main()
