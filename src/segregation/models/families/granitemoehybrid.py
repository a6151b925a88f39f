"""Granite 4 (GraniteMoeHybrid): Mamba-2 mixers, attention in a few layers, mixtures of experts.

What is particular: a layer has both names, ``self_attn`` and ``mamba``, and the one it does not use is ``None``; four
fixed multipliers stand outside the modules, so ``lm_head.output`` is ``logits_scaling`` times the logits; attention
is scaled by ``attention_multiplier``, and has rotary positions or none.
"""

from segregation.models.family import UNCLAMPED, Family

FAMILY = Family(
    name="granitemoehybrid",
    model_type="granitemoehybrid",
    attention="self_attn",
    mixer="mamba",
    scan="mamba2",
    conv_inputs=("in_proj",),
    max_positions="max_position_embeddings",
    understood=frozenset(
        {
            *("embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier"),
            *("shared_intermediate_size", "position_embedding_type", "mamba_n_heads", "mamba_n_groups"),
            *("mamba_d_state", "mamba_d_head", "mamba_d_conv", "mamba_expand", "mamba_chunk_size"),
            *("mamba_conv_bias", "mamba_proj_bias", "normalization_function", "init_method"),
        }
    ),
    required={"time_step_limit": UNCLAMPED},
)
