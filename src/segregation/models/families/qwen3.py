"""Qwen3: attention in every layer, with normed queries and keys; a control beside hybrids.

What is particular: a config may ask for sliding windows in its upper layers, which is refused: windows here are those
of all attention layers.
"""

from segregation.models.family import Family

FAMILY = Family(
    name="qwen3",
    model_type="qwen3",
    attention="self_attn",
    max_positions="max_position_embeddings",
    understood=frozenset({"max_window_layers", "sliding_window"}),
    required={"use_sliding_window": (False,)},
)
