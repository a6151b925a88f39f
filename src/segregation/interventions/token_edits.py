"""Rules about tokens bound to the rows of a run: how they edit the pattern of a layer in one forward pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from segregation.errors import SampleError
from segregation.interventions.phase import PHASES, Phase
from segregation.interventions.tables import TokenGroup, acting
from segregation.interventions.token_rules import EVERYWHERE, HideAll, TokenRule, spans_named
from segregation.interventions.tokens import Step, edit_rows, span_mass
from segregation.models.attention import QUERY_CHUNK, AttentionCall
from segregation.models.positions import PatternEdit
from segregation.prompts.spans import TokenSpans
from segregation.shapes import LogPattern, Positions, PromptLengths, RowMask, Visible


def members(rule: TokenRule, spans: TokenSpans | None, prompt_length: int) -> tuple[set[int], bool]:
    """The prompt positions that a rule names for one row, and whether it names the new ones.

    Raises:
        SampleError: a span that the row does not have, or an occurrence of it.

    >>> from segregation.interventions.token_rules import HideTokens
    >>> spans = TokenSpans("a", (("context", ((1, 2, 3),)), ("needle", ((2,),))))
    >>> members(HideTokens("context+new", but="needle"), spans, 6)
    ({1, 3}, True)
    """
    if isinstance(rule, HideAll):
        return set(), False
    if spans_named(rule) and spans is None:
        raise SampleError(
            f"{rule} names the span {spans_named(rule)[0]!r}, but the row it should act on is not a Sample, which has "
            f"spans; pass a Sample, or use one of the spans {', '.join(EVERYWHERE)}"
        )
    names = rule.span.split("+")
    but = rule.but.split("+") if rule.but else []
    occurrence = None if rule.occurrence == "all" else rule.occurrence

    def positions(chosen: Sequence[str], occurrence: int | None) -> set[int]:
        found: set[int] = set()
        for name in chosen:
            if name in ("prompt", "everything"):
                found |= set(range(prompt_length))
            elif name != "new":
                assert spans is not None
                tokens = spans.tokens(name, occurrence)
                if max(tokens, default=0) >= prompt_length:
                    raise SampleError(
                        f"{name!r} of sample {spans.sample_id!r} reaches token {max(tokens)}, but the prompt has "
                        f"{prompt_length} tokens; a span lies within the prompt, so give prompt_lengths that hold it"
                    )
                found |= set(tokens)
        return found

    new = bool({"new", "everything"} & set(names)) and not {"new", "everything"} & set(but)
    return positions(names, occurrence) - positions(but, None), new


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
    """

    at: Int[Tensor, " row"]
    steps: tuple[Step, ...]
    acts: Bool[Tensor, "step row pos head"]
    named: Bool[Tensor, "step row position"]


@dataclass(frozen=True, eq=False)
class TokenEdit:
    """What rules about tokens do to the pattern of one layer in one forward pass.

    Attributes:
        parts: the groups of plans, each with its rows.
        positions: of the tokens of this forward.
        phases: the number of the phase of each.
        lengths: prompt tokens of each row.
        totals: by part, ln of the weight that each row shares out, where that is the sum over a phase.
    """

    parts: tuple[Part, ...]
    positions: Positions
    phases: Int[Tensor, "batch pos"]
    lengths: PromptLengths
    totals: dict[int, Tensor] = field(default_factory=dict)

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
            totals = self.totals.get(number)
            for step, named, acts in zip(part.steps, part.named, part.acts, strict=True):
                position = self._key_positions(part.at, first_key, first_key + logs.shape[-1])
                own, now = edit_rows(
                    step,
                    own,
                    seen,
                    self._member(part.at, named, position),
                    acts[:, start:stop].transpose(1, 2),
                    prefill[part.at],
                    position < self.lengths[part.at][:, None] - 1,
                    None if totals is None else totals[:, :, start:stop],
                )
                touched = touched | now
            edited[part.at] = own
            changed[part.at] = touched
        return edited, changed

    def prepare(self, call: AttentionCall, before: Sequence[PatternEdit]) -> None:
        """Add up, where a rule asks for it, the weight of a span over all rows of a phase."""
        for number, part in enumerate(self.parts):
            if part.steps[-1].summed_over == "row":
                continue
            sums = torch.zeros(len(part.at), call.query.shape[1], PHASES + 1, device=call.query.device)
            for start in range(0, call.query.shape[2], QUERY_CHUNK):
                stop = min(start + QUERY_CHUNK, call.query.shape[2])
                logs, visible = call.log_band(start, stop)
                first_key = call.first_key(start)
                for edit in before:
                    logs = edit(logs, visible, start, first_key)
                position = self._key_positions(part.at, first_key, first_key + logs.shape[-1])
                member = self._member(part.at, part.named[-1], position)
                seen = visible if len(visible) == 1 else visible[part.at]
                mass = span_mass(logs[part.at], seen, member)
                phases = self.phases[part.at, start:stop][:, None].expand(mass.shape)
                sums.scatter_add_(2, phases, mass)
            phases = self.phases[part.at][:, None].expand(-1, sums.shape[1], -1)
            self.totals[number] = sums.gather(2, phases).log()

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
            parts.setdefault(layer, []).append(Part(at, group.steps, acts, table[:, first_rows[at]]))
    return {layer: TokenEdit(tuple(own), positions, phases, lengths) for layer, own in parts.items()}
