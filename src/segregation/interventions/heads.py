"""Scores of attention heads from their patterns, and which heads the scores keep: pure tensor functions."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from segregation.models.entropy_chunks import Measure
from segregation.models.gradients import needs_grad, transformed
from segregation.shapes import HeadMask, HeadScores, Pattern, PositionMask


def entropy(pattern: Pattern) -> Float[Tensor, "batch head dest"]:
    """Shannon entropy of each row, in nats: H = -sum_src p ln p, with 0 ln 0 = 0. Zero means one source token.

    >>> entropy(torch.tensor([[[[0.5, 0.5, 0.0]]]])).item()  # ln 2
    0.6931471824645996
    """
    if needs_grad(pattern) or transformed():  # the gradient of a key that is not seen is 0; of 0 ln 0 there is none
        pattern = pattern.masked_fill(pattern == 0, 1.0)
    return torch.special.entr(pattern).sum(-1)


def negative_entropy(pattern: Pattern) -> HeadScores:
    """Score of each row: -H, so that a focused head scores high. (arXiv 2510.19861)"""
    return -entropy(pattern)


def l2(pattern: Pattern) -> HeadScores:
    """Score of each row: its Euclidean norm, 1 for one source token and 1/sqrt(n) for n equal ones.

    >>> l2(torch.tensor([[[[0.25, 0.25, 0.25, 0.25]]]])).item()
    0.5
    """
    return pattern.norm(dim=-1)


def paper_entropy(pattern: Pattern) -> HeadScores:
    """Score of each row as the code of arXiv 2510.19861 has it: sum_src (p + 1e-12) log2(p + 1e-12), in p's dtype.

    In bf16 the scores of different heads often tie. Where that code leaves ties to ``torch.topk``, ours go to the
    lowest head index.

    >>> paper_entropy(torch.tensor([[[[0.5, 0.5]]]])).item()
    -1.0
    """
    shifted = pattern + 1e-12
    return (shifted * shifted.log2()).sum(-1)


SCORES: Mapping[str, Callable[[Pattern], HeadScores]] = {
    "entropy": negative_entropy,
    "l2": l2,
    "paper_entropy": paper_entropy,
}
"""Score functions by their name in ``KeepTopHeads``; the best head scores highest."""

SIGN: Mapping[Measure, int] = {"entropy": -1, "l2": 1}
"""The scores that attention can measure as it runs: whether the best head measures least (-1) or most (1)."""


def keep_top(scores: HeadScores, k: Int[Tensor, "batch pos"] | int) -> HeadMask:
    """True at the k best-scoring heads of every row and position; ties go to the lowest head index.

    >>> keep_top(torch.tensor([[[1.0], [3.0], [1.0]]]), 2)[0, :, 0].tolist()
    [True, True, False]
    """
    order = scores.sort(dim=1, descending=True, stable=True).indices
    among = torch.arange(scores.shape[1], device=scores.device)[None, :, None] < (
        k if isinstance(k, int) else k[:, None]
    )
    return torch.empty_like(order, dtype=torch.bool).scatter_(1, order, among.expand(order.shape))


def tied(scores: HeadScores, k: int) -> PositionMask:
    """Where the k-th best head and the next one score the same, so that which is kept is decided by a tie.

    >>> tied(torch.tensor([[[1.0, 3.0], [2.0, 2.0], [1.0, 2.0]]]), 2).tolist()
    [[True, True]]
    """
    ordered = scores.sort(dim=1, descending=True).values
    return ordered[:, k - 1] == ordered[:, k]


def ablate(z: Float[Tensor, "batch pos head d_head"], keep: Bool[Tensor, "batch pos head"]) -> Tensor:
    """z with the heads that are not kept set to zero; kept heads are untouched, bit for bit."""
    return z.masked_fill(~keep[..., None], 0)
