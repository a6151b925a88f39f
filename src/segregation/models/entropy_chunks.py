"""Attention with entropy and norm of its pattern's rows, some queries at a time, so that the pattern is never held.

Only the keys that the window of these queries reaches are multiplied with them; the heads that share a key lie side by
side as rows. Scores are fp32 whatever the model's dtype, and the mask of ``attend`` is at most two-dimensional: memory
is linear in the number of tokens.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from segregation.models.attention import AttentionCall

Mixed = Float[Tensor, "batch dest head d_value"]
RowMeasures = Float[Tensor, "batch head row"]

Measure = Literal["entropy", "l2"]
"""What a row of the pattern can be measured by: its entropy in nats, or its Euclidean norm."""

HIDDEN = -1e30
"""The score of a key that is not seen. It is finite, since 0 times infinity is not 0."""

CHUNKS: Mapping[str, tuple[int, int, int]] = {"cpu": (16, 32, 2**19), "cuda": (64, 1024, 2**25)}
"""By device: the fewest and the most queries that are taken at once, and how many scores are aimed at."""


def attend(
    call: AttentionCall, start: int = 0, stop: int = 0, measures: Iterable[Measure] = ()
) -> tuple[Mixed, dict[Measure, RowMeasures]]:
    """``softmax(scaling q k) v`` of every query, and the measures of the queries ``start..stop``.

    With scores s of a row, m the largest and p = softmax(s), the entropy is H = ln Z - sum p (s - m), where Z is 1 over
    the largest p. A row that sees no key, which is padding, is zero in everything.

    >>> q, kv = torch.zeros(1, 2, 4, 8), torch.ones(1, 1, 4, 8)
    >>> attend(AttentionCall(q, kv, kv, None, 1.0, None), 3, 4, ["entropy"])[1]["entropy"]  # ln 4
    tensor([[[1.3863],
             [1.3863]]])
    """
    batch, heads, _, _ = call.query.shape
    kv = call.key.shape[1]
    output, found = to_be_written(call, stop - start, measures)
    chunks = list(_chunks(call))
    most = max((last - first) * _keys(call, first, last) for first, last in chunks)
    room = call.query.new_empty(2, batch * heads * most, dtype=torch.float32)  # one place for all chunks
    for first, last in chunks:
        shape = batch * kv, heads // kv * (last - first), _keys(call, first, last)
        scores, pattern = (one[: math.prod(shape)].view(shape) for one in room)
        write_scores(call, first, last, call.first_key(first), scores)
        torch.softmax(scores, -1, out=pattern)
        if call.mask is not None:
            pattern.masked_fill_((scores <= HIDDEN).all(-1, keepdim=True), 0.0)
        if found and max(first, start) < min(last, stop):
            for one, values in _measured(found, pattern, scores).items():
                put_rows(found[one], start, values.view(batch, heads, last - first), first)
        begin = call.first_key(first)
        value = call.value[:, :, begin : begin + shape[-1]].float()
        mixed = torch.bmm(pattern, value.reshape(batch * kv, *value.shape[2:]))
        output[:, first:last] = mixed.view(batch, heads, last - first, -1).transpose(1, 2)
    return output, found


def to_be_written(
    call: AttentionCall, rows: int, measures: Iterable[Measure]
) -> tuple[Mixed, dict[Measure, RowMeasures]]:
    """Room for the output of every query, and zeros for what so many of them measure.

    >>> q = torch.ones(1, 2, 4, 8)
    >>> [tuple(one.shape) for one in to_be_written(AttentionCall(q, q, q, None, 1.0, None), 3, ["l2"])[1].values()]
    [(1, 2, 3)]
    """
    batch, heads, queries, _ = call.query.shape
    output = call.value.new_empty(batch, queries, heads, call.value.shape[-1])
    return output, {one: call.query.new_zeros(batch, heads, rows, dtype=torch.float32) for one in measures}


def put_rows(found: RowMeasures, start: int, values: Float[Tensor, "batch head own"], first: int) -> None:
    """Write what the queries from ``first`` on measure to where they stand among those from ``start`` on, if they do.

    >>> found = torch.zeros(1, 1, 3)
    >>> put_rows(found, 4, torch.tensor([[[7.0, 8.0]]]), 3)  # the queries 4 to 6, of 3 and 4
    >>> found
    tensor([[[8., 0., 0.]]])
    """
    begin, end = max(first, start), min(first + values.shape[-1], start + found.shape[-1])
    if begin < end:
        found[..., begin - start : end - start] = values[..., begin - first : end - first]


def write_scores(
    call: AttentionCall, first: int, last: int, begin: int, scores: Float[Tensor, "rows dest src"]
) -> None:
    """Write fp32 scores of some queries with the keys from ``begin`` on; heads that share a key lie together.

    A boolean mask with four dimensions says all of what is seen; keys before the window of the first of
    these queries are not visited, whatever it says.

    >>> q, k, scores = torch.ones(1, 1, 2, 1), torch.ones(1, 1, 2, 1), torch.empty(1, 2, 2)
    >>> write_scores(AttentionCall(q, k, k, None, 1.0, None), 0, 2, 0, scores)
    >>> scores > HIDDEN  # the first query does not see the second key
    tensor([[[ True, False],
             [ True,  True]]])
    """
    batch, heads, queries, width = call.query.shape
    own, keys, past = last - first, scores.shape[-1], call.key.shape[2] - queries
    end = begin + keys
    key = call.key[:, :, begin:end].float().reshape(len(scores), keys, width)
    query = (call.query[:, :, first:last].float() * call.scaling).reshape(*scores.shape[:2], width)
    torch.bmm(query, key.mT, out=scores)
    parted = scores.view(batch, heads, own, keys)
    if call.mask is not None and call.mask.dim() == 4:
        parted.masked_fill_(~call.mask[..., first:last, begin:end], HIDDEN)
        return
    src = torch.arange(begin, end, device=scores.device)
    dest = torch.arange(past + first, past + last, device=scores.device)[:, None]
    if (later := max(0, past + first + 1 - begin)) < keys:  # keys that the first query does not see
        parted[..., later:].masked_fill_(src[later:] > dest, HIDDEN)
    if call.window is not None and (partly := past + last - call.window - begin) > 0:  # nor the last query these
        parted[..., :partly].masked_fill_(src[:partly] <= dest - call.window, HIDDEN)
    if call.mask is not None:
        parted.masked_fill_(~call.mask[:, None, None, begin:end], HIDDEN)


def _chunks(call: AttentionCall) -> Iterator[tuple[int, int]]:
    """The queries, a few at a time: fewer where each of them sees more keys."""
    batch, heads, queries, _ = call.query.shape
    fewest, most, aim = CHUNKS.get(call.query.device.type, CHUNKS["cuda"])
    first = 0
    while first < queries:
        size = most
        while size > fewest and size * _keys(call, first, first + size) * batch * heads > aim:
            size //= 2
        yield first, min(first + size, queries)
        first += size


def _keys(call: AttentionCall, first: int, last: int) -> int:
    """How many keys the queries ``first..last`` can reach together."""
    return call.key.shape[2] - call.query.shape[2] + last - call.first_key(first)


def _measured(
    measures: Iterable[Measure], pattern: Float[Tensor, "rows dest src"], scores: Float[Tensor, "rows dest src"]
) -> dict[Measure, Float[Tensor, "rows dest"]]:
    """What the rows of a pattern measure; the scores that it was made of are spent."""
    values: dict[Measure, Tensor] = {}
    if "l2" in measures:
        values["l2"] = pattern.norm(dim=-1)
    if "entropy" in measures:
        scores.sub_(scores.amax(-1, keepdim=True))
        largest = pattern.amax(-1)
        largest.masked_fill_(largest == 0, 1.0)  # a row that sees no key
        values["entropy"] = -largest.log() - scores.mul_(pattern).sum(-1)
    return values
