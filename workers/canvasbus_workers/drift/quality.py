"""Late labels: was the model right, and is it as right as it was promised to be?

Labels come long after the answers, when the data may have changed again, so each labelled window is judged against the
reference that *it* matched, and only while the newest windows still match the same: measured, without this rule 7 of 10
runs called a healthy model broken because the labels of the broken period came in late. Windows that another version
answered say nothing about the present one.

The last 1, 2, 4, 8 and 16 windows of one regime are looked at together (a short look sees a collapse at once, a long one
a loss of a few points). Each look has a fifth of the level. A window of another regime in between interrupts nothing:
one false flag would otherwise wipe out the history that shows a small loss.
"""

from collections import deque
from dataclasses import dataclass

from canvasbus_workers.drift.statistics import too_few

LOOKS = (1, 2, 4, 8, 16)
"""Windows."""
LEVEL = 0.001
"""False alarms per labelled window, at most."""
CALM_LEVEL = 0.05
"""A window below this is not counted as a recovered one."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """How one window turned out."""

    number: int
    window_id: str
    version: str
    regime: str
    """What the window matched; windows that match nothing share one regime."""
    items: int
    correct: int
    bar: float
    """The accuracy that it should reach."""

    @property
    def accuracy(self) -> float:
        """Share of correct answers."""
        return self.correct / self.items


@dataclass(frozen=True, slots=True)
class Verdict:
    """The most significant look at the newest windows."""

    p_value: float
    """Adjusted for the number of looks."""
    items: int
    correct: int
    first: int
    """Number of the oldest window in it."""
    calm: bool
    """The newest window alone gives no reason for doubt."""

    @property
    def breached(self) -> bool:
        """Accuracy is below the bar, and not by chance."""
        return self.p_value <= LEVEL


class Quality:
    """The labelled windows of one model."""

    def __init__(self) -> None:
        self._version = ""
        self._windows: dict[str, deque[Labelled]] = {}
        """Regime → its newest windows."""

    def judge(self, window: Labelled) -> Verdict:
        """Add a labelled window and judge it together with those before it of the same version and regime."""
        if window.version != self._version:
            self._version = window.version
            self._windows.clear()
        windows = self._windows.setdefault(window.regime, deque(maxlen=max(LOOKS)))
        windows.append(window)
        newest = list(windows)[::-1]
        looks = [newest[:n] for n in LOOKS if n <= len(newest)]
        p_values = [_p_value(look) for look in looks]
        best = min(range(len(looks)), key=p_values.__getitem__)
        look = looks[best]
        return Verdict(
            p_value=min(1.0, p_values[best] * len(LOOKS)),
            items=sum(w.items for w in look),
            correct=sum(w.correct for w in look),
            first=look[-1].number,
            calm=p_values[0] > CALM_LEVEL,
        )


def _p_value(look: list[Labelled]) -> float:
    return too_few(sum(w.correct for w in look), sum(w.items for w in look), look[0].bar)
