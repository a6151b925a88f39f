"""Recipes: what each model of the zoo is made of, and how it is trained."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from segregation.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FamilyName = Literal["recurrentgemma", "jamba"]

MODEL_CLASSES = {
    "recurrentgemma": ("RecurrentGemmaConfig", "RecurrentGemmaForCausalLM"),
    "jamba": ("JambaConfig", "JambaForCausalLM"),
}


@dataclass(frozen=True)
class Recipe:
    """A model's shape and its training.

    Attributes:
        family: which transformers classes it is built from.
        config: arguments of the transformers config.
        steps: optimiser steps in all; the learning rate falls linearly to 0 over the last ``decay`` of them.
        batch: sequences a step.
        length: tokens a sequence.
        lr: peak learning rate of AdamW.
        seed: of the weights and of the data stream.
    """

    name: str
    family: FamilyName
    config: dict[str, Any] = field(repr=False)
    steps: int
    batch: int = 56
    length: int = 1152
    lr: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.97)
    weight_decay: float = 0.1
    clip: float = 1.0
    warmup: int = 150
    decay: float = 0.3
    seed: int = 0

    @property
    def fall(self) -> float:
        """The step from which the learning rate falls."""
        return (1 - self.decay) * self.steps

    def lr_at(self, step: int) -> float:
        """The learning rate of a step: linear warm-up, constant, linear decay to 0.

        >>> recipe = RECIPES["micro"]
        >>> recipe.lr_at(0) < recipe.lr_at(recipe.warmup) == recipe.lr, recipe.lr_at(recipe.steps)
        (True, 0.0)
        """
        fall = (self.steps - step) / max(1, self.decay * self.steps)
        return self.lr * max(0.0, min((step + 1) / max(1, self.warmup), 1.0, fall))

    def build(self, seed: int | None = None) -> "PreTrainedModel":
        """The untrained model, in fp32 on the CPU."""
        import torch
        import transformers

        config_name, model_name = MODEL_CLASSES[self.family]
        config = getattr(transformers, config_name)(**self.config)
        torch.manual_seed(self.seed if seed is None else seed)
        return getattr(transformers, model_name)(config)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint and a model card."""
        return asdict(self)


_TOKENS = {"vocab_size": 4096, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": True}

_RECURRENTGEMMA = {
    **_TOKENS,
    "num_hidden_layers": 9,
    "block_types": ("recurrent", "recurrent", "attention"),
    "hidden_size": 256,
    "intermediate_size": 1024,  # halved inside
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "lru_width": 256,
    "attention_window_size": 1152,
}

_JAMBA = {
    **_TOKENS,
    "num_hidden_layers": 8,
    "attn_layer_period": 4,
    "attn_layer_offset": 2,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_dt_rank": 16,
    "max_position_embeddings": 8192,
}

_HYBRIDS: tuple[tuple[FamilyName, dict[str, Any], int], ...] = (
    ("recurrentgemma", _RECURRENTGEMMA, 4500),
    ("jamba", _JAMBA, 3000),
)
"""Family, shape, and optimiser steps of each hybrid; its controls have the same steps."""

_ONE_KIND: Mapping[tuple[str, str], dict[str, Any]] = {
    ("attention", "recurrentgemma"): {"block_types": ("attention",)},
    ("recurrence", "recurrentgemma"): {"block_types": ("recurrent",)},
    ("attention", "jamba"): {"attn_layer_period": 1, "attn_layer_offset": 0},
    ("recurrence", "jamba"): {"attn_layer_period": 1000, "attn_layer_offset": 999},
}
"""The controls: every mixer of one kind, all else, data and seed as in the hybrid."""

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        *(Recipe(f"tiny-{family}", family, config, steps=steps) for family, config, steps in _HYBRIDS),
        *(
            Recipe(f"tiny-{kind}-{family}", family, {**config, **_ONE_KIND[kind, family]}, steps=steps)
            for family, config, steps in _HYBRIDS
            for kind in ("attention", "recurrence")
        ),
        Recipe(
            "micro",
            "recurrentgemma",
            {
                **_RECURRENTGEMMA,
                "num_hidden_layers": 4,
                "block_types": ("recurrent", "attention"),
                "hidden_size": 64,
                "intermediate_size": 256,
                "num_attention_heads": 4,
                "head_dim": 16,
                "lru_width": 64,
            },
            steps=300,
            batch=4,
            length=96,
            warmup=20,
        ),
    )
}


def recipe(name: str) -> Recipe:
    """A recipe by name.

    Raises:
        ModelError: there is no such recipe.

    >>> recipe("tiny-jamba").family
    'jamba'
    """
    if name not in RECIPES:
        raise ModelError(f"a recipe is one of {', '.join(RECIPES)}; got {name!r}")
    return RECIPES[name]
