import itertools
import math
import random

import numpy as np
import pytest
from sklearn.metrics import f1_score, matthews_corrcoef

from segregation.errors import ScoreError
from segregation.prompts.glue import TASKS
from segregation.runs.record import Record
from segregation.scores.glue import _f1_of, _matthews_of, glue_metrics
from segregation.scores.statistics import wilson


def record(task, number, label, answer, **changes):
    choices = tuple(f" {choice}" for choice in TASKS[task].choices)
    fields = {
        "sample_id": f"{number}",
        "prompt_sha256": "",
        "target": choices[label],
        "plan": "{}",
        "plan_hash": "0",
        "prompt_tokens": 9,
        "choices": choices,
        "loglikelihoods": tuple(-1.0 if choice == answer else -2.0 for choice in range(len(choices))),
        "token_counts": (1,) * len(choices),
        "metadata": {"task": f"glue/{task}", "num_fewshot": 0, "layout": "base"},
    }
    return Record(kind="loglikelihood", **{**fields, **changes})


def recorded(task, no_no, no_yes, yes_no, yes_yes):
    pairs = [(0, 0)] * no_no + [(0, 1)] * no_yes + [(1, 0)] * yes_no + [(1, 1)] * yes_yes
    return [record(task, number, label, answer) for number, (label, answer) in enumerate(pairs)]


def test_cola_is_the_matthews_correlation():
    found = glue_metrics(recorded("cola", 5, 1, 2, 12))
    assert list(found) == ["matthews_correlation"]
    by_hand = (12 * 5 - 1 * 2) / math.sqrt((12 + 1) * (12 + 2) * (5 + 1) * (5 + 2))
    assert found["matthews_correlation"].value == pytest.approx(by_hand, abs=1e-12)
    pearson = np.corrcoef([0] * 6 + [1] * 14, [0] * 5 + [1] + [0] * 2 + [1] * 12)[0, 1]
    assert found["matthews_correlation"].value == pytest.approx(pearson, abs=1e-12)
    assert found["matthews_correlation"].n == 20


@pytest.mark.parametrize("task", ["mrpc", "qqp"])
def test_paraphrases_have_f1_of_yes_and_accuracy(task):
    found = glue_metrics(recorded(task, 1, 2, 3, 4))
    assert list(found) == ["f1", "accuracy"]
    precision, recall = 4 / 6, 4 / 7
    assert found["f1"].value == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-12)
    assert found["accuracy"] == wilson(5, 10)


@pytest.mark.parametrize("task", ["sst2", "mnli", "mnli_mismatched", "qnli", "rte", "wnli"])
def test_the_others_have_accuracy(task):
    last = len(TASKS[task].choices) - 1
    found = glue_metrics([record(task, 0, last, last), record(task, 1, 0, last), record(task, 2, 0, 0)])
    assert found == {"accuracy": wilson(2, 3)}


@pytest.mark.filterwarnings("ignore:A single label was found")
def test_on_shares_the_metrics_are_scikit_learns():
    labels, answers = [0, 0, 1, 1], [0, 1, 0, 1]
    tables = [table for table in itertools.product((0, 1, 2, 5), repeat=4) if sum(table)]
    shares = np.array([[count / sum(table) for count in table] for table in tables])
    for table, matthews, f1 in zip(tables, _matthews_of(shares), _f1_of(shares), strict=True):
        y, guess = np.repeat(labels, table), np.repeat(answers, table)
        assert matthews == pytest.approx(matthews_corrcoef(y, guess), abs=1e-9)
        assert f1 == pytest.approx(f1_score(y, guess, zero_division=0.0), abs=1e-12)


@pytest.mark.parametrize(("task", "metric"), [("cola", "matthews_correlation"), ("mrpc", "f1")])
def test_the_interval_is_a_bootstrap_over_samples(task, metric):
    records = recorded(task, 20, 8, 6, 26)
    found = glue_metrics(records, seed=1)[metric]
    assert found == glue_metrics(records, seed=1)[metric] != glue_metrics(records, seed=2)[metric]
    assert found.low < found.value < found.high
    narrow = glue_metrics(records, confidence=0.5)[metric]
    assert narrow.high - narrow.low < 0.5 * (found.high - found.low)

    rng = random.Random(0)
    cells = [(0, 0)] * 20 + [(0, 1)] * 8 + [(1, 0)] * 6 + [(1, 1)] * 26
    function = matthews_corrcoef if metric == "matthews_correlation" else f1_score
    resampled = [function(*zip(*rng.choices(cells, k=60), strict=True)) for _ in range(600)]
    low, high = np.quantile(resampled, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.05) and found.high == pytest.approx(high, abs=0.05)


@pytest.mark.parametrize(("task", "metric"), [("cola", "matthews_correlation"), ("mrpc", "f1")])
def test_where_every_answer_is_no_the_metric_is_zero(task, metric):
    found = glue_metrics(recorded(task, 4, 0, 3, 0))[metric]
    assert (found.value, found.low, found.high) == (0, 0, 0)


RTE = record("rte", 0, 0, 0)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "no records"),
        ([RTE, record("wnli", 1, 0, 0)], r"one task at a time, got \['glue/rte', 'glue/wnli'\]"),
        ([RTE, record("rte", 1, 0, 0, plan_hash="1")], "one plan at a time"),
        ([RTE, record("rte", 1, 0, 0, model={"name": "other"})], "one model at a time"),
        ([RTE, record("rte", 1, 0, 0, metadata={"task": "glue/rte", "num_fewshot": 5})], "one layout at a time"),
        ([RTE, record("rte", 0, 1, 0, plan_hash="1")], "has one already"),
        ([record("rte", 0, 0, 0, metadata={"task": "facts"})], "got 'facts'"),
        ([record("rte", 0, 0, 0, metadata={"task": "rte"})], "got 'rte'"),
        ([record("rte", 0, 0, 0, choices=(" yes", " no"), target=" no")], r"has the choices \('True', 'False'\)"),
    ],
)
def test_what_cannot_be_scored_together_is_refused(records, message):
    with pytest.raises(ScoreError, match=message):
        glue_metrics(records)
