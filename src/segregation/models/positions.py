"""Which absolute position every token of a forward pass has, padding not counted."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from segregation.prompts.spans import TokenSpans
from segregation.shapes import LogPattern, PositionMask, Positions, PromptLengths, Visible

PatternEdit = Callable[[LogPattern, Visible, int, int], LogPattern]
"""What an intervention does to the pattern of one layer in one forward pass.

From ``ln`` of the pattern of some queries, which keys they may see, the first query and the first key of it, to ``ln``
of the edited pattern.
"""


OutputEdit = Callable[[Tensor], Tensor]
"""What an intervention does to what a mixer adds to the residual."""


@dataclass
class MixerEdit:
    """What an intervention does to one recurrent mixer in one forward pass.

    Attributes:
        skip: where it neither writes nor emits.
        reset: before which tokens its state is set to zero.
        outputs: what is done to its output, in order.
    """

    skip: PositionMask | None = None
    reset: PositionMask | None = None
    outputs: list[OutputEdit] = field(default_factory=list)


@dataclass
class Run:
    """Bookkeeping of the run in progress; one object is shared by a model and everything intervened from it.

    Attributes:
        prompt_lengths: tokens of the prompt of each row; ``None`` takes all that the first forward sees.
        rows: which rows of a plan per row are still in the batch; ``None`` is all of them, in order.
        spans: the named spans of each row that the run began with; ``None`` for a row that is no sample.
        coming: the spans of the rows that the next run begins with.
        edits: by whoever made them, the edits of attention patterns per layer in the forward pass under way.
        mixers: by whoever made them, what is done to recurrent mixers per layer in the forward pass under way.
    """

    prompt_lengths: PromptLengths | None = None
    rows: Tensor | None = None
    spans: Sequence[TokenSpans | None] = ()
    coming: Sequence[TokenSpans | None] = ()
    edits: dict[object, Mapping[int, PatternEdit]] = field(default_factory=dict)
    mixers: dict[object, Mapping[int, "MixerEdit"]] = field(default_factory=dict)

    def start(self, prompt_lengths: PromptLengths, spans: Sequence[TokenSpans | None] = ()) -> None:
        """Forget the run before: new prompts, all of their rows, no edit in force."""
        self.prompt_lengths, self.rows, self.spans, self.coming = prompt_lengths, None, spans, ()
        self.edits.clear()
        self.mixers.clear()

    def keep(self, rows: Tensor, running: Tensor) -> None:
        """Go on with some ``rows`` of the batch, which are the ``running`` ones of those that the run began with."""
        assert self.prompt_lengths is not None
        self.prompt_lengths, self.rows = self.prompt_lengths[rows], running

    def edits_of(self, layer: int) -> list[PatternEdit]:
        """The edits of a layer's pattern that are in force in this forward pass, in order."""
        return [edits[layer] for edits in self.edits.values() if layer in edits]

    def mixer_edits_of(self, layer: int) -> list[MixerEdit]:
        """What is done to a layer's mixer in this forward pass, in order."""
        return [edits[layer] for edits in self.mixers.values() if layer in edits]


def forward_arguments(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a causal language model's forward, by name."""
    return {**dict(zip(_names(type(module)), args, strict=False)), **kwargs} if args else dict(kwargs)


def cache_of(arguments: Mapping[str, Any]) -> Any:
    """The cache among the arguments of a forward, of a model or of a mixer, or ``None``.

    >>> cache_of({"cache_params": 1}), cache_of({"past_key_values": 2}), cache_of({})
    (1, 2, None)
    """
    cache = arguments.get("past_key_values")
    return arguments.get("cache_params") if cache is None else cache


@functools.cache
def _names(module: type[nn.Module]) -> tuple[str, ...]:
    return tuple(name for name in inspect.signature(module.forward).parameters if name != "self")


def padding_mask(arguments: Mapping[str, Any]) -> PositionMask | None:
    """True at the tokens of this forward that are not padding; ``None`` if there is no padding among them."""
    mask, length = arguments.get("attention_mask"), _shape(arguments)[1]
    mask = mask.get("linear_attention") if isinstance(mask, dict) else mask  # generate may make one per layer type
    if length == 1 or not isinstance(mask, Tensor) or mask.dim() != 2:
        return None  # a token fed alone is never padding
    own = mask[:, -length:].bool()
    return None if own.all() else own


def token_positions(arguments: Mapping[str, Any]) -> Positions:
    """Absolute positions of the tokens of this forward; padding is -1.

    The 2-D attention mask decides where there is one, since ``position_ids`` of padding are not told from position 0.
    """
    batch, length = _shape(arguments)
    mask, ids, cache = arguments.get("attention_mask"), arguments.get("position_ids"), cache_of(arguments)
    past = cache.get_seq_length() if cache is not None else 0
    if isinstance(mask, Tensor) and mask.dim() == 2:
        if length == 1 and mask.shape[1] > past:  # a token fed alone is never padding
            return mask.sum(-1, keepdim=True) - 1
        seen = mask.long()
        missing = past + length - mask.shape[1]
        return ((seen.cumsum(-1) + max(missing, 0)) * seen - 1)[:, -length:]
    if ids is not None:
        return ids.expand(batch, length)
    from segregation.models.caches import positions_without_mask

    return positions_without_mask(cache, batch, length, _tokens(arguments).device)


def _tokens(arguments: Mapping[str, Any]) -> Tensor:
    tokens = arguments.get("input_ids")
    return arguments["inputs_embeds"] if tokens is None else tokens


def _shape(arguments: Mapping[str, Any]) -> tuple[int, int]:
    batch, length = _tokens(arguments).shape[:2]
    return batch, length
