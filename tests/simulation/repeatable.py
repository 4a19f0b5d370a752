"""Everything that chance or time decides in a simulated run, decided by its seed.

Time is trio's MockClock, which canvasbus.clock and with it the memory server follow; ids and jitter come from
canvasbus.ids; the order in which trio runs tasks that are ready at the same moment comes from trio's own generator.
That one is private: `_ALLOW_DETERMINISTIC_SCHEDULING` sorts the ready tasks before it shuffles them with `_r`. Both
are touched here and nowhere else, and test_repeatable.py fails when a new trio no longer listens to them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import trio._core._run as trio_run
from trio.testing import MockClock
from waiting import TrioClock

from canvasbus import clock, ids


@contextmanager
def repeatable(seed: int) -> Iterator[MockClock]:
    """A clock for trio.run; what runs under it inside this block repeats for the same seed."""
    allowed, state = trio_run._ALLOW_DETERMINISTIC_SCHEDULING, trio_run._r.getstate()
    mock = MockClock(autojump_threshold=0)
    try:
        with clock.using(TrioClock(mock)):
            trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
            trio_run._r.seed(seed)
            ids.reseed(seed)
            yield mock
    finally:
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING = allowed  # type: ignore[misc]
        trio_run._r.setstate(state)
        ids.reseed()
