"""Matched ablations: what is drawn, how harm pairs it, and that random pairs take no side."""

import itertools
import random
from collections import Counter

import pytest

from segregation.errors import PlanError
from segregation.interventions.matched import Match, dealt, head_sets, match_harm, mixer_sets, set_name, side_of
from segregation.interventions.phase import Phase
from segregation.interventions.recurrent_rules import AblateRecurrent
from segregation.interventions.rules import AblateHeads, KeepTopHeads, Plan

ATTENTION, RECURRENT, N_HEADS = (2, 6), (0, 1, 3, 4, 5, 7), 8


def heads(*pairs: tuple[int, int]) -> Plan:
    return Plan(AblateHeads(pairs))


def mixers(*layers: int, during: Phase = Phase.ALL) -> Plan:
    return Plan(AblateRecurrent(layers=layers, during=during))


def test_random_head_sets_have_as_many_heads_in_every_layer() -> None:
    sets = [plan.rules[0].heads for plan in head_sets(ATTENTION, N_HEADS, draws=4)]
    drawn = [Counter(layer for layer, _ in found) for found in sets if found != "all"][2:]
    assert [set(counts.values()) for counts in drawn] == [{k} for k in (7, 6, 5) for _ in range(4)]
    assert all(set(counts) == set(ATTENTION) for counts in drawn)
    assert len(set(map(str, sets))) == 1 + 2 + 12  # all heads once, though in four sets of phases


def test_mixer_sets_are_those_of_the_model() -> None:
    plans = mixer_sets(RECURRENT, {"zero": "", "skip": ""}, draws=3)
    named = Counter((plan.rules[0].value, plan.rules[0].layers) for plan in plans)
    assert named["zero", "all"] == 4 and named["skip", "all"] == 0
    assert all(named[value, (layer,)] == 1 for value in ("zero", "skip") for layer in RECURRENT)
    assert sum(layers != "all" and len(layers) == 2 for _, layers in named) == 3
    assert {side_of(plan) for plan in plans} == {"recurrent"}


def test_a_side_that_is_not_there_has_no_sets() -> None:
    assert head_sets((), N_HEADS) == [] == mixer_sets((), {"zero": ""})
    assert len(mixer_sets((4,), {"zero": ""})) == 4  # one mixer is all of them


def test_matching_is_the_best_of_all_ways_to_pair() -> None:
    """Against every one-to-one pairing, tried one by one."""
    rng = random.Random(0)
    for _ in range(20):
        a = {heads((2, number)): rng.uniform(0.2, 0.8) for number in range(4)}
        s = {mixers(number): rng.uniform(0.2, 0.8) for number in range(4)}
        best = min(
            (-len(kept), sum(abs(a[x] - s[y]) for x, y in kept))
            for order in itertools.permutations(s)
            for kept in [[(x, y) for x, y in zip(a, order, strict=True) if abs(a[x] - s[y]) <= 0.1]]
        )
        found = match_harm(a, s)
        gaps = [abs(match.attention_harm - match.recurrent_harm) for match in found]
        assert (-len(found), sum(gaps)) == pytest.approx(best)
        assert all(
            (match.attention_harm, match.recurrent_harm) == (a[match.attention], s[match.recurrent]) for match in found
        )


def test_a_set_enters_one_pair_however_it_is_ablated() -> None:
    s = {mixers(0): 0.5, mixers(0, during=Phase.LAST): 0.5, Plan(AblateRecurrent("skip", layers=(0,))): 0.5}
    assert len(match_harm({heads((2, 0)): 0.5, heads((2, 1)): 0.5}, s)) == 1


@pytest.mark.parametrize(("attention", "recurrent"), [(0.5, 0.61), (0.1, 0.1), (0.95, 0.95)])
def test_unlike_harm_and_harm_without_room_are_no_match(attention: float, recurrent: float) -> None:
    assert match_harm({heads((2, 0)): attention}, {mixers(0): recurrent}) == []
    assert len(match_harm({heads((2, 0)): 0.5}, {mixers(0): 0.6})) == 1
    assert match_harm({}, {mixers(0): 0.5}) == []


def test_dealt_sides_have_the_components_of_the_match_and_take_no_side() -> None:
    match = Match(Plan(AblateHeads(during=Phase.LAST)), Plan(AblateRecurrent("skip", layers=(0, 3))), 0.5, 0.5)
    first = Counter()
    for seed in range(200):
        sides = dealt(match, ATTENTION, N_HEADS, RECURRENT, seed=seed)
        rules = [rule for side in sides for rule in side.rules]
        found = [head for rule in rules if isinstance(rule, AblateHeads) for head in rule.heads]
        layers = [layer for rule in rules if isinstance(rule, AblateRecurrent) for layer in rule.layers]
        assert sorted(found) == [(layer, head) for layer in ATTENTION for head in range(N_HEADS)]
        assert len(set(layers)) == len(layers) == 2 and set(layers) <= set(RECURRENT)
        assert {rule.during for rule in rules if isinstance(rule, AblateHeads)} == {Phase.LAST}
        assert {rule.value for rule in rules if isinstance(rule, AblateRecurrent)} == {"skip"}
        first += Counter(layer for rule in sides[0].rules if isinstance(rule, AblateRecurrent) for layer in rule.layers)
    assert first.total() == 200  # half of the mixers each time
    assert all(10 < first[layer] < 60 for layer in RECURRENT)
    assert dealt(match, ATTENTION, N_HEADS, RECURRENT, seed=7) == dealt(match, ATTENTION, N_HEADS, RECURRENT, seed=7)


def test_a_lone_mixer_goes_to_either_side_by_a_coin() -> None:
    match = Match(heads((2, 0), (2, 1)), mixers(0), 0.5, 0.5)
    with_it = [
        any(
            isinstance(rule, AblateRecurrent)
            for rule in dealt(match, ATTENTION, N_HEADS, RECURRENT, seed=seed)[0].rules
        )
        for seed in range(100)
    ]
    assert 30 < sum(with_it) < 70


def test_a_head_and_a_mixer_cannot_be_dealt() -> None:
    with pytest.raises(PlanError, match=r"got heads 2\.0 and mixer 1"):
        dealt(Match(heads((2, 0)), mixers(1), 0.5, 0.5), ATTENTION, N_HEADS, RECURRENT, seed=0)


def test_sides_and_names() -> None:
    assert side_of(Plan(KeepTopHeads(k=1))) is None
    assert side_of(Plan(AblateRecurrent(span="context"))) is None
    assert Match(heads((2, 0)), mixers(1), 0.5, 0.5).both == Plan(AblateHeads(((2, 0),)), AblateRecurrent(layers=(1,)))
    assert (
        set_name(Plan(AblateHeads(tuple((layer, h) for layer in ATTENTION for h in range(4)))))
        == "4 heads each of layers 2, 6"
    )
    assert set_name(Plan(AblateRecurrent("skip", layers=(0, 3)))) == "mixers 0, 3 (skip)"
