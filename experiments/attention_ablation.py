"""Ablate every attention head in each phase: is retrieval gone, and does reading twice bring it back?

    python -m experiments.attention_ablation --model tiny-jamba

Claims ``ablation`` and ``jrt`` of arXiv 2510.19861 (section on attention ablation); control: facts under the ablation.
"""

from dataclasses import dataclass, field
from pathlib import Path

import segregation as sg
from experiments.launch import main
from experiments.options import Common
from segregation.prompts.benchmarks import facts
from segregation.prompts.grid import TINY_LENGTHS_TWICE, Grid
from segregation.runs.fill import fill_generate, fill_loglikelihood

ONCE = (sg.Phase.PREFILL, sg.Phase.LAST, sg.Phase.DECODE, sg.Phase.GENERATION, sg.Phase.ALL)
TWICE = (sg.Phase.GENERATION, sg.Phase.ALL)
"""Phases whose ablation the second reading might make up for."""
ABLATED = sg.Plan(sg.AblateHeads("all", during=sg.Phase.ALL))


@dataclass(frozen=True)
class Options(Common):
    """What to run.

    Attributes:
        once: samples whose context is read once.
        twice: samples whose context is read twice.
        n_facts: facts asked, as a control.
    """

    once: Grid = field(default_factory=Grid)
    twice: Grid = field(default_factory=lambda: Grid(lengths=TINY_LENGTHS_TWICE, readings=2))
    n_facts: int = 100


def run(options: Options) -> Path:
    """Run what is missing; the run folder."""
    model, folder = options.start("attention-ablation")
    for grid, phases in ((options.once, ONCE), (options.twice, TWICE)):
        fill_generate(
            folder,
            model,
            grid.samples(model.tokenizer),
            [sg.Plan(), *(sg.Plan(sg.AblateHeads("all", during=during)) for during in phases)],
            max_new_tokens=options.max_new_tokens,
            batch_size=options.batch_size,
            title=f"{options.model_name}, ablation, read {grid.readings}x",
        )
    title = f"{options.model_name}, ablation, facts"
    fill_loglikelihood(folder, model, facts(options.n_facts), [sg.Plan(), ABLATED], title=title)
    return folder.path


if __name__ == "__main__":
    main(run, Options, __doc__)
