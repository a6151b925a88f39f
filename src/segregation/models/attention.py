"""What one attention call is given, and the pattern it computes from it, for sdpa and eager alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from segregation.shapes import Pattern, Z

QUERY_CHUNK = 64
"""Query positions whose pattern is held at once when only a score of it is wanted."""


@dataclass(frozen=True)
class AttentionCall:
    """The inputs of one attention call: grouped keys and values, and the mask as transformers passes it.

    Attributes:
        query: queries, rotated where the family rotates.
        key: keys, the cached ones first.
        value: values.
        mask: ``None`` (causal), boolean (``True`` is visible) or additive.
        scaling: factor of the dot products.
        window: how many keys back a query sees, itself included; ``None`` is all.
    """

    query: Float[Tensor, "batch head dest d_head"]
    key: Float[Tensor, "batch kv src d_head"]
    value: Float[Tensor, "batch kv src d_value"]
    mask: Tensor | None
    scaling: float
    window: int | None

    @classmethod
    def of(cls, args: Sequence[Any], kwargs: Mapping[str, Any]) -> "AttentionCall":
        """Read the arguments of a transformers attention function."""
        _, query, key, value, mask = args
        return cls(query, key, value, mask, kwargs["scaling"], kwargs.get("sliding_window"))

    def pattern(self) -> Pattern:
        """Attention probabilities ``softmax(scaling q k + mask)``, in fp32; a row that sees no key is zero."""
        band = self.band(0, self.query.shape[2])
        return torch.nn.functional.pad(band, (self.key.shape[2] - band.shape[-1], 0))

    def band(self, start: int, stop: int) -> Pattern:
        """The pattern of the queries ``start..stop``, cut at the left to the keys their window can reach."""
        first = 0
        if self.window is not None:
            first = max(0, self.key.shape[2] - self.query.shape[2] + start - self.window + 1)
        key = self.key[:, :, first:].float()
        query = self.query[:, :, start:stop].float().unflatten(1, (key.shape[1], -1))  # batch kv group dest d_head
        scores = (query.flatten(2, 3) @ key.mT).unflatten(2, query.shape[2:4]).flatten(1, 2) * self.scaling
        if self.mask is None and self.query.shape[2] == 1:  # the newest token sees every key that is left
            return scores.softmax(-1)
        visible = self._visible(start, stop, first)
        if visible.dtype == torch.bool:
            scores = scores.masked_fill(~visible, -torch.inf)
            seen = visible.any(-1, keepdim=True)
        else:
            scores = scores + visible.float()
            seen = (visible > torch.finfo(visible.dtype).min / 2).any(-1, keepdim=True)
        return scores.softmax(-1).masked_fill(~seen, 0.0)

    def z(self) -> Z:
        """``pattern @ v`` per query head, which must be what enters the output projection."""
        heads, groups = self.query.shape[1], self.value.shape[1]
        value = self.value.float().repeat_interleave(heads // groups, dim=1)
        return (self.pattern() @ value).transpose(1, 2).to(self.value.dtype)

    def _visible(self, start: int, stop: int, first: int) -> Bool[Tensor, "..."] | Float[Tensor, "..."]:
        if self.mask is not None:
            return self.mask[..., start:stop, first : self.key.shape[2]]
        dest = torch.arange(start, stop, device=self.query.device)[:, None] + self.key.shape[2] - self.query.shape[2]
        src = torch.arange(first, self.key.shape[2], device=self.query.device)
        visible = src <= dest
        return visible if self.window is None else visible & (src > dest - self.window)
