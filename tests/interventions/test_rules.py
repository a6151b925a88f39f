import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segregation.errors import PlanError
from segregation.interventions.head_rules import check_heads, check_layers
from segregation.interventions.phase import Phase
from segregation.interventions.rules import AblateHeads, AblateMixer, KeepHeads, KeepTopHeads, Plan
from segregation.interventions.token_rules import BalanceTokens, HideAll, HideTokens, OnlyTokens

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
        BalanceTokens,
        st.sampled_from(["needle", "context+new", "everything"]),
        st.sampled_from([None, "question"]),
        st.one_of(st.just("all"), st.integers(0, 3)),
        during,
        st.just("all"),
        st.one_of(st.just("all"), heads),
        st.just(False),
        st.booleans(),
        st.sampled_from(["row", "prefill"]),
    ),
    st.builds(HideTokens, st.just("needle"), during=during, layers=st.sampled_from([(2,), (5, 2)])),
    st.builds(OnlyTokens, st.just("needle+new"), during=during, renormalize=st.booleans()),
    st.builds(HideAll, during),
    st.builds(
        AblateMixer,
        st.one_of(st.just("all"), st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple)),
        during,
    ),
)


@given(st.lists(rules, max_size=4))
def test_plans_go_through_json(some: list):
    try:
        plan = Plan(*some)
    except PlanError:  # contradictory
        plan = Plan(*some[:1])
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
        (lambda: HideTokens("the needle"), "HideTokens.span must be the name of a span"),
        (lambda: OnlyTokens("needle", but=""), "OnlyTokens.but must be"),
        (lambda: HideTokens("needle", occurrence=-1), "counted from 0"),
        (lambda: HideTokens("needle", heads=()), "heads is empty"),
        (lambda: HideTokens("needle", layers=(2,), heads=((2, 1),)), "name their layers themselves"),
        (lambda: BalanceTokens("needle", summed_over="prefill"), "cannot be renormalised"),
        (lambda: HideTokens("needle", but="needle"), "names no token .* but takes away all of span"),
        (lambda: OnlyTokens("new", during=Phase.LAST), "the new tokens come in DECODE"),
        (lambda: HideTokens("everything"), r"leaves nothing to see, .*; use HideAll\(\)"),
        (lambda: HideTokens("prompt", during=Phase.PREFILL), "leaves nothing to see"),
        (lambda: HideAll(during=Phase(0)), "non-empty Phase"),
        (lambda: check_heads((2, 0)), r"tuple of \(layer, head\) pairs, such as .*, got \(2, 0\)"),
        (lambda: check_layers("HideTokens", 6), 'tuple of layers, such as .*, or "all"; got 6'),
        (lambda: Plan.from_json("{"), "a plan in JSON is"),
        (lambda: Plan.from_json('{"rules":[{"rule":"Cut"}]}'), "got 'Cut'"),
        (lambda: Plan.from_json('{"rules":[{"rule":"AblateHeads","head":1}]}'), r"not \['head'\]"),
    ],
)
def test_refusals(make, message: str):
    with pytest.raises(PlanError, match=message):
        make()


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        ((HideTokens("needle"), OnlyTokens("needle")), "one hides 'needle', the other leaves nothing else"),
        ((HideTokens("context+needle"), BalanceTokens("needle")), "leaves nothing else"),
        ((OnlyTokens("needle"), OnlyTokens("question")), "join spans in it"),
        ((BalanceTokens("needle"), BalanceTokens("needle")), "shared out in one way"),
        ((HideAll(), HideTokens("needle")), "nothing is left for another rule"),
        ((HideTokens("needle"), HideTokens("context", but="needle")), "must stay visible"),
        ((HideTokens("needle"), HideTokens("question", renormalize=False)), "renormalize and causal must be the same"),
        ((AblateHeads(), KeepTopHeads(2)), "none can be kept"),
        ((AblateHeads(((2, 1),)), KeepHeads(((2, 1), (5, 0)))), r"keeps and one ablates the heads \[\(2, 1\)\]"),
        ((KeepHeads(((2, 1),)), KeepHeads(((2, 2),))), "name all of them in it"),
    ],
)
def test_contradictions(rules, why: str):
    with pytest.raises(PlanError, match=f"contradict each other in .*{why}"):
        Plan(*rules)


@pytest.mark.parametrize(
    "rules",
    [
        (HideTokens("needle", during=Phase.PREFILL), OnlyTokens("needle", during=Phase.GENERATION)),
        (HideTokens("needle", layers=(2,)), OnlyTokens("needle", layers=(5,))),
        (HideTokens("needle", heads=((2, 0),)), OnlyTokens("needle", heads=((2, 1),))),
        (HideTokens("needle", occurrence=0), OnlyTokens("needle+context", occurrence=1)),
        (HideTokens("needle"), HideTokens("question")),
        (HideTokens("context", but="needle"), OnlyTokens("context")),
        (HideTokens("question"), KeepTopHeads(2)),
        (AblateHeads(during=Phase.PREFILL), KeepTopHeads(2, during=Phase.GENERATION)),
        (AblateHeads(((2, 1),)), KeepTopHeads(2)),
        (KeepTopHeads(0), AblateHeads()),
    ],
)
def test_rules_that_go_together(rules):
    assert Plan(*rules).rules == rules


def test_a_plan_comes_from_a_file_that_holds_one(tmp_path):
    plan = Plan(KeepTopHeads(2, during=Phase.DECODE))
    (tmp_path / "plan.json").write_text(plan.to_json())
    (tmp_path / "weights.bin").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "notes.txt").write_text("two heads")
    assert Plan.from_file(tmp_path / "plan.json") == plan
    for name, why in (
        ("absent.json", "No such file"),
        ("weights.bin", "it is no text"),
        ("notes.txt", "a plan in JSON"),
    ):
        with pytest.raises(PlanError, match=why):
            Plan.from_file(str(tmp_path / name))
