"""Everything that chance or time decides in a simulated run, decided by its seed.

Time is trio's MockClock, which canvasbus.clock and with it the memory server follow; ids and jitter come from
canvasbus.ids; the order in which trio runs tasks that are ready at the same moment comes from trio's own generator.
That one is private: `_ALLOW_DETERMINISTIC_SCHEDULING` sorts the ready tasks before it shuffles them with `_r`. Both
are touched here and nowhere else, as is where a MockClock that only jumps keeps its time, and test_repeatable.py fails
when a new trio no longer listens to them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import trio._core._run as trio_run
from trio.testing import MockClock
from waiting import TrioClock

from canvasbus import clock, ids


class JumpingClock(TrioClock):
    """The same, of a MockClock that only jumps: it need not look how much time has passed really. Each command on the
    memory server asks."""

    def __init__(self, mock: MockClock) -> None:
        super().__init__(mock)
        self._mock = mock

    def time_ns(self) -> int:
        return int((self._start + self._mock._virtual_base) * 1e6) * 1000

    def monotonic(self) -> float:
        return self._mock._virtual_base


@contextmanager
def repeatable(seed: int) -> Iterator[MockClock]:
    """A clock for trio.run; what runs under it inside this block repeats for the same seed."""
    allowed, state = trio_run._ALLOW_DETERMINISTIC_SCHEDULING, trio_run._r.getstate()
    mock = MockClock(autojump_threshold=0)
    try:
        with clock.using(JumpingClock(mock)):
            trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
            trio_run._r.seed(seed)
            ids.reseed(seed)
            yield mock
    finally:
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING = allowed  # type: ignore[misc]
        trio_run._r.setstate(state)
        ids.reseed()
