"""How far the entropies of some rows of an attention call are from those in fp64."""

import torch
from torch import Tensor

from segregation.interventions.heads import entropy
from segregation.models.attention import AttentionCall

ROWS = 24
"""How many queries are compared, spread over the prompt."""


def error(call: AttentionCall, found: Tensor) -> float:
    """The largest error over all heads of these queries, of a call without padding and without a cache before it."""
    heads, queries = call.query.shape[1:3]
    worst = 0.0
    for row in torch.linspace(0, queries - 1, ROWS).long().tolist():
        first = max(0, row + 1 - (call.window or queries))
        key = call.key[:, :, first : row + 1].double().repeat_interleave(heads // call.key.shape[1], 1)
        scores = (call.query[:, :, row, None].double() @ key.mT)[:, :, 0] * call.scaling
        worst = max(worst, float((entropy(scores.softmax(-1)) - found[:, :, row]).abs().max()))
    return worst
