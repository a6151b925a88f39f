"""Hide the needle, its context, or all but the needle from attention, phase by phase: when must it be seen?

    python -m experiments.needle_visibility --model tiny-jamba

Claims ``needle-in-generation``, ``context-somewhere`` and ``prefill-nonsense`` of arXiv 2510.19861 (section on token
visibility); control: a decoy of as many characters is hidden. The map has every phase and union of phases, our
semantics and the paper's, the paper's needle beside unseen ones, and, for contexts that are read twice, which copy of
the needle is hidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import segregation as sg
from experiments.launch import main
from experiments.options import Common
from segregation.interventions.presets import paper_phases
from segregation.interventions.visibility import MODES, PHASES, View
from segregation.prompts.grid import TINY_LENGTHS_TWICE, Grid
from segregation.runs.fill import fill_groups

FEW_DEPTHS = (0, 22, 44, 67, 89)
COPIES = (0, 1, "all")
"""Which reading's needle is hidden: the first, the second, both."""


@dataclass(frozen=True)
class Options(Common):
    """What to run.

    Attributes:
        claims: samples of the plans that claims are about.
        map: samples of the whole map.
        classic: samples of the whole map with the paper's needle.
        twice: samples whose context is read twice.
    """

    claims: Grid = field(default_factory=lambda: Grid(lengths=TINY_LENGTHS_TWICE))
    map: Grid = field(default_factory=lambda: Grid(lengths=(128, 256)))
    classic: Grid = field(default_factory=lambda: Grid(lengths=(128, 256), depths=FEW_DEPTHS, needles="classic"))
    twice: Grid = field(default_factory=lambda: Grid(lengths=(96, 192), readings=2))


def claim_views(family: str) -> list[View]:
    """The cells that the claims are about."""
    prefill = paper_phases(family)["prefill"]
    return [
        View("needle hidden", sg.Phase.GENERATION),
        View("decoy hidden", sg.Phase.GENERATION),
        *(
            View("context hidden, needle kept", during)
            for during in (sg.Phase.PREFILL, sg.Phase.GENERATION, sg.Phase.ALL)
        ),
        *(
            View(mode, prefill, semantics)
            for mode in ("needle hidden", "only the needle")
            for semantics in ("paper", "default")
        ),
    ]


def map_views() -> list[View]:
    """Every cell of the map; hiding everything is the same either way, and the decoy is a control of one claim."""
    return [
        View(mode, during, semantics)
        for semantics in ("default", "paper")
        for mode in MODES
        for during in PHASES
        if mode != "decoy hidden" and (mode, semantics) != ("everything hidden", "paper")
    ]


def run(options: Options) -> Path:
    """Run what is missing; the run folder."""
    model, folder = options.start("needle-visibility")
    copies = [
        View("needle hidden", during, occurrence=copy)
        for during in (sg.Phase.PREFILL, sg.Phase.GENERATION, sg.Phase.ALL)
        for copy in COPIES
    ]
    parts: tuple[tuple[str, Grid, Sequence[View]], ...] = (
        ("claims", options.claims, claim_views(model.family.name)),
        ("map", options.map, map_views()),
        ("map, classic needle", options.classic, map_views()),
        ("read 2x", options.twice, copies),
    )
    for title, grid, views in parts:
        fill_groups(
            folder,
            model,
            [(grid.samples(model.tokenizer), [sg.Plan(), *(view.plan for view in views)])],
            max_new_tokens=options.max_new_tokens,
            batch_size=options.batch_size,
            title=f"{options.model_name}, visibility, {title}",
        )
    return folder.path


if __name__ == "__main__":
    main(run, Options, __doc__)
