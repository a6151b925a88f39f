"""Qwen3-Next: gated delta-rule mixers, gated attention every fourth layer, mixtures of experts.

What is particular: the state is a matrix that each token corrects (S -> exp(g) S, then S + beta k (v - S^T k)^T), so a
token's contribution is not a product of decays; attention's ``q_proj`` emits queries and gates, and z is read after the
gate; the mixer's queries, keys and values come from one projection in groups, and its ``conv1d`` is not called as a
module.
"""

from segregation.models.family import NO_PRODUCT_OF_DECAYS, Family

FAMILY = Family(
    name="qwen3_next",
    model_type="qwen3_next",
    attention="self_attn",
    mixer="linear_attn",
    scan="gated_delta",
    gated=True,
    conv_inputs=("in_proj_qkvz",),
    max_positions="max_position_embeddings",
    cannot={"recurrence": NO_PRODUCT_OF_DECAYS},
    required={"use_sliding_window": (False,)},
    understood=frozenset(
        {
            *("linear_conv_kernel_dim", "linear_key_head_dim", "linear_value_head_dim", "linear_num_key_heads"),
            *("linear_num_value_heads", "decoder_sparse_step", "moe_intermediate_size", "num_experts"),
            *("shared_expert_intermediate_size", "norm_topk_prob", "mlp_only_layers", "full_attention_interval"),
            *("mtp_num_hidden_layers", "max_window_layers"),
        }
    ),
)
