"""Whether something can be read linearly off a model's inside: a cross-validated probe with a shuffled-label control.

The probe is a ridge classifier: least squares to one column for each label, the largest column wins. Features are
standardised by the training part of each fold and divided by the square root of their number, so that one penalty
suits every width. A probe that finds something says that it is there, not that the model uses it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import StandardScaler

from segregation.errors import ScoreError

PENALTY = 0.1
"""Weight of the squared coefficients, beside squared errors summed over training samples."""
SHUFFLES = 5
"""Draws of shuffled labels."""


@dataclass(frozen=True)
class Probed:
    """What a probe got right, on samples that it was not fitted to.

    Attributes:
        correct: samples told right.
        n: samples, each tested once.
        shuffled_correct: of as many samples with shuffled labels, fitted and tested alike, over all draws.
        shuffled_n: samples of all draws.
        chance: what the best constant guess gets right, the share of the most frequent label.
    """

    correct: int
    n: int
    shuffled_correct: int
    shuffled_n: int
    chance: float

    @property
    def selectivity(self) -> float:
        """Accuracy minus accuracy with shuffled labels. (Hewitt & Liang 2019)

        >>> Probed(correct=9, n=10, shuffled_correct=10, shuffled_n=40, chance=0.25).selectivity
        0.65
        """
        return self.correct / self.n - self.shuffled_correct / self.shuffled_n


def linear_probe(
    features: Float[np.ndarray, "sample width"],
    labels: Int[np.ndarray, " sample"],
    groups: Int[np.ndarray, " sample"],
    *,
    folds: int = 4,
    penalty: float = PENALTY,
    shuffles: int = SHUFFLES,
    seed: int = 0,
) -> Probed:
    """Fit a linear probe on all folds but one, test it on that one, fold by fold; the same with shuffled labels.

    Args:
        features: what is read, a row for each sample.
        labels: what is to be told.
        groups: samples of one group are never in train and test at once.
        folds: parts that the groups are dealt into.
        penalty: of the ridge, on the scale where a sample's features have a squared length of about 1.
        shuffles: draws of the control: labels are permuted within each group, so that groups stay as balanced as they
            are. Where all of a group has one label that leaves them as they are, and is refused.
        seed: deals the groups and shuffles.

    Raises:
        ScoreError: features that are not finite, fewer groups than folds, one label only, or groups of one label.

    >>> features = np.repeat(np.eye(2), 4, axis=0)
    >>> probed = linear_probe(features, np.repeat([0, 1], 4), np.tile(np.arange(4), 2))
    >>> probed.correct, probed.n, probed.chance
    (8, 8, 0.5)
    """
    _check(features, labels, groups, folds, shuffles)
    values, places = np.unique(labels, return_inverse=True)
    rng = np.random.default_rng(seed)
    told = np.stack([places, *(_shuffled(places, groups, rng) for _ in range(shuffles))], axis=1)
    targets = np.eye(len(values))[told].reshape(len(labels), -1)
    right = np.zeros(told.shape, dtype=bool)
    for train, test in grouped_folds(groups, folds, seed):
        scaler = StandardScaler().fit(features[train])
        scaled = scaler.transform(features) / np.sqrt(features.shape[1])
        fitted = Ridge(alpha=penalty, solver="cholesky").fit(scaled[train], targets[train])
        scores = fitted.predict(scaled[test]).reshape(len(test), *told.shape[1:], len(values))
        right[test] = scores.argmax(-1) == told[test]
    return Probed(
        correct=int(right[:, 0].sum()),
        n=len(labels),
        shuffled_correct=int(right[:, 1:].sum()),
        shuffled_n=right[:, 1:].size,
        chance=float(np.bincount(places).max() / len(places)),
    )


def grouped_folds(
    groups: Int[np.ndarray, " sample"], folds: int, seed: int = 0
) -> Iterator[tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]]]:
    """Train and test rows of each fold; every row is tested once, and no group is on both sides.

    >>> [(sorted(train.tolist()), sorted(test.tolist())) for train, test in grouped_folds(np.array([5, 5, 7]), 2)]
    [([0, 1], [2]), ([2], [0, 1])]
    """
    split = GroupKFold(n_splits=folds, shuffle=True, random_state=seed).split(groups[:, None], groups=groups)
    yield from ((np.asarray(train), np.asarray(test)) for train, test in split)


def hashed(features: Float[np.ndarray, "sample wide"], width: int, seed: int = 0) -> Float[np.ndarray, "sample width"]:
    """Features of at most ``width`` numbers: each is added, with a random sign, to one of ``width`` sums.

    Inner products are kept on average, and no sample is looked at, so nothing leaks between folds. Features that are
    narrow enough are left as they are. (Weinberger et al. 2009)

    >>> hashed(np.ones((1, 3)), 3).tolist(), hashed(np.ones((2, 1000)), 10).shape
    ([[1.0, 1.0, 1.0]], (2, 10))
    """
    wide = features.shape[1]
    if wide <= width:
        return features
    rng = np.random.default_rng(seed)
    signs = rng.choice(np.array([-1, 1], dtype=features.dtype), wide)
    order = np.argsort(sums := rng.permutation(np.arange(wide) % width), kind="stable")
    starts = np.searchsorted(sums[order], np.arange(width))
    return np.add.reduceat((features * signs)[:, order], starts, axis=1)


def _shuffled(
    labels: Int[np.ndarray, " sample"], groups: Int[np.ndarray, " sample"], rng: np.random.Generator
) -> Int[np.ndarray, " sample"]:
    shuffled = labels.copy()
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        shuffled[rows] = rng.permutation(labels[rows])
    return shuffled


def _check(
    features: Float[np.ndarray, "sample width"],
    labels: Int[np.ndarray, " sample"],
    groups: Int[np.ndarray, " sample"],
    folds: int,
    shuffles: int,
) -> None:
    found = len(np.unique(groups))
    if folds < 2 or shuffles < 1 or found < folds:
        raise ScoreError(
            f"a probe needs 2 folds or more, as many groups, and a shuffle, got {folds} folds, {found} groups and "
            f"{shuffles} shuffles"
        )
    if not np.isfinite(features).all():
        raise ScoreError("every feature must be finite, got one that is not; run the model in float32")
    if any(len(np.unique(labels[groups == group])) < 2 for group in np.unique(groups)):
        raise ScoreError(
            "each group must have two labels or more, for labels are shuffled within groups; make groups larger"
        )
