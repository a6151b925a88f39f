"""Keys and values that grow in place: room for tokens to come is taken once, instead of copying all at each step."""

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from segregation.models.gradients import needs_grad

Room = tuple[Tensor, Tensor]
"""Buffers of which a layer's keys and values are the beginning."""


class GrowingLayer(DynamicLayer):
    """A cache layer whose new keys and values are written behind the old ones, while there is room."""

    room: Room | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values (``batch kv_head pos d_head``); all of them."""
        grown = _appended(self, key_states, value_states)
        if grown is None:
            self.room = None
            return super().update(key_states, value_states, *args, **kwargs)
        self.keys, self.values = grown
        return grown


class GrowingWindowLayer(DynamicSlidingWindowLayer):
    """The same where no more keys are kept than a window has; one that is full grows as transformers' own does."""

    room: Room | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values (``batch kv_head pos d_head``); all of them."""
        held = 0 if self.keys is None else self.keys.shape[-2]
        fits = held + key_states.shape[-2] < self.sliding_window and not self.record_past
        grown = _appended(self, key_states, value_states) if fits else None
        if grown is None:
            self.room = None
            return super().update(key_states, value_states, *args, **kwargs)
        self.cumulative_length += key_states.shape[-2]
        self.keys, self.values = grown
        return grown


_GROWING: dict[type, type] = {DynamicLayer: GrowingLayer, DynamicSlidingWindowLayer: GrowingWindowLayer}
_GROWING |= {own: own for own in _GROWING.values()}


def make_room(cache: Any, tokens: int) -> None:
    """Take room for so many more tokens in the layers of a cache that are plainly keys and values.

    Only for a cache that nobody else holds, since what is appended to one of two that share a buffer is seen by both.
    Memory is that of the keys at the end; without room it is twice that during each step. A layer that keeps a window
    takes room until that is full, and gives it back then.
    """
    for layer in cache.layers:
        if type(layer) in _GROWING and isinstance(layer.keys, Tensor) and layer.keys.numel():
            length, window = layer.keys.shape[-2], getattr(layer, "sliding_window", None)
            fitting = tokens if window is None else min(tokens, window - 1 - length)
            if fitting < 1:
                continue
            layer.__class__ = _GROWING[type(layer)]
            layer.room = _with_room(layer.keys, fitting), _with_room(layer.values, fitting)
            layer.keys, layer.values = (buffer[..., :length, :] for buffer in layer.room)


def _with_room(tensor: Tensor, tokens: int) -> Tensor:
    *rows, length, width = tensor.shape
    buffer = tensor.new_empty(*rows, length + tokens, width)
    buffer[..., :length, :] = tensor
    return buffer


def _appended(layer: Any, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor] | None:
    """All keys and values with these behind them; ``None`` where the layer's are not in its room, or it is full."""
    if layer.room is None or needs_grad(keys, values):
        return None
    old, new = layer.keys.shape[-2], layer.keys.shape[-2] + keys.shape[-2]
    grown = []
    for held, buffer, added in zip((layer.keys, layer.values), layer.room, (keys, values), strict=True):
        inside = held.data_ptr() == buffer.data_ptr() and held.shape[:2] == buffer.shape[:2] == added.shape[:2]
        if not inside or new > buffer.shape[-2] or added.dtype != buffer.dtype:
            return None
        buffer[..., old:new, :] = added
        grown.append(buffer[..., :new, :])
    return grown[0], grown[1]
