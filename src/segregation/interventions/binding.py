"""Which rules a model, or a task, cannot follow."""

from collections.abc import Sequence
from typing import Literal

from segregation.errors import PlanError
from segregation.interventions.head_rules import AblateHeads, AblateMixer, Head, KeepHeads, KeepTopHeads
from segregation.interventions.phase import Phase
from segregation.interventions.recurrent_rules import AblateRecurrent, PatchState, ResetState
from segregation.interventions.rules import Plan, Rule
from segregation.interventions.sources import read_source
from segregation.interventions.token_rules import BalanceTokens, HideAll, HideTokens, OnlyTokens
from segregation.models.channels import RECURRENT_CHANNELS, layers_with
from segregation.models.entropy_attention import NAME
from segregation.models.family import Ability
from segregation.models.hybrid import HybridModel

READABLE = ("sdpa", "eager", NAME)
"""Attention implementations whose inputs say what every query may see."""


def check_rule(model: HybridModel, rule: Rule) -> None:
    """Refuse a rule that this model cannot follow, or whose source is not the file it was made with.

    Raises:
        PlanError: the rule, the value, the model's own numbers and the remedy.
    """
    name, kind = model.description.get("name", model.family.name), type(rule).__name__
    if not isinstance(rule, AblateRecurrent | ResetState | PatchState):
        check_layers_there(model, kind, "all", model.attention_layers)
    if isinstance(rule, KeepTopHeads | HideTokens | OnlyTokens | BalanceTokens | HideAll):
        check_readable(model, kind)
    if isinstance(rule, KeepTopHeads):
        if rule.k > model.n_heads:
            raise PlanError(
                f"k must be in 0..{model.n_heads} (n_heads of {name}), got {rule.k}. Use Plan() to keep every head."
            )
        return
    if isinstance(rule, AblateRecurrent | ResetState | PatchState):
        channel = rule.channel if isinstance(rule, PatchState) else RECURRENT_CHANNELS[0]
        check_layers_there(model, kind, rule.layers, layers_with(model, channel))
        check_able(model, rule)
        if not isinstance(rule, ResetState) and rule.source:
            read_source(rule)
        return
    layers = "all" if isinstance(rule, AblateHeads | KeepHeads) else rule.layers
    check_place(model, kind, layers, "all" if isinstance(rule, AblateMixer) else rule.heads)


def check_able(model: HybridModel, rule: AblateRecurrent | ResetState | PatchState) -> None:
    """Refuse a rule about recurrence that the model's family cannot follow.

    Raises:
        PlanError: the rule, and why.
    """
    match rule:
        case AblateRecurrent(value="skip"):
            asked: Ability = "skip"
        case ResetState():
            asked = "reset"
        case PatchState(channel="recurrent"):
            asked = "state"
        case PatchState(channel="conv"):
            asked = "conv"
        case PatchState(channel="keys" | "values"):
            asked = "keys"
        case _:
            return
    if asked in model.family.cannot:
        name = model.description.get("name", model.family.name)
        raise PlanError(f"{rule} is not possible on {name}: {model.family.cannot[asked]}")


def check_place(
    model: HybridModel, what: str, layers: tuple[int, ...] | Literal["all"], heads: tuple[Head, ...] | Literal["all"]
) -> None:
    """Refuse attention layers and heads that this model does not have.

    Raises:
        PlanError: the layer or head, and those there are; ``what`` asked for it.
    """
    name = model.description.get("name", model.family.name)
    for layer in (*(() if layers == "all" else layers), *(() if heads == "all" else dict(heads))):
        if layer not in model.attention_layers:
            got = "a recurrent layer" if layer < model.n_layers else f"absent (n_layers is {model.n_layers})"
            raise PlanError(
                f"{what}: layer must be an attention layer of {name}, one of {list(model.attention_layers)}; "
                f"got {layer}, which is {got}"
            )
    for layer, head in () if heads == "all" else heads:
        if head >= model.n_heads:
            raise PlanError(
                f"{what}: head must be in 0..{model.n_heads - 1} (n_heads of {name} is "
                f"{model.n_heads}), got head {head} of layer {layer}"
            )


def check_layers_there(
    model: HybridModel, what: str, layers: tuple[int, ...] | Literal["all"], there: Sequence[int]
) -> None:
    """Refuse layers that are not of the kind that ``what`` acts on, and a model that has none of that kind.

    Raises:
        PlanError: the layer, what it is, and those there are.
    """
    name = model.description.get("name", model.family.name)
    for layer in () if layers == "all" else layers:
        if layer not in there:
            got = f"{model.layer_types[layer]}" if layer < model.n_layers else f"absent (n_layers is {model.n_layers})"
            raise PlanError(f"{what}: layer must be one of {list(there)} of {name}; got {layer}, which is {got}")
    if not there:
        raise PlanError(
            f"{what} acts on layers that {name} does not have: all of its layers are {model.layer_types[0]}"
        )


def check_readable(model: HybridModel, what: str) -> None:
    """Refuse a model whose attention does not say what every query may see, which ``what`` needs.

    Raises:
        PlanError: the implementation it runs, and the one to load it with.
    """
    used = model.hf_model.config._attn_implementation
    if used not in READABLE:
        name = model.description.get("name", model.family.name)
        raise PlanError(
            f"{what} needs to know what every query may see, which attention says with {' or '.join(READABLE)}; {name} "
            f'runs {used}. Load it with attn_implementation="sdpa"'
        )


def check_decode_positions(plan: Plan, decode_positions: int, what: str) -> None:
    """Refuse a rule limited to ``DECODE`` where nothing is decoded, since it would silently do nothing.

    Raises:
        PlanError: naming the rule and the remedy.
    """
    for rule in plan.rules:
        if decode_positions == 0 and rule.during == Phase.DECODE:
            raise PlanError(
                f"{rule} acts on DECODE positions only, and {what} has none (its answer is read off position LAST); "
                "use during=Phase.GENERATION, which is LAST|DECODE"
            )
