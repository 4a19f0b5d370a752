"""References: what a model version says about data known to be good, prepared once so that each window is cheap.

A window is compared with all active references of its version and judged by the one that it matches best. Data have
regimes (the night shift, the new tablet, the season), and a monitor with one reference calls the return to normal a
drift: measured, 4 of 4 windows after the data had come back, at an accuracy of .97 to .99.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from canvasbus_workers.drift.statistics import RandomFeatures, benjamini_hochberg, bonferroni, ks, mmd

Arrays = Mapping[str, npt.NDArray[np.float32]]

PROBABILITIES, EMBEDDING, SHARPNESS = "probabilities", "embedding", "sharpness"


@dataclass(frozen=True)
class Match:
    """How one window compares with one reference."""

    reference_id: str
    regime: str
    p_value: float
    """Smallest of the family's p-values, Benjamini-Hochberg adjusted."""
    test: str
    """The test that has it."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Test → statistic."""

    @property
    def score(self) -> float:
        """The largest statistic."""
        return max(self.scores.values(), default=0.0)


class Reference:
    """One reference, with everything sorted and mapped that does not depend on the window."""

    def __init__(self, reference_id: str, regime: str, arrays: Arrays, *, items: int = 0, correct: int = 0) -> None:
        self.reference_id = reference_id
        self.regime = regime
        self.items = items
        self.correct = correct
        self._columns = {
            SHARPNESS: [np.sort(arrays[SHARPNESS])] if SHARPNESS in arrays else [],
            PROBABILITIES: [np.sort(c) for c in arrays[PROBABILITIES].T] if PROBABILITIES in arrays else [],
        }
        self._features = RandomFeatures(arrays[EMBEDDING]) if EMBEDDING in arrays else None
        self._mapped = self._features(arrays[EMBEDDING]) if self._features else None

    @property
    def accuracy(self) -> float:
        """Share of correct rows, a little (one success and one failure) towards a half: a small sample promises less."""
        return (self.correct + 1) / (self.items + 2)

    def compare(self, window: Arrays) -> Match:
        """Test the window against this reference. Tests whose arrays either side lacks are left out."""
        results: list[tuple[str, float, float]] = []
        for name, columns in self._columns.items():
            if columns and name in window:
                of_window = window[name].reshape(len(window[name]), -1).T
                found = [ks(mine, theirs) for mine, theirs in zip(columns, of_window, strict=True)]
                results.append((f"ks:{name}", max(d for d, _ in found), bonferroni([p for _, p in found])))
        if self._features and self._mapped is not None and EMBEDDING in window:
            results.append((f"mmd:{EMBEDDING}", *mmd(self._mapped, self._features(window[EMBEDDING]))))
        if not results:
            return Match(self.reference_id, self.regime, 1.0, "")
        adjusted = benjamini_hochberg([p for _, _, p in results])
        best = int(np.argmin([p for _, _, p in results]))
        scores = {test: score for test, score, _ in results}
        return Match(self.reference_id, self.regime, adjusted[best], results[best][0], scores)

    def __repr__(self) -> str:
        return f"<Reference {self.reference_id} {self.regime} {self.correct}/{self.items}>"


def best_match(references: Iterable[Reference], window: Arrays) -> Match | None:
    """The match with the largest p-value, by score where several are 0; None without references."""
    matches = [reference.compare(window) for reference in references]
    return max(matches, key=lambda m: (m.p_value, -m.score), default=None)


def joined(windows: Sequence[Arrays]) -> dict[str, npt.NDArray[np.float32]]:
    """Several windows as one long one; arrays that not all of them have are left out."""
    names = set.intersection(*(set(w) for w in windows)) if windows else set()
    return {name: np.concatenate([w[name] for w in windows]) for name in sorted(names)}
