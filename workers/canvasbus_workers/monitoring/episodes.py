"""Hysteresis: from flags, which are noisy, to episodes, which somebody is woken for.

    ok ──flag──► suspect ──2 flags of 3──► drifting ──clean──► resolving ──3 clean in a row──► ok
                    └────nothing more─────► ok    ▲──not clean───┘

One flag proves nothing (a few clean windows in a hundred are flagged): it takes two of three to open an episode, and
three clean ones in a row to end it, so that data on the border do not ring and hush all night. A window that is neither
flagged nor clean keeps an open episode open and opens none.
"""

from typing import Literal

from msgspec import Struct, field

from canvasbus_workers.monitoring.policy import Policy

State = Literal["ok", "suspect", "drifting", "resolving"]
Change = Literal["opened", "escalated", "reminded", "resolved"]

ESCALATES = 2.0
"""Times the effect that was told last."""


class Episode(Struct):
    """The machine of one signal. Feed it verdicts in order."""

    state: State = "ok"
    opened: int = 0
    """Episodes opened so far; the number of the current one while it is open."""
    first: int = 0
    """The number of the first flagged window of the current or suspected episode."""
    told: float = 0.0
    """The largest effect that was told of the current episode."""
    silent: int = 0
    """Windows since it was told last."""
    recent: list[bool] = field(default_factory=list)
    """Flags of the last windows, while none is open."""
    calm: int = 0
    """Clean windows in a row, while one is open."""

    @property
    def is_open(self) -> bool:
        """Drifting or resolving."""
        return self.state in ("drifting", "resolving")

    def feed(self, number: int, *, flagged: bool, calm: bool, effect: float, policy: Policy) -> Change | None:
        """Take the verdict on window `number`; returns what it changes."""
        if self.is_open:
            return self._feed_open(flagged, calm, effect, policy)
        if flagged and not any(self.recent):
            self.first = number
        self.recent = [*self.recent, flagged][-policy.within :]
        self.state = "suspect" if any(self.recent) else "ok"
        if sum(self.recent) < policy.enter or not flagged:
            return None
        self.state = "drifting"
        self.opened += 1
        self.told, self.silent, self.recent, self.calm = effect, 0, [], 0
        return "opened"

    def _feed_open(self, flagged: bool, calm: bool, effect: float, policy: Policy) -> Change | None:
        self.silent += 1
        if calm and not flagged:
            self.calm += 1
            self.state = "resolving"
            if self.calm < policy.leave:
                return None
            self.state, self.calm = "ok", 0
            return "resolved"
        self.state, self.calm = "drifting", 0
        if flagged and effect >= ESCALATES * self.told > 0:
            self.told, self.silent = effect, 0
            return "escalated"
        if policy.repeat_windows and self.silent >= policy.repeat_windows:
            self.silent = 0
            return "reminded"
        return None
