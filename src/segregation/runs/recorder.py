"""The one reader of a run: it copies out of every forward pass what a capture asks for, after the plans have acted.

Like a plan, it is a block stored on a copy of the model by NNsight's ``edit()`` and replayed step by step; entered
after the plans, it sees what they left. Tensors are copied to memory of their own, so nothing refers to the run later.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from nnsight.intervention.interleaver import OutOfOrderError
from nnsight.intervention.tracer import InterleavingTracer
from torch import Tensor

from segregation.interventions.heads import entropy
from segregation.models.attention import QUERY_CHUNK, AttentionCall
from segregation.models.hybrid import HybridModel
from segregation.models.positions import PatternEdit, forward_arguments, token_positions
from segregation.runs.capture_request import (
    CaptureRequest,
    heads_asked,
    layout,
    slots_asked,
    sources_asked,
)
from segregation.runs.launch import Row
from segregation.shapes import Positions


@dataclass(frozen=True, eq=False)
class Held:
    """What was recorded of one row so far.

    Attributes:
        slots: which place each position has that may be recorded.
        tensors: the buffers, as long as the row can get.
        positions: which position lies at each place that is filled.
    """

    slots: Mapping[int, int]
    tensors: Mapping[str, Tensor]
    positions: dict[int, int] = field(default_factory=dict)


class Recorder:
    """Records the rows of a run; ``watch`` is what a launch takes, ``take`` gives a row's tensors once it is done.

    Raises:
        PlanError: layers or heads that the model does not have, or attention whose pattern cannot be read.
    """

    def __init__(self, model: HybridModel, request: CaptureRequest, max_new_tokens: int) -> None:
        self.heads = heads_asked(model, request)
        self._model, self._request, self._new = model, request, max_new_tokens
        self._held: dict[int, Held] = {}

    def watch(self, rows: Sequence[Row]) -> "Reading":
        """What reads these rows, as they lie in a batch."""
        for row in rows:
            if row.index not in self._held:
                self._held[row.index] = self._begin(len(row.prompt))
        return Reading(self._request.what, self.heads, [self._held[row.index] for row in rows])

    def take(self, row: Row, tokens: Sequence[int]) -> dict[str, Tensor]:
        """What was recorded of a row that gave these tokens; it is then forgotten here."""
        held, prompt = self._held.pop(row.index), len(row.prompt)
        positions = [held.positions[slot] for slot in sorted(held.positions)]
        sources = sources_asked(self._request, prompt, positions)
        shapes = layout(self._model, self._request, self.heads, len(positions), sources)
        at = torch.tensor(positions, dtype=torch.int64)
        named = {
            "positions": at,
            "phases": (at >= prompt - 1).long() + (at >= prompt).long(),
            "tokens": torch.tensor([*row.prompt, *tokens][:sources], dtype=torch.int64),
        }
        recorded = {
            name: buffer[tuple(map(slice, shapes[name][1]))].contiguous() for name, buffer in held.tensors.items()
        }
        return named | recorded

    def _begin(self, prompt: int) -> Held:
        slots = slots_asked(self._request, prompt, prompt + self._new - 1)
        sources = sources_asked(self._request, prompt, list(slots))
        shapes = layout(self._model, self._request, self.heads, len(set(slots.values())), sources)
        buffers = {name: torch.zeros(shape, dtype=dtype) for name, (dtype, shape) in shapes.items() if "." in name}
        return Held(slots, buffers)


@dataclass(frozen=True, eq=False)
class Reading:
    """An intervention that changes nothing: it copies what is asked for into the buffers of its rows.

    Attributes:
        what: the names of what is copied.
        heads: the heads of each layer.
        rows: the buffers of each row of the batch that the run begins with.
    """

    what: Sequence[str]
    heads: Mapping[int, Sequence[int]]
    rows: Sequence[Held]

    def enter(self, model: HybridModel) -> HybridModel:
        """A copy of the model that is read in every run, after all that acts on it already."""
        editing: Any = model.edit()
        with editing as (tracer, edited):
            _follow(tracer, edited, self)
        return edited


@dataclass(frozen=True, eq=False)
class _Place:
    """Where the positions to record of one row lie in one forward pass.

    Attributes:
        batch: its row of the batch.
        held: where they go.
        columns: where they are among the tokens of this forward.
        slots: where each goes along the ``dest`` axis.
        end: the position after the last token of this forward.
    """

    batch: int
    held: Held
    columns: list[int]
    slots: list[int]
    end: int


def _follow(tracer: InterleavingTracer, model: HybridModel, reading: Reading) -> None:
    """Read every forward of the run, anchored on the model's own input; returns when the run is over."""
    forward: Any = model
    for _ in tracer.iter[:]:
        try:
            args, kwargs = forward.inputs
        except OutOfOrderError:
            return  # the run made no further step
        places = _places(model, reading, token_positions(forward_arguments(model.hf_model, args, kwargs)))
        for layer in reading.heads if places else ():
            if {"pattern", "entropy"} & set(reading.what):
                call = model.attention_call(layer)
                _copy_patterns(call, model.run.edits_of(layer), layer, reading, places)
            if not {"z", "kept"} & set(reading.what):
                continue
            z = model.z(layer)
            if "z" in reading.what:
                _copy(z, f"z.layer{layer}", reading.heads[layer], places)
            if "kept" in reading.what:
                acts = z.ne(0).any(-1) & model.attention(layer).output[0].ne(0).any(-1, keepdim=True).to(z.device)
                _copy(acts, f"kept.layer{layer}", reading.heads[layer], places)


def _places(model: HybridModel, reading: Reading, positions: Positions) -> list[_Place]:
    running = range(len(positions)) if model.run.rows is None else model.run.rows.tolist()
    places = []
    for batch, (row, own) in enumerate(zip(running, positions.tolist(), strict=True)):
        held = reading.rows[row]
        columns = [column for column, position in enumerate(own) if position in held.slots]
        slots = [held.slots[own[column]] for column in columns]
        held.positions.update((slot, own[column]) for slot, column in zip(slots, columns, strict=True))
        if columns:
            places.append(_Place(batch, held, columns, slots, own[-1] + 1))
    return places


def _copy(values: Tensor, name: str, heads: Sequence[int], places: Sequence[_Place]) -> None:
    """Copy the heads' values (``batch pos head ...``) of every place."""
    first, last = min(p.columns[0] for p in places), max(p.columns[-1] for p in places)
    here = values[:, first : last + 1, list(heads)].detach().cpu()
    for place in places:
        place.held.tensors[name][place.slots] = here[place.batch, [column - first for column in place.columns]]


def _copy_patterns(
    call: AttentionCall, edits: Sequence[PatternEdit], layer: int, reading: Reading, places: Sequence[_Place]
) -> None:
    """Copy patterns, their entropies or both, a chunk of queries at a time, so that no full pattern is held."""
    heads, keys = list(reading.heads[layer]), call.key.shape[2]
    first, last = min(p.columns[0] for p in places), max(p.columns[-1] for p in places)
    for start in range(first, last + 1, QUERY_CHUNK):
        stop = min(start + QUERY_CHUNK, last + 1)
        chosen = [[i for i, column in enumerate(place.columns) if start <= column < stop] for place in places]
        if not any(chosen):
            continue
        band = call.edited_band(edits, start, stop)[:, heads]
        entropies = entropy(band).detach().cpu() if "entropy" in reading.what else None
        patterns = band.detach().cpu() if "pattern" in reading.what else None
        for place, at in zip(places, chosen, strict=True):
            columns, slots = [place.columns[i] - start for i in at], [place.slots[i] for i in at]
            if entropies is not None:
                place.held.tensors[f"entropy.layer{layer}"][:, slots] = entropies[place.batch][:, columns]
            if patterns is not None:
                first_key = place.end - keys + call.first_key(start)  # keys are aligned at their right end
                whole = place.held.tensors[f"pattern.layer{layer}"]
                whole[:, slots] = 0  # the last new position takes the place of the one before
                _put(whole, slots, patterns[place.batch][:, columns], first_key)


def _put(whole: Tensor, slots: Sequence[int], rows: Tensor, first_key: int) -> None:
    """Write rows (``head dest src``), whose first key has the position ``first_key``; negative ones are padding."""
    rows = rows[..., max(0, -first_key) :]
    start = max(0, first_key)
    stop = min(whole.shape[-1], start + rows.shape[-1])
    whole[:, list(slots), start:stop] = rows[..., : stop - start]
