"""What a capture asks for: which tensors, of which heads, at which positions of a row, and in how many bytes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, get_args

import torch

from segregation.errors import PlanError
from segregation.interventions.binding import check_place, check_readable
from segregation.interventions.head_rules import Head, check_heads, check_layers, check_phase
from segregation.interventions.phase import Phase
from segregation.interventions.rules import Plan
from segregation.models.hybrid import HybridModel
from segregation.prompts.sample import Sample

What = Literal["pattern", "z", "kept", "entropy"]
Steps = Literal["all", "first", "last"]
Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""Data type and shape of tensors, by name."""


@dataclass(frozen=True)
class CaptureRequest:
    """What to record of attention, and where.

    Attributes:
        what: one or more of ``"pattern"`` (attention probabilities), ``"z"`` (output of each head before the output
            projection), ``"kept"`` (whether a head acts), ``"entropy"`` (of the pattern's rows, in nats); all of them
            as the plan of the run left them.
        layers: absolute indices of attention layers, or ``"all"``.
        heads: (layer, head) pairs, or ``"all"`` query heads of ``layers``.
        during: the positions (that attend) to record.
        steps: ``"all"`` of them, or only the ``"first"`` or ``"last"`` position of each phase.

    Raises:
        PlanError: nothing or something unknown to record, no phase, or both layers and heads.

    >>> CaptureRequest(("entropy", "pattern"), heads=((5, 1), (2, 3))).what
    ('pattern', 'entropy')
    """

    what: tuple[What, ...] = ("pattern",)
    layers: tuple[int, ...] | Literal["all"] = "all"
    heads: tuple[Head, ...] | Literal["all"] = "all"
    during: Phase = Phase.GENERATION
    steps: Steps = "all"

    def __post_init__(self) -> None:
        if not isinstance(self.what, tuple) or not self.what or set(self.what) - set(get_args(What)):
            raise PlanError(f'CaptureRequest.what must name one or more of {get_args(What)}, got {self.what!r}; '
                            'for one, write ("pattern",)')  # fmt: skip
        object.__setattr__(self, "what", tuple(name for name in get_args(What) if name in self.what))
        if self.steps not in get_args(Steps):
            raise PlanError(f"CaptureRequest.steps must be one of {get_args(Steps)}, got {self.steps!r}")
        check_phase(self.during)
        object.__setattr__(self, "layers", check_layers("CaptureRequest", self.layers))
        if self.heads != "all":
            if self.layers != "all":
                raise PlanError(
                    "CaptureRequest.heads are (layer, head) pairs, so they name their layers themselves; "
                    f'got layers {self.layers} as well: leave layers at "all"'
                )
            object.__setattr__(self, "heads", check_heads(self.heads))
            if not self.heads:
                raise PlanError('CaptureRequest.heads is empty; name (layer, head) pairs, or pass "all"')


def heads_asked(model: HybridModel, request: CaptureRequest) -> dict[int, tuple[int, ...]]:
    """The heads to record of each layer, in order.

    Raises:
        PlanError: layers or heads that the model does not have, or attention whose pattern cannot be read.
    """
    if {"pattern", "entropy"} & set(request.what):
        check_readable(model, "CaptureRequest of patterns or entropies")
    check_place(model, "CaptureRequest", request.layers, request.heads)
    if request.heads != "all":
        layers = sorted({layer for layer, _ in request.heads})
        return {layer: tuple(head for at, head in request.heads if at == layer) for layer in layers}
    layers = model.attention_layers if request.layers == "all" else request.layers
    return {layer: tuple(range(model.n_heads)) for layer in layers}


def slots_asked(request: CaptureRequest, prompt_tokens: int, read: int) -> dict[int, int]:
    """Where, along the ``dest`` axis, each position goes that may be recorded; ``read`` is how many the model reads.

    Which new position is the last is known only at the end, so with ``steps="last"`` they share a place, each in turn.

    >>> slots_asked(CaptureRequest(during=Phase.ALL, steps="last"), prompt_tokens=4, read=7)
    {2: 0, 3: 1, 4: 2, 5: 2, 6: 2}
    """
    slots: dict[int, int] = {}
    phases = {
        Phase.PREFILL: range(prompt_tokens - 1),
        Phase.LAST: range(prompt_tokens - 1, prompt_tokens),
        Phase.DECODE: range(prompt_tokens, read),
    }
    for phase, positions in phases.items():
        if phase not in request.during:
            continue
        start = max(slots.values(), default=-1) + 1
        if request.steps == "last" and phase is Phase.DECODE:
            slots |= dict.fromkeys(positions, start)
        else:
            ends = {"all": slice(None), "first": slice(1), "last": slice(-1, None)}
            slots |= {position: start + i for i, position in enumerate(positions[ends[request.steps]])}
    return slots


def sources_asked(request: CaptureRequest, prompt_tokens: int, positions: Sequence[int]) -> int:
    """Length of the ``src`` axis: up to the last position recorded, and all of the prefill where one of its is.

    A rule that is not causal lets positions of the prefill attend to later ones in it.
    """
    prefill = prompt_tokens - 1 if Phase.PREFILL in request.during else 0
    return max([prefill, *(position + 1 for position in positions)]) if positions else 0


def layout(
    model: HybridModel, request: CaptureRequest, heads: Mapping[int, Sequence[int]], dests: int, sources: int
) -> Layout:
    """The tensors of a row of which ``dests`` positions are recorded, over ``sources`` positions that they may see."""
    tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "positions": (torch.int64, (dests,)),
        "phases": (torch.int64, (dests,)),
        "tokens": (torch.int64, (sources,)),
    }
    for layer, own in heads.items():
        shapes = {
            "pattern": (torch.float32, (len(own), dests, sources)),
            "z": (model.hf_model.dtype, (dests, len(own), model.d_head)),
            "kept": (torch.bool, (dests, len(own))),
            "entropy": (torch.float32, (len(own), dests)),
        }
        tensors |= {f"{what}.layer{layer}": shapes[what] for what in request.what}
    return tensors


def estimate_bytes(
    model: HybridModel,
    samples: Sequence[Sample],
    plans: Plan | Sequence[Plan] = Plan(),  # noqa: B008 (a frozen value)
    request: CaptureRequest = CaptureRequest(),
    *,
    max_new_tokens: int = 40,
) -> int:
    """The bytes of all tensors that a capture records: exact where no row ends early, else more than it takes.

    Raises:
        PlanError: layers or heads that the model does not have, or attention whose pattern cannot be read.
    """
    return sum(_bytes(model, samples, plans, request, max_new_tokens).values())


def check_bytes(
    model: HybridModel,
    samples: Sequence[Sample],
    plans: Plan | Sequence[Plan],
    request: CaptureRequest,
    max_new_tokens: int,
    max_bytes: int,
) -> None:
    """Refuse a capture that might take more than ``max_bytes``.

    Raises:
        PlanError: the bytes wanted, the limit, what costs most, and what would make it smaller.
    """
    wanted = _bytes(model, samples, plans, request, max_new_tokens)
    total = sum(wanted.values())
    if total <= max_bytes:
        return
    name, most = wanted.most_common(1)[0]
    remedies = {
        "pattern": 'steps="last" or "first", fewer layers or heads, a phase without PREFILL (whose patterns grow with '
        'the square of the prompt), or what=("entropy",)',
    }
    smaller = remedies.get(name, 'steps="last" or "first", fewer layers or heads, or a phase without PREFILL')
    raise PlanError(
        f"this capture would take {total:,} bytes, and max_bytes is {max_bytes:,}; the tensors {name!r} take {most:,} "
        f"of them. Ask for fewer samples or plans, {smaller}; or raise max_bytes"
    )


def _bytes(
    model: HybridModel,
    samples: Sequence[Sample],
    plans: Plan | Sequence[Plan],
    request: CaptureRequest,
    max_new_tokens: int,
) -> Counter[str]:
    heads = heads_asked(model, request)
    n_plans = 1 if isinstance(plans, Plan) else len(set(plans))
    wanted: Counter[str] = Counter()
    for sample in samples:
        prompt = len(model.encode(sample))
        slots = slots_asked(request, prompt, prompt + max_new_tokens - 1)
        sources = sources_asked(request, prompt, list(slots))
        for name, (dtype, shape) in layout(model, request, heads, len(set(slots.values())), sources).items():
            wanted[name.partition(".")[0]] += n_plans * prod(shape) * dtype.itemsize
    return wanted
