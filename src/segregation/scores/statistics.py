"""How sure a number is, and whether two plans differ on the same samples."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from segregation.errors import ScoreError
from segregation.runs.record import Record

N_RESAMPLES = 10_000
"""Bootstrap resamples: the ends of a 95% interval are then known to about a fiftieth of its width."""
_CELLS = 2_000_000  # resampled values held at once


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval.

    Attributes:
        value: the estimate.
        low: lower end.
        high: upper end.
        n: how many samples it is made of.
    """

    value: float
    low: float
    high: float
    n: int

    @property
    def percent(self) -> str:
        """In words, as a share.

        >>> Interval(0.98, 0.93, 1.0, 100).percent
        '98% [93, 100]'
        """
        return f"{self.value:.0%} [{100 * self.low:.0f}, {100 * self.high:.0f}]"

    @property
    def plain(self) -> str:
        """In words, as a number.

        >>> Interval(0.98, 0.93, 1.0, 100).plain
        '0.98 [0.93, 1.00]'
        """
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class McNemar:
    """McNemar's exact test of two plans on the same samples.

    Attributes:
        only_first: samples right under the first plan alone.
        only_second: samples right under the second plan alone.
        p_value: two-sided.
    """

    only_first: int
    only_second: int
    p_value: float


def pair(first: Iterable[Record], second: Iterable[Record]) -> list[tuple[Record, Record]]:
    """The records of two plans, sample by sample, in the first's order.

    Raises:
        ScoreError: no records, a sample twice in one of them, a sample that only one has, or different prompts.
    """
    a, b = _by_sample(first), _by_sample(second)
    if not a and not b:
        raise ScoreError("there are no records to pair")
    if lonely := sorted(a.keys() ^ b.keys()):
        raise ScoreError(
            f"two plans are compared on the same samples; {len(lonely)} samples have a record under one plan only, "
            f"for example {lonely[:3]}. Run both plans on the same samples"
        )
    for sample_id in a:
        if a[sample_id].prompt_sha256 != b[sample_id].prompt_sha256:
            raise ScoreError(
                f"sample {sample_id!r} had different prompts under the two plans; run both again on one set"
            )
    return [(a[sample_id], b[sample_id]) for sample_id in a]


def wilson(successes: int, n: int, *, confidence: float = 0.95) -> Interval:
    """A rate with its Wilson score interval. (Wilson 1927)

    Raises:
        ScoreError: no samples, or successes outside 0..n.

    >>> interval = wilson(9, 10)
    >>> round(interval.low, 3), interval.value, round(interval.high, 3)
    (0.596, 0.9, 0.982)
    """
    from scipy.stats import binomtest  # half a second to import

    if n < 1 or not 0 <= successes <= n:
        raise ScoreError(f"a rate needs at least one sample and successes in 0..n, got {successes} of {n}")
    _check_confidence(confidence)
    ends = binomtest(int(successes), int(n)).proportion_ci(confidence, method="wilson")
    value = successes / n
    return Interval(value, min(float(ends.low), value), max(float(ends.high), value), n)


def difference(first: Interval, second: Interval) -> Interval:
    """A difference of two rates, with the interval that their two Wilson intervals give, as of independent samples.

    (Newcombe 1998, method 10)

    >>> found = difference(wilson(9, 10), wilson(3, 10))
    >>> round(found.low, 3), round(found.value, 3), round(found.high, 3)
    (0.171, 0.6, 0.809)
    """
    value = first.value - second.value
    low = math.hypot(first.value - first.low, second.high - second.value)
    high = math.hypot(first.high - first.value, second.value - second.low)
    return Interval(value, value - low, value + high, first.n)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """Whether two plans are right equally often on the same samples: an exact binomial test on those that differ.

    Raises:
        ScoreError: no samples, or lists of different lengths.

    >>> mcnemar([True] * 6, [False] * 6).p_value
    0.03125
    """
    from scipy.stats import binomtest

    a, b = _columns(first, second)
    only_first, only_second = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    differing = only_first + only_second
    p_value = binomtest(only_first, differing).pvalue if differing else 1.0
    return McNemar(only_first, only_second, float(p_value))


def retention(accuracy: float | int, base: float | int, *, chance: float | int = 0.0) -> float:
    """What is left of a base accuracy: (a - chance) / (a0 - chance). With chance 0 it is the raw share a / a0.

    Raises:
        ScoreError: the base is not above chance, so that nothing can be retained.

    >>> round(retention(0.84 * 0.66, 0.66), 2), round(retention(0.84 * 0.66, 0.66, chance=0.25), 2)
    (0.84, 0.74)
    """
    if not base > chance:
        raise ScoreError(f"retention needs a base accuracy above chance, got {base} with chance {chance}")
    return (accuracy - chance) / (base - chance)


def bootstrap_mean(values: Sequence[float | int], *, seed: int = 0, confidence: float = 0.95) -> Interval:
    """A mean with its percentile bootstrap interval; for a rate prefer ``wilson``, which is honest at 0 and 1.

    Raises:
        ScoreError: no values.

    >>> bootstrap_mean([2, 2, 2])
    Interval(value=2.0, low=2.0, high=2.0, n=3)
    """
    column, _ = _columns(values, values)
    return bootstrap_statistic(column[:, None], lambda means: means[:, 0], seed=seed, confidence=confidence)


def bootstrap_difference(
    first: Sequence[float | int], second: Sequence[float | int], *, seed: int = 0, confidence: float = 0.95
) -> Interval:
    """mean(first) - mean(second) on the same samples, with its paired percentile bootstrap interval.

    Raises:
        ScoreError: no samples, or lists of different lengths.

    >>> bootstrap_difference([1, 0, 1], [0, -1, 0])
    Interval(value=1.0, low=1.0, high=1.0, n=3)
    """
    return bootstrap_statistic(
        np.stack(_columns(first, second), 1), lambda means: means[:, 0] - means[:, 1], seed=seed, confidence=confidence
    )


def bootstrap_retention(
    accuracy: Sequence[float | int],
    base: Sequence[float | int],
    *,
    chance: float | int = 0.0,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """``retention`` of the means on the same samples, with its paired percentile bootstrap interval.

    Raises:
        ScoreError: no samples, lists of different lengths, or a base so near chance that it is not above it in every
            resample: the ratio then has no interval.

    >>> bootstrap_retention([0, 1, 1, 0], [1, 1, 1, 1]).value
    0.5
    """
    columns = np.stack(_columns(accuracy, base), 1)
    retention(float(columns[:, 0].mean()), float(columns[:, 1].mean()), chance=chance)

    def ratio(means: Float[np.ndarray, "resample 2"]) -> Float[np.ndarray, " resample"]:
        if (means[:, 1] <= chance).any():
            raise ScoreError(
                f"the base ({columns[:, 1].mean():.3f} on {len(columns)} samples) is too near chance ({chance}) for an "
                "interval of the retention; use more samples, or bootstrap_difference"
            )
        return (means[:, 0] - chance) / (means[:, 1] - chance)

    return bootstrap_statistic(columns, ratio, seed=seed, confidence=confidence)


def bootstrap_statistic(
    columns: Float[np.ndarray, "sample column"],
    statistic: Callable[[Float[np.ndarray, "resample column"]], Float[np.ndarray, " resample"]],
    *,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """A statistic of column means, with its percentile bootstrap interval; rows are resampled whole, hence paired.

    Raises:
        ScoreError: a confidence outside 0..1, or no samples.

    >>> bootstrap_statistic(np.ones((4, 2)), lambda means: means[:, 0] / means[:, 1])
    Interval(value=1.0, low=1.0, high=1.0, n=4)
    """
    if not len(columns):
        raise ScoreError("a bootstrap needs at least one sample, got none")
    _check_confidence(confidence)
    rng, n = np.random.default_rng(seed), len(columns)
    step = max(1, _CELLS // n)
    resampled = np.concatenate(
        [
            statistic(columns[rng.integers(n, size=(min(step, N_RESAMPLES - done), n))].mean(axis=1))
            for done in range(0, N_RESAMPLES, step)
        ]
    )
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(statistic(columns.mean(axis=0)[None])[0]), float(low), float(high), n)


def _columns(
    first: Sequence[float | int], second: Sequence[float | int]
) -> tuple[Float[np.ndarray, " sample"], Float[np.ndarray, " sample"]]:
    if not len(first) or len(first) != len(second):
        raise ScoreError(f"paired samples are needed, at least one, got {len(first)} and {len(second)}; use pair()")
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ScoreError("every value must be finite, got one that is not; see which record it came from")
    return a, b


def _by_sample(records: Iterable[Record]) -> dict[str, Record]:
    found: dict[str, Record] = {}
    for record in records:
        if record.sample_id in found:
            raise ScoreError(
                f"sample {record.sample_id!r} has two records; pass the records of one plan and one kind at a time"
            )
        found[record.sample_id] = record
    return found


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ScoreError(f"confidence lies between 0 and 1, got {confidence}")
