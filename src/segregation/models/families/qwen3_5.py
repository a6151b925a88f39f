"""Qwen3.5, its language model: gated delta-rule mixers, gated attention every fourth layer.

What is particular: as Qwen3-Next, but the mixer has a projection each for queries, keys and values together, the gate,
beta and the decay; a checkpoint has a vision tower as well, which is not loaded.
"""

from segregation.models.family import NO_PRODUCT_OF_DECAYS, Family

FAMILY = Family(
    name="qwen3_5",
    model_type="qwen3_5_text",
    attention="self_attn",
    mixer="linear_attn",
    scan="gated_delta",
    gated=True,
    conv_inputs=("in_proj_qkv",),
    max_positions="max_position_embeddings",
    cannot={"recurrence": NO_PRODUCT_OF_DECAYS},
    required={"mlp_only_layers": ([],)},
    understood=frozenset(
        {
            *("linear_conv_kernel_dim", "linear_key_head_dim", "linear_value_head_dim", "linear_num_key_heads"),
            *("linear_num_value_heads", "full_attention_interval", "attn_output_gate", "mamba_ssm_dtype"),
            *("mtp_num_hidden_layers", "mtp_use_dedicated_embeddings"),
        }
    ),
)
