import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.proportion import proportion_confint

from segregation.errors import ScoreError
from segregation.runs.record import Record
from segregation.scores.statistics import (
    bootstrap_difference,
    bootstrap_mean,
    bootstrap_retention,
    mcnemar,
    pair,
    retention,
    wilson,
)

rates = st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(rate=rates, confidence=st.floats(0.5, 0.999))
def test_wilson_agrees_with_statsmodels_and_holds_its_rate(rate, confidence):
    successes, n = rate
    interval = wilson(successes, n, confidence=confidence)
    low, high = proportion_confint(successes, n, alpha=1 - confidence, method="wilson")
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-9)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    assert interval.n == n


@given(rate=rates)
def test_wilson_is_the_same_seen_from_the_failures(rate):
    successes, n = rate
    one, other = wilson(successes, n), wilson(n - successes, n)
    assert (one.low, one.high) == pytest.approx((1 - other.high, 1 - other.low), abs=1e-9)


def test_no_interval_without_samples():
    for successes, n in ((0, 0), (-1, 3), (4, 3)):
        with pytest.raises(ScoreError, match=f"got {successes} of {n}"):
            wilson(successes, n)
    with pytest.raises(ScoreError, match="confidence"):
        wilson(1, 2, confidence=95.0)


@given(pairs=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=300))
def test_mcnemar_agrees_with_statsmodels_and_is_symmetric(pairs):
    first, second = ([p[i] for p in pairs] for i in (0, 1))
    test = mcnemar(first, second)
    table = [[sum(a == x and b == y for a, b in pairs) for y in (True, False)] for x in (True, False)]
    assert (test.only_first, test.only_second) == (table[0][1], table[1][0])
    if test.only_first + test.only_second:
        assert test.p_value == pytest.approx(min(1.0, statsmodels_mcnemar(table, exact=True).pvalue), rel=1e-9)
    assert 0 < test.p_value <= 1
    assert mcnemar(second, first).p_value == test.p_value


def test_mcnemar_of_equal_plans_says_nothing():
    assert mcnemar([True, False], [True, False]).p_value == 1


def test_retention_is_the_papers_and_corrected_for_chance():
    assert retention(0.84 * 0.66, 0.66) == pytest.approx(0.84)
    assert retention(0.84 * 0.66, 0.66, chance=0.25) == pytest.approx(0.742, abs=5e-4)
    assert retention(0.25, 0.66, chance=0.25) == 0
    for base, chance in ((0.0, 0.0), (0.25, 0.25), (0.2, 0.25), (float("nan"), 0.0)):
        with pytest.raises(ScoreError, match="above chance"):
            retention(0.5, base, chance=chance)


values = st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=2, max_size=40)


@settings(max_examples=25, deadline=None)
@given(pairs=values)
def test_bootstrapped_differences_are_paired_seeded_and_antisymmetric(pairs):
    first, second = ([p[i] for p in pairs] for i in (0, 1))
    interval = bootstrap_difference(first, second, seed=1)
    assert interval == bootstrap_difference(first, second, seed=1)
    assert interval.value == pytest.approx(np.mean(first) - np.mean(second), abs=1e-9)
    mirrored = bootstrap_difference(second, first, seed=1)
    assert (mirrored.low, mirrored.high) == pytest.approx((-interval.high, -interval.low), abs=1e-9)
    shifted = bootstrap_difference([x + 5 for x in first], first, seed=1)  # the same sample is resampled in both
    assert (shifted.low, shifted.high) == pytest.approx((5, 5), abs=1e-9)


def test_the_bootstrap_agrees_with_the_normal_interval_where_it_must():
    rng = np.random.default_rng(0)
    sample = rng.normal(3, 2, size=2500)
    interval = bootstrap_mean(sample.tolist())
    half = 1.96 * sample.std(ddof=1) / 50
    assert interval.low == pytest.approx(sample.mean() - half, abs=0.08 * half)
    assert interval.high == pytest.approx(sample.mean() + half, abs=0.08 * half)
    assert bootstrap_mean(sample.tolist(), seed=1) != interval


def test_bootstrapped_retention_covers_the_truth():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(30):
        base = rng.random(200) < 0.9
        kept = base & (rng.random(200) < 0.8)
        interval = bootstrap_retention(kept.astype(int).tolist(), base.astype(int).tolist())
        covered += interval.low <= 0.8 <= interval.high
    assert 25 <= covered <= 30


def test_a_ratio_with_a_base_near_chance_has_no_interval():
    with pytest.raises(ScoreError, match="too near chance"):
        bootstrap_retention([1, 0, 1, 0], [1, 0, 1, 0], chance=0.4)
    with pytest.raises(ScoreError, match="above chance"):
        bootstrap_retention([1, 0], [0, 0])


@given(a=st.lists(st.floats(0, 1), max_size=4), b=st.lists(st.floats(0, 1), max_size=4))
def test_unequal_or_missing_samples_are_refused(a, b):
    assume(len(a) != len(b) or not a)
    for compare in (bootstrap_difference, bootstrap_retention, mcnemar):
        arguments = ([bool(x) for x in a], [bool(x) for x in b]) if compare is mcnemar else (a, b)
        with pytest.raises(ScoreError, match="paired samples"):
            compare(*arguments)


def test_values_that_are_not_numbers_are_refused():
    with pytest.raises(ScoreError, match="finite"):
        bootstrap_mean([1.0, float("nan")])


def record(sample_id, plan_hash="p", prompt="x"):
    fields = {"kind": "generate", "target": "t", "plan": "{}", "prompt_tokens": 1}
    return Record(sample_id=sample_id, prompt_sha256=prompt, plan_hash=plan_hash, **fields)


def test_records_are_paired_by_sample_whatever_their_order():
    pairs = pair([record("a"), record("b")], [record("b", "q"), record("a", "q")])
    assert [(x.sample_id, x.plan_hash, y.sample_id, y.plan_hash) for x, y in pairs] == [
        ("a", "p", "a", "q"),
        ("b", "p", "b", "q"),
    ]


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([], [], "no records"),
        ([record("a")], [], r"1 samples have a record under one plan only, for example \['a'\]"),
        ([record("a"), record("b")], [record("b"), record("c")], r"\['a', 'c'\]"),
        ([record("a"), record("a", "q")], [record("a")], "two records"),
        ([record("a")], [record("a", "q", "y")], "different prompts"),
    ],
)
def test_unpaired_records_are_refused(first, second, message):
    with pytest.raises(ScoreError, match=message):
        pair(first, second)
