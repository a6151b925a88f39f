"""Ablate attention heads, and recurrent mixers to as much harm: does each side serve an ability of its own?

    python -m experiments.double_dissociation --model tiny-jamba

Claims ``recurrent-ablation`` and ``double-dissociation``, the half that arXiv 2510.19861 never ran. Candidates of both
sides are compared on one part of the samples, and those that do nearly the same harm are paired; the pairs are measured
on a second part; controls, on a third, are random pairs of as many components, dealt to two sides whatever their kind.
A phase map ablates each side, and both, in every phase and union of phases.

A model of one kind of mixers only has one side: the other, its pairs and controls are left out, and the claims say so.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import segregation as sg
from experiments.launch import main
from experiments.options import Common
from segregation.errors import RecordError
from segregation.interventions.matched import Match, Side, dealt, head_sets, mixer_sets
from segregation.interventions.phase_cells import cells
from segregation.interventions.recurrent_rules import AblateRecurrent, Ablation
from segregation.prompts.benchmarks import entailment, facts, sentiment
from segregation.prompts.grid import Grid
from segregation.prompts.sample import set_aside
from segregation.runs.fill import fill_groups, fill_scored_groups
from segregation.runs.store import RunFolder
from segregation.runs.tasks import Group
from segregation.scores.matched_effects import ANY_VALUE, MATCHING, MEASURING, PART, RANDOM, matches
from segregation.scores.outcomes import outcomes

SHARES = {MATCHING: (0,), MEASURING: (1, 2), RANDOM: (3, 4, 5, 6)}
"""Which of every seven samples each part gets."""

OTHERS = 1_000_000
"""Added to the seed for the samples of the reference, which are not scored."""


@dataclass(frozen=True)
class Options(Common):
    """What to run.

    Attributes:
        needles: of every seven one is for the matching, two for the measuring, four for the random pairs.
        n_facts: facts asked, shared out alike.
        n_beside: reviews, and pairs of sentences, asked beside in the measuring.
        values: what recurrent mixers' outputs are replaced by; ``"mean"`` is left out for its cost.
        phase_values: the same in the phase map.
        draws: random pairs, each on its own share of the samples.
        seed: of everything that is drawn.
    """

    needles: Grid = field(default_factory=lambda: Grid(lengths=(128, 160), n_per_cell=7))
    n_facts: int = 168
    n_beside: int = 24
    values: tuple[Ablation, ...] = ("zero", "resample")
    phase_values: tuple[Ablation, ...] = ("zero",)
    draws: int = 20
    seed: int = 0


def run(options: Options) -> Path:
    """Run what is missing; the run folder."""
    model, folder = options.start("double-dissociation")
    needles = parts(options.needles.samples(model.tokenizer))
    asked = parts(facts(options.n_facts, seed=options.seed))
    sources = references(model, folder, options)

    def fill(title: str, *groups: Group) -> None:
        common = {"batch_size": options.batch_size, "title": f"{options.model_name}, dissociation, {title}"}
        written = [([sample for sample in samples if not sample.choices], plans) for samples, plans in groups]
        fill_groups(folder, model, written, max_new_tokens=options.max_new_tokens, **common)
        scored: list[Group] = []
        for samples, plans in groups:
            chosen = [sample for sample in samples if sample.choices]
            later = [plan for plan in plans if plan.during == sg.Phase.DECODE]
            scored.append((chosen, [plan for plan in plans if plan not in later]))
            if later:
                scored.append(([sample for sample in chosen if decodes(model, sample)], later))
        fill_scored_groups(folder, model, scored, **common)

    heads = head_sets(model.attention_layers, model.n_heads, seed=options.seed)
    mixers = mixer_sets(model.recurrent_layers, {v: sources[v] for v in options.values}, seed=options.seed)
    fill("candidates", (needles[MATCHING] + asked[MATCHING], [sg.Plan(), *heads, *mixers]))
    compared = outcomes(folder.records())
    pairs = matches(compared)
    beside = tagged(sentiment(options.n_beside) + entailment(options.n_beside), MEASURING)
    every = [plan for p in pairs + matches(compared, ANY_VALUE) for plan in (p.attention, p.recurrent, p.both)]
    fill("matched pairs", (needles[MEASURING] + asked[MEASURING] + beside, [sg.Plan(), *every]))
    drawn: list[Group] = []
    for number in range(options.draws if pairs else 0):
        own = needles[RANDOM][number :: options.draws] + asked[RANDOM][number :: options.draws]
        sides = counterpart(model, pairs, number, options.seed)
        drawn.append((tagged(own, f"{RANDOM} {number}"), [sg.Plan(), *sides]))
    fill("random pairs", *drawn)
    map_cells = cells(sides_of(model), options.phase_values)
    half = needles[MEASURING][::2] + asked[MEASURING][::2]
    fill("phase map", (half, [sg.Plan(), *(cell.plan(sources.get(cell.value, "")) for cell in map_cells)]))
    return folder.path


def parts(samples: Sequence[sg.Sample]) -> dict[str, list[sg.Sample]]:
    """The samples of each part, which say so in their metadata."""
    return {
        part: tagged([sample for number, sample in enumerate(samples) if number % 7 in share], part)
        for part, share in SHARES.items()
    }


def tagged(samples: Sequence[sg.Sample], part: str) -> list[sg.Sample]:
    """The samples, which say in their metadata what they are for."""
    own = set_aside(samples, "double dissociation")
    return [dataclasses.replace(sample, metadata={**sample.metadata, PART: part}) for sample in own]


def decodes(model: sg.HybridModel, sample: sg.Sample) -> bool:
    """Whether scoring a sample has positions after the prompt, for a rule about ``DECODE`` to act on."""
    return any(len(model.encode_continuation(text)) > 1 for text in sample.choices or (sample.target,))


def counterpart(model: sg.HybridModel, pairs: Sequence[Match], number: int, seed: int) -> tuple[sg.Plan, sg.Plan]:
    """A random pair with as many components as a matched one; the matched ones take turns."""
    pair = pairs[number % len(pairs)]
    return dealt(pair, model.attention_layers, model.n_heads, model.recurrent_layers, seed=seed * 1000 + number)


def sides_of(model: sg.HybridModel) -> list[Side]:
    """What of a model can be ablated: attention, recurrence, and both where there are both."""
    there: dict[Side, bool] = {
        "attention": bool(model.attention_layers),
        "recurrent": bool(model.recurrent_layers),
        "both": bool(model.attention_layers and model.recurrent_layers),
    }
    return [side for side, is_there in there.items() if is_there]


def references(model: sg.HybridModel, folder: RunFolder, options: Options) -> dict[Ablation, str]:
    """For each value the file that it needs, or none: one reference in the run folder, which is written once.

    Raises:
        RecordError: the folder's records were made with another reference, or name it otherwise.
    """
    values: tuple[Ablation, ...] = (*options.values, *options.phase_values)
    path = folder.path / "mixer_outputs.safetensors"
    if not {"mean", "resample"} & {*values} or not model.recurrent_layers:
        return dict.fromkeys(values, "")
    if not path.exists():
        draft = path.with_suffix(".part")
        prompts = Grid(lengths=(128,), depths=(10, 60), seed=options.seed + OTHERS).samples(model.tokenizer)
        sg.mixer_outputs(model, [*prompts, *sentiment(20, seed=options.seed + OTHERS)], draft)
        draft.replace(path)
    made = AblateRecurrent("mean", source=str(path))
    rules = {rule for outcome in outcomes(folder.records()) for rule in outcome.plan.rules}
    for rule in (rule for rule in rules if isinstance(rule, AblateRecurrent) and rule.source):
        if rule.sha256 != made.sha256:
            raise RecordError(
                f"the records of {folder.path} were made with another {path.name}, of SHA-256 {rule.sha256[:12]}...; "
                "bring it back, or start a run under another name"
            )
        if rule.source != made.source:
            raise RecordError(
                f"the records of {folder.path} name the reference {rule.source!r}, which is a part of their plans; "
                f"this run would name {made.source!r}. Resume with the same --runs, from the same directory"
            )
    return {value: str(path) if value in ("mean", "resample") else "" for value in values}


if __name__ == "__main__":
    main(run, Options, __doc__)
