"""How good is the model, when no labels have come? What its own confidence says, calibrated on the reference.

NannyML's CBPE in additive form: the reference's confidences (largest probability of each row) are cut into bins, each
bin has the share of rows that were right there, made monotone (isotonic, by pooling adjacent violators), and a window's
estimate is the mean of these shares over its rows' bins.

It holds while confidence means what it meant. Under a real shift models are surer of themselves than they should be:
measured, true .44 was estimated as .74. So it ranks windows well and overstates the level: alert on its change.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

BINS = 20


@dataclass(frozen=True, eq=False)
class Calibration:
    """Of one reference."""

    edges: Array
    """Inner edges of the confidences."""
    accuracy: Array
    """(bins,) Expected share of right answers in each."""
    expected: float
    """The estimate for the reference itself."""
    calibrated: bool
    """The reference said which rows were right; else the mean confidence is scaled to the share that it reached."""

    @classmethod
    def fit(cls, arrays: Mapping[str, Array], accuracy: float | None = None) -> "Calibration | None":
        """From `probabilities` (n, classes) and, where it is known, `correct` (n,). None: there are no probabilities."""
        given = arrays.get("probabilities")
        if given is None or given.ndim != 2 or not len(given) or not given.shape[1]:
            return None
        confidence = np.asarray(given, float).max(axis=1)
        confidence = confidence[np.isfinite(confidence)] if not np.isfinite(confidence).all() else confidence
        if not len(confidence):
            return None
        ordered = np.sort(confidence)
        cut = min(BINS, len(ordered))
        edges = np.unique(ordered[np.arange(1, cut) * len(ordered) // cut])
        at = np.searchsorted(edges, confidence, side="right")
        counts = np.bincount(at, minlength=len(edges) + 1)
        right = arrays.get("correct")
        if right is not None and len(right) == len(confidence):
            sums = np.bincount(at, weights=np.asarray(right, float), minlength=len(counts))
            shares = isotonic((sums + 0.5) / (counts + 1), counts + 1e-9)
        else:
            shares = np.bincount(at, weights=confidence, minlength=len(counts)) / np.maximum(counts, 1)
            shares = np.where(counts > 0, shares, np.append(edges, 1.0))
            if accuracy is not None:
                shares = np.clip(shares * accuracy / max(float(counts @ shares) / counts.sum(), 1e-9), 0.0, 1.0)
        return cls(edges, shares, float(counts @ shares / counts.sum()), right is not None)

    @property
    def bins(self) -> int:
        """How many."""
        return len(self.accuracy)

    def count(self, probabilities: Array) -> Array:
        """(n, classes) → (bins,) int64: rows by confidence; what is no number is left out."""
        confidence = np.asarray(probabilities, float).max(axis=1)
        found = np.searchsorted(self.edges, confidence[np.isfinite(confidence)], side="right")
        return np.bincount(found, minlength=self.bins)

    def estimate(self, counts: Array) -> float | None:
        """Expected share of right answers among the counted rows; None: there are none."""
        total = int(counts.sum())
        return min(1.0, float(counts @ self.accuracy / total)) if total else None


def isotonic(values: Array, weights: Array) -> Array:
    """The nearest ascending sequence, by weighted squares: pool adjacent violators."""
    blocks: list[list[float]] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        blocks.append([value, weight, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            last, before = blocks.pop(), blocks[-1]
            total = before[1] + last[1]
            before[0] = (before[0] * before[1] + last[0] * last[1]) / total
            before[1], before[2] = total, before[2] + last[2]
    return np.concatenate([np.full(int(length), value) for value, _, length in blocks])
