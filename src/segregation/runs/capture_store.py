"""Where captures are kept: one safetensors file a row, and an index whose lines join them to the records beside it."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from segregation.errors import RecordError
from segregation.runs.record import Record
from segregation.runs.store import read_records

INDEX = "index.jsonl"
FILES = "captures"


@dataclass(frozen=True)
class Captured:
    """One line of an index: what was captured of one sample under one plan, and where it is.

    Attributes:
        key: of the record.
        sample_id: the sample's id.
        plan_hash: the plan's hash.
        file: the safetensors file, from the run folder.
        tensors: data type and shape of every tensor, by name.
        heads: the heads of each layer, in the order of the ``head`` axes.
        spans: the sample's spans, as the token positions of each occurrence.
        new_tokens: the text of each new token.
        bytes: of all tensors.
    """

    key: str
    sample_id: str
    plan_hash: str
    file: str
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    heads: Mapping[int, tuple[int, ...]]
    spans: Mapping[str, tuple[tuple[int, ...], ...]]
    new_tokens: tuple[str, ...]
    bytes: int

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that something was captured of."""
        return tuple(self.heads)

    @classmethod
    def of(cls, record: Record, tensors: Mapping[str, Tensor], **known: Any) -> "Captured":
        """The line of a record's tensors, with the ``heads``, ``spans`` and ``new_tokens`` known of it."""
        return cls(
            key=record.key,
            sample_id=record.sample_id,
            plan_hash=record.plan_hash,
            file=f"{FILES}/{hashlib.sha256(record.key.encode()).hexdigest()[:20]}.safetensors",
            tensors={name: (_dtype(tensor), tuple(tensor.shape)) for name, tensor in tensors.items()},
            bytes=sum(tensor.nbytes for tensor in tensors.values()),
            **known,
        )

    @classmethod
    def from_json(cls, line: str) -> "Captured":
        """Read a line of an index.

        Raises:
            RecordError: not such a line.
        """
        try:
            plain = json.loads(line)
            plain["tensors"] = {name: (dtype, tuple(shape)) for name, (dtype, shape) in plain["tensors"].items()}
            plain["heads"] = {int(layer): tuple(heads) for layer, heads in plain["heads"].items()}
            plain["spans"] = {name: tuple(map(tuple, parts)) for name, parts in plain["spans"].items()}
            plain["new_tokens"] = tuple(plain["new_tokens"])
            return cls(**plain)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RecordError(f"not a line of an index of captures ({error}): {line:.80}") from error


def write_capture(folder: Path, captured: Captured, tensors: Mapping[str, Tensor]) -> None:
    """Write a row's tensors, then its line; whatever a killed run left of either is written over.

    The row counts as done once its record is written too, which is for the caller to do, last.
    """
    file = folder / captured.file
    file.parent.mkdir(exist_ok=True)
    draft = file.with_suffix(".part")
    save_file(dict(tensors), draft, metadata={"key": captured.key})
    draft.replace(file)
    index = folder / INDEX
    if index.exists() and (content := index.read_bytes()) and not content.endswith(b"\n"):
        os.truncate(index, content.rfind(b"\n") + 1)
    with index.open("ab") as out:
        out.write((json.dumps(asdict(captured)) + "\n").encode())
        out.flush()
        os.fsync(out.fileno())


def captures(folder: Path | str) -> Iterator[tuple[Record, Captured]]:
    """The records of a capture with what was captured of each, in the order they were written.

    Raises:
        RecordError: no index of captures, or a line of it, or a record, that cannot be read.
    """
    index = read_index(folder)
    for record in read_records(folder):
        if record.key in index:
            yield record, index[record.key]


def read_capture(folder: Path | str, key: str) -> dict[str, Tensor]:
    """The tensors captured under a record's key.

    ``"pattern.layer2"`` and such are what was asked for; ``"positions"`` and ``"phases"`` (0 ``PREFILL``, 1 ``LAST``, 2
    ``DECODE``) belong to the ``dest`` axes, and ``"tokens"`` are the token ids along the ``src`` axes.

    Raises:
        RecordError: no index of captures, no such key in it, or a file that is not what the index says.
    """
    index = read_index(folder)
    if key not in index:
        raise RecordError(
            f"{folder} has no capture under the key {key!r:.200}; captures(folder) gives the records it has"
        )
    captured, file = index[key], Path(folder) / index[key].file
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
            owner = (opened.metadata() or {}).get("key")
    except (OSError, SafetensorError) as error:
        raise RecordError(f"{file} cannot be read ({error}); restore it, or capture into a new folder") from error
    found = {name: (_dtype(tensor), tuple(tensor.shape)) for name, tensor in tensors.items()}
    if owner != key or found != dict(captured.tensors):
        raise RecordError(
            f"{file} is not what the index says: it holds {found} of {owner!r}, and should hold "
            f"{dict(captured.tensors)} of {key!r}; restore it, or capture into a new folder"
        )
    return tensors


def has_captures(folder: Path | str) -> bool:
    """Whether a folder holds captures."""
    return (Path(folder) / INDEX).is_file()


def read_index(folder: Path | str) -> dict[str, Captured]:
    """The lines of an index by key; a last line without an end, which a killed run leaves, is passed over.

    Raises:
        RecordError: no index, or a line that cannot be read.
    """
    if not has_captures(folder):
        raise RecordError(f"there are no captures in {folder}: it has no {INDEX}; name a folder that capture() filled")
    *lines, _ = (Path(folder) / INDEX).read_bytes().split(b"\n")
    found: dict[str, Captured] = {}
    for number, line in enumerate(lines, start=1):
        try:
            captured = Captured.from_json(line.decode())
        except (RecordError, UnicodeDecodeError) as error:
            raise RecordError(f"{Path(folder) / INDEX}, line {number}: {error}") from error
        found[captured.key] = captured
    return found


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix(f"{torch.__name__}.")
