"""Late labels: was the model right, and is it as right as it was promised to be?

Labels come long after the answers, when the data may have changed again, so each labelled window is judged against the
reference that *it* matched, and only while the newest windows still match the same: measured, without this rule 7 of 10
runs called a healthy model broken because the labels of the broken period came in late. Windows that another version
answered say nothing about the present one.

The last 1, 2, 4, 8 and 16 windows of one regime are looked at together (a short look sees a collapse at once, a long one
a loss of a few points). Each look has a fifth of the level. A window of another regime in between interrupts nothing:
one false flag would otherwise wipe out the history that shows a small loss.

Beside the looks, a sequential detector takes the answers one by one, right or wrong, in the order in which the windows
were judged: it knows no bar, and sees that errors have become more frequent than they were.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from msgspec import Struct, field

from canvasbus_workers.monitoring.policy import Policy
from canvasbus_workers.monitoring.sequential import Adwin, HddmA
from canvasbus_workers.monitoring.statistics import too_few

LOOKS = (1, 2, 4, 8, 16)
"""Windows."""
LEVEL = 0.001
"""False alarms per labelled window, at most."""
CALM_LEVEL = 0.05
"""A window below this is not counted as a recovered one."""
KEPT_REGIMES = 16
TOLERATED = 0.05
"""How far below the best reference's accuracy another one may set the bar."""


class Labelled(Struct, frozen=True, array_like=True):
    """How one window turned out."""

    number: int
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
class Finding:
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


class Quality(Struct):
    """The labelled windows of one segment."""

    version: str = ""
    windows: dict[str, list[Labelled]] = field(default_factory=dict)
    """Regime → its newest windows."""
    hddm: HddmA = field(default_factory=HddmA)
    adwin: Adwin = field(default_factory=Adwin)

    def judge(self, window: Labelled) -> Finding:
        """Add a labelled window and judge it together with those before it of the same version and regime."""
        self._follow(window.version)
        windows = self.windows.pop(window.regime, [])
        windows = self.windows[window.regime] = [*windows, window][-max(LOOKS) :]
        while len(self.windows) > KEPT_REGIMES:
            self.windows.pop(next(iter(self.windows)))
        newest = windows[::-1]
        looks = [newest[:n] for n in LOOKS if n <= len(newest)]
        p_values = [_p_value(look) for look in looks]
        best = min(range(len(looks)), key=p_values.__getitem__)
        look = looks[best]
        return Finding(
            p_value=min(1.0, p_values[best] * len(LOOKS)),
            items=sum(w.items for w in look),
            correct=sum(w.correct for w in look),
            first=look[-1].number,
            calm=p_values[0] > CALM_LEVEL,
        )

    def advance(self, version: str, wrong: Iterable[bool], policy: Policy) -> bool:
        """Show the answers of a window, in their order, to the sequential detector; True: errors have changed."""
        self._follow(version)
        if policy.sequential == "off":
            return False
        detector = self.hddm if policy.sequential == "hddm_a" else self.adwin
        fired = [detector.update(float(one)) for one in wrong]  # all of them, whatever the first ones say
        return any(fired)

    def _follow(self, version: str) -> None:
        if version != self.version:
            self.version = version
            self.windows.clear()
            self.hddm, self.adwin = HddmA(), Adwin()


def _p_value(look: list[Labelled]) -> float:
    return too_few(sum(w.correct for w in look), sum(w.items for w in look), look[0].bar)


def bar(matched: float | None, all_of_them: Iterable[float]) -> float | None:
    """The accuracy that a window should reach: what the matched reference reached, but not much less than the best one. (A
    model that was retrained too early has a poor reference of its own; measured against that, it would stay poor for
    good.) `matched` None: it matches nothing, and is measured against the best. None: nothing was promised."""
    best = max(all_of_them, default=None)
    if best is None:
        return None
    return best if matched is None else max(matched, best - TOLERATED)
