"""Effects by phase, and the smallest sets of phases, against a search over all of them."""

import itertools

import pytest

from segregation.errors import ScoreError
from segregation.interventions.phase import Phase
from segregation.interventions.phase_cells import Cell
from segregation.interventions.rules import Plan
from segregation.scores.outcomes import outcomes
from segregation.scores.phase_map import destroying, effect_of, minimal, phase_map, sufficing
from tests.made_up import facts, needles, recorded

SETS = [Phase(number) for number in range(1, 8)]


def subsets(phase: Phase) -> list[Phase]:
    parts = [one for one in (Phase.PREFILL, Phase.LAST, Phase.DECODE) if one in phase]
    chosen = [combo for n in range(len(parts)) for combo in itertools.combinations(parts, n)]
    return [Phase(sum(one.value for one in combo)) for combo in chosen]


def test_smallest_sets_are_those_of_a_search() -> None:
    for bits in itertools.product((False, True), repeat=7):
        holds = dict(zip(SETS, bits, strict=True))
        expected = {phase for phase in SETS if holds[phase] and not any(holds.get(sub) for sub in subsets(phase))}
        assert set(minimal(holds)) == expected


def test_what_destroys_and_what_suffices() -> None:
    """A component that must act at the last prompt token or at new ones: redundant in generation, idle in prefill."""
    effects = {phase: float(Phase.GENERATION in phase) for phase in SETS}
    assert destroying(effects) == (Phase.GENERATION,)
    assert sufficing(effects) == (Phase.LAST, Phase.DECODE)
    assert destroying(dict.fromkeys(SETS, 0.0)) == () and sufficing(dict.fromkeys(SETS, 0.0)) == (Phase(0),)
    assert sufficing(dict.fromkeys(SETS, 1.0)) == (Phase.ALL,)
    with pytest.raises(ScoreError, match="not run: DECODE"):
        destroying({phase: 1.0 for phase in SETS if phase != Phase.DECODE})


def test_effects_are_corrected_for_chance_and_need_a_base() -> None:
    cell, samples = Cell("both", Phase.LAST), facts(40)
    plan = cell.plan()
    right = {sample.id for sample in samples[:25]}
    rows = outcomes(recorded(samples, [Plan(), plan], lambda p, s: p == Plan() or s.id in right))
    (found,) = phase_map(rows, "facts").values()
    assert found.value == pytest.approx((1 - 25 / 40) / 0.75) and found.low < found.value < found.high
    assert phase_map(rows, "needle") == {}
    assert phase_map([row for row in rows if row.plan.rules], "facts") == {}
    poor = outcomes(recorded(needles(), [Plan(), plan], lambda p, s: s.metadata["depth_percent"] != 50))
    assert phase_map(poor, "needle") == {}  # 80% are not enough


def test_an_effect_lies_between_nothing_and_all() -> None:
    samples = needles()
    rows = outcomes(recorded(samples, [Plan(), Cell("attention", Phase.ALL).plan()], lambda p, s: p == Plan()))
    base, gone = [r for r in rows if not r.plan.rules], [r for r in rows if r.plan.rules]
    assert effect_of(gone, base).value == 1 and effect_of(gone, base).low < 0.9
    assert (effect_of(base, base).value, effect_of(base, base).low) == (0, 0)
