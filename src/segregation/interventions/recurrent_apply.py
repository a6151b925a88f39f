"""Rules about recurrent layers written into a trace: beside ``apply``, which calls it, the only writer."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from segregation.interventions.patching import Patched
from segregation.interventions.phase import acting
from segregation.interventions.recurrent_rules import AblateRecurrent, ResetState
from segregation.interventions.recurrent_tables import RuleRows, at_positions, entry_of
from segregation.models.channels import RECURRENT_CHANNELS, read_channel
from segregation.models.hybrid import HybridModel
from segregation.models.mixers import MixerCall
from segregation.shapes import PositionMask, Positions, PromptLengths

OutputEdit = Callable[[Tensor], Tensor]


@dataclass
class MixerEdit:
    """What rules do to one mixer in one forward pass.

    Attributes:
        patched: what was written into its memory before.
        skip: where it neither writes nor emits.
        reset: before which tokens its state is set to zero.
        outputs: what is done to its output, in order.
    """

    patched: Sequence[Patched] = ()
    skip: PositionMask | None = None
    reset: PositionMask | None = None
    outputs: list[OutputEdit] = field(default_factory=list)


def mixer_edits(
    rules: Sequence[RuleRows],
    named: Sequence[Tensor | None],
    plan_of: Int[Tensor, " batch"],
    first: Int[Tensor, " batch"],
    positions: Positions,
    phases: Int[Tensor, "batch pos"],
    lengths: PromptLengths,
    present: Sequence[int],
    patched: Mapping[int, Sequence[Patched]],
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
        patched: per layer, what was written into its memory before.
    """
    edits = {layer: MixerEdit(patched=own) for layer, own in patched.items() if own[0].channel in RECURRENT_CHANNELS}
    for one, table in zip(rules, named, strict=True):
        rule = one.rule
        if not isinstance(rule, AblateRecurrent | ResetState) or not acting(present, one.phases.tolist()):
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


def edit_mixer(model: HybridModel, layer: int, edit: MixerEdit, cache: object, tokens: int) -> None:
    """Carry an edit out on the call of a mixer that is under way, which reads so many tokens with this cache.

    Raises:
        ModelError: the mixer does not read the memory that was patched.
    """
    call = MixerCall.of(model.mixer(layer), model.family, layer)
    if edit.skip is not None:
        call.close_input(edit.skip)

    def watch(state: Tensor | None) -> None:
        for one in edit.patched:
            if one.channel == "recurrent":
                one.check(layer, state)

    if edit.skip is not None or edit.reset is not None or edit.patched:
        call.edit_scan(edit.skip, edit.reset, watch)
    if edit.outputs or edit.patched:
        call.edit_output(lambda output: _all(edit.outputs, output))
    for one in edit.patched:
        if one.channel == "conv" and tokens == 1:  # the buffer has moved on by one token
            conv = read_channel(model, cache, layer, "conv")
            before = dataclasses.replace(one, tensor=one.tensor[..., 1:])
            before.check(layer, None if conv is None else conv[..., :-1])


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
