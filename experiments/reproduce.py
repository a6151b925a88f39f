"""Every experiment on both bundled models: one table of claims, one report.

    python -m experiments.reproduce

Writes one run folder per experiment and model below ``runs/reproduce``, and there ``claims.json``, ``figures/`` and
``report.html`` over all of them. Run it again after an interruption: it goes on where it was.
"""

from dataclasses import dataclass
from pathlib import Path

from experiments import attention_ablation, head_sparsification
from experiments.launch import main


@dataclass(frozen=True)
class Options:
    """What to run.

    Attributes:
        models: bundled names, folders or hub ids.
        device: where the models go, "cpu" or "cuda".
        root: the folder that everything goes to.
    """

    models: tuple[str, ...] = ("tiny-recurrentgemma", "tiny-jamba")
    device: str = "cpu"
    root: Path = Path("runs/reproduce")


def run(options: Options) -> Path:
    """Run what is missing; the folder of all runs."""
    for model in options.models:
        for experiment in (attention_ablation, head_sparsification):
            settings = experiment.Options(model=model, device=options.device, runs=options.root, resume=True)
            experiment.run(settings)
    return options.root


if __name__ == "__main__":
    main(run, Options, __doc__)
