"""Falcon-H1: attention and a Mamba-2 mixer side by side in every layer.

What is particular: the mixer runs first, on the same normed input as attention, and the two are added up; many fixed
multipliers (of keys, embeddings, both mixers and the logits) stand outside the modules, so ``lm_head.output`` is not
the logits, and the output of the scan's input projection is multiplied before it is used; layers return tuples;
without ``mamba_rms_norm`` the gate is applied inside the step of one token and after the scan of several.
"""

from segregation.models.family import UNCLAMPED, Family

FAMILY = Family(
    name="falcon_h1",
    model_type="falcon_h1",
    attention="self_attn",
    mixer="mamba",
    first="recurrent",
    scan="mamba2",
    conv_inputs=("in_proj",),
    conv_multiplier="mup_vector",
    max_positions="max_position_embeddings",
    understood=frozenset(
        {
            *("mamba_d_ssm", "mamba_n_heads", "mamba_d_head", "mamba_n_groups", "mamba_d_state", "mamba_d_conv"),
            *("mamba_expand", "mamba_chunk_size", "mamba_conv_bias", "mamba_proj_bias", "mamba_norm_before_gate"),
            *("mamba_rms_norm", "projectors_bias", "lm_head_multiplier", "embedding_multiplier", "mlp_multipliers"),
            *("key_multiplier", "attention_out_multiplier", "attention_in_multiplier", "ssm_multipliers"),
            *("ssm_in_multiplier", "ssm_out_multiplier", "mlp_expansion_factor", "mamba_use_mlp"),
            *("time_step_floor", "time_step_min", "time_step_max", "time_step_rank"),
        }
    ),
    required={"time_step_limit": UNCLAMPED},
)
