"""What came out of each record, beside what was done: the rows that tables, figures and claims are made of."""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath

from segregation.interventions.phase import Phase
from segregation.interventions.rules import KeepHeads, KeepTopHeads, Plan
from segregation.runs.record import Record
from segregation.scores.choice import choice_accuracy
from segregation.scores.retrieval import retrieval_score


@dataclass(frozen=True)
class Outcome:
    """One record, scored.

    Attributes:
        model: the model's name.
        family: the family of models that it belongs to; empty if its record does not say.
        task: the task of the sample, ``"needle"`` unless its metadata names another.
        sample_id: equal for the same sample under different plans, so plans can be compared sample by sample.
        plan: what was done to the model.
        correct: exact retrieval; for a choice task, the right choice by log-likelihood.
        value: the score in 0..1 (the rubric's mean; for a choice task, 0 or 1).
        metadata: the sample's.
        beyond_window: per span, at how many positions a rule had nothing to act on (as in ``Record``).
    """

    model: str
    family: str
    task: str
    sample_id: str
    plan: Plan
    correct: bool
    value: float
    metadata: Mapping[str, str | int | float | bool | None]
    beyond_window: Mapping[str, int] = field(default_factory=dict)

    @property
    def readings(self) -> int:
        """How often the prompt holds the context."""
        return int(self.metadata.get("readings") or 1)

    @property
    def context_length(self) -> int:
        """Tokens of haystack plus needle asked for; 0 where the task has no context."""
        return int(self.metadata.get("context_length") or 0)

    @property
    def depth_percent(self) -> float:
        """Nominal depth of the needle, 0 (start) to 100 (end)."""
        return float(self.metadata.get("depth_percent") or 0)

    @property
    def classic(self) -> bool:
        """Whether the needle is the one of arXiv 2510.19861, about San Francisco."""
        return self.metadata.get("needle") == "classic"

    @property
    def chance(self) -> float:
        """Share of its task that a guess gets right; 0 where the sample does not say."""
        return float(self.metadata.get("chance") or 0)


@dataclass(frozen=True)
class Sweep:
    """Which point of a sweep over kept heads a plan is.

    Attributes:
        k: heads kept per attention layer.
        choice: how they were chosen: ``"entropy"``, ``"l2"``, ..., or ``"random"``.
        during: the positions the plan acts on.
    """

    k: int
    choice: str
    during: Phase


def outcomes(records: Iterable[Record]) -> list[Outcome]:
    """Score every record that has an outcome, in order; needs no model."""
    return [_outcome(record) for record in records if has_outcome(record)]


def has_outcome(record: Record) -> bool:
    """Whether a record is right or wrong; a measurement, or the log-likelihood of a lone target, is neither.

    >>> record = Record(kind="loglikelihood", sample_id="a", prompt_sha256="", target=" yes", plan="", plan_hash="",
    ...                 prompt_tokens=3, loglikelihoods=(-2.0,), token_counts=(1,))
    >>> has_outcome(record)
    False
    """
    return record.kind == "generate" or (record.kind == "loglikelihood" and bool(record.choices))


def general(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """The outcomes whose samples are not set aside for one experiment, as their metadata's ``experiment`` would say.

    >>> general([])
    []
    """
    return [outcome for outcome in outcomes if not outcome.metadata.get("experiment")]


@functools.cache
def sweep_point(plan: Plan) -> Sweep | None:
    """The sweep point of a plan with one rule that keeps k heads in every attention layer, else ``None``.

    A plan that names its heads counts as a random draw: the experiments draw them with a seed.

    >>> sweep_point(Plan(KeepTopHeads(k=2, during=Phase.GENERATION)))
    Sweep(k=2, choice='entropy', during=<Phase.GENERATION: 6>)
    >>> sweep_point(Plan(KeepHeads(heads=((2, 0), (2, 3), (5, 1), (5, 2))))).k
    2
    """
    match plan.rules:
        case (KeepTopHeads(k=k, score=score, during=during),):
            return Sweep(k, score, during)
        case (KeepHeads(heads=heads, during=during),):
            per_layer = {layer: sum(1 for at, _ in heads if at == layer) for layer, _ in heads}
            return Sweep(max(per_layer.values()), "random", during) if len(set(per_layer.values())) == 1 else None
    return None


@functools.cache
def _plan(text: str) -> Plan:
    return Plan.from_json(text)


def _outcome(record: Record) -> Outcome:
    if record.kind == "generate":
        score = retrieval_score(record)
        correct, value = score.exact, score.value
    else:
        correct = choice_accuracy(record).acc
        value = float(correct)
    return Outcome(
        model=PurePath(str(record.model.get("name", "unnamed"))).name,
        family=str(record.model.get("family") or ""),
        task=str(record.metadata.get("task", "needle")),
        sample_id=record.sample_id,
        plan=_plan(record.plan),
        correct=correct,
        value=value,
        metadata=record.metadata,
        beyond_window=record.beyond_window,
    )
