"""Suspects: entries whose worker died while it held them. One of them may have killed it; most have not.

Theory of operation. A suspect is proven by what its next worker survives, in two steps:

1. A few at a time, side by side with the others, in the lane's ordinary slots. That is written down before they start,
   as a count of 0 deliveries, which no other entry has: should this worker die, too, those that were not done with are
   the suspects that remain. Nothing is counted against anybody.
2. Alone: one in this process, and its attempt is written down just before its handler starts. Only these attempts, and
   failures that a handler itself raised, count towards the cap. Those that have failed least run first.

In either step one that outlives its timeout and cannot be ended (in a thread, behind a shield) is no longer waited for.

So an event that kills its workers, among 500 in flight, makes exactly one dead letter, after one death in the crowd, one
among `BEDS` others at most, and as many alone as it has attempts. Its neighbours are never blamed.

Why two steps. Workers die of many things, few of which are events: memory, a node that goes away, an impatient
operator. With step 2 alone the 500 entries of such a worker ran one after another. Measured in virtual time, 500
suspects of 2 s each, concurrency 16, one worker at a time: 1,006 s before, 64 s now; with a killer among them and
attempts=3 there is one death more (5 for 4), and its neighbours are done after 126 s instead of 1,008. Considered and
left: halving the crowd until one is left, which costs a death for each halving (9 for 500), and trusting all entries
when deaths are rare, which an event that kills late would use to kill for ever.
"""

from collections import deque
from collections.abc import Awaitable, Callable

import trio

from canvasbus.consume.breaking import Breaking
from canvasbus.consume.delivery import Delivery

BEDS = 32
"""Suspects of one lane that run side by side, at most (and never more than its concurrency, or fit in a batch): so many
have to run alone when one of them kills the worker."""

AMONG_OTHERS = -1
"""Instead of a number of failures: it runs among others. (The server's counter is one more.)"""


class Quarantine:
    """The suspects of one lane."""

    def __init__(
        self,
        most: int,
        lock: trio.Lock,
        breaking: Breaking | None,
        *,
        start: Callable[[list[Delivery]], None],
        run_alone: Callable[[Delivery], Awaitable[None]],
        on_room: Callable[[], None],
    ) -> None:
        """`most`: deliveries that the lane runs at a time. `lock`: one runs alone in this process, over all lanes. `start`
        runs deliveries in the slots."""
        self._beds = min(most, BEDS)
        self._lock = lock
        self._breaking = breaking
        self._start = start
        self._run_alone = run_alone
        self._on_room = on_room
        self._crowd: deque[Delivery] = deque()
        self._alone: deque[Delivery] = deque()
        self._running: set[Delivery] = set()  # among others
        self._stirred = trio.Event()
        self._runs_alone: Delivery | None = None
        self._over = trio.Event()
        """The one that runs alone has ended, or is not waited for."""

    @property
    def wants(self) -> bool:
        """More suspects may be fetched. While the circuit is open one is of use, as a probe."""
        if self._breaking is not None and self._breaking.blocked:
            return not self._crowd and not self._alone
        return not self._crowd and len(self._alone) < self._beds

    @property
    def waiting(self) -> int:
        """How many wait until they may run alone."""
        return len(self._alone)

    @property
    def first(self) -> Delivery | None:
        """The one whose turn it is."""
        return self._alone[0] if self._alone else self._crowd[0] if self._crowd else None

    @property
    def probe(self) -> Delivery | None:
        """One that may run at once, for a breaker to probe with. While another runs alone, in whatever lane, that is none:
        it may take hours, and what could be probed with meanwhile would not even be read."""
        return None if self._lock.locked() else self.first

    def add(self, delivery: Delivery) -> None:
        """Take a suspect, also one that has run and has to run again."""
        if delivery.alone or delivery.failures:
            self._alone.insert(self._place_of(delivery), delivery)
        else:
            self._crowd.append(delivery)
        self._stirred.set()

    def _place_of(self, delivery: Delivery) -> int:
        """Behind all that have killed no more workers than it has: whoever waits beside an event that kills, and would die
        with it again, runs first. While a breaker probes, the line stays as it is, so that each has its turn."""
        if self._breaking is not None and self._breaking.blocked:
            return len(self._alone)
        later = (at for at, other in enumerate(self._alone) if other.failures > delivery.failures)
        return next(later, len(self._alone))

    def ended(self, delivery: Delivery) -> None:
        """A suspect is done with, or has to wait."""
        self._running.discard(delivery)
        self._stirred.set()

    def late(self, delivery: Delivery) -> None:
        """It runs too long and cannot be ended: it may never end, and those that wait for that do so no longer."""
        if delivery is self._runs_alone:
            self._over.set()
        elif delivery in self._running:
            self.ended(delivery)

    def stir(self) -> None:
        """The circuit may have closed, or wants a probe."""
        self._stirred.set()

    def stop(self, *, keep: int = 0) -> list[Delivery]:
        """Let go of those that wait, but for a few."""
        waiting = [*self._alone, *self._crowd]
        for delivery in waiting[keep:]:
            (self._alone if delivery in self._alone else self._crowd).remove(delivery)
        return waiting[keep:]

    async def run(self) -> None:
        """Run suspects until cancelled."""
        breaking = self._breaking
        async with trio.open_nursery() as nursery:
            while True:
                self._stirred = trio.Event()
                if breaking is not None and breaking.blocked:
                    if breaking.probe is not None and self._lane_of(breaking.probe) is not None:
                        await self._run_next(nursery)
                        continue
                elif self._crowd and len(self._running) < self._beds:
                    await self._run_crowd()
                    continue
                elif self._alone and not self._crowd and not self._running:
                    await self._run_next(nursery)
                    continue
                self._on_room()
                await self._stirred.wait()

    async def _run_crowd(self) -> None:
        chosen = [self._crowd.popleft() for _ in range(min(len(self._crowd), self._beds - len(self._running)))]
        self._running.update(chosen)
        for written in [delivery.topic.settler.write_ahead(delivery, AMONG_OTHERS) for delivery in chosen]:
            await written.wait()
        self._start(chosen)

    async def _run_next(self, nursery: trio.Nursery) -> None:
        breaking = self._breaking
        if breaking is not None and breaking.probe is not None and self._lock.locked():  # another lane was faster
            breaking.lapsed(breaking.probe)
            return
        async with self._lock:
            # A probe has its turn wherever it stands: others may have come before it while it waited for the lock.
            delivery = breaking.probe if breaking is not None and breaking.blocked else self.first
            waiting = self._lane_of(delivery)
            if delivery is None or waiting is None:
                return  # it changed while others ran
            waiting.remove(delivery)
            self._runs_alone, self._over = delivery, trio.Event()
            nursery.start_soon(self._run_one, delivery, self._over)
            await self._over.wait()

    async def _run_one(self, delivery: Delivery, over: trio.Event) -> None:
        try:
            await self._run_alone(delivery)
        finally:
            over.set()

    def _lane_of(self, delivery: Delivery | None) -> deque[Delivery] | None:
        """Where it waits; None: not here."""
        return next((waiting for waiting in (self._alone, self._crowd) if delivery in waiting), None)

    def __repr__(self) -> str:
        return f"<Quarantine {len(self._crowd)} + {len(self._alone)} wait, {len(self._running)} run among others>"
