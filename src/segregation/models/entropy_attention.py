"""Attention that gives, beside its output, entropy and norm of its pattern's rows, and never holds the pattern.

Queries are taken a few at a time, and only the keys that their window reaches are multiplied with them; the heads that
share a key lie side by side as rows. Scores are fp32 whatever the model's dtype, and a mask is at most two-dimensional:
memory is linear in the number of tokens. ``use_entropy_attention`` makes it known to transformers, by ``NAME``.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from segregation.errors import ModelError
from segregation.models.attention import AttentionCall
from segregation.models.compiled_loops import available
from segregation.models.gradients import needs_grad
from segregation.shapes import PositionMask

NAME = "segregation"
"""What ``attn_implementation`` calls this attention."""

Mixed = Float[Tensor, "batch dest head d_value"]
RowMeasures = Float[Tensor, "batch head row"]

Measure = Literal["entropy", "l2"]
"""What a row of the pattern can be measured by: its entropy in nats, or its Euclidean norm."""

HIDDEN = -1e30
"""The score of a key that is not seen. It is finite, since 0 times infinity is not 0."""

HARMLESS = frozenset({"position_ids", "use_cache", "output_router_logits", "cache_position"})
"""Keywords that transformers hands down to an attention call and that do not change what it computes."""

CHUNKS: Mapping[str, tuple[int, int, int]] = {"cpu": (16, 32, 2**19), "cuda": (64, 1024, 2**25)}
"""By device: the fewest and the most queries that are taken at once, and how many scores are aimed at."""


@dataclass
class Asked:
    """Rows that someone wants measured in one attention call, and once it has run, what they measure.

    Attributes:
        start: the first query.
        stop: the query after the last.
        measures: what is wanted of them.
        found: per measure, the rows ``start..stop``.
    """

    start: int
    stop: int
    measures: set[Measure]
    found: Mapping[Measure, RowMeasures] = field(default_factory=dict)

    def rows(self, measure: Measure, start: int, stop: int) -> RowMeasures:
        """What the queries ``start..stop`` measure; only once the call has run."""
        return self.found[measure][..., start - self.start : stop - self.start]


def ask(operation: Any, measures: Iterable[Measure], start: int, stop: int) -> Asked:
    """Ask an attention call, seen through NNsight before it runs, to measure the queries ``start..stop``.

    Whoever asks the same call shares the answer. The call must run under ``NAME``.
    """
    args, kwargs = operation.inputs
    asked = kwargs.get("asked")
    if asked is None:
        asked = Asked(start, stop, set(measures))
        operation.inputs = (args, {**kwargs, "asked": asked})
    asked.start, asked.stop = min(asked.start, start), max(asked.stop, stop)
    asked.measures.update(measures)
    return asked


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
    batch, heads, queries, _ = call.query.shape
    kv = call.key.shape[1]
    output = call.value.new_empty(batch, queries, heads, call.value.shape[-1])
    found: dict[Measure, Tensor] = {
        one: call.query.new_zeros(batch, heads, stop - start, dtype=torch.float32) for one in measures
    }
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

    A boolean mask with four dimensions says all of what is seen.
    """
    batch, heads, queries, width = call.query.shape
    own, keys, past = last - first, scores.shape[-1], call.key.shape[2] - queries
    end = begin + keys
    key = call.key[:, :, begin:end].float().reshape(len(scores), keys, width)
    query = (call.query[:, :, first:last].float() * call.scaling).reshape(len(scores), -1, width)
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


def attention(
    module: nn.Module,
    query: Float[Tensor, "batch head dest d_head"],
    key: Float[Tensor, "batch kv src d_head"],
    value: Float[Tensor, "batch kv src d_value"],
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    asked: Asked | None = None,
    **kwargs: Any,
) -> tuple[Mixed, None]:
    """What transformers calls: the output, heads last, and no weights; ``asked`` gets what it asks for.

    A token fed alone, and a run that keeps gradients, are left to transformers' sdpa.

    Raises:
        ModelError: a mask that is not this attention's own, or an argument that is not understood.
    """
    _check(module, key, attention_mask, dropout, kwargs)
    call = AttentionCall(query, key, value, attention_mask, scaling, sliding_window)
    keeps_gradients = needs_grad(query, key, value)
    by_sdpa = keeps_gradients or query.shape[2] == 1
    if by_sdpa and asked is None:
        return _sdpa(module, call), None
    start, stop, measures = (asked.start, asked.stop, asked.measures) if asked else (0, 0, ())
    with torch.no_grad():
        output, found = _form(call)(call, start, stop, measures)
    if asked:
        asked.found = found
    return _sdpa(module, call) if by_sdpa else output, None


def padding(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    attention_mask: PositionMask | None = None,
    allow_is_causal_skip: bool = True,
    **_: Any,
) -> Bool[Tensor, "batch src"] | None:
    """What transformers calls for a mask: which of the keys are no padding, or ``None`` where none is.

    That a query sees no later key, and none before its window, is known to ``attention``.

    Raises:
        ModelError: keys that do not end where the queries do (a cache of fixed length), a mask for other tokens than
            these, or a pattern of its own (packed sequences, say).
    """
    if not allow_is_causal_skip or q_offset + q_length != kv_offset + kv_length:
        raise ModelError(
            f"attn_implementation={NAME!r} is for causal attention with a cache that grows, one sequence a row, where "
            f"queries are the last keys; got queries {q_offset}..{q_offset + q_length}, keys {kv_offset}.."
            f"{kv_offset + kv_length}{'' if allow_is_causal_skip else ' and a pattern of its own'}. Load the model "
            'with attn_implementation="sdpa"'
        )
    if attention_mask is None or attention_mask.all():
        return None
    if attention_mask.shape[1] != kv_offset + kv_length:
        raise ModelError(
            f"attention_mask must have one column for each of the {kv_offset + kv_length} tokens read so far, got "
            f"{attention_mask.shape[1]}"
        )
    return attention_mask[:, kv_offset:].bool()


def use_entropy_attention() -> None:
    """Make this attention known to transformers, so that any model can be set to ``NAME``."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, padding)


def _form(call: AttentionCall) -> Callable[..., tuple[Mixed, dict[Measure, RowMeasures]]]:
    """The form of ``attend`` for the device and dtype of the query: on a CPU with numba in blocks of keys.

    The kernel takes 16-bit floats. In fp32 its exact products are slower than those of the chunks: 141 ms against 44
    for 32,768 tokens of a RecurrentGemma-2B layer on an H200; in bf16 it takes 2.
    """
    if available(call.query, call.key, call.value, call.mask):
        from segregation.models.entropy_blocks import attend_in_blocks

        return attend_in_blocks
    if not call.query.is_cuda or call.query.dtype == torch.float32:
        return attend
    from segregation.models.entropy_kernel import attend_on_gpu, triton

    return attend if triton is None else attend_on_gpu


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


def _sdpa(module: nn.Module, call: AttentionCall) -> Mixed:
    """The same output through transformers' sdpa, with a full mask where one is needed."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    queries, begin = call.query.shape[2], call.first_key(0)
    key, value = call.key[:, :, begin:], call.value[:, :, begin:]
    plain = call.mask is None and (queries == 1 or (call.window is None and queries == key.shape[2]))
    mask = None if plain else call.visible(0, queries)
    return sdpa_attention_forward(module, call.query, key, value, mask, scaling=call.scaling)[0]


def _check(module: nn.Module, key: Tensor, mask: Tensor | None, dropout: float, kwargs: Mapping[str, Any]) -> None:
    instead = f'attn_implementation={NAME!r}; load the model with attn_implementation="sdpa", or "eager" for weights'
    if mask is not None and (mask.dim() != 2 or mask.shape[1] != key.shape[2]):
        raise ModelError(
            f"a mask of shape {tuple(mask.shape)} for {key.shape[2]} keys is not understood by {instead}. A mask must "
            "have two dimensions, a row for each sequence and a column for each token"
        )
    unknown = {name for name, value in kwargs.items() if not (name in HARMLESS or value is None or value is False)}
    unknown.discard("is_causal")
    if kwargs.get("is_causal") is False or not getattr(module, "is_causal", True):
        unknown.add("is_causal=False")
    if dropout:
        unknown.add(f"dropout={dropout}")
    if unknown:
        raise ModelError(f"{', '.join(sorted(unknown))} is not understood by {instead}")
