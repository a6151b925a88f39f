"""One tiny config per family, which the contract suite builds with random weights; a new family adds its own here.

Widths are odd ones on purpose (heads of 8 over a width of 32 or 48), layers few, and every kind of layer that a family
has is there at least twice.
"""

from typing import Any

COMMON: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
WINDOW = 16
_MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 2, "mamba_d_state": 4, "mamba_chunk_size": 8}
_DELTA = {
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    "linear_conv_kernel_dim": 4,
}
_ALTERNATING = ["linear_attention", "full_attention", "linear_attention", "full_attention"]

CONFIGS: dict[str, dict[str, Any]] = {
    "recurrentgemma": {
        **{"model_type": "recurrent_gemma", "num_hidden_layers": 6, "num_key_value_heads": 1},
        **{"attention_window_size": WINDOW, "max_position_embeddings": None},
    },
    "jamba": {
        **{"model_type": "jamba", "num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
        **{"num_experts": 2, "num_experts_per_tok": 1, "mamba_d_state": 4},
    },
    "zamba": {
        **{"model_type": "zamba", "num_hidden_layers": 6, "num_key_value_heads": 4, "attn_layer_period": 2},
        **{"attn_layer_offset": 1, "mamba_d_state": 4, "mamba_dt_rank": 2, "n_mamba_heads": 2},
    },
    "zamba2": {
        **{"model_type": "zamba2", "num_hidden_layers": 4, "num_key_value_heads": 4, "mamba_d_state": 4},
        **{"mamba_ngroups": 1, "n_mamba_heads": 4, "chunk_size": 8, "num_mem_blocks": 1, "adapter_rank": 4},
        **{"use_shared_attention_adapter": True, "use_mem_rope": True, "time_step_min": 0.05},
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
    },
    "falcon_h1": {
        **{"model_type": "falcon_h1", "num_hidden_layers": 3, "mamba_d_ssm": 64, **_MAMBA2, "key_multiplier": 0.7},
        **{"attention_in_multiplier": 0.9, "attention_out_multiplier": 1.1, "ssm_in_multiplier": 0.8},
        **{"ssm_out_multiplier": 1.2, "lm_head_multiplier": 0.5, "mamba_rms_norm": True},
        "ssm_multipliers": [0.9, 1.1, 0.8, 1.2, 0.7],
    },
    "bamba": {"model_type": "bamba", "num_hidden_layers": 4, "attn_layer_indices": [1, 3], **_MAMBA2},
    "nemotron_h": {
        "model_type": "nemotron_h",
        "layers_block_type": ["linear_attention", "mlp", "full_attention", "moe", "linear_attention", "full_attention"],
        **{"head_dim": 8, "ssm_state_size": 4, "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 2},
        **{"chunk_size": 8, "n_routed_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16},
        **{"moe_shared_expert_intermediate_size": 16, "time_step_min": 0.05},
    },
    "granitemoehybrid": {
        **{"model_type": "granitemoehybrid", "num_hidden_layers": 4, "layer_types": _ALTERNATING, **_MAMBA2},
        **{"num_local_experts": 2, "num_experts_per_tok": 1, "shared_intermediate_size": 16},
        **{"logits_scaling": 4.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5},
        **{"attention_multiplier": 0.3, "position_embedding_type": "rope"},
    },
    "qwen3_next": {
        **{"model_type": "qwen3_next", "num_hidden_layers": 4, "layer_types": _ALTERNATING, **_DELTA, "head_dim": 8},
        **{"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16},
        "shared_expert_intermediate_size": 16,
    },
    "qwen3_5": {
        **{"model_type": "qwen3_5_text", "num_hidden_layers": 4, "layer_types": _ALTERNATING, **_DELTA, "head_dim": 8}
    },
    "lfm2": {
        **{"model_type": "lfm2", "num_hidden_layers": 4, "conv_L_cache": 3, "block_multiple_of": 8},
        "layer_types": ["conv", "full_attention", "conv", "full_attention"],
    },
    "olmo_hybrid": {
        **{"model_type": "olmo_hybrid", "num_hidden_layers": 4, "layer_types": _ALTERNATING, **_DELTA},
        "linear_num_key_heads": 4,
    },
    "minimax": {
        **{"model_type": "minimax", "num_hidden_layers": 4, "layer_types": _ALTERNATING, "block_size": 8},
        **{"num_local_experts": 2, "num_experts_per_tok": 1},
    },
    "kimi_linear": {
        **{"model_type": "kimi_linear", "num_hidden_layers": 4, "layer_types": _ALTERNATING, "kv_lora_rank": 8},
        **{"num_key_value_heads": 4, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6},
        **{"linear_head_dim": 8, "linear_num_heads": 4, "num_local_experts": 2, "num_experts_per_tok": 1},
        **{"moe_intermediate_size": 16, "n_shared_experts": 1},
    },
    "llama": {"model_type": "llama", "num_hidden_layers": 3},
    "qwen3": {"model_type": "qwen3", "num_hidden_layers": 3, "head_dim": 8},
    "mamba": {
        **{"model_type": "mamba", "num_hidden_layers": 3, "state_size": 4, "time_step_rank": 2},
        **{"num_attention_heads": None, "num_key_value_heads": None, "max_position_embeddings": None},
    },
    "mamba2": {
        **{"model_type": "mamba2", "num_hidden_layers": 3, "state_size": 4, "num_heads": 4, "head_dim": 16},
        **{"n_groups": 2, "chunk_size": 8},
        **{"num_attention_heads": None, "num_key_value_heads": None, "max_position_embeddings": None},
    },
}
"""By the name of the family; what ``COMMON`` says is left out, and ``None`` takes it away."""


def tiny_config(family: str, **changes: Any) -> Any:
    """The transformers config of a tiny model of a family."""
    from transformers import AutoConfig

    given = {name: value for name, value in {**COMMON, **CONFIGS[family], **changes}.items() if value is not None}
    return AutoConfig.for_model(given.pop("model_type"), **given)
