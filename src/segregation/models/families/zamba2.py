"""Zamba2: Mamba-2 mixers in every layer, and shared attention blocks with low-rank adapters in some.

What is particular: as in Zamba, attention runs first in its layers, twice as wide, and reaches the residual only
through that layer's Mamba mixer, and the blocks' weights are shared; the step dt is clamped at ``time_step_min``
where several tokens are read and not where one is, so that prefill and decoding are two functions before any
ablation.
"""

from segregation.models.family import Family

FAMILY = Family(
    name="zamba2",
    model_type="zamba2",
    attention="shared_transformer.self_attn",
    mixer="mamba",
    hybrid_mixer="mamba_decoder.mamba",
    first="attention",
    scan="mamba2",
    conv_inputs=("in_proj",),
    max_positions="max_position_embeddings",
    clamps_prefill="time_step_min",
    understood=frozenset(
        {
            *("mamba_d_state", "mamba_d_conv", "mamba_expand", "mamba_ngroups", "time_step_min", "time_step_max"),
            *("time_step_floor", "n_mamba_heads", "use_conv_bias", "chunk_size", "use_mem_eff_path"),
            *("add_bias_linear", "num_mem_blocks", "use_shared_attention_adapter", "adapter_rank", "use_mem_rope"),
            *("use_long_context", "hybrid_layer_ids", "attention_hidden_size", "attention_head_dim", "kv_channels"),
            *("num_query_groups", "mamba_headdim"),
        }
    ),
    required={"gated_linear_unit": (True,), "use_shared_mlp_adapter": (True,), "sliding_window": (None,)},
    same={"ffn_hidden_size": "intermediate_size", "state_size": "mamba_d_state", "lora_rank": "adapter_rank"},
)
