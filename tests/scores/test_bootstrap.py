"""The bootstrap of two levels: exact cases, coverage by simulation, and p-values beside statsmodels'."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp
from statsmodels.stats.multitest import multipletests

from segregation.errors import ScoreError
from segregation.scores.bootstrap import benjamini_hochberg, crossed, interval, nested, p_above_zero

RESAMPLES = 600
RUNS = 300


def test_resamples_of_one_value_are_that_value() -> None:
    table = np.array([[[1.0] * 5, [0.0] * 5], [[1.0] * 5, [0.0] * 5]])
    for means in (crossed([table], n_resamples=9)[0], nested([list(table)], n_resamples=9)[0]):
        assert means.shape == (9, 2, 2) and (means[..., 0] == 1).all() and (means[..., 1] == 0).all()


def test_conditions_and_crossed_sets_share_their_samples() -> None:
    """Two conditions, and two sets, of equal columns stay equal in every resample; nested sets do not."""
    column = np.arange(8.0)
    table = np.broadcast_to(column, (3, 2, 8)).copy()
    (means,) = crossed([table], n_resamples=50)
    assert (means == means[:, :1, :1]).all() and means.std() > 0
    (apart,) = nested([list(table)], n_resamples=50)
    assert (apart[..., 0] == apart[..., 1]).all() and (apart[:, 0] != apart[:, 1]).any()


def test_sets_drawn_are_the_same_in_every_table() -> None:
    first, second = (
        np.arange(4.0)[:, None, None] * np.ones((4, 1, 3)),
        np.arange(4.0)[:, None, None] * np.ones((4, 1, 7)),
    )
    for draw in (crossed([first, second], n_resamples=40), nested([list(first), list(second)], n_resamples=40)):
        assert np.allclose(draw[0], draw[1]) and len(np.unique(draw[0].mean(axis=1))) > 3


def test_the_spread_is_that_of_sets_and_samples() -> None:
    """Against the textbook variance: sets / k + samples / n, both by the population formula that a bootstrap has."""
    rng = np.random.default_rng(0)
    sets, samples = rng.normal(size=6), rng.normal(size=40)
    (means,) = crossed([(sets[:, None] + samples)[:, None, :]], n_resamples=20_000)
    assert means.mean(axis=(1, 2)).var() == pytest.approx(sets.var() / 6 + samples.var() / 40, rel=0.05)


def coverage(design: str, runs: int, k: int = 8, n: int = 20) -> float:
    """How often the interval of a paired difference holds its truth, 0.1; sets and samples are drawn anew each time."""
    rng, hits = np.random.default_rng(1), 0
    for run in range(runs):
        each = (n,) if design == "crossed" else (k, n)
        hard, more = rng.normal(size=each), 0.1 + rng.normal(size=each)
        first = hard + more + rng.normal(scale=0.3, size=(k, 1)) + rng.normal(scale=0.2, size=(k, n))
        table = np.stack([first, np.broadcast_to(hard, (k, n))], axis=1)
        draw = crossed if design == "crossed" else nested
        (means,) = draw([table if design == "crossed" else list(table)], n_resamples=300, seed=run)
        value = float((table[:, 0] - table[:, 1]).mean())
        found = interval(value, (means[..., 0] - means[..., 1]).mean(axis=1), n_sets=k, n=n)
        hits += found.low <= 0.1 <= found.high
    return hits / runs


@pytest.mark.parametrize(("design", "runs"), [("crossed", 400), ("nested", 120)])
def test_intervals_cover_the_truth(design: str, runs: int) -> None:
    assert 0.92 <= coverage(design, runs) <= 0.99


def test_a_plain_percentile_interval_covers_too_little() -> None:
    """What the expansion is for: with six sets the plain interval misses the truth far more often than it says."""
    rng, plain, expanded = np.random.default_rng(2), 0, 0
    for run in range(RUNS):
        table = rng.normal(size=(6, 1, 1)) + np.zeros((6, 1, 2))
        column = crossed([table], n_resamples=RESAMPLES, seed=run)[0].mean(axis=(1, 2))
        low, high = np.quantile(column, [0.025, 0.975])
        found = interval(float(table.mean()), column, n_sets=6, n=2)
        plain, expanded = plain + (low <= 0 <= high), expanded + (found.low <= 0 <= found.high)
    assert plain / RUNS < 0.9 < 0.92 < expanded / RUNS


@pytest.mark.parametrize("k", [5, 10])
def test_p_values_are_below_5_percent_as_often_as_they_should(k: int) -> None:
    """Without an effect; and near the t-test's, which is exact for what is drawn here."""
    rng, small = np.random.default_rng(3), 0
    for run in range(RUNS):
        table = rng.normal(size=(k, 1, 1)) + np.zeros((k, 1, 2))
        p = p_above_zero(crossed([table], n_resamples=RESAMPLES, seed=run)[0].mean(axis=(1, 2)), n_sets=k)
        small += p <= 0.05
        exact = ttest_1samp(table[:, 0, 0], 0, alternative="greater").pvalue
        assert abs(p - exact) < (0.15 if k == 5 else 0.08)
    assert 0.02 <= small / RUNS <= 0.08


def test_benjamini_hochberg_is_that_of_statsmodels() -> None:
    p_values = np.random.default_rng(4).uniform(size=20) ** 2
    assert benjamini_hochberg(list(p_values)) == pytest.approx(multipletests(p_values, method="fdr_bh")[1])


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda: crossed([]), "the same sets"),
        (lambda: crossed([np.ones((2, 1, 3)), np.ones((3, 1, 3))]), "the same sets"),
        (lambda: nested([[np.ones((1, 0)), np.ones((1, 2))]]), "at least one sample"),
        (lambda: interval(0.0, np.zeros(5), n_sets=1, n=5), "at least two sets"),
        (lambda: p_above_zero(np.zeros(5), n_sets=1), "at least two sets"),
        (lambda: benjamini_hochberg([]), "at least one"),
        (lambda: benjamini_hochberg([1.5]), r"0\.\.1"),
    ],
)
def test_what_cannot_be_resampled_is_refused(call, why: str) -> None:
    with pytest.raises(ScoreError, match=why):
        call()
