"""Where a mixer of each scan takes its input, scans and emits, seen through NNsight in one forward pass.

What each of the three does at token t, with the names used here (arXiv 2402.19427; 2312.00752; 2405.21060):

- ``rg_lru``: ``linear_x`` -> convolution -> ``rg_lru.self__rnn_scan`` (h = a h + x) -> gate -> ``linear_out``.
- ``mamba``: ``in_proj`` (x | gate) -> convolution -> ``mamba_selective_scan`` (h = exp(A dt) h + dt B x) -> gate ->
  ``out_proj``.
- ``mamba2``: ``in_proj`` (gate | x B C | dt) -> convolution -> ``mamba2_chunk_scan`` -> ``norm`` -> ``out_proj``.

Both Mambas have another operation for one token after a filled cache, which updates the state in place.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segregation.models.family import Family
from segregation.models.positions import forward_arguments
from segregation.models.scans import mamba2_scan_from, selective_scan
from segregation.shapes import PositionMask

Watch = Callable[[Tensor | None], None]
"""What is shown a state, or ``None`` where there is none yet."""

_SCANS = {"mamba": "mamba_selective_scan_0", "mamba2": "mamba2_chunk_scan_0"}
_STEPS = {"mamba": "mamba_selective_state_update_0", "mamba2": "mamba2_selective_state_update_0"}


@dataclass(frozen=True, eq=False)
class MixerCall:
    """One mixer in one forward pass; its methods must be called in the order they stand in, each at most once.

    Attributes:
        mixer: the module, through NNsight.
        family: its family.
        stepwise: whether one token is read after a filled cache, where the Mambas update their state in place.
    """

    mixer: Any
    family: Family
    stepwise: bool

    @classmethod
    def of(cls, mixer: Any, family: Family, layer: int) -> "MixerCall":
        """The call under way of a layer's mixer."""
        if family.held_states:
            return cls(mixer, family, False)
        _ = mixer.source  # its operations can be seen only if that is asked before it runs
        args, kwargs = mixer.inputs
        arguments = forward_arguments(mixer._module, args, kwargs)
        cache, length = arguments.get("cache_params"), arguments["hidden_states"].shape[1]
        filled = cache is not None and cache.layers[layer].recurrent_states[0] is not None
        return cls(mixer, family, filled and length == 1)

    def close_input(self, at: PositionMask) -> None:
        """Let the convolution see zeros at these tokens, and the Mamba-2 scan a step dt of zero."""
        projection = self.mixer.linear_x if self.family.scan == "rg_lru" else self.mixer.in_proj
        projected = projection.output
        at = at.to(projected.device)[..., None]
        if self.family.scan == "rg_lru":
            projection.output = projected.masked_fill(at, 0)
            return
        projected, module = projected.clone(), self.mixer._module
        if self.family.scan == "mamba":
            projected[..., : module.intermediate_size].masked_fill_(at, 0)
        else:
            inner = module.intermediate_size
            projected[..., inner : inner + module.conv_dim].masked_fill_(at, 0)
            projected[..., inner + module.conv_dim :].masked_fill_(at, -torch.inf)  # softplus(-inf) = 0
        projection.output = projected

    def edit_scan(self, skip: PositionMask | None, reset: PositionMask | None, watch: Watch) -> None:
        """Let the state pass unchanged at the tokens of ``skip``, and start from zero before those of ``reset``.

        ``watch`` is called with the state that the scan goes on from, before that.
        """
        if self.family.scan == "rg_lru":
            self._edit_rg_lru(skip, reset, watch)
        elif self.stepwise:
            self._edit_step(skip, reset, watch)
        else:
            self._edit_scan(skip, reset, watch)

    def edit_output(self, edit: Callable[[Tensor], Tensor]) -> None:
        """Change what the mixer adds to the residual."""
        output = self.mixer.output
        if isinstance(output, tuple):
            output, *rest = output
            self.mixer.output = (edit(output), *rest)
        else:
            self.mixer.output = edit(output)

    @property
    def scan(self) -> Any:
        """The operation that scans, through NNsight."""
        if self.family.scan == "rg_lru":
            return self.mixer.rg_lru.source.self__rnn_scan_0
        return getattr(self.mixer.source, (_STEPS if self.stepwise else _SCANS)[self.family.scan])

    def _edit_rg_lru(self, skip: PositionMask | None, reset: PositionMask | None, watch: Watch) -> None:
        op = self.scan
        args, kwargs = op.inputs
        watch(kwargs["recurrent_states"])
        kwargs = dict(kwargs)
        device = kwargs["hidden_states"].device
        if skip is not None:
            at = skip.to(device)[..., None]
            kwargs["hidden_states"] = kwargs["hidden_states"].masked_fill(at, 0)
            kwargs["recurrent_gate"] = kwargs["recurrent_gate"].masked_fill(at, 1)
        if reset is not None:
            kwargs["reset"] = kwargs["reset"] | reset.to(device)[..., None]
        op.inputs = args, kwargs

    def _edit_step(self, skip: PositionMask | None, reset: PositionMask | None, watch: Watch) -> None:
        op = self.scan
        (state, hidden_states, dt, *rest), kwargs = op.inputs
        watch(state)
        if reset is not None:
            state[reset[:, 0].to(state.device)] = 0  # in place: the update writes into this very tensor
        if skip is not None and self.family.scan == "mamba":
            dt = dt.masked_fill(skip.to(dt.device), -torch.inf)
            op.inputs = (state, hidden_states, dt, *rest), kwargs

    def _edit_scan(self, skip: PositionMask | None, reset: PositionMask | None, watch: Watch) -> None:
        op = self.scan
        (hidden_states, dt, *rest), kwargs = op.inputs
        watch(kwargs.get("initial_states"))
        if skip is not None and self.family.scan == "mamba":
            dt = dt.masked_fill(skip.to(dt.device)[:, None, :], -torch.inf)
            op.inputs = (hidden_states, dt, *rest), kwargs
        if reset is None:
            return
        reset = reset.to(dt.device)
        own = (selective_scan if self.family.scan == "mamba" else mamba2_scan_from)(
            hidden_states, dt, *rest, **{**kwargs, "resets": reset}
        )
        rows, found = reset.any(-1), op.output
        op.output = (
            tuple(_rows(rows, new, old) for new, old in zip(own, found, strict=True))
            if isinstance(found, tuple)
            else _rows(rows, own, found)
        )


def _rows(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """The new rows where ``rows`` says so, the old ones elsewhere."""
    return torch.where(rows.view(-1, *[1] * (old.dim() - 1)), new.to(old), old)
