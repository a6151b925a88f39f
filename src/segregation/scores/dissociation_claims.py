"""Deciding whether attention and recurrence dissociate in one model, from the outcomes of a dissociation run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from segregation.errors import ScoreError
from segregation.interventions.matched import TOLERANCE, Match, set_name, side_of
from segregation.interventions.recurrent_rules import Ablation
from segregation.scores.claims import Claim, Verdict, conclude
from segregation.scores.deciding import BASE
from segregation.scores.dissociation import Dissociation, Measured, dissociate
from segregation.scores.knowledge import BASE_KNOWS
from segregation.scores.matched_effects import (
    ANY_VALUE,
    LANGUAGE,
    LIKE_HEADS,
    MATCHING,
    MEASURING,
    RETRIEVAL,
    base_trouble,
    in_dissociation,
    matches,
    measured,
    part_of,
    random_pairs,
    values_of,
)
from segregation.scores.outcomes import Outcome
from segregation.scores.statistics import Interval

FEWEST = 5
"""Pairs below which nothing is decided: the intervals of fewer hold the truth too seldom (see ``interval``)."""
BESIDE = ("sentiment", "entailment")
"""Tasks tested beside those that decide."""

STATEMENTS: dict[str, tuple[str, str | None]] = {
    "recurrent-ablation": (
        "recurrent mixers, ablated until they do as much harm as attention heads, take more from facts than from "
        "retrieval",
        None,
    ),
    "double-dissociation": (
        "at equal harm attention heads hit retrieval harder than recurrent mixers do, and recurrent mixers hit facts "
        "harder than attention heads do",
        None,
    ),
}
"""What each claim says; the paper makes neither."""


@dataclass(frozen=True)
class Judged:
    """What a dissociation run allows to be said.

    Attributes:
        pairs: the matched pairs.
        found: what they say, if they were measured.
        problem: why nothing is decided; empty if something is.
        left_out: tasks beside retrieval and facts that the base knows too little of.
    """

    pairs: Sequence[Match] = ()
    found: Dissociation | None = None
    problem: str = ""
    left_out: tuple[str, ...] = field(default=())


def judge(outcomes: Sequence[Outcome], values: Iterable[Ablation] = LIKE_HEADS) -> Judged:
    """Match, measure and compare; the first thing that stands in the way is the problem.

    Args:
        outcomes: of the run.
        values: what the outputs of the recurrent mixers in the pairs may be replaced by.

    >>> judge([]).problem
    'no attention heads were ablated, so nothing can be compared; a model without any has no index'
    """
    rows = in_dissociation(outcomes)
    for problem in (_side_trouble(rows), base_trouble(rows, MATCHING), base_trouble(rows, MEASURING)):
        if problem:
            return Judged(problem=problem)
    pairs = matches(rows, values)
    problem = ""
    if len(pairs) < FEWEST:
        problem = f"{len(pairs)} pairs of ablations do nearly as much harm, {FEWEST} are needed"
    if len(pairs) < 2:
        return Judged(pairs, problem=problem)
    tasks = {task: measured(rows, pairs, task) for task in (RETRIEVAL, LANGUAGE, *BESIDE)}
    retrieval, facts = tasks[RETRIEVAL], tasks[LANGUAGE]
    if retrieval is None or facts is None:
        return Judged(
            pairs, problem=problem or "the matched pairs were not measured, alone and together, on both tasks"
        )
    beside = {name: tasks[name] for name in BESIDE if tasks[name] is not None}
    known = {name: task for name, task in beside.items() if task is not None and _known(task)}
    try:
        found = dissociate(retrieval, {LANGUAGE: facts, **known}, random_pairs(rows))
    except ScoreError as error:
        return Judged(pairs, problem=str(error))
    gap = found.harm_gap
    if not problem and (abs(gap.value) > TOLERANCE or found.harm_gap_size > 2 * TOLERANCE):
        problem = (
            f"the match does not hold on other samples: harm differs by {gap.plain}, {TOLERANCE} is allowed, and by "
            f"{found.harm_gap_size:.2f} either way, {2 * TOLERANCE} is allowed"
        )
    return Judged(pairs, found, problem, tuple(sorted(set(beside) - set(known))))


def recurrent_ablation(outcomes: Sequence[Outcome]) -> Claim | None:
    """Recurrent mixers, ablated to the harm of attention heads, take more from facts than from retrieval.

    The other half of the paper's finding, which ablates attention only. ``measured`` is E_L(S) - E_R(S), mean over the
    matched pairs. Control: the partners of the pairs, attention heads of equal harm, do so less (the index before its
    correction is above 0); otherwise facts are just the more fragile of the two.
    """
    if not (rows := in_dissociation(outcomes)):
        return None
    judged = judge(rows)
    if judged.found is None:
        return _claim("recurrent-ablation", rows, judged, None, "undecided", judged.problem)
    taken, facts = judged.found.effects["retrieval"], judged.found.effects[LANGUAGE]
    parts = [
        f"{side} takes {taken[side].percent} of retrieval and {facts[side].percent} of facts"
        for side in ("recurrent", "attention")
    ]
    note = f"{len(judged.pairs)} pairs of nearly equal harm: {', '.join(parts)}"
    lopsided, raw = judged.found.lopsided["recurrent"], judged.found.raw
    verdict: Verdict = "undecided" if judged.problem else _above(lopsided)
    if verdict == "holds" and raw.low <= 0:
        verdict = "undecided"
        note = f"attention heads of equal harm may do the same (index {raw.plain}); {note}"
    note = f"{judged.problem}; {note}" if judged.problem else note
    return _claim("recurrent-ablation", rows, judged, lopsided, verdict, note)


def double_dissociation(outcomes: Sequence[Outcome]) -> Claim | None:
    """At equal harm A hits retrieval harder than S, and S hits facts harder than A: both tests count at 5%.

    A test counts if the side also takes more from that ability than from the other, since between pairs of equal harm
    one test alone says almost what the other does. ``measured`` is SI_abl, in [-1, 1]. Control: random pairs of as many
    components, dealt whatever their kind; SI_abl, from which theirs is taken off, must be above 0.
    """
    if not (rows := in_dissociation(outcomes)):
        return None
    judged = judge(rows)
    found = judged.found
    if found is None:
        return _claim("double-dissociation", rows, judged, None, "undecided", judged.problem)
    problem = judged.problem
    if not problem and found.index is None:
        problem = "its control, random pairs, was not run"
    tests = [
        f"{test.harder} hits {test.task} harder by {test.difference.plain} (q = {test.adjusted:.2g})"
        for test in found.contrasts
    ]
    tests += [
        f"attention takes more of retrieval than of facts by {found.lopsided['attention'].plain}",
        f"recurrence more of facts than of retrieval by {found.lopsided['recurrent'].plain}",
    ]
    parts = [f"{'no' if found.verdict == 'none' else found.verdict} dissociation", *tests]
    if found.at_random is not None:
        parts.append(f"index {found.raw.plain} before random pairs' {found.at_random.plain} is taken off")
    parts += [f"E(A+S) - E(A) - E(S) on {task} {value.plain}" for task, value in list(found.interactions.items())[:2]]
    parts += [f"left out, as the base knows too little of it: {task}" for task in judged.left_out]
    parts.append("pairs: " + ", ".join(map(pair_name, judged.pairs)))
    others = [value for value in ANY_VALUE if any(value in values_of(row.plan) for row in rows)]
    if others != [*LIKE_HEADS]:
        parts.append(f"with mixers' outputs replaced by any of {', '.join(others)}: {_index(judge(rows, ANY_VALUE))}")
    note = "; ".join([*([problem] if problem else []), *parts])
    verdict: Verdict = "undecided"
    if not problem:
        needed = [*(test.difference for test in found.contrasts[:2]), *found.lopsided.values()]
        if found.verdict == "double" and found.index is not None and min(i.low for i in (*needed, found.index)) > 0:
            verdict = "holds"
        elif any(part.high <= 0 for part in needed):
            verdict = "fails"
    return _claim("double-dissociation", rows, judged, found.index, verdict, note)


def pair_name(pair: Match) -> str:
    """A matched pair with its harm, in words."""
    return (
        f"{set_name(pair.attention)} ({pair.attention_harm:.2f}) with {set_name(pair.recurrent)} "
        f"({pair.recurrent_harm:.2f})"
    )


def _side_trouble(rows: Sequence[Outcome]) -> str:
    run = {side_of(row.plan) for row in rows if part_of(row) == MATCHING}
    for side, what in (("attention", "attention heads"), ("recurrent", "recurrent mixers")):
        if side not in run:
            return f"no {what} were ablated, so nothing can be compared; a model without any has no index"
    return ""


def _known(task: Measured) -> bool:
    return float(task.right[0, 0].mean()) - task.chance >= BASE_KNOWS * (1 - task.chance)


def _index(judged: Judged) -> str:
    """The index of a run in words, or why there is none."""
    if judged.found is None or judged.found.index is None:
        return judged.problem or "random pairs were not run"
    about = f"index {judged.found.index.plain}, {judged.found.verdict}, {len(judged.pairs)} pairs"
    return about + (f" ({judged.problem})" if judged.problem else "")


def _above(interval: Interval) -> Verdict:
    return "holds" if interval.low > 0 else "fails" if interval.high <= 0 else "undecided"


def _claim(
    id: str, rows: Sequence[Outcome], judged: Judged, value: Interval | None, verdict: Verdict, note: str
) -> Claim:
    plans = [BASE, *(plan for pair in judged.pairs for plan in (pair.attention, pair.recurrent, pair.both))]
    return conclude(
        id,
        STATEMENTS[id],
        verdict,
        value,
        model=rows[0].model,
        n=len({row.sample_id for row in rows}),
        evidence=[f"*:{plan.hash}*" for plan in dict.fromkeys(plans)],
        note=note,
    )
