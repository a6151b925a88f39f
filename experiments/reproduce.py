"""Every experiment on both bundled models: one table of claims, one report.

    python -m experiments.reproduce

Writes one run folder per experiment and model below ``runs/reproduce``, and there ``claims.json``, ``figures/`` and
``report.html`` over all of them. Run it again after an interruption: it goes on where it was.
"""

import functools
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from experiments import attention_ablation, head_sparsification
from experiments.launch import main
from segregation.runs.progress import side_by_side


@dataclass(frozen=True)
class Options:
    """What to run.

    Attributes:
        models: bundled names, folders or hub ids.
        ablation: sizes of the attention ablation.
        sparsification: sizes of the head sparsification.
        device: where the models go, "cpu" or "cuda".
        root: the folder that everything goes to.
        workers: processes that work side by side, each with its share of the cores.
    """

    models: tuple[str, ...] = ("tiny-jamba", "tiny-recurrentgemma")
    ablation: attention_ablation.Options = field(default_factory=attention_ablation.Options)
    sparsification: head_sparsification.Options = field(default_factory=head_sparsification.Options)
    device: str = "cpu"
    root: Path = Path("runs/reproduce")
    workers: int = min(4, os.cpu_count() or 1)


def run(options: Options) -> Path:
    """Run what is missing; the folder of all runs."""
    common = {"device": options.device, "runs": options.root, "resume": True}
    experiments = ((attention_ablation.run, options.ablation), (head_sparsification.run, options.sparsification))
    jobs = [
        functools.partial(run_one, replace(sizes, model=model, **common))
        for model in options.models
        for run_one, sizes in experiments
    ]
    side_by_side(jobs, options.workers)
    return options.root


if __name__ == "__main__":
    main(run, Options, __doc__)
