"""Mamba: Mamba-1 mixers in every layer; a control beside hybrids.

What is particular: the layers are ``backbone.layers``; a forward takes its cache as ``cache_params``, no positions, and
no mask once the cache is filled; transformers' own scan starts from zero where several tokens are fed
to a filled cache, which ``models.continuing`` mends.
"""

from segregation.models.family import Family

FAMILY = Family(
    name="mamba",
    model_type="mamba",
    layers="backbone.layers",
    mixer="mixer",
    scan="mamba",
    conv_inputs=("in_proj",),
    only="recurrent",
    cache="cache_params",
    understood=frozenset(
        {
            *("state_size", "layer_norm_epsilon", "expand", "conv_kernel", "use_bias", "use_conv_bias"),
            *("residual_in_fp32", "time_step_rank", "time_step_scale", "time_step_min", "time_step_max"),
            *("time_step_init_scheme", "time_step_floor", "rescale_prenorm_residual", "use_mambapy"),
            *("use_associative_scan", "d_inner", "d_model", "n_layer", "ssm_cfg", "rms_norm", "fused_add_norm"),
            "pad_vocab_size_multiple",
        }
    ),
)
