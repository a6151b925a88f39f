"""Which rules cannot stand in one plan, because they say opposite things about the same positions and heads."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from segregation.errors import PlanError
from segregation.interventions.head_rules import AblateHeads, KeepHeads, KeepTopHeads
from segregation.interventions.phase import Phase
from segregation.interventions.recurrent_rules import AblateRecurrent, PatchState, ResetState
from segregation.interventions.token_rules import BalanceTokens, HideAll, HideTokens, OnlyTokens

_TOKENS = (HideTokens, OnlyTokens, BalanceTokens, HideAll)


def check_rules(rules: Sequence[Any]) -> None:
    """Refuse rules of which one undoes or denies the other where both act.

    Raises:
        PlanError: naming both rules, why they contradict each other, and what to do.
    """
    for one, other in combinations(rules, 2):
        both = one.during & other.during
        if both and (why := _contradiction(one, other)):
            raise PlanError(
                f"{one} and {other} contradict each other in {both}: {why}. "
                "Leave one of them out, or give them different phases"
            )


def _contradiction(one: Any, other: Any) -> str:
    return _token_contradiction(one, other) or _head_contradiction(one, other) or _recurrent_contradiction(one, other)


def _token_contradiction(one: Any, other: Any) -> str:
    if not (isinstance(one, _TOKENS) and isinstance(other, _TOKENS) and same_place(one, other)):
        return ""
    if isinstance(one, HideAll) or isinstance(other, HideAll):
        return "where everything is hidden, nothing is left for another rule about tokens"
    if (one.renormalize, one.causal) != (other.renormalize, other.causal):
        return "renormalize and causal must be the same in rules that act on the same rows"
    kinds = {type(one), type(other)}
    if BalanceTokens in kinds and (len(kinds) == 1 or "prefill" in (_sum(one), _sum(other))):
        return "a row is shared out in one way"
    if kinds == {OnlyTokens} or kinds == {OnlyTokens, BalanceTokens}:
        if (one.span, one.but, one.occurrence) != (other.span, other.but, other.occurrence):
            return 'one rule says what attention may see; join spans in it, as in OnlyTokens("needle+question")'
    elif HideTokens in kinds and len(kinds) == 2:
        hide, keep = (one, other) if isinstance(one, HideTokens) else (other, one)
        hidden = set(hide.span.split("+"))
        taken = set(keep.span.split("+")) <= hidden or "everything" in hidden
        if taken and not hide.but and hide.occurrence in ("all", keep.occurrence):
            return f"one hides {keep.span!r}, the other leaves nothing else"
    elif kinds == {HideTokens} and {one.span, other.span} & {one.but, other.but}:
        return "one hides what the other says must stay visible"
    return ""


def _head_contradiction(one: Any, other: Any) -> str:
    for ablated, kept in ((one, other), (other, one)):
        if not isinstance(ablated, AblateHeads):
            continue
        if ablated.heads == "all" and (
            (isinstance(kept, KeepHeads) and kept.heads) or (isinstance(kept, KeepTopHeads) and kept.k)
        ):
            return "where every head is ablated, none can be kept"
        if isinstance(kept, KeepHeads) and (both := set(ablated.heads) & set(kept.heads)):
            return f"one keeps and one ablates the heads {sorted(both)}"
    if isinstance(one, KeepHeads) and isinstance(other, KeepHeads) and one.heads != other.heads:
        return "one rule says which heads stay; name all of them in it"
    return ""


def _recurrent_contradiction(one: Any, other: Any) -> str:
    if type(one) is not type(other) or not isinstance(one, AblateRecurrent | ResetState | PatchState):
        return ""
    if not _share_layers(one, other):
        return ""
    if isinstance(one, ResetState):
        return "a state is reset in one rhythm" if one.every != other.every else ""
    if isinstance(one, PatchState):
        together = (Phase.LAST in one.during) == (Phase.LAST in other.during)
        if together and one.channel == other.channel and one.sha256 != other.sha256:
            return f"both say what the {one.channel} are before the same token"
        return ""
    same = (one.span, one.but, one.occurrence) == (other.span, other.but, other.occurrence)
    all_of_it = any(rule.span == "everything" and not rule.but for rule in (one, other))
    return "a mixer has one output at a token" if differ(one, other) and (same or all_of_it) else ""


def differ(one: AblateRecurrent, other: AblateRecurrent) -> bool:
    """Whether two rules give a mixer that they share different outputs.

    >>> differ(AblateRecurrent("zero"), AblateRecurrent("skip", layers=(0,)))
    True
    """
    values = [(rule.value, rule.sha256, rule.seed) for rule in (one, other)]
    return values[0] != values[1] and _share_layers(one, other)


def _share_layers(one: Any, other: Any) -> bool:
    return "all" in (one.layers, other.layers) or bool(set(one.layers) & set(other.layers))


def same_place(one: Any, other: Any) -> bool:
    """Whether two rules about tokens share a head of a layer.

    >>> same_place(HideTokens("needle", layers=(2,)), OnlyTokens("needle", heads=((2, 1),)))
    True
    """
    if one.heads == "all" or other.heads == "all":
        layers = [
            None if rule.heads == "all" and rule.layers == "all"
            else set(rule.layers) if rule.heads == "all" else {layer for layer, _ in rule.heads}
            for rule in (one, other)
        ]  # fmt: skip
        return layers[0] is None or layers[1] is None or bool(layers[0] & layers[1])
    return bool(set(one.heads) & set(other.heads))


def _sum(rule: Any) -> str:
    return rule.summed_over if isinstance(rule, BalanceTokens) else "row"
