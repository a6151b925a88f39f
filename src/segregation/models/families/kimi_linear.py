"""Kimi-Linear: delta-rule mixers with a decay per channel (KDA), latent attention every fourth layer, experts.

What is particular: both kinds are called ``self_attn`` and have an ``o_proj``; attention is multi-head latent
attention, whose keys are wider than its values (64 + 128 against 128), so the width of a head in z is ``v_head_dim``;
the cache keeps latents, one for all heads (as its keys) and the part of the keys with positions (as its values), of
which keys and values are made anew at every step.
"""

from segregation.models.family import NO_PRODUCT_OF_DECAYS, Family

FAMILY = Family(
    name="kimi_linear",
    model_type="kimi_linear",
    attention="self_attn",
    mixer="self_attn",
    scan="kda",
    conv_inputs=("q_proj", "k_proj", "v_proj"),
    max_positions="max_position_embeddings",
    cannot={
        "recurrence": NO_PRODUCT_OF_DECAYS,
        "keys": "its cache keeps latents of which keys and values are made together, so that neither is had alone",
    },
    required={
        "mla_use_nope": (True,),
        "moe_router_activation_func": ("sigmoid",),
        "topk_method": ("noaux_tc",),
        "use_grouped_topk": (True,),
    },
    understood=frozenset(
        {
            *("moe_intermediate_size", "n_shared_experts", "routed_scaling_factor", "kv_lora_rank", "q_lora_rank"),
            *("qk_rope_head_dim", "v_head_dim", "qk_nope_head_dim", "qk_head_dim", "n_group", "topk_group"),
            *(
                "norm_topk_prob",
                "pretraining_tp",
                "mlp_layer_types",
                "linear_head_dim",
                "linear_num_heads",
                "linear_conv_kernel_dim",
            ),
            *("first_k_dense_replace", "moe_layer_freq", "num_nextn_predict_layers", "linear_attn_config"),
        }
    ),
)
