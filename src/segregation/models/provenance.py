"""What a model's numbers depend on besides its plan: versions, kernels, and the hash of its weights."""

import hashlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

_VERSIONS = (
    *("hybrid-segregation", "torch", "transformers", "nnsight", "safetensors", "mamba-ssm", "causal-conv1d"),
    *("flash-linear-attention", "kernels", "bitsandbytes", "torchao", "accelerate", "numba"),
)
_KERNELS: Mapping[str, Mapping[str, str]] = {
    "rg_lru": {},
    "mamba": {"mamba_ssm": "mamba-ssm", "causal_conv1d": "causal-conv1d"},
    "mamba2": {"mamba_ssm": "mamba-ssm", "causal_conv1d": "causal-conv1d"},
    "gated_delta": {"fla": "flash-linear-attention", "causal_conv1d": "causal-conv1d"},
    "kda": {"fla": "flash-linear-attention", "causal_conv1d": "causal-conv1d"},
    "lightning": {},
    "short_conv": {"causal_conv1d": "causal-conv1d"},
}
"""The compiled packages that transformers looks for, by the recurrence they serve: module, and name of the package."""


def versions() -> dict[str, str]:
    """Versions of the packages that decide what a run computes, those that are installed."""
    found = {}
    for name in _VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def kernels(device: str, scan: str | None) -> dict[str, str]:
    """Which implementation the recurrence runs on, per kernel: a compiled package, or PyTorch.

    Compiled kernels need a CUDA device; transformers picks them up where they are installed. RG-LRU and lightning
    attention have none. Which form RG-LRU and Mamba-1 take without them is ``description["scans"]``: the fast one is
    compiled by numba on a CPU, where that stands among the versions.

    >>> kernels("cpu", "rg_lru"), kernels("cpu", "mamba2")["mamba-ssm"], kernels("cpu", None)
    ({'rg_lru': 'torch'}, 'torch', {})
    """
    if scan is None:
        return {}
    return {
        package: f"{package} {importlib.metadata.version(package)}"
        if device == "cuda" and importlib.util.find_spec(module) is not None
        else "torch"
        for module, package in _KERNELS[scan].items()
    } or {scan: "torch"}


def weights_sha256(folder: Path) -> str:
    """SHA-256 over the weight files of a folder, in the order of their names.

    Files in the hub's cache are links to blobs named by their SHA-256; that digest is taken instead of reading them.
    """
    digests = [_file_sha256(path) for path in sorted(folder.glob("*.safetensors"))]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _file_sha256(path: Path) -> str:
    blob = path.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", blob):
        return blob
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unread_tensors(folder: Path, ignored: Iterable[str]) -> list[str]:
    """Names of the tensors in a folder's weight files that its model class says it does not read (regular expressions).

    Heads for predicting several tokens (``mtp``) and vision towers are such.
    """
    from safetensors import safe_open

    patterns = [re.compile(pattern) for pattern in ignored]
    names: list[str] = []
    for path in sorted(folder.glob("*.safetensors")) if patterns else ():
        with safe_open(path, framework="pt") as file:
            names += [name for name in file.keys() if any(pattern.search(name) for pattern in patterns)]  # noqa: SIM118
    return sorted(names)
