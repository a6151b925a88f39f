"""The channels through which a hybrid remembers: keys and values, recurrent and convolution states."""

from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from segregation.errors import ModelError
from segregation.models.memory import Held, held_states, hold_states

if TYPE_CHECKING:
    from segregation.models.hybrid import HybridModel

Channel = Literal["keys", "values", "recurrent", "conv"]
ATTENTION_CHANNELS: tuple[Channel, ...] = ("keys", "values")
RECURRENT_CHANNELS: tuple[Channel, ...] = ("recurrent", "conv")


def layers_with(model: "HybridModel", channel: Channel) -> tuple[int, ...]:
    """The layers that remember through a channel."""
    return model.attention_layers if channel in ATTENTION_CHANNELS else model.recurrent_layers


def read_channel(
    model: "HybridModel", cache: Any, layer: int, channel: Channel, held: Held | None = None
) -> Tensor | None:
    """What a layer remembers, itself and not a copy: in this cache, or in ``held``, which is what modules hold now.

    ``None`` where nothing has been remembered yet, or the layer has no such channel. Keys and values are ``batch
    kv_head pos d_head``, aligned at the right; states have the batch first.
    """
    if channel in RECURRENT_CHANNELS and model.family.held_states:
        if layer not in model.recurrent_layers:
            return None
        now = held_states([_mixer(model, layer)], model.family.held_states)[0]
        conv, recurrent = now if held is None else held[model.recurrent_layers.index(layer)]
        return recurrent if channel == "recurrent" else conv
    if cache is None or layer >= len(cache.layers):
        return None
    if channel in ATTENTION_CHANNELS:
        found = getattr(cache.layers[layer], channel, None)
        return found if isinstance(found, Tensor) and found.numel() else None
    from segregation.models.caches import kept_states

    conv, recurrent = kept_states(cache, layer)
    return recurrent if channel == "recurrent" else conv


def write_channel(model: "HybridModel", cache: Any, layer: int, channel: Channel, tensor: Tensor) -> None:
    """Let a layer remember this instead, in this cache or on the layer's modules.

    Raises:
        ModelError: a tensor of another shape than what is remembered, or nothing to put it in the place of.
    """
    before = read_channel(model, cache, layer, channel)
    if before is None or before.shape != tensor.shape:
        shape = None if before is None else tuple(before.shape)
        raise ModelError(
            f"layer {layer} remembers {channel} of the shape {shape}, so nothing of the shape {tuple(tensor.shape)} "
            "can take its place; read as many tokens with the same rows first"
        )
    tensor = tensor.to(before)
    if channel in ATTENTION_CHANNELS:
        setattr(cache.layers[layer], channel, tensor)
    elif model.family.held_states:
        mixer = _mixer(model, layer)
        conv, recurrent = held_states([mixer], model.family.held_states)[0]
        held = (conv, tensor) if channel == "recurrent" else (tensor, recurrent)
        hold_states([mixer], model.family.held_states, (held,))
    else:
        from segregation.models.caches import keep_state

        keep_state(cache, layer, channel, tensor)


def _mixer(model: "HybridModel", layer: int) -> nn.Module:
    return model.mixer(layer)._module
