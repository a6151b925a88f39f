"""What recurrent layers remember after chosen tokens of a prompt, and after each new one, as plain tensors."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from nnsight.intervention.interleaver import OutOfOrderError
from nnsight.intervention.tracer import InterleavingTracer
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import pad

from segregation.errors import ModelError, PlanError, SampleError
from segregation.interventions.head_rules import check_layers
from segregation.interventions.rules import Plan
from segregation.models.channels import RECURRENT_CHANNELS, read_channel
from segregation.models.hybrid import HybridModel
from segregation.models.positions import forward_arguments, token_positions
from segregation.models.recurrence import states_after
from segregation.models.scan_inputs import ScanCall, as_held, check_recurrence, taps
from segregation.models.states import RecurrentState
from segregation.prompts.sample import Sample
from segregation.runs.fitting import WATCHED_ROWS
from segregation.runs.generate import checked_rows, generate_rows, listed
from segregation.runs.launch import Row
from segregation.runs.record import Record

MAX_BYTES = 2**30
"""Bytes that the states of one batch may take when nobody says otherwise."""
At = Sequence[int] | Literal["all", "last"]
"""Positions of a prompt: by number (negative ones from its end), all, or the last."""


@dataclass(frozen=True, eq=False)
class States:
    """What the recurrent layers of one row remember after some of its tokens; copies.

    Attributes:
        record: what the row generated, under which plan.
        positions: after which positions, in order: those of the prompt that were asked for, then every new token that
            was read (the last new one never is).
        recurrent: per layer that has one, the state of the recurrence as the model holds it: RG-LRU ``at width``,
            Mamba-1 ``at width d_state``, Mamba-2 ``at head d_head d_state``, delta rules ``at head d_key d_value``.
        conv: per layer that has one, the buffer of the short convolution: its last inputs, zeros before the first.
    """

    record: Record
    positions: tuple[int, ...]
    recurrent: Mapping[int, Float[Tensor, "at ..."]]
    conv: Mapping[int, Float[Tensor, "at width taps"]]


def states(
    model: HybridModel,
    samples: Iterable[Sample],
    plans: Plan | Sequence[Plan] = Plan(),  # noqa: B008 (a frozen value)
    *,
    at: At = "last",
    layers: Sequence[int] | Literal["all"] = "all",
    max_new_tokens: int = 1,
    batch_size: int | None = None,
    max_bytes: int = MAX_BYTES,
) -> Iterator[States]:
    """The recurrent and convolution states of every sample under every plan, while it is continued as in ``generate``.

    States after earlier prompt tokens come from the one forward over the prompt: its scan's inputs, walked again. They
    equal those that a forward over that much of the prompt alone leaves, and those of reading token by token.

    Args:
        model: the model; plans it already carries act as well.
        samples: whose prompts are read.
        plans: one plan or several.
        at: the prompt positions after which states are taken.
        layers: absolute indices of recurrent layers, or ``"all"``.
        max_new_tokens: tokens after the prompt, at most; 1 reads the prompt alone.
        batch_size: rows (a sample under a plan) decoded together; their states are held together too.
        max_bytes: the most that the states of one batch may take, as ``state_bytes`` counts them.

    Raises:
        ModelError: no recurrent layer, another layer, too many bytes, or states after earlier prompt tokens of a family
            whose scan cannot be walked again (``sg.fork`` and ``read_on`` give those).
        PlanError: a plan that is impossible on this model, or positions that are none.
        SampleError: a prompt that does not fit with its new tokens, or lacks a position asked for.
    """
    samples, plans = listed(samples, plans)
    chosen = checked_recurrent_layers(model, layers)
    rows = checked_rows(model, samples, plans, max_new_tokens)
    batch = min(len(rows), batch_size or WATCHED_ROWS)
    own = [sample for sample in samples for _ in plans]
    wanted = {row.index: _positions(at, len(row.prompt), own[row.index]) for row in rows}
    early = any(min(wanted[row.index]) < len(row.prompt) - 1 for row in rows)
    if early:
        check_recurrence(model)
    _check_bytes(model, chosen, max(map(len, wanted.values()), default=0) + max_new_tokens - 1, batch, max_bytes)
    reader = _Reader(chosen, wanted)
    runs = generate_rows(model, own, rows, max_new_tokens, batch_size, reader.watch, reader.watch if early else None)
    return (reader.take(row, record) for row, record in runs)


def state_bytes(model: HybridModel, layers: Sequence[int], positions: int) -> int:
    """Bytes of the states of one row, in fp32, after so many positions; convolution buffers are counted as well.

    Their sizes are those of a memory of one token, which is made for it.
    """
    cache = model.new_cache()
    with torch.no_grad():
        model.reset()
        model.hf_model(torch.zeros(1, 1, dtype=torch.long, device=model.device), past_key_values=cache, use_cache=True)
    held = model.remember(cache, torch.ones(1, dtype=torch.long)).held
    found = [read_channel(model, cache, layer, channel, held) for layer in layers for channel in RECURRENT_CHANNELS]
    model.reset()
    return 4 * positions * sum(0 if one is None else one.numel() for one in found)


def save_states(states: Iterable[States], path: str | Path) -> None:
    """Write states to a safetensors file, under ``LAYER/recurrent|conv|positions/KEY`` with the key of each record.

    Raises:
        PlanError: two of the same record.
    """
    tensors: dict[str, Tensor] = {}
    for one in states:
        if f"positions/{one.record.key}" in tensors:
            raise PlanError(f"states of the record {one.record.key!r} are there twice; give each sample and plan once")
        tensors[f"positions/{one.record.key}"] = torch.tensor(one.positions)
        for name, by_layer in (("recurrent", one.recurrent), ("conv", one.conv)):
            tensors |= {f"{layer}/{name}/{one.record.key}": tensor.contiguous() for layer, tensor in by_layer.items()}
    save_file(tensors, str(path))


def _check_bytes(model: HybridModel, layers: Sequence[int], positions: int, rows: int, limit: int) -> None:
    wanted = rows * state_bytes(model, layers, positions)
    if wanted > limit:
        raise ModelError(
            f"states after {positions} positions of {rows} rows held together would take {wanted:,} bytes, and "
            f"max_bytes is {limit:,}; ask for fewer positions or layers, lower batch_size, or raise max_bytes"
        )


@dataclass(frozen=True, eq=False)
class _Held:
    """What was read of one row so far, by position."""

    wanted: frozenset[int]
    prompt: int
    found: dict[int, dict[int, RecurrentState]] = field(default_factory=dict)

    def wants(self, position: int) -> bool:
        return position in self.wanted or position >= self.prompt


class _Reader:
    """Reads the rows of a run; ``watch`` is what a launch takes, ``take`` gives a row's states once it is done."""

    def __init__(self, layers: Sequence[int], wanted: Mapping[int, Sequence[int]]) -> None:
        self._layers, self._wanted = layers, wanted
        self._held: dict[int, _Held] = {}

    def watch(self, rows: Sequence[Row]) -> "_Reading":
        for row in rows:
            self._held.setdefault(row.index, _Held(frozenset(self._wanted[row.index]), len(row.prompt)))
        return _Reading(self._layers, [self._held[row.index] for row in rows])

    def take(self, row: Row, record: Record) -> States:
        held = self._held.pop(row.index)
        positions = sorted(held.found)
        recurrent, conv = {}, {}
        for layer in self._layers:
            own = [held.found[position][layer] for position in positions]
            for into, parts in ((recurrent, [one.recurrent for one in own]), (conv, [one.conv for one in own])):
                if there := [part for part in parts if part is not None]:
                    into[layer] = torch.cat(there)
        return States(record, tuple(positions), recurrent, conv)


@dataclass(frozen=True, eq=False)
class _Reading:
    """An intervention that changes nothing: it copies states of the rows of a batch."""

    layers: Sequence[int]
    rows: Sequence[_Held]

    def enter(self, model: HybridModel) -> HybridModel:
        editing: Any = model.edit()
        with editing as (tracer, edited):
            _follow(tracer, edited, self)
        return edited


def _follow(tracer: InterleavingTracer, model: HybridModel, reading: _Reading) -> None:
    """Read every forward of the run, anchored on the model's own input; returns when the run is over."""
    forward: Any = model
    for _ in tracer.iter[:]:
        try:
            args, kwargs = forward.inputs
        except OutOfOrderError:
            return  # the run made no further step
        positions = token_positions(forward_arguments(model.hf_model, args, kwargs)).tolist()
        running = range(len(positions)) if model.run.rows is None else model.run.rows.tolist()
        places = [
            (reading.rows[row], batch, column, position)
            for batch, (row, own) in enumerate(zip(running, positions, strict=True))
            for column, position in enumerate(own)
            if position >= 0 and reading.rows[row].wants(position)
        ]
        columns = sorted({column for _, _, column, _ in places})
        for layer in reading.layers if places else ():
            if len(positions[0]) == 1:
                state = model.state(layer)
                found = {0: RecurrentState(_cpu(state.recurrent), _cpu(state.conv))}
            else:
                found = _after(model, layer, columns)
            for held, batch, column, position in places:
                one = found[column]
                own = RecurrentState(_row(one.recurrent, batch), _row(one.conv, batch))
                held.found.setdefault(position, {})[layer] = own


def _after(model: HybridModel, layer: int, columns: Sequence[int]) -> dict[int, RecurrentState]:
    """The states after some of the tokens of this forward."""
    scan = ScanCall.of(model, layer)
    buffered = taps(model, layer)
    inputs = pad(scan.conv_inputs().detach().transpose(1, 2), (buffered, 0))
    walked = as_held(model, states_after(scan.recurrence(), columns)).detach().cpu()
    buffers = [inputs[..., column + 1 : column + 1 + buffered].cpu() for column in columns]
    return {column: RecurrentState(state, conv) for column, state, conv in zip(columns, walked, buffers, strict=True)}


def _row(state: Tensor | None, batch: int) -> Tensor | None:
    return None if state is None else state[batch, None].clone()


def _cpu(state: Tensor | None) -> Tensor | None:
    return None if state is None else state.detach().cpu()


def checked_recurrent_layers(model: HybridModel, layers: Sequence[int] | Literal["all"]) -> tuple[int, ...]:
    """Recurrent layers in order.

    Raises:
        ModelError: a model without any, or a layer that is none.
        PlanError: something else than layers.
    """
    if not model.recurrent_layers:
        raise ModelError("this model has no recurrent layers, so it has no recurrent states")
    chosen = check_layers("layers", layers)
    if chosen == "all":
        return model.recurrent_layers
    for layer in chosen:
        model.mixer(layer)
    return chosen


def _positions(at: At, prompt: int, sample: Sample) -> list[int]:
    """The prompt positions asked for, counted from 0.

    >>> _positions((0, -1), 5, Sample("a", "b", "c"))
    [0, 4]
    """
    if at == "all":
        return list(range(prompt))
    asked = [-1] if at == "last" else list(at)
    if not asked or any(not isinstance(one, int) for one in asked):
        raise PlanError(f'at is positions of a prompt, "all" or "last"; got {at!r:.80}')
    found = sorted({one + prompt if one < 0 else one for one in asked})
    if found[0] < 0 or found[-1] >= prompt:
        raise SampleError(
            f"sample {sample.id!r} has a prompt of {prompt} tokens, so its positions are 0..{prompt - 1} (or -1..-"
            f"{prompt} from its end); got {asked!r:.80}"
        )
    return found
