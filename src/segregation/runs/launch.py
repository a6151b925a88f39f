"""How many prompts go through a model under many plans at the price of few: shared prefills, one decode batch.

A row is one prompt under one plan. Plans that do not touch ``PREFILL`` share one prefill of all of the prompt but its
last token; what the model then remembers is repeated per plan, merged over prompts of any length, and all rows go on
one token at a time, the last prompt token first. Plans that touch ``PREFILL`` are rows of their prompt's prefill.
One token at a time is exact after a fork in both families; several at once are not.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Float, Int
from torch import Tensor

from segregation.errors import PlanError
from segregation.interventions.apply import enter
from segregation.interventions.phase import Phase
from segregation.interventions.recurrent_rules import AblateRecurrent
from segregation.interventions.rules import Plan, Rule
from segregation.interventions.token_rules import HideTokens
from segregation.models.hybrid import HybridModel, Intervention
from segregation.models.memory import Memory, merge
from segregation.prompts.spans import TokenSpans

ROWS = 64
"""Rows decoded together when no batch size is given."""
PADDING = 0.1
"""Share of padding up to which prompts are read together on a CPU."""

Prompt = tuple[int, ...]
Text = tuple[Prompt, TokenSpans | None]
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
    def text(self) -> Text:
        """What a prefill depends on where its plan leaves it as it is: a plan that the model carries may name spans."""
        return self.prompt, self.spans

    @property
    def shares(self) -> bool:
        """Whether its plan leaves the prefill as it is."""
        return Phase.PREFILL not in self.plan.during

    @property
    def prefill_plan(self) -> Plan:
        """What its plan does in the prefill; plans that agree there share one too."""
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
    if batch_size is not None and batch_size < 1:
        raise PlanError(f"batch_size must be at least 1 row, got {batch_size}; leave it out for {ROWS}")
    size = (batch_size or ROWS) if model.can_batch and model.can_fork else 1
    for _, group in groupby(rows, key=lambda row: len(row.prompt) == 1):  # a one-token prompt has no prefill to merge
        same = list(group)
        for start in range(0, len(same), size):
            yield same[start : start + size]


class Prefills:
    """Prefills of prompts; keeps the last one, so that a prompt whose rows span two batches is read once.

    Where the model's checks switched forks off, nothing is kept: every row reads its own prompt. So it does where a
    ``watch`` is to see the prefill of every row.
    """

    def __init__(self, model: HybridModel, watch: Watch | None = None) -> None:
        self._model = model
        self._watch = watch
        self._kept: tuple[Text, Memory] | None = None

    def of(self, rows: Sequence[Row]) -> tuple[list[Row], Memory | None]:
        """The rows in the order of the memory's rows, and what the model remembers before their last prompt tokens."""
        if len(rows[0].prompt) == 1:
            return list(rows), None
        ordered: list[Row] = []
        parts: list[Memory] = []
        shared = [row for row in rows if self._shares(row)]
        for group in self._groups(shared):
            ordered += group
            parts.append(self._shared(group, keep=shared[-1].text))
        for group in self._groups([row for row in rows if not self._shares(row)]):
            ordered += group
            keys = [(row.prompt, row.prefill_plan, row.spans, self._watch and row.index) for row in group]
            unique = list(dict.fromkeys(keys))
            prompts, plans, spans, _ = zip(*unique, strict=True)
            watch = None if self._watch is None else self._watch(group)
            memory = prefill(self._model, prompts, plans, spans, watch)
            parts.append(memory.select(_index(memory, [unique.index(key) for key in keys])))
        return ordered, merge(parts)

    def _shares(self, row: Row) -> bool:
        return row.shares and self._watch is None

    def _groups(self, rows: Sequence[Row]) -> list[list[Row]]:
        """Rows whose prompts are read together; on a CPU of about one length, where padding costs what text does."""
        slack = PADDING if self._model.device is not None and self._model.device.type == "cpu" else float("inf")
        groups: list[list[Row]] = []
        for row in sorted(rows, key=lambda row: len(row.prompt)):
            if not groups or len(row.prompt) > (1 + slack) * len(groups[-1][0].prompt):
                groups.append([])
            groups[-1].append(row)
        return groups

    def _shared(self, rows: Sequence[Row], keep: Text) -> Memory:
        texts = list(dict.fromkeys(row.text for row in rows))
        kept = self._kept if self._kept is not None and self._kept[0] in texts else None
        if kept is not None:
            texts.sort(key=lambda text: text != kept[0])
        new = texts[1:] if kept is not None else texts
        parts = [] if kept is None else [kept[1]]
        if new:
            prompts, spans = zip(*new, strict=True)
            parts.append(prefill(self._model, prompts, spans=spans))
        memory = merge(parts)
        if keep in texts and self._model.can_fork:
            self._kept = keep, memory.select(_index(memory, [texts.index(keep)])).trimmed()
        return memory.select(_index(memory, [texts.index(row.text) for row in rows]))


def prefill(
    model: HybridModel,
    prompts: Sequence[Prompt],
    plans: Sequence[Plan] = (),
    spans: Sequence[TokenSpans | None] = (),
    watch: Intervention | None = None,
    read: Sequence[int] = (),
) -> Memory:
    """What the model remembers after all tokens of each prompt but the last, each row under its plan.

    ``read`` says, per prompt, after how many of its tokens instead; the phases stay those of the whole prompt.
    """
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
    seen = torch.tensor(list(read), device=model.device) if read else lengths - 1
    ids, mask = left_padded([prompt[:n] for prompt, n in zip(prompts, seen.tolist(), strict=True)], model.device)
    cache = model.new_cache()

    def forward() -> None:
        model.reset()
        model.run.start(lengths, spans)
        model.hf_model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=_positions(ids, mask),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )

    edited = enter(model, *plans) if plans else model
    (edited if watch is None else watch.enter(edited)).interleave(forward)
    return model.remember(cache, seen)


def run_rows(
    model: HybridModel, rows: Sequence[Row], memory: Memory | None, steps: int, step: Step, watch: Watch | None = None
) -> None:
    """Feed the last prompt token of every row, then what ``step`` returns, until every row is done or ``steps`` ran."""
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
        running = torch.arange(len(rows), device=device)
        model.run.start(lengths, [row.spans for row in rows])
        tokens = torch.tensor([row.prompt[-1] for row in rows], device=device)
        mask, position = before, lengths - 1
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
            if done.all():
                return
            position = position + 1
            if done.any():
                stay = (~done).nonzero().flatten()
                cache = model.recall(model.remember(cache, position).select(stay))
                tokens, mask, position, running = tokens[stay], mask[stay], position[stay], running[stay]
                model.run.keep(stay, running)

    edited.interleave(loop)
    model.reset()


def left_padded(prompts: Sequence[Prompt], device: torch.device | None) -> tuple[Tensor, Tensor | None]:
    """Token ids with shorter prompts padded at the left, and their mask; ``None`` where nothing is padded.

    >>> ids, mask = left_padded([(5, 6), (7,)], None)
    >>> ids.tolist(), mask.tolist()
    ([[5, 6], [0, 7]], [[1, 1], [0, 1]])
    """
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, width - len(prompt) :] = 1
    return ids.to(device), None if bool(mask.all()) else mask.to(device)


def _positions(ids: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
    return (mask.cumsum(-1) - 1).clamp(min=0)


def _index(memory: Memory, rows: list[int]) -> Tensor:
    return torch.tensor(rows, device=memory.lengths.device)
