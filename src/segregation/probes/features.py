"""What probes read: recurrent and convolution states, and residuals, some tokens after the needle of each prompt."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from nnsight import save
from torch import Tensor

from segregation.errors import SampleError
from segregation.models.channels import read_channel
from segregation.models.hybrid import HybridModel
from segregation.probes.linear import hashed
from segregation.prompts.sample import Sample
from segregation.runs.fork import Fork, fork
from segregation.runs.generate import encode_checked
from segregation.shapes import Tokens

Kind = Literal["recurrent", "conv", "residual"]
"""Recurrent state, buffer of the short convolution, and a layer's output."""

WIDTH = 2**15
"""Numbers of a feature, at most; wider ones are hashed."""
ROWS = 256
"""Prompts read together when no batch size is given."""


@dataclass(frozen=True)
class Feature:
    """Where something is read.

    Attributes:
        kind: what is read.
        layer: the layer, counted from 0.
        distance: tokens since the needle's last one, which has distance 0.
    """

    kind: Kind
    layer: int
    distance: int


def feature_layers(model: HybridModel, kind: Kind) -> tuple[int, ...]:
    """The layers that have such a feature: the recurrent ones states, every one a residual."""
    return tuple(range(model.n_layers)) if kind == "residual" else model.recurrent_layers


def needle_features(
    model: HybridModel, samples: Sequence[Sample], distances: Sequence[int], *, batch_size: int | None = None
) -> Iterator[tuple[Feature, Float[np.ndarray, "sample width"]]]:
    """Every feature that the model has, in every layer, distance by distance; a row for each sample.

    States are those after the token at that distance, residuals the outputs of whole layers at it. The prompts are read
    once, and one distance is held at a time. Features of more than ``WIDTH`` numbers are hashed to as many (``hashed``,
    with the layer as its seed).

    Args:
        model: the model; plans that it carries act.
        samples: prompts of one length with the same ``needle_end`` in their metadata, as ``ProbeSamples`` makes them.
        distances: tokens since the needle's end.
        batch_size: prompts read together.

    Raises:
        SampleError: prompts of several lengths or with the needle in several places, or a distance outside of them.
        ModelError: a model whose checks switched forks off.
    """
    tokens, end = aligned(model, samples)
    wanted = sorted(set(distances))
    if not wanted or wanted[0] < 0 or end + wanted[-1] >= tokens.shape[1]:
        raise SampleError(
            f"distances are counted from the needle's end, token {end} of {tokens.shape[1]}, and lie in 0.."
            f"{tokens.shape[1] - 1 - end}, got {list(distances)}"
        )
    size = (batch_size or ROWS) if model.can_batch else 1
    parts = [slice(start, start + size) for start in range(0, len(samples), size)]
    readings = [fork(model, samples[part], end + wanted[0]) for part in parts]
    return _walk(readings, [tokens[part] for part in parts], end, wanted)


def aligned(model: HybridModel, samples: Sequence[Sample]) -> tuple[Tokens, int]:
    """The token ids of prompts of one length, and the position of the needle's last token in all of them.

    Raises:
        SampleError: no samples, prompts of several lengths, or with the needle in several places.
    """
    prompts = [encode_checked(model, sample, 0) for sample in samples]
    ends, lengths = {sample.metadata.get("needle_end") for sample in samples}, set(map(len, prompts))
    if len(ends) != 1 or len(lengths) != 1 or not isinstance(end := ends.pop(), int):
        raise SampleError(
            f"prompts are read side by side, so they need one length, got {sorted(lengths)}, and one needle_end in "
            "their metadata; ProbeSamples makes such prompts"
        )
    return torch.tensor(prompts, device=model.device), end


def _walk(
    readings: list[Fork], tokens: Sequence[Tensor], end: int, distances: Sequence[int]
) -> Iterator[tuple[Feature, Float[np.ndarray, "sample width"]]]:
    for distance in distances:
        found: dict[Feature, list[Float[np.ndarray, "part width"]]] = {}
        for number, part in enumerate(tokens):
            readings[number] = _read_to(readings[number], part, end + distance)
            token = part[:, end + distance, None]
            outputs = list(_outputs(readings[number], token))
            readings[number] = readings[number].read_on(token)
            for (kind, layer), value in [*outputs, *_states(readings[number])]:
                found.setdefault(Feature(kind, layer, distance), []).append(value.float().cpu().numpy())
        while found:  # a part is let go once it has been given out
            feature = next(iter(found))
            yield feature, hashed(np.concatenate(found.pop(feature)), WIDTH, seed=feature.layer)


def _read_to(reading: Fork, tokens: Tokens, position: int) -> Fork:
    """The reading up to a position, not included."""
    start = reading.read[0]
    return reading.read_on(tokens[:, start:position]) if start < position else reading


def _states(reading: Fork) -> Iterator[tuple[tuple[Kind, int], Float[Tensor, "batch width"]]]:
    kinds: tuple[Literal["recurrent", "conv"], ...] = ("recurrent", "conv")
    for kind, layer in itertools.product(kinds, reading.model.recurrent_layers):
        found = read_channel(reading.model, reading.memory.cache, layer, kind, reading.memory.held)
        if found is not None:
            yield (kind, layer), found.flatten(1)


def _outputs(reading: Fork, token: Tokens) -> Iterator[tuple[tuple[Kind, int], Float[Tensor, "batch d_model"]]]:
    """What every layer puts out at one more token."""
    model = reading.model
    memory = reading.expand(range(len(token))).memory  # a copy, which the forward may change
    cache, layers = model.recall(memory), model.get(model.family.layers)
    inputs: dict[str, Any] = {
        "position_ids": memory.lengths[:, None],
        "past_key_values": cache,
        "use_cache": True,
        "prompt_lengths": [len(prompt) for prompt in reading.prompts],
        "spans": reading.spans,
    }
    with torch.no_grad(), model.trace(token, **inputs):
        outputs = save([layers[layer].output for layer in range(model.n_layers)])
    model.reset()
    for layer, output in enumerate(outputs):
        yield ("residual", layer), (output[0] if isinstance(output, tuple) else output)[:, -1]
