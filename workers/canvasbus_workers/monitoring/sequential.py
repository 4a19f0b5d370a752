"""Detectors that look at one value after another: HDDM_A for right and wrong, ADWIN for scores.

They follow river's detectors of the same names decision by decision (the tests hold them to that), and are written anew
for one reason: their state has to be stored with the acknowledgement of what advanced it, and river's can only be
pickled. Whoever can write to the server could then run code in every worker. This state is a few numbers.

Order matters to them, so they are advanced by whoever holds the state, window after window, never by a delivery.
"""

from math import log, sqrt

from msgspec import Struct, field


class Mean(Struct):
    """A running mean, as river keeps it: updated, never summed, so that the last bits agree."""

    n: int = 0
    mean: float = 0.0

    def update(self, value: float) -> None:
        """Take a value in."""
        self.n += 1
        self.mean += (value - self.mean) / self.n

    def copy(self) -> "Mean":
        """Another one with the same numbers."""
        return Mean(self.n, self.mean)


class HddmA(Struct):
    """Has the mean of values in 0 to 1 risen? By Hoeffding's bound. Frías-Blanco et al., "Online and non-parametric drift
    detection methods based on Hoeffding's bounds", IEEE TKDE 27 (2015). 0: right, 1: wrong."""

    confidence: float = 0.001
    """Probability of a false alarm that the bound allows, at each cut."""
    fired: int = 0
    """Changes found so far."""
    least: Mean = field(default_factory=Mean)
    """Where the mean was lowest."""
    all: Mean = field(default_factory=Mean)

    def update(self, value: float) -> bool:
        """Take the next value; True: the mean has risen. It then begins anew."""
        self.all.update(value)
        if not self.least.n or self.least.mean + self._bound(self.least.n) >= self.all.mean + self._bound(self.all.n):
            self.least = self.all.copy()
        if not self._risen():
            return False
        self.fired += 1
        self.least, self.all = Mean(), Mean()
        return True

    def _bound(self, n: int) -> float:
        return sqrt(log(1.0 / self.confidence) / (2 * n))

    def _risen(self) -> bool:
        if self.least.n == self.all.n:
            return False
        parts = (self.all.n - self.least.n) / self.least.n * (1.0 / self.all.n)
        return self.all.mean - self.least.mean >= sqrt(parts / 2 * log(2.0 / self.confidence))


class Bucket(Struct, array_like=True):
    """2ᵏ values: their sum, and the sum of their squared distances from their mean."""

    total: float
    variance: float


class Adwin(Struct):
    """Has the mean of a stream changed? An adaptive window in exponential buckets: Bifet and Gavaldà, "Learning from
    time-changing data with adaptive windowing", SDM 2007. After a change it begins anew, as river's does."""

    delta: float = 0.002
    clock: int = 32
    """Values between two looks: a change is seen up to so many values late; 1 costs three times as much."""
    fired: int = 0
    """Changes found so far."""
    ticks: int = 0
    width: int = 0
    """Values in the window."""
    total: float = 0.0
    variance: float = 0.0
    rows: list[list[Bucket]] = field(default_factory=lambda: [[]])
    """k → buckets of 2ᵏ values, newest first."""

    @property
    def mean(self) -> float:
        """Of the window."""
        return self.total / self.width if self.width else 0.0

    def update(self, value: float) -> bool:
        """Take the next value; True: the mean has changed."""
        self.ticks += 1
        self._insert(value)
        if self.ticks % self.clock or self.width <= GRACE or not self._change():
            return False
        self.fired += 1
        self.ticks = self.width = 0
        self.total = self.variance = 0.0
        self.rows = [[]]
        return True

    def _insert(self, value: float) -> None:
        if self.width:
            self.variance += self.width * (value - self.mean) ** 2 / (self.width + 1)
        self.width += 1
        self.total += value
        self.rows[0].insert(0, Bucket(value, 0.0))
        for level, row in enumerate(self.rows):
            if len(row) <= BUCKETS:
                break
            size = 1 << level
            second, first = row.pop(), row.pop()
            apart = first.total / size - second.total / size
            merged = first.variance + second.variance + size * size * apart * apart / (2 * size)
            if level + 1 == len(self.rows):
                self.rows.append([])
            self.rows[level + 1].insert(0, Bucket(first.total + second.total, merged))

    def _change(self) -> bool:
        """True when some cut of the window shows two different means."""
        old_n, old_total = 0, 0.0
        new_n, new_total = self.width, self.total
        for level in range(len(self.rows) - 1, -1, -1):
            size = 1 << level
            for bucket in reversed(self.rows[level]):
                old_n, new_n = old_n + size, new_n - size
                old_total, new_total = old_total + bucket.total, new_total - bucket.total
                if new_n < SHORTEST:
                    return False
                if old_n >= SHORTEST and self._differs(old_n, new_n, old_total / old_n - new_total / new_n):
                    return True
        return False

    def _differs(self, old_n: int, new_n: int, apart: float) -> bool:
        doubt = log(2 * log(self.width) / self.delta)
        harmonic = 1.0 / (old_n - SHORTEST + 1) + 1.0 / (new_n - SHORTEST + 1)
        spread = self.variance / self.width
        return abs(apart) > sqrt(2 * harmonic * spread * doubt) + 2 / 3 * doubt * harmonic


BUCKETS = 5
"""Of one size, before two are merged."""
SHORTEST = 5
"""Values on either side of a cut."""
GRACE = 10
"""Values before the first look."""
