"""Memories in a file: what each sample's prompt left in every layer, by layer, channel and sample id.

A safetensors file with the tensors ``LAYER/CHANNEL/SAMPLE_ID``, each of one row, and, in its metadata, how many tokens
each memory is of. Keys and values are stored without padding.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from safetensors.torch import save_file
from torch import Tensor

from segregation.errors import ModelError
from segregation.models.channels import ATTENTION_CHANNELS, Channel, layers_with, read_channel
from segregation.models.hybrid import HybridModel
from segregation.models.memory import Memory


def tensor_name(layer: int, channel: Channel, sample_id: str) -> str:
    """What a tensor is called in the file.

    >>> tensor_name(2, "keys", "classic@512")
    '2/keys/classic@512'
    """
    return f"{layer}/{channel}/{sample_id}"


def rows_of_memory(model: HybridModel, memory: Memory, sample_ids: Sequence[str]) -> dict[str, Tensor]:
    """Copies of what each row remembers, by ``tensor_name``.

    Raises:
        ModelError: not one id for each row, or an id twice.
    """
    if len(sample_ids) != len(memory.lengths) or len(set(sample_ids)) < len(sample_ids):
        raise ModelError(
            f"a memory of {len(memory.lengths)} rows needs as many different sample ids, got {list(sample_ids)!r:.200}"
        )
    found: dict[str, Tensor] = {}
    for channel in get_args(Channel):
        for layer in layers_with(model, channel):
            whole = read_channel(model, memory.cache, layer, channel, memory.held)
            for row, (name, length) in enumerate(zip(sample_ids, memory.lengths.tolist(), strict=True)):
                if whole is None:
                    continue
                own = whole[row, :, -length:] if channel in ATTENTION_CHANNELS else whole[row]
                found[tensor_name(layer, channel, name)] = own.detach().cpu().clone().contiguous()
    return found


def write_rows(path: str | Path, tensors: Mapping[str, Tensor], lengths: Mapping[str, int]) -> None:
    """Write rows of memories, and how many tokens each sample's is of, to one file."""
    save_file(dict(tensors), str(path), {"lengths": json.dumps(dict(lengths))})


def save_memory(model: HybridModel, memory: Memory, sample_ids: Sequence[str], path: str | Path) -> None:
    """Write a memory to a file from which ``PatchState`` reads; row i of it is of the i-th sample.

    Raises:
        ModelError: not one id for each row, or an id twice.
    """
    tensors = rows_of_memory(model, memory, sample_ids)
    write_rows(path, tensors, dict(zip(sample_ids, memory.lengths.tolist(), strict=True)))
