"""Where a model's weights go and in which dtype, checked before anything is loaded."""

import importlib.util
from collections.abc import Mapping
from typing import Any

import torch

from segregation.errors import ModelError

DeviceMap = str | int | torch.device | Mapping[str, str | int | torch.device]
"""As in transformers: a device, a way of spreading over GPUs (``"auto"``, ``"balanced"``, ...), or a map of modules."""

SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")
"""Ways of spreading a model over all GPUs there are; without any, it goes to the CPU."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_OFFLOADED = (
    "recurrent mixers read weights of modules that they do not call (conv1d), and accelerate fetches weights from the "
    "CPU or the disk only when a module is called. Take a smaller dtype, quantization=, or more GPUs"
)


def check_dtype(dtype: Any) -> None:
    """Refuse what is neither a dtype that forwards run in, nor the checkpoint's own.

    Raises:
        ModelError: another dtype.

    >>> check_dtype("auto")
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise ModelError(
            f'dtype is one of {", ".join(map(str, DTYPES))}, or "auto" for the checkpoint\'s own, got {dtype!r}; '
            "for 8 and 4 bits name a quantization="
        )


def check_attention(attn_implementation: str) -> None:
    """Refuse the name of an attention that transformers does not know; a kernel of the hub (``owner/name``) may be one.

    Raises:
        ModelError: with the names there are.

    >>> check_attention("sdpa")
    """
    from transformers import AttentionInterface

    known = ["eager", *AttentionInterface().valid_keys()]
    if attn_implementation not in known and "/" not in attn_implementation:
        raise ModelError(
            f'attn_implementation is "sdpa", "eager" or "segregation" (transformers knows {", ".join(sorted(known))}, '
            f"and kernels of the hub by owner/name), got {attn_implementation!r}"
        )


def check_device_map(device_map: DeviceMap) -> None:
    """Refuse a placement that this machine does not have, or that a hybrid cannot run under.

    Raises:
        ModelError: accelerate is missing, a GPU that is not there, the device meta, or weights that are to lie on the
            disk, or on the CPU of a model that is on a GPU.

    >>> check_device_map("cpu")
    """
    if importlib.util.find_spec("accelerate") is None:
        raise ModelError("placing a model needs the package accelerate: pip install accelerate")
    for device in _devices(device_map):
        if device.type == "meta":
            raise ModelError("device_map asks for the device meta, which holds no weights; name one that does")
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ModelError(
                f"device_map asks for {device}, but this machine has {torch.cuda.device_count()} CUDA devices; "
                'use device_map="auto" for what is there, or "cpu"'
            )
    _check_no_offload(device_map.values() if isinstance(device_map, Mapping) else [device_map])


def runs_on(device_map: DeviceMap) -> str:
    """The type of the devices that a placement uses: ``"cpu"``, ``"cuda"``, ...

    >>> runs_on("cpu"), runs_on({"": torch.device("meta")})
    ('cpu', 'meta')
    """
    if isinstance(device_map, str) and device_map in SPREAD:
        return "cuda" if torch.cuda.is_available() else "cpu"
    return next(device.type for device in _devices(device_map))


def placed_on(module: Any) -> str:
    """The type of the devices that a loaded model lies on.

    Raises:
        ModelError: a part that did not fit and was left on the CPU or the disk.
    """
    _check_no_offload((getattr(module, "hf_device_map", None) or {"": module.device}).values())
    return module.device.type


def _check_no_offload(devices: Any) -> None:
    names = {str(device) for device in devices}
    if "disk" in names:
        raise ModelError(f"part of the model would lie on the disk, where a hybrid does not run: {_OFFLOADED}")
    if "cpu" in names and len(names) > 1:
        raise ModelError(
            f"part of the model would lie on the CPU and part on {', '.join(sorted(names - {'cpu'}))}, where a hybrid "
            f"does not run: {_OFFLOADED}"
        )


def _devices(device_map: DeviceMap) -> list[torch.device]:
    """The devices that are named; none for a way of spreading.

    Raises:
        ModelError: a name that is no device.
    """
    if isinstance(device_map, str) and device_map in SPREAD:
        return []
    named = list(device_map.values()) if isinstance(device_map, Mapping) else [device_map]
    try:
        return [torch.device(name) for name in named if name != "disk"]
    except RuntimeError as error:
        raise ModelError(
            f"device_map is a device (cpu, cuda, cuda:1, ...), one of {', '.join(SPREAD)}, or a map from modules to "
            f"devices, got {device_map!r}"
        ) from error
