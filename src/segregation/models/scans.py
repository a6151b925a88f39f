"""The recurrences token by token: faster than transformers' own loops, and on a CPU equal to them bit for bit.

transformers walks over tokens with new tensors and strided reads at every step. Here the same products and sums, in
the same order, run in place on time-major blocks. They are the twins by which the faster forms of ``scan_linear`` and
``scan_mamba`` are audited: ``scan_choice`` puts the one or the other in place.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from segregation.shapes import PositionMask

BLOCK = 2**19
"""Numbers in the expanded inputs of the Mamba scan that are held at once: few enough to stay in a CPU's cache."""


def rg_lru_scan(
    hidden_states: Float[Tensor, "batch pos width"],
    recurrent_gate: Float[Tensor, "batch pos width"],
    reset: Bool[Tensor, "#batch pos 1"],
    recurrent_states: Float[Tensor, "batch width"] | None,
) -> tuple[Float[Tensor, "batch pos width"], Float[Tensor, "batch width"]]:
    """h_t = a_t h_{t-1} + x_t in fp32, with a_t = 0 at a reset; all h_t, and the last one. (arXiv 2402.19427, eq. 4)

    >>> x, a = torch.ones(1, 3, 1), torch.full((1, 3, 1), 0.5)
    >>> rg_lru_scan(x, a, torch.zeros(1, 3, 1, dtype=torch.bool), None)[0].flatten().tolist()
    [1.0, 1.5, 1.75]
    """
    gate = (recurrent_gate * ~reset).float().transpose(0, 1).clone(memory_format=torch.contiguous_format)
    states = hidden_states.float().transpose(0, 1).clone(memory_format=torch.contiguous_format)
    last = torch.zeros_like(states[0]) if recurrent_states is None else recurrent_states.float()
    for a, h in zip(gate.unbind(0), states.unbind(0), strict=True):
        last = h.add_(a.mul_(last))
    outputs = torch.empty_like(hidden_states)  # laid out as the inputs are: what comes next rounds by it in bf16
    return outputs.copy_(states.transpose(0, 1)), last.clone()


def mamba_scan(
    hidden_states: Float[Tensor, "batch width pos"],
    dt: Float[Tensor, "batch width pos"],
    A: Float[Tensor, "width d_state"],
    B: Float[Tensor, "batch d_state pos"],
    C: Float[Tensor, "batch d_state pos"],
    resets: PositionMask | None = None,
    initial: Float[Tensor, "batch width d_state"] | None = None,
) -> tuple[Float[Tensor, "batch width pos"], Float[Tensor, "batch width d_state"]]:
    """h_t = exp(A dt_t) h_{t-1} + dt_t B_t x_t, y_t = h_t C_t; all y_t, and the last h_t. (arXiv 2312.00752, alg. 2)

    At the tokens of ``resets`` the factor of h_{t-1} is zero; h before the first token is ``initial``, or zero.

    >>> one = torch.ones(1, 1, 2)
    >>> outputs, state = mamba_scan(one, one, torch.zeros(1, 1), one, one, initial=torch.ones(1, 1, 1))
    >>> outputs.flatten().tolist(), state.item()
    ([2.0, 3.0], 3.0)
    """
    batch, width, length = hidden_states.shape
    state = torch.zeros(batch, width, A.shape[1], dtype=hidden_states.dtype, device=hidden_states.device)
    state = state if initial is None else initial.to(state)
    steps, keys, inputs = dt.permute(2, 0, 1), B.permute(2, 0, 1).float(), hidden_states.permute(2, 0, 1).float()
    reads = C.transpose(1, 2)
    outputs: list[Tensor] = []
    tokens = max(1, BLOCK // state.numel())
    for start in range(0, length, tokens):
        block = slice(start, start + tokens)
        step = steps[block].contiguous()[..., None]
        decay = (A * step).exp_()
        if resets is not None:
            decay = decay.masked_fill(resets.T[block, :, None, None], 0)
        state_in = (step * keys[block, :, None]).mul_(inputs[block].contiguous()[..., None])
        for t, (a, h) in enumerate(zip(decay.unbind(0), state_in.unbind(0), strict=True), start):
            state = h.add_(a.mul_(state))
            outputs.append(torch.matmul(state.to(hidden_states.dtype), reads[:, t].unsqueeze(-1))[:, :, 0])
        state = state.clone()
    return torch.stack(outputs, dim=-1), state


def mamba2_scan(
    hidden_states: Float[Tensor, "batch pos head d_head"],
    dt: Float[Tensor, "batch pos head"],
    A: Float[Tensor, " head"],
    B: Float[Tensor, "batch pos group d_state"],
    C: Float[Tensor, "batch pos group d_state"],
    initial: Float[Tensor, "batch head d_head d_state"] | None = None,
    resets: PositionMask | None = None,
) -> tuple[Float[Tensor, "batch pos head d_head"], Float[Tensor, "batch head d_head d_state"]]:
    """h_t = exp(A dt_t) h_{t-1} + dt_t x_t B_t^T, y_t = h_t C_t, in fp32; all y_t, and the last h_t. (arXiv 2405.21060)

    Token by token, so for what the scan in chunks cannot do: at the tokens of ``resets`` the factor of h_{t-1} is zero.

    >>> one = torch.ones(1, 2, 1, 1)
    >>> outputs, state = mamba2_scan(one, one[..., 0], torch.zeros(1), one, one)
    >>> outputs.flatten().tolist(), state.item()
    ([1.0, 2.0], 2.0)
    """
    batch, length, heads, d_head = hidden_states.shape
    repeats = heads // B.shape[2]
    keys, reads = (t.float().repeat_interleave(repeats, dim=2) for t in (B, C))
    inputs = hidden_states.float() * dt.float()[..., None]
    decay = torch.exp(A.float() * dt.float())
    if resets is not None:
        decay = decay.masked_fill(resets[..., None], 0)
    state = hidden_states.new_zeros(batch, heads, d_head, B.shape[-1], dtype=torch.float32)
    state = state if initial is None else initial.to(state)
    outputs: list[Tensor] = []
    for t in range(length):
        state = state * decay[:, t, :, None, None] + inputs[:, t, ..., None] * keys[:, t, :, None]
        outputs.append(torch.matmul(state, reads[:, t, ..., None])[..., 0])
    return torch.stack(outputs, dim=1), state


def selective_scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    resets: PositionMask | None = None,
    initial: Float[Tensor, "batch width d_state"] | None = None,
    **options: Any,
) -> Any:
    """``mamba_scan`` with the arguments and results of transformers' ``mamba_selective_scan``."""
    if options.get("delta_bias") is not None:
        dt = dt + options["delta_bias"].to(dt.dtype)[..., None]
    if options.get("delta_softplus"):
        dt = nn.functional.softplus(dt)
    output, state = mamba_scan(hidden_states, dt, A, B, C, resets, initial)
    if options.get("D") is not None:
        output = output + hidden_states * options["D"][None, :, None]
    if options.get("z") is not None:
        output = output * nn.functional.silu(options["z"])
    return (output, state) if options.get("return_last_state") else output


def mamba2_scan_from(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    resets: PositionMask | None = None,
    passed: PositionMask | None = None,
    **options: Any,
) -> Any:
    """``mamba2_scan`` with the arguments and results of transformers' ``mamba2_chunk_scan``.

    At the tokens of ``passed`` dt is zero, whatever its limits, so that the state passes them unchanged.
    """
    if options.get("dt_bias") is not None:
        dt = dt + options["dt_bias"].to(dt.dtype)
    if options.get("dt_softplus"):
        dt = nn.functional.softplus(dt)
    dt = dt.clamp(*options.get("dt_limit", (0.0, float("inf"))))
    if passed is not None:
        dt = dt.masked_fill(passed[..., None], 0)
    output, state = mamba2_scan(hidden_states, dt, A, B, C, options.get("initial_states"), resets)
    if options.get("D") is not None:
        output = output + hidden_states.float() * options["D"][..., None]
    return (output, state) if options.get("return_final_states") else output
