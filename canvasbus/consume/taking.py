"""Taking entries out of the pools: what others handed back, and what the dead left behind."""

from collections.abc import Callable, Sequence
from random import Random

import trio

from canvasbus.consume.complaints import Complaints
from canvasbus.consume.dispatch import Lane
from canvasbus.consume.subscription import Subscription
from canvasbus.consume.sweep import SWEEP_SECONDS
from canvasbus.errors import TransportError
from canvasbus.wire.keys import FREE_POOL, SUSPECT_POOL

TAKE_AT_ONCE = 100
SUSPECTS_AT_ONCE = 32


class Taking:
    """Fills the lanes of one incarnation from the pools, as far as there is room."""

    def __init__(
        self,
        group: str,
        subscriptions: Sequence[Subscription],
        lanes: Sequence[Lane],
        random: Random,
        *,
        on_fenced: Callable[[], None],
    ) -> None:
        self._subscriptions = subscriptions
        self._lanes = lanes
        self._random = random
        self._on_fenced = on_fenced
        self._again = trio.Event()
        self._hungry: set[Lane] = set()
        """Those for which there were suspects when they were asked for last."""
        self._complaints = Complaints(group)

    def again(self) -> None:
        """There is room, or there may be something in a pool."""
        self._again.set()

    async def run(self) -> None:
        """Take until cancelled."""
        while True:
            self._again = trio.Event()
            took, asked, suspects = 0, set[Lane](), 0
            for subscription in self._subscriptions:
                before = subscription.recovery.statistics.taken
                try:
                    suspects += await self._take(subscription, asked)
                except TransportError as error:
                    self._complaints.tell("taking what was handed back fails", error)
                    self._hungry.clear()  # there is no hurry then
                took += subscription.recovery.statistics.taken - before
            self._hungry = self._hungry | asked if suspects else self._hungry - asked
            with trio.move_on_after(SWEEP_SECONDS * self._random.uniform(0.75, 1.25)):
                if took:  # there may be more, once there is room; and others hand back while what was taken still runs
                    await self._again.wait()
                elif self._hungry:  # they had no room; asked once a second, what is quick would take minutes
                    while not any(map(_has_beds, self._hungry)):
                        self._again = trio.Event()
                        await self._again.wait()
                else:
                    await trio.sleep_forever()

    async def _take(self, subscription: Subscription, asked: set[Lane]) -> int:
        """Returns how many suspects came; for which lanes they were asked for joins `asked`."""
        recovery = subscription.recovery
        free = min(TAKE_AT_ONCE, sum(max(0, lane.free) for lane in self._lanes))
        ours = await recovery.take(FREE_POOL, free)
        before = recovery.statistics.taken
        if ours:
            asked.update(filter(_has_beds, self._lanes))
            ours = await recovery.take(SUSPECT_POOL, min(SUSPECTS_AT_ONCE, free))
        if not ours:
            self._on_fenced()
        return recovery.statistics.taken - before


def _has_beds(lane: Lane) -> bool:
    """Suspects can be taken for it."""
    return lane.quarantine.wants and lane.free > 0
