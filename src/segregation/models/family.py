"""What this package has to know about a family of hybrid models, as data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from segregation.errors import FamilyError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

LayerType = Literal["attention", "recurrent"]

_LAYER_TYPES: Mapping[str, LayerType] = {
    "attention": "attention",
    "full_attention": "attention",
    "sliding_attention": "attention",
    "recurrent": "recurrent",
    "linear_attention": "recurrent",
    "mamba": "recurrent",
}


@dataclass(frozen=True)
class Family:
    """Where one Hugging Face family keeps its parts, which traps it has, and which config fields are understood.

    Attributes:
        name: our name of the family.
        model_type: the ``model_type`` of its Hugging Face config.
        layers: path of the list of layers, from the causal language model.
        attention: path of the attention module, from an attention layer.
        out_proj: path of the output projection, from the attention module; its input is ``z``.
        mixer: path of the recurrent mixer, from a recurrent layer.
        attention_call: the operation in the attention module's NNsight ``.source`` that computes attention.
        window: config field with the attention window in tokens, if the family has one.
        max_positions: config field with the largest number of positions, if the family has one.
        scan: which recurrence its mixers run.
        held_states: paths, from the mixer, of states that live on modules and not in the cache:
            ``(convolution state, recurrent state)``. Empty where the cache keeps both.
        padded_inputs: modules, from the mixer, whose output must be set to zero at padding.
        beams: whether beam search moves all of the state; it does not move ``held_states``.
        understood: config fields whose every value is handled, or does not change the maths of a forward pass.
        required: config fields that are understood for these values only.
    """

    name: str
    model_type: str
    attention: str
    mixer: str
    scan: Literal["rg_lru", "mamba", "mamba2"]
    layers: str = "model.layers"
    out_proj: str = "o_proj"
    attention_call: str = "attention_interface_1"
    window: str | None = None
    max_positions: str | None = None
    held_states: tuple[str, ...] = ()
    padded_inputs: tuple[str, ...] = ()
    beams: bool = True
    understood: frozenset[str] = frozenset()
    required: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


def families() -> Mapping[str, Family]:
    """Every known family, by the ``model_type`` of its config.

    >>> sorted(families())
    ['bamba', 'jamba', 'recurrent_gemma']
    """
    from segregation.models.families import bamba, jamba, recurrentgemma

    return {family.model_type: family for family in (recurrentgemma.FAMILY, jamba.FAMILY, bamba.FAMILY)}


def family_of(config: "PretrainedConfig") -> Family:
    """The family of a config, once every field of the config is understood.

    Raises:
        FamilyError: not a hybrid of a known family, or a field (or value) that is not understood, by name.
    """
    known = families()
    if config.model_type not in known:
        raise FamilyError(
            f"model_type {config.model_type!r} is not a hybrid of a known family; known: {', '.join(sorted(known))}. "
            "A new family is one small file in segregation/models/families"
        )
    family = known[config.model_type]
    where = f"{type(config).__name__}.{{}} is not handled by segregation.models.families.{family.name}"
    for name, allowed in family.required.items():
        value = getattr(config, name, allowed[0])
        if value not in allowed:
            raise FamilyError(f"{where.format(f'{name}={value!r}')}; understood: {', '.join(map(repr, allowed))}")
    for name, value in _unknown_fields(config, family).items():
        raise FamilyError(
            f"{where.format(f'{name}={value!r}')}. If it does not change the maths of a forward pass, "
            "remove it from config.json, or add it to the family's understood fields"
        )
    return family


def layer_types_of(config: "PretrainedConfig") -> tuple[LayerType, ...]:
    """Per layer ``"attention"`` or ``"recurrent"``, from the config's own layer types.

    A model with layers of one kind only is a control beside a hybrid, and may be loaded as one.

    Raises:
        FamilyError: a layer type that is neither.
    """
    names: list[str] = list(getattr(config, "layers_block_type", None) or config.layer_types)
    if unknown := sorted(set(names) - set(_LAYER_TYPES)):
        raise FamilyError(f"layer types {unknown} are not understood; known: {', '.join(sorted(_LAYER_TYPES))}")
    return tuple(_LAYER_TYPES[name] for name in names)


def _unknown_fields(config: "PretrainedConfig", family: Family) -> dict[str, Any]:
    """Fields that are neither understood, nor common to all configs, nor left at their class's own default."""
    from transformers import PretrainedConfig

    common = set(PretrainedConfig().to_dict()) | {"auto_map", "transformers_version", "_name_or_path", "torch_dtype"}
    default = type(config)().to_dict()
    return {
        name: value
        for name, value in config.to_dict().items()
        if name not in family.understood | set(family.required) | common
        and value is not None
        and not (name in default and default[name] == value)
    }
