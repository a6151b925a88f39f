"""Mamba-1's scan, from any state, in fp32: faster than transformers' one token at a time, and as exact.

On a CPU a compiled loop does it (``scan_compiled``). Where there is none, on CUDA, and where gradients are needed, it
runs in blocks of tokens with PyTorch: what is made for each token and number of the state lives for one block only,
which stays in a CPU's cache; steps, skip and gate are computed there as well.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import silu, softplus

from segregation.models import compiled_loops, scan_compiled
from segregation.models.gradients import needs_grad
from segregation.models.scan_linear import BLOCK, linear_scan, scan_in_place
from segregation.shapes import PositionMask

CUDA_BLOCK = 2**24
"""Numbers that are scanned at once on a CUDA device (64 MiB in fp32): enough to fill it."""


TOKENS = 8
"""A block has no fewer tokens than this: the read-out of fewer at once is slow."""


def fast_selective_scan(
    hidden_states: Float[Tensor, "batch width pos"],
    dt: Float[Tensor, "batch width pos"],
    A: Float[Tensor, "width d_state"],
    B: Float[Tensor, "batch d_state pos"],
    C: Float[Tensor, "batch d_state pos"],
    resets: PositionMask | None = None,
    initial: Float[Tensor, "batch width d_state"] | None = None,
    **options: Any,
) -> Any:
    """``selective_scan_in_blocks``, by a compiled loop where that can be.

    >>> one = torch.ones(1, 1, 2)
    >>> fast_selective_scan(one, one, torch.zeros(1, 1), one, one, initial=torch.ones(1, 1, 1)).tolist()
    [[[2.0, 3.0]]]
    """
    tensors = (hidden_states, dt, A, B, C)
    bias = options.get("delta_bias")
    if not compiled_loops.available(*tensors, initial, bias) or needs_grad(*tensors, initial, bias):
        return selective_scan_in_blocks(*tensors, resets, initial, **options)
    x, step = hidden_states.mT.float(), _step(dt.mT.float(), options)
    output, state = scan_compiled.selective_scan(x, step, A.float(), B.mT.float(), C.mT.float(), resets, initial)
    gate = None if options.get("z") is None else options["z"].mT
    output = _read_out(output, x, options.get("D"), gate).to(hidden_states.dtype).mT
    return (output, state) if options.get("return_last_state") else output


def fast_selective_step(
    update: Callable[..., Any],
    state: Float[Tensor, "batch width d_state"],
    hidden_states: Float[Tensor, "batch width"],
    dt: Float[Tensor, "batch width"],
    A: Float[Tensor, "width d_state"],
    B: Float[Tensor, "batch d_state"],
    C: Float[Tensor, "batch d_state"],
    D: Float[Tensor, " width"] | None = None,
    **options: Any,
) -> Float[Tensor, "batch width"]:
    """One token after a state, which is updated in place: by a compiled loop where that can be, else by ``update``.

    The arguments and the result are those of transformers' ``mamba_selective_state_update``, which is ``update``.
    """
    tensors, bias = (hidden_states, dt, A, B, C), options.get("dt_bias")
    in_fp32 = all(tensor.dtype == torch.float32 for tensor in (state, *tensors)) and state.is_contiguous()
    if not in_fp32 or not compiled_loops.available(state, *tensors, bias) or needs_grad(state, *tensors, bias):
        return update(state, *tensors, D, **options)  # type: ignore[no-any-return]
    names = {"delta_bias": bias, "delta_softplus": options.get("dt_softplus")}
    output = scan_compiled.selective_step(hidden_states, _step(dt, names), A, B, C, state)
    return _read_out(output, hidden_states, D, options.get("z"))


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
        step, x = _step(steps[block].float(), options), inputs[block].float()
        decay = (A.float() * step[..., None]).exp_()
        if resets is not None:
            decay = decay.masked_fill(resets.T[block, :, None, None], 0)
        states, state = _scan(decay, (step * x)[..., None] * keys[block, :, None].float(), state)
        output = torch.matmul(reads[block, :, None].float(), states.mT)[:, :, 0]
        output = _read_out(output, x, options.get("D"), None if gate is None else gate[block])
        outputs.append(output.to(hidden_states.dtype))
    output = torch.cat(outputs).permute(1, 2, 0)
    return (output, state) if options.get("return_last_state") else output


def _step(step: Tensor, options: Any) -> Tensor:
    if options.get("delta_bias") is not None:
        step = step + options["delta_bias"].float()
    return softplus(step) if options.get("delta_softplus") else step


def _read_out(output: Tensor, x: Tensor, skip: Tensor | None, gate: Tensor | None) -> Tensor:
    if skip is not None:
        output = output + x * skip.float()
    return output if gate is None else output * silu(gate.float())


def _scan(decay: Tensor, writes: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    if not needs_grad(decay, writes, state) and decay.device.type == "cpu":
        return writes, scan_in_place(decay, writes, state).clone()
    states = linear_scan(decay.flatten(1)[None], writes.flatten(1)[None], None, state.flatten()[None])
    states = states.view_as(writes)
    return states, states[-1].clone()
