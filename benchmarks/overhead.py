"""What plans cost over plain ``generate``: ours, by hand with hooks, and by hand in NNsight, with equal logits.

Run it with ``python -m benchmarks.overhead``. Bundled architectures with random weights, 32 new tokens. The base is
transformers' own ``generate`` without a plan, on a module that NNsight has never touched, with this package's scans, so
that a ratio holds nothing but the plan and how it is done. The other ways:

- ``stock``: the same with transformers' own scans, still without a plan;
- ``by hand``: pre-hooks and attention functions on a module that NNsight has never touched (``by_hand``);
- ``NNsight``: the same edit in a hand-written trace;
- ``ours``: ``model.intervene(plan).generate``;
- ``runner``: ``sg.generate`` of all prompts at once, records and all.

Before they are timed, each way's logits (of the runner, the tokens) are compared with those by hand. Time aside, what a
decode step takes is counted (``operations``): two numbers without noise.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationMixin

import segregation as sg
from benchmarks import by_hand
from benchmarks.operations import per_step
from benchmarks.subjects import MODELS, Prompts, Subject, needle_prompts, subject
from benchmarks.timing import Timed, append, interleaved, table
from segregation.errors import PlanError
from segregation.interventions.rules import Plan
from segregation.models.hybrid import HybridModel
from segregation.prompts.sample import Sample

NEW_TOKENS = 32
CASES = ((512, 1), (512, 4), (1024, 4))
"""Prompt tokens and batch."""
TOLERANCE = 1e-4
"""How far logits of two ways may lie apart; larger is another result."""
BASE = "plain"


@dataclass(frozen=True)
class Output:
    """New tokens, and the logits that chose them where they are to be had."""

    tokens: Int[Tensor, "step batch"]
    logits: Float[Tensor, "step batch d_vocab"] | None = None

    @classmethod
    def of(cls, logits: Sequence[Float[Tensor, "batch d_vocab"]]) -> "Output":
        """What greedy decoding makes of the logits of each step."""
        stacked = torch.stack(list(logits))
        return cls(stacked.argmax(-1), stacked)

    def away(self, other: "Output", steps: int | None = None) -> float:
        """The largest difference of logits; 0 where either has none."""
        if self.logits is None or other.logits is None:
            return 0.0
        return float((self.logits[:steps] - other.logits[:steps]).abs().max())


Way = Callable[[int], Output]
"""Generates this many tokens."""


def generated(generate: Callable[..., Any], *inputs: Any) -> Way:
    """Greedy generation of a given number of tokens through a ``generate`` of transformers' form."""

    def run(new: int) -> Output:
        options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}
        result = generate(*inputs, **options, return_dict_in_generate=True, output_logits=True)
        return Output.of(result.logits)

    return run


def plain_generate(module: Any) -> Callable[..., Any]:
    """transformers' own ``generate`` of a module, whatever class wraps it."""
    return lambda *inputs, **options: cast(Any, GenerationMixin).generate(module, *inputs, **options)


def runner(model: HybridModel, samples: Sequence[Sample], plan: Plan) -> Way:
    """``sg.generate`` of samples under one plan, all in one batch."""

    def run(new: int) -> Output:
        records = sg.generate(model, samples, plan, max_new_tokens=new, batch_size=len(samples))
        return Output(torch.tensor([record.tokens for record in records]).T)

    return run


def ways(subject: Subject, prompts: Prompts, new: int) -> Mapping[str, Way]:
    """Every way that is timed, by its name: without a plan, and ``plan: way``."""
    by_hand.check(subject, prompts, new)
    found: dict[str, Way] = {
        BASE: generated(plain_generate(subject.plain), prompts.ids),
        "stock": generated(plain_generate(subject.stock), prompts.ids),
    }
    for name, plan in by_hand.plans(subject).items():
        hooked = by_hand.with_hooks(subject.another(), subject.heads, name, prompts)
        trace = by_hand.with_nnsight(subject.traced(), subject.heads, name, prompts)
        found[f"{name}: by hand"] = generated(plain_generate(hooked), prompts.ids)
        found[f"{name}: NNsight"] = generated(trace, prompts.ids)
        found[f"{name}: ours"] = generated(subject.model.intervene(plan).generate, list(prompts.samples))
        found[f"{name}: runner"] = runner(subject.model, prompts.samples, plan)
    return found


def differences(found: Mapping[str, Way], new: int) -> dict[str, dict[str, float | str]]:
    """How far each way's logits are from those by hand of its plan, or from the base's without a plan.

    Raises:
        PlanError: other tokens, a difference beyond rounding, or a plan by hand that changes nothing.
    """
    outputs = {name: way(new) for name, way in found.items()}
    notes: dict[str, dict[str, float | str]] = {}
    for name, output in outputs.items():
        plan, _, way = name.partition(": ")
        reference = outputs[f"{plan}: by hand" if way else BASE]
        away = output.away(reference)
        if away > TOLERANCE or not output.tokens.equal(reference.tokens):
            raise PlanError(f"{name!r} must give what its reference gives, but its logits are off by {away:.2g}")
        if way == "by hand" and reference.away(outputs[BASE], steps=1) <= TOLERANCE:
            raise PlanError(f"{name!r} leaves the first new token's logits as they are; there is nothing to time")
        notes[name] = {"tokens": "equal"} if output.logits is None else {"logits off by": away}
    return notes


def measure(subject: Subject, prompt: int, batch: int, new: int, rounds: int) -> list[Timed]:
    """Every way in one case; for a single prompt, what a decode step takes is counted too."""
    found = ways(subject, needle_prompts(subject, prompt, batch), new)
    notes = differences(found, new)
    if batch == 1:
        for name, way in found.items():
            notes[name].update(per_step(way))
    return interleaved(
        "overhead",
        f"{subject.name}, {prompt} x {batch}",
        {name: lambda way=way: way(new) for name, way in found.items()},
        BASE,
        rounds=rounds,
        warm_up=0,  # the comparison of logits ran each once
        notes=notes,
    )


def main() -> None:
    """Print a table for each model and case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--cases", nargs="+", type=int, default=[number for case in CASES for number in case],
                        help="prompt tokens and batch, in pairs")  # fmt: skip
    parser.add_argument("--new", type=int, default=NEW_TOKENS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a file that JSON lines are appended to")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cases = list(zip(options.cases[::2], options.cases[1::2], strict=True))
    with torch.no_grad():
        for name in options.models:
            made = subject(name)
            for prompt, batch in cases:
                rows = measure(made, prompt, batch, options.new, options.rounds)
                print(table(rows), flush=True)
                if options.out is not None:
                    append(options.out, rows)


if __name__ == "__main__":
    main()
