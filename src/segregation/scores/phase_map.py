"""In which phases a component must act: effects by phase, and the smallest sets of phases that decide."""

from collections.abc import Mapping, Sequence

from segregation.errors import ScoreError
from segregation.interventions.phase import Phase
from segregation.interventions.phase_cells import Cell, cell_of
from segregation.scores.deciding import BASE_NEEDED, base_of, rate, retained
from segregation.scores.outcomes import Outcome
from segregation.scores.statistics import Interval

TAKEN = 0.95
"""At least this effect counts as the ability destroyed."""
SPARED = 0.05
"""At most this effect counts as the ability kept."""


def effect_of(rows: Sequence[Outcome], base: Sequence[Outcome]) -> Interval:
    """E = clip((m(F) - m(F - G)) / (m(F) - chance), 0, 1) of outcomes, with the interval of ``retained``.

    Raises:
        ScoreError: no sample that both have, or a base too near chance.
    """
    left = retained(rows, base, rows[0].chance)
    value, low, high = (min(1.0, max(0.0, 1.0 - end)) for end in (left.value, left.high, left.low))
    return Interval(round(value, 12), round(low, 12), round(high, 12), left.n)


def phase_map(outcomes: Sequence[Outcome], task: str) -> dict[Cell, Interval]:
    """The effect on a task in each cell that was run; nothing where the intact model knows too little of the task.

    >>> phase_map([], "needle")
    {}
    """
    by_cell: dict[Cell, list[Outcome]] = {}
    for outcome in outcomes:
        cell = cell_of(outcome.plan)
        if cell is not None and outcome.task == task:
            by_cell.setdefault(cell, []).append(outcome)
    found: dict[Cell, Interval] = {}
    for cell, rows in by_cell.items():
        base = base_of(rows, [outcome for outcome in outcomes if outcome.task == task])
        if base and rate(base).value >= BASE_NEEDED:
            found[cell] = effect_of(rows, base)
    return found


def minimal(phases: Mapping[Phase, bool]) -> tuple[Phase, ...]:
    """The sets of phases for which something is true while it is so for no smaller set within them.

    >>> sets = {Phase.PREFILL: False, Phase.LAST: False, Phase.DECODE: True, Phase.GENERATION: True, Phase.ALL: True}
    >>> [str(phase) for phase in minimal(sets)]
    ['DECODE']
    """
    true = sorted((phase for phase, holds in phases.items() if holds), key=lambda phase: (len(phase), phase.value))
    return tuple(phase for phase in true if not any(other in phase and other != phase for other in true))


def destroying(effects: Mapping[Phase, float]) -> tuple[Phase, ...]:
    """The smallest sets of phases in which ablating a component destroys the ability: an effect of 95% or more.

    Args:
        effects: of the ablation, by the phases it acts in.

    Raises:
        ScoreError: one of the seven sets of phases is lacking: a smaller one might be it.

    >>> found = {Phase(number): 1.0 if number & 2 else 0.2 for number in range(1, 8)}
    >>> [str(phase) for phase in destroying(found)]
    ['LAST']
    """
    _check_all(effects)
    return minimal({phase: value >= TAKEN for phase, value in effects.items()})


def sufficing(effects: Mapping[Phase, float]) -> tuple[Phase, ...]:
    """The smallest sets of phases in which a component suffices: ablated in all others, at most 5% is lost.

    The empty set, ``Phase(0)``, means that it need not act at all.

    Args:
        effects: of the ablation, by the phases it acts in.

    Raises:
        ScoreError: one of the seven sets of phases is lacking.

    >>> found = {Phase(number): 1.0 if number & 2 else 0.0 for number in range(1, 8)}
    >>> [str(phase) for phase in sufficing(found)]
    ['LAST']
    """
    _check_all(effects)
    left = {Phase.ALL & ~ablated: value <= SPARED for ablated, value in effects.items()}
    return minimal({**left, Phase.ALL: True})


def _check_all(effects: Mapping[Phase, float]) -> None:
    if lacking := [str(Phase(number)) for number in range(1, 8) if Phase(number) not in effects]:
        raise ScoreError(f"a smallest set of phases is found among all seven; not run: {', '.join(lacking)}")
