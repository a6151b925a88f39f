"""Models of published sizes with random weights: their configs, as data, and how they are built on a device.

The fields are those of the config.json of each model, read from a public copy where the original is gated or was not
at hand: google/recurrentgemma-2b from ataeff/recurrentgemma-2b-it, google/recurrentgemma-9b from
alpindale/recurrentgemma-9b, ibm-ai-platform/Bamba-9B from ibm-fms/Bamba-9B, and ai21labs/AI21-Jamba-Mini-1.6 from
ai21labs/Jamba-v0.1, whose sizes it shares. Nothing is downloaded.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    BambaConfig,
    JambaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RecurrentGemmaConfig,
)

from segregation.errors import ModelError


@dataclass(frozen=True)
class Published:
    """A model's published config.

    Attributes:
        config: its class.
        fields: those that say its size.
        tiny: what replaces some of them in a smoke test; heads and the order of layers stay.
        repeats: rounds to time it, as far as ``seconds`` allow.
        seconds: what all rounds may take; one is always timed.
    """

    config: type[PretrainedConfig]
    fields: Mapping[str, Any]
    tiny: Mapping[str, Any]
    repeats: int
    seconds: float


_GRIFFIN = {"num_key_value_heads": 1, "attention_window_size": 2048, "vocab_size": 256_000, "logits_soft_cap": 30.0}
_TINY = {"vocab_size": 512, "intermediate_size": 96}
PUBLISHED: Mapping[str, Published] = {
    "google/recurrentgemma-2b": Published(
        RecurrentGemmaConfig,
        {
            **{"num_hidden_layers": 26, "hidden_size": 2560, "lru_width": 2560, "intermediate_size": 15_360},
            **{"num_attention_heads": 10, **_GRIFFIN},
        },
        {**_TINY, "num_hidden_layers": 6, "hidden_size": 80, "lru_width": 80, "attention_window_size": 16},
        repeats=3,
        seconds=90,
    ),
    "google/recurrentgemma-9b": Published(
        RecurrentGemmaConfig,
        {
            **{"num_hidden_layers": 38, "hidden_size": 4096, "lru_width": 4096, "intermediate_size": 24_576},
            **{"num_attention_heads": 16, **_GRIFFIN},
        },
        {**_TINY, "num_hidden_layers": 6, "hidden_size": 128, "lru_width": 128, "attention_window_size": 16},
        repeats=2,
        seconds=90,
    ),
    "ai21labs/AI21-Jamba-Mini-1.6": Published(
        JambaConfig,
        {
            **{"num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14_336, "vocab_size": 65_536},
            **{"num_attention_heads": 32, "num_key_value_heads": 8, "attn_layer_period": 8, "attn_layer_offset": 4},
            **{"num_experts": 16, "num_experts_per_tok": 2, "expert_layer_period": 2, "expert_layer_offset": 1},
            **{"mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": 256},
        },
        {**_TINY, "num_hidden_layers": 8, "hidden_size": 128, "num_experts": 4, "mamba_dt_rank": 8},
        repeats=3,
        seconds=90,
    ),
    "ibm-ai-platform/Bamba-9B": Published(
        BambaConfig,
        {
            **{"num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14_336, "vocab_size": 128_256},
            **{"num_attention_heads": 32, "num_key_value_heads": 8, "attn_layer_indices": [9, 18, 27]},
            **{"mamba_n_heads": 128, "mamba_d_head": 64, "mamba_n_groups": 1, "mamba_d_state": 128},
            **{"mamba_d_conv": 4, "mamba_expand": 2, "mamba_chunk_size": 256},
            **{"bos_token_id": 128_000, "eos_token_id": 128_001, "pad_token_id": 0},
        },
        {
            **{**_TINY, "num_hidden_layers": 12, "hidden_size": 128, "attn_layer_indices": [9], "mamba_n_heads": 16},
            **{"mamba_d_head": 16, "mamba_d_state": 16, "mamba_chunk_size": 8, "bos_token_id": 1, "eos_token_id": 2},
        },
        repeats=3,
        seconds=60,
    ),
}
"""By model id."""


def word_tokenizer(config: PretrainedConfig) -> PreTrainedTokenizerFast:
    """One word for each token id, so that any ids have a text (``<7> <8>`` is 7, 8), with the start token in front."""
    words = {f"<{i}>": i for i in range(config.vocab_size)}
    pad, eos, bos = (f"<{i}>" for i in (config.pad_token_id, config.eos_token_id, config.bos_token_id))
    backend = Tokenizer(models.WordLevel(words, unk_token=pad))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, config.bos_token_id)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=pad, eos_token=eos, bos_token=bos, padding_side="left"
    )


def build(config: PretrainedConfig, device: str) -> PreTrainedModel:
    """A model in bf16 with transformers' own random weights, drawn on the device; generation never ends early.

    Raises:
        ModelError: the device has less memory free than the weights take.
    """
    with torch.device("meta"):
        needed = 2 * AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).num_parameters()
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else None
    if free is not None and needed > free:
        raise ModelError(
            f"the weights take {needed / 1e9:.0f} GB and {free / 1e9:.0f} GB are free; use a larger device"
        )
    torch.manual_seed(0)
    with torch.device(device):
        module = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval().requires_grad_(False)
    module.generation_config.eos_token_id = None
    return module


def untouched(module: PreTrainedModel) -> PreTrainedModel:
    """New modules on the same tensors."""
    return copy.deepcopy(module, {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())})
