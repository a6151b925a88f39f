"""How far back, for how long and in how many directions a recurrent layer remembers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from segregation.models.hybrid import HybridModel
from segregation.models.recurrence import Recurrence, states_after
from segregation.probes.contributions import MAX_BYTES, check_bytes, contribution_norms
from segregation.probes.shares import estimate_bytes, positions_named, see_recurrences
from segregation.prompts.sample import Sample
from segregation.prompts.spans import sample_spans

HEADS = 128
"""Heads whose half-lives are held for all tokens at once."""


@dataclass(frozen=True)
class LayerMemory:
    """What one sample shows of a layer's memory.

    Attributes:
        layer: absolute index of the layer.
        receptive_field: effective receptive field at the destinations, in tokens.
        half_life: median over channels of each one's median half-life, in tokens.
        long_half_life: the 90th percentile over channels, in tokens.
        rank: effective rank of the destinations' states as the rows of one matrix, which compares all three scans; at
            most the number of destinations.
        matrix_rank: effective rank of the state as a matrix (channel by d_state) at a destination, mean over
            destinations and Mamba-2's heads; NaN for RG-LRU, whose state is a vector.
    """

    layer: int
    receptive_field: float
    half_life: float
    long_half_life: float
    rank: float
    matrix_rank: float


def layer_memories(
    model: HybridModel,
    sample: Sample,
    dest: str = "question+last+new",
    *,
    new_tokens: Sequence[int] = (),
    layers: Sequence[int] | Literal["all"] = "all",
    max_bytes: int = MAX_BYTES,
) -> list[LayerMemory]:
    """Receptive field, half-lives and ranks of every recurrent layer, in one forward over a sample.

    Args:
        model: the model; what it carries acts.
        sample: prompt and spans.
        dest: the tokens at which the receptive field and the states are taken, as in ``span_shares``; half-lives are
            taken over all tokens.
        new_tokens: what is read after the prompt.
        layers: absolute indices of recurrent layers, or ``"all"``.
        max_bytes: the most that one layer's contributions may take.

    Raises:
        ModelError: no recurrent layer, another layer, or too many bytes.
        SampleError: a span that the sample does not have, or one without a token.
    """
    assert model.tokenizer is not None
    prompt = len(model.encode(sample))
    length = prompt + len(new_tokens)
    dests = positions_named(sample_spans(model.tokenizer, sample), dest, prompt, length)
    check_bytes("the norms", estimate_bytes(model, length, len(dests)), max_bytes, f"{len(dests)} x {length} tokens")

    def see(layer: int, recurrence: Recurrence) -> LayerMemory:
        norms = contribution_norms(recurrence, dests, max_bytes=max_bytes)
        lives = half_lives(recurrence)[0].flatten()
        states = states_after(recurrence, dests)[:, 0]
        return LayerMemory(
            layer=layer,
            receptive_field=float(receptive_field(norms, dests)[0]),
            half_life=float(lives.quantile(0.5)),
            long_half_life=float(lives.quantile(0.9)),
            rank=float(effective_rank(states.flatten(1))),
            matrix_rank=_matrix_rank(states),
        )

    return list(see_recurrences(model, sample, see, new_tokens=new_tokens, layers=layers).values())


def receptive_field(norms: Float[Tensor, "batch dest src"], dests: Sequence[int]) -> Float[Tensor, " batch"]:
    """Effective receptive field in tokens: mean_t E_{s ~ ||c_ts||}[t - s], with ||c_ts|| scaled to sum to 1 over s.

    0 means that every destination hears nobody but itself. A destination that nothing contributes to is left out.

    >>> receptive_field(torch.tensor([[[0.0, 1.0, 0.0], [2.0, 0.0, 2.0]]]), dests=(1, 2)).tolist()
    [0.5]
    """
    src = torch.arange(norms.shape[-1], device=norms.device)
    distance = torch.tensor(list(dests), device=norms.device)[:, None] - src
    total = norms.sum(-1)
    expected = (norms * distance).sum(-1) / total.clamp(min=torch.finfo(norms.dtype).tiny)
    heard = total > 0
    return (expected * heard).sum(-1) / heard.sum(-1)


def half_lives(recurrence: Recurrence) -> Float[Tensor, "batch head #d_state"]:
    """ln 2 / (-ln a) of each head and number of its state, in tokens: the median over the tokens that are no reset.

    >>> ones = torch.ones(1, 3, 1, 1)
    >>> halving = Recurrence(torch.full((1, 3, 1), 0.5).log(), torch.ones(1, 1), ones[..., 0, 0] < 0, ones, ones, ones)
    >>> half_lives(halving).tolist()
    [[[1.0]]]
    """
    found = []
    for heads in torch.arange(recurrence.rate.shape[0]).split(HEADS):
        lives = math.log(2) / (-recurrence.rate[heads] * recurrence.step[:, :, heads, None])
        lives = lives.masked_fill(recurrence.reset[..., None, None], torch.nan)
        found.append(lives.nanmedian(dim=1).values)
    return torch.cat(found, dim=1)


def effective_rank(matrix: Float[Tensor, "... row column"]) -> Float[Tensor, "..."]:
    """exp(H(sigma / sum sigma)) of the singular values, H in nats: 1 for a matrix of rank one, n for n equal values.

    A matrix of zeros has 0. (Roy & Vetterli 2007)

    >>> effective_rank(torch.eye(4)).item()
    4.0
    """
    sigma = torch.linalg.svdvals(matrix.double())
    total = sigma.sum(-1, keepdim=True)
    share = sigma / total.clamp(min=torch.finfo(sigma.dtype).tiny)
    return (torch.special.entr(share).sum(-1).exp() * (total[..., 0] > 0)).to(matrix.dtype)


def _matrix_rank(states: Float[Tensor, "dest head d_head d_state"]) -> float:
    if states.shape[-1] == 1:
        return math.nan
    matrices = states[:, :, 0] if states.shape[2] == 1 else states.flatten(0, 1)
    return float(effective_rank(matrices).mean())
