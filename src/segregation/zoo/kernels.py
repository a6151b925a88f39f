"""Faster forms of what the trainer spends its time on: RG-LRU's scan on a GPU, Jamba's mixer and experts.

Each computes what transformers computes; they are put in place by ``use_training_kernels`` and touch nothing else.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

try:
    import triton
    import triton.language as tl
except ImportError:  # no GPU build of torch: transformers' own loop is used
    triton = None

if triton is not None:

    def _scan_forward(a, b, h, length, width, BLOCK: tl.constexpr):  # type: ignore
        row = tl.program_id(0)
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = column < width
        offset = row.to(tl.int64) * length * width + column
        state = tl.zeros((BLOCK,), dtype=tl.float32)
        for _ in range(length):
            state = tl.load(a + offset, mask=inside, other=0.0).to(tl.float32) * state + tl.load(
                b + offset, mask=inside, other=0.0
            ).to(tl.float32)
            tl.store(h + offset, state, mask=inside)
            offset += width

    def _scan_backward(a, h, dh, da, db, length, width, BLOCK: tl.constexpr):  # type: ignore
        row = tl.program_id(0)
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = column < width
        offset = row.to(tl.int64) * length * width + (length - 1) * width + column
        flow = tl.zeros((BLOCK,), dtype=tl.float32)  # a_{t+1} g_{t+1}
        for step in range(length):
            flow += tl.load(dh + offset, mask=inside, other=0.0).to(tl.float32)
            tl.store(db + offset, flow, mask=inside)
            earlier = inside & (step < length - 1)
            previous = tl.load(h + offset - width, mask=earlier, other=0.0)
            tl.store(da + offset, flow * previous, mask=inside)
            flow *= tl.load(a + offset, mask=inside, other=0.0).to(tl.float32)
            offset -= width

    # jit reads the functions' own globals, which a type-checking import hook would hide behind its wrapper
    _forward_kernel = triton.jit(inspect.unwrap(_scan_forward))
    _backward_kernel = triton.jit(inspect.unwrap(_scan_backward))


class _LinearScan(torch.autograd.Function):
    BLOCK = 32

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        a, b = a.contiguous(), b.contiguous()
        batch, length, width = b.shape
        h = torch.empty(b.shape, dtype=torch.float32, device=b.device)
        grid = (batch, -(-width // _LinearScan.BLOCK))
        _forward_kernel[grid](a, b, h, length, width, BLOCK=_LinearScan.BLOCK, num_warps=1)
        ctx.save_for_backward(a, h)
        ctx.b_dtype = b.dtype
        return h

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        a, h = ctx.saved_tensors
        dh = grads[0].contiguous()
        batch, length, width = h.shape
        da, db = torch.empty_like(h), torch.empty_like(h)
        grid = (batch, -(-width // _LinearScan.BLOCK))
        _backward_kernel[grid](a, h, dh, da, db, length, width, BLOCK=_LinearScan.BLOCK, num_warps=1)
        return da.to(a.dtype), db.to(ctx.b_dtype)


def linear_scan(a: Tensor, b: Tensor) -> Tensor:
    """h_t = a_t h_{t-1} + b_t along dimension 1 of ``batch pos width``, h before the start 0, in fp32.

    On a GPU one Triton program walks a row; elsewhere a loop over positions.

    >>> linear_scan(torch.full((1, 3, 1), 0.5), torch.ones(1, 3, 1)).flatten().tolist()
    [1.0, 1.5, 1.75]
    """
    if b.is_cuda and triton is not None:
        return _LinearScan.apply(a, b)  # type: ignore[no-any-return]
    state, states = torch.zeros_like(b[:, 0], dtype=torch.float32), []
    for t in range(b.shape[1]):
        state = a[:, t].float() * state + b[:, t].float()
        states.append(state)
    return torch.stack(states, dim=1)


def use_training_kernels(model: nn.Module) -> None:
    """Put the fast forms in place on one model's modules, for training without a cache."""
    for module in model.modules():
        form = _FORMS.get(type(module).__name__)
        if form is not None:
            form(module)


def _scan_rg_lru(rg_lru: Any) -> None:
    def rnn_scan(hidden_states: Tensor, recurrent_gate: Tensor, reset: Tensor, recurrent_states: Any) -> Any:
        states = linear_scan(recurrent_gate * ~reset, hidden_states)
        return states.type(hidden_states.dtype), states[:, -1].detach()

    rg_lru._rnn_scan = rnn_scan


def _mix_in_fp32(mixer: Any) -> None:
    """mamba-ssm's scan refuses mixed dtypes, and the state needs the range: the whole mixer leaves autocast."""
    forward = mixer.forward

    def mixed(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with torch.autocast(hidden_states.device.type, enabled=False):
            return forward(hidden_states.float(), *args, **kwargs)

    mixer.forward = mixed


def _dense_experts(experts: Any) -> None:
    """Every expert on every token, weighted by the router (0 where it was not chosen): no gather, no host sync."""

    def forward(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        weights = torch.zeros(
            hidden_states.shape[0], experts.num_experts, device=hidden_states.device, dtype=top_k_weights.dtype
        ).scatter(1, top_k_index, top_k_weights)
        gate, up = torch.einsum("td,efd->etf", hidden_states, experts.gate_up_proj).chunk(2, dim=-1)
        hidden = experts.act_fn(gate) * up * weights.T[:, :, None].to(gate.dtype)
        return torch.einsum("etf,edf->td", hidden, experts.down_proj)

    experts.forward = forward


_FORMS = {"RecurrentGemmaRglru": _scan_rg_lru, "JambaMambaMixer": _mix_in_fp32, "JambaExperts": _dense_experts}


def weighted_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of the tokens' cross-entropies under their weights, and each token's (``batch pos``), in nats.

    >>> loss, each = weighted_cross_entropy(torch.zeros(1, 2, 4), torch.tensor([[0, 3]]), torch.tensor([[1.0, 0.0]]))
    >>> round(loss.item(), 4)  # log 4
    1.3863
    """
    each = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    return (each * weights).sum() / weights.sum().clamp(min=1e-6), each.detach()
