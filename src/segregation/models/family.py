"""What this package has to know about a family of hybrid models, as data."""

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from segregation.errors import FamilyError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

LayerType = Literal["attention", "recurrent", "hybrid", "mlp"]
"""What a layer mixes positions with: attention, a recurrent mixer, both of them, or nothing."""

Scan = Literal["rg_lru", "mamba", "mamba2", "gated_delta", "kda", "lightning", "short_conv"]
"""The recurrence that a mixer runs; ``models.mixers`` says what each does at a token."""

Ability = Literal["beams", "skip", "reset", "recurrence", "state", "conv", "keys"]
"""What may be asked of a family: to move all of its state with a beam; to let the state pass some tokens unchanged
(``AblateRecurrent(value="skip")``); to set it to zero on the way (``ResetState``); to be read as the linear recurrence
of ``models.recurrence`` (contributions, knock-outs, spectra); to hold a recurrent state at all; to hold the buffer of a
short convolution; to keep keys and values apart from each other."""

_LAYER_TYPES: Mapping[str, LayerType] = {
    "attention": "attention",
    "full_attention": "attention",
    "sliding_attention": "attention",
    "recurrent": "recurrent",
    "linear_attention": "recurrent",
    "mamba": "recurrent",
    "conv": "recurrent",
    "hybrid": "hybrid",
    "mlp": "mlp",
    "moe": "mlp",
}

NO_PRODUCT_OF_DECAYS = "the delta rule corrects its whole state at every token, which is no product of decays"
"""Why a delta rule is no linear recurrence of ``models.recurrence``."""

UNCLAMPED = ((0.0, float("inf")), [0.0, float("inf")])
"""``time_step_limit`` that clamps no step dt; JSON gives a list."""

COMMON_FIELDS = frozenset(
    {
        *("vocab_size", "tie_word_embeddings", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim"),
        *("num_attention_heads", "num_key_value_heads", "hidden_act", "initializer_range", "rms_norm_eps"),
        *("use_cache", "num_logits_to_keep", "pad_token_id", "bos_token_id", "eos_token_id", "layer_types"),
        *("max_position_embeddings", "attention_dropout", "layers_block_type", "rope_parameters", "rope_theta"),
        *("rope_scaling", "partial_rotary_factor", "attention_bias", "mlp_bias", "output_router_logits"),
        *("router_aux_loss_coef", "num_experts_per_tok", "num_local_experts", "use_mamba_kernels"),
        "quantization_config",
    }
)
"""Config fields that mean the same in every family, and that transformers alone has to follow."""

_LENGTH_BOUND_ROPE = frozenset({"dynamic", "longrope"})
"""Rotary positions that depend on how long a forward's longest row is."""


@dataclass(frozen=True)
class Family:
    """Where one Hugging Face family keeps its parts, what it cannot do, and which config fields are understood.

    Attributes:
        name: our name of the family.
        model_type: the ``model_type`` of its Hugging Face config.
        layers: path of the list of layers, from the causal language model.
        attention: path of the attention module, from a layer with attention.
        out_proj: path of the output projection, from the attention module; its input is ``z``.
        mixer: path of the recurrent mixer, from a recurrent layer.
        hybrid_mixer: path of the recurrent mixer, from a layer that has both, where it is another.
        first: which of the two a layer that has both runs first.
        gated: whether attention's output is multiplied by a gate before its output projection, so that ``z`` is the
            gate times ``pattern @ v``.
        attention_call: the operation in the attention module's NNsight ``.source`` that computes attention.
        only: the type of all layers, where the config does not say it.
        window: config field with the attention window in tokens, if the family has one.
        max_positions: config field with the largest number of positions, if the family has one.
        scan: which recurrence its mixers run; ``None`` for a family without any.
        held_states: paths, from the mixer, of states that live on modules and not in the cache:
            ``(convolution state, recurrent state)``. Empty where the cache keeps both.
        conv_inputs: modules, from the mixer, whose output is what its short convolution reads, token by token.
        conv_multiplier: buffer of the mixer by which that output is multiplied first, where there is one.
        clamps_prefill: config field with the least step dt where several tokens are read; where one is, nothing is
            clamped, so that prefill and decoding are two functions.
        padded_inputs: modules, from the mixer, whose output must be set to zero at padding.
        cache: the argument that a forward takes its cache in.
        cannot: what it cannot do, and why.
        understood: config fields, beside the common ones, whose every value is handled or does not change the maths of
            a forward pass.
        required: config fields that are understood for these values only.
        same: config fields of published models that transformers does not read, and the field that it reads instead
            (one inside another as ``outer.inner``); the two must agree.
    """

    name: str
    model_type: str
    attention: str = ""
    mixer: str = ""
    scan: Scan | None = None
    layers: str = "model.layers"
    out_proj: str = "o_proj"
    gated: bool = False
    hybrid_mixer: str = ""
    first: Literal["attention", "recurrent"] = "attention"
    attention_call: str = "attention_interface_1"
    only: LayerType | None = None
    window: str | None = None
    max_positions: str | None = None
    held_states: tuple[str, ...] = ()
    conv_inputs: tuple[str, ...] = ()
    conv_multiplier: str | None = None
    clamps_prefill: str | None = None
    padded_inputs: tuple[str, ...] = ()
    cache: Literal["past_key_values", "cache_params"] = "past_key_values"
    cannot: Mapping[Ability, str] = field(default_factory=dict)
    understood: frozenset[str] = frozenset()
    required: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    same: Mapping[str, str] = field(default_factory=dict)


@functools.cache
def families() -> Mapping[str, Family]:
    """Every known family, by the ``model_type`` of its config: one file each in ``segregation/models/families``.

    >>> families()["jamba"].mixer
    'mamba'
    """
    from segregation.models import families as room

    files = (importlib.import_module(f"{room.__name__}.{file.name}") for file in pkgutil.iter_modules(room.__path__))
    return {file.FAMILY.model_type: file.FAMILY for file in files}


def family_of(config: "PretrainedConfig") -> Family:
    """The family of a config, once every field of the config is understood.

    Raises:
        FamilyError: not a hybrid of a known family, or a field (or value) that is not understood, by name.
    """
    known = families()
    if config.model_type not in known:
        raise FamilyError(
            f"model_type {config.model_type!r} is not a hybrid of a known family; known: {', '.join(sorted(known))}. "
            "A new family is one small file in segregation/models/families, and a tiny config in tests/tiny.py"
        )
    family = known[config.model_type]
    where = f"{type(config).__name__}.{{}} is not handled by segregation.models.families.{family.name}"
    for name, allowed in family.required.items():
        value = getattr(config, name, allowed[0])
        if value not in allowed:
            raise FamilyError(f"{where.format(f'{name}={value!r}')}; understood: {', '.join(map(repr, allowed))}")
    if not getattr(config, "return_dict", True):
        raise FamilyError(
            f"{where.format(f'return_dict={config.return_dict!r}')}: outputs are read by name; leave it out of "
            "config.json"
        )
    for name, twin in family.same.items():
        value, read = getattr(config, name, None), _read(config, twin)
        if value is not None and value != read:
            raise FamilyError(
                f"{where.format(f'{name}={value!r} beside {twin}={read!r}')}: transformers reads {twin} alone, so the "
                "model would not be the one that was published; let config.json say the same in both"
            )
    for kind in _rope_types(config) & _LENGTH_BOUND_ROPE:
        raise FamilyError(
            f"{where.format(f'rope_parameters with rope_type={kind!r}')}: it turns positions by the longest row of a "
            "batch, so that a row would depend on its neighbours; take a checkpoint with another rope_type"
        )
    for name, value in _unknown_fields(config, family).items():
        raise FamilyError(
            f"{where.format(f'{name}={value!r}')}. If it does not change the maths of a forward pass, "
            "remove it from config.json, or add it to the family's understood fields"
        )
    return family


def layer_types_of(config: "PretrainedConfig") -> tuple[LayerType, ...]:
    """What each layer mixes positions with, from the config's own layer types.

    A model with layers of one kind only is a control beside a hybrid, and may be loaded as one.

    Raises:
        FamilyError: a layer type that is none of ours.
    """
    family = family_of(config)
    if family.only is not None:
        return (family.only,) * config.num_hidden_layers
    names: list[str] = list(getattr(config, "layers_block_type", None) or config.layer_types)
    if "sliding_attention" in names and family.window is None:
        raise FamilyError(
            f"{type(config).__name__}.layer_types names sliding_attention, and windows of single layers are not "
            f"handled in {family.name}; a window here is that of all attention layers"
        )
    if unknown := sorted(set(names) - set(_LAYER_TYPES)):
        raise FamilyError(f"layer types {unknown} are not understood; known: {', '.join(sorted(_LAYER_TYPES))}")
    return tuple(_LAYER_TYPES[name] for name in names)


def _read(config: "PretrainedConfig", name: str) -> Any:
    outer, _, inner = name.partition(".")
    return (getattr(config, outer, None) or {}).get(inner) if inner else getattr(config, outer, None)


def _rope_types(config: "PretrainedConfig") -> set[str]:
    """The kinds of rotary positions that a config asks for: one, or one for each type of layer."""
    given = getattr(config, "rope_parameters", None) or {}
    parts = [part for part in given.values() if isinstance(part, dict)] or [given]
    return {str(part.get("rope_type", "default")) for part in parts}


def _unknown_fields(config: "PretrainedConfig", family: Family) -> dict[str, Any]:
    """Fields that are neither understood, nor common to all configs, nor left at their class's own default."""
    from transformers import PretrainedConfig

    common = set(PretrainedConfig().to_dict()) | {"auto_map", "transformers_version", "_name_or_path", "torch_dtype"}
    default = type(config)().to_dict()
    understood = COMMON_FIELDS | family.understood | set(family.required) | set(family.same) | common
    for ours, theirs in config.attribute_map.items():  # two names of one field
        understood |= {ours, theirs} if {ours, theirs} & understood else set()
    return {
        name: value
        for name, value in config.to_dict().items()
        if name not in understood and value is not None and not (name in default and default[name] == value)
    }
