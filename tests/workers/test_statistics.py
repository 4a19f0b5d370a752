"""The tests and corrections against scipy, naive sums, and their own promises."""

import math

import numpy as np
import pytest
from scipy import stats

from canvasbus_workers.drift.statistics import RandomFeatures, benjamini_hochberg, bonferroni, ks, mmd, too_few

SEED = 20261123


@pytest.mark.parametrize("sizes", [(400, 100), (30, 7), (5, 5), (2, 3)])
@pytest.mark.parametrize("levels", [0, 5])
def test_ks_is_scipys(sizes: tuple[int, int], levels: int) -> None:
    """The distance is scipy's and the p-value that of Kolmogorov's limit law, with continuous and with tied values."""
    random = np.random.default_rng([SEED, *sizes, levels])
    reference, window = (random.standard_normal(n) for n in sizes)
    if levels:
        reference, window = np.round(reference * levels), np.round(window * levels)

    distance, p_value = ks(np.sort(reference), window)

    expected = stats.ks_2samp(reference, window, method="asymp")
    assert distance == pytest.approx(expected.statistic)
    size = sizes[0] * sizes[1] / sum(sizes)
    assert p_value == pytest.approx(stats.kstwobign.sf(math.sqrt(size) * expected.statistic))
    if sizes[0] > 20:  # scipy's "asymp" takes the law of a finite sample, where the limit is on the safe side
        assert p_value >= expected.pvalue


def test_corrections_are_scipys() -> None:
    """Benjamini-Hochberg equals scipy's; Bonferroni multiplies the smallest and stops at 1."""
    random = np.random.default_rng(SEED)
    for size in (1, 2, 3, 20):
        p_values = list(random.random(size) ** 3)
        assert benjamini_hochberg(p_values) == pytest.approx(list(stats.false_discovery_control(p_values)))
        assert bonferroni(p_values) == pytest.approx(min(1.0, min(p_values) * size))
    assert bonferroni([]) == 1.0


@pytest.mark.parametrize(("correct", "items", "accuracy"), [(0, 0, 0.9), (40, 50, 0.95), (50, 50, 0.95), (3, 10, 0.5)])
def test_too_few_is_the_binomial_tail(correct: int, items: int, accuracy: float) -> None:
    """The p-value is the sum of the binomial probabilities up to `correct`."""
    tail = sum(math.comb(items, k) * accuracy**k * (1 - accuracy) ** (items - k) for k in range(correct + 1))
    assert too_few(correct, items, accuracy) == pytest.approx(tail)


def test_random_features_are_a_gaussian_kernel() -> None:
    """Products of features approach exp(-d²/2h²), where h is the median distance within the reference."""
    random = np.random.default_rng(SEED)
    reference = random.standard_normal((100, 6))
    rows = random.standard_normal((40, 6))
    mapped = RandomFeatures(reference, features=20_000)(rows)
    squares = ((rows[:, None] - rows[None]) ** 2).sum(axis=2)
    distances = ((reference[:, None] - reference[None]) ** 2).sum(axis=2)
    bandwidth = np.median(distances[np.triu_indices(100, 1)])
    assert np.abs(mapped @ mapped.T - np.exp(-squares / (2 * bandwidth))).max() < 0.05


def test_mmd_is_the_distance_of_means() -> None:
    """The statistic is the naive distance of the two mean features, the same seed gives the same p-value, and equal
    constant samples are no evidence."""
    random = np.random.default_rng(SEED)
    reference, window = random.standard_normal((200, 8)), random.standard_normal((50, 8))
    assert mmd(reference, window)[0] == pytest.approx(np.linalg.norm(reference.mean(axis=0) - window.mean(axis=0)))
    assert mmd(reference, window) == mmd(reference, window)
    assert mmd(np.ones((10, 3)), np.ones((4, 3))) == (0.0, 1.0)


def test_mmd_keeps_its_level_and_has_power() -> None:
    """Of 100 windows of the reference's own law at most 5 % are below .01; of shifted ones at least 95 %."""
    random = np.random.default_rng(SEED)
    reference = random.standard_normal((400, 8))
    features = RandomFeatures(reference)
    mapped = features(reference)
    clean = [mmd(mapped, features(random.standard_normal((100, 8))))[1] for _ in range(100)]
    shifted = [mmd(mapped, features(random.standard_normal((100, 8)) + 0.5))[1] for _ in range(20)]
    assert np.mean(np.array(clean) <= 0.01) <= 0.05, SEED
    assert np.mean(np.array(shifted) <= 0.01) >= 0.95, SEED
