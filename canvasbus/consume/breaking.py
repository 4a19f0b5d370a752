"""What a lane does while its circuit is open (the rules of the circuit are in `breaker`).

Theory of operation. When the circuit opens, what waits in the lane's queue is set aside, so that its slots find nothing
to start; nothing is read. Runs that had begun end as they end: a failure of the kinds named costs no attempt. At the
end of each pause one delivery is the probe, whose outcome closes the circuit or lengthens the pause.

A probe that failed is not tried again before others were: an event that is itself the trouble must not keep a healthy
lane shut. So there is one new delivery for each probe if there is one, read or fetched for the purpose, and the few
tried last are kept in hand until then. Suspects are probes only where there is nothing else and none runs alone, as ever they do.

A plain function cannot be cut short, nor can what waits behind a shield, and one that hangs must not keep the lane shut
either. As a probe it has failed when its time is over, and others are probes beside it; unless it is seen that such a run
comes to a good end, only slowly.

While the circuit opens for the first time its deliveries are kept, for most outages are shorter than a pause. When a
probe has failed, too, all but those few are handed back: it may be only this process that cannot get through, and the
others, if their circuits are closed, shall have the work. Nothing is lost meanwhile: what is in hand is pending under
this worker's name, as always.
"""

from collections import deque
from collections.abc import Callable
from random import Random

import trio

from canvasbus.consume.breaker import Breaker, Circuit
from canvasbus.consume.delivery import Delivery
from canvasbus.consume.outcomes import LaneStatistics
from canvasbus.consume.policy import Outcome, Raised, RetryLater, opened, word_of
from canvasbus.log import get_logger

TRIED_KEPT = 8
"""Failed probes, and as many suspects, that are kept in hand: one poisonous event among them cannot hide that the others
would pass."""

FRESH_SECONDS = 1.0
"""How long a probe waits for a delivery that was not tried yet, each time."""

log = get_logger("canvasbus.worker")


class Breaking:
    """Holds the deliveries of one lane while its circuit is open."""

    def __init__(
        self,
        breaker: Breaker,
        handler: str,
        group: str,
        statistics: LaneStatistics,
        random: Random,
        *,
        halt: Callable[[], list[Delivery]],
        resume: Callable[[list[Delivery]], None],
        suspect: Callable[[], Delivery | None],
        hand_back: Callable[[list[Delivery]], None],
        on_room: Callable[[], None],
    ) -> None:
        """`halt` empties the lane's queue, `resume` fills it, `suspect` finds one; `hand_back` gives deliveries to other
        workers."""
        self.circuit = Circuit(breaker, random)
        self.wanted = 0
        """Deliveries that the lane may read while the circuit is open."""
        self._breaker = breaker
        self._handler = handler
        self._group = group
        self._statistics = statistics
        self._halt = halt
        self._resume = resume
        self._suspect = suspect
        self._hand_back = hand_back
        self._on_room = on_room
        self._fresh: deque[Delivery] = deque()
        self._tried: deque[Delivery] = deque()
        self.probe: Delivery | None = None
        """The one delivery that may run while the circuit is open."""
        self._put_off: set[Delivery] = set()
        """Probes that were put off by their own word."""
        self._late: set[Delivery] = set()
        """Probes that were not waited for and still run."""
        self._patient = False
        """One of them came to a good end: the next ones are waited for."""
        self._suspects_turn = False
        """Which of the two kinds that were tried is the probe next: also where nothing becomes of it, each has its turn."""
        self._came = trio.Event()
        self._turned = trio.Event()

    @property
    def blocked(self) -> bool:
        """True while nothing but a probe may run."""
        return self.circuit.state != "closed"

    def keep(self, delivery: Delivery, *, tried: bool = False) -> None:
        """Hold a delivery for as long as the circuit is open."""
        if tried or delivery in self._put_off:
            self._tried.append(delivery)
        else:
            self._fresh.append(delivery)
            self.wanted = 0
        self._came.set()

    def ended(self, delivery: Delivery, outcome: Outcome | None) -> bool:
        """A run has ended. True: the outside is down, and the event shall not pay for it."""
        error = outcome.error if isinstance(outcome, Raised) else None
        down = error is not None and self._breaker.concerns(error)
        now = trio.current_time()
        if delivery in self._late:
            self._late.remove(delivery)
            self._patient |= self.blocked and not down
        if delivery is self.probe and error is not None and isinstance(word_of(error), RetryLater):
            self.lapsed(delivery)  # put off, by a rate limit for example, it may not have got as far as the outside
            if not delivery.suspect:  # those wait in a line of their own
                self._put_off.add(delivery)  # back soon, it must not be one before all others each time
        elif delivery is self.probe:
            self.probe = None
            self.circuit.judge(now, failed=down)
            if down:
                self._unload()
            else:
                self._closed(now)
            self._turned.set()
        elif error is not None and down and self.circuit.failed(now, self._statistics.handled):
            self._opened(now, error)
        return down and self.blocked

    def late(self, delivery: Delivery) -> None:
        """The time of a run is over, and nobody can end it."""
        if delivery is self.probe and not self._patient:
            self._late.add(delivery)
            self.probe = None
            self.circuit.judge(trio.current_time(), failed=True)
            self._unload()
            self._turned.set()

    def stir(self) -> None:
        """A suspect has come; there may be nothing else to probe with."""
        self._came.set()

    def lapsed(self, delivery: Delivery) -> None:
        """A delivery was dropped before it ran."""
        self._put_off.discard(delivery)
        if delivery is self.probe:
            self.probe = None
            self.circuit.lapse()
            self._turned.set()

    def _opened(self, now: float, error: BaseException) -> None:
        self._fresh.extend(self._halt())
        self._turned.set()
        inner = opened(error)
        log.warning(
            "what a handler calls is down; its lane rests, and tries again from time to time",
            group=self._group,
            handler=self._handler,
            error=f"{type(inner).__name__}: {inner}"[:200],
            pause=round(self.circuit.until - now, 1),
        )

    def _closed(self, now: float) -> None:
        rest = [*self._tried, *self._fresh]
        self._tried.clear()
        self._fresh.clear()
        self._put_off.clear()
        self.wanted, self._patient = 0, False
        log.info(
            "what a handler calls is back; its lane goes on",
            group=self._group,
            handler=self._handler,
            down=round(now - self.circuit.since, 1),
            probes_failed=self.circuit.probes,
        )
        self._resume(rest)

    def _unload(self) -> None:
        rest = list(self._fresh)
        self._fresh.clear()
        while len(self._tried) >= TRIED_KEPT:
            rest.append(self._tried.popleft())
        self._put_off.difference_update(rest)  # an outage may last for days, and these are others' now
        self._hand_back(rest)

    async def run(self) -> None:
        """Probe whenever it is time, until cancelled."""
        while True:
            while not self.blocked:
                self._turned = trio.Event()
                await self._turned.wait()
            await trio.sleep_until(self.circuit.until)
            probe = await self._choose()
            if not self.circuit.probe(trio.current_time()):
                raise AssertionError(f"{self.circuit!r} when a probe was due")
            self.probe, probe.look = probe, True  # so that its end is told, whatever it is
            self._turned = trio.Event()
            self._resume([probe])
            await self._turned.wait()

    async def _choose(self) -> Delivery:
        while not self._fresh:
            self._came = trio.Event()
            self.wanted = 1
            self._on_room()
            with trio.move_on_after(FRESH_SECONDS):  # then a suspect may be free to run that had to wait for another
                await self._came.wait()
            self.wanted = 0
            if self._fresh:
                break
            suspect = self._suspect()
            if suspect is not None and (not self._tried or self._suspects_turn):
                self._suspects_turn = False
                return suspect
            if self._tried:
                self._suspects_turn = True
                return self._tried.popleft()
        return self._fresh.popleft()

    def stop(self) -> list[Delivery]:
        """What is held and not running; after this nothing is."""
        rest = [*self._tried, *self._fresh]
        self._tried.clear()
        self._fresh.clear()
        return rest

    def __repr__(self) -> str:
        return (
            f"<Breaking {self._group}/{self._handler} {self.circuit!r}, {len(self._fresh)} + {len(self._tried)} held>"
        )
