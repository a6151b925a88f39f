import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segregation.errors import PlanError
from segregation.interventions.phase import Phase
from segregation.interventions.rules import AblateHeads, AblateMixer, KeepHeads, KeepTopHeads, Plan

during = st.integers(1, 7).map(Phase)
heads = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=5).map(tuple)
rules = st.one_of(
    st.builds(
        KeepTopHeads,
        st.integers(0, 64),
        st.sampled_from(["entropy", "l2", "paper_entropy"]),
        during,
    ),
    st.builds(AblateHeads, st.one_of(st.just("all"), heads), during),
    st.builds(KeepHeads, heads, during),
    st.builds(
        AblateMixer,
        st.one_of(st.just("all"), st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple)),
        during,
    ),
)


@given(st.lists(rules, max_size=4))
def test_plans_go_through_json(some: list):
    plan = Plan(*some)
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.hash == plan.hash
    assert json.loads(plan.to_json())["rules"] == json.loads(again.to_json())["rules"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KeepTopHeads(-1), r"k must be an integer in 0\.\.n_heads, got -1"),
        (lambda: KeepTopHeads(True), "got True"),
        (lambda: AblateHeads(heads=()), "heads is empty"),
        (lambda: AblateHeads(heads=((0, -1),)), r"got \(0, -1\)"),
        (lambda: AblateMixer(layers=()), "AblateMixer.layers"),
        (lambda: KeepTopHeads(1, during=Phase(0)), "non-empty Phase"),
        (lambda: Plan.from_json("{"), "a plan in JSON is"),
        (lambda: Plan.from_json('{"rules":[{"rule":"Cut"}]}'), "got 'Cut'"),
        (lambda: Plan.from_json('{"rules":[{"rule":"AblateHeads","head":1}]}'), r"not \['head'\]"),
    ],
)
def test_refusals(make, message: str):
    with pytest.raises(PlanError, match=message):
        make()
