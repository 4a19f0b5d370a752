"""Waiting in tests: for a condition with a deadline, never for a length of time; and a clock that tests turn."""

from collections.abc import Callable
from typing import Any

import trio

from canvasbus.errors import Unavailable


async def until(condition: Callable[[], Any], timeout: float = 10.0) -> Any:
    """Return the condition's first true value; fail after `timeout` seconds and say what it was then.

    While a server is away the condition counts as not true yet. Looks ever more rarely, down to twenty times a second:
    in virtual time each look is as long as all that the bus does meanwhile.
    """
    value: Any = None
    pause = 0.002
    with trio.move_on_after(timeout):
        while True:
            try:
                value = condition()
            except Unavailable as error:
                value = error
            else:
                if value:
                    return value
            await trio.sleep(pause)
            pause = min(pause * 1.2, 0.05)
    raise AssertionError(f"not so within {timeout:g} s; at the end it was {value!r}")


class TurnedClock:
    """A clock that stands still until somebody turns it."""

    def __init__(self, seconds: float = 1_700_000_000.0) -> None:
        self.seconds = seconds

    def time_ns(self) -> int:
        return round(self.seconds * 1000) * 1_000_000

    def monotonic(self) -> float:
        return self.seconds

    def turn(self, seconds: float) -> None:
        """Let `seconds` pass."""
        self.seconds += seconds


class TrioClock:
    """canvasbus' time as trio's: under a MockClock, expiry and idle times on a memory server move with the tasks."""

    def __init__(self, clock: trio.abc.Clock, start: float = 1_700_000_000.0) -> None:
        self._clock = clock
        self._start = start

    def time_ns(self) -> int:
        return int((self._start + self._clock.current_time()) * 1e6) * 1000

    def jump(self, seconds: float) -> None:
        """Set the wall clock, forward or back; what only goes forward stays as it is."""
        self._start += seconds

    def monotonic(self) -> float:
        return self._clock.current_time()
