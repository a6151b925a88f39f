"""LFM2: gated short convolutions, and grouped-query attention in some layers.

What is particular: the "recurrent" layers have no recurrent state, only the convolution's buffer of a few tokens, so
what they remember is bounded by its width; the output projection of attention is called ``out_proj``; the mixer takes
its cache as ``past_key_values``.
"""

from segregation.models.family import Family

_NO_STATE = "its short convolutions hold a buffer of a few tokens and no recurrent state"

FAMILY = Family(
    name="lfm2",
    model_type="lfm2",
    attention="self_attn",
    out_proj="out_proj",
    mixer="conv",
    scan="short_conv",
    conv_inputs=("in_proj",),
    max_positions="max_position_embeddings",
    cannot={"reset": _NO_STATE, "recurrence": _NO_STATE, "state": _NO_STATE},
    understood=frozenset(
        {
            *("norm_eps", "conv_bias", "conv_L_cache", "block_multiple_of", "block_ffn_dim_multiplier"),
            *("block_auto_adjust_ff_dim", "full_attn_idxs", "block_ff_dim", "block_mlp_init_scale"),
            *("block_out_init_scale", "block_use_xavier_init", "conv_use_xavier_init"),
        }
    ),
    required={"use_pos_enc": (True,), "block_use_swiglu": (True,)},
    same={
        "theta": "rope_parameters.rope_theta",
        "block_norm_eps": "norm_eps",
        **dict.fromkeys(("block_dim", "conv_dim", "conv_dim_out"), "hidden_size"),
        "num_heads": "num_attention_heads",
    },
)
