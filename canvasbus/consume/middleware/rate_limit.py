"""A limit on how often handlers run: for what stands behind them and has a limit of its own.

Nothing sleeps in a slot. An event that comes too early gets a reservation, the moment at which its turn is, and waits
for it like one that was sent to `RetryLater`; the slot goes on with others, so that one busy key does not keep the rest
from running. The events of one key come in the order of their reservations, and each is looked at twice, however many
wait. (Without reservations, n that wait for one token would try again n² times.)

The arithmetic is the generic cell rate algorithm: per key one number, the time at which its bucket is full again. See
ITU-T I.371, or "leaky bucket as a meter".
"""

import math
from collections.abc import Callable, Hashable
from typing import Any
from uuid import UUID

from canvasbus import clock
from canvasbus.checks import check_function, check_number
from canvasbus.consume.context import Context
from canvasbus.consume.middleware import Middleware
from canvasbus.consume.middleware.gate import gate
from canvasbus.consume.policy import RetryLater
from canvasbus.errors import ContractError

_KEEP = 10_000
_SLACK = 0.001  # a timer may fire that much early, by another clock
_FORGET = 60.0


def rate_limit(
    runs: float, *, per: float = 1.0, burst: int | None = None, key: Callable[[Any], Hashable] | None = None
) -> Middleware:
    """At most `runs` runs per `per` seconds, and `burst` at once (default: `runs`, at least 1).

    `key`: a function of the event; each value has a limit of its own. Without it all handlers of the worker share one.
    The limit holds in one process: with four, four times as many. Raises ContractError.
    """
    check_number("rate_limit: runs", runs, error=ContractError)
    check_number("rate_limit: per", per, error=ContractError)
    if not (0 < runs < math.inf and 0 < per < math.inf):
        raise ContractError(f"rate_limit({runs!r}, per={per!r}): finite numbers above 0 are wanted")
    burst = max(1, int(runs)) if burst is None else burst
    check_number("rate_limit: burst", burst, whole=True, least=1, error=ContractError)
    if key is not None:
        check_function("rate_limit: key", key)
    buckets = Buckets(per / runs, burst)

    def check(event: Any, ctx: Context) -> bool:
        wait = buckets.take(key(event) if key else None, ctx.envelope.id, clock.monotonic())
        if wait > 0:
            raise RetryLater(wait, "the rate limit")
        return True

    return gate(check)


class Buckets:
    """The limits of all keys. Pure: time comes in as an argument."""

    def __init__(self, interval: float, burst: int) -> None:
        self._interval = interval
        self._tolerance = (burst - 1) * interval
        self._full: dict[Hashable, float] = {}
        self._reserved: dict[UUID, float] = {}
        self._tidy_at = _KEEP

    def take(self, key: Hashable, event: UUID, now: float) -> float:
        """Seconds until the event's turn, which is reserved from now on; 0: now."""
        due = self._reserved.get(event)
        if due is None:
            full = max(self._full.get(key, now), now)
            self._full[key] = full + self._interval
            due = full - self._tolerance
            if due > now:
                self._reserved[event] = due
            self._tidy(now)
        if due > now + _SLACK:
            return due - now
        self._reserved.pop(event, None)
        return 0.0

    def _tidy(self, now: float) -> None:
        """Forget buckets that are full, and events that others have run (they did not come back to us)."""
        if len(self._full) + len(self._reserved) >= self._tidy_at:
            self._full = {key: full for key, full in self._full.items() if full > now}
            self._reserved = {event: due for event, due in self._reserved.items() if due > now - _FORGET}
            self._tidy_at = max(_KEEP, 2 * (len(self._full) + len(self._reserved)))

    def __repr__(self) -> str:
        return f"<Buckets of {len(self._full)} keys, {len(self._reserved)} events wait>"
