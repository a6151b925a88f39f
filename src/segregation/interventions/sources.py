"""Files of tensors that a rule reads: which file it is, and whether it is still the same one.

A plan holds no tensors. A rule that needs some names a safetensors file and keeps the SHA-256 of its bytes, so that a
plan with another file is another plan, by its hash too.
"""

import functools
import hashlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from segregation.errors import PlanError

SETTLED = 2 * 10**9
"""Nanoseconds after which a file's time of change tells its next change; clocks of file systems are coarse."""


@dataclass(frozen=True, eq=False)
class Source:
    """What such a file holds.

    Attributes:
        tensors: by name.
        metadata: text by name.
    """

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def fill_source(rule: Any) -> None:
    """Write into a rule that is being made the SHA-256 of its source, where it does not bring one.

    Raises:
        PlanError: a source that is no path, or, where the hash has to be taken, a file that cannot be read.
    """
    name = type(rule).__name__
    if not isinstance(rule.source, str) or not isinstance(rule.sha256, str):
        raise PlanError(f"{name}.source is the path of a file, and sha256 its hash, both text; got {rule.source!r}")
    if rule.source and not rule.sha256:
        object.__setattr__(rule, "sha256", sha256_of(rule.source, name))


def sha256_of(path: str, what: str) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; ``what`` asks for it.

    Raises:
        PlanError: a file that cannot be read.
    """
    try:
        found = os.stat(path)
        if time.time_ns() - found.st_mtime_ns < SETTLED:
            return _sha256.__wrapped__(path, found.st_mtime_ns, found.st_size)
        return _sha256(path, found.st_mtime_ns, found.st_size)
    except OSError as error:
        raise PlanError(f"{what}: the source {path!r} cannot be read ({error.strerror}); name a file") from error


def read_source(rule: Any) -> Source:
    """The tensors of a rule's source, once the file is the one that the rule was made with.

    Raises:
        PlanError: a file that cannot be read, holds no tensors, or has changed.
    """
    name, found = type(rule).__name__, sha256_of(rule.source, type(rule).__name__)
    if found != rule.sha256:
        raise PlanError(
            f"{name}: the source {rule.source!r} has the SHA-256 {found[:12]}..., but the plan was made with "
            f"{rule.sha256[:12]}...; bring that file back, or make the rule again without sha256"
        )
    try:
        return _read(rule.source, rule.sha256)
    except SafetensorError as error:
        raise PlanError(f"{name}: the source {rule.source!r} is no safetensors file ({error})") from error


@functools.lru_cache(maxsize=256)
def _sha256(path: str, _changed: int, _size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.lru_cache(maxsize=8)
def _read(path: str, _sha256: str) -> Source:
    with safe_open(path, framework="pt") as file:
        return Source({name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {})  # noqa: SIM118
