"""Several tokens fed to a filled cache: the scans and convolutions that stock code starts from nothing go on from it.

transformers hands Mamba-1's scan no state, and RecurrentGemma's convolution no history, unless one token is fed at a
time. PyTorch hooks on the modules make up for both, so that plain calls, traces and ``generate`` are all right, and
what NNsight reads of the convolution has one output for each token.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from segregation.models.caches import kept_states
from segregation.models.positions import cache_of, forward_arguments


class _UnderWay(threading.local):
    scan: tuple[Callable[..., Any], Iterator[Tensor | None]] | None = None


_UNDER_WAY = _UnderWay()
_FORMS: WeakKeyDictionary[nn.Module, Callable[..., Any]] = WeakKeyDictionary()
_KEPT_GOING: WeakSet[nn.Module] = WeakSet()


def start_scans_from_cache(mixers: Sequence[nn.Module], form: Callable[..., Any]) -> None:
    """Let the Mamba-1 scans of these mixers be found by ``scan_under_way``, with this form and the cache's state."""
    for mixer in mixers:
        if mixer not in _FORMS:
            mixer.register_forward_pre_hook(_begin, with_kwargs=True)
            mixer.register_forward_hook(_end, always_call=True)
        _FORMS[mixer] = form


def scan_under_way() -> tuple[Callable[..., Any], Tensor | None] | None:
    """The form and the initial state of the scan that a mixer of ours calls now; the next call is the next head's.

    ``None`` for the state is zero; ``None`` altogether is a mixer that is not ours.
    """
    if _UNDER_WAY.scan is None:
        return None
    form, states = _UNDER_WAY.scan
    return form, next(states)


def form_under_way() -> Any:
    """The form of the mixer whose forward runs; ``None`` is one that is not ours."""
    return None if _UNDER_WAY.scan is None else _UNDER_WAY.scan[0]


def state_before(mixer: nn.Module, arguments: Any) -> Tensor | None:
    """The state that the scan over several tokens starts from, as a copy; ``None`` is zero."""
    cache = cache_of(arguments)
    if cache is None or arguments["hidden_states"].shape[1] == 1:
        return None
    state = kept_states(cache, mixer.layer_idx)[1]  # type: ignore[arg-type]
    return None if state is None else state.clone()  # the cache writes into its own


def keep_convolutions_going(model: nn.Module, blocks: Sequence[nn.Module]) -> None:
    """Let the convolution of RG-LRU blocks read what came before where several tokens are fed to a filled cache.

    It then reads its history instead of zeros at the left, and the block keeps the last of both.
    """
    if model in _KEPT_GOING:
        return
    _KEPT_GOING.add(model)
    seen = {"tokens": 0}

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        cache = cache_of(forward_arguments(module, args, kwargs))
        seen["tokens"] = 0 if cache is None else cache.get_seq_length()

    model.register_forward_pre_hook(note, with_kwargs=True)
    for block in blocks:
        _keep_going(block, seen)


def _begin(mixer: nn.Module, args: Any, kwargs: Any) -> None:
    state = state_before(mixer, forward_arguments(mixer, args, kwargs))
    heads = getattr(mixer, "n_mamba_heads", 1)
    states = (None,) * heads if state is None else (state,) if state.dim() == 3 else state.unbind(1)
    _UNDER_WAY.scan = _FORMS[mixer], iter(states)


def _end(_mixer: nn.Module, _args: Any, _output: Any) -> None:
    _UNDER_WAY.scan = None


def _keep_going(block: Any, seen: dict[str, int]) -> None:
    history: dict[str, Tensor | None] = {"taps": None}
    convolution = block.conv_1d
    padding = convolution.padding

    def before(_block: nn.Module, args: Any, kwargs: Any) -> None:
        # transformers begins with zeros on the device of the embeddings, wherever this layer is
        for owner, name in ((block, "conv1d_state"), (block.rg_lru, "recurrent_states")):
            if (state := getattr(owner, name)) is not None:
                setattr(owner, name, state.to(convolution.weight.device))
        history["taps"] = block.conv1d_state if seen["tokens"] and kwargs.get("use_cache") else None

    def read(_convolution: nn.Module, args: tuple[Tensor]) -> tuple[Tensor] | None:
        taps = history["taps"]
        if taps is None or taps.shape[0] != args[0].shape[0]:
            return None
        whole = torch.cat([taps.to(args[0]), args[0]], dim=-1)
        block.conv1d_state = whole[..., -taps.shape[-1] :].clone()
        convolution.padding = (0,)
        return (whole,)

    def restore(_convolution: nn.Module, _args: Any, _output: Any) -> None:
        convolution.padding = padding

    block.register_forward_pre_hook(before, with_kwargs=True)
    convolution.register_forward_pre_hook(read)
    convolution.register_forward_hook(restore, always_call=True)
