"""Greedy generation for samples under plans, as records."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from segregation.errors import ModelError, PlanError, SampleError
from segregation.interventions.binding import check_decode_positions
from segregation.interventions.recurrent_rules import PatchState
from segregation.interventions.resolve import check_resolved, spans_of_rule
from segregation.interventions.rules import Plan
from segregation.interventions.tables import compile_plans
from segregation.interventions.windows import beyond_window
from segregation.models.hybrid import HybridModel
from segregation.models.memory import Memory
from segregation.prompts.sample import Sample
from segregation.prompts.spans import TokenSpans, sample_spans
from segregation.runs.fitting import WATCHED_ROWS, fitting_batch_size
from segregation.runs.launch import Prefills, Row, Watch, Way, batches, dropping, run_rows
from segregation.runs.record import Record
from segregation.runs.tasks import Task


def generate(
    model: HybridModel,
    samples: Iterable[Sample],
    plans: Plan | Sequence[Plan] = Plan(),  # noqa: B008 (a frozen value)
    *,
    max_new_tokens: int = 40,
    batch_size: int | None = None,
) -> Iterator[Record]:
    """Continue every sample's prompt greedily under every plan; one record per sample and plan.

    The tokens are those of one-by-one generation with transformers, up to float noise where two logits, or the scores
    of two heads that a plan ranks, tie; a row ends at the model's end-of-sequence token, which is part of ``tokens``.
    The largest logit is taken as it is: penalties in the model's generation config are not applied.

    Args:
        model: the model; plans it already carries act as well, and stand in the records.
        samples: what to continue.
        plans: one plan or several. Plans that leave ``PREFILL`` alone share the prefill of each prompt, so pass a
            sweep at once.
        max_new_tokens: tokens after the prompt, at most.
        batch_size: rows (a sample under a plan) decoded together; more is faster, and holds more keys and values.

    Raises:
        PlanError: a plan that is impossible on this model, or has nothing to act on.
        SampleError: a prompt that does not fit with its new tokens, or lacks a span that a rule names.
        ModelError: a batch that does not fit into memory, with what it needs.
    """
    samples, plans = listed(samples, plans)
    return generate_tasks(
        model, [(sample, plans) for sample in samples], max_new_tokens=max_new_tokens, batch_size=batch_size
    )


def generate_tasks(
    model: HybridModel, tasks: Sequence[Task], *, max_new_tokens: int, batch_size: int | None
) -> Iterator[Record]:
    """``generate`` where each sample has plans of its own."""
    rows = checked_task_rows(model, tasks, max_new_tokens)
    longest = max((len(row.prompt) for row in rows), default=1) + max_new_tokens
    batch_size = fitting_batch_size(model, longest, batch_size)
    samples = [sample for sample, plans in tasks for _ in plans]
    return (record for _, record in generate_rows(model, samples, rows, max_new_tokens, batch_size))


_MAKE = {Plan: "sg.Plan(rule)", Sample: 'sg.Sample(id="a", prompt="...", target="...")'}


def listed(samples: Any, plans: Any) -> tuple[list[Sample], list[Plan]]:
    """Samples and plans as lists; a lone one of either is a list of it.

    Raises:
        SampleError: something that is no sample.
        PlanError: something that is no plan, or no plan at all.

    >>> listed([], Plan())
    ([], [Plan(rules=())])
    """
    samples = [samples] if isinstance(samples, Sample) else samples
    plans = [plans] if isinstance(plans, Plan) else plans
    for kind, given, error in ((Sample, samples, SampleError), (Plan, plans, PlanError)):
        if isinstance(given, str) or not isinstance(given, Iterable):
            raise error(f"give {kind.__name__}s, one or a list of them, got {given!r:.100}; make one: {_MAKE[kind]}")
    samples, plans = list(samples), list(plans)
    for kind, given, error in ((Sample, samples, SampleError), (Plan, plans, PlanError)):
        if wrong := [one for one in given if not isinstance(one, kind)]:
            raise error(f"{wrong[0]!r:.100} is no {kind.__name__}; make one: {_MAKE[kind]}")
    if not plans:
        raise PlanError("nothing is run under no plans, got []; to leave the model as it is, give Plan()")
    return samples, plans


def checked_rows(
    model: HybridModel, samples: Sequence[Sample], plans: Sequence[Plan], max_new_tokens: int
) -> list[Row]:
    """A row for every sample and plan, sample by sample, once nothing stands in the way of generating for any of them.

    Raises:
        PlanError: as ``generate``.
        SampleError: as ``generate``.
    """
    return checked_task_rows(model, [(sample, plans) for sample in samples], max_new_tokens)


def checked_task_rows(model: HybridModel, tasks: Sequence[Task], max_new_tokens: int) -> list[Row]:
    """``checked_rows`` where each sample has plans of its own.

    Raises:
        PlanError: as ``generate``.
        SampleError: as ``generate``.
    """
    if max_new_tokens < 1:
        raise PlanError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    acted = acted_plans(model, tasks)
    for plan in acted:
        check_decode_positions(plan, max_new_tokens - 1, "generating one token")
    rows: list[Row] = []
    for sample, plans in tasks:
        prompt = encode_checked(model, sample, max_new_tokens)
        spans = checked_spans(model, sample, len(prompt), [acted[plan] for plan in plans])
        rows += [Row(len(rows) + j, prompt, plan, spans) for j, plan in enumerate(plans)]
    return rows


def acted_plans(model: HybridModel, tasks: Sequence[Task]) -> dict[Plan, Plan]:
    """Every plan of these tasks with what acts under it, as ``whole_plan`` gives it; none impossible on the model.

    Raises:
        PlanError: one that is.
    """
    acted = {plan: whole_plan(model, plan) for _, plans in tasks for plan in plans}
    compile_plans(model, list(acted.values()))  # refuse before anything runs
    return acted


def encode_checked(model: HybridModel, sample: Sample, new_tokens: int) -> tuple[int, ...]:
    """The token ids of a sample's prompt.

    Raises:
        SampleError: it does not fit into the model's positions with its new tokens.
    """
    prompt = tuple(model.encode(sample))
    try:
        model.check_length(len(prompt), new_tokens)
    except ModelError as error:
        raise SampleError(f"sample {sample.id!r}: {error}") from error
    return prompt


def checked_spans(model: HybridModel, sample: Sample, prompt_tokens: int, acted: Sequence[Plan]) -> TokenSpans | None:
    """The token positions of a sample's spans, once every rule finds its own; ``None`` where no rule names a span.

    Args:
        model: tokenises.
        sample: has the spans.
        prompt_tokens: tokens of its prompt.
        acted: what acts on it, as ``whole_plan`` gives it.

    Raises:
        SampleError: a rule names a span, or an occurrence of one, that the sample does not have.
        PlanError: rules of a plan leave nothing of what one of them keeps, or one names no token of this prompt.
    """
    if not any(spans_of_rule(rule) or isinstance(rule, PatchState) for plan in acted for rule in plan.rules):
        return None
    assert model.tokenizer is not None
    spans = sample_spans(model.tokenizer, sample)
    for plan in dict.fromkeys(acted):
        check_resolved(plan, spans, prompt_tokens)
    return spans


def whole_plan(model: HybridModel, plan: Plan) -> Plan:
    """What acted in a run: the plans that the model carries, and the plan of the run.

    Raises:
        PlanError: the model carries an intervention that is no plan, so that no record could say what it was.
    """
    if others := [carried for carried in model.carried if not isinstance(carried, Plan)]:
        raise PlanError(f"records hold plans, which are data, but the model carries {others[0]!r}; trace it instead")
    return Plan(
        *[rule for carried in model.carried if isinstance(carried, Plan) for rule in carried.rules], *plan.rules
    )


def described(model: HybridModel, batch_size: int | None, prefill: Way | None = None) -> dict[str, dict[str, object]]:
    """What every record says about the model and the run, and how its prompt was read where that is known."""
    names = (
        *("name", "family", "revision", "weights_sha256", "dtype", "quantization", "attn_implementation", "bos"),
        *("scans", "matmuls", "switched_off"),
    )
    known = {name: model.description[name] for name in names if name in model.description}
    provenance: dict[str, object] = {"batch_size": batch_size, "device": str(model.device)}
    return {"model": known, "provenance": provenance | ({"prefill": prefill} if prefill else {})}


def generate_rows(
    model: HybridModel,
    samples: Sequence[Sample],
    rows: Sequence[Row],
    max_new_tokens: int,
    batch_size: int | None,
    watch: Watch | None = None,
    watch_prefill: Watch | None = None,
) -> Iterator[tuple[Row, Record]]:
    """Each row with its record, batch by batch; what watches reads along after the plans. There is a sample a row."""
    prefills = Prefills(model, watch_prefill)
    watched = watch is not None or watch_prefill is not None
    at_once = WATCHED_ROWS if batch_size is None and watched else batch_size
    for batch in batches(model, rows, at_once):
        # what a watch keeps leaves for the user, who may want gradients of what follows
        with torch.no_grad() if watched else torch.inference_mode():
            tokens = _greedy(model, prefills, batch, max_new_tokens, watch)
        for row in batch:
            assert model.tokenizer is not None
            acted = whole_plan(model, row.plan)
            read = len(row.prompt) + len(tokens[row.index]) - 1
            record = Record.of(
                samples[row.index],
                kind="generate",
                plan=acted.to_json(),
                plan_hash=acted.hash,
                prompt_tokens=len(row.prompt),
                tokens=tokens[row.index],
                text=model.tokenizer.decode(list(tokens[row.index]), skip_special_tokens=True),
                settings={"max_new_tokens": max_new_tokens},
                beyond_window=beyond_window(acted, row.spans, model.window, len(row.prompt), read),
                **described(model, batch_size, prefills.way(row)),
            )
            yield row, record


def _greedy(
    model: HybridModel, prefills: Prefills, batch: Sequence[Row], steps: int, watch: Watch | None
) -> dict[int, tuple[int, ...]]:
    rows, memory = prefills.of(batch)
    written = write_from(model, rows, memory, steps, watch)
    return {row.index: tokens for row, tokens in zip(rows, written, strict=True)}


def write_from(
    model: HybridModel, rows: Sequence[Row], memory: Memory | None, steps: int, watch: Watch | None = None
) -> list[tuple[int, ...]]:
    """What each row greedily goes on with, fed token by token to what is remembered before its last prompt token.

    The memory is used up: give a copy of one that is needed again.
    """
    ends = torch.tensor(model.end_tokens, dtype=torch.long, device=model.device)
    written: list[tuple[Tensor, Tensor]] = []

    def step(running: Tensor, _number: int, logits: Tensor) -> tuple[Tensor, Tensor]:
        best = logits.argmax(-1)
        written.append((running, best))
        return best, torch.isin(best, ends)

    run_rows(model, rows, memory, steps, step, watch, dropping(model, watch))
    tokens: list[list[int]] = [[] for _ in rows]
    for running, best in written:
        for row, token in zip(running.tolist(), best.tolist(), strict=True):
            if not (tokens[row] and tokens[row][-1] in model.end_tokens):
                tokens[row].append(token)
    return [tuple(found) for found in tokens]
