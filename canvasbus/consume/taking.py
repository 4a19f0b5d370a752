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
        self._more_suspects = False
        """When they were asked for last there were some."""
        self._complaints = Complaints(group)

    def again(self) -> None:
        """There is room, or there may be something in a pool."""
        self._again.set()

    async def run(self) -> None:
        """Take until cancelled."""
        while True:
            self._again = trio.Event()
            took = 0
            if self._has_beds:
                self._more_suspects = False
            for subscription in self._subscriptions:
                before = subscription.recovery.statistics.taken
                try:
                    await self._take(subscription)
                except TransportError as error:
                    self._complaints.tell("taking what was handed back fails", error)
                took += subscription.recovery.statistics.taken - before
            with trio.move_on_after(SWEEP_SECONDS * self._random.uniform(0.75, 1.25)):
                if took:  # there may be more, once there is room; and others hand back while what was taken still runs
                    await self._again.wait()
                elif self._more_suspects:  # there was room for none; asked once a second, the quick would take minutes
                    while not self._has_beds:
                        self._again = trio.Event()
                        await self._again.wait()
                else:
                    await trio.sleep_forever()

    @property
    def _has_beds(self) -> bool:
        """Suspects can be taken."""
        return any(lane.quarantine.wants and lane.free > 0 for lane in self._lanes)

    async def _take(self, subscription: Subscription) -> None:
        recovery = subscription.recovery
        free = min(TAKE_AT_ONCE, sum(max(0, lane.free) for lane in self._lanes))
        ours = await recovery.take(FREE_POOL, free)
        if ours and self._has_beds:
            before = recovery.statistics.taken
            ours = await recovery.take(SUSPECT_POOL, min(SUSPECTS_AT_ONCE, free))
            self._more_suspects |= recovery.statistics.taken > before
        if not ours:
            self._on_fenced()
