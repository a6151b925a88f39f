"""Plans compiled against a model: what every layer does in each phase of each row."""

import functools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from segregation.interventions.binding import check_rule
from segregation.interventions.head_rules import AblateHeads, AblateMixer, Head, KeepHeads, KeepTopHeads
from segregation.interventions.phase import PHASES, acting
from segregation.interventions.recurrent_tables import RuleRows, compile_recurrent
from segregation.interventions.rules import Plan, Rule
from segregation.interventions.token_rules import BalanceTokens, HideAll, HideTokens, OnlyTokens, TokenRule
from segregation.interventions.tokens import Kind, Step
from segregation.models.hybrid import HybridModel

_KINDS: Mapping[type, Kind] = {HideTokens: "hide", OnlyTokens: "only", BalanceTokens: "balance", HideAll: "nothing"}


@dataclass(frozen=True)
class LayerTable:
    """Which heads, and whether the mixer, act in each phase (padding being the fourth, always untouched) of each row.

    Attributes:
        heads: which heads may stay.
        mixer: whether the attention module's output stays.
        top: per score, how many of the best heads stay; ``n_heads`` where no rule limits them.
    """

    heads: Bool[Tensor, "phase row head"]
    mixer: Bool[Tensor, "phase row"]
    top: Mapping[str, Int[Tensor, "phase row"]]

    @cached_property
    def named(self) -> tuple[bool, ...]:
        """In which phases a rule names heads to be ablated in some row."""
        return tuple((~self.heads.all(-1).all(-1)).tolist())

    @cached_property
    def limited(self) -> Mapping[str, tuple[bool, ...]]:
        """Per score, in which phases it decides about a head of some row."""
        return {score: tuple((k < self.heads.shape[-1]).any(-1).tolist()) for score, k in self.top.items()}

    def scores_at(self, present: Sequence[int]) -> tuple[str, ...]:
        """The scores that decide about a head in a phase that is present."""
        return tuple(score for score, acts in self.limited.items() if acting(present, acts))

    @cached_property
    def bypassed(self) -> tuple[bool, ...]:
        """In which phases the mixer of some row is ablated."""
        return tuple((~self.mixer.all(-1)).tolist())

    @cached_property
    def edited(self) -> tuple[bool, ...]:
        """In which phases z of some row may be edited."""
        return tuple(any(phase) for phase in zip(self.named, *self.limited.values(), strict=True))


@dataclass(frozen=True)
class TokenGroup:
    """Plans whose rules about tokens edit rows in the same steps, whichever tokens, phases and heads they name.

    Attributes:
        rows: which plans.
        steps: how the rules edit a row, in order.
        rules: the rules of each plan, one for each step.
        acts: per layer, where each step acts.
    """

    rows: Int[Tensor, " row"]
    steps: tuple[Step, ...]
    rules: tuple[tuple[TokenRule, ...], ...]
    acts: Mapping[int, Bool[Tensor, "step phase row head"]]

    @cached_property
    def phases(self) -> Mapping[int, tuple[bool, ...]]:
        """Per layer, in which phases some step acts."""
        return {layer: tuple(acts.any(-1).any(-1).any(0).tolist()) for layer, acts in self.acts.items()}

    @cached_property
    def heads_alike(self) -> Mapping[int, bool]:
        """Per layer, whether all heads are edited alike."""
        return {layer: bool((acts == acts[..., :1]).all()) for layer, acts in self.acts.items()}


@dataclass(frozen=True)
class Compiled:
    """Everything that plans do to one model.

    Attributes:
        heads: the table of every attention layer whose heads or mixer are edited.
        tokens: the groups of plans with rules about tokens.
        recurrent: the rules about recurrent layers and about memory, with the plans that have them.
        plans: how many plans these are.
    """

    heads: Mapping[int, LayerTable]
    tokens: tuple[TokenGroup, ...]
    recurrent: tuple[RuleRows, ...]
    plans: int

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """The layers that something happens to, in order."""
        of_tokens = (layer for group in self.tokens for layer in group.acts)
        return tuple(sorted({*self.heads, *of_tokens, *(layer for one in self.recurrent for layer in one.layers)}))


def compile_plans(model: HybridModel, plans: Sequence[Plan]) -> Compiled:
    """What plans do, one row each.

    Raises:
        PlanError: a rule that is impossible on this model.
    """
    for plan in plans:
        for rule in plan.rules:
            check_rule(model, rule)
    tables = dict(_head_tables(model, plans))
    edited = {layer: table for layer, table in tables.items() if any(table.edited) or any(table.bypassed)}
    return Compiled(edited, tuple(_token_groups(model, plans)), compile_recurrent(model, plans), len(plans))


def _head_tables(model: HybridModel, plans: Sequence[Plan]) -> Iterator[tuple[int, LayerTable]]:
    phases, rows, heads, device = PHASES + 1, len(plans), model.n_heads, model.device
    scores = sorted({rule.score for plan in plans for rule in plan.rules if isinstance(rule, KeepTopHeads)})
    for layer in model.attention_layers:
        table = LayerTable(
            torch.ones(phases, rows, heads, dtype=torch.bool, device=device),
            torch.ones(phases, rows, dtype=torch.bool, device=device),
            {score: torch.full((phases, rows), heads, device=device) for score in scores},
        )
        for row, plan in enumerate(plans):
            for rule in plan.rules:
                _write(table, layer, rule, list(rule.during.numbers), row)
        yield layer, table


def _write(table: LayerTable, layer: int, rule: Rule, during: list[int], row: int) -> None:
    match rule:
        case KeepTopHeads(k=0):
            table.heads[during, row] = False
        case KeepTopHeads(k=k, score=score):
            table.top[score][during, row] = table.top[score][during, row].clamp(max=k)
        case AblateHeads(heads="all"):
            table.heads[during, row] = False
        case AblateHeads() | KeepHeads():
            named = _named(cast(tuple[Head, ...], rule.heads), layer, table.heads)
            table.heads[during, row] &= named if isinstance(rule, KeepHeads) else ~named
        case AblateMixer(layers=layers):
            if layers == "all" or layer in layers:
                table.mixer[during, row] = False


def _token_groups(model: HybridModel, plans: Sequence[Plan]) -> Iterator[TokenGroup]:
    by_steps: dict[tuple[Step, ...], list[int]] = defaultdict(list)
    of_plan = [tuple(rule for rule in plan.rules if isinstance(rule, TokenRule)) for plan in plans]
    for row, rules in enumerate(of_plan):
        if rules:
            by_steps[tuple(map(_step, rules))].append(row)
    for steps, rows in by_steps.items():
        acts = {
            layer: torch.zeros(len(steps), PHASES + 1, len(rows), model.n_heads, dtype=torch.bool, device=model.device)
            for layer in model.attention_layers
        }
        for (layer, table), (own, row) in product(acts.items(), enumerate(rows)):
            for number, rule in enumerate(of_plan[row]):
                if rule.layers == "all" or layer in rule.layers:
                    heads = slice(None) if rule.heads == "all" else _named(rule.heads, layer, table)
                    for phase in rule.during.numbers:
                        table[number, phase, own, heads] = True
        yield TokenGroup(
            torch.tensor(rows, device=model.device),
            steps,
            tuple(of_plan[row] for row in rows),
            {layer: table for layer, table in acts.items() if table.any()},
        )


@functools.cache
def _step(rule: TokenRule) -> Step:
    if isinstance(rule, HideAll):
        return Step("nothing")
    summed_over = rule.summed_over if isinstance(rule, BalanceTokens) else "row"
    return Step(_KINDS[type(rule)], rule.renormalize, rule.causal, summed_over)


def _named(heads: Sequence[Head], layer: int, like: Tensor) -> Bool[Tensor, " head"]:
    named = torch.zeros(like.shape[-1], dtype=torch.bool, device=like.device)
    named[[head for at, head in heads if at == layer]] = True
    return named
