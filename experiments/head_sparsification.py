"""Keep k heads per layer, chosen by entropy, by l2 or at random: how few carry retrieval?

    python -m experiments.head_sparsification --model tiny-jamba

Claims ``sparsity`` and ``random-heads`` of arXiv 2510.19861 (section on head sparsification); control: random heads, 20
draws for every k.
"""

from dataclasses import dataclass, field
from pathlib import Path

import segregation as sg
from experiments.launch import main
from experiments.options import Common
from segregation.interventions.draws import random_heads
from segregation.interventions.head_rules import HeadScore
from segregation.prompts.grid import Grid
from segregation.runs.fill import fill_groups
from segregation.runs.tasks import Group


@dataclass(frozen=True)
class Options(Common):
    """What to run.

    Attributes:
        grid: the samples.
        draws: random draws per k, each on its own share of the samples.
        short: the samples of plans in all phases, each of which needs a prefill of its own.
        seed: of the random draws.
    """

    grid: Grid = field(default_factory=Grid)
    draws: int = 20
    short: Grid = field(default_factory=lambda: Grid(lengths=(128, 192)))
    seed: int = 0


def run(options: Options) -> Path:
    """Run what is missing; the run folder."""
    model, folder = options.start("head-sparsification")
    samples, short = options.grid.samples(model.tokenizer), options.short.samples(model.tokenizer)

    def chosen(during: sg.Phase, *scores: HeadScore) -> list[sg.Plan]:
        ks = range(model.n_heads + 1)
        return [sg.Plan(sg.KeepTopHeads(k, score, during=during)) for score in scores for k in ks]

    def drawn(during: sg.Phase, these: list[sg.Sample]) -> list[Group]:
        """Every draw of each k on samples of its own, which together are all of them."""
        layers, n, seed = model.attention_layers, options.draws, options.seed
        by_k = [random_heads(layers, model.n_heads, k, n, during=during, seed=seed) for k in range(1, model.n_heads)]
        return [(these[j % len(these) :: n], list(plans)) for j, plans in enumerate(zip(*by_k, strict=True))]

    groups: list[Group] = [
        (samples, [sg.Plan(), *chosen(sg.Phase.GENERATION, "entropy")]),
        (samples[::3], chosen(sg.Phase.GENERATION, "l2")),
        *drawn(sg.Phase.GENERATION, samples),
        (short, [sg.Plan(), *chosen(sg.Phase.ALL, "entropy", "l2")]),
        *drawn(sg.Phase.ALL, short),
    ]
    fill_groups(
        folder,
        model,
        groups,
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
        title=f"{options.model_name}, heads kept",
    )
    return folder.path


if __name__ == "__main__":
    main(run, Options, __doc__)
