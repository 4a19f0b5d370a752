"""The only source of time.

Everything in canvasbus asks this module, so that a test can replace time as a whole: the memory transport makes
fakeredis ask it too, and a simulated clock then moves expiry, entry ids and idle times together with trio's clock.

Wall time is for people and for event fields. Nothing correct may hang on it: intervals use `monotonic`.
"""

import time as _time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """A source of wall time (nanoseconds since 1970, UTC) and of monotonic time (seconds)."""

    def time_ns(self) -> int: ...
    def monotonic(self) -> float: ...


class SystemClock:
    """The machine's clocks."""

    time_ns = staticmethod(_time.time_ns)
    monotonic = staticmethod(_time.perf_counter)


_clock: Clock = SystemClock()

# The two that hot paths call are the clock's own methods: a function around them would double their price.
time_ns: Callable[[], int] = _clock.time_ns
"""Wall time in nanoseconds since 1970-01-01 UTC."""
monotonic: Callable[[], float] = _clock.monotonic
"""Seconds on a clock that never goes back; only differences mean anything."""


def time() -> float:
    """Wall time in seconds since 1970-01-01 UTC."""
    return time_ns() / 1e9


def now() -> datetime:
    """The current moment as an aware UTC datetime, to the microsecond."""
    return datetime.fromtimestamp(time_ns() / 1e9, UTC)


def current() -> Clock:
    """The clock in force, for loops that bind its methods once."""
    return _clock


@contextmanager
def using(clock: Clock) -> Iterator[Clock]:
    """Put `clock` in force for the whole process until the block ends (for tests and simulations)."""
    previous = _clock
    _set(clock)
    try:
        yield clock
    finally:
        _set(previous)


def _set(clock: Clock) -> None:
    global _clock, time_ns, monotonic
    _clock, time_ns, monotonic = clock, clock.time_ns, clock.monotonic
