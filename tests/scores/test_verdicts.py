"""Verdicts on made-up runs whose truth is known."""

from collections.abc import Callable

import pytest

from segregation.errors import ScoreError
from segregation.interventions.phase import Phase
from segregation.interventions.rules import KeepTopHeads, Plan
from segregation.interventions.visibility import View
from segregation.prompts.sample import Sample
from segregation.scores.claims import Claim
from segregation.scores.outcomes import outcomes, sweep_point
from segregation.scores.verdicts import decide, smallest_k
from tests.made_up import (
    ABLATED,
    Right,
    ablation_plans,
    ablation_records,
    classic,
    facts,
    needles,
    recorded,
    sweep_plans,
    sweep_records,
)

PAPER = "as in the paper: without attention no needle, but facts"


def as_in_the_paper(plan: Plan, sample: Sample) -> bool:
    return not plan.rules or bool(sample.choices)


def by_id(claims: list[Claim]) -> dict[str, Claim]:
    return {claim.id: claim for claim in claims}


def keeping(needed: Callable[[str], int]) -> Right:
    """A model that retrieves from ``needed(choice)`` heads on, and always knows its facts."""

    def right(plan: Plan, sample: Sample) -> bool:
        point = sweep_point(plan)
        return bool(sample.choices) or point is None or point.k >= needed(point.choice)

    return right


def test_what_the_paper_found_holds() -> None:
    claims = by_id(decide(outcomes(ablation_records(as_in_the_paper))))
    assert {id: claim.verdict for id, claim in claims.items()} == {"ablation": "holds", "jrt": "holds"}
    assert claims["ablation"].measured == 0 and claims["ablation"].n == 75
    assert 0 < claims["ablation"].ci_high <= 0.05
    assert claims["ablation"].evidence == (f"generate:*:{Plan().hash}*", f"generate:*:{ABLATED.hash}*")
    assert "100% of the facts" in claims["ablation"].note


def test_a_model_that_retrieves_without_attention_fails_the_claim() -> None:
    claims = by_id(decide(outcomes(ablation_records(lambda plan, sample: True))))
    assert claims["ablation"].verdict == "fails" and claims["ablation"].measured == 1
    assert claims["jrt"].verdict == "undecided" and "nothing to restore" in claims["jrt"].note


def test_reading_twice_is_undecided_where_reading_once_does_not_surely_fail() -> None:
    """Five of 75 are retrieved after one reading: not surely above 5%, but not shown to be gone either."""
    spared = {f"needle/100/{depth}/x1" for depth in (0, 25, 50, 75, 100)}

    def right(plan: Plan, sample: Sample) -> bool:
        return as_in_the_paper(plan, sample) or sample.id in spared

    claims = by_id(decide(outcomes(ablation_records(right))))
    assert {id: claim.verdict for id, claim in claims.items()} == {"ablation": "undecided", "jrt": "undecided"}
    assert "7% is retrieved" in claims["jrt"].note


def test_recovery_by_reading_twice_fails_the_claim() -> None:
    def right(plan: Plan, sample: Sample) -> bool:
        return as_in_the_paper(plan, sample) or sample.metadata.get("readings") == 2

    assert by_id(decide(outcomes(ablation_records(right))))["jrt"].verdict == "fails"


def test_few_samples_leave_a_claim_undecided() -> None:
    claims = by_id(decide(outcomes(ablation_records(as_in_the_paper, cells=10))))
    assert claims["ablation"].verdict == "undecided" and claims["ablation"].measured == 0


@pytest.mark.parametrize(
    ("right", "with_facts", "why"),
    [
        (lambda plan, sample: False, True, "untouched model gets 0%"),
        (as_in_the_paper, False, "was not run"),
        (lambda plan, sample: not plan.rules, True, "merely broken"),
    ],
)
def test_without_base_or_control_nothing_is_decided(right: Right, with_facts: bool, why: str) -> None:
    claim = by_id(decide(outcomes(ablation_records(right, with_facts=with_facts))))["ablation"]
    assert claim.verdict == "undecided" and why in claim.note


def test_sparsity_reports_the_smallest_k_and_random_heads_are_compared_at_it() -> None:
    claims = by_id(decide(outcomes(sweep_records(keeping(lambda choice: {"entropy": 3, "l2": 4}.get(choice, 7))))))
    assert {id: claim.verdict for id, claim in claims.items()} == {
        "sparsity": "holds",
        "random-heads": "holds",
        "benchmarks": "holds",
    }
    assert "smallest k that keeps 95% is 3" in claims["sparsity"].note and claims["sparsity"].measured == 1
    assert claims["random-heads"].measured == 0 and claims["random-heads"].n == 20
    assert "20 draws of 3 of 8" in claims["random-heads"].note


def test_a_model_that_needs_more_than_half_of_its_heads_fails_sparsity() -> None:
    claims = by_id(decide(outcomes(sweep_records(keeping(lambda choice: 5)))))
    assert claims["sparsity"].verdict == "fails" and claims["sparsity"].measured == 0
    assert "smallest k that keeps 95% is 5" in claims["sparsity"].note
    assert "with 4 of 8 heads" in claims["sparsity"].note


def test_the_number_of_sparsity_is_the_one_its_verdict_is_about() -> None:
    """With 3 heads two of 75 needles are lost: a rate above the bar, an interval across it. With 4 none is."""
    lost = {"needle/100/0/x1", "needle/100/25/x1"}

    def right(plan: Plan, sample: Sample) -> bool:
        point = sweep_point(plan)
        if point is not None and point.choice == "entropy" and point.k == 3:
            return bool(sample.choices) or sample.id not in lost
        return keeping(lambda choice: {"entropy": 3}.get(choice, 7))(plan, sample)

    claims = by_id(decide(outcomes(sweep_records(right))))
    assert claims["sparsity"].verdict == "holds" and claims["sparsity"].ci_low >= 0.95
    assert "with 4 of 8 heads; the smallest k that keeps 95% is 3, by its rate alone" in claims["sparsity"].note
    assert "20 draws of 4 of 8" in claims["random-heads"].note


@pytest.mark.parametrize("ks", [(2,), (0, 1), (0, 2, 4), (1, 2, 3)])
def test_a_few_values_of_k_are_no_sweep(ks: tuple[int, ...]) -> None:
    plans = [Plan(), *(Plan(KeepTopHeads(k, during=Phase.GENERATION)) for k in ks)]
    assert decide(outcomes(recorded(needles(), plans, lambda plan, sample: True))) == []


@pytest.mark.parametrize(("needed", "k"), [(3, 3), (0, 1), (7, 4)])
def test_the_smallest_k_is_one_to_half_of_the_heads(needed: int, k: int) -> None:
    assert smallest_k(outcomes(sweep_records(keeping(lambda choice: needed)))) == k


def test_without_a_base_the_smallest_k_is_half_of_the_heads_and_without_a_sweep_there_is_none() -> None:
    assert smallest_k(outcomes(sweep_records(lambda plan, sample: False))) == 4
    with pytest.raises(ScoreError, match="head_sparsification"):
        smallest_k(outcomes(ablation_records(as_in_the_paper)))


def test_random_heads_that_do_as_well_fail_their_claim() -> None:
    assert by_id(decide(outcomes(sweep_records(keeping(lambda choice: 2)))))["random-heads"].verdict == "fails"


def test_sparsity_without_random_heads_is_undecided() -> None:
    rows = [
        o
        for o in outcomes(sweep_records(keeping(lambda choice: 2)))
        if getattr(sweep_point(o.plan), "choice", "") != "random"
    ]
    claims = by_id(decide(rows))
    assert claims["sparsity"].verdict == "undecided" and "random heads, was not run" in claims["sparsity"].note
    assert "random-heads" not in claims


def test_a_base_that_retrieves_nothing_gives_no_number() -> None:
    claims = by_id(decide(outcomes(sweep_records(lambda plan, sample: bool(sample.choices)))))
    assert {claim.verdict for claim in claims.values()} == {"undecided"}
    assert claims["sparsity"].measured is None


def test_knowledge_that_goes_with_attention_fails_benchmarks() -> None:
    def right(plan: Plan, sample: Sample) -> bool:
        return plan != ABLATED and keeping(lambda choice: 2)(plan, sample)

    claim = by_id(decide(outcomes(sweep_records(right))))["benchmarks"]
    assert claim.verdict == "fails" and claim.measured == pytest.approx((0 - 0.25) / 0.75)
    assert claim.evidence[1].startswith("loglikelihood:*:")


def test_experiments_in_one_folder_are_decided_as_if_each_had_its_own() -> None:
    """The sweep's model retrieves from 3 heads on; the map has harder samples, of which the model misses a fifth."""
    sweep = sweep_records(keeping(lambda choice: {"entropy": 3}.get(choice, 7)))
    ablated = ablation_records(as_in_the_paper)
    hidden = View("needle hidden", Phase.GENERATION).plan
    hard = needles(lengths=range(900, 915))
    plans = [Plan(), hidden, View("decoy hidden", Phase.GENERATION).plan]
    mapped = recorded(hard, plans, lambda plan, sample: plan != hidden and sample.metadata["depth_percent"] != 50)
    known = recorded(classic(needles(lengths=[128])), [*plans, ABLATED, *sweep_plans(8, 1)], lambda plan, sample: True)
    alone = [claim for records in (ablated, sweep, mapped) for claim in decide(outcomes(records))]
    together = {record.key: record for record in (*known, *sweep, *ablated, *mapped)}
    assert decide(outcomes(together.values())) == alone
    assert by_id(alone)["needle-in-generation"].note.startswith("the untouched model gets 80%")


def test_sweeps_in_other_phases_do_not_count() -> None:
    plans = [Plan(*[type(rule)(rule.heads, during=Phase.ALL) for rule in plan.rules]) for plan in ablation_plans()[1:]]
    rows = outcomes(recorded(needles(), plans[-1:], as_in_the_paper) + recorded(facts(5), [Plan()], as_in_the_paper))
    assert [claim.id for claim in decide(rows)] == ["ablation"]
