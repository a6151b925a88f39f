"""Whether a model's modules are where its family's data says."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from segregation.errors import FamilyError
from segregation.models.family import Family, LayerType


def check_structure(
    family: Family,
    layer_types: Sequence[LayerType],
    attention: Callable[[int], Any],
    mixer: Callable[[int], Any],
) -> None:
    """The attention call must be in the source of exactly the attention layers, whatever modules are called.

    Args:
        family: says what the attention call is named.
        layer_types: what each layer should be.
        attention: the attention module of a layer.
        mixer: the recurrent mixer of a layer.

    Raises:
        FamilyError: a layer is not of its type, or attention has no such operation.
    """
    wanted = [(layer, kind, "attention") for layer, kind in enumerate(layer_types) if kind in ("attention", "hybrid")]
    wanted += [(layer, kind, "recurrent") for layer, kind in enumerate(layer_types) if kind in ("recurrent", "hybrid")]
    for layer, kind, part in wanted:
        block = attention(layer) if part == "attention" else mixer(layer)
        names = inspect.unwrap(type(block._module).forward).__code__.co_varnames
        if ("attention_interface" in names) != (part == "attention"):
            raise FamilyError(f"layer {layer} should be {kind}, but {block.path} is a {type(block._module).__name__}")
    if (first := next((layer for layer, _, part in wanted if part == "attention"), None)) is None:
        return
    source = attention(first).source
    if family.attention_call not in source.names:
        raise FamilyError(f"no operation {family.attention_call} in attention; found {', '.join(source.names)}")
