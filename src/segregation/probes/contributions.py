"""What each earlier token contributes to a recurrent layer's output at each later one, exactly, before the gate.

The recurrence is linear in what is written, so its output is a sum over source tokens, y_t = sum_s c_ts, with

    c_ts = M_ts w_s,   M_ts = C_t (prod_{i=s+1..t} a_i) B_s  (one number per head),

in the terms of ``segregation.models.recurrence``: for Mamba C_t (prod A_i) B_s x_s (arXiv 2312.00752), for Mamba-2
M = L o (C B^T) (arXiv 2405.21060), for RG-LRU (prod a_i) sqrt(1 - a_s^2) i_s x_s with factor 1 at a reset
(arXiv 2402.19427). Mamba adds D x_t, which passes the state by and is no contribution of a token to another. What is
written depends on the tokens before it through the convolution and the layers below: this is the path through the
state of this layer alone.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from segregation.errors import ModelError
from segregation.models.recurrence import Recurrence

DESTS = 64
"""Destinations whose read-outs are carried back at once."""
MAX_BYTES = 2**30
"""Bytes that contributions may take when nobody says otherwise."""


def norms_bytes(dests: int, sources: int, heads: int, d_state: int) -> int:
    """Bytes of ``contribution_norms`` of one row: the matrix, and what is held while it is made.

    >>> norms_bytes(dests=2, sources=10, heads=3, d_state=5)
    560
    """
    carried = 3 * min(dests, DESTS) * heads * d_state  # read-outs, their products with keys, and a copy
    factors = 5 * min(dests, DESTS) * heads  # in fp32, in fp64 and squared
    return 4 * (dests * sources + carried + factors)


def vectors_bytes(dests: int, sources: int, heads: int, d_head: int, d_state: int) -> int:
    """Bytes of ``contribution_vectors`` of one row: the vectors, and what is held while they are made.

    >>> vectors_bytes(dests=2, sources=10, heads=3, d_head=4, d_state=5)
    1464
    """
    carried = 3 * dests * heads * d_state
    factors = dests * heads * (2 + d_head)
    return 4 * (dests * sources * heads * d_head + carried + factors)


def contribution_norms(
    recurrence: Recurrence, dests: Sequence[int] | None = None, *, max_bytes: int = MAX_BYTES
) -> Float[Tensor, "batch dest src"]:
    """||c_ts||_2 over all channels, of every token s to the destinations (all tokens when left out); 0 for s > t.

    Args:
        recurrence: what the layer's scan was given.
        dests: positions t, counted from 0 as the forward's tokens are.
        max_bytes: the most that may be held, as ``norms_bytes`` counts.

    Raises:
        ModelError: destinations that are not there, a run that went on from a filled memory, or too many bytes.

    >>> ones = torch.ones(1, 3, 1, 1)
    >>> halving = Recurrence(torch.full((1, 3, 1), 0.5).log(), torch.ones(1, 1), ones[..., 0, 0] < 0, ones, ones, ones)
    >>> contribution_norms(halving).tolist()
    [[[1.0, 0.0, 0.0], [0.5, 1.0, 0.0], [0.25, 0.5, 1.0]]]
    """
    batch, length, heads, _ = recurrence.write.shape
    dests = _checked(recurrence, range(length) if dests is None else dests)
    wanted = batch * norms_bytes(len(dests), length, heads, recurrence.keys.shape[-1])
    check_bytes("the norms", wanted, max_bytes, f"{len(dests)} destinations over {length} tokens")
    written = recurrence.write.double().square().sum(-1)  # ||w_s||^2 by head; in fp64, as small squares vanish in fp32
    found = recurrence.write.new_zeros(batch, len(dests), length)
    for start in range(0, len(dests), DESTS):
        part = found[:, start : start + DESTS]
        for src, factor in _backwards(recurrence, dests[start : start + DESTS]):
            part[:, :, src] = torch.einsum("bdh,bh->bd", factor.double().square(), written[:, src]).sqrt()
    return found


def contribution_vectors(
    recurrence: Recurrence,
    dests: Sequence[int],
    sources: Sequence[int] | None = None,
    *,
    max_bytes: int = MAX_BYTES,
) -> Float[Tensor, "batch dest src channel"]:
    """c_ts itself, of the sources (all tokens when left out) to the destinations; heads side by side along ``channel``.

    Args:
        recurrence: what the layer's scan was given.
        dests: positions t, counted from 0 as the forward's tokens are.
        sources: positions s.
        max_bytes: the most that may be held, as ``vectors_bytes`` counts.

    Raises:
        ModelError: positions that are not there, a run that went on from a filled memory, or too many bytes.
    """
    batch, length, heads, d_head = recurrence.write.shape
    sources = _checked(recurrence, range(length) if sources is None else sources)
    dests = _checked(recurrence, dests)
    wanted = batch * vectors_bytes(len(dests), len(sources), heads, d_head, recurrence.keys.shape[-1])
    check_bytes("the vectors", wanted, max_bytes, f"{len(dests)} destinations, {len(sources)} sources")
    found = recurrence.write.new_zeros(batch, len(dests), len(sources), heads * d_head)
    place = {src: i for i, src in enumerate(sources)}
    for src, factor in _backwards(recurrence, dests, min(sources)):
        if src in place:
            found[:, :, place[src]] = (factor[..., None] * recurrence.write[:, None, src]).flatten(2)
    return found


def check_bytes(what: str, wanted: int, limit: int, asked: str) -> None:
    """Refuse what would take more bytes than the limit.

    Raises:
        ModelError: the bytes wanted, the limit, and what would make it smaller.
    """
    if wanted > limit:
        raise ModelError(
            f"{what} of contributions would take {wanted:,} bytes ({asked}), and max_bytes is {limit:,}; ask for fewer "
            "destinations (the last tokens, or one span), fewer rows or a shorter prompt, or raise max_bytes"
        )


def _backwards(
    recurrence: Recurrence, dests: Sequence[int], first: int = 0
) -> Iterator[tuple[int, Float[Tensor, "batch dest head"]]]:
    """M_ts of every source from the last destination back to ``first``: the read-outs are carried back, not states on.

    Going back over token s multiplies a read-out by a_s, so no logarithm is needed, and a reset is an exact 0.
    """
    batch, _, heads, _ = recurrence.write.shape
    reads = recurrence.write.new_zeros(batch, len(dests), heads, recurrence.keys.shape[-1])
    for src in range(max(dests), first - 1, -1):
        here = [i for i, dest in enumerate(dests) if dest == src]
        if here:
            reads[:, here] = recurrence.read(src)[:, None]
        yield src, torch.einsum("bdhn,bhn->bdh", reads, recurrence.key(src))
        reads *= recurrence.decay(src)[:, None]


def _checked(recurrence: Recurrence, positions: Sequence[int]) -> list[int]:
    length, positions = recurrence.write.shape[1], list(positions)
    if not positions or len(set(positions)) < len(positions) or min(positions) < 0 or max(positions) >= length:
        raise ModelError(f"positions are one or more of 0..{length - 1}, each once, got {positions!r:.80}")
    if not recurrence.begins:
        raise ModelError(
            "contributions are of the tokens of one forward, but this one went on from a filled memory, whose tokens "
            "it does not see; read prompt and new tokens in one forward (trace with prompt_lengths)"
        )
    return positions
