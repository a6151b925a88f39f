"""How many prompts go through a model under many plans at the price of few: shared prefills, one decode batch.

A row is one prompt under one plan. Plans that do not touch ``PREFILL`` share one prefill of all of the prompt but its
last token; what the model then remembers is repeated per plan, merged over prompts of any length, and all rows go on
one token at a time, the last prompt token first. Plans that touch ``PREFILL`` are rows of their prompt's prefill.
On a CPU, prompts that begin alike read what they have in common once (``runs.prefix_tree``), where the model goes on
exactly.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from segregation.interventions.apply import enter
from segregation.interventions.phase import Phase
from segregation.interventions.recurrent_rules import AblateRecurrent
from segregation.interventions.rules import Plan, Rule
from segregation.interventions.token_rules import HideTokens
from segregation.models.growing import make_room
from segregation.models.hybrid import HybridModel, Intervention
from segregation.models.memory import Memory, merge
from segregation.prompts.spans import TokenSpans
from segregation.runs.fitting import ROWS, check_batch_size, on_cpu, read_together
from segregation.runs.prefill import acts_alike, goes_on, left_padded, prefill, prefill_pieces
from segregation.runs.prefix_tree import FORWARD, Piece, Prompt, prefix_tree, tokens_read

SAVED = 0.1
"""Share of the tokens, counting a forward as ``FORWARD`` of them, that reading in pieces must save."""

__all__ = ["ROWS", "Dropping", "Prefills", "Prompt", "Row", "Step", "Watch", "batches", "dropping", "equal_lengths"]
__all__ += ["left_padded", "prefill", "run_rows"]

Step = Callable[[Int[Tensor, " rows"], int, Float[Tensor, "rows d_vocab"]], tuple[Tensor, Tensor]]
"""(rows still running, step, their logits) -> (next tokens, which of the rows are done)."""
Watch = Callable[[Sequence["Row"]], Intervention]
"""The rows of a batch -> what reads along, after their plans."""


@dataclass(frozen=True)
class Row:
    """One prompt under one plan; ``index`` is its place among all rows of a call.

    ``spans`` are the named spans of its sample, which rules about tokens need.
    """

    index: int
    prompt: Prompt
    plan: Plan
    spans: TokenSpans | None = None

    @property
    def shares(self) -> bool:
        """Whether its plan leaves the prefill as it is."""
        return Phase.PREFILL not in self.plan.during

    @property
    def prefill_plan(self) -> Plan:
        """What its plan does in the prefill, which is nothing where it ``shares``; plans that agree there share one."""
        acting = [rule for rule in self.plan.rules if Phase.PREFILL in rule.during and not _about_new(rule)]
        return Plan(*[dataclasses.replace(rule, during=Phase.PREFILL) for rule in acting])


def _about_new(rule: Rule) -> bool:
    """Whether a rule hides or ablates nothing but new tokens, of which the prefill has none."""
    return isinstance(rule, HideTokens | AblateRecurrent) and rule.span == "new"


@contextlib.contextmanager
def equal_lengths(model: HybridModel) -> Iterator[None]:
    """For calls whose prompts are all of one length: rows share batches, whatever is switched off for padded ones."""
    before = model.can_batch
    model.can_batch = True
    try:
        yield
    finally:
        model.can_batch = before


def batches(model: HybridModel, rows: Sequence[Row], batch_size: int | None) -> Iterator[list[Row]]:
    """Rows that can run together, in order: one at a time where the model's checks switched batching or forks off.

    Raises:
        PlanError: a batch size below 1.
    """
    check_batch_size(batch_size)
    size = (batch_size or ROWS) if model.can_batch and model.can_fork else 1
    for _, group in groupby(rows, key=lambda row: len(row.prompt) == 1):  # a one-token prompt has no prefill to merge
        same = list(group)
        for start in range(0, len(same), size):
            yield same[start : start + size]


@dataclass(frozen=True)
class Reading:
    """What the memory of a row depends on.

    Attributes:
        prompt: all of it but the last token is read.
        plan: what acts on it.
        spans: the spans that the plan, or one that the model carries, may name.
        row: the row, where something watches each.
    """

    prompt: Prompt
    plan: Plan
    spans: TokenSpans | None
    row: Row | None = None


Way = Literal["whole", "in pieces"]
"""How a prompt is read: in one forward, or going on from what it has in common with others."""


class Prefills:
    """Prefills of prompts; keeps the last one, so that a prompt whose rows span two batches is read once.

    Where the model's checks switched forks off, nothing is kept: every row reads its own prompt. So it does where a
    ``watch`` is to see the prefill of every row.
    """

    def __init__(self, model: HybridModel, watch: Watch | None = None) -> None:
        self._model = model
        self._watch = watch
        self._kept: dict[Reading, Memory] = {}
        self._ways: dict[Reading, Way] = {}

    def way(self, row: Row) -> Way:
        """How the prompt of a row of the last batch was read."""
        return self._ways.get(self._reading(row), "whole")

    def of(self, rows: Sequence[Row]) -> tuple[list[Row], Memory | None]:
        """The rows in the order of the memory's rows, and what the model remembers before their last prompt tokens."""
        if len(rows[0].prompt) == 1:
            return list(rows), None
        reading_of = {row.index: self._reading(row) for row in rows}
        self._ways = {reading: self._ways[reading] for reading in self._kept if reading in self._ways}
        last = reading_of[rows[-1].index]
        read = list(self._read(list(dict.fromkeys(reading_of.values()))))
        whole = merge([memory for _, memory in read])
        found = {reading: number for number, reading in enumerate(one for group, _ in read for one in group)}
        if self._model.can_fork and self._watch is None:
            self._kept = {last: whole.select(_index(whole, [found[last]])).trimmed()}
        ordered = sorted(rows, key=lambda row: found[reading_of[row.index]])
        return ordered, whole.select(_index(whole, [found[reading_of[row.index]] for row in ordered]))

    def _reading(self, row: Row) -> Reading:
        return Reading(row.prompt, row.prefill_plan, row.spans, None if self._watch is None else row)

    def _read(self, readings: Sequence[Reading]) -> Iterator[tuple[Sequence[Reading], Memory]]:
        """Groups of readings with their memories, each reading once."""
        yield from (([reading], self._kept[reading]) for reading in readings if reading in self._kept)
        new = [reading for reading in readings if reading not in self._kept]
        for plan in dict.fromkeys(reading.plan for reading in new):
            alike = [reading for reading in new if reading.plan == plan]
            if pieces := self._pieces(alike, plan):
                memories = prefill_pieces(self._model, [reading.prompt for reading in alike], pieces, plan)
                yield from (([reading], memories[number]) for number, reading in enumerate(alike))
                self._ways.update(dict.fromkeys(alike, "in pieces"))
                new = [reading for reading in new if reading.plan != plan]
        for acting in (False, True):
            some = [reading for reading in new if bool(reading.plan.rules) == acting]
            for group in read_together(self._model, [len(reading.prompt) - 1 for reading in some]):
                together = [some[number] for number in group]
                yield together, self._prefill(together)

    def _prefill(self, readings: Sequence[Reading]) -> Memory:
        prompts = [reading.prompt for reading in readings]
        plans = [reading.plan for reading in readings] if any(reading.plan.rules for reading in readings) else ()
        watch = None
        if self._watch is not None:
            watch = self._watch([reading.row for reading in readings if reading.row is not None])
        return prefill(self._model, prompts, plans, [reading.spans for reading in readings], watch)

    def _pieces(self, readings: Sequence[Reading], plan: Plan) -> list[Piece]:
        """How these are read piece by piece; nothing where they are better read side by side, or have to be.

        On a GPU they always are, as 8 to 1,024 tokens take about equally long there. For a haystack with a needle at 11
        depths, in a RecurrentGemma-2B on an H200, a batch was 2.8 (1,024 tokens) and 1.2 times (4,096) as fast as one
        by one, and pieces 0.5 and 0.8 times. At 16,384 pieces were 1.6 times as fast and a batch was not tried: an open
        question.
        """
        prompts = [reading.prompt[:-1] for reading in readings]
        if len(prompts) == 1 or self._watch is not None or self._model.carried:
            return []
        if not on_cpu(self._model) or not acts_alike(plan):
            return []
        pieces = prefix_tree(prompts, FORWARD)
        groups = list(read_together(self._model, [len(prompt) for prompt in prompts]))
        aside = sum(FORWARD + len(group) * len(prompts[group[-1]]) for group in groups)
        worth_it = FORWARD * len(pieces) + tokens_read(pieces) < (1 - SAVED) * aside
        return pieces if worth_it and goes_on(self._model) else []


@dataclass(frozen=True)
class Dropping:
    """When rows that are done are dropped, which copies what is remembered of all others.

    Attributes:
        every: asked after so many steps.
        share: dropped where more than this share of the rows is done.
    """

    every: int = 1
    share: float = 0.0


AT_ONCE = Dropping()
ON_CPU = Dropping(share=0.125)
"""Running on computes the eighth that is done; dropping it copies what is remembered of the other seven."""
ON_GPU = Dropping(every=8)
"""Asking a GPU which rows are done makes it wait.

Under a plan, which makes it wait at every step anyway, 1 and 64 rows were 0.96 and 0.99 times as fast as when asked at
every step (RecurrentGemma-2B, H200).
"""


def dropping(model: HybridModel, watch: Watch | None = None) -> Dropping:
    """When rows that are done are dropped: at once where something watches, which would see more than a row has."""
    return AT_ONCE if watch is not None else ON_CPU if on_cpu(model) else ON_GPU


def run_rows(
    model: HybridModel,
    rows: Sequence[Row],
    memory: Memory | None,
    steps: int,
    step: Step,
    watch: Watch | None = None,
    drop: Dropping = AT_ONCE,
) -> None:
    """Feed the last prompt token of every row, then what ``step`` returns, until every row is done or ``steps`` ran.

    Rows that are done run on until they are dropped: ``step`` sees them until then, which changes no other row.
    """
    edited = enter(model, *[row.plan for row in rows])
    edited = edited if watch is None else watch(rows).enter(edited)
    device = model.device
    lengths = torch.tensor([len(row.prompt) for row in rows], device=device)
    width = int(lengths.max()) - 1
    before = torch.arange(width, device=device) >= width - (lengths[:, None] - 1)
    padded = not bool(before.all())

    def loop() -> None:
        model.reset()
        cache = model.new_cache() if memory is None else model.recall(memory)
        make_room(cache, steps)
        running = torch.arange(len(rows), device=device)
        model.run.start(lengths, [row.spans for row in rows])
        tokens = torch.tensor([row.prompt[-1] for row in rows], device=device)
        mask, position = before, lengths - 1
        ended = torch.zeros(len(rows), dtype=torch.bool, device=device)
        for number in range(steps):
            mask = torch.cat([mask, mask.new_ones(len(running), 1)], dim=1)
            logits = model.hf_model(
                input_ids=tokens[:, None],
                attention_mask=mask.long() if padded else None,
                position_ids=position[:, None],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            tokens, done = step(running, number, logits)
            position, ended = position + 1, ended | done
            if (number + 1) % drop.every:
                continue
            stay = (~ended).nonzero().flatten()
            if not len(stay):
                return
            if len(running) - len(stay) > drop.share * len(running):
                cache = model.recall(model.remember(cache, position).select(stay))
                make_room(cache, steps - number - 1)
                tokens, mask, position, running = tokens[stay], mask[stay], position[stay], running[stay]
                ended = ended[stay]
                model.run.keep(stay, running)

    edited.interleave(loop)
    model.reset()


def _index(memory: Memory, rows: list[int]) -> Tensor:
    return torch.tensor(rows, device=memory.lengths.device)
