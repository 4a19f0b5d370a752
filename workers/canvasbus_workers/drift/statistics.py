"""Two-sample tests and their corrections: numbers in, numbers out.

Which p-values are exact and which are not: the KS p-value is that of Kolmogorov's limit law, which is conservative for
small samples and for the discrete and tied values that appear here. The MMD p-value comes from relabelling the pooled sample, so it holds for any
pair of sizes. (A null made by resampling the reference that also defines the mean flags 56 % of clean windows at a
nominal 1 %; relabelling treats both sides alike and needs no second half of the reference.) Relabelling a few hundred
times cannot give a p-value below one in a few hundred, so the tail is read from a gamma distribution with the moments
of the relabelled statistics: Gretton, Fukumizu, Harchaoui, Sriperumbudur, "A fast, consistent kernel two-sample test",
NIPS 2009, which fits the same family to estimated moments.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import special, stats

Matrix = npt.NDArray[np.floating]

FEATURES = 128
"""Random Fourier features: the kernel estimate is off by about 1/sqrt(128) per pair, far less in the mean over pairs."""

RELABELLINGS = 200
"""Enough for the two moments of the null; the tail is not counted."""


def ks(sorted_reference: Matrix, window: Matrix) -> tuple[float, float]:
    """Kolmogorov-Smirnov: (largest distance of the two distribution functions, p-value).

    `sorted_reference` (m,) is sorted once and kept; `window` (n,) comes as it is. Cost: O(n log m) per call.
    """
    ordered = np.sort(window)
    both = np.concatenate([sorted_reference, ordered])
    below = np.searchsorted(sorted_reference, both, side="right") / len(sorted_reference)
    distance = float(np.abs(below - np.searchsorted(ordered, both, side="right") / len(ordered)).max())
    size = len(sorted_reference) * len(ordered) / (len(sorted_reference) + len(ordered))
    return distance, float(special.kolmogorov(np.sqrt(size) * distance))


class RandomFeatures:
    """A Gaussian kernel as a finite map: k(x, y) ≈ f(x)·f(y). Rahimi and Recht, "Random features for large-scale kernel
    machines", NIPS 2007. The bandwidth is the median distance within the reference."""

    def __init__(self, reference: Matrix, seed: int = 0, features: int = FEATURES) -> None:
        random = np.random.default_rng(seed)
        some = reference[:: max(1, len(reference) // 100)]
        squares = ((some[:, None, :] - some[None, :, :]) ** 2).sum(axis=2)
        bandwidth = float(np.sqrt(np.median(squares[np.triu_indices(len(some), 1)]))) if len(some) > 1 else 1.0
        self._directions = random.standard_normal((reference.shape[1], features)) / (bandwidth or 1.0)
        self._phases = random.uniform(0, 2 * np.pi, features)
        self._scale = np.sqrt(2.0 / features)

    def __call__(self, rows: Matrix) -> Matrix:
        """(n, d) → (n, features)"""
        mapped: Matrix = self._scale * np.cos(rows @ self._directions + self._phases)
        return mapped


def mmd(reference: Matrix, window: Matrix, seed: int = 0, relabellings: int = RELABELLINGS) -> tuple[float, float]:
    """Maximum mean discrepancy of two samples of random features, (m, f) and (n, f): (statistic, p-value).

    The statistic is the distance of the two means: 0 when equal, at most the square root of 2.
    """
    m, n = len(reference), len(window)
    pooled = np.concatenate([reference, window])
    total = pooled.sum(axis=0)

    def squared(first: Matrix) -> Matrix:
        # The sum over one side gives the other: half the work.
        distance: Matrix = (((first / n) - (total - first) / m) ** 2).sum(axis=-1)
        return distance

    observed = float(squared(window.sum(axis=0)))
    random = np.random.default_rng(seed)
    chosen = random.random((relabellings, m + n)).argpartition(n, axis=1)[:, :n]
    picks = np.zeros((relabellings, m + n))
    np.put_along_axis(picks, chosen, 1.0, axis=1)
    null = squared(picks @ pooled)
    mean, variance = float(null.mean()), float(null.var())
    if variance <= 0.0:
        return float(np.sqrt(observed)), 1.0
    p = float(stats.gamma.sf(observed, mean**2 / variance, scale=variance / mean))
    return float(np.sqrt(observed)), p


def bonferroni(p_values: Sequence[float]) -> float:
    """The smallest p-value, adjusted for having looked at all of them: a family that is significant as a whole."""
    return min(1.0, min(p_values) * len(p_values)) if p_values else 1.0


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the given order; rejecting those ≤ q keeps the false discovery rate at q.

    Benjamini and Hochberg, "Controlling the false discovery rate", JRSS B 57 (1995).
    """
    order = np.argsort(p_values)
    scaled = np.asarray(p_values, float)[order] * len(p_values) / np.arange(1, len(p_values) + 1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1.0, np.minimum.accumulate(scaled[::-1])[::-1])
    return [float(p) for p in adjusted]


def too_few(correct: int, items: int, accuracy: float) -> float:
    """p-value of at most `correct` right among `items` when each is right with probability `accuracy`: exact binomial.

    The accuracy of a reference is an estimate itself; Fisher's test of window against reference would allow for that,
    and was tried: with 300 reference rows it misses a loss of 8 points in 4 of 10 rehearsals that this one sees in all.
    """
    return float(stats.binom.cdf(correct, items, accuracy)) if items else 1.0
