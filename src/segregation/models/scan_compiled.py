"""The scans on a CPU as compiled loops, which read and write each number once: RG-LRU's and Mamba-1's, in fp32.

Mamba-1's loop holds nothing for each token and number of the state. ``compiled_loops.available`` says where they may
run; elsewhere ``scan_linear`` and ``scan_mamba`` do without.
"""

# pyright: reportPossiblyUnboundVariable=false
import functools
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from segregation.models.compiled_loops import F, array, compiled, empty, exp, numba
from segregation.shapes import PositionMask

TOKENS = 64
"""Tokens that are copied at once where numbers are not in fp32 or not side by side, so that copies stay small."""

if numba is not None:

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

    _walk = compiled(_walk_rows, "contract")

    def _update_line(rate, dt, wrote, key, read, state, output):  # type: ignore
        """One number of the state of every channel: its own function, so that arrays are known to be lines."""
        for i in range(state.shape[0]):
            new = exp(rate[i] * dt[i]) * state[i] + wrote[i] * key
            state[i] = new
            output[i] += new * read

    _update = compiled(_update_line, "contract")

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

    _select = compiled(_select_rows, "contract")

    def _make_step(d_state):  # type: ignore
        """The loop for a state of this many numbers a channel, which is what lets it be vectorised."""

        def step_rows(inputs, steps, rates, keys, reads, state, outputs):  # type: ignore
            """One token of every row; the state is updated in place."""
            for row in range(inputs.shape[0]):
                key, read = keys[row], reads[row]
                for i in range(inputs.shape[1]):
                    dt, rate, h = steps[row, i], rates[i], state[row, i]
                    wrote, output = dt * inputs[row, i], F(0.0)
                    for n in range(d_state):
                        new = exp(rate[n] * dt) * h[n] + wrote * key[n]
                        h[n] = new
                        output += new * read[n]
                    outputs[row, i] = output

        return compiled(step_rows, "contract", "reassoc", "nsz")

    _step_of = functools.cache(_make_step)


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
        return empty(*writes.shape)
    last = empty(batch, width).zero_() if initial is None else initial
    mask, parts = _mask(resets, batch, length), []
    ready = all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in (factors, writes))
    for start in range(0, length, length if ready else TOKENS):
        at = (slice(None), slice(start, length if ready else start + TOKENS))
        part = empty(*writes[at].shape)
        _walk(array(factors[at]), array(writes[at]), np.ascontiguousarray(mask[at]), array(last), part.numpy())
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
    state = empty(batch, rates.shape[1], width).zero_()
    if initial is not None:
        state.copy_(initial.mT)
    outputs = empty(batch, length, width).zero_()
    arrays = (array(tensor) for tensor in (inputs, steps, rates.mT, keys, reads))
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
    outputs = empty(*inputs.shape)
    arrays = (array(tensor) for tensor in (inputs, steps, rates, keys, reads))
    step: Any = _step_of(rates.shape[1])
    step(*arrays, state.numpy(), outputs.numpy())
    return outputs


def _mask(resets: PositionMask | None, batch: int, length: int) -> np.ndarray:
    return np.zeros((batch, length), dtype=np.bool_) if resets is None else resets.contiguous().numpy()
