"""What a statistic is like when nothing has changed: thresholds and p-values for the very sample sizes at hand.

Theory of operation. A constant threshold means another thing at each size (PSI > 0.1 flags 78 % of clean windows of 50
rows and none of 500), so the null distribution is drawn for the window's size and the reference's.

*Columns.* The reference's counts in its own bins are what we know; the true probabilities behind them are a draw from
Dirichlet(counts + ½), and a clean window is a multinomial draw from those. That holds both for bins cut at the
reference's own quantiles, whose counts have no noise at all while the edges have, and for categories. The draws depend
on the counts only: all columns with equally filled bins share one set of draws.

*Random features.* For one sample of n and one of m rows, |mean - mean|² is (1/n + 1/m)·Σ λᵢχ²₁ with the eigenvalues λ
of the features' covariance (Gretton, Fukumizu, Harchaoui, Sriperumbudur, "A fast, consistent kernel two-sample test",
NIPS 2009). Nothing is resampled from the reference that also defines the mean, which flags 56 % of clean windows at a
nominal 1 %.

*Fréchet.* Components come from one half of the reference; mean, covariance and the null come from the other, which is
divided again and again into a window and what stays.

A few thousand draws end near p = 1/1000, and a family of twenty tests asks for less. Beyond the 95 % point the tail is
taken to be exponential (of the statistic if it is a sum of squares, of its square if it is a distance) with the mean
excess that the draws show. The true tails, those of χ² mixtures and of Kolmogorov's law, fall at least as fast: the
p-values are a little too large there, never too small.
"""

import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from canvasbus_workers.monitoring import statistics

DRAWS = 4000
FRECHET_DRAWS = 200
TAIL = 0.05
RARE = 5.0
KEPT = 512
"""Nulls that a process keeps: a few kilobytes each."""

Array = npt.NDArray[Any]

QUADRATIC = frozenset({"psi", "kl", "chi2", "mmd", "frechet"})
"""Sums of squares; the others are distances."""


class Null:
    """Sorted draws of one statistic."""

    __slots__ = ("_draws", "_excess", "_knee", "_quadratic", "mean")

    def __init__(self, draws: Array, *, quadratic: bool) -> None:
        self._draws = np.sort(draws)
        self._quadratic = quadratic
        scaled = self._draws if quadratic else self._draws**2
        at = int(len(scaled) * (1 - TAIL))
        self._knee = float(scaled[at])
        self._excess = max(float((scaled[at:] - self._knee).mean()), 1e-300)
        self.mean = float(self._draws.mean())

    def p_value(self, value: float, scale: float = 1.0) -> float:
        """Probability of `value` or more when nothing has changed. `scale`: what the draws are to be multiplied by."""
        value = value / scale
        scaled = value if self._quadratic else value**2
        if scaled > self._knee:
            return float(TAIL * np.exp(-(scaled - self._knee) / self._excess))
        above = len(self._draws) - int(np.searchsorted(self._draws, value, side="left"))
        return min(1.0, max(above, 1) / len(self._draws))

    def threshold(self, level: float, scale: float = 1.0) -> float:
        """The value whose p-value is `level`."""
        if level < TAIL:
            scaled = self._knee + self._excess * float(np.log(TAIL / level))
            return scale * (scaled if self._quadratic else float(np.sqrt(scaled)))
        return scale * float(self._draws[min(len(self._draws) - 1, int(len(self._draws) * (1 - level)))])

    def __repr__(self) -> str:
        return f"<Null of {len(self._draws)} draws, mean {self.mean:.3g}>"


def near(n: int) -> int:
    """The size that stands for `n`: itself up to 64, then at most 3 % less, so that few sets of draws serve all windows."""
    step = 1 << max(0, n.bit_length() - 6)
    return n // step * step


class Cache:
    """Nulls that were drawn already, the least used ones forgotten. Not thread-safe."""

    def __init__(self, size: int = KEPT) -> None:
        self._size = size
        self._kept: OrderedDict[object, Any] = OrderedDict()

    def get(self, key: object, make: Callable[[], Any]) -> Any:
        """What lies under the key, made where there is nothing."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        made = self._kept[key] = make()
        if len(self._kept) > self._size:
            self._kept.popitem(last=False)
        return made


cache = Cache()
"""Of this process. What is in it follows from its keys alone."""


def coarse(counts: Array, groups: int) -> Array:
    """Counts (…, bins) of ordered bins merged into about `groups` neighbours each: (…, at most groups + 1)."""
    bins = counts.shape[-1]
    if bins <= groups:
        return counts
    starts = np.arange(groups) * bins // groups
    merged: Array = np.add.reduceat(counts, starts, axis=-1)
    return merged


def window_draws(reference: Array, n: int) -> Array:
    """(DRAWS, bins): counts of clean windows of n rows, given a reference's counts (bins,)."""
    random = np.random.default_rng([zlib.crc32(np.ascontiguousarray(reference, "<i8").tobytes()), n])
    probable = random.standard_gamma(reference + statistics.PRIOR, size=(DRAWS, len(reference)))
    probable /= probable.sum(axis=1, keepdims=True)
    drawn: Array = random.multinomial(n, probable)
    return drawn


def column_nulls(reference: Array, n: int, *, ordered: bool, groups: int) -> Mapping[str, Null]:
    """Statistic → its null, for windows of n rows against a reference's counts (bins,)."""
    key = (reference.tobytes(), near(n), ordered, groups)
    found: Mapping[str, Null] = cache.get(key, lambda: _column_nulls(reference, near(n), ordered, groups)[0])
    return found


def wasserstein_null(reference: Array, n: int, gaps: Array, groups: int) -> Null:
    """The null of the binned Wasserstein distance: its gaps are each column's own, the draws are shared."""
    key = (reference.tobytes(), near(n), gaps.tobytes())

    def make() -> Null:
        differences = cache.get(
            (reference.tobytes(), near(n), "steps"), lambda: _column_nulls(reference, near(n), True, groups)[1]
        )
        return Null(differences @ gaps, quadratic=False)

    found: Null = cache.get(key, make)
    return found


def _column_nulls(reference: Array, n: int, ordered: bool, groups: int) -> tuple[dict[str, Null], Array]:
    drawn = window_draws(reference, n)
    p, q = statistics.shares(drawn, 0.0), statistics.shares(reference, 0.0)
    steps = np.abs(np.cumsum(p - q, axis=-1))[:, :-1].astype(np.float32)
    values = over_bins(coarse(drawn, groups) if ordered else drawn, coarse(reference, groups) if ordered else reference)
    if not ordered:
        values["chi2"] = pooled_chi_square(drawn, reference, n)
    else:
        values["ks"] = steps.max(axis=1) if steps.shape[1] else np.zeros(len(steps))
    return {name: Null(draws, quadratic=name in QUADRATIC) for name, draws in values.items()}, steps


def over_bins(window: Array, reference: Array) -> dict[str, Array]:
    """The statistics over unordered bins: counts (…, bins) of windows against those of a reference (bins,) or (…, bins)."""
    p, q = statistics.shares(window), statistics.shares(reference)
    n = window.sum(axis=-1)
    return {
        "psi": statistics.psi(p, q),
        "kl": statistics.kl(p, q),
        "jensen_shannon": statistics.jensen_shannon(p, q),
        "hellinger": statistics.hellinger(p, q),
        "total_variation": statistics.total_variation(p, q),
        "chi2": n * ((p - q) ** 2 / q).sum(axis=-1),
    }


def pooled_chi_square(window: Array, reference: Array, n: int) -> Array:
    """Chi-square of counts of categories (…, bins) against a reference's (bins,), with the rare ones, of which fewer than
    five are expected among n rows, counted together (Cochran's rule). Alone they would make the tail: one row of a
    category with an expectation of 0.01 is worth 100."""
    expected = statistics.shares(reference)
    order = np.argsort(expected, kind="stable")
    rare = max(1, int((expected * n < RARE).sum()))
    while rare < len(order) and expected[order[:rare]].sum() * n < RARE:
        rare += 1
    groups = np.zeros(len(order), int)
    groups[order[rare:]] = np.arange(1, len(order) - rare + 1)
    merge = np.equal.outer(groups, np.arange(groups.max() + 1)).astype(float)
    usual = expected @ merge * n
    found: Array = ((window @ merge * (n / np.maximum(window.sum(axis=-1), 1))[..., None] - usual) ** 2 / usual).sum(
        axis=-1
    )
    return found


def mmd_null(covariance: Array) -> Null:
    """The null of |mean - mean|² of random features, for the scale 1/n + 1/m, from the features' covariance (f, f)."""
    values = np.linalg.eigvalsh(covariance)
    values = values[values > values[-1] * 1e-6]
    random = np.random.default_rng(len(values))
    return Null((random.standard_normal((DRAWS, len(values))) ** 2) @ values, quadratic=True)


def frechet_null(rows: Array, n: int) -> Null:
    """The null of the Fréchet distance of a window of n rows to the mean and covariance of `rows` (m, d), which must be others
    than those that the components are from: those would look closer to themselves than any window does.

    Each draw divides the rows anew into a window and what stays. Drawn without putting back, the two differ as independent
    samples of these sizes do, which windows of a fixed set and one fixed mean do not: their draws vary too little, and at
    n = m/2.5 they flagged 4 % of clean windows at a nominal 1 %; with putting back, the sampling error of the rows would
    count twice, and no window would ever be far enough away. At most half of the rows are a window. What stays is fewer
    than m, and a window may be larger than what was drawn: the distance is made of squares, so that it is brought to the
    sizes at hand by 1/n + 1/m. A window of fewer than two rows for each dimension has an error of its own that does not
    scale like that: its draws are left as they are, which is a little conservative."""
    m, d = rows.shape
    random = np.random.default_rng([m, n])
    size = max(2, min(n, m // 2))
    draws = np.empty(FRECHET_DRAWS)
    for at in range(FRECHET_DRAWS):
        order = random.permutation(m)
        some, others = rows[order[:size]], rows[order[size:]]
        draws[at] = statistics.frechet(*moments(others), *moments(some))
    if n >= 2 * d or n > size:
        draws *= (1 / n + 1 / m) / (1 / size + 1 / (m - size))
    return Null(draws, quadratic=True)


def moments(rows: Array) -> tuple[Array, Array]:
    """Rows (n, d) → mean (d,) and covariance (d, d)."""
    return rows.mean(axis=0), np.cov(rows, rowvar=False).reshape(rows.shape[1], rows.shape[1])
