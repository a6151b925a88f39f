"""What the code of arXiv 2510.19861 does, where it differs from our definitions: its phases and its token rules."""

import dataclasses
from collections.abc import Mapping
from typing import TypeVar

from segregation.interventions.phase import Phase
from segregation.interventions.token_rules import BalanceTokens, HideAll, HideTokens, OnlyTokens

PAPER_PHASES: Mapping[str, Mapping[str, Phase]] = {
    "recurrentgemma": {"prefill": Phase.PREFILL, "generation": Phase.GENERATION},
    "jamba": {"prefill": Phase.PREFILL | Phase.LAST, "generation": Phase.DECODE},
}
"""What the paper's code of each model calls prefill and generation: they differ in ``LAST``."""

AnyTokenRule = TypeVar("AnyTokenRule", bound=HideTokens | OnlyTokens | BalanceTokens | HideAll)


def paper(rule: AnyTokenRule) -> AnyTokenRule:
    """The rule as the paper's code carries it out.

    Nothing is renormalised, every row of the prefill is edited (those before the span too), only the first occurrence
    counts, and "balanced" shares out the sum over all rows of a phase. A row whose span has left the window is left
    alone; ours does the same, and the record says so.

    >>> str(paper(HideTokens("needle")))
    'HideTokens(span=needle, occurrence=0, during=PREFILL|LAST|DECODE, renormalize=False, causal=False)'
    """
    if isinstance(rule, HideAll):
        return rule
    changed = dataclasses.replace(rule, renormalize=False, causal=False, occurrence=0)
    return dataclasses.replace(changed, summed_over="phase") if isinstance(changed, BalanceTokens) else changed
