"""Plans written into a trace: the one place that edits activations.

A plan is compiled against a model into tables over phases and rows, and these are stored on a copy of the model by
NNsight's ``edit()``: every later ``trace`` and ``generate`` of the copy replays them step by step, before the user's
own block, so what a user reads is already edited and plans stack. A batch whose rows have different plans is one table
with a row each; that is what lets one prefill be shared by many plans.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from jaxtyping import Bool, Int
from nnsight.intervention.interleaver import OutOfOrderError
from nnsight.intervention.tracer import InterleavingTracer
from torch import Tensor

from segregation.errors import PlanError
from segregation.interventions.heads import SCORES, ablate, keep_top
from segregation.interventions.phase import PHASES, Phase, phase_numbers
from segregation.interventions.rules import AblateHeads, AblateMixer, Head, KeepHeads, KeepTopHeads, Plan, Rule
from segregation.models.attention import QUERY_CHUNK, AttentionCall
from segregation.models.hybrid import HybridModel
from segregation.models.positions import forward_arguments, token_positions
from segregation.shapes import HeadScores, Positions, PromptLengths


@dataclass(frozen=True)
class LayerTable:
    """What one attention layer does in each phase (padding being the fourth, always untouched) of each row.

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

    @cached_property
    def bypassed(self) -> tuple[bool, ...]:
        """In which phases the mixer of some row is ablated."""
        return tuple((~self.mixer.all(-1)).tolist())

    @cached_property
    def edited(self) -> tuple[bool, ...]:
        """In which phases z of some row may be edited."""
        return tuple(any(phase) for phase in zip(self.named, *self.limited.values(), strict=True))


Tables = Mapping[int, LayerTable]
"""The table of every attention layer that something happens to."""


def enter(model: HybridModel, *plans: Plan) -> HybridModel:
    """A copy of the model on which the plan acts; with several plans, the i-th acts on row i of every batch.

    Raises:
        PlanError: a rule that is impossible on this model.
    """
    tables = compile_plans(model, plans)
    if not tables:
        return cast(HybridModel, model._shallow_copy())
    editing: Any = model.edit()
    with editing as (tracer, edited):
        _follow(tracer, edited, tables)
    return edited


def compile_plans(model: HybridModel, plans: Sequence[Plan]) -> Tables:
    """The tables of plans, one row each.

    Raises:
        PlanError: a rule that is impossible on this model.
    """
    phases, rows, heads, device = PHASES + 1, len(plans), model.n_heads, model.device
    scores = sorted({rule.score for plan in plans for rule in plan.rules if isinstance(rule, KeepTopHeads)})
    tables = {
        layer: LayerTable(
            torch.ones(phases, rows, heads, dtype=torch.bool, device=device),
            torch.ones(phases, rows, dtype=torch.bool, device=device),
            {score: torch.full((phases, rows), heads, device=device) for score in scores},
        )
        for layer in model.attention_layers
    }
    for row, plan in enumerate(plans):
        for rule in plan.rules:
            check_rule(model, rule)
            during = list(rule.during.numbers)
            for layer, table in tables.items():
                _write(table, layer, rule, during, row)
    return {layer: table for layer, table in tables.items() if any(table.edited) or any(table.bypassed)}


def check_rule(model: HybridModel, rule: Rule) -> None:
    """Refuse a rule that this model cannot follow.

    Raises:
        PlanError: the rule, the value, the model's own numbers and the remedy.
    """
    name = model.description.get("name", model.family.name)
    if isinstance(rule, KeepTopHeads):
        if rule.k > model.n_heads:
            raise PlanError(
                f"k must be in 0..{model.n_heads} (n_heads of {name}), got {rule.k}. Use Plan() to keep every head."
            )
    elif isinstance(rule, AblateMixer):
        for layer in () if rule.layers == "all" else rule.layers:
            _check_layer(model, name, type(rule).__name__, layer)
    elif rule.heads != "all":
        for layer, head in rule.heads:
            _check_layer(model, name, type(rule).__name__, layer)
            if head >= model.n_heads:
                raise PlanError(
                    f"{type(rule).__name__}: head must be in 0..{model.n_heads - 1} (n_heads of {name} is "
                    f"{model.n_heads}), got head {head} of layer {layer}"
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


def _check_layer(model: HybridModel, name: str, rule: str, layer: int) -> None:
    if layer not in model.attention_layers:
        what = "a recurrent layer" if layer < model.n_layers else f"absent (n_layers is {model.n_layers})"
        raise PlanError(
            f"{rule}: layer must be an attention layer of {name}, one of {list(model.attention_layers)}; "
            f"got {layer}, which is {what}"
        )


def _write(table: LayerTable, layer: int, rule: Rule, during: list[int], row: int) -> None:
    heads = table.heads.shape[-1]
    match rule:
        case KeepTopHeads(k=0):
            table.heads[during, row] = False
        case KeepTopHeads(k=k, score=score):
            table.top[score][during, row] = table.top[score][during, row].clamp(max=k)
        case AblateHeads(heads="all"):
            table.heads[during, row] = False
        case AblateHeads() | KeepHeads():
            named = torch.zeros(heads, dtype=torch.bool, device=table.heads.device)
            named[[head for at, head in cast(tuple[Head, ...], rule.heads) if at == layer]] = True
            table.heads[during, row] &= named if isinstance(rule, KeepHeads) else ~named
        case AblateMixer(layers=layers):
            if layers == "all" or layer in layers:
                table.mixer[during, row] = False


def _follow(tracer: InterleavingTracer, model: HybridModel, tables: Tables) -> None:
    """Edit every forward of the run, anchored on the model's own input; returns when the run is over."""
    forward: Any = model
    for _ in tracer.iter[:]:
        try:
            args, kwargs = forward.inputs
        except OutOfOrderError:
            return  # the run made no further step
        positions = token_positions(forward_arguments(model.hf_model, args, kwargs))
        phases = phase_numbers(positions, _prompt_lengths(model.run.prompt_lengths, positions))
        present = phases.flatten().bincount(minlength=PHASES + 1).tolist()
        rows = _rows(tables, phases, model.run.rows)
        for layer, table in tables.items():
            _edit_layer(model, layer, table, phases, present, rows)


def _prompt_lengths(lengths: Int[Tensor, " prompt"] | None, positions: Positions) -> PromptLengths:
    """The prompt length of every row; several continuations of one prompt (beams, drawn ones) lie side by side."""
    if lengths is None:
        return positions.amax(-1) + 1
    return lengths.repeat_interleave(max(1, len(positions) // len(lengths)))


def _rows(tables: Tables, phases: Int[Tensor, "batch pos"], rows: Tensor | None) -> Int[Tensor, "batch 1"]:
    batch, planned = phases.shape[0], next(iter(tables.values())).mixer.shape[1]
    if planned == 1:
        return torch.zeros(batch, 1, dtype=torch.long, device=phases.device)
    index = torch.arange(planned, device=phases.device) if rows is None else rows
    if len(index) != batch:
        raise PlanError(f"there are plans for {len(index)} rows, but the batch has {batch}; give one plan per row")
    return index[:, None]


def _edit_layer(
    model: HybridModel,
    layer: int,
    table: LayerTable,
    phases: Int[Tensor, "batch pos"],
    present: Sequence[int],
    rows: Int[Tensor, "batch 1"],
) -> None:
    """Do what the table says about the phases that are present, of which ``present`` counts the positions."""

    def here(acts: Sequence[bool]) -> bool:
        return any(count and acting for count, acting in zip(present, acts, strict=True))

    if here(table.edited):
        at = _span(phases, table.edited)
        part = phases[:, at]
        keep = [table.heads[part, rows]] if here(table.named) else []
        if scores := [score for score, acts in table.limited.items() if here(acts)]:
            call = model.attention_call(layer)
            for score in scores:
                best = keep_top(head_scores(call, score, at.start, at.stop), table.top[score][part, rows])
                keep.append(best.transpose(1, 2))
        projection = model.out_proj(layer)
        (z, *rest), kwargs = projection.inputs
        stay = functools.reduce(torch.logical_and, keep).to(z.device)
        edited = ablate(z[:, at].unflatten(-1, (model.n_heads, -1)), stay).flatten(-2)
        projection.inputs = (_put(z, at, edited), *rest), kwargs
    if here(table.bypassed):
        attention = model.attention(layer)
        output, *weights = attention.output
        stays = table.mixer[phases, rows].to(output.device)
        attention.output = (output.masked_fill(~stays[..., None], 0), *weights)


def head_scores(call: AttentionCall, score: str, start: int, stop: int) -> HeadScores:
    """The scores of the queries ``start..stop``, a chunk of queries at a time, so that no full pattern is held.

    Computed in fp32, but ``paper_entropy`` from a pattern rounded to the model's dtype, as its source does.
    """
    chunks = []
    for first in range(start, stop, QUERY_CHUNK):
        pattern = call.band(first, min(first + QUERY_CHUNK, stop))
        if score == "paper_entropy":
            pattern = pattern.to(call.query.dtype)
        chunks.append(SCORES[score](pattern).float())
    return torch.cat(chunks, dim=-1)


def _span(phases: Int[Tensor, "batch pos"], acts: Sequence[bool]) -> slice:
    """The smallest run of columns with every position of an acting phase in it."""
    if phases.shape[1] == 1:
        return slice(0, 1)
    columns = torch.tensor(acts, device=phases.device)[phases].any(0).nonzero().flatten()
    return slice(int(columns[0]), int(columns[-1]) + 1)


def _put(whole: Tensor, at: slice, part: Tensor) -> Tensor:
    if part.shape == whole.shape:
        return part
    whole = whole.clone()
    whole[:, at] = part
    return whole
