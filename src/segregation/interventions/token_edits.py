"""Rules about tokens bound to the rows of a run: how they edit the pattern of a layer in one forward pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from segregation.interventions.phase import Phase, acting
from segregation.interventions.resolve import members
from segregation.interventions.tables import TokenGroup
from segregation.interventions.tokens import Step, edit_rows, mask_rows, span_mass
from segregation.models.attention import QUERY_CHUNK, AttentionCall
from segregation.models.positions import PatternEdit
from segregation.prompts.spans import TokenSpans
from segregation.shapes import KeysLeft, LogPattern, Positions, PromptLengths, RowMask, RowsChanged, Visible


def lookup(group: TokenGroup, plan_of: Tensor, spans: Sequence[TokenSpans | None], lengths: PromptLengths) -> Tensor:
    """Per step and row of a run, which prompt positions a rule names; the last column is for new ones."""
    known = lengths.tolist()
    table = torch.zeros(len(group.steps), len(known), max(known) + 1, dtype=torch.bool)
    local = {plan: own for own, plan in enumerate(group.rows.tolist())}
    for row, plan in enumerate(plan_of.tolist()):
        if plan in local:
            for number, rule in enumerate(group.rules[local[plan]]):
                named, new = members(rule, spans[row], known[row])
                table[number, row, sorted(named)] = True
                table[number, row, -1] = new
    return table.to(lengths.device)


@dataclass(frozen=True, eq=False)
class Part:
    """One group of plans in one forward pass.

    Attributes:
        at: the rows of the batch that its plans act on.
        steps: what is done, in order.
        acts: where, per step.
        named: per step, which prompt positions; the last column is for new ones.
        heads_alike: whether all heads are edited alike.
    """

    at: Int[Tensor, " row"]
    steps: tuple[Step, ...]
    acts: Bool[Tensor, "step row pos head"]
    named: Bool[Tensor, "step row position"]
    heads_alike: bool

    def to(self, device: torch.device) -> "Part":
        """The same on another device."""
        return replace(self, at=self.at.to(device), acts=self.acts.to(device), named=self.named.to(device))


@dataclass(frozen=True, eq=False)
class TokenEdit:
    """What rules about tokens do to the pattern of one layer in one forward pass.

    Attributes:
        parts: the groups of plans, each with its rows.
        positions: of the tokens of this forward.
        phases: the number of the phase of each.
        lengths: prompt tokens of each row.
        totals: by part and step, ln of the weight that each row shares out, where that is a sum over rows.
    """

    parts: tuple[Part, ...]
    positions: Positions
    phases: Int[Tensor, "batch pos"]
    lengths: PromptLengths
    totals: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> "TokenEdit":
        """The same on the device of a layer: a model may be spread over several."""
        if self.positions.device == device:
            return self
        return TokenEdit(
            tuple(part.to(device) for part in self.parts),
            self.positions.to(device),
            self.phases.to(device),
            self.lengths.to(device),
        )

    @property
    def columns(self) -> slice:
        """The smallest run of positions with all that some step acts on."""
        if self.positions.shape[1] == 1:
            return slice(0, 1)
        acting = torch.stack([part.acts.any(-1).any(0).any(0) for part in self.parts]).any(0).nonzero().flatten()
        return slice(int(acting[0]), int(acting[-1]) + 1)

    def __call__(self, logs: LogPattern, visible: Visible, start: int, first_key: int) -> LogPattern:
        """``ln`` of the edited pattern."""
        return self.edit(logs, visible, start, first_key)[0]

    def edit(self, logs: LogPattern, visible: Visible, start: int, first_key: int) -> tuple[LogPattern, RowMask]:
        """``ln`` of the edited pattern, and which rows were changed."""
        stop = start + logs.shape[2]
        changed = torch.zeros(logs.shape[:3], dtype=torch.bool, device=logs.device)
        prefill = (self.phases == Phase.PREFILL.numbers[0])[:, start:stop]
        edited = logs.clone()
        for number, part in enumerate(self.parts):
            own, seen = logs[part.at], visible if len(visible) == 1 else visible[part.at]
            touched = torch.zeros_like(changed[part.at])
            position = self._key_positions(part.at, first_key, first_key + logs.shape[-1])
            ahead = (position < self.lengths[part.at][:, None] - 1)[:, None] & (
                position[:, None] > self.positions[part.at][:, start:stop, None]
            )
            for which, (step, named, acts) in enumerate(zip(part.steps, part.named, part.acts, strict=True)):
                totals = self.totals.get((number, which))
                own, now = edit_rows(
                    step,
                    own,
                    seen,
                    self._member(part.at, named, position),
                    acts[:, start:stop].transpose(1, 2),
                    prefill[part.at],
                    ahead,
                    None if totals is None else totals[:, :, start:stop],
                )
                touched = touched | now
            edited[part.at] = own
            changed[part.at] = touched
        return edited, changed

    @property
    def masks(self) -> bool:
        """Whether ``mask`` says all of what is done."""
        return all(step.masks for part in self.parts for step in part.steps)

    def mask(self, visible: Visible, start: int, first_key: int) -> tuple[KeysLeft, RowsChanged]:
        """Which keys each row is left with, and which rows that changes; for edits of which ``masks`` holds."""
        batch, heads, queries, keys = visible.shape
        if not all(part.heads_alike for part in self.parts):
            heads = self.parts[0].acts.shape[-1]
        left = visible.expand(max(batch, len(self.positions)), heads, queries, keys).clone()
        changed = torch.zeros(left.shape[:3], dtype=torch.bool, device=left.device)
        for part in self.parts:
            own, touched = left[part.at], changed[part.at]
            position = self._key_positions(part.at, first_key, first_key + keys)
            for step, named, acts in zip(part.steps, part.named, part.acts, strict=True):
                here = acts[:, start : start + queries, :heads].transpose(1, 2)
                own, now = mask_rows(step, own, self._member(part.at, named, position), here)
                touched = touched | now
            left[part.at], changed[part.at] = own, touched
        return left, changed

    def prepare(self, call: AttentionCall, before: Sequence[PatternEdit]) -> None:
        """Add up, where a rule asks for it, the weight of a span over all rows of ``PREFILL``."""
        sums = [
            (number, which, part)
            for number, part in enumerate(self.parts)
            for which, step in enumerate(part.steps)
            if step.summed_over == "prefill"
        ]
        masses: dict[tuple[int, int], list[Tensor]] = {(number, which): [] for number, which, _ in sums}
        for start in range(0, call.query.shape[2] if sums else 0, QUERY_CHUNK):
            stop = min(start + QUERY_CHUNK, call.query.shape[2])
            logs, visible = call.edited_log_band(before, start, stop)
            first_key = call.first_key(start)
            for number, which, part in sums:
                position = self._key_positions(part.at, first_key, first_key + logs.shape[-1])
                member = self._member(part.at, part.named[which], position)
                seen = visible if len(visible) == 1 else visible[part.at]
                masses[number, which].append(span_mass(logs[part.at], seen, member))
        for number, which, part in sums:
            own = torch.cat(masses[number, which], dim=-1)  # row head dest
            prefill = (self.phases[part.at] == Phase.PREFILL.numbers[0])[:, None]
            total = own.masked_fill(~prefill, 0.0).sum(-1, keepdim=True)
            self.totals[number, which] = torch.where(prefill, total, own).log()

    def _key_positions(self, at: Tensor, first_key: int, keys: int) -> Int[Tensor, "row src"]:
        """The absolute positions of the keys ``first_key..keys``; those of padding are negative."""
        own, length = self.positions[at], self.positions.shape[1]
        past = own[:, :1] - torch.arange(keys - length, 0, -1, device=own.device)
        return torch.cat([past, own], dim=1)[:, first_key:]

    def _member(self, at: Tensor, named: Tensor, position: Int[Tensor, "row src"]) -> Bool[Tensor, "row src"]:
        """Which keys a rule names, per row of a part."""
        new = named.shape[1] - 1
        column = torch.where(position < self.lengths[at][:, None], position.clamp(0, new), new)
        return named.gather(1, column) & (position >= 0)


def edits_of_layers(
    groups: Sequence[TokenGroup],
    lookups: Sequence[Tensor],
    plan_of: Int[Tensor, " batch"],
    first_rows: Int[Tensor, " batch"],
    positions: Positions,
    phases: Int[Tensor, "batch pos"],
    lengths: PromptLengths,
    present: Sequence[int],
) -> Mapping[int, TokenEdit]:
    """The edit of every layer in which some rule acts on a position of this forward.

    Args:
        groups: the plans.
        lookups: what ``lookup`` gave for each group.
        plan_of: the plan of each row of the batch.
        first_rows: which row of those that the run began with each row is.
        positions: of the tokens of this forward.
        phases: the number of the phase of each.
        lengths: prompt tokens of each row.
        present: how many positions there are of each phase.
    """
    parts: dict[int, list[Part]] = {}
    for group, table in zip(groups, lookups, strict=True):
        here = [layer for layer, acts in group.phases.items() if acting(present, acts)]
        if not here:
            continue
        at = torch.isin(plan_of, group.rows).nonzero().flatten()
        own = torch.searchsorted(group.rows, plan_of[at])
        for layer in here if len(at) else ():
            acts = group.acts[layer][:, phases[at], own[:, None]]
            if acts.any():
                named = table[:, first_rows[at]]
                parts.setdefault(layer, []).append(Part(at, group.steps, acts, named, group.heads_alike[layer]))
    return {layer: TokenEdit(tuple(own), positions, phases, lengths) for layer, own in parts.items()}
