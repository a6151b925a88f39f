"""Index and verdict of toy systems whose structure was planted."""

import numpy as np
import pytest

from segregation.errors import ScoreError
from segregation.scores.dissociation import (
    Dealt,
    Dissociation,
    Measured,
    dissociate,
    effect,
    interaction,
    less_random,
    segregation,
)

N = 60
CHANCE = 0.25


def answers(rates: list[float], rng: np.random.Generator, n: int = N) -> np.ndarray:
    """Right answers in conditions of these rates."""
    return (rng.random((len(rates), n)) < np.array(rates)[:, None]).astype(float)


def toy(a: tuple[float, float], s: tuple[float, float], both: tuple[float, float], n_pairs: int = 5) -> Dissociation:
    """A system in which ablating A takes a[0] of retrieval and a[1] of language, and S likewise."""
    rng = np.random.default_rng(0)

    def rates(which: int, chance: float) -> list[float]:
        return [1.0, *(1 - taken * (1 - chance) for taken in (a[which], s[which], both[which]))]

    pairs = [
        np.stack([answers(rates(which, chance), rng) for _ in range(n_pairs)])
        for which, chance in ((0, 0), (1, CHANCE))
    ]
    mixed = [
        [answers([1.0, *(1 - (a[w] + s[w]) / 2 * (1 - c),) * 2], rng, 8) for _ in range(20)]
        for w, c in ((0, 0), (1, CHANCE))
    ]
    return dissociate(
        Measured(pairs[0], 0),
        {"facts": Measured(pairs[1], CHANCE)},
        (Dealt(mixed[0], 0), Dealt(mixed[1], CHANCE)),
        n_resamples=2000,
    )


def test_attention_alone_serves_retrieval_and_recurrence_alone_language() -> None:
    found = toy((1, 0), (0, 1), (1, 1))
    assert found.raw.value == pytest.approx(1, abs=0.06) and found.index is not None
    assert found.index.value == pytest.approx(1, abs=0.06) and found.index.low > 0.7 and found.index.high <= 1
    assert found.verdict == "double"
    assert min(found.lopsided[side].low for side in ("attention", "recurrent")) > 0.7
    assert found.harm_gap.low < 0 < found.harm_gap.high and found.harm_gap_size < 0.1


def test_the_reverse() -> None:
    found = toy((0, 1), (1, 0), (1, 1))
    assert found.index is not None and found.index.value == pytest.approx(-1, abs=0.06) and found.index.high < -0.7
    assert found.verdict == "none" and all(test.adjusted > 0.9 for test in found.contrasts)


def test_a_symmetric_system() -> None:
    found = toy((0.5, 0.5), (0.5, 0.5), (1, 1))
    assert found.index is not None and found.index.low < 0 < found.index.high and abs(found.index.value) < 0.1
    assert found.verdict == "none"


@pytest.mark.parametrize(("a", "s"), [((0.5, 0.5), (0, 1)), ((0.8, 0), (0.4, 0.4))])
def test_damage_without_aim_on_one_side_is_a_single_dissociation(
    a: tuple[float, float], s: tuple[float, float]
) -> None:
    """At equal harm both tests count, but one of the sides takes as much from one ability as from the other."""
    found = toy(a, s, (1, 1))
    assert all(test.adjusted < 0.05 for test in found.contrasts)
    assert found.verdict == "single"


def test_gaps_of_opposite_sign_do_not_cancel() -> None:
    right = np.ones((4, 4, 20))
    right[::2, 1], right[1::2, 2] = 0, 0  # in turn A, then S, takes everything
    found = dissociate(Measured(right, 0), {"facts": Measured(right, 0)}, n_resamples=200)
    assert (found.harm_gap.value, found.harm_gap_size) == (0, 1)


@pytest.mark.parametrize(("a", "s", "index"), [((1, 0), (0, 1), 1), ((0, 1), (1, 0), -1), ((0.4, 0.4), (0.4, 0.4), 0)])
def test_exact_toys(a: tuple[float, float], s: tuple[float, float], index: float) -> None:
    """Without noise the numbers are exact."""
    assert segregation(a[0], s[0], a[1], s[1]) == index == less_random(segregation(a[0], s[0], a[1], s[1]), 0)


def test_sides_that_stand_in_for_each_other_interact() -> None:
    found = toy((0, 0), (0, 0), (1, 1))
    assert found.interactions["retrieval"].value == 1 == interaction(1, 0, 0)
    assert found.effects["retrieval"]["both"].value == 1


def test_index_is_that_of_a_plain_loop() -> None:
    rng = np.random.default_rng(5)
    retrieval, facts = rng.integers(2, size=(3, 4, 30)), rng.integers(2, size=(3, 4, 20))
    retrieval[:, 0], facts[:, 0] = 1, 1
    found = dissociate(
        Measured(retrieval.astype(float), 0), {"facts": Measured(facts.astype(float), 0.25)}, n_resamples=200
    )
    total = 0.0
    for pair in range(3):
        lost = [[1 - sum(retrieval[pair, c]) / 30, min(1, (1 - sum(facts[pair, c]) / 20) / 0.75)] for c in (1, 2)]
        total += ((lost[0][0] - lost[1][0]) - (lost[0][1] - lost[1][1])) / 2
    assert found.raw.value == pytest.approx(total / 3) and found.index is None and found.at_random is None
    assert found.raw.low <= found.raw.value <= found.raw.high


def test_an_interval_is_not_blind_where_every_sample_agrees() -> None:
    """All right or all wrong: a bootstrap has no spread, the interval has Wilson's."""
    right = np.zeros((3, 4, 20))
    right[:, 0], right[:, 2] = 1, 1
    found = dissociate(
        Measured(right, 0), {"facts": Measured(1 - right + (np.arange(4) == 0)[:, None], 0)}, n_resamples=200
    )
    assert found.raw.value == 1 and found.raw.low < 0.9
    assert found.effects["retrieval"]["attention"].low == pytest.approx(1 - 0.1611, abs=1e-3)  # Wilson, 0 of 20


def test_effects_are_clipped_and_need_something_to_lose() -> None:
    assert effect(0.9, 1.0, chance=0) == 0 and effect(0.9, 0.1, chance=0.25) == 1
    with pytest.raises(ScoreError, match="above chance"):
        effect(0.25, 0.1, chance=0.25)


@pytest.mark.parametrize("at_random", [-1.0, -0.3, 0.0, 0.3, 1.0])
def test_an_index_less_its_random_mean_stays_within_bounds(at_random: float) -> None:
    indices = np.linspace(-1, 1, 21)
    found = less_random(indices, at_random)
    assert (np.abs(found) <= 1).all() and (np.diff(found) >= 0).all()
    assert less_random(at_random, at_random) == 0


def test_what_cannot_be_compared_is_refused() -> None:
    cells = Measured(np.ones((3, 4, 5)), 0)
    with pytest.raises(ScoreError, match="a task beside retrieval"):
        dissociate(cells, {})
    with pytest.raises(ScoreError, match="at least two sets"):
        dissociate(Measured(np.ones((1, 4, 5)), 0), {"facts": Measured(np.ones((1, 4, 5)), 0)})
