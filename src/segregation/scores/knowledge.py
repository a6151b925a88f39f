"""What is left of choice tasks under a plan, raw and corrected for chance, and the claim about it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from segregation.errors import ScoreError
from segregation.interventions.phase import Phase
from segregation.interventions.rules import Plan
from segregation.scores.claims import Claim
from segregation.scores.deciding import (
    ABLATED,
    BASE,
    against_base,
    at_least,
    base_of,
    base_problem,
    claim_of,
    entropy_sweep,
    rate,
    retained,
    sparsest,
)
from segregation.scores.outcomes import Outcome, Sweep, sweep_point
from segregation.scores.statistics import Interval

BASE_KNOWS = 0.6
"""How far the untouched model must be on the way from chance to all right for a task to count."""
KNOWLEDGE_TASKS = frozenset({"facts", "mmlu"})
"""Tasks whose answers were learned; those of the others stand in the prompt, to be judged or compared."""
KNOWLEDGE_KEPT = 0.74
"""The paper's 84% of MMLU accuracy at a base of .66, corrected for chance (.25)."""


@dataclass(frozen=True)
class Left:
    """What one plan leaves of one task.

    Attributes:
        raw: accuracy over base accuracy.
        corrected: the same once chance is taken off both.
        test: McNemar's exact test against the base, in words.
    """

    raw: Interval
    corrected: Interval
    test: str


@dataclass(frozen=True)
class Knowledge:
    """One choice task on one model.

    Attributes:
        task: its name.
        chance: share of it that a guess gets right.
        base: accuracy of the untouched model.
        known: whether the base knows enough (``BASE_KNOWS``), on enough samples, to lose any of it.
        left: what each plan leaves of it, where it is known.
    """

    task: str
    chance: float
    base: Interval
    known: bool
    left: Mapping[Plan, Left]


def choices_of(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """The outcomes of choice tasks: those whose samples name their chance.

    >>> choices_of([])
    []
    """
    return [outcome for outcome in outcomes if outcome.chance > 0]


def knowledge(outcomes: Sequence[Outcome], plans: Iterable[Plan]) -> list[Knowledge]:
    """Every choice task that the untouched model was asked, with what each of the plans leaves of it.

    A task that was asked in two layouts, or with two numbers of solved examples, is two.

    >>> knowledge([], [ABLATED])
    []
    """
    found: list[Knowledge] = []
    asked, plans = choices_of(outcomes), list(plans)
    for task, *way in dict.fromkeys(map(_asked_as, asked)):
        of_task = [outcome for outcome in asked if _asked_as(outcome) == (task, *way)]
        base = [outcome for outcome in of_task if outcome.plan == BASE]
        if not base:
            continue
        chance, at_base, left = base[0].chance, rate(base), {}
        known = at_base.value - chance >= BASE_KNOWS * (1 - chance)
        try:
            for plan in plans if known else ():
                rows = [outcome for outcome in of_task if outcome.plan == plan]
                if base_of(rows, base):
                    raw, corrected = retained(rows, base), retained(rows, base, chance)
                    left[plan] = Left(raw, corrected, against_base(rows, base))
        except ScoreError:  # so few samples that the base is at chance in a resample
            known, left = False, {}
        found.append(Knowledge(task, chance, at_base, known, left))
    return found


def benchmarks(outcomes: Sequence[Outcome]) -> Claim | None:
    """Knowledge keeps 74% of its chance-corrected accuracy, fully ablated and with k heads in generation.

    k is that of ``sparsity`` where its sweep is among the outcomes, else the fewest heads that were asked about.
    ``measured`` is the worst of the tasks. Control: the base knows enough of a task, or the task is left out. Tasks
    that are not about knowledge stand beside it in the note.
    """
    sweep, answered = entropy_sweep(outcomes), choices_of(outcomes)
    asked = [outcome for outcome in answered if outcome.task in KNOWLEDGE_TASKS]
    sparse = {point.k: o.plan for o in asked if (point := _in_generation(o.plan)) and point.k > 0}
    ablated = [outcome for outcome in asked if outcome.plan == ABLATED]
    if not ablated or not (sweep or sparse) or all(outcome.plan != BASE for outcome in asked):
        return None
    k = min(sparse, default=0)
    if sweep:
        retrieved = base_of([row for rows in sweep.values() for row in rows], outcomes)
        if problem := base_problem(retrieved):
            return claim_of("benchmarks", ablated, None, "undecided", problem)
        _, k = sparsest(sweep, retrieved)
    if k not in sparse:
        return claim_of("benchmarks", ablated, None, "undecided", f"no benchmark was run with k = {k} heads")
    named = {sparse[k]: f"k = {k}", ABLATED: "none"}
    tasks = knowledge(asked, named)
    known = [task for task in tasks if task.known]
    unknown = [f"{task.task} ({task.base.value:.0%}, chance {task.chance:.0%})" for task in tasks if not task.known]
    left_out = f"the base knows too little of {', '.join(unknown)}" if unknown else ""
    lacking = [f"{task.task} with {named[plan]}" for task in known for plan in named if plan not in task.left]
    if not known or lacking:
        problem = f"not run: {', '.join(lacking)}" if lacking else left_out
        return claim_of("benchmarks", ablated, None, "undecided", problem)
    cells = [(task, plan, left.corrected) for task in known for plan, left in task.left.items()]
    ranks = ("fails", "undecided", "holds")
    worst = min(cells, key=lambda cell: (ranks.index(at_least(cell[2], KNOWLEDGE_KEPT)), cell[2].value))
    parts = [
        f"{task.task} with {named[plan]}: {left.raw.value:.0%} and {left.corrected.value:.0%}, McNemar {left.test}"
        for task in known
        for plan, left in task.left.items()
    ]
    beside = knowledge([outcome for outcome in answered if outcome.task not in KNOWLEDGE_TASKS], named)
    parts += [f"left out, as {left_out}"] if unknown else []
    parts += [
        f"beside the claim, {task.task} with {named[plan]}: {left.raw.value:.0%} and {left.corrected.value:.0%}"
        for task in beside
        for plan, left in task.left.items()
    ]
    note = f"the worst is {worst[0].task} with {named[worst[1]]}; left of base accuracy, raw and corrected for chance: "
    note += "; ".join(parts)
    tested = {task.task for task in known}
    rows = [outcome for outcome in asked if outcome.plan in named and outcome.task in tested]
    return claim_of("benchmarks", rows, worst[2], at_least(worst[2], KNOWLEDGE_KEPT), note)


def _asked_as(outcome: Outcome) -> tuple[str, str, str]:
    """What questions must share to be counted together: task, layout and number of solved examples."""
    return outcome.task, str(outcome.metadata.get("layout")), str(outcome.metadata.get("num_fewshot"))


def _in_generation(plan: Plan) -> Sweep | None:
    point = sweep_point(plan)
    return point if point and (point.choice, point.during) == ("entropy", Phase.GENERATION) else None
