"""Knocking out what the tokens of one span contribute, through the recurrent state, to the outputs at others."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from nnsight.intervention.interleaver import OutOfOrderError
from nnsight.intervention.tracer import InterleavingTracer
from torch import Tensor

from segregation.errors import PlanError
from segregation.interventions.head_rules import check_layers
from segregation.interventions.phase import Phase, phase_numbers
from segregation.interventions.recurrent_tables import at_positions
from segregation.interventions.resolve import members
from segregation.interventions.token_rules import Occurrence, check_span
from segregation.models.hybrid import HybridModel
from segregation.models.positions import forward_arguments, token_positions
from segregation.models.recurrence import Recurrence, outputs
from segregation.models.scan_inputs import ScanCall
from segregation.prompts.spans import TokenSpans
from segregation.shapes import PositionMask, Positions, PromptLengths


@dataclass(frozen=True)
class KnockOut:
    """Subtract sum_{s in span} c_ts from the recurrent output y_t of every destination t; an intervention.

    ``model.intervene(KnockOut("needle"))`` gives a model whose recurrent layers emit, at the destinations, what they
    would emit had the span's tokens never written into this layer's state. The state itself, and so what every other
    token contributes, stays as it is. It is exact in one forward pass and in stepwise decoding, where what is left of
    the span is carried along as a second state, which decays by the same a_t. In one pass over several layers, each
    layer's contributions are those of the run under way, in which the layers below are already knocked out.

    Records hold plans, and this is none: use it in ``model.trace`` and ``model.generate``, with ``Sample``s as inputs
    (or ``spans=``), from the first token of a prompt on.

    Attributes:
        span: the source tokens, by name, as in ``HideTokens``.
        dest: the destinations, likewise, ...
        during: ... of these phases.
        but: spans that are no source.
        occurrence: which occurrence of ``span``, counted from 0, or ``"all"``.
        layers: absolute indices of recurrent layers, or ``"all"`` of them.

    Raises:
        PlanError: a span that is ill formed, or layers that are none.

    >>> KnockOut("needle", layers=(4, 3)).layers
    (3, 4)
    """

    span: str = "needle"
    dest: str = "everything"
    during: Phase = Phase.GENERATION
    but: str | None = None
    occurrence: Occurrence = "all"
    layers: tuple[int, ...] | Literal["all"] = "all"

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", check_layers("KnockOut", self.layers))
        check_span(self.sources)
        check_span(self.destinations)

    @property
    def sources(self) -> "Tokens":
        """The tokens whose contributions go, whatever their phase."""
        return Tokens(self.span, self.but, self.occurrence)

    @property
    def destinations(self) -> "Tokens":
        """The tokens at whose outputs they go, if they are in ``during``."""
        return Tokens(self.dest, during=self.during)

    def enter(self, model: HybridModel) -> HybridModel:
        """A copy of the model that is knocked out in every run, after all that acts on it already.

        Raises:
            PlanError: no recurrent layer to act on.
        """
        layers = model.recurrent_layers if self.layers == "all" else self.layers
        if not layers or set(layers) - set(model.recurrent_layers):
            raise PlanError(
                f"KnockOut acts on recurrent layers, of which this model has {list(model.recurrent_layers)}; "
                f"got layers {self.layers!r}"
            )
        editing: Any = model.edit()
        with editing as (tracer, edited):
            _follow(tracer, edited, self, layers)
        return edited


@dataclass(frozen=True)
class Tokens:
    """Tokens named by their span; what ``members`` resolves."""

    span: str
    but: str | None = None
    occurrence: Occurrence = "all"
    during: Phase = field(default=Phase.ALL)


def _follow(tracer: InterleavingTracer, model: HybridModel, knockout: KnockOut, layers: Sequence[int]) -> None:
    """Edit every forward of the run, anchored on the model's own input; returns when the run is over."""
    forward: Any = model
    carried: dict[int, Tensor] = {}
    tables: tuple[Tensor, Tensor] | None = None
    for _ in tracer.iter[:]:
        try:
            args, kwargs = forward.inputs
        except OutOfOrderError:
            return  # the run made no further step
        positions = token_positions(forward_arguments(model.hf_model, args, kwargs))
        lengths = _prompt_lengths(model, positions)
        if tables is None:
            _check_start(positions)
            spans = model.run.spans or [None] * len(positions)
            tables = _named(knockout.sources, spans, lengths), _named(knockout.destinations, spans, lengths)
        rows = torch.arange(len(positions), device=positions.device)
        sources, dests = (at_positions(table, rows, positions, lengths) for table in tables)
        dests = dests & _in_phase(knockout.during, positions, lengths)
        for layer in layers:
            if sources.any() or layer in carried:
                carried[layer] = _subtract(ScanCall.of(model, layer), carried.get(layer), sources, dests)


def _subtract(scan: ScanCall, before: Tensor | None, sources: PositionMask, dests: PositionMask) -> Tensor:
    """Take the sources' contributions out of what a scan emits; what is left of them in its last state."""
    recurrence = scan.recurrence()
    theirs = dataclasses.replace(recurrence, initial=before)
    amount, last = outputs(theirs, sources.to(recurrence.write.device))
    if dests.any():
        amount = _gated(recurrence, amount)
        emitted = scan.emitted()
        at = dests.to(emitted.device)[..., None, None]
        scan.emit(torch.where(at, (emitted.float() - amount).to(emitted), emitted))
    return last


def _gated(recurrence: Recurrence, amount: Tensor) -> Tensor:
    return amount if recurrence.gate is None else amount * recurrence.gate


def _named(tokens: Tokens, spans: Sequence[TokenSpans | None], lengths: PromptLengths) -> Tensor:
    """Per row, which prompt positions are named, the last column for new ones."""
    known = lengths.tolist()
    table = torch.zeros(len(known), max(known) + 1, dtype=torch.bool)
    for row, length in enumerate(known):
        named, new = members(tokens, spans[row], length)
        table[row, sorted(named)] = True
        table[row, -1] = new
    return table.to(lengths.device)


def _in_phase(during: Phase, positions: Positions, lengths: PromptLengths) -> PositionMask:
    numbers = phase_numbers(positions, lengths)
    return torch.isin(numbers, torch.tensor(list(during.numbers), device=numbers.device))


def _prompt_lengths(model: HybridModel, positions: Positions) -> PromptLengths:
    lengths = model.run.prompt_lengths
    if lengths is None:
        lengths = positions.amax(-1) + 1
    if len(lengths) != len(positions):
        raise PlanError(
            f"KnockOut carries a state for each of {len(lengths)} prompts, but the batch has {len(positions)} rows; "
            "decode one continuation of each prompt (no beams, no num_return_sequences)"
        )
    return lengths.to(positions.device)


def _check_start(positions: Positions) -> None:
    starts = torch.where(positions < 0, positions.max() + 1, positions).amin(-1)
    if starts.any():
        raise PlanError(
            f"KnockOut follows what the source tokens wrote from position 0 on, but this run goes on from positions "
            f"{starts.tolist()} with a filled cache; read the prompt in the same run"
        )
