"""From the counts of a window to a verdict: each feature tested once, the family adjusted, the best reference taken.

One primary test a feature (Kolmogorov-Smirnov for numeric columns, chi-square for categories, MMD of random features
for embeddings) makes the family, adjusted by Benjamini and Hochberg. The other statistics are reported, each with the
threshold that it has at this sample size, and decide nothing: ten ways to look at one column are not ten chances.

A window is compared with every active reference and judged by the one that it matches best.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from canvasbus_workers.monitoring import nulls, statistics
from canvasbus_workers.monitoring.columns import GRID, GROUPS, Column
from canvasbus_workers.monitoring.embeddings import FINE, Embedding
from canvasbus_workers.monitoring.embeddings import GRID as FEATURE_GRID
from canvasbus_workers.monitoring.expectations import Violation, violations
from canvasbus_workers.monitoring.partial import Partial, part_size
from canvasbus_workers.monitoring.policy import Policy
from canvasbus_workers.monitoring.reference import Reference

Array = npt.NDArray[Any]
Direction = Literal["up", "down", "mixed"]

MOSTLY = 0.7
"""Share of the movement that must go one way to have a direction."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One statistic of one feature."""

    value: float
    threshold: float
    """What a clean window of this size exceeds with the probability `level`."""


@dataclass(frozen=True, slots=True)
class FeatureReport:
    """One feature of a window against one reference."""

    feature: str
    kind: Literal["numeric", "categorical", "embedding"]
    test: str
    """The primary test: `ks`, `chi2` or `mmd`."""
    measures: Mapping[str, Measure]
    """All statistics by name, the primary one among them."""
    p_value: float
    p_adjusted: float
    """For all features of the window (Benjamini-Hochberg)."""
    effect: float
    """Numeric: standard deviations that the mass moved, on average. Categorical: share of rows that changed. Embedding:
    distance of the means in units of the spread. What is usual for clean windows of this size is taken off."""
    floor: float
    """The least effect that counts."""
    direction: Direction
    items: int
    """Values that were tested."""
    reference_items: int
    level: float

    @property
    def name(self) -> str:
        """`ks:sharpness`"""
        return f"{self.test}:{self.feature}"

    @property
    def score(self) -> float:
        """The primary statistic."""
        return self.measures[self.test].value

    @property
    def threshold(self) -> float:
        """Of the primary statistic, unadjusted."""
        return self.measures[self.test].threshold

    @property
    def flagged(self) -> bool:
        """Significant, and large enough to matter."""
        return self.p_adjusted <= self.level and self.effect >= self.floor


@dataclass(frozen=True)
class Comparison:
    """A window, or several as one, against one reference."""

    reference: Reference
    items: int
    reports: tuple[FeatureReport, ...]
    """Most significant first."""
    violations: tuple[Violation, ...] = ()
    estimate: float | None = None
    """Expected share of right answers, by the model's own confidence; None: unknown."""
    span: int = 1
    """Windows that were looked at together."""

    @property
    def worst(self) -> FeatureReport | None:
        """The flagged feature with the smallest p-value, else the one with the smallest; None: nothing was tested."""
        flagged = self.flagged
        return flagged[0] if flagged else self.reports[0] if self.reports else None

    @property
    def flagged(self) -> tuple[FeatureReport, ...]:
        """Features that have drifted."""
        return tuple(report for report in self.reports if report.flagged)

    @property
    def p_value(self) -> float:
        """The smallest adjusted one; 1.0 when nothing was tested."""
        return min((report.p_adjusted for report in self.reports), default=1.0)

    @property
    def effect(self) -> float:
        """Of the worst feature."""
        return self.worst.effect if self.worst else 0.0

    def calm(self, level: float) -> bool:
        """No feature that would count if it were significant is so even at this looser level."""
        return not any(report.p_adjusted <= level and report.effect >= report.floor / 2 for report in self.reports)


def compare(reference: Reference, partial: Partial, policy: Policy, level: float | None = None) -> Comparison:
    """Test a window's counts against the reference that they were made with."""
    level = policy.level if level is None else level
    broken = violations(reference, partial, policy.quality_level)
    excluded = {violation.feature for violation in broken}
    reports = _columns(reference, partial, policy, level, excluded)
    reports += _embeddings(reference, partial, policy, level, excluded)
    adjusted = statistics.benjamini_hochberg([report.p_value for report in reports])
    reports = [replace(report, p_adjusted=p) for report, p in zip(reports, adjusted, strict=True)]
    reports.sort(key=lambda report: (report.p_value, -report.effect, report.feature))
    estimate = reference.calibration.estimate(partial.confidence) if reference.calibration else None
    return Comparison(reference, partial.items, tuple(reports), tuple(broken), estimate)


def best(comparisons: Iterable[Comparison]) -> Comparison | None:
    """The reference that a window matches best: the fewest features have drifted, then the largest p-value, then the
    smallest effect; None: there is no reference."""
    return max(comparisons, key=lambda c: (-len(c.flagged), c.p_value, -c.effect, c.reference.digest), default=None)


def _columns(
    reference: Reference, partial: Partial, policy: Policy, level: float, excluded: set[str]
) -> list[FeatureReport]:
    alike: dict[tuple[bool, int], list[int]] = {}
    for at, column in enumerate(reference.columns):
        if column.name not in excluded and column.bins > 1:
            alike.setdefault((column.categorical, column.bins), []).append(at)
    found: list[FeatureReport] = []
    for (categorical, bins), places in alike.items():
        spans = reference.starts[places][:, None] + np.arange(bins)
        counts = partial.counts[spans]
        own = np.stack([reference.columns[at].counts for at in places])
        if categorical:
            values = nulls.over_bins(counts, own)
        else:
            values = nulls.over_bins(nulls.coarse(counts, GROUPS), nulls.coarse(own, GROUPS))
            p, q = statistics.shares(counts, 1e-9), statistics.shares(own, 1e-9)
            values["ks"] = statistics.ks_binned(p, q)
            gaps = np.stack([reference.columns[at].gaps for at in places])
            values["wasserstein"] = statistics.wasserstein_binned(p, q, gaps)
        items = counts.sum(axis=1)
        for row, at in enumerate(places):
            if items[row] >= 2:
                mine = {name: float(array[row]) for name, array in values.items()}
                moved = float(partial.sums[at]) / GRID / float(items[row])
                found.append(_column(reference.columns[at], counts[row], int(items[row]), mine, moved, policy, level))
    return found


def _column(
    column: Column, counts: Array, n: int, values: dict[str, float], moved: float, policy: Policy, level: float
) -> FeatureReport:
    usual = dict(nulls.column_nulls(column.counts, n, ordered=not column.categorical, groups=GROUPS))
    if column.categorical:
        primary, floor = "chi2", policy.categorical_floor
        values["chi2"] = float(nulls.pooled_chi_square(counts, column.counts, nulls.near(n)))
        effect = values["total_variation"] - usual["total_variation"].mean
        direction: Direction = "mixed"
    else:
        primary, floor = "ks", policy.floor
        usual["wasserstein"] = nulls.wasserstein_null(column.counts, n, column.gaps, GROUPS)
        # The bins know nothing of how far out the values in the outermost ones lie; the mean does.
        whole = max(values["wasserstein"], abs(moved))
        effect = whole - usual["wasserstein"].mean
        direction = "mixed" if abs(moved) < MOSTLY * whole else "up" if moved > 0 else "down"
    return FeatureReport(
        feature=column.name,
        kind="categorical" if column.categorical else "numeric",
        test=primary,
        measures={name: Measure(value, usual[name].threshold(level)) for name, value in values.items()},
        p_value=usual[primary].p_value(values[primary]),
        p_adjusted=1.0,
        effect=max(0.0, effect),
        floor=floor,
        direction=direction,
        items=n,
        reference_items=column.items,
        level=level,
    )


def _embeddings(
    reference: Reference, partial: Partial, policy: Policy, level: float, excluded: set[str]
) -> list[FeatureReport]:
    found, at = [], 0
    for embedding in reference.embeddings:
        numbers = partial.parts[at : at + part_size(embedding)]
        at += len(numbers)
        if embedding.name not in excluded and numbers[0] >= 2:
            found.append(_embedding(embedding, numbers, policy, level))
    return found


def _embedding(embedding: Embedding, numbers: Array, policy: Policy, level: float) -> FeatureReport:
    n, f, k = int(numbers[0]), len(embedding.mean), embedding.components
    scale = 1 / n + 1 / embedding.items
    mean = numbers[1 : 1 + f] / (FEATURE_GRID * n)
    distance = statistics.mmd_squared(mean, embedding.mean)
    measures = {"mmd": Measure(distance, embedding.null.threshold(level, scale))}
    if embedding.parts is not None and n > 2:
        sums = numbers[1 + f : 1 + f + k] / FINE
        products = numbers[1 + f + k :].reshape(k, k) / FINE**2
        centre = sums / n
        covariance = (products - n * np.outer(centre, centre)) / (n - 1)
        value = statistics.frechet(centre, covariance, embedding.parts.mean, embedding.parts.covariance)
        measures["frechet"] = Measure(value, embedding.parts.null(n).threshold(level))
    return FeatureReport(
        feature=embedding.name,
        kind="embedding",
        test="mmd",
        measures=measures,
        p_value=embedding.null.p_value(distance, scale),
        p_adjusted=1.0,
        effect=float(np.sqrt(max(0.0, distance - embedding.null.mean * scale) / embedding.spread)),
        floor=policy.embedding_floor,
        direction="mixed",
        items=n,
        reference_items=embedding.items,
        level=level,
    )


@dataclass(frozen=True)
class Verdict:
    """What became of one window."""

    number: int
    items: int
    status: Literal["ok", "flagged", "warmup"]
    """warmup: there was no reference to compare it with."""
    match: Comparison | None
    """The best matching reference; of the long span where that one shows the drift."""
    short: Comparison | None
    """The window alone."""
    violations: Sequence[Violation] = field(default=())

    @property
    def flagged(self) -> bool:
        """It matches no reference."""
        return self.status == "flagged"

    @property
    def reports(self) -> tuple[FeatureReport, ...]:
        """One for each feature that was tested, most significant first."""
        return self.match.reports if self.match else ()
