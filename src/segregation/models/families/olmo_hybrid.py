"""OLMo-Hybrid: gated delta-rule mixers, and attention every fourth layer.

What is particular: the mixer has projections of its own for queries, keys and values, whose output projection is
called ``o_proj`` as attention's is; with ``linear_allow_neg_eigval`` beta goes up to 2, so the state may change sign;
attention layers norm after, mixer layers before.
"""

from segregation.models.family import NO_PRODUCT_OF_DECAYS, Family

FAMILY = Family(
    name="olmo_hybrid",
    model_type="olmo_hybrid",
    attention="self_attn",
    mixer="linear_attn",
    scan="gated_delta",
    conv_inputs=("q_proj", "k_proj", "v_proj"),
    max_positions="max_position_embeddings",
    cannot={"recurrence": NO_PRODUCT_OF_DECAYS},
    understood=frozenset(
        {
            *("linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim"),
            *("linear_a_log_min", "linear_a_log_max", "linear_dt_min", "linear_dt_max", "linear_dt_init_floor"),
            *("linear_conv_kernel_dim", "linear_allow_neg_eigval"),
        }
    ),
    required={"linear_use_gate": (True,)},
)
