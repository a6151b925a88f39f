"""The samples and ablations of a dissociation run: what is matched on which, and the answers that effects come from.

Every sample of such a run says in its metadata what it is for: ``"matching"`` (harm of all candidates, from which pairs
are chosen), ``"measuring"`` (effects of the pairs, and the phase map), or ``"random 7"`` (the seventh random pair). No
sample is used for two of these, so an ablation that was chosen because it looked as harmful as another by chance does
not look so again where it is measured.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean

import numpy as np

from segregation.interventions.matched import Match, match_harm, side_of
from segregation.interventions.recurrent_rules import AblateRecurrent, Ablation
from segregation.interventions.rules import Plan
from segregation.scores.deciding import BASE, BASE_NEEDED
from segregation.scores.dissociation import Dealt, Measured, effect
from segregation.scores.outcomes import Outcome

PART = "dissociation"
"""The name in a sample's metadata of what it is for."""
MATCHING, MEASURING, RANDOM = "matching", "measuring", "random"
RETRIEVAL, LANGUAGE = "needle", "facts"
"""The tasks that decide."""

LIKE_HEADS: tuple[Ablation, ...] = ("zero",)
"""What mixers' outputs are replaced by in the pairs that decide: heads are set to zero, so mixers are too."""
ANY_VALUE: tuple[Ablation, ...] = ("zero", "mean", "resample")
"""The same in the pairs that show how much hangs on it."""


def part_of(outcome: Outcome) -> str:
    """What an outcome's sample is for in a dissociation run; empty for one of another experiment."""
    return str(outcome.metadata.get(PART) or "")


def in_dissociation(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """The outcomes of a dissociation run, which no other claim is about.

    >>> in_dissociation([])
    []
    """
    return [outcome for outcome in outcomes if part_of(outcome)]


def accuracies(outcomes: Iterable[Outcome], part: str, task: str) -> dict[Plan, float]:
    """Share of right answers per plan on the samples of one part and task.

    >>> accuracies([], MATCHING, RETRIEVAL)
    {}
    """
    right: dict[Plan, list[bool]] = defaultdict(list)
    for outcome in outcomes:
        if part_of(outcome) == part and outcome.task == task:
            right[outcome.plan].append(outcome.correct)
    return {plan: fmean(values) for plan, values in right.items()}


def base_trouble(outcomes: Sequence[Outcome], part: str) -> str:
    """Why what the intact model gets right on a part does not allow a comparison; empty if it does.

    >>> base_trouble([], MEASURING)
    'the untouched model was not asked needle'
    """
    for task in (RETRIEVAL, LANGUAGE):
        right = accuracies(outcomes, part, task).get(BASE)
        if right is None:
            return f"the untouched model was not asked {task}"
        if right < BASE_NEEDED:
            return f"the untouched model gets {right:.0%} of {task} right, {BASE_NEEDED:.0%} are needed"
    return ""


def harms(outcomes: Sequence[Outcome], part: str = MATCHING) -> dict[Plan, float]:
    """Total harm (E_R + E_L) / 2 of every plan that was run on both tasks.

    >>> harms([])
    {}
    """
    if base_trouble(outcomes, part):
        return {}
    retrieval, language = accuracies(outcomes, part, RETRIEVAL), accuracies(outcomes, part, LANGUAGE)
    chance = next(o.chance for o in outcomes if o.task == LANGUAGE and part_of(o) == part)
    return {
        plan: float(effect(retrieval[BASE], retrieval[plan], 0) + effect(language[BASE], language[plan], chance)) / 2
        for plan in retrieval
        if plan != BASE and plan in language
    }


def matches(outcomes: Sequence[Outcome], values: Iterable[Ablation] = LIKE_HEADS) -> list[Match]:
    """The pairs of equally harmful ablations among the candidates, chosen on the samples for matching alone.

    Args:
        outcomes: of the run.
        values: what the outputs of the recurrent mixers in them may be replaced by.

    >>> matches([])
    []
    """
    harm = harms(outcomes)
    attention = {plan: value for plan, value in harm.items() if side_of(plan) == "attention"}
    recurrent = {plan: value for plan, value in harm.items() if side_of(plan) == "recurrent"}
    return match_harm(attention, {plan: h for plan, h in recurrent.items() if values_of(plan) <= {*values}})


def values_of(plan: Plan) -> set[Ablation]:
    """What the outputs of recurrent mixers are replaced by under a plan.

    >>> values_of(Plan())
    set()
    """
    return {rule.value for rule in plan.rules if isinstance(rule, AblateRecurrent)}


def measured(outcomes: Sequence[Outcome], pairs: Sequence[Match], task: str) -> Measured | None:
    """Answers of the intact model and of all pairs on the samples that each of them was measured on, if there are any.

    >>> measured([], [], RETRIEVAL) is None
    True
    """
    right: dict[Plan, dict[str, bool]] = defaultdict(dict)
    chance = 0.0
    for outcome in outcomes:
        if part_of(outcome) == MEASURING and outcome.task == task:
            right[outcome.plan][outcome.sample_id] = outcome.correct
            chance = outcome.chance
    plans = [[BASE, pair.attention, pair.recurrent, pair.both] for pair in pairs]
    if not pairs or not (shared := set.intersection(*(set(right[plan]) for row in plans for plan in row))):
        return None
    ids = [sample_id for sample_id in right[BASE] if sample_id in shared]
    return Measured(np.array([[[right[p][i] for i in ids] for p in row] for row in plans], dtype=float), chance)


def random_pairs(outcomes: Sequence[Outcome]) -> tuple[Dealt, Dealt] | None:
    """Answers under the random pairs that were run on both tasks, if there are any.

    Which of two plans is the first side is settled by their hashes, which know nothing of what they do.

    >>> random_pairs([]) is None
    True
    """
    cells: dict[str, dict[str, dict[Plan, dict[str, bool]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(dict))
    )
    chances: dict[str, float] = {}
    for outcome in outcomes:
        if part_of(outcome).startswith(RANDOM):
            cells[part_of(outcome)][outcome.task][outcome.plan][outcome.sample_id] = outcome.correct
            chances[outcome.task] = outcome.chance
    found: dict[str, list[np.ndarray]] = {RETRIEVAL: [], LANGUAGE: []}
    for tasks in cells.values():
        sides = sorted(set(tasks[RETRIEVAL]) & set(tasks[LANGUAGE]) - {BASE}, key=lambda plan: plan.hash)
        if len(sides) != 2 or BASE not in tasks[RETRIEVAL] or BASE not in tasks[LANGUAGE]:
            continue
        for task, tables in found.items():
            rows = [tasks[task][plan] for plan in (BASE, *sides)]
            ids = [sample_id for sample_id in rows[0] if all(sample_id in row for row in rows)]
            tables.append(np.array([[row[i] for i in ids] for row in rows], dtype=float))
    if len(found[RETRIEVAL]) < 2:
        return None
    retrieval, language = (Dealt(tables, chances[task]) for task, tables in found.items())
    return retrieval, language
