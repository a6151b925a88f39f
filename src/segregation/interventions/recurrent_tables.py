"""Rules about recurrent layers compiled against a model, and bound to the rows of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from segregation.errors import PlanError
from segregation.interventions.phase import PHASES
from segregation.interventions.recurrent_rules import AblateRecurrent, PatchState, RecurrentRule, ResetState
from segregation.interventions.resolve import members
from segregation.interventions.rules import Plan
from segregation.interventions.sources import read_source
from segregation.models.channels import RECURRENT_CHANNELS, layers_with
from segregation.models.hybrid import HybridModel
from segregation.prompts.spans import TokenSpans
from segregation.shapes import PositionMask, Positions, PromptLengths

_MIX = (-7046029254386353131, -4658895280553007687, -7723592293110705685)
"""The odd constants of splitmix64 as signed numbers. (Steele et al. 2014)"""


@dataclass(frozen=True)
class RuleRows:
    """One rule, and which plans have it.

    Attributes:
        rule: the rule.
        plans: true for those with it.
        layers: the layers it acts on, of those the model has.
        references: per layer, what its outputs are drawn from; one row is their mean.
    """

    rule: RecurrentRule
    plans: Bool[Tensor, " plan"]
    layers: tuple[int, ...]
    references: Mapping[int, Float[Tensor, "entry d_model"]]

    @cached_property
    def phases(self) -> Bool[Tensor, " phase"]:
        """Whether it acts in each phase; padding is the last."""
        acts = torch.zeros(PHASES + 1, dtype=torch.bool, device=self.plans.device)
        acts[list(self.rule.during.numbers)] = True
        return acts

    @cached_property
    def acting(self) -> tuple[bool, ...]:
        """``phases``, as plain values."""
        return tuple(self.phases.tolist())

    def acts(self, plan_of: Int[Tensor, " batch"], phases: Int[Tensor, "batch pos"]) -> PositionMask:
        """The tokens of this forward that it may act on, whatever spans it names."""
        return self.plans[plan_of][:, None] & self.phases[phases]


def compile_recurrent(model: HybridModel, plans: Sequence[Plan]) -> tuple[RuleRows, ...]:
    """The rules of plans about recurrent layers and about memory, each once.

    Raises:
        PlanError: a source that has changed, or does not fit the model.
    """
    rules = dict.fromkeys(
        rule for plan in plans for rule in plan.rules if isinstance(rule, AblateRecurrent | ResetState | PatchState)
    )
    return tuple(
        RuleRows(
            rule,
            torch.tensor([rule in plan.rules for plan in plans], device=model.device),
            layers := _layers(model, rule),
            _references(model, rule, layers) if isinstance(rule, AblateRecurrent) and rule.source else {},
        )
        for rule in rules
    )


def named_tokens(
    rules: Sequence[RuleRows], plan_of: Tensor, spans: Sequence[TokenSpans | None], lengths: PromptLengths
) -> list[Bool[Tensor, "row position"] | None]:
    """Per rule and row of a run, which prompt positions it names, the last column for new ones; ``None`` is all."""
    return [_named(one, plan_of, spans, lengths) for one in rules]


def at_positions(
    named: Bool[Tensor, "row position"], first: Int[Tensor, " batch"], positions: Positions, lengths: PromptLengths
) -> PositionMask:
    """Which tokens of a forward a lookup names.

    >>> named = torch.tensor([[False, True, False, True]])  # position 1 of a prompt of 3, and the new tokens
    >>> at_positions(named, torch.tensor([0]), torch.tensor([[-1, 0, 1, 2, 3]]), torch.tensor([3])).tolist()
    [[False, False, True, False, True]]
    """
    new = named.shape[1] - 1
    column = torch.where(positions < lengths[:, None], positions.clamp(0, new), new)
    return named[first].gather(1, column) & (positions >= 0)


def entry_of(positions: Positions, seed: int, entries: int) -> Int[Tensor, "batch pos"]:
    """Which entry of a reference stands in for each position, by seed and position alone, and the same on any machine.

    >>> entry_of(torch.tensor([[0, 1, 2, 3]]), 0, 10).tolist() == entry_of(torch.tensor([[0, 1, 2, 3]]), 0, 10).tolist()
    True
    """
    golden, first, second = _MIX
    start = (seed * first + 2**63) % 2**64 - 2**63
    mixed = (positions.long() + 1) * golden + start  # wraps around at 64 bits, as all of this does
    mixed = (mixed ^ _shifted(mixed, 30)) * first
    mixed = (mixed ^ _shifted(mixed, 27)) * second
    return (mixed ^ _shifted(mixed, 31)) % entries


def _shifted(number: Tensor, bits: int) -> Tensor:
    """The number shifted right with zeros coming in, as unsigned numbers are."""
    return (number >> bits) & ((1 << (64 - bits)) - 1)


def _layers(model: HybridModel, rule: RecurrentRule) -> tuple[int, ...]:
    there = layers_with(model, rule.channel if isinstance(rule, PatchState) else RECURRENT_CHANNELS[0])
    return there if rule.layers == "all" else rule.layers


def _references(model: HybridModel, rule: AblateRecurrent, layers: Sequence[int]) -> dict[int, Tensor]:
    tensors, kind = read_source(rule).tensors, "mean" if rule.value == "mean" else "pool"
    found: dict[int, Tensor] = {}
    for layer in layers:
        reference = tensors.get(f"{layer}/{kind}")
        if reference is None or reference.shape[-1] != model.d_model:
            got = "none" if reference is None else f"one of {reference.shape[-1]} numbers"
            raise PlanError(
                f"{rule}: a reference of layer {layer} has d_model = {model.d_model} numbers, and {rule.source!r} has "
                f"{got}; write it with mixer_outputs on this model"
            )
        found[layer] = reference.view(-1, model.d_model).to(model.device)
    return found


def _named(
    one: RuleRows, plan_of: Tensor, spans: Sequence[TokenSpans | None], lengths: PromptLengths
) -> Bool[Tensor, "row position"] | None:
    rule = one.rule
    if not isinstance(rule, AblateRecurrent) or (rule.span == "everything" and not rule.but):
        return None
    known = lengths.tolist()
    table = torch.zeros(len(known), max(known) + 1, dtype=torch.bool)
    for row, acts in enumerate(one.plans[plan_of].tolist()):
        if acts:
            tokens, new = members(rule, spans[row], known[row])
            table[row, sorted(tokens)] = True
            table[row, -1] = new
    return table.to(lengths.device)
