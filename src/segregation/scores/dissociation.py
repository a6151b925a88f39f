"""Whether two sides of a model serve two abilities apart: effects of ablations, segregation index, double dissociation.

A side is all attention heads (A) or all recurrent mixers (S); an ability is retrieval (R) or language (L). Everything
is computed from right and wrong answers of the intact model and of models with sets of either side ablated, where each
set of A has a partner of S that does as much harm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from segregation.errors import ScoreError
from segregation.scores.bootstrap import benjamini_hochberg, crossed, interval, nested, p_above_zero
from segregation.scores.statistics import Interval

SIDES = ("attention", "recurrent", "both")
"""What is ablated in the conditions after the intact one, in their order."""
ALPHA = 0.05
"""False discovery rate at which a test counts."""
RESAMPLES = 4000
"""Of the bootstrap: with the few sets there are, its ends are among the most extreme resamples anyway."""
Z = 1.959964
"""Normal quantile of a 95% interval."""

DissociationVerdict = Literal["none", "single", "double"]
Number = float | int | np.ndarray
"""One number, or an array of them, which is taken element by element."""
Weights = Mapping[tuple[str, int], float]
"""A linear combination of effects, by task and number of the side."""


@dataclass(frozen=True, eq=False)
class Measured:
    """Right answers (1) on one task, of all matched pairs on the same samples.

    Attributes:
        right: per pair, of the model intact and with ``SIDES`` ablated.
        chance: share that a guess gets right.
    """

    right: Float[np.ndarray, "set 4 sample"]
    chance: float | int


@dataclass(frozen=True, eq=False)
class Dealt:
    """Right answers (1) on one task, of random pairs that were dealt whatever their kind, each on samples of its own.

    Attributes:
        right: per pair, of the model intact and with one side and the other ablated.
        chance: share that a guess gets right.
    """

    right: Sequence[Float[np.ndarray, "3 _"]]
    chance: float | int


@dataclass(frozen=True)
class Contrast:
    """One test of a double dissociation.

    Attributes:
        task: on which one side is said to hit harder.
        harder: the side that is: ``"attention"`` on retrieval, ``"recurrent"`` on every other task.
        difference: its effect less that of the other side, mean over pairs.
        p_value: one-sided, of the difference not being above 0.
        adjusted: the same by Benjamini and Hochberg over all tests.
    """

    task: str
    harder: str
    difference: Interval
    p_value: float
    adjusted: float


@dataclass(frozen=True)
class Dissociation:
    """What matched pairs say.

    Attributes:
        effects: mean effect by task and side.
        index: SI_abl, once the mean of random pairs is taken off; without random pairs ``None``.
        raw: the same before.
        at_random: mean of random pairs.
        contrasts: the tests, retrieval first, then the task that decides, then others.
        verdict: of the first two contrasts, ``"double"`` if both count, ``"single"`` if one does. One counts if its
            test does *and* the side that hits harder takes more from that ability than from the other: between pairs
            of equal harm the two tests alone are nearly one, as what a side takes less of one it takes more of the
            other.
        interactions: E(A+S) - E(A) - E(S) by task.
        harm_gap: (E_R + E_L) / 2 of A less that of S, on these samples.
        harm_gap_size: its size, mean over pairs, in which gaps of opposite sign do not cancel.
        lopsided: per side, how much more it takes from the ability that it should serve than from the other:
            E_R(A) - E_L(A), and E_L(S) - E_R(S).
    """

    effects: Mapping[str, Mapping[str, Interval]]
    index: Interval | None
    raw: Interval
    at_random: Interval | None
    contrasts: tuple[Contrast, ...]
    verdict: DissociationVerdict
    interactions: Mapping[str, Interval]
    harm_gap: Interval
    harm_gap_size: float
    lopsided: Mapping[str, Interval]


def effect(intact: Number, ablated: Number, chance: Number) -> np.ndarray:
    """What an ablation takes, between nothing and all: E = clip((m(F) - m(F - G)) / (m(F) - chance), 0, 1).

    Raises:
        ScoreError: an intact model that is not above chance, which has nothing to lose.

    >>> effect(0.95, 0.6, chance=0.25).item()
    0.5
    """
    if not np.all(np.asarray(intact) > chance):
        raise ScoreError(f"an effect needs an intact model above chance ({chance}), got {np.min(intact)}")
    lost = (np.asarray(intact) - ablated) / (np.asarray(intact) - chance)
    return np.asarray(np.clip(np.round(lost, 12), 0, 1))


def segregation(retrieval_a: Number, retrieval_s: Number, language_a: Number, language_s: Number) -> np.ndarray:
    """SI_abl of four effects, before the correction: ([E_R(A) - E_R(S)] - [E_L(A) - E_L(S)]) / 2, in [-1, 1].

    1: A alone serves R and S alone serves L; -1: the reverse; 0: they do not differ in what they serve.

    >>> segregation(retrieval_a=1, retrieval_s=0, language_a=0, language_s=1).item()
    1.0
    """
    return np.asarray((retrieval_a - retrieval_s - language_a + language_s) / 2)


def less_random(index: Number, at_random: Number) -> np.ndarray:
    """An index once that of random pairs is taken off, still in [-1, 1]: (SI - r) / (1 - r), over (1 + r) below r.

    1 stays 1, -1 stays -1, and what random pairs reach counts as 0, as chance does in an accuracy corrected for it.

    >>> [less_random(index, 0.2).item() for index in (1, 0.2, -1)]
    [1.0, 0.0, -1.0]
    """
    gap = np.asarray(index, dtype=float) - at_random
    room = np.where(gap >= 0, 1 - np.asarray(at_random), 1 + np.asarray(at_random))
    return np.asarray(np.clip(gap / np.where(room == 0, 1, room), -1, 1))


def interaction(both: Number, attention: Number, recurrent: Number) -> np.ndarray:
    """I = E(A+S) - E(A) - E(S): 0 if effects add up, above if the sides stand in for each other, below if they share.

    Effects end at 1, so two large ones cannot add up: below 0, see first whether E(A) + E(S) is above 1.

    >>> interaction(both=1.0, attention=0.0, recurrent=0.0).item()
    1.0
    """
    return np.asarray(both - attention - recurrent)


def dissociate(
    retrieval: Measured,
    language: Mapping[str, Measured],
    random_pairs: tuple[Dealt, Dealt] | None = None,
    *,
    n_resamples: int = RESAMPLES,
    seed: int = 0,
) -> Dissociation:
    """Effects, index and verdict of matched pairs, with intervals from a paired bootstrap of two levels.

    In each resample pairs are drawn, then samples, the same for all conditions. Where the Wilson intervals of the rates
    (taken together as by Zou & Donner 2008) are wider they count, since a bootstrap is blind where all are right.

    Args:
        retrieval: the pairs on retrieval.
        language: the pairs on other tasks, by name; the first decides.
        random_pairs: pairs that were dealt whatever their kind, on retrieval and on the task that decides.
        n_resamples: of the bootstrap.
        seed: of the same.

    Raises:
        ScoreError: fewer than two pairs, no task beside retrieval, or an intact model so near chance that it is not
            above it in every resample.
    """
    if not language:
        raise ScoreError("two abilities are compared: give a task beside retrieval")
    tasks, main = {"retrieval": retrieval, **language}, next(iter(language))
    signs, n_pairs = {name: 1.0 if name == "retrieval" else -1.0 for name in tasks}, len(retrieval.right)
    resampled = dict(
        zip(tasks, crossed([t.right for t in tasks.values()], n_resamples=n_resamples, seed=seed), strict=True)
    )
    drawn = {name: _effects(resampled[name], task.chance) for name, task in tasks.items()}
    found = {name: _effects(task.right.mean(axis=2)[None], task.chance)[0] for name, task in tasks.items()}
    wilson = {name: _wilson_effects(task, found[name]) for name, task in tasks.items()}

    def combined(weights: Weights) -> tuple[Interval, Float[np.ndarray, " resample"]]:
        value = sum(weight * found[name][side] for (name, side), weight in weights.items())
        column = sum(weight * drawn[name][:, side] for (name, side), weight in weights.items())
        column, n = np.asarray(column), min(tasks[name].right.shape[2] for name, _ in weights)
        low, high = _recovered(weights, found, wilson)
        booted = interval(float(value), column, n_pairs, n)
        return Interval(float(value), min(booted.low, low), max(booted.high, high), n), column

    differences = {name: combined({(name, 0): sign, (name, 1): -sign}) for name, sign in signs.items()}
    p_values = [p_above_zero(column, n_pairs) for _, column in differences.values()]
    tests = tuple(
        Contrast(name, SIDES[signs[name] < 0], differences[name][0], p, q)
        for name, p, q in zip(tasks, p_values, benjamini_hochberg(p_values), strict=True)
    )
    lopsided = {
        side: combined({("retrieval", number): sign, (main, number): -sign})[0]
        for side, number, sign in ((SIDES[0], 0, 1.0), (SIDES[1], 1, -1.0))
    }
    counting = sum(test.adjusted <= ALPHA and lopsided[test.harder].low > 0 for test in tests[:2])
    harm = [_effects_of_pairs(task) for task in (retrieval, language[main])]
    gaps = (harm[0][:, 0] - harm[0][:, 1] + harm[1][:, 0] - harm[1][:, 1]) / 2
    raw, raw_column = combined({("retrieval", 0): 0.5, ("retrieval", 1): -0.5, (main, 0): -0.5, (main, 1): 0.5})
    at_random, index = None, None
    if random_pairs is not None:
        at_random, random_column = _at_random(*random_pairs, n_resamples=n_resamples, seed=seed + 1)
        value = float(less_random(raw.value, at_random.value))
        booted = interval(value, less_random(raw_column, random_column), n_pairs, raw.n)
        ends = [float(less_random(end, at_random.value)) for end in (raw.low, raw.high)]
        index = Interval(value, min(booted.low, ends[0]), max(booted.high, ends[1]), raw.n)
    return Dissociation(
        effects={
            name: {side: combined({(name, number): 1.0})[0] for number, side in enumerate(SIDES)} for name in tasks
        },
        index=index,
        raw=raw,
        at_random=at_random,
        contrasts=tests,
        verdict=("none", "single", "double")[counting],
        interactions={name: combined({(name, 2): 1.0, (name, 0): -1.0, (name, 1): -1.0})[0] for name in tasks},
        harm_gap=combined({("retrieval", 0): 0.5, (main, 0): 0.5, ("retrieval", 1): -0.5, (main, 1): -0.5})[0],
        harm_gap_size=float(np.abs(gaps).mean()),
        lopsided=lopsided,
    )


def _effects(
    means: Float[np.ndarray, "resample set condition"], chance: float | int
) -> Float[np.ndarray, "resample side"]:
    """Effects of the conditions after the first, mean over sets; the intact rate is that over all sets."""
    intact = means[:, :, :1].mean(axis=1, keepdims=True)
    return effect(np.broadcast_to(intact, means[:, :, 1:].shape), means[:, :, 1:], chance).mean(axis=1)


def _effects_of_pairs(task: Measured) -> Float[np.ndarray, "set side"]:
    means = task.right.mean(axis=2)
    return effect(np.full(means[:, 1:].shape, means[:, 0].mean()), means[:, 1:], task.chance)


def _at_random(
    retrieval: Dealt, language: Dealt, *, n_resamples: int, seed: int
) -> tuple[Interval, Float[np.ndarray, " resample"]]:
    """Mean index of random pairs; both tasks of one pair are drawn together."""
    tasks = (retrieval, language)
    drawn = nested([task.right for task in tasks], n_resamples=n_resamples, seed=seed)
    means = [np.stack([cells.mean(axis=1) for cells in task.right])[None] for task in tasks]
    value, column = (
        segregation(*_effects(r, retrieval.chance).T, *_effects(m, language.chance).T) for r, m in (means, drawn)
    )
    n_sets = len(retrieval.right)
    return interval(float(np.asarray(value)[0]), np.asarray(column), n_sets, n_sets), np.asarray(column)


def _wilson_effects(task: Measured, found: Float[np.ndarray, " side"]) -> Float[np.ndarray, "side 2"]:
    """Ends of each effect's interval: Wilson's of the ablated rate, mean over pairs, against the intact rate."""
    means, n = task.right.mean(axis=(0, 2)), task.right.shape[2]
    centre = (means[1:] + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * np.sqrt(means[1:] * (1 - means[1:]) / n + Z**2 / (4 * n**2))
    intact = np.full(len(means) - 1, means[0])
    low, high = effect(intact, centre + half, task.chance), effect(intact, centre - half, task.chance)
    return np.stack([np.minimum(low, found), np.maximum(high, found)], axis=1)


def _recovered(
    weights: Weights, found: Mapping[str, np.ndarray], ends: Mapping[str, np.ndarray]
) -> tuple[float, float]:
    """Interval of a linear combination from those of its terms, as if they were independent. (Zou & Donner 2008)"""
    value = down = up = 0.0
    for (name, side), weight in weights.items():
        terms = weight * np.array([ends[name][side][0], found[name][side], ends[name][side][1]])
        low, middle, high = np.sort(terms)
        value, down, up = value + middle, down + (middle - low) ** 2, up + (high - middle) ** 2
    return float(value - np.sqrt(down)), float(value + np.sqrt(up))
