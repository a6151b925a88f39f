"""Mamba-1's scan in blocks of tokens, from any state, in fp32: faster than one token at a time, and as exact.

What is made for each token and number of the state lives for one block only, which stays in a CPU's cache; steps, skip
and gate are computed there as well. On CUDA, and where gradients are needed, a block is one call of ``linear_scan``.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import silu, softplus

from segregation.models.scan_linear import BLOCK, linear_scan, scan_in_place
from segregation.shapes import PositionMask

CUDA_BLOCK = 2**24
"""Numbers that are scanned at once on a CUDA device (64 MiB in fp32): enough to fill it."""


TOKENS = 8
"""A block has no fewer tokens than this: the read-out of fewer at once is slow."""


def selective_scan_in_blocks(
    hidden_states: Float[Tensor, "batch width pos"],
    dt: Float[Tensor, "batch width pos"],
    A: Float[Tensor, "width d_state"],
    B: Float[Tensor, "batch d_state pos"],
    C: Float[Tensor, "batch d_state pos"],
    resets: PositionMask | None = None,
    initial: Float[Tensor, "batch width d_state"] | None = None,
    **options: Any,
) -> Any:
    """h_t = exp(A dt_t) h_{t-1} + dt_t B_t x_t, y_t = h_t C_t, as ``scans.selective_scan``. (arXiv 2312.00752, alg. 2)

    The options and results are those of transformers' ``mamba_selective_scan``: ``D``, ``z``, ``delta_bias``,
    ``delta_softplus`` and ``return_last_state``.

    >>> one = torch.ones(1, 1, 2)
    >>> selective_scan_in_blocks(one, one, torch.zeros(1, 1), one, one, initial=torch.ones(1, 1, 1)).tolist()
    [[[2.0, 3.0]]]
    """
    batch, width, length = hidden_states.shape
    inputs, steps, keys, reads = (t.permute(2, 0, 1) for t in (hidden_states, dt, B, C))
    gate = None if options.get("z") is None else options["z"].permute(2, 0, 1)
    state = torch.zeros(batch, width, A.shape[1], device=hidden_states.device)
    tokens = max(TOKENS, (BLOCK if hidden_states.device.type == "cpu" else CUDA_BLOCK) // state.numel())
    state = state if initial is None else initial.to(state)
    outputs: list[Tensor] = []
    for start in range(0, length, tokens):
        block = slice(start, start + tokens)
        step, x = steps[block].float(), inputs[block].float()
        if options.get("delta_bias") is not None:
            step = step + options["delta_bias"].float()
        if options.get("delta_softplus"):
            step = softplus(step)
        decay = (A.float() * step[..., None]).exp_()
        if resets is not None:
            decay = decay.masked_fill(resets.T[block, :, None, None], 0)
        states, state = _scan(decay, (step * x)[..., None] * keys[block, :, None].float(), state)
        output = torch.matmul(reads[block, :, None].float(), states.mT)[:, :, 0]
        if options.get("D") is not None:
            output = output + x * options["D"].float()
        if gate is not None:
            output = output * silu(gate[block].float())
        outputs.append(output.to(hidden_states.dtype))
    output = torch.cat(outputs).permute(1, 2, 0)
    return (output, state) if options.get("return_last_state") else output


def _scan(decay: Tensor, writes: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    needs_grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (decay, writes, state))
    if not needs_grad and decay.device.type == "cpu":
        return writes, scan_in_place(decay, writes, state).clone()
    states = linear_scan(decay.flatten(1)[None], writes.flatten(1)[None], None, state.flatten()[None])
    states = states.view_as(writes)
    return states, states[-1].clone()
