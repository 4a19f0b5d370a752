"""Statistics against tables and against scipy."""

import numpy as np
import pytest
import scipy  # its parts are loaded when they are named
from scipy.spatial.distance import jensenshannon

from canvasbus_workers.monitoring import statistics as s
from canvasbus_workers.monitoring.embeddings import RandomFeatures


@pytest.mark.parametrize(
    ("p", "q", "psi", "kl", "hellinger", "variation"),
    [
        ([0.5, 0.5], [0.5, 0.5], 0.0, 0.0, 0.0, 0.0),
        ([0.5, 0.5], [0.25, 0.75], 0.27465307, 0.14384104, 0.18459191, 0.25),
        ([0.2, 0.3, 0.5], [0.1, 0.4, 0.5], 0.09808292, 0.05232481, 0.11031084, 0.1),
    ],
)
def test_distances_over_bins_by_table(p, q, psi, kl, hellinger, variation) -> None:  # type: ignore[no-untyped-def]
    """PSI, KL (nats), Hellinger and total variation of small tables, worked out by hand."""
    one, two = np.array(p), np.array(q)
    found = (s.psi(one, two), s.kl(one, two), s.hellinger(one, two), s.total_variation(one, two))
    assert found == pytest.approx((psi, kl, hellinger, variation), abs=1e-7)


def test_distances_over_bins_by_scipy(random: np.random.Generator) -> None:
    """KL is scipy's entropy, Jensen-Shannon its distance to base 2; both for many rows at once."""
    p, q = random.dirichlet(np.ones(9), 50), random.dirichlet(np.ones(9), 50)
    assert s.kl(p, q) == pytest.approx(scipy.stats.entropy(p, q, axis=1))
    assert s.jensen_shannon(p, q) == pytest.approx(jensenshannon(p, q, base=2, axis=1))
    assert s.psi(p, q) == pytest.approx(scipy.stats.entropy(p, q, axis=1) + scipy.stats.entropy(q, p, axis=1))


def test_shares_never_are_zero() -> None:
    """Empty bins get half a count, and each row adds up to one."""
    found = s.shares(np.array([[0, 4], [3, 0]]))
    assert found == pytest.approx(np.array([[0.1, 0.9], [0.875, 0.125]]))


def test_chi_square_by_scipy(random: np.random.Generator) -> None:
    """Statistic and p-value of scipy's contingency test; bins that both lack do not count."""
    for _ in range(20):
        window, reference = random.integers(0, 9, 6), random.integers(1, 90, 6)
        window[0] = reference[0] = 0
        window[1] = 1
        expected = scipy.stats.chi2_contingency(np.stack([window, reference])[:, 1:], correction=False)
        assert s.chi_square(window, reference) == pytest.approx((expected.statistic, expected.pvalue))
    assert s.chi_square(np.array([3, 0]), np.array([9, 0])) == (0.0, 1.0)


@pytest.mark.parametrize(("m", "n"), [(200, 50), (1000, 500), (50, 1), (7, 300)])
def test_ks_and_wasserstein_by_scipy(random: np.random.Generator, m: int, n: int) -> None:
    """The distances are scipy's to the last digits, ties included; the p-value is that of Kolmogorov's law."""
    for _ in range(10):
        first, second = random.standard_normal(m).round(2), random.standard_normal(n).round(2) + 0.1
        distance, p_value = s.ks(np.sort(first), second)
        assert distance == pytest.approx(scipy.stats.ks_2samp(first, second).statistic, abs=1e-12)
        assert p_value == pytest.approx(scipy.stats.kstwobign.sf(np.sqrt(m * n / (m + n)) * distance), abs=1e-9)
        assert s.wasserstein(first, second) == pytest.approx(scipy.stats.wasserstein_distance(first, second))


def test_binned_distances_approach_those_of_the_samples(random: np.random.Generator) -> None:
    """With many narrow bins KS and Wasserstein are nearly the samples' own; KS never above it."""
    first, second = random.standard_normal(4000), random.standard_normal(3000) * 1.3 + 0.4
    edges = np.linspace(-6, 8, 2001)
    counts = [np.histogram(sample, edges)[0] for sample in (first, second)]
    p, q = (c / c.sum() for c in counts)
    exact = scipy.stats.ks_2samp(first, second).statistic
    assert exact - 0.01 < s.ks_binned(p, q) <= exact + 1e-12
    gaps = np.full(len(p) - 1, edges[1] - edges[0])
    assert s.wasserstein_binned(p, q, gaps) == pytest.approx(scipy.stats.wasserstein_distance(first, second), abs=0.01)


def test_frechet_by_the_square_root_of_a_matrix(random: np.random.Generator) -> None:
    """The same as with scipy's sqrtm; 0 for equal distributions."""
    for d in (1, 3, 20):
        one, two = (
            random.standard_normal((200, d)) @ random.standard_normal((d, d)),
            random.standard_normal((90, d)) + 1,
        )
        covariances = [np.cov(sample, rowvar=False).reshape(d, d) for sample in (one, two)]
        root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
        moved = ((one.mean(axis=0) - two.mean(axis=0)) ** 2).sum()
        expected = moved + np.trace(covariances[0] + covariances[1] - 2 * np.real(root))
        assert s.frechet(one.mean(axis=0), covariances[0], two.mean(axis=0), covariances[1]) == pytest.approx(expected)
        assert s.frechet(one.mean(axis=0), covariances[0], one.mean(axis=0), covariances[0]) == pytest.approx(
            0, abs=1e-9
        )


def test_random_features_are_a_kernel(random: np.random.Generator) -> None:
    """Products of features are near the Gaussian kernel of the pairs; the MMD by means is near the exact one."""
    one, two = random.standard_normal((150, 8)), random.standard_normal((120, 8)) + 0.5
    features = RandomFeatures(one, frequencies=4096)

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.exp(-((a[:, None] - b[None]) ** 2).sum(axis=2) / (2 * features.bandwidth**2))

    assert np.abs(features(one) @ features(two).T - kernel(one, two)).max() < 0.1
    exact = kernel(one, one).mean() + kernel(two, two).mean() - 2 * kernel(one, two).mean()
    assert s.mmd_squared(features(one).mean(axis=0), features(two).mean(axis=0)) == pytest.approx(exact, rel=0.1)


def test_corrections_by_table(random: np.random.Generator) -> None:
    """Benjamini-Hochberg by scipy, in the order given; Bonferroni by hand."""
    for size in (1, 2, 17):
        p = random.random(size) ** 3
        assert s.benjamini_hochberg(list(p)) == pytest.approx(scipy.stats.false_discovery_control(p))
    assert s.benjamini_hochberg([]) == []
    assert s.bonferroni([0.2, 0.01, 0.5]) == pytest.approx(0.03)
    assert (s.bonferroni([0.6, 0.7]), s.bonferroni([])) == (1.0, 1.0)


def test_exact_binomials() -> None:
    """Too few right and too many broken, by scipy's exact test."""
    assert s.too_few(40, 50, 0.95) == pytest.approx(scipy.stats.binomtest(40, 50, 0.95, "less").pvalue)
    assert s.too_many(4, 50, 0.01) == pytest.approx(scipy.stats.binomtest(4, 50, 0.01, "greater").pvalue)
    assert (s.too_few(0, 0, 0.5), s.too_many(0, 50, 0.01)) == (1.0, 1.0)
