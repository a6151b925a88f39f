"""The plans of a phase map: attention, recurrence or both ablated whole, in which phases."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from segregation.interventions.matched import Side, side_of
from segregation.interventions.phase import Phase
from segregation.interventions.recurrent_rules import AblateRecurrent, Ablation
from segregation.interventions.rules import AblateHeads, Plan
from segregation.interventions.visibility import PHASES


@dataclass(frozen=True)
class Cell:
    """Which cell of a phase map a plan is.

    Attributes:
        side: what is ablated: all attention heads, all recurrent mixers, or both.
        during: when.
        value: what recurrent mixers' outputs are replaced by; attention heads are set to zero. Left ``"zero"`` for
            attention alone.
    """

    side: Side
    during: Phase
    value: Ablation = "zero"

    def plan(self, source: str = "") -> Plan:
        """The plan of this cell; ``source`` is the reference that its value needs.

        >>> str(Cell("both", Phase.LAST).plan())
        'AblateHeads(heads=all, during=LAST) + AblateRecurrent(value=zero, during=LAST)'
        """
        heads = [] if self.side == "recurrent" else [AblateHeads(during=self.during)]
        mixers = [] if self.side == "attention" else [AblateRecurrent(self.value, source=source, during=self.during)]
        return Plan(*heads, *mixers)


def cells(sides: Sequence[Side], values: Sequence[Ablation] = ("zero",)) -> list[Cell]:
    """Every cell of a map: the three phases and their unions, for each side, at each value where it matters.

    >>> len(cells(("attention", "recurrent", "both"))), len(cells(("both",), ("zero", "skip")))
    (21, 14)
    """
    return [
        Cell(side, during, value)
        for side in sides
        for value in (values if side != "attention" else ("zero",))
        for during in PHASES
    ]


@functools.cache
def cell_of(plan: Plan) -> Cell | None:
    """The cell of a plan, or ``None`` if it is not one of a phase map.

    >>> cell_of(Cell("recurrent", Phase.DECODE, "skip").plan())
    Cell(side='recurrent', during=<Phase.DECODE: 4>, value='skip')
    """
    side = side_of(plan)
    whole = all(getattr(rule, "heads", "all") == "all" == getattr(rule, "layers", "all") for rule in plan.rules)
    if side is None or not whole or len(plan.rules) != (2 if side == "both" else 1):
        return None
    values: list[Ablation] = [rule.value for rule in plan.rules if isinstance(rule, AblateRecurrent)]
    same = len({rule.during for rule in plan.rules}) == 1
    return Cell(side, plan.rules[0].during, *values) if same else None
