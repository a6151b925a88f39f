"""A transformers model run by hand and edited by PyTorch hooks and a plain attention function: what contracts are
compared with.

Nothing of NNsight or of this package runs here. Where a module is, is told by the wrapped twin, and
``test_structure`` checks that against what the modules do.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache
from transformers.masking_utils import AttentionMaskInterface, eager_mask

PatternEdit = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, pattern [row head dest src], positions of dest, positions of src) -> the edited pattern."""
OutputEdit = Callable[[int, Tensor, Tensor], Tensor]
"""(layer, what is put out [row pos ...], positions) -> the edited output."""
CHANNELS = ("recurrent", "conv", "keys", "values")


@dataclass
class Plain:
    """A plain model with its parts by layer.

    Attributes:
        module: the transformers model, never wrapped.
        attention: attention modules.
        out_proj: their output projections.
        mixer: recurrent mixers.
        n_heads: query heads.
        cache_name: the argument that a forward takes its cache in.
        seen: tokens read since ``start``.
        cache: what the model remembers of them.
    """

    module: Any
    attention: dict[int, nn.Module]
    out_proj: dict[int, nn.Linear]
    mixer: dict[int, nn.Module]
    n_heads: int
    cache_name: str = "past_key_values"
    seen: int = 0
    cache: Any = None
    pattern_edits: list[PatternEdit] = field(default_factory=list)

    def start(self) -> None:
        """Forget all that was read."""
        self.seen = 0
        model_type = self.module.config.model_type
        self.cache = None if model_type == "minimax" else DynamicCache(config=self.module.config)
        block: Any
        for block in self.mixer.values():
            if hasattr(block, "rg_lru"):
                block.conv1d_state = block.rg_lru.recurrent_states = None

    def read(self, ids: Tensor, keep: int = 0) -> Tensor:
        """Logits of these tokens, after those that were read; of the last ``keep``, where that is not 0."""
        positions = self.positions(ids.shape[1]).expand(ids.shape)
        given = {} if self.cache_name == "cache_params" else {"position_ids": positions}
        with torch.no_grad():
            out = self.module(ids, use_cache=True, logits_to_keep=keep, **{self.cache_name: self.cache}, **given)
        if self.cache is None:
            self.cache = out[self.cache_name]
        self.seen += ids.shape[1]
        return out.logits

    def run(self, ids: Tensor) -> Tensor:
        """Logits of all tokens, read at once."""
        self.start()
        return self.read(ids)

    def decode(self, ids: Tensor, prefill: int) -> Tensor:
        """Logits of the last of the first ``prefill`` tokens, read at once, and of the others, read one by one."""
        self.start()
        pieces = [ids[:, :prefill], *ids[:, prefill:].split(1, dim=1)] if prefill < ids.shape[1] else [ids]
        return torch.cat([self.read(piece, keep=1) for piece in pieces], dim=1)

    def positions(self, length: int) -> Tensor:
        """Of the tokens that are read next or now."""
        return torch.arange(self.seen, self.seen + length)

    # -- what is remembered ----------------------------------------------------------------------------------------

    def remembered(self, layer: int, channel: str) -> Tensor | None:
        """What a layer remembers now, itself."""
        if channel in ("keys", "values"):
            found = getattr(self.cache.layers[layer], channel) if layer in self.attention else None
        elif layer not in self.mixer:
            return None
        elif hasattr(self.mixer[layer], "rg_lru"):
            block: Any = self.mixer[layer]
            found = block.rg_lru.recurrent_states if channel == "recurrent" else block.conv1d_state
        elif hasattr(self.cache, "linear_cache"):
            found = self.cache.linear_cache[layer] if channel == "recurrent" else None
        else:
            found = getattr(self.cache.layers[layer], f"{channel}_states")[0]
        return found if isinstance(found, Tensor) and found.numel() else None

    def remember(self, layer: int, channel: str, tensor: Tensor) -> None:
        """Let a layer remember this instead."""
        if channel in ("keys", "values"):
            setattr(self.cache.layers[layer], channel, tensor)
        elif hasattr(self.mixer[layer], "rg_lru"):
            block: Any = self.mixer[layer]
            owner, name = (block.rg_lru, "recurrent_states") if channel == "recurrent" else (block, "conv1d_state")
            setattr(owner, name, tensor)
        elif hasattr(self.cache, "linear_cache"):
            self.cache.linear_cache[layer] = tensor
        else:
            getattr(self.cache.layers[layer], f"{channel}_states")[0] = tensor

    def memory(self) -> dict[tuple[int, str], Tensor]:
        """Copies of all that is remembered, by layer and channel."""
        layers = sorted({*self.attention, *self.mixer})
        found = {(layer, channel): self.remembered(layer, channel) for layer in layers for channel in CHANNELS}
        return {where: tensor.clone() for where, tensor in found.items() if tensor is not None}

    # -- edits -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def heads(self, edit: OutputEdit) -> Iterator[None]:
        """With z ``[row pos head d_head]`` edited where it enters the output projections."""

        def hook(layer: int) -> Any:
            def change(_module: nn.Module, args: Any) -> Any:
                z = args[0].unflatten(-1, (self.n_heads, -1))
                return (edit(layer, z, self.positions(z.shape[1])).flatten(-2), *args[1:])

            return change

        handles = [module.register_forward_pre_hook(hook(layer)) for layer, module in self.out_proj.items()]
        yield from _until_done(handles)

    @contextlib.contextmanager
    def outputs(self, parts: dict[int, nn.Module], edit: OutputEdit) -> Iterator[None]:
        """With the outputs of attention modules, or of mixers, edited."""

        def hook(layer: int) -> Any:
            def change(_module: nn.Module, _args: Any, output: Any) -> Any:
                first, *rest = output if isinstance(output, tuple) else (output,)
                first = edit(layer, first, self.positions(first.shape[1]))
                return (first, *rest) if isinstance(output, tuple) else first

            return change

        handles = [module.register_forward_hook(hook(layer)) for layer, module in parts.items()]
        yield from _until_done(handles)

    @contextlib.contextmanager
    def patterns(self, *edits: PatternEdit) -> Iterator[None]:
        """With attention computed by the plain function below, its probabilities edited."""
        before = str(self.module.config._attn_implementation)
        self.module.set_attn_implementation("by_hand")
        owners = {module: layer for layer, module in self.attention.items()}
        _EDITING.append((self, owners, edits))
        try:
            yield
        finally:
            _EDITING.pop()
            self.module.set_attn_implementation(before)


_EDITING: list[tuple[Plain, dict[nn.Module, int], Sequence[PatternEdit]]] = []


def by_hand(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **_: Any
) -> tuple[Tensor, Tensor]:
    """softmax(scaling q k + mask) v with edits in between, in the dtype of the inputs."""
    plain, owners, edits = _EDITING[-1]
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    scores = query @ key.mT * scaling
    pattern = (scores if mask is None else scores + mask).softmax(-1)
    dest = plain.positions(query.shape[2])
    src = torch.arange(int(dest[-1]) + 1 - key.shape[2], int(dest[-1]) + 1)
    for edit in edits:
        pattern = edit(owners[module], pattern, dest, src)
    return (pattern @ value).transpose(1, 2).contiguous(), pattern


AttentionInterface.register("by_hand", by_hand)
AttentionMaskInterface.register("by_hand", eager_mask)


def _until_done(handles: Sequence[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
