"""Running handlers. One Lane per handler: a queue of deliveries and `concurrency` slots that work it off.

Theory of operation. A slot is a task that lives as long as the worker and takes deliveries from the lane's queue, one
after another. A handler that never waits runs the whole queue in one slot without a single switch of tasks; one that
waits for something lets the other slots in. So the number of tasks is fixed and nothing is created per event: no task,
no channel, no cancel scope, no thread hop, no log line.

A delivery whose previous owner died is a suspect and goes through the quarantine, see there. An event that kills its
worker counts exactly its own deaths, and its 499 neighbours none.
"""

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import trio

from canvasbus import clock
from canvasbus.consume.breaking import TRIED_KEPT, Breaking
from canvasbus.consume.delivery import Delivery
from canvasbus.consume.handlers import Handler
from canvasbus.consume.inbox import DUPLICATE, TWIN_SECONDS, NotRun
from canvasbus.consume.invoke import for_above, invoker
from canvasbus.consume.middleware import Middleware
from canvasbus.consume.outcomes import Outcomes
from canvasbus.consume.policy import BatchFailure, HandlerTimeout, Outcome, Raised, RetryLater, next_window, word_of
from canvasbus.consume.quarantine import Quarantine
from canvasbus.consume.watchdog import Slot, Watchdog
from canvasbus.contract.event import set_correlation
from canvasbus.log import get_logger
from canvasbus.wire.codec import Codec
from canvasbus.wire.traceparent import set_current as set_trace
from canvasbus.wire.traceparent import sound

HELD_LIMIT = 2000
"""Deliveries that one lane may hold at most, waiting retries not included."""

WAITING_LIMIT = 1000
"""Deliveries of one lane that may wait for a retry; at the bound the lane stops reading."""

CONFLICT_SECONDS = 0.02
"""A run whose state was changed by another process runs again within so long."""

_BREATHE = 0.005  # seconds of uninterrupted handling after which other tasks get their turn

log = get_logger("canvasbus.worker")


class Lane:
    """The deliveries of one handler in one process."""

    def __init__(
        self,
        handler: Handler,
        group: str,
        codec: Codec,
        *,
        on_room: Callable[[], None],
        hand_back: Callable[[list[Delivery]], None],
        quarantine: trio.Lock,
        random: Random | None = None,
        resources: Any = None,
        middleware: Sequence[Middleware] = (),
    ) -> None:
        self.handler = handler
        self.group = group
        self._random = random or Random()
        self._outcomes = Outcomes(handler, group, codec, self._random)
        self.statistics = self._outcomes.statistics
        self.watchdog = Watchdog(handler, group, self.statistics)
        self._least = max(handler.concurrency, handler.batch.max_size if handler.batch else 1)
        self.window = self._least
        """How many deliveries may be held now."""
        self.held = 0
        """Deliveries read and not yet settled, waiting retries not included."""
        self._on_room = on_room
        self._hand_back = hand_back
        self.breaking: Breaking | None = None
        """What holds its deliveries while its circuit is open; None: it has none."""
        if handler.breaker is not None:
            self.breaking = Breaking(
                handler.breaker,
                handler.name,
                group,
                self.statistics,
                self._random,
                halt=self._halt,
                resume=self._resume,
                suspect=lambda: self.quarantine.probe,
                hand_back=self._unload,
                on_room=on_room,
            )
        self.watchdog.on_late = self._late
        self.quarantine = Quarantine(
            handler.batch.max_size if handler.batch else handler.concurrency,
            quarantine,
            self.breaking,
            start=self._start_suspects,
            run_alone=self._run_suspect,
            on_room=on_room,
        )
        self._queue: deque[Delivery] = deque()
        self._waiting: list[tuple[float, int, Delivery]] = []
        self._order = itertools.count()
        self._lot = trio.lowlevel.ParkingLot()
        self._timer = trio.Event()
        self._stopping = False
        self._quiet = trio.Event()
        self.inbox = self._outcomes.inbox
        self._call = invoker(handler, group, resources, middleware)
        if self.inbox is not None and handler.batch is None:
            self._call = self.inbox.around(self._call)
        # The shortest way for the most frequent kind of handler: async, with the event alone.
        bare = handler.is_async and not handler.wants_context and not middleware and self.inbox is None
        self._bare = handler.function if bare else None
        self._window_from = 0.0
        self._window_left = 0

    @property
    def running(self) -> int:
        """Handlers that run now."""
        return self.watchdog.running

    # --- what the subscription sees ------------------------------------------------------------------------------

    @property
    def free(self) -> int:
        """How many more deliveries may be read now."""
        if self._stopping or len(self._waiting) >= WAITING_LIMIT:
            return 0
        if self.breaking is not None and self.breaking.blocked:
            return self.breaking.wanted
        return self.window - self.held + self.quarantine.waiting  # those keep no slot from anybody

    @property
    def least(self) -> int:
        """A lane with less room is not read for: a read of one or two entries costs as much as one of 500."""
        return 1 if self.blocked else self.window // 4

    @property
    def blocked(self) -> bool:
        """Its circuit is open: nothing but a probe runs."""
        return self.breaking is not None and self.breaking.blocked

    @property
    def waiting(self) -> int:
        """Deliveries that wait for a retry."""
        return len(self._waiting)

    @property
    def next_retry(self) -> float:
        """When the first of them runs again, on trio's clock; inf: none waits."""
        return self._waiting[0][0] if self._waiting else math.inf

    def feed(self, deliveries: list[Delivery]) -> None:
        """Take deliveries, suspects to the quarantine."""
        if self._stopping:  # taken or audited while the others were handed back
            self._hand_back(deliveries)
            return
        self.held += len(deliveries)
        for delivery in deliveries:
            if delivery.suspect and delivery.error is None:
                self.quarantine.add(delivery)
                if self.breaking is not None:
                    self.breaking.stir()
            elif self.breaking is not None and self.breaking.blocked and delivery.error is None:
                self.breaking.keep(delivery)
            else:
                self._queue.append(delivery)
        if self._queue:
            self._lot.unpark(count=min(len(self._queue), len(self._lot)))

    def feed_fresh(self, deliveries: list[Delivery]) -> None:
        """Take deliveries that were just read and never failed."""
        if self.blocked or self._stopping:
            self.feed(deliveries)
            return
        self.held += len(deliveries)
        if self._window_left <= 0 and self.held * 4 >= self.window * 3:
            self._window_from, self._window_left = clock.monotonic(), self.held
        self._queue.extend(deliveries)
        self._lot.unpark(count=min(len(deliveries), len(self._lot)))

    def lost(self, delivery: Delivery) -> None:
        """Take a delivery whose entry is gone from its stream: it is told and acknowledged, nothing more can be done."""
        self.held += 1
        self._outcomes.lost(delivery)

    def settled(self, count: int) -> None:
        """`count` deliveries are done as far as the server is concerned."""
        self.held -= count
        if self._window_left > 0:
            self._window_left -= count
            if self._window_left <= 0:
                took = clock.monotonic() - self._window_from
                self.window = next_window(self.window, self._least, max(self._least, HELD_LIMIT), took)
        self._on_room()
        self._check_quiet()

    # --- tasks ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """All tasks of the lane, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._start_runs(nursery)
            nursery.start_soon(self.watchdog.run)
            nursery.start_soon(self._run_timer)
            nursery.start_soon(self.quarantine.run)
            if self.breaking is not None:
                nursery.start_soon(self.breaking.run)

    def _start_runs(self, nursery: trio.Nursery) -> None:
        for _ in range(self.handler.concurrency):
            slot = Slot()
            self.watchdog.slots.append(slot)
            nursery.start_soon(self._run_slot, slot)

    async def _run_slot(self, slot: Slot) -> None:
        while True:
            left_open = False
            try:
                with slot.scope:
                    await self._work(slot)
            except RuntimeError as error:
                # A handler entered a cancel scope and did not leave it (a dropped async generator does that); once that
                # is cancelled it cancels whatever runs here. Leaving ours ends it, and trio says so.
                if "scope stack corrupted" not in str(error):
                    raise
                left_open = True
                log.error("a handler left a cancel scope open", group=self.group, handler=self.handler.name)
            delivery, slot.delivery = slot.delivery, None
            cut, slot.scope, slot.cut = slot.cut, trio.CancelScope(), False
            if delivery is not None:
                late = cut or not left_open  # else another run's scope cut this one short
                self._ended(delivery, Raised(self._timed_out() if late else RetryLater(0)))

    async def _work(self, slot: Slot) -> None:
        queue, lot, watchdog = self._queue, self._lot, self.watchdog
        call, bare = self._call, self._bare
        statistics = self.statistics
        monotonic = clock.current().monotonic
        trace = None
        set_trace(trace)
        while True:
            watchdog.work.set()
            now = turn = monotonic()
            while queue:
                delivery = queue.popleft()
                event = delivery.event
                if (event is None or delivery.envelope.expires_on is not None) and self._skip(delivery):  # type: ignore[union-attr]
                    continue
                slot.started = now
                slot.delivery = delivery
                set_correlation(event.correlation_id)  # type: ignore[union-attr]
                if delivery.envelope.traceparent is not trace:  # type: ignore[union-attr]
                    trace = delivery.envelope.traceparent  # type: ignore[union-attr]
                    set_trace(sound(trace))
                try:
                    result = await (bare(event) if bare else call(event, delivery))
                except BaseException as error:
                    if above := for_above(error):
                        raise above
                    slot.delivery = None
                    self._ended(delivery, Raised(error))
                else:
                    slot.delivery = None
                    if result is None and not delivery.look and delivery.run is None:
                        statistics.handled += 1
                        topic = delivery.topic
                        acks = topic.acks
                        acks.append((delivery.entry_id, delivery.fields))
                        if len(acks) == 1:
                            topic.settler.poke()
                    else:
                        self._ended(delivery, None, result)
                now = monotonic()
                if slot.cut:
                    return
                if now - turn > _BREATHE:
                    await trio.lowlevel.checkpoint()
                    watchdog.work.set()
                    now = turn = monotonic()
            self._check_quiet()
            await lot.park()

    def _skip(self, delivery: Delivery) -> bool:
        """Deliveries that no handler sees: unreadable ones and stale ones."""
        if delivery.error is not None:
            self._ended(delivery, Raised(delivery.error))
            return True
        envelope = delivery.envelope
        if envelope is not None and envelope.expires_on is not None and envelope.expires_on < clock.time():
            self.statistics.expired += 1
            self._outcomes.done(delivery)
            if delivery.suspect:
                self.quarantine.ended(delivery)
            if self.breaking is not None:
                self.breaking.lapsed(delivery)
            return True
        return False

    def _timed_out(self) -> HandlerTimeout:
        self.statistics.timeouts += 1
        return HandlerTimeout(f"{self.handler.name} ran longer than its timeout of {self.handler.timeout:g} s")

    async def _run_timer(self) -> None:
        """Brings waiting retries back when they are due."""
        while True:
            if not self._waiting:
                self._timer = trio.Event()
                await self._timer.wait()
                continue
            due = self._waiting[0][0] - trio.current_time()
            if due > 0:
                self._timer = trio.Event()
                with trio.move_on_after(due):
                    await self._timer.wait()
                continue
            if self._stopping:
                return
            delivery = heapq.heappop(self._waiting)[2]
            self.feed([delivery])
            self._on_room()

    def _start_suspects(self, deliveries: list[Delivery]) -> None:
        """Run suspects side by side, in the slots."""
        if self._stopping:  # since their attempts were sent
            for delivery in deliveries:
                self._put_down(delivery)
            return
        for delivery in deliveries:
            if self.blocked:  # since a moment ago
                self.quarantine.ended(delivery)
                self.quarantine.add(delivery)
            else:
                self._queue.append(delivery)
        self._lot.unpark(count=min(len(self._queue), len(self._lot)))

    async def _run_suspect(self, delivery: Delivery) -> None:
        if delivery.deadly:
            if self.breaking is not None:
                self.breaking.lapsed(delivery)
            self._outcomes.bury(delivery, "lost_workers", RuntimeError("every worker that ran this event died"))
            return
        await delivery.topic.settler.write_ahead(delivery, delivery.failures + 1).wait()
        if self._stopping:  # since that was sent; handing back takes it back
            self._put_down(delivery)
            return
        await self._run_alone(delivery)

    async def _run_alone(self, delivery: Delivery) -> None:
        """Run one delivery outside the slots (quarantine, and what a batch handler could not do together)."""
        if self._skip(delivery):
            return
        assert delivery.event is not None
        set_correlation(delivery.event.correlation_id)
        set_trace(sound(delivery.envelope.traceparent))  # type: ignore[union-attr]
        try:
            with self.watchdog.outside([delivery]) as slot:
                result = await self._call_one(delivery)
            if slot.scope.cancelled_caught:
                self._ended(delivery, Raised(self._timed_out()))
            else:
                self._ended(delivery, None, result)
        except BaseException as error:
            if above := for_above(error):
                raise above
            word = word_of(error)
            self._ended(delivery, Raised(word.failures.get(0, error) if isinstance(word, BatchFailure) else error))
        finally:
            self._check_quiet()

    async def _call_one(self, delivery: Delivery) -> Any:
        return await self._call(delivery.event, delivery)

    def _ended(self, delivery: Delivery, outcome: Outcome | None, result: Any = None) -> None:
        self.watchdog.late.discard(delivery)  # its next run has a time of its own
        if isinstance(result, NotRun):
            self._not_run(delivery, result)
            return
        if delivery.suspect:
            self.quarantine.ended(delivery)
        spared = self.breaking is not None and self.breaking.ended(delivery, outcome)
        after = self._outcomes.ended(delivery, outcome, result, spared=spared)
        if after is not None:
            delivery.extended = 0.0
            delivery.runs += 1
            if spared and not self._stopping:
                self._set_aside(delivery)
                return
            self._wait(delivery, after)

    def _wait(self, delivery: Delivery, after: float) -> None:
        self.held -= 1
        heapq.heappush(self._waiting, (trio.current_time() + after, next(self._order), delivery))
        self._timer.set()
        self._on_room()
        self._check_quiet()

    def _not_run(self, delivery: Delivery, why: NotRun) -> None:
        """Its event was handled, or is in hand, under another entry."""
        if delivery.suspect:
            self.quarantine.ended(delivery)
        if self.breaking is not None:
            self.breaking.lapsed(delivery)
        if why is DUPLICATE:
            self.statistics.duplicates += 1
            self._outcomes.done(delivery)
            return
        if delivery.suspect:  # its attempt was written before it began
            delivery.topic.settler.note_failures(delivery, delivery.failures)
        if self.blocked:  # it can be no probe, and back so soon it would be one before all others, for ever
            self._set_aside(delivery)
        else:
            self._wait(delivery, TWIN_SECONDS)

    # --- while the circuit is open -------------------------------------------------------------------------------

    def _set_aside(self, delivery: Delivery, *, tried: bool = True) -> None:
        if self._stopping:  # nobody would take it up again, and the worker would wait for it
            self._put_down(delivery)
        elif delivery.suspect:
            self.quarantine.ended(delivery)  # out of a batch that failed, it counts as running
            self.quarantine.add(delivery)
        else:
            assert self.breaking is not None
            self.breaking.keep(delivery, tried=tried)

    def _put_down(self, delivery: Delivery) -> None:
        """Hand it back: the worker leaves, and the run has not begun."""
        self.held -= 1
        self._hand_back([delivery])
        self._check_quiet()

    def _halt(self) -> list[Delivery]:
        """Leave in the queue what no handler sees anyway."""
        waiting = list(self._queue)
        self._queue.clear()
        self._queue.extend([delivery for delivery in waiting if delivery.error is not None])
        for delivery in waiting:
            if delivery.suspect and delivery.error is None:
                self.quarantine.ended(delivery)
                self.quarantine.add(delivery)
        return [delivery for delivery in waiting if delivery.error is None and not delivery.suspect]

    def _resume(self, deliveries: list[Delivery]) -> None:
        self._queue.extend([delivery for delivery in deliveries if not delivery.suspect])  # those wait in their lane
        self._lot.unpark(count=min(len(self._queue), len(self._lot)))
        self.quarantine.stir()
        self._on_room()

    def _late(self, delivery: Delivery) -> None:
        if delivery.run is not None:
            delivery.run.late()
        self.quarantine.late(delivery)
        if self.breaking is not None:
            self.breaking.late(delivery)

    def _unload(self, deliveries: list[Delivery]) -> None:
        deliveries += self.quarantine.stop(keep=TRIED_KEPT)
        self.held -= len(deliveries)
        self._hand_back(deliveries)

    def overtaken(self, delivery: Delivery) -> None:
        """A state that the run rested on has changed: it runs again, soon, and no attempt is counted."""
        self._ended(delivery, Raised(RetryLater(self._random.uniform(0.0, CONFLICT_SECONDS))))

    def refused(self, delivery: Delivery, error: Exception) -> None:
        """The server will not take what the handler returned: the run has failed."""
        self._ended(delivery, Raised(error))

    # --- leaving -------------------------------------------------------------------------------------------------

    def stop(self) -> list[Delivery]:
        """Start nothing new. Returns the deliveries that no handler has begun, which are to be handed back."""
        self._stopping = True
        kept = self.breaking.stop() if self.breaking is not None else []
        kept += self.quarantine.stop()
        rest = [*self._queue, *kept, *(item[2] for item in self._waiting)]
        self.held -= len(self._queue) + len(kept)
        self._queue.clear()
        self._waiting.clear()
        self._lot.unpark_all()
        self._check_quiet()
        return rest

    @property
    def put_off(self) -> list[Delivery]:
        """Deliveries that wait for a retry: after `stop`, those whose run has ended since."""
        return [item[2] for item in self._waiting]

    async def wait_quiet(self) -> None:
        """Return when, after `stop`, no handler runs any more and every outcome is settled."""
        await self._quiet.wait()

    def _check_quiet(self) -> None:
        if self._stopping and self.running == 0 and self.held <= 0:
            self._quiet.set()

    def __repr__(self) -> str:
        return (
            f"<Lane {self.group}/{self.handler.name} {self.running} running, {len(self._queue)} queued, "
            f"{len(self._waiting)} waiting, {self.held}/{self.window} held>"
        )
