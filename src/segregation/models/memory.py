"""What a hybrid remembers after some tokens, and how rows of it are repeated, dropped and merged.

The cache holds keys, values and, in most families, the recurrent states; RecurrentGemma holds its recurrent states on
its modules. A ``Memory`` is both. It may be selected and merged by rows, and gone on from with any number of
tokens: what stock code gets wrong there, ``continuing`` mends.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.functional import pad

Held = tuple[tuple[Tensor | None, ...], ...]
"""Per recurrent mixer, the states that live on its modules."""


@dataclass(frozen=True)
class Memory:
    """The cache and the module-held states after ``lengths`` tokens per row, keys aligned at their right end.

    Attributes:
        cache: a transformers ``DynamicCache``, owned by this memory.
        held: module-held states, empty for families that have none.
        lengths: tokens seen by each row, padding not counted.
    """

    cache: Any
    held: Held
    lengths: Int[Tensor, " batch"]

    def select(self, rows: Int[Tensor, " rows"]) -> "Memory":
        """The memory with these rows, repeated or dropped; this one stays as it was."""
        cache = _twin(self.cache)
        cache.reorder_cache(rows)
        held = tuple(
            tuple(None if s is None else s.index_select(0, rows.to(s.device)) for s in states) for states in self.held
        )
        return Memory(cache, held, self.lengths.index_select(0, rows))

    def trimmed(self) -> "Memory":
        """The memory without keys that are padding in every row."""
        cache, length = _twin(self.cache), int(self.lengths.max())
        for layer in cache.layers:
            if isinstance(getattr(layer, "keys", None), Tensor):
                layer.keys, layer.values = layer.keys[..., -length:, :], layer.values[..., -length:, :]
                if hasattr(layer, "cumulative_length"):
                    layer.cumulative_length = min(layer.cumulative_length, length)
        return Memory(cache, self.held, self.lengths)


def merge(memories: Sequence[Memory]) -> Memory:
    """One memory with the rows of all, shorter ones padded at the left of their keys as a left-padded batch is."""
    if len(memories) == 1:
        return memories[0]
    cache = _twin(memories[0].cache)
    for index, layer in enumerate(cache.layers):
        parts = [memory.cache.layers[index] for memory in memories]
        if isinstance(getattr(layer, "keys", None), Tensor):
            width = max(part.keys.shape[-2] for part in parts)
            layer.keys = _cat_left([part.keys for part in parts], width)
            layer.values = _cat_left([part.values for part in parts], width)
            if hasattr(layer, "cumulative_length"):
                layer.cumulative_length = max(part.cumulative_length for part in parts)
        for name in ("conv_states", "recurrent_states"):
            states = getattr(layer, name, None) or {}
            for key, state in states.items():
                if state is not None:
                    states[key] = torch.cat([getattr(part, name)[key] for part in parts])
    for index, state in enumerate(getattr(cache, "linear_cache", ())):
        if isinstance(state, Tensor):
            cache.linear_cache[index] = torch.cat([memory.cache.linear_cache[index] for memory in memories])
    held = tuple(
        tuple(None if same[0] is None else torch.cat(list(same)) for same in zip(*states, strict=True))
        for states in zip(*[memory.held for memory in memories], strict=True)
    )
    return Memory(cache, held, torch.cat([memory.lengths for memory in memories]))


def assemble(*, keys: Memory, values: Memory, recurrent: Memory, conv: Memory) -> Memory:
    """One memory with each channel from another, row by row; all of as many rows, which have read as many tokens."""
    cache = _twin(keys.cache)
    for index, layer in enumerate(cache.layers):
        if isinstance(getattr(layer, "keys", None), Tensor):
            layer.values = values.cache.layers[index].values
        if hasattr(layer, "recurrent_states"):
            layer.recurrent_states = dict(recurrent.cache.layers[index].recurrent_states)
            layer.conv_states = dict(conv.cache.layers[index].conv_states)
    if hasattr(cache, "linear_cache"):
        cache.linear_cache = list(recurrent.cache.linear_cache)
    held = tuple((conv_of[0], own[1]) for conv_of, own in zip(conv.held, recurrent.held, strict=True))
    return Memory(cache, held, keys.lengths)


def held_states(mixers: Sequence[nn.Module], names: Sequence[str]) -> Held:
    """The states that live on the modules of these mixers."""
    return tuple(tuple(attrgetter(name)(mixer) for name in names) for mixer in mixers) if names else ()


def hold_states(mixers: Sequence[nn.Module], names: Sequence[str], held: Held) -> None:
    """Put states back on the modules of these mixers."""
    for mixer, states in zip(mixers, held, strict=True) if names else ():
        for name, state in zip(names, states, strict=True):
            *parents, leaf = name.split(".")
            owner = attrgetter(".".join(parents))(mixer) if parents else mixer
            setattr(owner, leaf, state)


def forget_states(mixers: Sequence[nn.Module], names: Sequence[str]) -> None:
    """Drop the states that live on the modules of these mixers, as before the first run."""
    hold_states(mixers, names, tuple((None,) * len(names) for _ in mixers))


def _cat_left(tensors: Sequence[Tensor], width: int) -> Tensor:
    return torch.cat([pad(tensor, (0, 0, width - tensor.shape[-2], 0)) for tensor in tensors])


def _twin(cache: Any) -> Any:
    """A cache with its own layer objects and dictionaries, sharing tensors that a select or merge replaces."""
    twin = copy.copy(cache)
    for name, value in vars(cache).items():
        if isinstance(value, list):
            setattr(twin, name, list(value))
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in twin.layers:
        for name, value in vars(layer).items():
            if isinstance(value, dict):
                setattr(layer, name, dict(value))
        if hasattr(layer, "room"):  # only one of two caches may append to a buffer
            layer.room = None
    return twin
