"""The scans on a CPU as compiled loops, which read and write each number once: RG-LRU's and Mamba-1's, in fp32.

numba compiles them on the first call and keeps the result in its cache. One thread, no gradients. Mamba-1's loop holds
nothing for each token and number of the state. Without numba, ``scan_linear`` and ``scan_mamba`` run in PyTorch.
"""

# pyright: reportMissingImports=false, reportPossiblyUnboundVariable=false
import functools
import inspect
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from segregation.models.gradients import transformed
from segregation.shapes import PositionMask

numba: Any
try:
    import numba
except ImportError:  # the scans run in PyTorch
    numba = None

TOKENS = 64
"""Tokens that are copied at once where numbers are not in fp32 or not side by side, so that copies stay small."""

if numba is not None:
    F = np.float32
    _LOWEST, _HIGHEST, _LOG2_E, _HALF, _ONE, _ZERO = F(-87.0), F(88.0), F(1.44269504), F(0.5), F(1.0), F(0.0)
    _LN2_HIGH, _LN2_LOW = F(0.693359375), F(2.12194440e-4)
    _C2, _C3, _C4 = F(5.0000001201e-1), F(1.6666665459e-1), F(4.1665795894e-2)
    _C5, _C6, _C7 = F(8.3334519073e-3), F(1.3981999507e-3), F(1.9875691500e-4)
    _BIAS, _MANTISSA = np.int32(127), np.int32(23)

    def _compiled(function: Any, *fastmath: str) -> Any:
        """The function compiled at its first call, kept on disk where numba finds a folder that it may write to."""
        options = {"fastmath": set(fastmath), "error_model": "numpy"}
        try:
            return numba.njit(inspect.unwrap(function), cache=True, **options)
        except RuntimeError:  # it finds none: a read-only file system, no home
            return numba.njit(inspect.unwrap(function), **options)

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

    _exp = numba.njit(inspect.unwrap(_exp_of), inline="always")

    def _walk_rows(factors, writes, resets, initial, states):  # type: ignore
        """h_t = a_t h_{t-1} + x_t, row by row."""
        zero = np.zeros_like(initial[0])
        for row in range(factors.shape[0]):
            last = initial[row]
            for t in range(factors.shape[1]):
                if resets[row, t]:
                    last = zero
                a, x, h = factors[row, t], writes[row, t], states[row, t]
                for i in range(h.shape[0]):
                    h[i] = a[i] * last[i] + x[i]
                last = h

    _walk = _compiled(_walk_rows, "contract")

    def _update_line(rate, dt, wrote, key, read, state, output):  # type: ignore
        """One number of the state of every channel: its own function, so that arrays are known to be lines."""
        for i in range(state.shape[0]):
            new = _exp(rate[i] * dt[i]) * state[i] + wrote[i] * key
            state[i] = new
            output[i] += new * read

    _update = _compiled(_update_line, "contract")

    def _select_rows(inputs, steps, rates, keys, reads, resets, state, outputs):  # type: ignore
        """h_t = exp(A dt_t) h_{t-1} + dt_t B_t x_t, y_t = h_t C_t, row by row; the state is used up."""
        wrote = np.empty_like(inputs[0, 0])
        for row in range(inputs.shape[0]):
            for t in range(inputs.shape[1]):
                if resets[row, t]:
                    state[row] = 0
                dt, x, y = steps[row, t], inputs[row, t], outputs[row, t]
                for i in range(wrote.shape[0]):
                    wrote[i] = dt[i] * x[i]
                for n in range(rates.shape[0]):
                    _update(rates[n], dt, wrote, keys[row, t, n], reads[row, t, n], state[row, n], y)

    _select = _compiled(_select_rows, "contract")

    def _make_step(d_state):  # type: ignore
        """The loop for a state of this many numbers a channel, which is what lets it be vectorised."""

        def step_rows(inputs, steps, rates, keys, reads, state, outputs):  # type: ignore
            """One token of every row; the state is updated in place."""
            for row in range(inputs.shape[0]):
                key, read = keys[row], reads[row]
                for i in range(inputs.shape[1]):
                    dt, rate, h = steps[row, i], rates[i], state[row, i]
                    wrote, output = dt * inputs[row, i], _ZERO
                    for n in range(d_state):
                        new = _exp(rate[n] * dt) * h[n] + wrote * key[n]
                        h[n] = new
                        output += new * read[n]
                    outputs[row, i] = output

        return _compiled(step_rows, "contract", "reassoc", "nsz")

    _step_of = functools.cache(_make_step)


def available(*tensors: Tensor | None) -> bool:
    """Whether these can go through the compiled loops: plain tensors on a CPU, with numba, and no ``torch.func``.

    >>> available(torch.ones(1, device="meta"))
    False
    """
    given = [tensor for tensor in tensors if tensor is not None]
    return (numba is not None and not transformed()) and all(
        tensor.device.type == "cpu" and type(tensor) in (Tensor, torch.nn.Parameter) for tensor in given
    )


def linear_scan(
    factors: Float[Tensor, "batch pos width"],
    writes: Float[Tensor, "batch pos width"],
    resets: PositionMask | None = None,
    initial: Float[Tensor, "batch width"] | None = None,
) -> Float[Tensor, "batch pos width"]:
    """h_t = a_t h_{t-1} + x_t in fp32, as ``scan_linear.linear_scan`` without gradients.

    >>> x, reset = torch.ones(1, 4, 1), torch.tensor([[False, False, False, True]])
    >>> linear_scan(torch.full((1, 4, 1), 0.5), x, reset, torch.ones(1, 1)).flatten().tolist()
    [1.5, 1.75, 1.875, 1.0]
    """
    batch, length, width = writes.shape
    if not length:
        return torch.empty(writes.shape)
    last = torch.zeros(batch, width) if initial is None else initial
    mask, parts = _mask(resets, batch, length), []
    ready = all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in (factors, writes))
    for start in range(0, length, length if ready else TOKENS):
        at = (slice(None), slice(start, length if ready else start + TOKENS))
        part = torch.empty(writes[at].shape)
        _walk(_array(factors[at]), _array(writes[at]), np.ascontiguousarray(mask[at]), _array(last), part.numpy())
        last = part[:, -1]
        parts.append(part)
    return parts[0] if ready else torch.cat(parts, dim=1)


def selective_scan(
    inputs: Float[Tensor, "batch pos width"],
    steps: Float[Tensor, "batch pos width"],
    rates: Float[Tensor, "width d_state"],
    keys: Float[Tensor, "batch pos d_state"],
    reads: Float[Tensor, "batch pos d_state"],
    resets: PositionMask | None = None,
    initial: Float[Tensor, "batch width d_state"] | None = None,
) -> tuple[Float[Tensor, "batch pos width"], Float[Tensor, "batch width d_state"]]:
    """h_t = exp(A dt_t) h_{t-1} + dt_t B_t x_t, y_t = h_t C_t; all y_t, and the last h_t. (arXiv 2312.00752, alg. 2)

    >>> one = torch.ones(1, 2, 1)
    >>> outputs, state = selective_scan(one, one, torch.zeros(1, 1), one, one, initial=torch.ones(1, 1, 1))
    >>> outputs.flatten().tolist(), state.item()
    ([2.0, 3.0], 3.0)
    """
    batch, length, width = inputs.shape
    state = torch.zeros(batch, rates.shape[1], width)
    if initial is not None:
        state.copy_(initial.mT)
    outputs = torch.zeros(batch, length, width)
    arrays = (_array(tensor) for tensor in (inputs, steps, rates.mT, keys, reads))
    _select(*arrays, _mask(resets, batch, length), state.numpy(), outputs.numpy())
    return outputs, state.mT.contiguous()


def selective_step(
    inputs: Float[Tensor, "batch width"],
    steps: Float[Tensor, "batch width"],
    rates: Float[Tensor, "width d_state"],
    keys: Float[Tensor, "batch d_state"],
    reads: Float[Tensor, "batch d_state"],
    state: Float[Tensor, "batch width d_state"],
) -> Float[Tensor, "batch width"]:
    """One token of ``selective_scan``: what is read, and the state, contiguous and in fp32, updated in place.

    >>> one, state = torch.ones(1, 1), torch.ones(1, 1, 1)
    >>> selective_step(one, one, torch.zeros(1, 1), one, one, state).item(), state.item()
    (2.0, 2.0)
    """
    outputs = torch.empty(inputs.shape)
    arrays = (_array(tensor) for tensor in (inputs, steps, rates, keys, reads))
    step: Any = _step_of(rates.shape[1])
    step(*arrays, state.numpy(), outputs.numpy())
    return outputs


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().contiguous().numpy()


def _mask(resets: PositionMask | None, batch: int, length: int) -> np.ndarray:
    return np.zeros((batch, length), dtype=np.bool_) if resets is None else resets.contiguous().numpy()
