"""Rules about recurrent layers written into a trace: beside ``apply``, which calls it, the only writer."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from segregation.interventions.patching import Patched
from segregation.interventions.phase import acting
from segregation.interventions.recurrent_rules import AblateRecurrent, ResetState
from segregation.interventions.recurrent_tables import RuleRows, at_positions, entry_of
from segregation.models.channels import read_channel
from segregation.models.hybrid import HybridModel
from segregation.models.mixers import MixerCall
from segregation.models.positions import MixerEdit, OutputEdit
from segregation.shapes import PositionMask, Positions, PromptLengths


def mixer_edits(
    rules: Sequence[RuleRows],
    named: Sequence[Tensor | None],
    plan_of: Int[Tensor, " batch"],
    first: Int[Tensor, " batch"],
    positions: Positions,
    phases: Int[Tensor, "batch pos"],
    lengths: PromptLengths,
    present: Sequence[int],
) -> Mapping[int, MixerEdit]:
    """The edit of every mixer that some rule acts on in this forward.

    Args:
        rules: the rules, with the plans that have them.
        named: per rule, what ``named_tokens`` gave.
        plan_of: the plan of each row of the batch.
        first: which row of those that the run began with each row is.
        positions: of the tokens of this forward.
        phases: the number of the phase of each.
        lengths: prompt tokens of each row.
        present: how many positions there are of each phase.
    """
    edits: dict[int, MixerEdit] = {}
    for one, table in zip(rules, named, strict=True):
        rule = one.rule
        if not isinstance(rule, AblateRecurrent | ResetState) or not acting(present, one.acting):
            continue
        acts = one.acts(plan_of, phases)
        if isinstance(rule, ResetState):
            acts = acts & (positions > 0) & (positions % rule.every == 0)
        elif table is not None:
            acts = acts & at_positions(table, first, positions, lengths)
        if not acts.any():
            continue
        for layer in one.layers:
            _add(edits.setdefault(layer, MixerEdit()), one, layer, acts, positions)
    return edits


def edit_mixer(
    model: HybridModel, layer: int, edit: MixerEdit, patched: Sequence[Patched], cache: object, tokens: int
) -> None:
    """Carry an edit out on the call of a mixer that is under way, which reads so many tokens with this cache.

    The scan is edited by what all plans that act on it say together, so that it does not matter which comes first.

    Raises:
        ModelError: the mixer does not read the memory that was patched.
    """
    call = MixerCall.of(model.mixer(layer), model.family, layer)
    if edit.skip is not None:
        call.close_input(edit.skip)
    together = model.run.mixer_edits_of(layer)
    skip, reset = _either([one.skip for one in together]), _either([one.reset for one in together])

    def watch(state: Tensor | None) -> None:
        for one in patched:
            if one.channel == "recurrent":
                one.check(layer, state, None if reset is None else reset[:, 0])

    if edit.skip is not None or edit.reset is not None or patched:
        call.edit_scan(skip, reset, watch)
    if edit.outputs or patched:
        call.edit_output(lambda output: _all(edit.outputs, output))
    for one in patched:
        if one.channel == "conv" and tokens == 1:  # the buffer has moved on by one token
            conv = read_channel(model, cache, layer, "conv")
            before = dataclasses.replace(one, tensor=one.tensor[..., 1:])
            before.check(layer, None if conv is None else conv[..., :-1])


def _either(masks: Sequence[PositionMask | None]) -> PositionMask | None:
    there = [mask for mask in masks if mask is not None]
    return functools.reduce(torch.logical_or, there) if there else None


def _add(edit: MixerEdit, one: RuleRows, layer: int, acts: PositionMask, positions: Positions) -> None:
    rule = one.rule
    if isinstance(rule, ResetState):
        edit.reset = acts if edit.reset is None else edit.reset | acts
        return
    assert isinstance(rule, AblateRecurrent)
    if rule.value == "skip":
        edit.skip = acts if edit.skip is None else edit.skip | acts
    if rule.value in ("zero", "skip"):
        edit.outputs.append(lambda output: output.masked_fill(acts.to(output.device)[..., None], 0))
        return
    reference = one.references[layer]
    entry = entry_of(positions, rule.seed, len(reference)) if rule.value == "resample" else torch.zeros_like(positions)

    def replace(output: Tensor) -> Tensor:
        return torch.where(acts.to(output.device)[..., None], reference[entry].to(output), output)

    edit.outputs.append(replace)


def _all(edits: Sequence[OutputEdit], output: Tensor) -> Tensor:
    for edit in edits:
        output = edit(output)
    return output
