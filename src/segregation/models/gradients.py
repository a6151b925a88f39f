"""Whether anyone wants gradients of what is about to be computed."""

import torch
from torch import Tensor


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether gradients are on, and some of these tensors takes part in them.

    >>> weight = torch.ones(1, requires_grad=True)
    >>> needs_grad(torch.ones(1), None), needs_grad(weight, None)
    (False, True)
    """
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
