"""One run's memory put in the place of another's, before a forward pass begins, and seen to have been read in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from segregation.errors import PlanError
from segregation.interventions.patch_source import check_patch, patch_before
from segregation.interventions.recurrent_rules import PatchState
from segregation.interventions.recurrent_tables import RuleRows
from segregation.interventions.sources import read_source
from segregation.models.channels import ATTENTION_CHANNELS, Channel, read_channel, write_channel
from segregation.models.hybrid import HybridModel
from segregation.models.states import check_taken
from segregation.models.stored import tensor_name
from segregation.prompts.spans import TokenSpans
from segregation.shapes import Positions, PromptLengths


@dataclass(frozen=True, eq=False)
class Patched:
    """What was written into one channel of one layer.

    Attributes:
        channel: which channel.
        rows: the rows of the batch that were patched.
        tensor: what was written, of all rows; a copy, as layers update their states in place.
    """

    channel: Channel
    rows: Int[Tensor, " row"]
    tensor: Tensor

    def check(self, layer: int, read: Tensor | None, forgotten: Bool[Tensor, " batch"] | None = None) -> None:
        """See that the layer reads what was written in the rows that were patched, but those that forget it at once.

        Raises:
            ModelError: it reads something else.
        """
        rows = self.rows if forgotten is None else self.rows[~forgotten[self.rows]]
        rows = rows.to(self.tensor.device)
        what = f"the patch of {self.channel} of layer {layer}"
        check_taken(what, self.tensor[rows], None if read is None else read[rows.to(read.device)])


def patch_memory(
    model: HybridModel,
    rules: Sequence[RuleRows],
    spans: Sequence[TokenSpans | None],
    plan_of: Int[Tensor, " batch"],
    first: Int[Tensor, " batch"],
    positions: Positions,
    lengths: PromptLengths,
    cache: object,
) -> Mapping[int, list[Patched]]:
    """Patch the memory of every row whose patched position this forward begins with; what was written, per layer.

    Args:
        model: what runs.
        rules: the rules, with the plans that have them.
        spans: of each row that the run began with, for its sample id.
        plan_of: the plan of each row of the batch.
        first: which row of those that the run began with each row is.
        positions: of the tokens of this forward.
        lengths: prompt tokens of each row.
        cache: the cache that this forward is given.

    Raises:
        PlanError: the position stands inside the forward, or the memory does not fit.
        SampleError: a row that is no sample, or one that the source has no memory of.
    """
    patched: dict[int, list[Patched]] = {}
    for one in rules:
        rule = one.rule
        if not isinstance(rule, PatchState):
            continue
        before = torch.tensor([patch_before(rule, length) for length in lengths.tolist()], device=positions.device)
        here = one.plans[plan_of] & (positions == before[:, None]).any(-1)
        if not here.any():
            continue
        starts = torch.where(positions < 0, positions.max() + 1, positions).amin(-1)
        if (here & (starts != before)).any():
            raise PlanError(
                f"{rule} acts between two forwards, before position {before[here].tolist()}, but this one goes over it "
                f"from {starts[here].tolist()}; read what comes before it first, and then go on with past_key_values, "
                "as sg.generate and sg.loglikelihood do"
            )
        rows = here.nonzero().flatten()
        ids = [check_patch(rule, spans[int(first[row])], int(lengths[row])) for row in rows]
        for layer in one.layers:
            tensor = _patched(model, rule, layer, rows.tolist(), ids, cache)
            patched.setdefault(layer, []).append(Patched(rule.channel, rows, tensor))
    return patched


def _patched(
    model: HybridModel, rule: PatchState, layer: int, rows: Sequence[int], ids: Sequence[str], cache: object
) -> Tensor:
    own = read_channel(model, cache, layer, rule.channel)
    if own is None:
        raise PlanError(f"{rule}: layer {layer} remembers nothing in this run; give it a cache, and leave use_cache on")
    tensor, source = own.clone(), read_source(rule).tensors
    for row, name in zip(rows, ids, strict=True):
        stored = source.get(tensor_name(layer, rule.channel, name))
        part = tensor[row]
        if rule.channel in ATTENTION_CHANNELS and stored is not None:
            part = part[:, -min(stored.shape[1], part.shape[1]) :]
        if stored is None or stored.shape != part.shape:
            shape = "nothing" if stored is None else f"a tensor of the shape {tuple(stored.shape)}"
            raise PlanError(
                f"{rule}: {rule.channel} of layer {layer} of sample {name!r} have the shape {tuple(part.shape)}, and "
                f"{rule.source!r} holds {shape}; store the memory with this model"
            )
        part.copy_(stored)
    write_channel(model, cache, layer, rule.channel, tensor)
    return tensor.clone()
