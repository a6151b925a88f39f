"""Which form the scans of a model run in: the fast one, its audit twin, or transformers' own.

- ``"fast"``, the default: RG-LRU and Mamba-1 by ``scan_linear`` and ``scan_mamba``, equal to rounding.
- ``"audit"``: on a CPU without gradients, one token at a time, equal to transformers' own bit for bit (``scans``).
- ``"transformers"``: its own loops.

Whatever the choice, compiled kernels stay in charge of Mamba-1 on CUDA where mamba-ssm is installed, gradients of
Mamba-1 go through transformers' own code, and several tokens after a filled cache go on from its state, which that code
cannot do (``continuing``): there the form here is taken.
"""

import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from segregation.errors import ModelError
from segregation.models.continuing import form_under_way, scan_under_way, start_scans_from_cache
from segregation.models.family import Family
from segregation.models.gradients import needs_grad
from segregation.models.scan_linear import linear_scan
from segregation.models.scan_mamba import fast_selective_scan, fast_selective_step
from segregation.models.scans import rg_lru_scan, selective_scan

if TYPE_CHECKING:
    from segregation.models.hybrid import HybridModel

Scans = Literal["fast", "audit", "transformers"]
"""The forms to choose from."""

_KERNELS = (
    *("causal_conv1d_fn", "causal_conv1d_update", "mamba_selective_scan", "mamba_selective_state_update"),
    *("mamba2_chunk_scan", "mamba2_selective_state_update", "torch_chunk_gated_delta_rule"),
    *("torch_recurrent_gated_delta_rule", "chunk_kimi_delta_attention", "recurrent_kimi_delta_attention"),
)
"""What transformers' modelling files call the functions for which it finds compiled kernels, where they have them."""


def check_scans(scans: str) -> None:
    """Refuse what is no form.

    Raises:
        ModelError: with the forms there are.
    """
    if scans not in get_args(Scans):
        raise ModelError(f"scans must be one of {', '.join(map(repr, get_args(Scans)))}, got {scans!r}")


def use_scans(model: "HybridModel", scans: str) -> None:
    """Let the recurrent layers of a model, and of everything intervened from it, scan in this form from now on.

    ``model.description["scans"]`` says which it is; it has no such entry where all scans are transformers' own.

    Raises:
        ModelError: no such form.
    """
    check_scans(scans)
    mixers = [model.mixer(layer)._module for layer in model.recurrent_layers]
    put_scans(model.family, mixers, cast(Scans, scans))
    if model.family.scan in ("rg_lru", "mamba"):
        model.description["scans"] = scans


def put_scans(family: Family, mixers: Sequence[nn.Module], scans: Scans) -> None:
    """Let these mixers scan in a form, start from the state of a filled cache, and keep to PyTorch on a CPU.

    Where compiled kernels are installed, transformers hands them tensors of any device; on a CPU they are refused, so
    there its own PyTorch references run instead. Functions of modelling files are wrapped once per process, which
    changes nothing for models that are not ours.
    """
    if family.scan == "rg_lru":
        _put_rg_lru((mixer.get_submodule("rg_lru") for mixer in mixers), scans)
        return
    for room in {type(mixer).__module__: sys.modules[type(mixer).__module__] for mixer in mixers}.values():
        for name in _KERNELS:
            kernel = getattr(room, name, None)
            if kernel is not None and not getattr(kernel, "keeps_to_reference", False):
                kernel = reference_on_cpu(kernel)
                setattr(room, name, _PUT[name](kernel) if name in _PUT else kernel)
    if family.scan == "mamba":
        start_scans_from_cache(mixers, _MAMBA[scans])


def reference_on_cpu(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel of transformers that runs the PyTorch function it wraps when its first tensor is on a CPU."""
    reference = inspect.unwrap(kernel)
    accepted = inspect.signature(reference).parameters

    @functools.wraps(kernel)
    def run(first: Tensor, *args: Any, **options: Any) -> Any:
        if first.device.type != "cpu":
            return kernel(first, *args, **options)
        return reference(first, *args, **{name: value for name, value in options.items() if name in accepted})

    run.__dict__["keeps_to_reference"] = True
    return run


def _put_rg_lru(units: Iterable[nn.Module], scans: Scans) -> None:
    for unit in units:
        original: Any = getattr(type(unit), "_rnn_scan").__get__(unit)  # noqa: B009
        form = _RG_LRU[scans]
        unit.__dict__["_rnn_scan"] = original if form is None else functools.partial(form, original)


def _rg_lru_fast(original: Callable[..., Any], **arguments: Any) -> Any:
    x, reset = arguments["hidden_states"], arguments["reset"]
    if x.shape[1] == 1:
        return original(**arguments)
    resets = reset[..., 0].expand(x.shape[:2])
    states = linear_scan(arguments["recurrent_gate"], x, resets, arguments["recurrent_states"])
    return states.to(x.dtype), states[:, -1].clone()


def _rg_lru_audit(original: Callable[..., Any], **arguments: Any) -> Any:
    x = arguments["hidden_states"]
    if x.shape[1] == 1 or not _plain(x, arguments["recurrent_gate"]):
        return original(**arguments)
    return rg_lru_scan(**arguments)


def _chosen(original: Callable[..., Any]) -> Callable[..., Any]:
    """Mamba-1's scan in the form that is chosen for the mixer under way, from its state; else the original."""

    @functools.wraps(original)
    def scan(hidden_states: Tensor, *args: Any, **options: Any) -> Any:
        under_way = scan_under_way()
        if under_way is None:
            return original(hidden_states, *args, **options)
        form, initial = under_way
        return form(original, initial, (hidden_states, *args), options)

    return scan


def _chosen_step(original: Callable[..., Any]) -> Callable[..., Any]:
    """Mamba-1's update by one token in the form that is chosen for the mixer under way; else the original."""

    @functools.wraps(original)
    def step(state: Tensor, *args: Any, **options: Any) -> Any:
        if form_under_way() is not _mamba_fast:
            return original(state, *args, **options)
        return fast_selective_step(original, state, *args, **options)

    return step


_PUT = {"mamba_selective_scan": _chosen, "mamba_selective_state_update": _chosen_step}
_Form = Callable[[Callable[..., Any], Tensor | None, tuple[Tensor, ...], Mapping[str, Any]], Any]


def _mamba_fast(original: Callable[..., Any], initial: Any, inputs: tuple[Tensor, ...], options: Any) -> Any:
    compiled = inputs[0].device.type != "cpu" and _has_mamba_ssm()
    if initial is None and (compiled or needs_grad(*inputs, options.get("delta_bias")) or options.get("use_mambapy")):
        return original(*inputs, **options)
    return fast_selective_scan(*inputs, initial=initial, **options)


def _mamba_audit(original: Callable[..., Any], initial: Any, inputs: tuple[Tensor, ...], options: Any) -> Any:
    if (
        inputs[0].dtype == torch.float32
        and not options.get("use_mambapy")
        and _plain(*inputs, options.get("delta_bias"))
    ):
        return selective_scan(*inputs, initial=initial, **options)
    return _mamba_transformers(original, initial, inputs, options)


def _mamba_transformers(original: Callable[..., Any], initial: Any, inputs: tuple[Tensor, ...], options: Any) -> Any:
    return original(*inputs, **options) if initial is None else fast_selective_scan(*inputs, initial=initial, **options)


@functools.cache
def _has_mamba_ssm() -> bool:
    return importlib.util.find_spec("mamba_ssm") is not None


_RG_LRU: Mapping[Scans, Any] = {"fast": _rg_lru_fast, "audit": _rg_lru_audit, "transformers": None}
_MAMBA: Mapping[Scans, _Form] = {"fast": _mamba_fast, "audit": _mamba_audit, "transformers": _mamba_transformers}


def _plain(*tensors: Tensor | None) -> bool:
    return not needs_grad(*tensors) and all(tensor is None or tensor.device.type == "cpu" for tensor in tensors)
