"""Whether anyone wants derivatives of what is about to be computed."""

import torch
from torch import Tensor
from torch.autograd import forward_ad


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether gradients are on, and some of these tensors takes part in them.

    >>> weight = torch.ones(1, requires_grad=True)
    >>> needs_grad(torch.ones(1), None), needs_grad(weight, None)
    (False, True)
    """
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def transformed() -> bool:
    """Whether forward-mode derivatives or ``torch.func`` are under way, which only PyTorch's own operations know of.

    >>> torch.func.grad(lambda x: x * transformed())(torch.ones(())).item(), transformed()
    (1.0, False)
    """
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()
