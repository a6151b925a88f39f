"""Jamba: Mamba-1 mixers, grouped-query attention without positions once in a period, mixtures of experts.

What is particular: the cache keeps every state; transformers' own scan starts from zero where several tokens are fed
to a filled cache, which ``models.continuing`` mends; ``mamba.conv1d`` and ``mamba.dt_proj`` are never called as
modules.
"""

from segregation.models.family import Family

FAMILY = Family(
    name="jamba",
    model_type="jamba",
    attention="self_attn",
    mixer="mamba",
    scan="mamba",
    conv_inputs=("in_proj",),
    max_positions="max_position_embeddings",
    understood=frozenset(
        {
            *("num_experts", "expert_layer_period", "expert_layer_offset", "attn_layer_period", "attn_layer_offset"),
            *("mamba_d_state", "mamba_d_conv", "mamba_expand", "mamba_dt_rank", "mamba_conv_bias", "mamba_proj_bias"),
            *("use_mambapy", "use_associative_scan", "layers_num_experts", "calc_logits_for_entire_prompt"),
        }
    ),
    required={"sliding_window": (None,), "mamba_inner_layernorms": (True,)},
    same={"n_ctx": "max_position_embeddings"},
)
