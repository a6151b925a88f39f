"""How sure a number is that was measured on several drawn sets, each on many samples: a bootstrap with two levels.

Sets are drawn with replacement, then samples. A set is one unit however many samples it was measured on, so what is
inferred holds for sets like these, not for these alone.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from segregation.errors import ScoreError
from segregation.scores.statistics import N_RESAMPLES, Interval

Cells = Float[np.ndarray, "set condition _"]
"""What every sample gave in every condition of every set, all sets on the same samples (the last axis)."""
Means = Float[np.ndarray, "_ set condition"]
"""Means over samples; the first axis counts resamples."""


def crossed(tables: Sequence[Cells], *, n_resamples: int = N_RESAMPLES, seed: int = 0) -> list[Means]:
    """Resampled means of tables whose sets were all measured on the same samples.

    In each resample the sets drawn are the same in every table, and the samples drawn are the same for all sets and
    conditions of a table: what they share is not averaged away. (Owen 2007, "The pigeonhole bootstrap")

    Raises:
        ScoreError: no table, tables with different numbers of sets, or no sample.

    >>> [means.shape for means in crossed([np.ones((3, 2, 5)), np.ones((3, 2, 9))], n_resamples=7)]
    [(7, 3, 2), (7, 3, 2)]
    """
    n_sets = _n_sets([len(table) for table in tables])
    rng = np.random.default_rng(seed)
    chosen = rng.integers(n_sets, size=(n_resamples, n_sets))
    found = []
    for table in tables:
        weights = _weights(rng, table.shape[2], n_resamples)
        means = np.tensordot(weights, table, axes=(1, 2))
        found.append(np.take_along_axis(means, chosen[:, :, None], axis=1))
    return found


def nested(
    tables: Sequence[Sequence[Float[np.ndarray, "condition _"]]], *, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> list[Means]:
    """Resampled means of tables in which every set was measured on samples of its own.

    In each resample the sets drawn are the same in every table; every drawn set has its own samples drawn, the same for
    all of its conditions.

    Raises:
        ScoreError: no table, tables with different numbers of sets, or a set without samples.

    >>> [means.shape for means in nested([[np.ones((2, 5)), np.ones((2, 4))]], n_resamples=7)]
    [(7, 2, 2)]
    """
    n_sets = _n_sets([len(table) for table in tables])
    rng = np.random.default_rng(seed)
    chosen = rng.integers(n_sets, size=(n_resamples, n_sets))
    found: list[Means] = []
    for table in tables:
        means = np.empty((n_resamples, n_sets, len(table[0])))
        for number, cells in enumerate(table):
            drawn = chosen == number
            means[drawn] = _weights(rng, cells.shape[1], int(drawn.sum())) @ cells.T
        found.append(means)
    return found


def interval(
    value: float, resampled: Float[np.ndarray, " resample"], n_sets: int, n: int, *, confidence: float = 0.95
) -> Interval:
    """The expanded percentile interval of a resampled number; for few sets it is wider than the plain one.

    Its ends cut off Phi(-sqrt(k / (k-1)) t) of the resamples on either side, with k sets and t the quantile of
    Student's distribution with k-1 degrees of freedom.
    (Hesterberg 2015, "What teachers should know about the bootstrap"). It never leaves the range of the sets, so with k
    of them it cannot hold the truth more often than 1 - 2^(1-k): 75% for 3, 94% for 5, 97% for 6.

    Args:
        value: the estimate.
        resampled: the same from each resample.
        n_sets: k.
        n: how many samples to say that it is made of.
        confidence: of the interval.

    Raises:
        ScoreError: fewer than two sets, which say nothing about others.

    >>> found = interval(0.0, np.linspace(-1, 1, 1001), n_sets=1000, n=9)
    >>> round(found.low, 2), round(found.high, 2)
    (-0.95, 0.95)
    """
    from scipy.stats import norm, t  # half a second to import

    _check_sets(n_sets)
    tail = norm.sf(np.sqrt(n_sets / (n_sets - 1)) * t.isf((1 - confidence) / 2, n_sets - 1))
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Interval(value, min(float(low), value), max(float(high), value), n)


def p_above_zero(resampled: Float[np.ndarray, " resample"], n_sets: int) -> float:
    """One-sided p-value of "it is not above 0": the level at which the one-sided interval begins to hold 0.

    The interval is that of ``interval``; (1 + resamples at or below 0) / (1 + resamples) takes the place of their
    share, so that p is never 0.

    Raises:
        ScoreError: fewer than two sets.

    >>> 0.001 < p_above_zero(np.linspace(0.1, 1, 9999), n_sets=10) < 0.01
    True
    """
    from scipy.stats import norm, t

    _check_sets(n_sets)
    below = (1 + np.count_nonzero(resampled <= 0)) / (1 + len(resampled))
    return float(t.sf(norm.isf(below) / np.sqrt(n_sets / (n_sets - 1)), n_sets - 1))


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: rejecting those at or below q keeps the false discovery rate at q. (Benjamini & Hochberg 1995)

    Raises:
        ScoreError: no p-value, or one outside 0..1.

    >>> benjamini_hochberg([0.01, 0.04, 0.03])
    [0.03, 0.04, 0.04]
    """
    from scipy.stats import false_discovery_control

    if not p_values or not all(0 <= p <= 1 for p in p_values):
        raise ScoreError(f"p-values lie in 0..1 and there is at least one, got {list(p_values)}")
    return [round(float(p), 12) for p in false_discovery_control(p_values, method="bh")]


def _weights(rng: np.random.Generator, n: int, n_resamples: int) -> Float[np.ndarray, "_ _"]:
    """How large a share of each resample every one of ``n`` samples is."""
    if n < 1:
        raise ScoreError("a bootstrap needs at least one sample in every set, got none")
    return rng.multinomial(n, np.full(n, 1 / n), size=n_resamples) / n


def _n_sets(counts: Sequence[int]) -> int:
    if not counts or len(set(counts)) > 1 or not counts[0]:
        raise ScoreError(f"tables are of the same sets, at least one, got tables with {list(counts)} sets")
    return counts[0]


def _check_sets(n_sets: int) -> None:
    if n_sets < 2:
        raise ScoreError(f"at least two sets are needed to say something about sets like them, got {n_sets}")
