"""Llama: attention in every layer; a control beside hybrids.

What is particular: nothing; its config names no layer types.
"""

from segregation.models.family import Family

FAMILY = Family(
    name="llama",
    model_type="llama",
    attention="self_attn",
    only="attention",
    max_positions="max_position_embeddings",
    understood=frozenset({"pretraining_tp"}),
)
