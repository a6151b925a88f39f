"""What transformers calls for attention that gives, beside its output, what its pattern's rows measure.

``use_entropy_attention`` makes it known to transformers, by ``NAME``. It has a form for each device: in blocks of keys
on a CPU (``entropy_blocks``), one kernel on a GPU (``entropy_kernel``), and chunks of queries where neither is
faster or runs (``entropy_chunks``). None holds the pattern: memory is linear in the number of tokens.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from segregation.errors import ModelError
from segregation.models.attention import AttentionCall
from segregation.models.entropy_blocks import attend_in_blocks, attends_in_blocks
from segregation.models.entropy_chunks import Measure, Mixed, RowMeasures, attend
from segregation.models.gradients import needs_grad
from segregation.shapes import PositionMask

NAME = "segregation"
"""What ``attn_implementation`` calls this attention."""

HARMLESS = frozenset({"position_ids", "use_cache", "output_router_logits", "cache_position"})
"""Keywords that transformers hands down to an attention call and that do not change what it computes."""


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
    """The form of ``attend`` for the device and dtype of the query: on a CPU in blocks if ``attends_in_blocks``.

    The kernel takes 16-bit floats. In fp32 its exact products are slower than those of the chunks: 141 ms against 44
    for 32,768 tokens of a RecurrentGemma-2B layer on an H200; in bf16 it takes 2.
    """
    if attends_in_blocks(call):
        return attend_in_blocks
    if not call.query.is_cuda or call.query.dtype == torch.float32:
        return attend
    from segregation.models.entropy_kernel import attend_on_gpu, triton  # triton takes a while to import

    return attend if triton is None else attend_on_gpu


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
