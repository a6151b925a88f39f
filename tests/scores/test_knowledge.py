"""What is left of choice tasks, on made-up runs whose truth is known."""

import pytest

from segregation.interventions.phase import Phase
from segregation.interventions.rules import AblateHeads, KeepTopHeads, Plan
from segregation.prompts.sample import Sample
from segregation.runs.record import Record
from segregation.scores.claims import Claim
from segregation.scores.knowledge import knowledge
from segregation.scores.outcomes import outcomes
from segregation.scores.verdicts import decide
from tests.made_up import ABLATED, Right, asked, facts, recorded

KEPT = Plan(KeepTopHeads(3, during=Phase.GENERATION))
PLANS = [
    Plan(),
    KEPT,
    Plan(KeepTopHeads(3)),
    *(Plan(AblateHeads(during=p)) for p in (Phase.PREFILL, Phase.LAST)),
    ABLATED,
]
YES_NO = (" yes", " no")


def share(by_plan: dict[tuple[str, Plan], float]) -> Right:
    """Right on the first samples of a task, as many as the plan leaves; all of them where nothing is said."""

    def right(plan: Plan, sample: Sample) -> bool:
        task, _, number = sample.id.partition("/")
        return int(number) < 100 * by_plan.get((task, plan), 1.0)

    return right


def run(by_plan: dict[tuple[str, Plan], float], plans: list[Plan] = PLANS) -> list[Record]:
    tasks = facts(100), asked("sentiment", 100, YES_NO), asked("entailment", 100, YES_NO)
    return [record for task in tasks for record in recorded(task, plans, share(by_plan))]


def known(by_plan: dict[tuple[str, Plan], float]) -> list[Record]:
    """Two tasks about knowledge, with other chances."""
    tasks = facts(100), asked("mmlu", 100, YES_NO)
    return [record for task in tasks for record in recorded(task, PLANS, share(by_plan))]


def claim(records: list[Record]) -> Claim:
    (only,) = decide(outcomes(records))
    assert only.id == "benchmarks"
    return only


def test_the_worst_task_decides_corrected_for_its_own_chance() -> None:
    found = claim(known({("mmlu", ABLATED): 0.6, ("facts", ABLATED): 0.6}))
    assert found.verdict == "fails" and found.measured == pytest.approx((0.6 - 0.5) / 0.5)
    assert "the worst is mmlu with none" in found.note
    assert "mmlu with none: 60% and 20%, McNemar p =" in found.note
    assert "facts with none: 60% and 47%" in found.note and "(40 lost, 0 won)" in found.note
    assert found.evidence == tuple(f"loglikelihood:*:{plan.hash}*" for plan in (Plan(), KEPT, ABLATED))


def test_knowledge_without_attention_holds() -> None:
    found = claim(run({}))
    assert (found.verdict, found.measured, found.n) == ("holds", 1, 100)


def test_a_task_that_is_not_about_knowledge_stands_beside_the_claim() -> None:
    found = claim(run({("entailment", ABLATED): 0.5}))
    assert (found.verdict, found.measured) == ("holds", 1)
    assert "beside the claim, entailment with none: 50% and 0%" in found.note
    assert decide(outcomes(recorded(asked("entailment", 100, YES_NO), PLANS, share({})))) == []


def test_a_wide_interval_is_undecided() -> None:
    assert claim(known({("mmlu", KEPT): 0.9})).verdict == "undecided"  # 80% [65, 89] of what a guess does not get


def test_a_task_that_the_base_hardly_knows_is_left_out_by_name() -> None:
    found = claim(known({("mmlu", Plan()): 0.79, ("mmlu", ABLATED): 0.5}))
    assert found.verdict == "holds"
    assert "left out, as the base knows too little of mmlu (79%, chance 50%)" in found.note
    assert claim(known({("mmlu", Plan()): 0.8, ("mmlu", ABLATED): 0.5})).verdict == "fails"


def test_a_base_that_knows_nothing_gives_no_number() -> None:
    found = claim(run({(task, Plan()): 0.3 for task in ("facts", "sentiment", "entailment")}))
    assert found.verdict == "undecided" and found.measured is None and "knows too little of facts" in found.note


def test_too_few_samples_for_an_interval_count_as_too_little() -> None:
    """Three of four facts are known, but a resample of the four may have none."""
    records = recorded(facts(4), PLANS, lambda plan, sample: sample.id != "facts/3")
    assert claim(records).verdict == "undecided"
    assert [task.known for task in knowledge(outcomes(records), [ABLATED])] == [False]


def test_facts_alone_are_enough_and_a_cell_that_is_missing_is_not() -> None:
    assert claim(recorded(facts(100), [Plan(), KEPT, ABLATED], share({}))).verdict == "holds"
    partly = [
        *recorded(facts(100), [Plan(), KEPT, ABLATED], share({})),
        *recorded(asked("mmlu", 100, YES_NO), [Plan(), ABLATED], share({})),
    ]
    assert claim(partly).verdict == "undecided" and "not run: mmlu with k = 3" in claim(partly).note


def test_without_a_plan_of_k_heads_or_of_none_there_is_no_claim() -> None:
    for plans in ([Plan(), ABLATED], [Plan(), KEPT], [KEPT, ABLATED]):
        assert decide(outcomes(run({}, plans))) == []


def test_without_a_sweep_the_fewest_heads_are_those_of_the_claim() -> None:
    one = Plan(KeepTopHeads(1, during=Phase.GENERATION))
    assert "facts with k = 1: 50%" in claim(run({("facts", one): 0.5}, [*PLANS, one])).note


def test_what_is_left_is_raw_and_corrected() -> None:
    (task,) = knowledge(outcomes(recorded(facts(100), PLANS, share({("facts", ABLATED): 0.7}))), [ABLATED])
    assert (task.task, task.chance, task.base.value, task.known) == ("facts", 0.25, 1, True)
    left = task.left[ABLATED]
    assert left.raw.value == pytest.approx(0.7) and left.corrected.value == pytest.approx(0.6)
    assert left.raw.low < 0.7 < left.raw.high
