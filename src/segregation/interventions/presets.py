"""What the code of arXiv 2510.19861 does, where it differs from our definitions: its phases and its token rules."""

import dataclasses
from collections.abc import Mapping
from typing import TypeVar

from segregation.errors import PlanError
from segregation.interventions.phase import Phase
from segregation.interventions.token_rules import BalanceTokens, HideAll, HideTokens, OnlyTokens

PAPER_PHASES: Mapping[str, Mapping[str, Phase]] = {
    "recurrentgemma": {"prefill": Phase.PREFILL, "generation": Phase.GENERATION},
    "jamba": {"prefill": Phase.PREFILL | Phase.LAST, "generation": Phase.DECODE},
}
"""What the paper's code of each model calls prefill and generation: they differ in ``LAST``."""


def paper_phases(family: str) -> Mapping[str, Phase]:
    """What the paper's code of a family calls ``"prefill"`` and ``"generation"``.

    Raises:
        PlanError: a family that the paper has no code for.

    >>> str(paper_phases("jamba")["prefill"])
    'PREFILL|LAST'
    """
    if family not in PAPER_PHASES:
        raise PlanError(
            f"the paper's code knows {', '.join(PAPER_PHASES)}, not {family!r}, so it has no phases to take over; name "
            "the phases yourself: those of the other two differ in LAST only"
        )
    return PAPER_PHASES[family]


AnyTokenRule = TypeVar("AnyTokenRule", bound=HideTokens | OnlyTokens | BalanceTokens | HideAll)


def paper(rule: AnyTokenRule) -> AnyTokenRule:
    """The rule as the paper's code carries it out.

    Nothing is renormalised, every row of the prefill is edited (those before the span too), only the first occurrence
    counts, and "balanced" shares out the sum over all rows of ``PREFILL``. A row whose span has left the window is left
    alone; ours does the same, and the record says so. Two things are not theirs: where their code counts ``LAST`` as
    prefill, its row adds to the sum and gets it, while ours keeps its own, so that it does not matter in how many
    pieces a prompt is read; and keys behind the window get no weight.

    >>> str(paper(HideTokens("needle")))
    'HideTokens(span=needle, occurrence=0, during=PREFILL|LAST|DECODE, renormalize=False, causal=False)'
    """
    if isinstance(rule, HideAll):
        return rule
    changed = dataclasses.replace(rule, renormalize=False, causal=False, occurrence=0)
    return dataclasses.replace(changed, summed_over="prefill") if isinstance(changed, BalanceTokens) else changed
