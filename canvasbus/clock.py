"""The only source of time.

Everything in canvasbus asks this module, so that a test can replace time as a whole: the memory transport makes
fakeredis ask it too, and a simulated clock then moves expiry, entry ids and idle times together with trio's clock.

Wall time is for people and for event fields. Nothing correct may hang on it: intervals use `monotonic`.
"""

import time as _time
from collections.abc import Iterator
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


def time_ns() -> int:
    """Wall time in nanoseconds since 1970-01-01 UTC."""
    return _clock.time_ns()


def time() -> float:
    """Wall time in seconds since 1970-01-01 UTC."""
    return _clock.time_ns() / 1e9


def monotonic() -> float:
    """Seconds on a clock that never goes back; only differences mean anything."""
    return _clock.monotonic()


def now() -> datetime:
    """The current moment as an aware UTC datetime, to the microsecond."""
    return datetime.fromtimestamp(_clock.time_ns() / 1e9, UTC)


def current() -> Clock:
    """The clock in force, for loops that bind its methods once."""
    return _clock


@contextmanager
def using(clock: Clock) -> Iterator[Clock]:
    """Put `clock` in force for the whole process until the block ends (for tests and simulations)."""
    global _clock
    previous, _clock = _clock, clock
    try:
        yield clock
    finally:
        _clock = previous
