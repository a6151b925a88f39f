"""How much memory a model takes, from its config alone: weights, what it remembers, and what plans need on top.

Nothing is downloaded or computed: the model is built on PyTorch's meta device, where tensors have shapes but no
numbers, and reads a few tokens there. Not included are what CUDA itself takes, copies that an allocator keeps, and,
where no compiled kernel is installed, what the PyTorch references of Mamba build, such as tensors of
``batch pos width d_state``.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from segregation.errors import ModelError
from segregation.models.attention import QUERY_CHUNK
from segregation.models.family import family_of
from segregation.models.hybrid import HybridModel

WIDEST, RESIDUAL = 3, 7
"""How many tensors as wide as the widest projection, and as the residual, a forward holds at its fullest (measured)."""

SCORE_COPIES = 6
"""How many tensors of one chunk of pattern are held at once while heads are scored (measured)."""


@dataclass(frozen=True)
class MemoryNeeded:
    """Bytes that a model takes to read some rows of tokens.

    Attributes:
        weights: parameters and buffers, those that are shared once.
        remembered: keys, values and states after the tokens.
        forward: ``rows tokens (WIDEST widest + RESIDUAL d_model)`` numbers in the dtype: what a forward holds at its
            fullest, in one layer.
        head_scores: ``rows n_heads tokens (SCORE_COPIES QUERY_CHUNK + d_head)`` numbers in fp32: a chunk of one layer's
            pattern, and its keys, which rules that score heads or edit patterns add.
        eager: ``rows n_heads tokens tokens`` numbers, twice in fp32 and once in a narrower dtype: one layer's pattern,
            which ``attn_implementation="eager"`` adds.
        all_logits: ``rows tokens d_vocab`` numbers in the dtype, which a trace or a loglikelihood adds; generation
            reads one position.
    """

    weights: int
    remembered: int
    forward: int
    head_scores: int
    eager: int
    all_logits: int

    def total(self, *extra: str) -> int:
        """Bytes of weights, memory and forward, and of the named extras."""
        return self.weights + self.remembered + self.forward + sum(getattr(self, name) for name in extra)


def memory_needed(config: Any, rows: int, tokens: int, dtype: torch.dtype) -> MemoryNeeded:
    """What the model of a config takes in a dtype to read ``rows`` of ``tokens`` each, in bytes.

    Args:
        config: of a known family.
        rows: rows of the batch, each with its own memory.
        tokens: of each row, prompt and new ones together.
        dtype: of weights and activations.

    Raises:
        ModelError: no row or no token.
        FamilyError: not a hybrid of a known family.

    >>> from transformers import JambaConfig
    >>> found = memory_needed(JambaConfig(), rows=1, tokens=4096, dtype=torch.bfloat16)
    >>> f"{found.weights / 1e9:.0f} GB of weights, {found.remembered / 1e6:.0f} MB remembered"
    '103 GB of weights, 84 MB remembered'
    """
    if rows < 1 or tokens < 1:
        raise ModelError(f"memory is needed for at least one row of one token, got {rows} rows of {tokens}")
    model = on_meta(config, dtype)
    module, size = model.hf_model, dtype.itemsize
    head = module.get_output_embeddings()
    widest = max(part.out_features for part in module.modules() if isinstance(part, nn.Linear) and part is not head)
    keys = rows * model.n_heads * tokens if model.attention_layers else 0
    return MemoryNeeded(
        weights=_bytes({id(t): t for t in (*module.parameters(), *module.buffers())}.values()),
        remembered=remembered(model, rows, tokens),
        forward=rows * tokens * (WIDEST * widest + RESIDUAL * model.d_model) * size,
        head_scores=keys * (SCORE_COPIES * min(QUERY_CHUNK, tokens) + model.d_head) * 4,
        eager=keys * tokens * (8 + (size if size < 4 else 0)),
        all_logits=rows * tokens * model.d_vocab * size,
    )


def on_meta(config: Any, dtype: torch.dtype) -> HybridModel:
    """The model of a config without any numbers."""
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    family_of(config)
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config, dtype=dtype, experts_implementation="batched_mm")
    nothing = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({}, unk_token="")))
    return HybridModel(module, nothing)


def remembered(model: HybridModel, rows: int, tokens: int) -> int:
    """Bytes of keys, values and states after ``tokens`` in each of ``rows``.

    States do not grow; keys and values grow by the same for every token, up to the window where there is one, of which
    the newest token is not kept. So what one and two tokens leave behind says it all.
    """
    kept = tokens if model.window is None else min(tokens, model.window - 1)
    one, two = (_bytes(_remembered(model, n)) for n in (1, 2))
    return rows * (one + (kept - 1) * (two - one))


def _remembered(model: HybridModel, tokens: int) -> list[Tensor]:
    cache = model.new_cache()
    model.reset()
    token = torch.zeros(1, 1, dtype=torch.long, device=model.hf_model.device)
    with torch.no_grad():
        for _ in range(tokens):
            model.hf_model(token, use_cache=True, **{model.family.cache: cache})
    held = model.remember(cache, torch.tensor([tokens])).held
    model.reset()
    kept = {id(tensor): tensor for tensor in _tensors([vars(cache), [vars(layer) for layer in cache.layers], held])}
    return [tensor for tensor in kept.values() if tensor.is_floating_point()]


def _tensors(nested: Any) -> Iterator[Tensor]:
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, Mapping):
        yield from _tensors(list(nested.values()))
    elif isinstance(nested, Sequence) and not isinstance(nested, str):
        for part in nested:
            yield from _tensors(part)


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
