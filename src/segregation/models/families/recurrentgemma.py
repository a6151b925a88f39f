"""RecurrentGemma (Griffin): RG-LRU mixers with windowed multi-query attention every third layer.

What is particular: every layer calls its mixer ``temporal_block``; the output projection of attention has a bias;
the recurrent and convolution states live on the modules, so they survive a run, do not follow the cache when it is
forked or reordered, and are reset only by a batch of another size; the convolution reads padding, because the block
ignores the attention mask; a piece of several tokens fed to a filled cache loses the convolution's
history, which ``models.continuing`` mends.
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
    conv_inputs=("linear_x",),
    padded_inputs=("linear_x",),
    cannot={"beams": "beams do not move the state that it holds on its modules"},
    understood=frozenset(
        {
            *("lru_width", "attention_window_size", "conv1d_width", "logits_soft_cap", "hidden_activation"),
            *("block_types", "_block_types", "w_init_variance_scale", "final_w_init_variance_scale"),
        }
    ),
    required={"embeddings_scale_by_sqrt_dim": (True,)},
)
