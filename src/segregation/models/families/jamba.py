"""Jamba: Mamba-1 mixers, grouped-query attention without positions once in a period, mixtures of experts.

What is particular: the cache keeps every state; several tokens fed to a cache that is not empty start the scan from
zero, so after a fork tokens go in one at a time; ``mamba.conv1d`` and ``mamba.dt_proj`` are never called as modules.
"""

from segregation.models.family import Family

FAMILY = Family(
    name="jamba",
    model_type="jamba",
    attention="self_attn",
    mixer="mamba",
    scan="mamba",
    max_positions="max_position_embeddings",
    understood=frozenset(
        {
            *("vocab_size", "tie_word_embeddings", "hidden_size", "intermediate_size", "num_hidden_layers"),
            *("num_attention_heads", "num_key_value_heads", "hidden_act", "initializer_range", "rms_norm_eps"),
            *("use_cache", "output_router_logits", "router_aux_loss_coef", "pad_token_id", "bos_token_id"),
            *("eos_token_id", "max_position_embeddings", "attention_dropout", "num_experts_per_tok", "num_experts"),
            *("expert_layer_period", "expert_layer_offset", "attn_layer_period", "attn_layer_offset"),
            *("use_mamba_kernels", "mamba_d_state", "mamba_d_conv", "mamba_expand", "mamba_dt_rank"),
            *("mamba_conv_bias", "mamba_proj_bias", "use_mambapy", "use_associative_scan", "layers_block_type"),
            *("layer_types", "layers_num_experts", "num_logits_to_keep", "calc_logits_for_entire_prompt", "head_dim"),
        }
    ),
    required={"sliding_window": (None,)},
)
