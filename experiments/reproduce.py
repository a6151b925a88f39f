"""Every experiment on both bundled models: one table of claims, one report.

    python -m experiments.reproduce

What no claim rests on (the whole map, sweeps in all phases, borders of routes) runs on fewer samples than in the
experiment by itself, or not at all.
Writes one run folder per experiment and model below ``runs/reproduce``, and there ``claims.json``, ``figures/`` and
``report.html`` over all of them. Run it again after an interruption: it goes on where it was.
"""

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from experiments import (
    attention_ablation,
    benchmarks,
    double_dissociation,
    head_sparsification,
    needle_visibility,
    routes,
    ssm_compensation,
    state_probe,
)
from experiments.launch import main
from experiments.needle_visibility import FEW_DEPTHS
from experiments.options import Common
from segregation.prompts.grid import Grid
from segregation.runs.progress import side_by_side


@dataclass(frozen=True)
class Options:
    """What to run.

    Attributes:
        models: bundled names, folders or hub ids.
        ablation: sizes of the attention ablation.
        sparsification: sizes of the head sparsification.
        visibility: sizes of the needle visibility.
        tasks: sizes of the benchmarks, which keep as many heads as the sparsification finds.
        memory: sizes of the routes.
        dissociation: sizes of the double dissociation.
        compensation: sizes of the search for compensation.
        probe: sizes of the state probe.
        device: where the models go, "cpu" or "cuda".
        root: the folder that everything goes to.
        workers: processes that work side by side, each with its share of the cores.
    """

    models: tuple[str, ...] = ("tiny-jamba", "tiny-recurrentgemma")
    ablation: attention_ablation.Options = field(default_factory=attention_ablation.Options)
    sparsification: head_sparsification.Options = field(
        default_factory=lambda: head_sparsification.Options(short=Grid(lengths=(128,)))
    )
    visibility: needle_visibility.Options = field(
        default_factory=lambda: needle_visibility.Options(
            map=Grid(lengths=(128, 256), depths=FEW_DEPTHS),
            classic=Grid(lengths=(192,), depths=FEW_DEPTHS, needles="classic"),
            twice=Grid(lengths=(96, 192), depths=FEW_DEPTHS, readings=2),
        )
    )
    tasks: benchmarks.Options = field(default_factory=benchmarks.Options)
    memory: routes.Options = field(default_factory=lambda: routes.Options(borders=("question",)))
    dissociation: double_dissociation.Options = field(default_factory=double_dissociation.Options)
    compensation: ssm_compensation.Options = field(default_factory=ssm_compensation.Options)
    probe: state_probe.Options = field(default_factory=state_probe.Options)
    device: str = "cpu"
    root: Path = Path("runs/reproduce")
    workers: int = min(4, os.cpu_count() or 1)


Chain = Sequence[tuple[Callable[[Any], Path], Common]]
"""Experiments with their options, each of which needs those before it."""


def run_chain(chain: Chain) -> None:
    """Run experiments one after the other."""
    for run_one, sizes in chain:
        run_one(sizes)


def run(options: Options) -> Path:
    """Run what is missing; the folder of all runs."""
    common = {"device": options.device, "runs": options.root, "resume": True}
    chains: tuple[Chain, ...] = (
        ((head_sparsification.run, options.sparsification), (benchmarks.run, options.tasks)),
        ((needle_visibility.run, options.visibility),),
        ((double_dissociation.run, options.dissociation),),
        ((attention_ablation.run, options.ablation),),
        ((ssm_compensation.run, options.compensation),),
        ((state_probe.run, options.probe),),
        ((routes.run, options.memory),),
    )
    jobs = [
        functools.partial(run_chain, [(run_one, replace(sizes, model=model, **common)) for run_one, sizes in chain])
        for chain in chains
        for model in options.models
    ]
    side_by_side(jobs, options.workers)
    return options.root


if __name__ == "__main__":
    main(run, Options, __doc__)
