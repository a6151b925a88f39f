"""Where a mixer of each kind takes its input, scans and emits, seen through NNsight in one forward pass.

What each does at token t, with the names used here (arXiv 2402.19427; 2312.00752; 2405.21060; 2412.06464; 2510.26692):

- ``rg_lru``: ``linear_x`` -> convolution -> ``rg_lru.self__rnn_scan`` (h = a h + x) -> gate -> ``linear_out``.
- ``mamba``: ``in_proj`` (x | gate) -> convolution -> ``mamba_selective_scan`` (h = exp(A dt) h + dt B x) -> gate ->
  ``out_proj``.
- ``mamba2``: ``in_proj`` (gate | x B C | dt) -> convolution -> ``mamba2_chunk_scan`` -> ``norm`` -> ``out_proj``.
- ``gated_delta``, ``kda``: projections of q, k, v -> convolution -> S = exp(g) S, S = S + beta k (v - S^T k)^T, with
  one g a head, or one for each of its channels -> gated norm -> output projection.
- ``short_conv``: ``in_proj`` (B | C | x) -> convolution of B x -> times C -> ``out_proj``; it has no scan.
- ``lightning``: S = exp(-slope) S + k v^T, computed in the module's own forward.

All with a scan but ``rg_lru`` have another operation for one token after a filled cache; the Mambas' update the state
in place.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segregation.models.family import Family, Scan
from segregation.models.positions import cache_of, forward_arguments
from segregation.models.scan_edits import Watch, edit_scan
from segregation.shapes import PositionMask

_SCANS: Mapping[Scan | None, tuple[str, str]] = {
    "mamba": ("mamba_selective_scan_0", "mamba_selective_state_update_0"),
    "mamba2": ("mamba2_chunk_scan_0", "mamba2_selective_state_update_0"),
    "gated_delta": ("torch_chunk_gated_delta_rule_0", "torch_recurrent_gated_delta_rule_0"),
    "kda": ("chunk_kimi_delta_attention_0", "recurrent_kimi_delta_attention_0"),
}
"""The operation that scans several tokens, and the one for a single token after a filled cache."""


@dataclass(frozen=True, eq=False)
class MixerCall:
    """One mixer in one forward pass; its methods must be called in the order they stand in, each at most once.

    Attributes:
        mixer: the module, through NNsight.
        family: its family.
        stepwise: whether one token is read after a filled cache.
        before: the state before this forward's tokens, where the cache keeps it; ``None`` where there is none yet.
    """

    mixer: Any
    family: Family
    stepwise: bool
    before: Tensor | None

    @classmethod
    def of(cls, mixer: Any, family: Family, layer: int) -> "MixerCall":
        """The call under way of a layer's mixer."""
        if family.held_states:
            return cls(mixer, family, False, None)
        from segregation.models.caches import kept_states

        if family.scan in _SCANS:
            _ = mixer.source  # its operations can be seen only if that is asked before it runs
        args, kwargs = mixer.inputs
        arguments = forward_arguments(mixer._module, args, kwargs)
        cache, length = cache_of(arguments), arguments["hidden_states"].shape[1]
        conv, state = (None, None) if cache is None else kept_states(cache, layer)
        filled = state is not None or conv is not None
        return cls(mixer, family, filled and length == 1, state)

    def close_input(self, at: PositionMask) -> None:
        """Let the convolution see zeros at these tokens, and the Mamba-2 scan a step dt of zero."""
        for name in self.family.conv_inputs:
            projection = self.mixer.get(name)
            projected = projection.output
            mask = at.to(projected.device)[..., None]
            projection.output = self._closed(projected, mask)

    def edit_scan(self, skip: PositionMask | None, reset: PositionMask | None, watch: Watch) -> None:
        """Let the state pass unchanged at the tokens of ``skip``, and start from zero before those of ``reset``.

        ``watch`` is called with the state that the scan goes on from, before that: what the operation is given, or, of
        a family whose scan is no operation, what the cache keeps as its mixer is called.
        """
        if self.scan is None:
            watch(self.before)
        else:
            edit_scan(self.family.scan, self.stepwise, self.scan, skip, reset, watch, self.before)

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
        """The operation that scans, through NNsight; ``None`` where no one operation does."""
        if self.family.scan == "rg_lru":
            return self.mixer.rg_lru.source.self__rnn_scan_0
        if self.family.scan not in _SCANS or "reset" in self.family.cannot:
            return None
        return getattr(self.mixer.source, _SCANS[self.family.scan][self.stepwise])

    def _closed(self, projected: Tensor, mask: Tensor) -> Tensor:
        if self.family.scan not in ("mamba", "mamba2"):
            return projected.masked_fill(mask, 0)
        projected, module = projected.clone(), self.mixer._module
        inner = module.intermediate_size
        if self.family.scan == "mamba":
            projected[..., :inner].masked_fill_(mask, 0)
        else:
            projected[..., inner : inner + module.conv_dim].masked_fill_(mask, 0)
            projected[..., inner + module.conv_dim :].masked_fill_(mask, -torch.inf)  # softplus(-inf) = 0
        return projected
