"""RecurrentGemma (Griffin): RG-LRU mixers with windowed multi-query attention every third layer.

What is particular: every layer calls its mixer ``temporal_block``; the output projection of attention has a bias;
the recurrent and convolution states live on the modules, so they survive a run, do not follow the cache when it is
forked or reordered, and are reset only by a batch of another size; the convolution reads padding, because the block
ignores the attention mask; a piece of several tokens fed to a cache that is not empty loses the convolution's history.
"""

from segregation.models.family import Family

FAMILY = Family(
    name="recurrentgemma",
    model_type="recurrent_gemma",
    attention="temporal_block",
    mixer="temporal_block",
    scan="rg_lru",
    window="attention_window_size",
    held_states=("conv1d_state", "rg_lru.recurrent_states"),
    padded_inputs=("linear_x",),
    beams=False,
    understood=frozenset(
        {
            *("num_hidden_layers", "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads"),
            *("lru_width", "attention_window_size", "conv1d_width", "logits_soft_cap", "rms_norm_eps", "use_cache"),
            *("pad_token_id", "eos_token_id", "bos_token_id", "hidden_activation", "rope_parameters", "rope_theta"),
            *("partial_rotary_factor", "block_types", "attention_dropout", "num_key_value_heads", "attention_bias"),
            *("w_init_variance_scale", "final_w_init_variance_scale", "tie_word_embeddings", "head_dim"),
            *("layers_block_type", "layer_types"),
        }
    ),
    required={"embeddings_scale_by_sqrt_dim": (True,)},
)
