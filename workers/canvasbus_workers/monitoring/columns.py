"""One column of a reference, cut into bins once, and what a window's values are in terms of them.

A numeric column has 40 bins with equally many of the reference's values; where values tie there are fewer. Ten groups of
them serve PSI and its kin, all of them serve Kolmogorov-Smirnov and Wasserstein. A column of few whole numbers, or of
texts, is categorical: a bin for each value and one for those that the reference has never seen.

What is counted adds up: counts, and sums of values as whole multiples of sd/65536. Sums of floats depend on their order
in the last bits; these do not, so that shards merge to the very same state in any order.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

BINS = 40
"""Of a numeric column."""
GROUPS = 10
"""Into which they are merged for PSI and its kin."""
CATEGORIES = 32
"""A column of so many different whole numbers or fewer is taken to be categorical."""
GRID = 65536
FARTHEST = 1e6
"""Standard deviations from the reference's mean at which a value counts in sums; beyond, it is cut."""
FENCE = 1.0
"""Widths of the reference's range that a value may lie beyond it before it is out of range."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Column:
    """A column of a reference."""

    name: str
    categorical: bool
    edges: Array
    """Numeric: the inner edges, ascending; a value on an edge belongs to the bin above. Categorical: the values, sorted."""
    counts: Array = field(repr=False)
    """(bins,) int64: the reference's own."""
    items: int
    """Values that are there."""
    missing: int
    mean: float
    sd: float
    """Never 0."""
    low: float
    high: float
    mode_share: float
    """Share of the most frequent value."""
    gaps: Array = field(repr=False)
    """(bins - 1,): distances of the bins' means, in standard deviations."""
    bounds: tuple[float, float] | None = None
    """Between which values lie by their nature; None: what is out of range is told by the reference's own."""

    @property
    def bins(self) -> int:
        """How many."""
        return len(self.counts)

    @property
    def least(self) -> float:
        """Below this a value is out of range; categories have no range."""
        if self.bounds is not None:
            return self.bounds[0]
        return -np.inf if self.categorical else self.low - (self.high - self.low) * FENCE

    @property
    def most(self) -> float:
        """Above this it is."""
        if self.bounds is not None:
            return self.bounds[1]
        return np.inf if self.categorical else self.high + (self.high - self.low) * FENCE

    def bin(self, values: Array) -> Array:
        """The bin of each value, none of them missing."""
        if not self.categorical:
            return np.searchsorted(self.edges, values, side="right")
        at = np.minimum(np.searchsorted(self.edges, values), len(self.edges) - 1)
        return np.where(self.edges[at] == values, at, len(self.edges))

    def count(self, values: Array) -> Array:
        """Values, none of them missing → (bins,) int64."""
        return np.bincount(self.bin(values), minlength=self.bins)

    def label(self, at: int) -> str:
        """The name of a category's bin."""
        if at >= len(self.edges):
            return "unseen"
        value = self.edges[at]
        return f"{value:g}" if isinstance(value, np.floating) else str(value)


def missing(values: Array) -> Array:
    """True where there is no value: NaN, or an empty text."""
    if values.dtype.kind == "f":
        return np.isnan(values)
    return values == "" if values.dtype.kind == "U" else np.zeros(len(values), bool)


def plain(values: Array) -> Array:
    """Numbers as float64, anything else as text; None becomes "no value"."""
    if values.dtype.kind in "fiub":
        return values.astype(np.float64)
    return np.array(["" if value is None else str(value) for value in values.tolist()], dtype=np.str_)


def fit(
    name: str, values: Array, categorical: bool | None = None, bounds: tuple[float, float] | None = None
) -> Column | None:
    """Prepare a column of a reference (n,). `categorical` None: as it looks. None: it has no values."""
    values = plain(values)
    absent = missing(values)
    there = values[~absent]
    if there.dtype.kind == "f":
        there = there[np.isfinite(there)]
    if not len(there):
        return None
    found, times = np.unique(there, return_counts=True)
    text = there.dtype.kind == "U"
    if categorical is None:
        categorical = text or (len(found) <= CATEGORIES and bool((found == np.rint(found)).all()))
    numbers = np.zeros(len(there)) if text else there
    mean, sd = float(numbers.mean()), float(numbers.std())
    sd = sd if sd > 0 else 1.0
    if categorical or text:
        edges, counts, gaps = found, np.append(times, 0), np.zeros(len(found))
    else:
        edges = _edges(there)
        at = np.searchsorted(edges, there, side="right")
        counts = np.bincount(at, minlength=len(edges) + 1)
        full = counts > 0
        means = np.full(len(counts), np.nan)
        means[full] = np.bincount(at, weights=there, minlength=len(counts))[full] / counts[full]
        means = np.interp(np.arange(len(counts)), np.flatnonzero(full), means[full])
        gaps = np.diff(means) / sd
    return Column(
        name=name,
        categorical=bool(categorical or text),
        edges=edges,
        counts=counts.astype(np.int64),
        items=len(there),
        missing=int(absent.sum()),
        mean=mean,
        sd=sd,
        low=float(numbers.min()),
        high=float(numbers.max()),
        mode_share=float(times.max() / len(there)),
        gaps=gaps,
        bounds=bounds,
    )


def _edges(values: Array) -> Array:
    ordered = np.sort(values)
    cut = min(BINS, len(ordered))
    return np.unique(ordered[np.arange(1, cut) * len(ordered) // cut])
