"""Measure a model of the zoo against its held-out gates: ``python -m segregation.zoo.evaluate NAME``.

Nothing it asks was trained on: needles and haystacks lie on the held-out side of the split, the classic needle is never
trained on. (The facts are: they are knowledge.) The exit code is 1 where a gate is missed.
"""

import argparse
import json
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from segregation.models.hybrid import HybridModel
from segregation.models.load import load_model
from segregation.prompts import benchmarks
from segregation.prompts.grid import Grid
from segregation.prompts.sample import Sample
from segregation.runs.generate import generate
from segregation.runs.loglikelihood import loglikelihood
from segregation.scores.choice import choice_accuracy
from segregation.scores.retrieval import retrieval_score, target_loglikelihood
from segregation.scores.statistics import wilson
from segregation.zoo.card import render
from segregation.zoo.language import write_document

LENGTHS = (128, 256, 512, 768, 1024)
DEPTHS = (0, 20, 40, 60, 80, 100)
N_PER_CELL = 8
LONGEST_NEEDLE = 64
"""New tokens given to an answer; the longest needle of the zoo has 55, and generation stops at its end."""
OPENING = "This is a story about the"
"""How every document of the language begins, at no cost in nats."""


@dataclass(frozen=True)
class Gate:
    """One held-out figure and what it must reach.

    Attributes:
        measured: a rate (or, for the language, nats per token above the generator's).
        bound: the least it must be (for the language: the most).
        interval: Wilson 95% of a rate.
        by_length: exact retrieval at each context length; each must reach the bound too.
        by_depth: the same at each depth.
    """

    name: str
    measured: float
    bound: float
    n: int
    interval: tuple[float, float] | None = None
    by_length: dict[int, float] = field(default_factory=dict)
    by_depth: dict[int, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the figure and all of its parts reach the bound.

        >>> Gate("facts", 0.97, 0.95, 400).passed, Gate("language", 0.4, 0.3, 50).passed
        (True, False)
        """
        if self.name == "language":
            return self.measured <= self.bound
        return min([self.measured, *self.by_length.values(), *self.by_depth.values()]) >= self.bound


def read_gates(figures: Mapping[str, Any]) -> list[Gate]:
    """The gates of a model's ``gates.json``."""

    def numbers(rates: Mapping[str, float]) -> dict[int, float]:
        return {int(key): rate for key, rate in rates.items()}

    return [
        Gate(
            **{
                **gate,
                "interval": None if gate["interval"] is None else tuple(gate["interval"]),
                "by_length": numbers(gate["by_length"]),
                "by_depth": numbers(gate["by_depth"]),
            }
        )
        for gate in figures["gates"]
    ]


def retrieval(model: HybridModel, name: str, grid: Grid) -> Gate:
    """Exact retrieval over a grid; the bound is .95."""
    assert model.tokenizer is not None
    records = list(generate(model, grid.samples(model.tokenizer), max_new_tokens=LONGEST_NEEDLE, batch_size=48))
    found = [(record.metadata, retrieval_score(record).exact) for record in records]

    def rates(part: str) -> dict[int, float]:
        values = sorted({int(str(metadata[part])) for metadata, _ in found})
        return {v: _mean([exact for metadata, exact in found if metadata[part] == v]) for v in values}

    exact = [exact for _, exact in found]
    return Gate(name, _mean(exact), 0.95, len(exact), _interval(exact), rates("context_length"), rates("depth_percent"))


def choice(model: HybridModel, name: str, samples: Sequence[Sample], bound: float) -> Gate:
    """The accuracy of a choice task."""
    right = [choice_accuracy(record).acc for record in loglikelihood(model, samples)]
    return Gate(name, _mean(right), bound, len(right), _interval(right))


def language(model: HybridModel, n: int = 60) -> Gate:
    """Nats per token on held-out documents above the information that the generator put into them; the bound is .3."""
    rng = random.Random("held-out documents")
    samples, nats = [], 0.0
    for number in range(n):
        document = write_document(rng, "heldout")
        samples.append(Sample(id=f"document/{number}", prompt=OPENING, target=document.text.removeprefix(OPENING)))
        nats += document.nats
    records = list(loglikelihood(model, samples, batch_size=4))
    surprise = -sum(map(target_loglikelihood, records))
    tokens = sum(record.token_counts[0] for record in records)
    return Gate("language", (surprise - nats) / tokens, 0.3, n)


def evaluate(model: HybridModel, n_per_cell: int = N_PER_CELL) -> list[Gate]:
    """Every gate of the zoo."""
    gates = []
    for needles in ("synthetic", "classic"):
        for haystack in ("synthetic", "python-reference"):
            grid = Grid(
                LENGTHS,
                DEPTHS,
                needles=needles,
                haystack=haystack,
                n_per_cell=n_per_cell,
                max_needle_tokens=None,
                seed=2026,
            )
            gates.append(retrieval(model, f"{needles} needle, {haystack} haystack", grid))
            print(_line(gates[-1]), flush=True)
    gates.append(choice(model, "facts", benchmarks.facts(), 0.95))
    gates.append(choice(model, "sentiment", benchmarks.sentiment(400), 0.85))
    gates.append(choice(model, "entailment", benchmarks.entailment(400), 0.85))
    gates.append(language(model))
    for gate in gates[4:]:
        print(_line(gate), flush=True)
    return gates


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values)


def _interval(values: Sequence[bool]) -> tuple[float, float]:
    interval = wilson(sum(values), len(values))
    return round(interval.low, 4), round(interval.high, 4)


def _line(gate: Gate) -> str:
    parts = [
        f"{'pass' if gate.passed else 'MISS'}  {gate.name}: {gate.measured:.4f} (bound {gate.bound}, n = {gate.n})"
    ]
    for name, rates in (("length", gate.by_length), ("depth", gate.by_depth)):
        if rates:
            parts.append(f"      by {name}: " + "  ".join(f"{key}: {value:.3f}" for key, value in rates.items()))
    return "\n".join(parts)


def main() -> int:
    """Measure and print; with ``--card`` also write ``gates.json`` and the model card beside the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a bundled name or a folder")
    parser.add_argument("--card", type=Path, metavar="FOLDER", help="the model's folder, to write its card there")
    options = parser.parse_args()
    model = load_model(options.model)
    gates = evaluate(model)
    if options.card:
        figures = {"weights_sha256": model.description["weights_sha256"], "gates": [asdict(gate) for gate in gates]}
        (options.card / "gates.json").write_text(json.dumps(figures, indent=1) + "\n")
        training = json.loads((options.card / "training.json").read_text())
        (options.card / "README.md").write_text(render(training, json.loads(json.dumps(figures))))
    return 0 if all(gate.passed for gate in gates) else 1


if __name__ == "__main__":
    sys.exit(main())
