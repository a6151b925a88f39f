"""Log-probabilities of continuations under plans, as records."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from segregation.errors import SampleError
from segregation.interventions.apply import enter
from segregation.interventions.binding import check_decode_positions
from segregation.interventions.recurrent_rules import PatchState
from segregation.interventions.rules import Plan
from segregation.interventions.windows import beyond_window
from segregation.models.checks_outcome import clamps_prefill
from segregation.models.hybrid import HybridModel, Intervention
from segregation.models.memory import Memory
from segregation.prompts.sample import Sample
from segregation.runs.fitting import fitting_batch_size, on_cpu, read_together
from segregation.runs.generate import acted_plans, checked_spans, described, encode_checked, listed, whole_plan
from segregation.runs.launch import Prefills, Row, batches, dropping, left_padded, run_rows
from segregation.runs.record import Record
from segregation.runs.tasks import Task

SHARE_FROM = 64
"""Prompt tokens from which rows whose plans do the same in the prefill may share it, instead of a forward pass each."""
CPU_SHARE_FROM = 2
"""The same on a CPU: choices after prompts of some 25 tokens took 1/2.4 of the time of a pass for each."""


@dataclass(frozen=True)
class Scored:
    """What a continuation scored after the prompt of a row.

    Attributes:
        row: the prompt and its plan.
        loglikelihood: sum_i ln p(token_i | prompt, tokens before).
        greedy: whether every token of it is the most probable one, so that greedy decoding would have written it.
    """

    row: Row
    loglikelihood: float
    greedy: bool


def loglikelihood(
    model: HybridModel,
    samples: Iterable[Sample],
    plans: Plan | Sequence[Plan] = Plan(),  # noqa: B008 (a frozen value)
    *,
    batch_size: int | None = None,
) -> Iterator[Record]:
    """Score each sample's choices, or its target where it has none: ``sum_i ln p(token_i | prompt, tokens before)``.

    Prompt and continuation are tokenised apart, the continuation without special tokens. A rule acts by position, as in
    generation: the prompt's last token is ``LAST`` and scores the first token of the continuation, the continuation's
    tokens but its last are ``DECODE``. One forward pass over prompt and continuation does it; a prompt that
    several rows read alike is read once and the continuations fed token by token where that is fewer tokens (on a GPU
    from 64 tokens on; not in families that clamp dt where several tokens are read), which gives the same sums (<= 5e-5
    in nats, over a dozen tokens).

    Args:
        model: the model; plans it already carries act as well, and stand in the records.
        samples: what to score.
        plans: one plan or several, scored together.
        batch_size: rows (a continuation under a plan) run together.

    Raises:
        PlanError: a plan that is impossible on this model, or acts on ``DECODE`` only where nothing is decoded.
        SampleError: a prompt that does not fit with its continuation, or a continuation without tokens.
        ModelError: a batch that does not fit into memory, with what it needs.
    """
    samples, plans = listed(samples, plans)
    return loglikelihood_tasks(model, [(sample, plans) for sample in samples], batch_size=batch_size)


def loglikelihood_tasks(model: HybridModel, tasks: Sequence[Task], *, batch_size: int | None) -> Iterator[Record]:
    """``loglikelihood`` where each sample has plans of its own."""
    acted = acted_plans(model, tasks)
    rows: list[Row] = []
    continuations: list[tuple[int, ...]] = []
    scored: list[tuple[Sample, Plan, list[Row]]] = []
    for sample, plans in tasks:
        choices = [_continuation(model, sample, text) for text in sample.choices or (sample.target,)]
        longest = max(map(len, choices))
        prompt = encode_checked(model, sample, longest - 1)
        spans = checked_spans(model, sample, len(prompt), [acted[plan] for plan in plans])
        for plan in plans:
            check_decode_positions(plan, longest - 1, f"scoring sample {sample.id!r}")
            own = [Row(len(rows) + i, prompt, plan, spans) for i in range(len(choices))]
            scored.append((sample, plan, own))
            rows += own
            continuations += choices
    longest = max((len(row.prompt) + len(continuations[row.index]) for row in rows), default=1)
    batch_size = fitting_batch_size(model, longest, batch_size)
    return _records(model, scored, continuations, score_rows(model, rows, continuations, batch_size), batch_size)


def _continuation(model: HybridModel, sample: Sample, text: str) -> tuple[int, ...]:
    tokens = tuple(model.encode_continuation(text))
    if not tokens:
        raise SampleError(f"sample {sample.id!r}: the continuation {text!r} has no tokens; give it some text")
    return tokens


def _records(
    model: HybridModel,
    tasks: Sequence[tuple[Sample, Plan, list[Row]]],
    continuations: Sequence[tuple[int, ...]],
    scored: Iterator[Scored],
    batch_size: int | None,
) -> Iterator[Record]:
    """A record per task, as soon as all of its rows are scored."""
    task_of = {row.index: number for number, (_, _, rows) in enumerate(tasks) for row in rows}
    found: dict[int, float] = {}
    missing = [len(rows) for _, _, rows in tasks]
    for one in scored:
        row = one.row
        found[row.index] = one.loglikelihood
        number = task_of[row.index]
        missing[number] -= 1
        if missing[number]:
            continue
        sample, plan, rows = tasks[number]
        counts = [len(continuations[row.index]) for row in rows]
        acted = whole_plan(model, plan)
        yield Record.of(
            sample,
            kind="loglikelihood",
            plan=acted.to_json(),
            plan_hash=acted.hash,
            prompt_tokens=len(row.prompt),
            loglikelihoods=tuple(found.pop(row.index) for row in rows),
            token_counts=tuple(counts),
            beyond_window=beyond_window(
                acted,
                row.spans,
                model.window,
                len(row.prompt),
                len(row.prompt) + max(counts) - 1,
            ),
            **described(model, batch_size),
        )


def score_rows(
    model: HybridModel, rows: Sequence[Row], continuations: Sequence[tuple[int, ...]], batch_size: int | None = None
) -> Iterator[Scored]:
    """Score token ids after token ids, row by row; nothing is checked here but the batch size.

    Args:
        model: the model; plans it already carries act as well.
        rows: the prompts with their plans; a row's ``index`` says which continuation is its own.
        continuations: the tokens to score, one or more for each row.
        batch_size: rows run together.

    Raises:
        PlanError: a batch size below 1.
    """
    sharing = _sharing(model, rows, continuations)
    carried = any(map(_patches, model.carried))
    stepwise = [carried or _patches(row.plan) or _read_of(row) in sharing for row in rows]
    shared = [row for row, apart in zip(rows, stepwise, strict=True) if apart]
    alone = [row for row, apart in zip(rows, stepwise, strict=True) if not apart]
    prefills = Prefills(model)
    for batch in batches(model, shared, batch_size):
        with torch.inference_mode():
            scored = _stepwise(model, prefills, batch, continuations)
        yield from scored
    for batch in batches(model, alone, batch_size):
        with torch.inference_mode():
            scored = _one_forward(model, batch, continuations)
        yield from scored


def _sharing(
    model: HybridModel, rows: Sequence[Row], continuations: Sequence[tuple[int, ...]]
) -> set[tuple[object, ...]]:
    """What is read once for several rows, where that is worth it: fewer tokens are then fed in all.

    Not where a model reads one token by another function than several (``clamps_prefill``): the scores would differ.
    """
    if not (model.can_batch and model.can_fork) or clamps_prefill(model):
        return set()
    least = CPU_SHARE_FROM if on_cpu(model) else SHARE_FROM
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        if len(row.prompt) >= least:
            groups.setdefault(_read_of(row), []).append(row)
    found = set()
    for key, group in groups.items():
        texts = {(row.plan, continuations[row.index][:-1]) for row in group}
        alone = sum(len(group[0].prompt) + len(continued) for _, continued in texts)
        together = len(group[0].prompt) - 1 + sum(len(continuations[row.index]) for row in group)
        if together < alone:
            found.add(key)
    return found


def _read_of(row: Row) -> tuple[object, ...]:
    """What the prefill of a row depends on."""
    return row.prompt, row.prefill_plan, row.spans


def _patches(plan: Intervention) -> bool:
    """Whether a plan replaces a memory, which it can only do between two forwards."""
    return isinstance(plan, Plan) and any(isinstance(rule, PatchState) for rule in plan.rules)


def _one_forward(model: HybridModel, batch: Sequence[Row], continuations: Sequence[tuple[int, ...]]) -> list[Scored]:
    """Scores from one forward pass over every prompt and continuation; rows that read the same are read once."""
    unique: dict[tuple[object, ...], tuple[Row, tuple[int, ...]]] = {}
    sharing: dict[tuple[object, ...], list[Row]] = {}
    for row in batch:
        tokens = (*row.prompt, *continuations[row.index][:-1])
        key = (tokens, len(row.prompt), row.plan, row.spans)  # phases depend on where the prompt ends
        unique.setdefault(key, (row, tokens))
        sharing.setdefault(key, []).append(row)
    texts, rows = list(unique.values()), list(sharing.values())
    scored: dict[int, Scored] = {}
    for group in read_together(model, [len(tokens) for _, tokens in texts]):
        keep = max(len(continuations[row.index]) for number in group for row in rows[number])
        logits = _end_logits(model, [texts[number] for number in group], keep)
        for number, own in zip(group, logits, strict=True):
            scored.update({row.index: _scored(row, own, continuations[row.index]) for row in rows[number]})
    return [scored[row.index] for row in batch]


def _end_logits(
    model: HybridModel, texts: Sequence[tuple[Row, tuple[int, ...]]], keep: int
) -> Float[Tensor, "batch pos d_vocab"]:
    """The logits after the last ``keep`` tokens of each text, under the plan of its row."""
    ids, mask = left_padded([tokens for _, tokens in texts], model.device)
    return (
        enter(model, *[row.plan for row, _ in texts])
        .trace(
            ids,
            attention_mask=torch.ones_like(ids) if mask is None else mask,
            prompt_lengths=[len(row.prompt) for row, _ in texts],
            spans=[row.spans for row, _ in texts],
            logits_to_keep=min(keep, ids.shape[1]),
            use_cache=False,
            trace=False,
        )
        .logits
    )


def _scored(row: Row, logits: Float[Tensor, "pos d_vocab"], continuation: Sequence[int]) -> Scored:
    tokens = torch.tensor(continuation, device=logits.device)
    own = logits[-len(tokens) :].float().log_softmax(-1)
    score = float(own.gather(1, tokens[:, None]).double().sum())
    return Scored(row, score, greedy=bool((own.argmax(-1) == tokens).all()))


def _stepwise(
    model: HybridModel, prefills: Prefills, batch: Sequence[Row], continuations: Sequence[tuple[int, ...]]
) -> list[Scored]:
    """The same scores from a shared prefill, each continuation fed token by token."""
    rows, memory = prefills.of(batch)
    scored = {one.row.index: one for one in score_from(model, rows, memory, continuations)}
    return [scored[row.index] for row in batch]


def score_from(
    model: HybridModel, rows: Sequence[Row], memory: Memory | None, continuations: Sequence[tuple[int, ...]]
) -> list[Scored]:
    """The score of each row's continuation, fed token by token to what is remembered before its last prompt token.

    The memory is used up: give a copy of one that is needed again.
    """
    forced = [continuations[row.index] for row in rows]
    steps = max(map(len, forced))
    tokens = torch.tensor([[*own, *[0] * (steps - len(own))] for own in forced], device=model.device)
    lengths = torch.tensor([len(own) for own in forced], device=model.device)
    found: list[tuple[Tensor, Tensor, Tensor]] = []

    def step(running: Tensor, number: int, logits: Tensor) -> tuple[Tensor, Tensor]:
        logs, wanted = logits.float().log_softmax(-1), tokens[running, number]
        found.append((running, logs.gather(1, wanted[:, None])[:, 0], logs.argmax(-1) == wanted))
        return wanted, lengths[running] == number + 1

    run_rows(model, rows, memory, steps, step, None, dropping(model))
    scores, greedy = [0.0] * len(rows), [True] * len(rows)
    for number, parts in enumerate(found):
        for row, value, agrees in zip(*[part.tolist() for part in parts], strict=True):
            if number < len(forced[row]):
                scores[row] += value
                greedy[row] &= agrees
    return [Scored(row, scores[number], greedy[number]) for number, row in enumerate(rows)]
