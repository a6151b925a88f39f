"""Zamba: Mamba-1 mixers in every layer, and one attention block whose weights several layers share.

What is particular: a layer with attention runs it first, on the hidden states beside the embeddings (twice as wide),
and its output reaches the residual only through that layer's Mamba mixer; the modules of such layers are distinct,
but their weights are the same tensors; ``in_proj`` interleaves the two halves; each Mamba head is scanned by a call
of its own, so there is no one operation that scans; transformers' own scan starts from zero where
several tokens are fed to a filled cache, which ``models.continuing`` mends.
"""

from segregation.models.family import Family

_PER_HEAD = "it scans every Mamba head by a call of its own, so that no one operation scans a layer"

FAMILY = Family(
    name="zamba",
    model_type="zamba",
    attention="shared_transf.self_attn",
    mixer="mamba",
    hybrid_mixer="mamba_decoder.mamba",
    first="attention",
    scan="mamba",
    conv_inputs=("in_proj",),
    max_positions="max_position_embeddings",
    cannot={"skip": _PER_HEAD, "reset": _PER_HEAD, "recurrence": _PER_HEAD},
    understood=frozenset(
        {
            *("attention_hidden_size", "attention_head_dim", "n_mamba_heads", "hidden_mamba_act", "mamba_d_state"),
            *("attn_layer_period", "attn_layer_offset", "mamba_d_conv", "mamba_expand", "mamba_dt_rank"),
            *("use_associative_scan", "time_step_min", "time_step_max", "time_step_floor", "mamba_conv_bias"),
            "mamba_proj_bias",
        }
    ),
)
