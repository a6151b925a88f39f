"""Does a batch give each row what it gives alone?"""

import torch

from segregation.models.checks_outcome import (
    LONG,
    SHORT,
    Question,
    generated,
    largest_gap,
    logits,
    prompts,
    short_and_long,
    worst,
)
from segregation.models.hybrid import HybridModel


def _padded(model: HybridModel) -> float:
    ids, mask = short_and_long(model)
    padded = logits(model, ids, attention_mask=mask)[1:, LONG - SHORT :]
    return float((padded - logits(model, ids[1:, LONG - SHORT :])).abs().max())


def _equal_lengths(model: HybridModel) -> float:
    ids = prompts(model)
    alone = torch.cat([logits(model, row[None]) for row in ids])
    return float((logits(model, ids) - alone).abs().max())


def _padded_generation(model: HybridModel) -> float:
    ids, mask = short_and_long(model)
    tokens, found = generated(model, ids, attention_mask=mask)
    rows = (ids[:1], ids[1:, LONG - SHORT :])
    alone = [generated(model, row) for row in rows]
    return worst(largest_gap((tokens[i, None], found[i, None]), one) for i, one in enumerate(alone))


QUICK = (
    Question("a left-padded batch equals its rows", _padded, "noise", "batching"),
    Question("an equal-length batch equals its rows", _equal_lengths, "noise", "batching"),
)
SLOW = (Question("left-padded generation equals its rows", _padded_generation, "noise", "batching"),)
