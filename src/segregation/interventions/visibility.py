"""The plans of a visibility map: what attention may see of the needle and its context, in which phases."""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from segregation.interventions.phase import Phase
from segregation.interventions.presets import paper
from segregation.interventions.rules import Plan
from segregation.interventions.token_rules import BalanceTokens, HideAll, HideTokens, Occurrence, OnlyTokens, TokenRule

Semantics = Literal["default", "paper"]

MODES: Mapping[str, TokenRule] = {
    "needle hidden": HideTokens("needle"),
    "only the needle": OnlyTokens("needle"),
    "needle, balanced": BalanceTokens("needle"),
    "context hidden, needle kept": HideTokens("context", but="needle"),
    "everything hidden": HideAll(),
    "decoy hidden": HideTokens("decoy"),
}
"""What attention may see, by the name it has in figures."""

PHASES: tuple[Phase, ...] = (
    Phase.PREFILL,
    Phase.LAST,
    Phase.DECODE,
    Phase.PREFILL | Phase.LAST,
    Phase.LAST | Phase.DECODE,
    Phase.PREFILL | Phase.DECODE,
    Phase.ALL,
)
"""The three phases and their unions."""


@dataclass(frozen=True)
class View:
    """Which cell of a visibility map a plan is.

    Attributes:
        mode: a key of ``MODES``.
        during: when it acts.
        semantics: ours (causal, renormalised, every occurrence), or those of the code of arXiv 2510.19861.
        occurrence: which occurrence of the needle, or ``"all"``.
    """

    mode: str
    during: Phase
    semantics: Semantics = "default"
    occurrence: Occurrence = "all"

    @property
    def plan(self) -> Plan:
        """The plan of this cell.

        >>> str(View("needle hidden", Phase.LAST).plan)
        'HideTokens(span=needle, during=LAST)'
        """
        rule = dataclasses.replace(MODES[self.mode], during=self.during)
        if self.semantics == "paper":
            rule = paper(rule)
        elif self.occurrence != "all":
            rule = dataclasses.replace(rule, occurrence=self.occurrence)
        return Plan(rule)


@functools.cache
def view_of(plan: Plan) -> View | None:
    """The cell of a plan, or ``None`` if it is not one of a visibility map.

    >>> view_of(Plan(HideTokens("needle", during=Phase.DECODE, occurrence=1)))
    View(mode='needle hidden', during=<Phase.DECODE: 4>, semantics='default', occurrence=1)
    """
    match plan.rules:
        case (HideTokens() | OnlyTokens() | BalanceTokens() | HideAll() as rule,):
            for mode, plain in MODES.items():
                if type(rule) is not type(plain):
                    continue
                named: Occurrence = "all" if isinstance(rule, HideAll) else rule.occurrence
                for view in (View(mode, rule.during, "default", named), View(mode, rule.during, "paper")):
                    if view.plan == plan:
                        return view
    return None
