"""What attention may see: patterns edited by rules about tokens, as pure tensor functions.

Patterns are handled as natural logarithms, so that a row whose hidden tokens held nearly all of its weight is still
renormalised exactly. ``-inf`` is a weight of zero.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from segregation.shapes import KeysAhead, KeysLeft, LogPattern, RowMask, RowsChanged, Visible

Kind = Literal["hide", "only", "balance", "nothing"]


@dataclass(frozen=True)
class Step:
    """How one rule about tokens edits a row; which rows, and which tokens, is told apart from it.

    Attributes:
        kind: hide the tokens, see only them, see only them and equally, or see nothing.
        renormalize: scale what is left of the row to 1.
        causal: leave rows alone in which no kept key is visible; off, rows of ``PREFILL`` are edited all the same.
        summed_over: whether ``"balance"`` shares out the weight of the row, or, in ``PREFILL``, that of all rows there.
    """

    kind: Kind
    renormalize: bool = True
    causal: bool = True
    summed_over: Literal["row", "prefill"] = "row"

    @property
    def masks(self) -> bool:
        """Whether a row is left with some of its keys as if there were no others, which a mask does."""
        return self.causal and (self.kind == "nothing" or (self.kind != "balance" and self.renormalize))


def edit_rows(
    step: Step,
    logs: LogPattern,
    visible: Visible,
    member: Bool[Tensor, "batch src"],
    acts: RowMask,
    prefill: Bool[Tensor, "batch dest"],
    ahead: KeysAhead,
    totals: Float[Tensor, "batch head dest"] | None = None,
) -> tuple[LogPattern, RowMask]:
    """The log-pattern after a step, and the rows that it changed; all others are as they were, bit for bit.

    Args:
        step: what to do.
        logs: ln p of each row.
        visible: which keys the row may see at all (causal, window, padding).
        member: the tokens N that the rule names.
        acts: the rows that the rule is about.
        prefill: which rows are in ``PREFILL``.
        ahead: the keys that a row of ``PREFILL`` may be given though they are still to come, where ``causal`` is off:
            later ones that are in ``PREFILL`` themselves, so that it does not matter in how many pieces a prompt is
            read.
        totals: ln of the summed weight that each row shares out, for ``summed_over="prefill"``.

    >>> logs = torch.tensor([[[[0.5, 0.25, 0.25]]]]).log()
    >>> visible, acts = torch.ones(1, 1, 1, 3, dtype=torch.bool), torch.ones(1, 1, 1, dtype=torch.bool)
    >>> member, prefill = torch.tensor([[True, False, False]]), torch.zeros(1, 1, dtype=torch.bool)
    >>> edit_rows(Step("hide"), logs, visible, member, acts, prefill, member[None])[0].exp().tolist()
    [[[[0.0, 0.5, 0.5]]]]
    """
    if step.kind == "nothing":
        return logs.masked_fill(acts[..., None], -torch.inf), acts
    named = member[:, None, None, :]
    kept = ~named if step.kind == "hide" else named
    seen = visible & (logs > -torch.inf)  # what earlier steps hid stays hidden
    usable = kept & seen
    left = usable.any(-1)
    acts = acts & (left if step.causal else left | prefill[:, None, :])
    if step.kind == "balance":
        over = usable if step.causal else usable | (named & (prefill[..., None] & ahead)[:, None])
        mass = torch.zeros_like(logs[..., 0])
        if not step.renormalize:
            mass = totals if totals is not None else logs.masked_fill(~usable, -torch.inf).logsumexp(-1)
        each = (mass - over.sum(-1).log())[..., None]
        edited = torch.where(over, each, -torch.inf)
    else:
        acts = acts & (seen & ~kept).any(-1)
        edited = logs.masked_fill(~usable, -torch.inf)
        if step.renormalize:
            edited = edited - edited.logsumexp(-1, keepdim=True).masked_fill(~left[..., None], 0.0)
    return torch.where(acts[..., None], edited, logs), acts


def mask_rows(
    step: Step,
    left: Visible,
    member: Bool[Tensor, "batch src"],
    acts: RowsChanged,
) -> tuple[KeysLeft, RowsChanged]:
    """The keys that a step leaves each row of those it had, and the rows that it changed: ``edit_rows`` as a mask.

    Args:
        step: one that ``masks``.
        left: which keys the row sees before it.
        member: the tokens N that the rule names.
        acts: the rows that the rule is about.

    >>> left, acts = torch.ones(1, 1, 1, 3, dtype=torch.bool), torch.ones(1, 1, 1, dtype=torch.bool)
    >>> mask_rows(Step("hide"), left, torch.tensor([[True, False, False]]), acts)[0].tolist()
    [[[[False, True, True]]]]
    """
    if step.kind == "nothing":
        return left & ~acts[..., None], acts
    named = member[:, None, None, :]
    usable = left & (~named if step.kind == "hide" else named)
    acts = acts & usable.any(-1) & (left & ~usable).any(-1)
    return torch.where(acts[..., None], usable, left), acts


def span_mass(
    logs: LogPattern, visible: Visible, member: Bool[Tensor, "batch src"]
) -> Float[Tensor, "batch head dest"]:
    """The weight, in 0..1, that each row gives the tokens of a span."""
    return logs.exp().masked_fill(~(member[:, None, None, :] & visible), 0.0).sum(-1)
