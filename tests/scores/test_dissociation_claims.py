"""Claims about a dissociation, on made-up runs whose truth is known."""

import dataclasses
import functools
from collections.abc import Callable
from statistics import fmean

import pytest

from segregation.interventions.matched import Match, dealt, head_sets, mixer_sets, side_of
from segregation.interventions.phase import Phase
from segregation.interventions.recurrent_rules import AblateRecurrent
from segregation.interventions.rules import AblateHeads, Plan
from segregation.prompts.sample import Sample
from segregation.scores.claims import Claim
from segregation.scores.deciding import BASE
from segregation.scores.dissociation_claims import double_dissociation, judge, recurrent_ablation
from segregation.scores.matched_effects import (
    LANGUAGE,
    MATCHING,
    MEASURING,
    PART,
    RETRIEVAL,
    harms,
    in_dissociation,
    matches,
    measured,
    random_pairs,
)
from segregation.scores.outcomes import Outcome, outcomes
from tests.made_up import facts, needles, recorded

ATTENTION, RECURRENT = (2, 6), (0, 1, 3, 4, 5, 7)
HEADS, MIXERS = head_sets(ATTENTION, 8, draws=1), mixer_sets(RECURRENT, {"zero": ""}, draws=4)
Taken = Callable[[Plan, str], float]
"""Share of a task that a plan takes away, chance aside."""


def segregated(plan: Plan, task: str) -> float:
    """Attention serves retrieval alone, recurrence facts alone."""
    hit = {RETRIEVAL: ("attention", "both"), LANGUAGE: ("recurrent", "both")}[task]
    return float(side_of(plan) in hit)


def reverse(plan: Plan, task: str) -> float:
    return segregated(plan, LANGUAGE if task == RETRIEVAL else RETRIEVAL)


def alike(plan: Plan, task: str) -> float:
    return 0.5


def part(samples: list[Sample], name: str, suffix: str = "") -> list[Sample]:
    return [
        dataclasses.replace(sample, id=f"{sample.id}/{name}{suffix}", metadata={**sample.metadata, PART: name})
        for sample in samples
    ]


@functools.cache
def runs(taken: Taken) -> list[Outcome]:
    return made(taken)


def made(
    taken: Taken, *, lost: int = 0, draws: int = 4, heads: list[Plan] = HEADS, mixers: list[Plan] = MIXERS
) -> list[Outcome]:
    """A run whose plans take a planted share; ``lost`` needles in 20 are lost to the untouched model too."""

    def right(plan: Plan, sample: Sample) -> bool:
        task, number = str(sample.metadata["task"]), int(sample.prompt)
        if plan == BASE:
            return task != RETRIEVAL or number % 20 >= lost
        floor = 1 / len(sample.choices) if sample.choices else 0.0
        return number % 20 < round(20 * (1 - taken(plan, task) * (1 - floor)))

    def numbered(samples: list[Sample]) -> list[Sample]:
        return [dataclasses.replace(sample, prompt=str(number)) for number, sample in enumerate(samples)]

    def asked(name: str, n: int) -> list[Sample]:
        return part(numbered(needles(lengths=range(100, 100 + n // 5))) + numbered(facts(n)), name)

    rows = outcomes(recorded(asked(MATCHING, 20), [BASE, *heads, *mixers], right))
    pairs = matches(rows)
    plans = [BASE, *(plan for pair in pairs for plan in (pair.attention, pair.recurrent, pair.both))]
    rows += outcomes(recorded(asked(MEASURING, 20), list(dict.fromkeys(plans)), right))
    for number in range(draws if pairs else 0):
        sides = dealt(pairs[number % len(pairs)], ATTENTION, 8, RECURRENT, seed=number)
        rows += outcomes(recorded(asked(f"random {number}", 5), [BASE, *sides], lambda p, s: p == BASE))
    return rows


def claims(rows: list[Outcome]) -> tuple[Claim, Claim]:
    first, second = recurrent_ablation(rows), double_dissociation(rows)
    assert first is not None and second is not None
    return first, second


def test_harm_is_the_mean_of_two_effects() -> None:
    rows = made(lambda plan, task: 0.4 if task == RETRIEVAL else 0.8)
    found = harms(rows)
    assert len(found) == len(HEADS) + len(MIXERS)
    assert list(found.values()) == pytest.approx([(0.4 + 0.8) / 2] * len(found))
    by_hand = {
        task: fmean(o.correct for o in rows if o.task == task and o.plan == HEADS[0] and o.metadata[PART] == MATCHING)
        for task in (RETRIEVAL, LANGUAGE)
    }
    assert found[HEADS[0]] == pytest.approx(((1 - by_hand[RETRIEVAL]) + (1 - by_hand[LANGUAGE]) / 0.75) / 2)


def test_a_planted_double_dissociation_holds() -> None:
    first, second = claims(runs(segregated))
    assert (first.id, first.verdict, second.id, second.verdict) == (
        "recurrent-ablation", "holds", "double-dissociation", "holds",
    )  # fmt: skip
    assert first.measured == second.measured == 1 and first.n == 20
    assert "double dissociation" in second.note and "(0.50) with mixer" in second.note
    assert f"*:{BASE.hash}*" in second.evidence and len(second.evidence) > 10


def test_the_reverse_fails() -> None:
    first, second = claims(runs(reverse))
    assert (first.verdict, second.verdict) == ("fails", "fails")
    assert first.measured == second.measured == -1 and "no dissociation" in second.note


def test_sides_that_do_alike_are_undecided() -> None:
    first, second = claims(runs(alike))
    assert (first.verdict, second.verdict) == ("undecided", "undecided")
    assert second.measured == pytest.approx(0, abs=0.05) and second.ci_low < 0 < second.ci_high


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (lambda: made(segregated, lost=2), "the untouched model gets 90% of needle right"),
        (lambda: made(segregated, mixers=[]), "no recurrent mixers were ablated"),
        (lambda: made(segregated, heads=[]), "no attention heads were ablated"),
        (
            lambda: made(lambda p, t: 0.3 if side_of(p) == "attention" else 0.7),
            "0 pairs of ablations do nearly as much",
        ),
        (lambda: [o for o in runs(segregated) if o.metadata[PART] != MEASURING or o.plan == BASE], "were not measured"),
    ],
    ids=["base", "no recurrence", "no attention", "no match", "not measured"],
)
def test_without_base_sides_or_pairs_it_is_undecided(rows: Callable[[], list[Outcome]], why: str) -> None:
    for claim in claims(rows()):
        assert claim.verdict == "undecided" and claim.measured is None and why in claim.note


def test_facts_that_are_only_more_fragile_do_not_hold() -> None:
    first, second = claims(made(lambda plan, task: 0.2 if task == RETRIEVAL else 0.8))
    assert (first.verdict, second.verdict) == ("undecided", "fails")  # attention too takes more from facts
    assert first.ci_low > 0 and first.note.startswith("attention heads of equal harm may do the same")


def test_a_control_that_dissociates_as_much_decides_nothing() -> None:
    """Random pairs, whose sides are of both kinds, answer as the matched ones do."""

    def as_matched(outcome: Outcome) -> bool:
        first = next(o.plan for o in rows if o.metadata[PART] == outcome.metadata[PART] and o.plan != BASE)
        return (outcome.task == RETRIEVAL) != (outcome.plan == first)

    rows = runs(segregated)
    dealt_out = [
        dataclasses.replace(o, correct=as_matched(o)) if o.metadata[PART].startswith("random") and o.plan != BASE else o
        for o in rows
    ]
    found = judge(dealt_out).found
    assert found is not None and found.at_random is not None and abs(found.at_random.value) == 1
    _, second = claims(dealt_out)
    assert found.verdict == "double"
    assert second.verdict == ("undecided" if found.at_random.value > 0 else "holds")


def test_few_pairs_are_measured_but_decide_nothing() -> None:
    for claim in claims(made(segregated, mixers=MIXERS[:6])):  # all mixers, and two of them
        assert (claim.verdict, claim.measured) == ("undecided", 1)
        assert claim.note.startswith("3 pairs of ablations do nearly as much harm, 5 are needed")


def test_without_random_pairs_the_index_is_undecided() -> None:
    first, second = claims(made(segregated, draws=0))
    assert (first.verdict, second.verdict, second.measured) == ("holds", "undecided", None)
    assert "random pairs, was not run" in second.note


def test_a_match_that_does_not_hold_elsewhere_decides_nothing() -> None:
    """Equally harmful where they were matched, not where they are measured."""
    rows = [
        dataclasses.replace(o, correct=True)
        if o.metadata[PART] == MEASURING and side_of(o.plan) == "recurrent" and o.task == LANGUAGE
        else o
        for o in runs(segregated)
    ]
    first, second = claims(rows)
    assert first.verdict == second.verdict == "undecided" and "does not hold on other samples" in second.note


def test_matching_and_measuring_share_no_sample() -> None:
    """What is measured does not change when the samples of the matching are answered otherwise in the same measure."""
    rows = runs(segregated)
    ids = {name: {o.sample_id for o in rows if o.metadata[PART] == name} for name in (MATCHING, MEASURING)}
    assert not ids[MATCHING] & ids[MEASURING]
    cells = measured(rows, matches(rows), RETRIEVAL)
    assert cells is not None and cells.right.shape[1:] == (4, 20)
    rest = [o for o in rows if o.metadata[PART] != MATCHING]
    again = measured(rest, matches(rows), RETRIEVAL)
    assert again is not None and (again.right == cells.right).all()


def test_pairs_of_another_value_are_another_matching() -> None:
    also = [Plan(AblateRecurrent("skip", layers=(layer,))) for layer in RECURRENT]
    rows = made(segregated, mixers=also)
    assert matches(rows) == [] and len(matches(rows, ("skip",))) == 6
    assert judge(rows).problem.startswith("0 pairs")


def test_outcomes_of_other_experiments_are_left_alone() -> None:
    plan = Plan(AblateHeads(during=Phase.ALL))
    others = outcomes(recorded(needles() + facts(20), [BASE, plan], lambda p, s: True))
    assert in_dissociation(others) == [] and recurrent_ablation(others) is None is double_dissociation(others)
    rows = runs(segregated)
    assert claims(others + rows) == claims(rows)


def test_a_random_pair_lacking_a_side_is_not_counted() -> None:
    rows = made(segregated, draws=3)
    found = random_pairs(rows)
    assert found is not None and [len(task.right) for task in found] == [3, 3]
    assert all(cells.shape == (3, 5) and cells.mean(axis=1).tolist() == [1, 0, 0] for t in found for cells in t.right)
    lacking = next(o.plan for o in rows if o.metadata[PART] == "random 0" and o.plan != BASE)
    fewer = random_pairs([o for o in rows if o.metadata[PART] != "random 0" or o.plan != lacking])
    assert fewer is not None and len(fewer[0].right) == 2


def test_the_pairs_are_of_one_kind_each() -> None:
    for pair in matches(runs(segregated)):
        assert isinstance(pair, Match) and (side_of(pair.attention), side_of(pair.recurrent)) == (
            "attention",
            "recurrent",
        )
