"""What one attention call is given, and the pattern it computes from it, whichever the implementation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from segregation.models.positions import PatternEdit
from segregation.shapes import LogPattern, Pattern, Visible, Z

QUERY_CHUNK = 64
"""Query positions whose pattern is held at once when only a score of it is wanted."""


@dataclass(frozen=True)
class AttentionCall:
    """The inputs of one attention call: grouped keys and values, and the mask as transformers passes it.

    Attributes:
        query: queries, rotated where the family rotates.
        key: keys, the cached ones first.
        value: values.
        mask: ``None`` (causal), boolean (``True`` is visible), additive, or with two dimensions (causal, and which keys
            are no padding).
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

    def pattern(self, edits: Sequence[PatternEdit] = ()) -> Pattern:
        """Attention probabilities ``softmax(scaling q k + mask)`` after edits, in fp32; a row without keys is zero."""
        band = self.edited_band(edits, 0, self.query.shape[2])
        return torch.nn.functional.pad(band, (self.key.shape[2] - band.shape[-1], 0))

    def band(self, start: int, stop: int) -> Pattern:
        """The pattern of the queries ``start..stop``, cut at the left to the keys their window can reach."""
        scores = self._scores(start, stop)
        if self.mask is None and self.query.shape[2] == 1:  # the newest token sees every key that is left
            return scores.softmax(-1)
        visible = self.visible(start, stop)
        return self._masked(scores, start, stop, visible).softmax(-1).masked_fill(~visible.any(-1, keepdim=True), 0.0)

    def masked_band(self, left: Visible, start: int, stop: int) -> Pattern:
        """``band`` where the queries may see these keys only; a row that is left with none is zero."""
        some = left.any(-1, keepdim=True)
        scores = self._scores(start, stop).masked_fill_(some & ~left, -torch.inf)
        return scores.softmax(-1).masked_fill(~some, 0.0)

    def log_band(self, start: int, stop: int) -> tuple[LogPattern, Visible]:
        """``ln`` of ``band`` (``-inf`` where a key is not seen), and which keys each query may see."""
        visible = self.visible(start, stop)
        logs = self._scores(start, stop).masked_fill_(~visible, -torch.inf).log_softmax(-1)
        if not visible.any(-1).all():
            logs.masked_fill_(~visible, -torch.inf)  # a row that sees no key, which is padding
        return logs, visible

    def first_key(self, start: int) -> int:
        """The first key that ``band`` holds for queries from ``start`` on."""
        if self.window is None:
            return 0
        return max(0, self.key.shape[2] - self.query.shape[2] + start - self.window + 1)

    def visible(self, start: int, stop: int) -> Visible:
        """Which keys of ``band`` the queries ``start..stop`` may see: causal, in the window, and not padding."""
        first, keys = self.first_key(start), self.key.shape[2]
        if self.mask is not None and self.mask.dim() == 4:
            mask = self.mask[..., start:stop, first:keys]
            return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        src = torch.arange(first, keys, device=self.query.device)
        dest = torch.arange(start, stop, device=self.query.device)[:, None] + keys - self.query.shape[2]
        visible = src <= dest
        if self.window is not None:
            visible = visible & (src > dest - self.window)
        return visible[None, None] if self.mask is None else visible & self.mask[:, None, None, first:keys]

    def edited_band(self, edits: Sequence[PatternEdit], start: int, stop: int) -> Pattern:
        """``band`` after edits of the pattern, in order; without any, ``band`` itself."""
        return self.edited_log_band(edits, start, stop)[0].exp() if edits else self.band(start, stop)

    def edited_log_band(self, edits: Sequence[PatternEdit], start: int, stop: int) -> tuple[LogPattern, Visible]:
        """``log_band`` after edits of the pattern, in order."""
        logs, visible = self.log_band(start, stop)
        for edit in edits:
            logs = edit(logs, visible, start, self.first_key(start))
        return logs, visible

    def mix(self, pattern: Pattern, start: int) -> Float[Tensor, "batch dest head d_value"]:
        """``pattern @ v`` for a band that starts at query ``start``, in fp32."""
        value = self.value[:, :, self.first_key(start) :].float()
        grouped = pattern.unflatten(1, (value.shape[1], -1))  # batch kv group dest src
        return (grouped.flatten(2, 3) @ value).unflatten(2, grouped.shape[2:4]).flatten(1, 2).transpose(1, 2)

    def z(self) -> Z:
        """``pattern @ v`` per query head, which must be what enters the output projection."""
        return self.mix(self.band(0, self.query.shape[2]), 0).to(self.value.dtype)

    def _scores(self, start: int, stop: int) -> Float[Tensor, "batch head dest src"]:
        key = self.key[:, :, self.first_key(start) :].float()
        query = self.query[:, :, start:stop].float().unflatten(1, (key.shape[1], -1))  # batch kv group dest d_head
        return (query.flatten(2, 3) @ key.mT).unflatten(2, query.shape[2:4]).flatten(1, 2) * self.scaling

    def _masked(
        self, scores: Float[Tensor, "batch head dest src"], start: int, stop: int, visible: Visible
    ) -> Float[Tensor, "batch head dest src"]:
        if self.mask is None or self.mask.dtype == torch.bool:
            return scores.masked_fill(~visible, -torch.inf)
        return scores + self.mask[..., start:stop, self.first_key(start) : self.key.shape[2]].float()
