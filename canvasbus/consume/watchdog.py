"""Timeouts, without a cancel scope for each event.

Every slot of a lane has one scope that stays open, and one watchdog per lane cancels the scope of a slot whose handler
has run too long. All runs of a lane have the same timeout, so the earliest start is the next deadline and the watchdog
sleeps until exactly then. `ctx.extend`, and waiting for a state that others hold, only ever move a deadline further away,
so nobody has to wake it for that: it wakes up, finds the run entitled to more, and sleeps again. That is also why any
thread may call `ctx.extend`.

Python cannot stop a thread, so the timeout of a plain function is only counted and told: the slot stays taken until
the function returns, and what it returns then is its outcome. An async handler that waits behind a shield (for a thread of
its own, by `trio.to_thread.run_sync`) holds its slot for as long, and has timed out when it ends.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from canvasbus import clock
from canvasbus.consume.delivery import Delivery
from canvasbus.consume.outcomes import LaneStatistics
from canvasbus.log import get_logger

if TYPE_CHECKING:
    from canvasbus.consume.handlers import Handler

log = get_logger("canvasbus.worker")


class Slot:
    """A place in which one handler runs at a time."""

    __slots__ = ("cut", "delivery", "others", "scope", "started")

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.cut = False
        """The watchdog has cancelled the scope: it must be renewed even if the handler got away in time."""
        self.delivery: Delivery | None = None
        """What runs here now."""
        self.others: Sequence[Delivery] = ()
        """The rest of a batch."""
        self.started = 0.0

    @property
    def extended(self) -> float:
        """Until when the run may go on by its own word; 0: it said none."""
        delivery = self.delivery
        if delivery is None:
            return 0.0
        return max([delivery.extended, *[other.extended for other in self.others]])

    @property
    def waited(self) -> float:
        """How many seconds of its run were spent waiting for a state; those of batches have none."""
        run = self.delivery.run if self.delivery is not None else None
        return run.waited if run is not None else 0.0


class Watchdog:
    """Ends the runs of one lane that take too long."""

    def __init__(self, handler: "Handler", group: str, statistics: LaneStatistics) -> None:
        self.slots: list[Slot] = []
        self.work = trio.Event()
        """Set it when a run may have begun."""
        self._handler = handler
        self._group = group
        self._statistics = statistics
        self._outside: set[Slot] = set()
        self.late: set[Delivery] = set()
        """What runs too long and cannot be ended."""
        self.on_late: Callable[[Delivery], None] | None = None
        """Called with each of these, and the rest of its batch."""

    @contextmanager
    def outside(self, deliveries: Sequence[Delivery]) -> Iterator[Slot]:
        """Watch one run outside the slots: a batch, a suspect."""
        slot = Slot()
        slot.started = clock.monotonic()
        slot.delivery, *slot.others = deliveries
        for delivery in deliveries:
            delivery.extended = 0.0  # each run has its own word
            delivery.runs += 1
        self._outside.add(slot)
        self.work.set()
        try:
            with slot.scope:
                yield slot
        finally:
            self._outside.discard(slot)
            self.late.difference_update(deliveries)

    @property
    def running(self) -> int:
        """Handlers that run now."""
        return len(self._outside) + sum([slot.delivery is not None for slot in self.slots])

    @property
    def extended(self) -> float:
        """Until when some run may go on by its own word. Called by the heartbeat's thread while the loop is blocked."""
        return max([slot.extended for slot in (*self.slots, *self._outside)], default=0.0)

    async def run(self) -> None:
        """Watch until cancelled."""
        timeout = self._handler.timeout
        while True:
            started = [slot for slot in (*self.slots, *self._outside) if slot.delivery is not None]
            if not started:
                self.late.clear()
                self.work = trio.Event()
                await self.work.wait()
                continue
            now = clock.monotonic()
            wait = timeout
            self.late.intersection_update([slot.delivery for slot in started])
            for slot in started:
                left = max(slot.started + slot.waited + timeout, slot.extended) - now
                if left > 0:
                    wait = min(wait, left)
                elif self._handler.is_async and not slot.cut:
                    slot.cut = True
                    slot.scope.cancel()
                elif slot.delivery is not None and slot.delivery not in self.late:
                    self.late.add(slot.delivery)
                    self._warn()
                    self._late(slot)
            await trio.sleep(max(wait, 0.001))

    def _warn(self) -> None:
        if self._handler.is_async:  # cancelled a while ago
            what = "a handler was cancelled at its timeout and runs all the same: behind a shield, or in a thread"
        else:
            self._statistics.timeouts += 1
            what = "a plain function runs longer than its timeout; a thread cannot be stopped"
        log.warning(what, group=self._group, handler=self._handler.name, timeout=self._handler.timeout)

    def _late(self, slot: Slot) -> None:
        if self.on_late is not None and slot.delivery is not None:
            for delivery in (slot.delivery, *slot.others):
                self.on_late(delivery)

    def __repr__(self) -> str:
        return f"<Watchdog of {self._group}/{self._handler.name}, {self.running} running>"
