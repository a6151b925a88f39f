"""Nemotron-H: layers with one block each, which is attention, a Mamba-2 mixer, an MLP or a mixture of experts.

What is particular: all of these are called ``mixer``; there are no positions but those the mixers make; the embeddings
are called ``embeddings``; the step dt is clamped at ``time_step_min`` where several tokens are read and not where one
is, so that prefill and decoding are two functions before any ablation; heads of multi-token prediction in a checkpoint
are not loaded.
"""

from segregation.models.family import UNCLAMPED, Family

FAMILY = Family(
    name="nemotron_h",
    model_type="nemotron_h",
    attention="mixer",
    mixer="mixer",
    scan="mamba2",
    conv_inputs=("in_proj",),
    max_positions="max_position_embeddings",
    clamps_prefill="time_step_min",
    understood=frozenset(
        {
            *("mlp_hidden_act", "ssm_state_size", "mamba_num_heads", "mamba_head_dim", "mamba_hidden_act", "n_groups"),
            *("conv_kernel", "expand", "time_step_min", "time_step_max", "time_step_floor"),
            *("use_conv_bias", "chunk_size", "mamba_ssm_cache_dtype", "n_routed_experts"),
            *("n_shared_experts", "moe_intermediate_size", "moe_shared_expert_intermediate_size", "moe_latent_size"),
            *("moe_shared_expert_overlap", "routed_scaling_factor", "n_group", "topk_group", "norm_topk_prob"),
            *("num_nextn_predict_layers", "mtp_layers_block_type", "use_bias", "layer_norm_epsilon"),
            *("residual_in_fp32", "hidden_dropout", "rescale_prenorm_residual", "hybrid_override_pattern"),
            *("mtp_hybrid_override_pattern", "time_step_rank"),
        }
    ),
    required={"sliding_window": (None,), "time_step_limit": UNCLAMPED},
    same={
        "norm_eps": "layer_norm_epsilon",
        "mamba_proj_bias": "use_bias",
        "attention_head_dim": "head_dim",
        "num_query_groups": "num_key_value_heads",
    },
)
