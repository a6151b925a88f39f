"""The numbers that GLUE reports for each of its tasks: Matthews correlation, F1 or accuracy, with intervals."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Float

from segregation.errors import ScoreError
from segregation.prompts.glue import TASKS, Metric
from segregation.runs.record import Record
from segregation.scores.choice import choice_accuracy
from segregation.scores.statistics import Interval, bootstrap_statistic, wilson

Shares = Float[np.ndarray, "resample 4"]
"""Shares of the samples whose label and answer are 0 and 0, 0 and 1, 1 and 0, 1 and 1."""


def glue_metrics(records: Iterable[Record], *, seed: int = 0, confidence: float = 0.95) -> dict[str, Interval]:
    """What GLUE reports for the task of these records, by metric; the choice that ``acc`` picks is the answer.

    CoLA has ``matthews_correlation``, MRPC and QQP have ``f1`` (of label 1, "yes") and ``accuracy``, the others
    ``accuracy``. Where a metric is not defined (every answer the same), it is 0, as in scikit-learn. Accuracy has its
    Wilson interval, the others a percentile bootstrap over samples.

    Raises:
        ScoreError: no records; a record of something else than ``prompts.glue``; a sample twice; or records of
            several tasks, layouts, numbers of solved examples, plans or models.

    >>> def record(name, target, yes):
    ...     return Record(kind="loglikelihood", sample_id=name, prompt_sha256="", target=target, plan="", plan_hash="",
    ...                   prompt_tokens=3, choices=(" no", " yes"), loglikelihoods=(-1.0, yes), token_counts=(1, 1),
    ...                   metadata={"task": "glue/mrpc"})
    >>> found = glue_metrics([record("a", " yes", -0.5), record("b", " yes", -2.0), record("c", " no", -2.0)])
    >>> round(found["f1"].value, 3), round(found["accuracy"].value, 3)
    (0.667, 0.667)
    """
    records = list(records)
    task = _task(records)
    labels = np.array([record.choices.index(record.target) for record in records])
    answers = np.array([record.choices.index(choice_accuracy(record).answer) for record in records])
    found: dict[str, Interval] = {}
    for metric in TASKS[task].metrics:
        if metric == "accuracy":
            found[metric] = wilson(int((labels == answers).sum()), len(records), confidence=confidence)
        else:
            of_labels, of_shares = _METRICS[metric]
            cells = np.eye(4)[2 * labels + answers]
            interval = bootstrap_statistic(cells, of_shares, seed=seed, confidence=confidence)
            found[metric] = Interval(of_labels(labels, answers), interval.low, interval.high, interval.n)
    return found


def _task(records: Sequence[Record]) -> str:
    if not records:
        raise ScoreError("there are no records to score; pass the records of one task under one plan")
    if repeated := len(records) - len({record.sample_id for record in records}):
        raise ScoreError(f"{repeated} records are of a sample that has one already; pass the records of one plan")
    for name, values in {
        "task": {record.metadata.get("task") for record in records},
        "layout": {record.metadata.get("layout") for record in records},
        "num_fewshot": {record.metadata.get("num_fewshot") for record in records},
        "plan": {record.plan_hash for record in records},
        "model": {str(record.model.get("name")) for record in records},
    }.items():
        if len(values) > 1:
            raise ScoreError(f"GLUE scores one {name} at a time, got {sorted(values, key=str)}; score each by itself")
    task = str(records[0].metadata.get("task")).removeprefix("glue/")
    if records[0].metadata.get("task") != f"glue/{task}" or task not in TASKS:
        raise ScoreError(
            f"GLUE's metrics are for records of the tasks {[f'glue/{name}' for name in TASKS]}, got "
            f"{records[0].metadata.get('task')!r}; make the samples with segregation.prompts.glue"
        )
    for record in records:
        if tuple(choice.removeprefix(" ") for choice in record.choices) != TASKS[task].choices:
            raise ScoreError(f"glue/{task} has the choices {TASKS[task].choices}; {record.key!r} has {record.choices}")
    return task


def _matthews(labels: np.ndarray, answers: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef  # a second to import

    return float(matthews_corrcoef(labels, answers))


def _f1(labels: np.ndarray, answers: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, answers, zero_division=0.0))  # pyright: ignore[reportArgumentType] (annotated str, documented float)


# scikit-learn takes about a millisecond a call: for thousands of resamples the definitions are applied to their shares


def _matthews_of(shares: Shares) -> Float[np.ndarray, " resample"]:
    no_no, no_yes, yes_no, yes_yes = shares.T
    scale = np.sqrt((no_no + no_yes) * (yes_no + yes_yes) * (no_no + yes_no) * (no_yes + yes_yes))
    return _ratio(no_no * yes_yes - no_yes * yes_no, scale)


def _f1_of(shares: Shares) -> Float[np.ndarray, " resample"]:
    _, no_yes, yes_no, yes_yes = shares.T
    return _ratio(2 * yes_yes, 2 * yes_yes + no_yes + yes_no)


def _ratio(
    above: Float[np.ndarray, " resample"], below: Float[np.ndarray, " resample"]
) -> Float[np.ndarray, " resample"]:
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


_METRICS: dict[
    Metric, tuple[Callable[[np.ndarray, np.ndarray], float], Callable[[Shares], Float[np.ndarray, " resample"]]]
] = {"matthews_correlation": (_matthews, _matthews_of), "f1": (_f1, _f1_of)}
