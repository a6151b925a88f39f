from segregation.interventions.phase import Phase
from segregation.interventions.rules import AblateHeads, KeepHeads, KeepTopHeads, Plan
from segregation.scores.outcomes import Sweep, outcomes, sweep_point
from tests.made_up import facts, lone_target, needles, recorded


def test_an_outcome_says_what_was_asked_and_whether_it_came() -> None:
    records = recorded(needles(lengths=[128], depths=[25], readings=2), [Plan()], lambda plan, sample: True)
    (outcome,) = outcomes(records)
    assert (outcome.model, outcome.task, outcome.plan) == ("made-up", "needle", Plan())
    assert (outcome.context_length, outcome.depth_percent, outcome.readings) == (128, 25, 2)
    assert outcome.correct and outcome.value == 1


def test_an_outcome_has_the_family_of_its_model_and_the_chance_of_its_task() -> None:
    (needle,) = outcomes(recorded(needles(lengths=[128], depths=[0]), [Plan()], lambda plan, sample: True))
    (fact,) = outcomes(recorded(facts(1), [Plan()], lambda plan, sample: True, family="jamba"))
    assert (needle.family, needle.chance, fact.family, fact.chance) == ("", 0, "jamba", 0.25)


def test_part_of_a_needle_has_a_value_but_is_not_correct() -> None:
    (outcome,) = outcomes(recorded(needles(lengths=[128], depths=[0]), [Plan()], lambda plan, sample: False))
    assert not outcome.correct and 0 <= outcome.value < 1


def test_a_choice_is_correct_or_not() -> None:
    records = recorded(facts(2), [Plan()], lambda plan, sample: sample.id == "facts/0")
    assert [(o.task, o.correct, o.value) for o in outcomes(records)] == [("facts", True, 1.0), ("facts", False, 0.0)]


def test_the_log_probability_of_a_needle_is_no_outcome() -> None:
    asked = needles(lengths=[128], depths=[0])
    scored = [lone_target(sample) for sample in asked]
    assert [o.task for o in outcomes([*scored, *recorded(facts(1), [Plan()], lambda plan, sample: True)])] == ["facts"]


def test_only_plans_that_keep_k_heads_in_every_layer_are_points_of_a_sweep() -> None:
    keep = KeepTopHeads(3, "l2", during=Phase.DECODE)
    assert sweep_point(Plan(keep)) == Sweep(3, "l2", Phase.DECODE)
    assert sweep_point(Plan(KeepHeads(((1, 0), (4, 7))))) == Sweep(1, "random", Phase.ALL)
    for other in (
        Plan(),
        Plan(AblateHeads()),
        Plan(keep, keep),
        Plan(KeepHeads(())),
        Plan(KeepHeads(((1, 0), (1, 1), (4, 7)))),
    ):
        assert sweep_point(other) is None
