"""h_t = a_t h_{t-1} + x_t and its gradient on a CUDA device, by two Triton kernels.

A program takes some columns of one row, and walks over tiles of tokens; inside a tile all tokens are scanned at once.
Each number is read and written once: 12 bytes an element forward in fp32.
"""

# pyright: reportMissingImports=false, reportPossiblyUnboundVariable=false
import inspect
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from segregation.shapes import PositionMask

try:
    import triton
    import triton.language as tl
except ImportError:  # no GPU build of torch: the scan runs in PyTorch
    triton = None

TOKENS, COLUMNS = 32, 32
"""The tile that a program scans at once."""

if triton is not None:

    def _chain(a_left, h_left, a_right, h_right):  # type: ignore
        return a_left * a_right, h_left * a_right + h_right

    _combine = triton.jit(inspect.unwrap(_chain))

    def _scan_forward(  # type: ignore
        a, x, resets, initial, h, length, width,
        HAS_RESETS: tl.constexpr, HAS_INITIAL: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        token = tl.arange(0, TOKENS)
        inside = column < width
        if HAS_INITIAL:
            state = tl.load(initial + row * width + column, mask=inside, other=0.0).to(tl.float32)
        else:
            state = tl.zeros((COLUMNS,), dtype=tl.float32)
        for start in range(0, length, TOKENS):
            t = start + token
            here = (t < length)[:, None] & inside[None, :]
            offset = (row * length + t)[:, None] * width + column[None, :]
            factor = tl.load(a + offset, mask=here, other=1.0).to(tl.float32)
            if HAS_RESETS:
                reset = tl.load(resets + row * length + t, mask=t < length, other=0)
                factor = tl.where((reset != 0)[:, None], 0.0, factor)
            write = tl.load(x + offset, mask=here, other=0.0).to(tl.float32)
            product, states = tl.associative_scan((factor, write), 0, _combine)
            states += product * state[None, :]
            tl.store(h + offset, states, mask=here)
            state = tl.sum(tl.where((token == TOKENS - 1)[:, None], states, 0.0), axis=0)

    def _scan_backward(  # type: ignore
        a, h, dh, resets, initial, da, dx, length, width,
        HAS_RESETS: tl.constexpr, HAS_INITIAL: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        token = tl.arange(0, TOKENS)
        inside = column < width
        flow = tl.zeros((COLUMNS,), dtype=tl.float32)
        for start in range(0, length, TOKENS):
            t = length - 1 - start - token  # from the last token to the first
            here = (t >= 0)[:, None] & inside[None, :]
            offset = (row * length + t)[:, None] * width + column[None, :]
            follows = here & (t < length - 1)[:, None]
            factor = tl.load(a + offset + width, mask=follows, other=0.0).to(tl.float32)
            if HAS_RESETS:
                at = resets + row * length + t
                reset = tl.load(at + 1, mask=(t >= 0) & (t < length - 1), other=0)
                factor = tl.where((reset != 0)[:, None], 0.0, factor)
            grad = tl.load(dh + offset, mask=here, other=0.0).to(tl.float32)
            product, flows = tl.associative_scan((factor, grad), 0, _combine)
            flows += product * flow[None, :]
            tl.store(dx + offset, flows, mask=here)
            previous = tl.load(h + offset - width, mask=here & (t > 0)[:, None], other=0.0)
            if HAS_INITIAL:
                before = tl.load(initial + row * width + column, mask=inside, other=0.0).to(tl.float32)
                previous = tl.where((t == 0)[:, None], before[None, :], previous)
            if HAS_RESETS:
                reset = tl.load(at, mask=t >= 0, other=0)
                previous = tl.where((reset != 0)[:, None], 0.0, previous)
            tl.store(da + offset, flows * previous, mask=here)
            flow = tl.sum(tl.where((token == TOKENS - 1)[:, None], flows, 0.0), axis=0)

    # jit reads the functions' own globals, which a type-checking import hook would hide behind its wrapper
    _forward_kernel = triton.jit(inspect.unwrap(_scan_forward))
    _backward_kernel = triton.jit(inspect.unwrap(_scan_backward))


def available(tensor: Tensor) -> bool:
    """Whether the kernels can run where a tensor is."""
    return triton is not None and tensor.is_cuda


def forward(
    factors: Float[Tensor, "batch pos width"],
    writes: Float[Tensor, "batch pos width"],
    resets: PositionMask | None,
    initial: Float[Tensor, "batch width"] | None,
) -> Float[Tensor, "batch pos width"]:
    """All states, in fp32; ``linear_scan`` says what the arguments are."""
    factors, writes = factors.contiguous(), writes.contiguous()
    states = torch.empty_like(writes, dtype=torch.float32)
    _, length, width = writes.shape
    given = (factors, writes, *_options(resets, initial, writes.device), states, length, width)
    _launch(_forward_kernel, given, resets, initial)
    return states


def backward(
    factors: Float[Tensor, "batch pos width"],
    states: Float[Tensor, "batch pos width"],
    grad: Float[Tensor, "batch pos width"],
    resets: PositionMask | None,
    initial: Float[Tensor, "batch width"] | None,
) -> tuple[Float[Tensor, "batch pos width"], Float[Tensor, "batch pos width"]]:
    """The gradients of factors and writes, in fp32, from that of the states."""
    factors, states, grad = factors.contiguous(), states.contiguous(), grad.contiguous()
    to_factors, to_writes = torch.empty_like(states), torch.empty_like(states)
    _, length, width = states.shape
    options = _options(resets, initial, states.device)
    _launch(_backward_kernel, (factors, states, grad, *options, to_factors, to_writes, length, width), resets, initial)
    return to_factors, to_writes


def _options(
    resets: PositionMask | None, initial: Tensor | None, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    return (
        None if resets is None else resets.contiguous().view(torch.uint8),
        None if initial is None else initial.to(device).contiguous(),
    )


def _launch(kernel: Any, given: tuple[Any, ...], resets: PositionMask | None, initial: Tensor | None) -> None:
    batch, _, width = given[0].shape
    with torch.cuda.device(given[0].device):
        kernel[batch, -(-width // COLUMNS)](
            *given,
            HAS_RESETS=resets is not None,
            HAS_INITIAL=initial is not None,
            TOKENS=TOKENS,
            COLUMNS=COLUMNS,
            num_warps=1,
        )
