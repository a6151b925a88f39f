"""MiniMax (Text-01): lightning (linear) attention with fixed decays, softmax attention every eighth layer, experts.

What is particular: both kinds are called ``self_attn``, and only their output projections differ in name; the state
of a lightning layer is kept in a list beside the cache's layers, which transformers neither reorders nor counts:
where the first layer is a lightning one its cache always says that nothing has been read, so that masks of padded
batches are wrong and a forked cache is refused. It is given a cache here that counts and moves that list. The
recurrence is computed in the module's own forward, with no operation of its own.
"""

from segregation.models.family import Family

_INLINE = "its lightning attention is computed in the module's own forward, with no operation that scans"

FAMILY = Family(
    name="minimax",
    model_type="minimax",
    attention="self_attn",
    mixer="self_attn",
    scan="lightning",
    max_positions="max_position_embeddings",
    cannot={
        "beams": "generate builds beams on a cache that does not move the states of lightning layers",
        "skip": _INLINE,
        "reset": _INLINE,
        "recurrence": _INLINE,
        "conv": "it has no short convolution",
    },
    understood=frozenset(
        {
            *("router_jitter_noise", "block_size", "full_attn_alpha_factor", "full_attn_beta_factor"),
            *("linear_attn_alpha_factor", "linear_attn_beta_factor", "mlp_alpha_factor", "mlp_beta_factor"),
        }
    ),
    required={"sliding_window": (None,)},
)
