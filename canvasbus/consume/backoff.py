"""Waiting for a server that is away, or has no memory or no disk: longer each time, and told, but not each time."""

import math

import trio

from canvasbus.log import get_logger

FIRST_SECONDS = 0.05
MOST_SECONDS = 2.0
TELL_SECONDS = 60.0

log = get_logger("canvasbus.worker")


class ServerBackoff:
    """The pauses between attempts at one thing. (What a handler's failures cost is `policy.Backoff`.)"""

    def __init__(self, what: str, group: str) -> None:
        """`what` waits, as a log line has it."""
        self._what = what
        self._group = group
        self._seconds = FIRST_SECONDS
        self._tell_at = -math.inf

    def next(self, failure: Exception) -> float:
        """The seconds to wait now."""
        now = trio.current_time()
        if now >= self._tell_at:
            self._tell_at = now + TELL_SECONDS
            log.warning(self._what, group=self._group, error=str(failure))
        seconds, self._seconds = self._seconds, min(self._seconds * 2, MOST_SECONDS)
        return seconds

    async def wait(self, failure: Exception) -> None:
        """Wait for so long."""
        await trio.sleep(self.next(failure))

    def reset(self) -> None:
        """It went well."""
        self._seconds = FIRST_SECONDS

    def __repr__(self) -> str:
        return f"<ServerBackoff {self._what!r}, next {self._seconds:g} s>"
