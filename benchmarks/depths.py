"""What reading the needle at every depth of one haystack costs when prompts share what they have in common.

Run it with ``python -m benchmarks.depths``. One haystack has the classic needle at evenly spaced depths. The ways:

- ``alone``: every prompt is read by itself;
- ``in pieces``: the haystack is read once, up to each depth, and every prompt goes on from its own (``runs.prefill``).

Logits after the prompt and greedy tokens are compared row by row with those of ``alone``.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

import segregation as sg
from benchmarks.sweep import MODELS
from benchmarks.timing import append, interleaved, table
from segregation.models.hybrid import HybridModel
from segregation.models.memory import Memory, merge
from segregation.prompts.haystack import python_reference, texts
from segregation.prompts.sample import Sample
from segregation.runs.launch import Row, run_rows
from segregation.runs.prefill import prefill, prefill_pieces
from segregation.runs.prefix_tree import prefix_tree, tokens_read


def one_haystack(model: HybridModel, tokens: int, depths: int) -> list[Sample]:
    """The classic needle at evenly spaced depths of the same text."""
    import random

    text = python_reference().text(random.Random(0), 12 * tokens)
    percents = [100 * i / (depths - 1) for i in range(depths)]
    assert model.tokenizer is not None
    return sg.needle_grid(model.tokenizer, (tokens,), percents, haystack=texts("one", [text]))


def written(model: HybridModel, prompts: list[tuple[int, ...]], memory: Memory, new: int) -> tuple[Tensor, Tensor]:
    """The first logits of every row, and its greedy tokens."""
    logits: list[Tensor] = []

    def step(_running: Tensor, number: int, found: Tensor) -> tuple[Tensor, Tensor]:
        logits.append(found)
        best = found.argmax(-1)
        return best, torch.full_like(best, number + 1 == new, dtype=torch.bool)

    run_rows(model, [Row(i, prompt, sg.Plan()) for i, prompt in enumerate(prompts)], memory, new, step)
    return logits[0], torch.stack([found.argmax(-1) for found in logits], dim=1)


def measure(name: str, tokens: int, depths: int, new: int, rounds: int, path: Path | None) -> str:
    """Time both ways on one model; the table of it."""
    model = sg.load_model(name)
    prompts = [tuple(model.encode(sample)) for sample in one_haystack(model, tokens, depths)]
    cut = [prompt[:-1] for prompt in prompts]
    pieces = prefix_tree(cut)
    found: dict[str, Memory] = {}

    def alone() -> None:
        found["alone"] = merge([prefill(model, [prompt]) for prompt in prompts])

    def in_pieces() -> None:
        parts = prefill_pieces(model, cut, pieces, sg.Plan())
        found["in pieces"] = merge([parts[number] for number in range(len(prompts))])

    with torch.inference_mode():
        rows = interleaved(
            "depths",
            f"{name}, {depths} depths of {tokens} tokens",
            {"alone": alone, "in pieces": in_pieces},
            "alone",
            rounds=rounds,
            notes={"alone": {"tokens read": sum(map(len, cut))}, "in pieces": {"tokens read": tokens_read(pieces)}},
        )
        (logits, own), (others, theirs) = (written(model, prompts, found[way], new) for way in ("alone", "in pieces"))
    same = int((own == theirs).all(-1).sum())
    notes: dict[str, float | str] = rows[1].notes  # type: ignore[assignment]
    notes |= {"rows equal": f"{same} of {len(own)}", "largest gap of logits": float((logits - others).abs().max())}
    if path is not None:
        append(path, rows)
    return table(rows)


def main() -> None:
    """Print a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--tokens", type=int, default=960, help="of haystack and needle; the prompt is some longer")
    parser.add_argument("--depths", type=int, default=11)
    parser.add_argument("--new", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a file that JSON lines are appended to")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.models:
        print(measure(name, options.tokens, options.depths, options.new, options.rounds, options.out), flush=True)


if __name__ == "__main__":
    main()
