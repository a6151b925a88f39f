"""Bamba: Mamba-2 mixers with grouped-query attention in a few named layers.

What is particular: the cache keeps every state; positions must be given with a filled cache, or rotary embeddings start
from zero; layers return tuples; ``mamba.norm`` takes the scan's output before its gate; ``mamba.conv1d`` is not called
as a module.
"""

from segregation.models.family import UNCLAMPED, Family

FAMILY = Family(
    name="bamba",
    model_type="bamba",
    attention="self_attn",
    mixer="mamba",
    scan="mamba2",
    conv_inputs=("in_proj",),
    max_positions="max_position_embeddings",
    understood=frozenset(
        {
            *("attn_layer_indices", "mamba_n_heads", "mamba_d_head", "mamba_n_groups", "mamba_d_state"),
            *("mamba_d_conv", "mamba_expand", "mamba_chunk_size", "mamba_conv_bias", "mamba_proj_bias"),
            "z_loss_coefficient",
        }
    ),
    required={
        "attn_rotary_emb": (64,),
        "time_step_limit": UNCLAMPED,
    },
)
