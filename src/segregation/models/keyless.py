"""Caches of models that have no attention layer, whose length transformers does not know.

transformers reads the number of tokens seen off the keys of an attention layer, to build positions and masks, and
raises where there is none. Here such a cache counts its tokens itself.
"""

from typing import Any

from torch import nn
from transformers import DynamicCache


class CountingCache(DynamicCache):
    """A cache without keys, which knows how many tokens it has seen, padding included."""

    seen = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen, whichever layer is asked."""
        return self.seen

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """How many keys there would be, and where they start."""
        return self.seen + query_length, 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Where the next tokens stand."""
        return self.seen


def count_tokens(module: nn.Module) -> None:
    """Let a model without attention layers make such a cache where it is given none, and count its tokens."""

    def before(model: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        cache = kwargs.get("past_key_values")
        if cache is None and kwargs.get("use_cache", model.config.use_cache) and not model.training:
            kwargs["past_key_values"] = CountingCache(config=model.config)
        if isinstance(masks := kwargs.get("attention_mask"), dict):  # generate makes one per layer type that there is
            kwargs["attention_mask"] = {"sliding_attention": None, "full_attention": None, **masks}
        return args, kwargs

    def after(_model: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if isinstance(cache := kwargs.get("past_key_values"), CountingCache):
            tokens = kwargs.get("input_ids", args[0] if args else None)
            cache.seen += (kwargs["inputs_embeds"] if tokens is None else tokens).shape[1]

    module.register_forward_pre_hook(before, with_kwargs=True)
    module.register_forward_hook(after, with_kwargs=True)
