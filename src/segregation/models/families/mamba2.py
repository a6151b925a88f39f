"""Mamba-2: Mamba-2 mixers in every layer; a control beside hybrids.

What is particular: as Mamba, the layers are ``backbone.layers``, the cache is ``cache_params``, and there are no
positions.
"""

from segregation.models.family import UNCLAMPED, Family

FAMILY = Family(
    name="mamba2",
    model_type="mamba2",
    layers="backbone.layers",
    mixer="mixer",
    scan="mamba2",
    conv_inputs=("in_proj",),
    only="recurrent",
    cache="cache_params",
    understood=frozenset(
        {
            *("num_heads", "head_dim", "state_size", "layer_norm_epsilon", "expand", "conv_kernel", "n_groups"),
            *("use_bias", "use_conv_bias", "residual_in_fp32", "time_step_rank", "time_step_min", "time_step_max"),
            *("time_step_floor", "rescale_prenorm_residual", "chunk_size", "norm_before_gate"),
            *("time_step_init_scheme", "time_step_scale", "emb_initializer_range", "A_initializer_range"),
            *("conv_initializer_range", "fused_add_norm", "pad_vocab_size_multiple"),
        }
    ),
    required={
        "time_step_limit": UNCLAMPED,
        "rms_norm": (True,),
        "ssm_cfg": (None, {}, {"layer": "Mamba2"}),
    },
    same={"d_model": "hidden_size", "n_layer": "num_hidden_layers"},
)
