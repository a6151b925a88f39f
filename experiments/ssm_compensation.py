"""Can the recurrent layers be brought to retrieve where attention cannot, and where does that stop?

    python -m experiments.ssm_compensation --model tiny-jamba

Claim ``compensation``, of the arXiv 2510.19861 sentence that no mechanism compensates. What is tried, on the prompt:
the context read twice; the needle in it 1, 2, 4 and 8 times; the needle nearer and nearer to the question; on the
state: the recurrent layers skip all of the context but the needle; and all of it together. Attention is ablated, in
generation or throughout, or just cannot see the needle. Beside exact retrieval, the log-probability of the answer is
compared with its own in a context with another answer (``segregation.prompts.foil``). Controls: the untouched model;
recurrent layers that skip the needle instead; attention left alone while the recurrent layers skip the distractors.
A model without layers of one kind is run in the settings that are left.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from experiments.launch import main
from experiments.options import Common
from segregation.interventions.compensation import CONTROLS, SETTINGS, possible
from segregation.prompts.foil import foils
from segregation.prompts.grid import Grid
from segregation.prompts.sample import set_aside
from segregation.runs.fill import fill_groups, fill_scored_groups
from segregation.runs.tasks import Group

NEEDLE = 18
"""Tokens of the longest needle: eight of them fit into a short context."""


def one_cell(length: int, depth: int, n: int = 24, readings: int = 1, copies: int = 1) -> Grid:
    """The grid of one context length and one depth."""
    return Grid((length,), (depth,), readings=readings, copies=copies, n_per_cell=n, max_needle_tokens=NEEDLE)


@dataclass(frozen=True)
class Options(Common):
    """What to run. Of all samples, those are taken whose needle opens with words of its question, so has a foil.

    Attributes:
        max_new_tokens: new tokens per sample; the needles are shorter.
        plain: one needle in the middle, read once; the controls run on it.
        copies: how many needles the same contexts have instead.
        far: one needle, farther from the question.
        near: one needle, nearer.
        nearest: one needle, right before the question.
        twice: the context read twice, as near.
        together: all of it at once, on more samples.
        n_scored: samples of each kind, at most, whose answer is scored against a foil.
    """

    max_new_tokens: int = 28
    plain: Grid = field(default_factory=lambda: one_cell(168, 50))
    copies: tuple[int, ...] = (2, 4, 8)
    far: Grid = field(default_factory=lambda: one_cell(168, 0))
    near: Grid = field(default_factory=lambda: one_cell(64, 0))
    nearest: Grid = field(default_factory=lambda: one_cell(48, 100))
    twice: Grid = field(default_factory=lambda: one_cell(64, 0, readings=2))
    together: Grid = field(default_factory=lambda: one_cell(96, 100, n=125, readings=2, copies=4))
    n_scored: int = 12


def run(options: Options) -> Path:
    """Run what is missing; the run folder."""
    model, folder = options.start("ssm-compensation")
    settings, controls = (possible(these, model.layer_types) for these in (SETTINGS, CONTROLS))
    if left_out := len(SETTINGS) + len(CONTROLS) - len(settings) - len(controls):
        kinds = " and ".join(sorted(set(model.layer_types)))
        Console(stderr=True).print(f"{options.model_name} has {kinds} layers only: {left_out} settings are left out")
    grids = [replace(options.plain, copies=copies) for copies in options.copies]
    grids += [options.far, options.near, options.nearest, options.twice, options.together]
    written: list[Group] = []
    scored: list[Group] = []
    for grid, tried in ((options.plain, [*settings, *controls]), *((grid, settings) for grid in grids)):
        plans = [setting.plan for setting in tried]
        all_samples = set_aside(grid.samples(model.tokenizer), "compensation")
        others = {foil.metadata["foil_of"]: foil for foil in foils(model.tokenizer, all_samples)}
        samples = [sample for sample in all_samples if sample.id in others]
        written.append((samples, plans))
        chosen = samples[: options.n_scored]
        scored.append(([*chosen, *(others[sample.id] for sample in chosen)], plans))
    common = {"batch_size": options.batch_size}
    title = f"{options.model_name}, compensation"
    fill_groups(folder, model, written, max_new_tokens=options.max_new_tokens, title=title, **common)
    fill_scored_groups(folder, model, scored, title=f"{title}, scored", **common)
    return folder.path


if __name__ == "__main__":
    main(run, Options, __doc__)
