"""Bamba: Mamba-2 mixers with grouped-query attention in a few named layers.

What is particular: the cache keeps every state; positions must be given with a filled cache, or rotary embeddings start
from zero; layers return tuples; ``mamba.norm`` takes the scan's output before its gate; ``mamba.conv1d`` is not called
as a module.
"""

from segregation.models.family import Family

FAMILY = Family(
    name="bamba",
    model_type="bamba",
    attention="self_attn",
    mixer="mamba",
    scan="mamba2",
    max_positions="max_position_embeddings",
    understood=frozenset(
        {
            *("vocab_size", "tie_word_embeddings", "hidden_size", "intermediate_size", "num_hidden_layers"),
            *("num_attention_heads", "num_key_value_heads", "hidden_act", "initializer_range", "rms_norm_eps"),
            *("use_cache", "num_logits_to_keep", "pad_token_id", "bos_token_id", "eos_token_id"),
            *("max_position_embeddings", "attention_dropout", "attn_layer_indices", "layers_block_type", "layer_types"),
            *("mamba_n_heads", "mamba_d_head", "mamba_n_groups", "mamba_d_state", "mamba_d_conv", "mamba_expand"),
            *("mamba_chunk_size", "mamba_conv_bias", "mamba_proj_bias", "z_loss_coefficient", "rope_parameters"),
            *("rope_theta", "partial_rotary_factor", "attention_bias", "mlp_bias", "head_dim"),
        }
    ),
    required={"time_step_limit": ((0.0, float("inf")), [0.0, float("inf")])},
)
