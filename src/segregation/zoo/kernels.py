"""Faster forms of what the trainer spends its time on: RG-LRU's scan, Jamba's mixer and experts.

Each computes what transformers computes; they are put in place by ``use_training_kernels`` and touch nothing else.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segregation.models.scan_linear import linear_scan


def use_training_kernels(model: nn.Module) -> None:
    """Put the fast forms in place on one model's modules, for training without a cache."""
    for module in model.modules():
        form = _FORMS.get(type(module).__name__)
        if form is not None:
            form(module)


def _scan_rg_lru(rg_lru: Any) -> None:
    def rnn_scan(hidden_states: Tensor, recurrent_gate: Tensor, reset: Tensor, recurrent_states: Any) -> Any:
        states = linear_scan(recurrent_gate, hidden_states, reset[..., 0].expand(hidden_states.shape[:2]))
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
