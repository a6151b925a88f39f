from collections import Counter

import pytest

from segregation.errors import PlanError
from segregation.interventions.draws import random_heads
from segregation.interventions.phase import Phase
from segregation.interventions.rules import KeepHeads


def test_draws_keep_k_different_heads_of_every_layer_and_differ() -> None:
    plans = random_heads((2, 5), 8, 3, 20, during=Phase.GENERATION)
    assert len(set(plans)) == 20
    for plan in plans:
        (rule,) = plan.rules
        assert isinstance(rule, KeepHeads)
        assert rule.during == Phase.GENERATION
        assert Counter(layer for layer, _ in rule.heads) == {2: 3, 5: 3}
        assert all(0 <= head < 8 for _, head in rule.heads)


def test_draws_depend_on_seed_and_k_alone() -> None:
    assert random_heads((2,), 8, 3, 5) == random_heads((2,), 8, 3, 20)[:5]
    assert random_heads((2,), 8, 3, 5, seed=1) != random_heads((2,), 8, 3, 5)


def test_every_subset_can_be_drawn() -> None:
    assert len(random_heads((0,), 4, 2, 6)) == 6


@pytest.mark.parametrize(("k", "n"), [(0, 1), (8, 1), (7, 9)])
def test_what_cannot_be_drawn_is_refused(k: int, n: int) -> None:
    with pytest.raises(PlanError, match=rf"{k}"):
        random_heads((2,), 8, k, n)
