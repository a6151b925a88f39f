"""h_t = a_t h_{t-1} + x_t for all t at once, in fp32, with gradients: a compiled loop on a CPU, Triton on CUDA.

Where there is neither, in two levels with PyTorch: the tokens are cut into about sqrt(2 T) pieces; all pieces walk side
by side from zero, and keep the product of their factors; then each piece gets the state before it, times that product.
Only products of a are formed, so that a may be 0, and a sequence may start anew on the way. On a CPU one step a token
is faster where a state is wide, and is taken there.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from segregation.models import compiled_loops, scan_compiled, scan_triton
from segregation.models.gradients import needs_grad
from segregation.shapes import PositionMask

BLOCK = 2**18
"""Numbers that are scanned at once on a CPU: few enough to stay in its cache (1 MiB in fp32)."""

WIDE = 1536
"""On a CPU states of more numbers than this, all rows counted, are walked one step a token; so are under 32 tokens."""


def linear_scan(
    factors: Float[Tensor, "batch pos width"],
    writes: Float[Tensor, "batch pos width"],
    resets: PositionMask | None = None,
    initial: Float[Tensor, "batch width"] | None = None,
) -> Float[Tensor, "batch pos width"]:
    """h_t = a_t h_{t-1} + x_t in fp32, with a_t = 0 at the tokens of ``resets``, from ``initial`` (or zero) on.

    Gradients flow to factors, writes and the initial state, once.

    >>> a, x = torch.full((1, 4, 1), 0.5), torch.ones(1, 4, 1)
    >>> linear_scan(a, x, torch.tensor([[False, False, False, True]]), torch.ones(1, 1)).flatten().tolist()
    [1.5, 1.75, 1.875, 1.0]
    """
    if needs_grad(factors, writes, initial):
        return _LinearScan.apply(factors, writes, resets, initial)  # type: ignore[no-any-return]
    return _states(factors, writes, resets, initial)


def scan_in_place(
    factors: Float[Tensor, "pos ..."], states: Float[Tensor, "pos ..."], last: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """Turn what is written into the states after it, going on from ``last``; the last of them. Factors are used up.

    >>> x = torch.ones(3, 1)
    >>> scan_in_place(torch.full((3, 1), 0.5), x, torch.zeros(1)).item(), x.flatten().tolist()
    (1.75, [1.0, 1.5, 1.75])
    """
    last = states[0].addcmul_(factors[0], last)
    done = 1
    narrow = states[0].numel() <= WIDE or states.device.type != "cpu"
    if narrow and len(states) >= 32:
        length = round((len(states) / 2) ** 0.5)
        pieces = len(states) // length
        done = pieces * length
        a, h = (tensor[:done].unflatten(0, (pieces, length)) for tensor in (factors, states))
        a_at, h_at = a.unbind(1), h.unbind(1)
        for t in range(1, length):
            h_at[t].addcmul_(a_at[t], h_at[t - 1])
            a_at[t].mul_(a_at[t - 1])
        for piece in range(1, pieces):
            h[piece].addcmul_(a[piece], h[piece - 1, -1])
        last = states[done - 1]
    for a_t, h_t in zip(factors[done:].unbind(0), states[done:].unbind(0), strict=True):
        last = h_t.addcmul_(a_t, last)
    return last


def _states(factors: Tensor, writes: Tensor, resets: PositionMask | None, initial: Tensor | None) -> Tensor:
    if scan_triton.available(writes):
        return scan_triton.forward(factors, writes, resets, initial)
    if compiled_loops.available(factors, writes, initial):
        return scan_compiled.linear_scan(factors, writes, resets, initial)
    return scan_in_two_levels(factors, writes, resets, initial)


def scan_in_two_levels(
    factors: Float[Tensor, "batch pos width"],
    writes: Float[Tensor, "batch pos width"],
    resets: PositionMask | None = None,
    initial: Float[Tensor, "batch width"] | None = None,
) -> Float[Tensor, "batch pos width"]:
    """``linear_scan`` in PyTorch, without gradients.

    >>> scan_in_two_levels(torch.full((1, 3, 1), 0.5), torch.ones(1, 3, 1)).flatten().tolist()
    [1.0, 1.5, 1.75]
    """
    batch, length, width = writes.shape
    states = torch.empty(length, batch, width, dtype=torch.float32, device=writes.device)
    last = states.new_zeros(batch, width) if initial is None else initial.to(states)
    kept = None if resets is None else (~resets).T[..., None].float()
    tokens = max(1, BLOCK // (batch * width)) if writes.device.type == "cpu" else length
    for start in range(0, length, tokens):
        block = slice(start, start + tokens)
        a, here = torch.empty_like(states[block]), factors[:, block].transpose(0, 1)
        if kept is None:
            a.copy_(here)
        else:
            torch.mul(here, kept[block], out=a)
        last = scan_in_place(a, states[block].copy_(writes[:, block].transpose(0, 1)), last)
    return states.transpose(0, 1)


class _LinearScan(torch.autograd.Function):
    """The gradient is a scan too, from the last token to the first: g_t = dL/dh_t + a_{t+1} g_{t+1}."""

    @staticmethod
    def forward(
        ctx: Any, factors: Tensor, writes: Tensor, resets: PositionMask | None, initial: Tensor | None
    ) -> Tensor:
        states = _states(factors, writes, resets, initial)
        ctx.save_for_backward(factors, states, resets, initial)
        ctx.dtype = writes.dtype
        return states

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, Tensor, None, Tensor | None]:
        factors, states, resets, initial = ctx.saved_tensors
        grad = grads[0]
        if scan_triton.available(grad):
            to_factors, to_writes = scan_triton.backward(factors, states, grad, resets, initial)
        else:
            to_factors, to_writes = _gradients(factors, states, grad, resets, initial)
        to_initial = None
        if initial is not None:
            first = factors[:, 0].float() * to_writes[:, 0]
            to_initial = (first if resets is None else first.masked_fill(resets[:, :1], 0)).to(initial.dtype)
        return to_factors.to(factors.dtype), to_writes.to(ctx.dtype), None, to_initial


def _gradients(
    factors: Tensor, states: Tensor, grad: Tensor, resets: PositionMask | None, initial: Tensor | None
) -> tuple[Tensor, Tensor]:
    a = factors.float() if resets is None else factors.float().masked_fill(resets[..., None], 0)
    first = torch.zeros_like(states[:, :1]) if initial is None else initial.to(states)[:, None]
    later = torch.cat([a[:, 1:], torch.zeros_like(a[:, :1])], dim=1)
    to_writes = _states(later.flip(1), grad.flip(1), None, None).flip(1)
    to_factors = to_writes * torch.cat([first, states[:, :-1]], dim=1)
    return to_factors if resets is None else to_factors.masked_fill(resets[..., None], 0), to_writes
