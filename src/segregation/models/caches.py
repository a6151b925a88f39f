"""Caches for models whose own do not know how many tokens they have seen.

transformers reads the number of tokens off the keys of the cache's first layer of attention, to build positions and
masks. A model without any attention layer has no keys, and MiniMax's cache looks at its first layer, which may be a
lightning one. Here such caches know.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.models.minimax.modeling_minimax import MiniMaxCache

from segregation.models.positions import forward_arguments, padding_mask


class CountingCache(DynamicCache):
    """A cache without keys, which counts the tokens it has seen, padding included.

    Attributes:
        seen: tokens seen.
        padding: how many of them are padding, in each row; ``None`` where none is.
    """

    seen = 0
    padding: Tensor | None = None

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen, whichever layer is asked."""
        return self.seen

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """How many keys there would be, and where they start."""
        return self.seen + query_length, 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Where the next tokens stand."""
        return self.seen


class LightningCache(MiniMaxCache):
    """MiniMax's cache, which reads its length off the first layer with keys and moves the states of all layers.

    Attributes:
        first: the first attention layer.
    """

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen, whichever layer is asked."""
        return super().get_seq_length(self.first)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """How many keys there are, and where they start."""
        return super().get_mask_sizes(query_length, self.first)

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Where the next tokens stand."""
        return super().get_query_offset(self.first)

    def reorder_cache(self, beam_idx: Any) -> None:
        """Keep these rows of every layer, repeated or dropped."""
        super().reorder_cache(beam_idx)
        self.linear_cache = [
            state.index_select(0, beam_idx.to(state.device)) if isinstance(state, Tensor) else state
            for state in self.linear_cache
        ]


def kept_states(cache: Any, layer: int) -> tuple[Tensor | None, Tensor | None]:
    """What a cache keeps of a recurrent layer: the convolution's buffer and the recurrent state."""
    if isinstance(cache, LightningCache):
        state = cache.linear_cache[layer] if layer < len(cache.linear_cache) else None
        return None, state if isinstance(state, Tensor) else None
    kept = cache.layers[layer]
    conv, recurrent = (getattr(kept, name, None) or {} for name in ("conv_states", "recurrent_states"))
    return conv.get(0), recurrent.get(0)


def keep_state(cache: Any, layer: int, channel: str, state: Tensor) -> None:
    """Let a cache keep this state of a recurrent layer, of the channel ``"recurrent"`` or ``"conv"``."""
    if isinstance(cache, LightningCache):
        cache.linear_cache[layer] = state
        return
    kept = cache.layers[layer]
    (kept.recurrent_states if channel == "recurrent" else kept.conv_states)[0] = state


def use_own_cache(module: nn.Module, make: Any, name: str) -> None:
    """Let a model make such a cache where it is given none, under its argument ``name``, and count its tokens.

    A cache that is given as ``past_key_values`` goes to that argument, whatever it is called.
    """

    def before(model: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if name != "past_key_values" and kwargs.get("past_key_values") is not None:
            kwargs[name] = kwargs.pop("past_key_values")
        cache, mask = kwargs.get(name), kwargs.get("attention_mask")
        if cache is None and kwargs.get("use_cache", model.config.use_cache) and not model.training:
            cache = kwargs[name] = make()
        if isinstance(mask, dict):  # generate makes one per layer type that there is
            kwargs["attention_mask"] = {"sliding_attention": None, "full_attention": None, **mask}
        if isinstance(cache, CountingCache) and isinstance(mask, Tensor) and mask.dim() == 2:
            if not cache.seen and not bool(mask.all()):
                cache.padding = (mask == 0).sum(-1)
            if cache.seen and name == "cache_params":
                # it is of all tokens seen, which these mixers would take for those fed now
                kwargs["attention_mask"] = padding_mask(forward_arguments(model, args, kwargs))
        return args, kwargs

    def after(_model: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if isinstance(cache := kwargs.get(name), CountingCache):
            tokens = kwargs.get("input_ids", args[0] if args else None)
            cache.seen += (kwargs["inputs_embeds"] if tokens is None else tokens).shape[1]

    module.register_forward_pre_hook(before, with_kwargs=True)
    module.register_forward_hook(after, with_kwargs=True)


def positions_without_mask(cache: Any, rows: int, length: int, device: torch.device) -> Tensor:
    """Positions (``batch pos``) of tokens that come without a mask, after those that a cache has seen."""
    past = cache.get_seq_length() if cache is not None else 0
    positions = (torch.arange(length, device=device) + past).expand(rows, length)
    if isinstance(cache, CountingCache) and cache.padding is not None and len(cache.padding) == rows:
        positions = positions - cache.padding[:, None].to(device)
    return positions
