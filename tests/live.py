"""How many bytes of tensors a run holds at its fullest, beside a module's own, counted operation by operation."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Live(TorchDispatchMode):
    def __init__(self, own: set[int]) -> None:
        super().__init__()
        self.own, self.held, self.now, self.peak = own, {}, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self.own and key not in self.held:
                    self.held[key] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._drop, key)
        return made

    def _drop(self, key: int) -> None:
        self.now -= self.held.pop(key, 0)


def live_peak(module: torch.nn.Module, run: Callable[[], object]) -> int:
    """Bytes at the fullest moment of a run, without the parameters and buffers of a module."""
    own = {tensor.untyped_storage()._cdata for tensor in (*module.parameters(), *module.buffers())}
    with _Live(own) as live:
        run()
    return live.peak
