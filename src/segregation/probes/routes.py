"""Whether the answer comes from the KV cache or from the recurrent state: memories put together from two runs.

A clean and a corrupt run read the same prompt but for the needle. At a border, each of the four channels (keys, values,
recurrent and convolution states) is taken from the one or the other, and the model goes on from there.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch

from segregation.errors import PlanError, SampleError
from segregation.interventions.rules import Plan
from segregation.interventions.tables import compile_plans
from segregation.models.channels import Channel, layers_with
from segregation.models.checks_outcome import check_can_fork
from segregation.models.hybrid import HybridModel
from segregation.prompts.pairs import Pair
from segregation.prompts.spans import TokenSpans, sample_spans
from segregation.runs.fork import Fork, join, read_first
from segregation.runs.generate import checked_spans, described, encode_checked, whole_plan
from segregation.runs.launch import ROWS, Prompt, Row
from segregation.runs.loglikelihood import score_from
from segregation.runs.record import Record
from segregation.scores.routes import MEASURE, coalition

BorderName = Literal["needle", "question", "answer"]
Border = BorderName | int
"""Right after the needle, right after the context, before the last prompt token, or before a position."""


@dataclass(frozen=True)
class _Task:
    """One pair, tokenised: both prompts, their targets, the tokens read before the border."""

    pair: Pair
    prompts: tuple[Prompt, Prompt]
    targets: tuple[Prompt, Prompt]
    spans: tuple[TokenSpans | None, TokenSpans | None]
    border: int

    @property
    def rest(self) -> int:
        """Prompt tokens from the border to the last one, which is not counted."""
        return len(self.prompts[0]) - 1 - self.border


def routes(
    model: HybridModel,
    pairs: Sequence[Pair],
    border: Border = "question",
    *,
    plan: Plan = Plan(),  # noqa: B008 (a frozen value)
    batch_size: int | None = None,
) -> Iterator[Record]:
    """What the model writes from every coalition of channels of the clean run's memory; one measurement for each pair.

    Both prompts are read up to the border. Then, for each of the 16 coalitions, the memory has the coalition's channels
    from the clean run and the others from the corrupt run; the rest of the prompt, which both have in common, and the
    answer are fed one token at a time. Values, for a coalition such as ``kv`` (``k``, ``v``, ``r``, ``c`` for keys,
    values, recurrent and conv; ``-`` for none): ``kv/clean`` and ``kv/corrupt``, ln p of the clean and of the corrupt
    run's target in nats, and ``kv/clean_exact`` and ``kv/corrupt_exact``, 1 where greedy decoding would write it whole;
    ``position``, that of the border, and ``change/k``, ..., the largest difference of a number between the two
    memories. A model without one kind of layers has the coalitions of the other.

    Args:
        model: the model; plans it already carries act as well.
        pairs: as ``corrupt_pairs`` makes them.
        border: ``"needle"`` (right after it), ``"question"`` (the context is read), ``"answer"`` (all of the prompt but
            its last token is read), or the position that is read next.
        plan: acts on all that is read, by position.
        batch_size: memories gone on from together, 16 for a pair; each scores two targets.

    Raises:
        ModelError: the model's self-checks switched forks off, or a layer does not read what was put in its memory.
        PlanError: a plan that is impossible on this model, or an unknown border.
        SampleError: two prompts that differ in length or after the border, or a border outside the prompt.
    """
    check_can_fork(model)
    acted = whole_plan(model, plan)
    compile_plans(model, [acted])
    named = isinstance(border, str) and border in get_args(BorderName)
    if not named and (isinstance(border, bool) or not isinstance(border, int)):
        raise PlanError(f"a border is one of {get_args(BorderName)} or a position, a whole number; got {border!r}")
    tasks = [_task(model, pair, border, acted) for pair in pairs]
    size = max(1, (batch_size or ROWS) // 2 ** len(_channels(model))) if model.can_batch else 1
    return (
        record
        for start in range(0, len(tasks), size)
        for record in _records(model, tasks[start : start + size], border, plan, batch_size)
    )


def route_settings(border: Border) -> dict[str, str | int]:
    """The settings of the measurements at a border, which tell them from other measurements of the same samples.

    >>> route_settings("question")
    {'measure': 'routes', 'border': 'question'}
    """
    return {"measure": MEASURE, "border": border}


def _channels(model: HybridModel) -> list[Channel]:
    return [channel for channel in get_args(Channel) if layers_with(model, channel)]


def _task(model: HybridModel, pair: Pair, border: Border, acted: Plan) -> _Task:
    samples = (pair.clean, pair.corrupt)
    targets = tuple(tuple(model.encode_continuation(sample.target)) for sample in samples)
    clean, corrupt = (encode_checked(model, sample, max(map(len, targets))) for sample in samples)
    differing = [at for at, (a, b) in enumerate(zip(clean, corrupt, strict=False)) if a != b]
    if len(clean) != len(corrupt) or not differing or not all(targets):
        raise SampleError(
            f"a pair has two different prompts of as many tokens, and targets; {pair.clean.id!r} has {len(clean)} and "
            f"{len(corrupt)} tokens, of which {len(differing)} differ. Make pairs with corrupt_pairs()"
        )
    at = _position(model, pair, border, len(clean), differing[-1] + 1)
    if not differing[-1] < at < len(clean):
        raise SampleError(
            f"sample {pair.clean.id!r}: the border {border!r} is before position {at}, but the prompts differ up to "
            f"position {differing[-1]} and end at {len(clean) - 1}: it must be {differing[-1] + 1} to {len(clean) - 1}"
        )
    first, second = (checked_spans(model, sample, len(clean), [acted]) for sample in samples)
    return _Task(pair, (clean, corrupt), (targets[0], targets[1]), (first, second), at)


def _position(model: HybridModel, pair: Pair, border: Border, n_tokens: int, after_needle: int) -> int:
    if isinstance(border, int):
        return border
    if border == "answer":
        return n_tokens - 1
    assert model.tokenizer is not None
    spans = sample_spans(model.tokenizer, pair.clean)
    if border == "question":
        return max(spans.tokens("context")) + 1
    return max(after_needle, max(spans.tokens("needle")) + 1)


def _records(
    model: HybridModel, tasks: Sequence[_Task], border: Border, plan: Plan, batch_size: int | None
) -> Iterator[Record]:
    """A record per task, all of them read and scored together."""
    channels = _channels(model)
    chosen = [some for size in range(len(channels) + 1) for some in itertools.combinations(channels, size)]
    read = [task.border for task in tasks for _ in range(2)]
    runs = read_first(
        model, [p for task in tasks for p in task.prompts], [s for task in tasks for s in task.spans], read, plan
    )
    apart = [runs.expand([2 * i, 2 * i + 1]) for i in range(len(tasks))]
    changes = [_changes(one, channels) for one in apart]
    mixed = _read_rest([_mixed(one, chosen) for one in apart], tasks)

    rows = [Row(0, task.prompts[0], plan, task.spans[0]) for task in tasks for _ in chosen for _ in task.targets]
    rows = [replace(row, index=index) for index, row in enumerate(rows)]
    continuations = [target for task in tasks for _ in chosen for target in task.targets]
    memory = mixed.memory.select(torch.arange(len(rows), device=mixed.memory.lengths.device) // 2)
    with torch.no_grad():
        scored = score_from(model, rows, memory, continuations)
    acted = whole_plan(model, plan)
    for number, (task, change) in enumerate(zip(tasks, changes, strict=True)):
        values = {"position": float(task.border), **change}
        for place, some in enumerate(chosen):
            at = 2 * (number * len(chosen) + place)
            for of, one in zip(("clean", "corrupt"), scored[at : at + 2], strict=True):
                values[f"{coalition(some)}/{of}"] = one.loglikelihood
                values[f"{coalition(some)}/{of}_exact"] = float(one.greedy)
        clean = task.pair.clean
        yield Record.of(
            replace(clean, metadata={**clean.metadata, "corrupt_target": task.pair.corrupt.target}),
            kind="measurement",
            plan=acted.to_json(),
            plan_hash=acted.hash,
            prompt_tokens=len(task.prompts[0]),
            values=values,
            settings=route_settings(border),
            **described(model, batch_size),
        )


def _mixed(runs: Fork, chosen: Sequence[Sequence[Channel]]) -> Fork:
    """A row for every coalition: its channels from row 0, the clean run, the others from row 1, the corrupt run."""
    rows: Mapping[Channel, list[int]] = {
        channel: [0 if channel in some else 1 for some in chosen] for channel in get_args(Channel)
    }
    return runs.mixed(rows)


def _read_rest(forks: Sequence[Fork], tasks: Sequence[_Task]) -> Fork:
    """All rows together, task by task, with the rest of every prompt read but its last token.

    A task joins those with more to read where as much is left of them as it has to read, so that all end together.
    """
    order = sorted(range(len(tasks)), key=lambda i: -tasks[i].rest)
    together, at = forks[order[0]], tasks[order[0]].rest
    for position, i in enumerate(order[1:], start=1):
        together = _read(together, [tasks[j] for j in order[:position]], at - tasks[i].rest)
        together, at = join([together, forks[i]]), tasks[i].rest
    together = _read(together, [tasks[j] for j in order], at)
    each = len(forks[0].prompts)
    return together.expand([order.index(i) * each + row for i in range(len(tasks)) for row in range(each)])


def _read(fork: Fork, tasks: Sequence[_Task], n_tokens: int) -> Fork:
    """The fork with so many of the next tokens of each row's prompt read."""
    if not n_tokens:
        return fork
    tokens = [prompt[read : read + n_tokens] for prompt, read in zip(fork.prompts, fork.read, strict=True)]
    return fork.read_on(torch.tensor(tokens))


def _changes(runs: Fork, channels: Sequence[Channel]) -> dict[str, float]:
    """Per channel, the largest difference of a number between the clean and the corrupt memory."""
    found: dict[str, float] = {}
    for channel in channels:
        both = [runs.remembered(layer, channel, [0, 1]) for layer in layers_with(runs.model, channel)]
        gaps = [float((own[0].float() - own[1].float()).abs().max()) for own in both if own is not None]
        found[f"change/{channel[0]}"] = float(torch.tensor(gaps).max())  # NaN is kept
    return found
