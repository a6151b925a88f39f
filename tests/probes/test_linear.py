import numpy as np
import pytest

from segregation.errors import ScoreError
from segregation.probes.linear import grouped_folds, hashed, linear_probe
from segregation.scores.statistics import wilson

K, GROUPS = 4, 24


def planted(strength: float, width: int = 40, seed: int = 0):
    """Each group with each label once, its own offset, noise, and the label along a random direction."""
    rng = np.random.default_rng(seed)
    labels, groups = np.tile(np.arange(K), GROUPS), np.repeat(np.arange(GROUPS), K)
    signal = strength * rng.standard_normal((K, width))[labels]
    offset = 3 * rng.standard_normal((GROUPS, width))[groups]
    return signal + offset + rng.standard_normal((len(labels), width)), labels, groups


def test_a_planted_signal_is_found_and_shuffled_labels_are_not():
    probed = linear_probe(*planted(4.0))
    assert probed.correct == probed.n == K * GROUPS
    shuffled = wilson(probed.shuffled_correct, probed.shuffled_n)
    assert shuffled.low < 1 / K < shuffled.high
    assert probed.selectivity == 1 - shuffled.value


def test_noise_gives_chance():
    found = [linear_probe(*planted(0.0, seed=seed)) for seed in range(8)]
    rate = wilson(sum(probed.correct for probed in found), sum(probed.n for probed in found), confidence=0.999)
    assert rate.low < 1 / K < rate.high
    assert all(probed.chance == 1 / K for probed in found)


def test_the_probe_is_least_squares_with_a_penalty_on_held_out_groups():
    features, labels, groups = planted(1.0)
    right = 0
    for train, test in grouped_folds(groups, 4):
        mean, scale = features[train].mean(0), features[train].std(0)
        scaled = (features - mean) / scale / np.sqrt(features.shape[1])
        x, y = scaled[train], np.eye(K)[labels[train]]
        weights = np.linalg.solve(x.T @ x + 0.5 * np.eye(x.shape[1]), x.T @ (y - y.mean(0)))
        right += int(((scaled[test] @ weights + y.mean(0)).argmax(1) == labels[test]).sum())
    assert linear_probe(features, labels, groups, penalty=0.5).correct == right
    assert K * GROUPS // 2 < right < K * GROUPS  # neither all nor chance, so that a mistake would show


def test_no_group_is_trained_and_tested_on_and_each_row_is_tested_once():
    groups = np.random.default_rng(0).integers(11, size=200)
    tested = []
    for train, test in grouped_folds(groups, 4, seed=3):
        assert not set(groups[train]) & set(groups[test])
        assert sorted([*train, *test]) == list(range(200))
        tested += test.tolist()
    assert sorted(tested) == list(range(200))


def test_what_only_a_group_has_in_common_is_not_learned():
    """Each group has its own place and, mostly, one label: folds that cut through groups would tell nearly all."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 8)
    labels = (groups % 2) ^ (np.tile(np.arange(8), 40) == 0)  # one of eight has the other label
    features = rng.standard_normal((40, 300))[groups] + 0.1 * rng.standard_normal((len(groups), 300))
    apart = linear_probe(features, labels.astype(int), groups)
    through = linear_probe(features, labels.astype(int), np.arange(len(groups)) % 5)
    assert apart.correct / apart.n < 0.65
    assert through.correct / through.n > 0.8


def test_hashing_keeps_inner_products_on_average_and_narrow_features_as_they_are():
    rng = np.random.default_rng(0)
    wide = rng.standard_normal((2, 5000))
    sketched = [hashed(wide, 500, seed=seed) for seed in range(60)]
    assert sketched[0].shape == (2, 500)
    found = np.mean([one @ one.T for one in sketched], axis=0)
    assert np.abs(found / (wide @ wide.T) - 1)[np.eye(2, dtype=bool)].max() < 0.03
    order = [np.flatnonzero(np.abs(hashed(np.eye(6)[i : i + 1], 3))) for i in range(6)]
    assert sorted(int(at[0]) for at in order) == [0, 0, 1, 1, 2, 2]  # each number in one sum, sums of one size
    assert hashed(wide, 5000) is wide


def test_a_probe_that_cannot_be_fitted_is_refused():
    features, labels, groups = planted(1.0)
    with pytest.raises(ScoreError, match="finite"):
        linear_probe(np.full_like(features, np.nan), labels, groups)
    with pytest.raises(ScoreError, match="24 groups and"):
        linear_probe(features, labels, groups, folds=25)
    with pytest.raises(ScoreError, match="two labels or more"):
        linear_probe(features, groups, groups)
