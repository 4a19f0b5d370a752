"""Hysteresis: from flags, which are noisy, to episodes, which somebody is woken for.

    ok ──flag──► suspect ──flag──► open ──3 × clean──► ok
                    └──clean──► ok

One flag proves nothing (a few clean windows in a hundred are flagged); two in a row open an episode, and it takes three
clean windows to close it, so that data on the border do not ring and hush all night.
"""

from dataclasses import dataclass
from typing import Literal

Change = Literal["opened", "resolved"]


@dataclass(slots=True)
class Episodes:
    """One signal's machine. Feed it verdicts in order."""

    enter: int = 2
    """Flags in a row that open an episode."""
    leave: int = 3
    """Clean verdicts in a row that close it."""
    opened: int = 0
    """Episodes opened so far; the number of the current one while `is_open`."""
    is_open: bool = False
    first: int = 0
    """The number of the first flagged window of the current or suspected episode."""
    _row: int = 0

    def feed(self, number: int, flagged: bool) -> Change | None:
        """Take the verdict on window `number`; returns what it changes."""
        if flagged == self.is_open:
            self._row = 0  # nothing new: flagged while open, clean while ok
            return None
        if self._row == 0 and not self.is_open:
            self.first = number
        self._row += 1
        if self._row < (self.leave if self.is_open else self.enter):
            return None
        self._row = 0
        self.is_open = not self.is_open
        if self.is_open:
            self.opened += 1
            return "opened"
        return "resolved"
