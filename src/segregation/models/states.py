"""What a recurrent layer remembers, read while a run is under way."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from segregation.errors import ModelError
from segregation.models.family import Family
from segregation.models.memory import held_states
from segregation.models.positions import cache_of, forward_arguments


@dataclass(frozen=True)
class RecurrentState:
    """What a recurrent layer remembers after the tokens it has read; copies, so later steps do not change them.

    Attributes:
        recurrent: the state of the recurrence (RG-LRU: ``batch width``; Mamba: ``batch width d_state``; the others:
            ``batch head ...``); ``None`` where the family has none.
        conv: the buffer of the short convolution; ``None`` where the family or the run keeps none.
    """

    recurrent: Float[Tensor, "batch ..."] | None
    conv: Float[Tensor, "batch width taps"] | None


def state_change(before: RecurrentState, after: RecurrentState) -> float:
    """The largest difference of a number of the two states, that of the convolution's buffer included; 0 is no change.

    >>> import torch
    >>> one = RecurrentState(torch.zeros(1, 2), torch.zeros(1, 2, 3))
    >>> state_change(one, RecurrentState(torch.tensor([[0.0, 0.5]]), one.conv))
    0.5
    """
    pairs = [(before.recurrent, after.recurrent), (before.conv, after.conv)]
    kept = [(old, new) for old, new in pairs if old is not None and new is not None]
    return max(float((new.float() - old.float()).abs().max()) for old, new in kept)


def check_taken(what: str, written: Float[Tensor, "..."], read: Float[Tensor, "..."] | None) -> None:
    """Refuse to go on where what was written into a memory is not what its layer then read, number by number.

    Raises:
        ModelError: the two differ; ``what`` says whose they are.
    """
    if read is None or written.shape != read.shape or not bool((written == read.to(written.device)).all()):
        raise ModelError(
            f"{what}: what was written is not what the layer read, so the patch did not happen; the run has another "
            "memory than the one that was patched (one run at a time per model, and no copy of its cache)"
        )


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
        from segregation.models.caches import kept_states

        cache = cache_of(forward_arguments(mixer._module, args, kwargs))
        conv, recurrent = kept_states(cache, layer) if cache is not None else (None, None)
    if recurrent is None and (conv is None or "state" not in family.cannot):
        raise ModelError(f"layer {layer} keeps no state in a run with use_cache=False; leave use_cache on")
    return RecurrentState(*(None if state is None else state.clone() for state in (recurrent, conv)))
