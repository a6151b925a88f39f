"""What a recurrent layer remembers, read while a run is under way."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from segregation.errors import ModelError
from segregation.models.family import Family
from segregation.models.memory import held_states
from segregation.models.positions import forward_arguments


@dataclass(frozen=True)
class RecurrentState:
    """What a recurrent layer remembers after the tokens it has read; copies, so later steps do not change them.

    Attributes:
        recurrent: the state of the recurrence (RG-LRU: ``batch width``; Mamba: ``batch width d_state``).
        conv: the buffer of the short convolution; ``None`` where the run keeps none.
    """

    recurrent: Float[Tensor, "batch ..."]
    conv: Float[Tensor, "batch width taps"] | None


def recurrent_state(mixer: Any, family: Family, layer: int) -> RecurrentState:
    """The state of a mixer (seen through NNsight) after this forward's tokens.

    Raises:
        ModelError: a run without a cache, which keeps no state.
    """
    if family.held_states:
        _ = mixer.output  # the states are written while the mixer runs
        conv, recurrent = held_states([mixer._module], family.held_states)[0]
    else:
        args, kwargs = mixer.inputs
        _ = mixer.output
        cache = forward_arguments(mixer._module, args, kwargs).get("cache_params")
        kept = cache.layers[layer] if cache is not None else None
        conv, recurrent = (kept.conv_states[0], kept.recurrent_states[0]) if kept is not None else (None, None)
    if recurrent is None:
        raise ModelError(f"layer {layer} keeps no state in a run with use_cache=False; leave use_cache on")
    return RecurrentState(recurrent.clone(), None if conv is None else conv.clone())
