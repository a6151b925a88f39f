"""What loops that numba compiles are made with, and where they may run; each has a form in PyTorch beside it.

numba compiles a loop at its first call (two seconds) and keeps the result in its cache. One thread, fp32, no gradients.
"""

# pyright: reportMissingImports=false
import hashlib
import inspect
import sys
import types
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segregation.models.gradients import transformed

numba: Any
try:
    import numba
except ImportError:  # everything runs in PyTorch
    numba = None

F = np.float32
_LOWEST, _HIGHEST, _LOG2_E, _HALF, _ONE = F(-87.0), F(88.0), F(1.44269504), F(0.5), F(1.0)
_LN2_HIGH, _LN2_LOW = F(0.693359375), F(2.12194440e-4)
_C2, _C3, _C4 = F(5.0000001201e-1), F(1.6666665459e-1), F(4.1665795894e-2)
_C5, _C6, _C7 = F(8.3334519073e-3), F(1.3981999507e-3), F(1.9875691500e-4)
_BIAS, _MANTISSA = np.int32(127), np.int32(23)


def compiled(function: Any, *fastmath: str) -> Any:
    """The function compiled at its first call, kept on disk where numba finds a folder that it may write to.

    numba takes it from there again unless the file of the function has changed. So its name says what else it is made
    of: this file, and numbers and functions of others.
    """
    plain, options = inspect.unwrap(function), {"fastmath": set(fastmath), "error_model": "numpy"}
    try:
        made = made_of(plain) + inspect.getsource(sys.modules[__name__])
        named = types.FunctionType(plain.__code__, plain.__globals__, plain.__name__, closure=plain.__closure__)
        named.__qualname__ = f"{plain.__qualname__}_{hashlib.sha256(made.encode()).hexdigest()[:16]}"
        return numba.njit(named, cache=True, **options)
    except (RuntimeError, OSError):  # numba finds none: a read-only file system, no home; or there is no source
        return numba.njit(plain, **options)


def made_of(function: Any) -> str:
    """The source of a function, of the loops that it calls, and the numbers that they name.

    >>> made_of(_exp_of).splitlines()[-1]
    '_ONE = np.float32(1.0)'
    """
    function = inspect.unwrap(function)
    parts = [inspect.getsource(function)]
    for name, value in sorted(inspect.getclosurevars(function).globals.items()):
        if hasattr(value, "py_func"):
            parts.append(made_of(value.py_func))
        elif isinstance(value, np.generic | int | float):
            parts.append(f"{name} = {value!r}")
    return "\n".join(parts)


def _exp_of(x):  # type: ignore
    """exp(x) to 1.2e-7 of itself between -87 and 88, and as at these beyond: by the polynomial of Cephes' expf.

    A library's exp keeps the loop around it from being vectorised.
    """
    x = _LOWEST if x < _LOWEST else x  # written so that a NaN stays one
    x = _HIGHEST if x > _HIGHEST else x
    n = np.floor(x * _LOG2_E + _HALF)
    r = x - n * _LN2_HIGH + n * _LN2_LOW
    p = ((((_C7 * r + _C6) * r + _C5) * r + _C4) * r + _C3) * r + _C2
    power = np.int32((np.int32(n) + _BIAS) << _MANTISSA)  # the bits of 2^n
    return (p * r * r + r + _ONE) * power.view(F)


exp: Any = None if numba is None else numba.njit(inspect.unwrap(_exp_of), inline="always")
"""``exp`` inside a compiled loop."""


def available(*tensors: Tensor | None) -> bool:
    """Whether these can go through compiled loops: plain tensors on a CPU, with numba, and no ``torch.func``.

    >>> available(torch.ones(1, device="meta"))
    False
    """
    given = [tensor for tensor in tensors if tensor is not None]
    return (numba is not None and not transformed()) and all(
        tensor.device.type == "cpu" and type(tensor) in (Tensor, torch.nn.Parameter) for tensor in given
    )


def array(tensor: Tensor) -> np.ndarray:
    """The numbers of a tensor, in fp32 and side by side.

    >>> array(torch.ones(2, 1, dtype=torch.float64).T)
    array([[1., 1.]], dtype=float32)
    """
    return tensor.detach().float().contiguous().numpy()


def empty(*shape: int) -> Tensor:
    """Room for numbers that a loop fills: in fp32 on the CPU, whatever the defaults of torch are.

    >>> empty(2, 3).shape
    torch.Size([2, 3])
    """
    return torch.empty(shape, dtype=torch.float32, device="cpu")
