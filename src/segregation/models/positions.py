"""Which absolute position every token of a forward pass has, padding not counted."""

import functools
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from segregation.shapes import PositionMask, Positions, PromptLengths


@dataclass
class Run:
    """Bookkeeping of the run in progress; one object is shared by a model and everything intervened from it.

    Attributes:
        prompt_lengths: tokens of the prompt of each row; ``None`` takes all that the first forward sees.
        rows: which rows of a plan per row are still in the batch; ``None`` is all of them, in order.
    """

    prompt_lengths: PromptLengths | None = None
    rows: Tensor | None = None


def forward_arguments(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a causal language model's forward, by name."""
    return {**dict(zip(_names(type(module)), args, strict=False)), **kwargs} if args else dict(kwargs)


@functools.cache
def _names(module: type[nn.Module]) -> tuple[str, ...]:
    return tuple(name for name in inspect.signature(module.forward).parameters if name != "self")


def padding_mask(arguments: Mapping[str, Any]) -> PositionMask | None:
    """True at the tokens of this forward that are not padding; ``None`` if there is no padding among them."""
    mask, length = arguments.get("attention_mask"), _shape(arguments)[1]
    if length == 1 or not isinstance(mask, Tensor) or mask.dim() != 2:
        return None  # a token fed alone is never padding
    own = mask[:, -length:].bool()
    return None if own.all() else own


def token_positions(arguments: Mapping[str, Any]) -> Positions:
    """Absolute positions of the tokens of this forward; padding is -1.

    The 2-D attention mask decides where there is one, since ``position_ids`` of padding are not told from position 0.
    """
    batch, length = _shape(arguments)
    mask, ids, cache = (arguments.get(name) for name in ("attention_mask", "position_ids", "past_key_values"))
    past = cache.get_seq_length() if cache is not None else 0
    if isinstance(mask, Tensor) and mask.dim() == 2:
        if length == 1 and mask.shape[1] > past:  # a token fed alone is never padding
            return mask.sum(-1, keepdim=True) - 1
        seen = mask.long()
        missing = past + length - mask.shape[1]
        return ((seen.cumsum(-1) + max(missing, 0)) * seen - 1)[:, -length:]
    if ids is not None:
        return ids.expand(batch, length)
    return (torch.arange(length, device=_tokens(arguments).device) + past).expand(batch, length)


def _tokens(arguments: Mapping[str, Any]) -> Tensor:
    tokens = arguments.get("input_ids")
    return arguments["inputs_embeds"] if tokens is None else tokens


def _shape(arguments: Mapping[str, Any]) -> tuple[int, int]:
    batch, length = _tokens(arguments).shape[:2]
    return batch, length
