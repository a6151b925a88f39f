"""Whether every layer reads what was put into its memory: seen in one forward pass, layer by layer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from nnsight.intervention.interleaver import OutOfOrderError
from torch import Tensor

from segregation.models.channels import ATTENTION_CHANNELS, Channel, read_channel
from segregation.models.hybrid import HybridModel
from segregation.models.memory import Memory
from segregation.models.mixers import MixerCall
from segregation.models.states import check_taken

Written = Callable[[int, Channel], Tensor | None]
"""(layer, channel) -> what was put there, row by row; ``None`` where there is nothing."""


@dataclass(frozen=True)
class _Witness:
    """Reads along in the first forward pass of a run, and refuses to go on where a layer reads something else."""

    written: Written
    cache: Any
    seen: list[tuple[int, Channel]]

    def enter(self, model: HybridModel) -> HybridModel:
        editing: Any = model.edit()
        with editing as (tracer, edited):
            _watch(tracer, edited, self)
        return edited

    def check(self, layer: int, channel: Channel, read: Tensor | None) -> None:
        expected = self.written(layer, channel)
        if expected is None:
            return
        if channel == "conv":  # read once the mixer has run, when the buffer has moved on by one token
            expected, read = expected[..., 1:], None if read is None else read[..., :-1]
        check_taken(f"{channel} of layer {layer}", expected, read)
        self.seen.append((layer, channel))


def check_read(model: HybridModel, memory: Memory, tokens: Int[Tensor, " batch"], written: Written) -> int:
    """Feed one token to each row of a memory, and see that every layer reads what was written; how much was compared.

    Rows must have read as many tokens. The memory is used up: give a copy of one that is needed again.

    Returns:
        how many channels of layers were compared.

    Raises:
        ModelError: a layer reads something else than what was put into its memory.
    """
    witness = _Witness(written, memory.cache, [])
    edited = witness.enter(model)

    def forward() -> None:
        model.reset()
        cache = model.recall(memory)
        model.run.start(memory.lengths + 1)
        model.hf_model(
            input_ids=tokens[:, None],
            position_ids=memory.lengths[:, None],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )

    try:
        with torch.no_grad():
            edited.interleave(forward)
    finally:
        model.reset()
    return len(witness.seen)


def _watch(tracer: Any, model: HybridModel, witness: _Witness) -> None:
    forward: Any = model
    for _ in tracer.iter[:]:
        try:
            _ = forward.inputs
        except OutOfOrderError:
            return
        for layer, part in model.in_order(range(model.n_layers)):
            if part == "attention":
                call = model.attention_call(layer)
                found: list[Any] = [call.key, call.value]
                if "keys" in model.family.cannot:  # made of what the cache keeps, to which this token is added by now
                    found = [read_channel(model, witness.cache, layer, channel) for channel in ATTENTION_CHANNELS]
                for channel, read in zip(ATTENTION_CHANNELS, found, strict=True):
                    witness.check(layer, channel, read[:, :, :-1])
                continue
            mixer = MixerCall.of(model.mixer(layer), model.family, layer)
            mixer.edit_scan(None, None, lambda state, at=layer: witness.check(at, "recurrent", state))
            mixer.edit_output(lambda output: output)
            witness.check(layer, "conv", read_channel(model, witness.cache, layer, "conv"))
        return
