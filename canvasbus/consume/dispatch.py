"""Running handlers. One Lane per handler: a queue of deliveries and `concurrency` slots that work it off.

Theory of operation. A slot is a task that lives as long as the worker and takes deliveries from the lane's queue, one
after another. A handler that never waits runs the whole queue in one slot without a single switch of tasks; one that
waits for something lets the other slots in. So the number of tasks is fixed and nothing is created per event: no task,
no channel, no cancel scope, no thread hop, no log line.

Timeouts without a scope per event: every slot has one scope that stays open, and one watchdog per lane cancels the
scope of a slot whose handler has run too long. All runs of a lane have the same timeout, so the earliest start is
always the next deadline and the watchdog sleeps until exactly then.

A plain function runs in a thread of trio's pool. Python cannot stop a thread, so its timeout is only counted and
logged: the slot stays taken until the function returns, and what it returns then is its outcome.

A delivery whose previous owner died is a suspect and goes through the quarantine: one at a time in this process, its
attempt written to the server just before the handler starts. An event that kills its worker thus counts exactly its
own deaths, and its 499 neighbours none.
"""

import heapq
import itertools
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import trio

from canvasbus import clock, ids
from canvasbus.consume.context import Context
from canvasbus.consume.delivery import Delivery
from canvasbus.consume.handlers import Handler
from canvasbus.consume.policy import (
    Ack,
    BatchFailure,
    DeadLetter,
    HandlerTimeout,
    Outcome,
    Raised,
    Retry,
    Returned,
    decide,
    next_window,
)
from canvasbus.contract.bus_events import OWN_TYPES, HandlerFailed
from canvasbus.contract.event import Event, set_correlation
from canvasbus.log import get_logger
from canvasbus.wire.codec import Codec, Outgoing
from canvasbus.wire.deadletter import DeadLetterRecord

HELD_LIMIT = 2000
"""Deliveries that one lane may hold at most, waiting retries not included."""

WAITING_LIMIT = 1000
"""Deliveries of one lane that may wait for a retry; at the bound the lane stops reading."""

_BREATHE = 0.005  # seconds of uninterrupted handling after which other tasks get their turn

log = get_logger("canvasbus.worker")


@dataclass(slots=True)
class LaneStatistics:
    """Counters of one handler since its worker started."""

    handled: int = 0
    """Deliveries whose handler returned."""
    failed: int = 0
    """Runs that raised, timeouts included."""
    timeouts: int = 0
    retries: int = 0
    """Deliveries sent into a wait."""
    dead: int = 0
    """Deliveries given up."""
    expired: int = 0
    """Events that were stale when they came; skipped."""
    durations: list[int] = field(default_factory=lambda: [0] * 40)
    """Runs by duration: element i counts runs of less than 2^i microseconds (and at least 2^(i-1))."""


class _Slot:
    __slots__ = ("cut", "delivery", "scope", "started")

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.cut = False
        """The watchdog has cancelled the scope: it must be renewed even if the handler got away in time."""
        self.delivery: Delivery | None = None
        self.started = 0.0


class Lane:
    """The deliveries of one handler in one process."""

    def __init__(
        self,
        handler: Handler,
        group: str,
        codec: Codec,
        *,
        on_room: Callable[[], None],
        quarantine: trio.Lock,
        random: Random | None = None,
    ) -> None:
        self.handler = handler
        self.group = group
        self.statistics = LaneStatistics()
        self.window = min(HELD_LIMIT, max(handler.concurrency, handler.batch.max_size if handler.batch else 1))
        self.held = 0
        """Deliveries read and not yet settled, waiting retries not included."""
        self._outside = 0  # runs outside the slots: batches, suspects
        self._codec = codec
        self._own = Codec(group, limit=1 << 62)  # a dead letter's announcement must not fail for its size
        self._random = random or Random()
        self._on_room = on_room
        self._alone = quarantine
        self._queue: deque[Delivery] = deque()
        self._suspects: deque[Delivery] = deque()
        self._waiting: list[tuple[float, int, Delivery]] = []
        self._order = itertools.count()
        self._lot = trio.lowlevel.ParkingLot()
        self._watch = trio.Event()
        self._timer = trio.Event()
        self._suspect_came = trio.Event()
        self._slots: list[_Slot] = []
        self._stopping = False
        self._quiet = trio.Event()
        self._limiter = trio.CapacityLimiter(handler.concurrency + 1)
        self._call = _invoker(handler, self)
        # The shortest way for the most frequent kind of handler: async, with the event alone.
        self._bare = handler.function if handler.is_async and not handler.wants_context else None
        self._window_from = 0.0
        self._window_left = 0

    @property
    def running(self) -> int:
        """Handlers that run now."""
        return self._outside + sum([slot.delivery is not None for slot in self._slots])

    # --- what the subscription sees ------------------------------------------------------------------------------

    @property
    def free(self) -> int:
        """How many more deliveries may be read now."""
        if self._stopping or len(self._waiting) >= WAITING_LIMIT:
            return 0
        return self.window - self.held

    @property
    def waiting(self) -> int:
        """Deliveries that wait for a retry."""
        return len(self._waiting)

    @property
    def suspects(self) -> int:
        """Suspects in hand; the next ones are fetched when there are none."""
        return len(self._suspects)

    def feed(self, deliveries: list[Delivery]) -> None:
        """Take deliveries, suspects to the quarantine."""
        self.held += len(deliveries)
        for delivery in deliveries:
            if delivery.suspect and delivery.error is None:
                self._suspects.append(delivery)
                self._suspect_came.set()
            else:
                self._queue.append(delivery)
        if self._queue:
            self._lot.unpark(count=min(len(self._queue), len(self._lot)))

    def feed_fresh(self, deliveries: list[Delivery]) -> None:
        """Take deliveries that were just read and never failed."""
        self.held += len(deliveries)
        if self._window_left <= 0 and self.held * 4 >= self.window * 3:
            self._window_from, self._window_left = clock.monotonic(), self.held
        self._queue.extend(deliveries)
        self._lot.unpark(count=min(len(deliveries), len(self._lot)))

    def settled(self, count: int) -> None:
        """`count` deliveries are done as far as the server is concerned."""
        self.held -= count
        if self._window_left > 0:
            self._window_left -= count
            if self._window_left <= 0:
                self.window = next_window(
                    self.window, self.handler.concurrency, HELD_LIMIT, clock.monotonic() - self._window_from
                )
        self._on_room()
        self._check_quiet()

    # --- tasks ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """All tasks of the lane, until cancelled."""
        async with trio.open_nursery() as nursery:
            if self.handler.batch:
                nursery.start_soon(self._run_batches)
            else:
                for _ in range(self.handler.concurrency):
                    slot = _Slot()
                    self._slots.append(slot)
                    nursery.start_soon(self._run_slot, slot)
            nursery.start_soon(self._run_watchdog)
            nursery.start_soon(self._run_timer)
            nursery.start_soon(self._run_quarantine)

    async def _run_slot(self, slot: _Slot) -> None:
        while True:
            with slot.scope:
                await self._work(slot)
            delivery, slot.delivery = slot.delivery, None
            slot.scope, slot.cut = trio.CancelScope(), False
            if delivery is not None:
                self._ended(delivery, Raised(self._timed_out()))

    async def _work(self, slot: _Slot) -> None:
        queue, lot = self._queue, self._lot
        call, bare = self._call, self._bare
        statistics = self.statistics
        durations = statistics.durations
        monotonic = clock.current().monotonic
        while True:
            self._watch.set()
            now = turn = monotonic()
            while queue:
                delivery = queue.popleft()
                event = delivery.event
                if (event is None or delivery.envelope.expires_on is not None) and self._skip(delivery):  # type: ignore[union-attr]
                    continue
                slot.started = now
                slot.delivery = delivery
                set_correlation(event.correlation_id)  # type: ignore[union-attr]
                try:
                    result = await (bare(event) if bare else call(event, delivery))
                except BaseException as error:
                    if above := _for_above(error):
                        raise above
                    slot.delivery = None
                    self._ended(delivery, Raised(error))
                else:
                    slot.delivery = None
                    if result is None and not delivery.look:
                        statistics.handled += 1
                        topic = delivery.topic
                        acks = topic.acks
                        acks.append(delivery.entry_id)
                        if len(acks) == 1:
                            topic.settler.poke()
                    else:
                        self._ended(delivery, None, result)
                then, now = now, monotonic()
                durations[int((now - then) * 1e6).bit_length()] += 1
                if slot.cut:
                    return
                if now - turn > _BREATHE:
                    await trio.lowlevel.checkpoint()
                    self._watch.set()
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
            self._done(delivery)
            return True
        return False

    def _done(self, delivery: Delivery) -> None:
        delivery.topic.acks.append(delivery.entry_id)
        delivery.topic.settler.poke()

    def _timed_out(self) -> HandlerTimeout:
        self.statistics.timeouts += 1
        return HandlerTimeout(f"{self.handler.name} ran longer than its timeout of {self.handler.timeout:g} s")

    async def _run_watchdog(self) -> None:
        timeout = self.handler.timeout
        monotonic = clock.current().monotonic
        warned: set[int] = set()
        while True:
            started = [slot for slot in self._slots if slot.delivery is not None]
            if not started:
                warned.clear()
                self._watch = trio.Event()
                await self._watch.wait()
                continue
            now = monotonic()
            for slot in started:
                if now - slot.started >= timeout:
                    if self.handler.is_async:
                        slot.cut = True
                        slot.scope.cancel()
                    elif id(slot.delivery) not in warned:
                        warned.add(id(slot.delivery))
                        self.statistics.timeouts += 1
                        log.warning(
                            "a plain function runs longer than its timeout; a thread cannot be stopped",
                            group=self.group,
                            handler=self.handler.name,
                            timeout=timeout,
                        )
            due = [slot.started + timeout - now for slot in started if now - slot.started < timeout]
            await trio.sleep(max(min(due, default=timeout), 0.001))

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

    async def _run_quarantine(self) -> None:
        while True:
            while not self._suspects:
                self._on_room()
                self._suspect_came = trio.Event()
                await self._suspect_came.wait()
            async with self._alone:  # one in this process, over all lanes
                if not self._suspects:
                    continue
                delivery = self._suspects.popleft()
                if delivery.failures >= self.handler.retry.attempts:
                    self._bury(delivery, "lost_workers", RuntimeError("every worker that ran this event died"))
                    continue
                await delivery.topic.settler.write_attempt(delivery, delivery.failures + 1)
                await self._run_alone(delivery)

    async def _run_alone(self, delivery: Delivery) -> None:
        """Run one delivery outside the slots (quarantine, and what a batch handler could not do together)."""
        if self._skip(delivery):
            return
        assert delivery.event is not None
        set_correlation(delivery.event.correlation_id)
        self._outside += 1
        try:
            with trio.move_on_after(self.handler.timeout if self.handler.is_async else float("inf")) as scope:
                if self.handler.batch:
                    result = await self._call([delivery.event], [delivery])
                    result = [event for _, event in result or ()] or None
                else:
                    result = await self._call(delivery.event, delivery)
            if scope.cancelled_caught:
                self._ended(delivery, Raised(self._timed_out()))
            else:
                self._ended(delivery, None, result)
        except BaseException as error:
            if above := _for_above(error):
                raise above
            self._ended(delivery, Raised(error.failures.get(0, error) if isinstance(error, BatchFailure) else error))
        finally:
            self._outside -= 1
            self._check_quiet()

    # --- batches -------------------------------------------------------------------------------------------------

    async def _run_batches(self) -> None:
        options = self.handler.batch
        assert options is not None
        while True:
            batch: list[Delivery] = []
            while not self._queue:
                self._check_quiet()
                await self._lot.park()
            with trio.move_on_after(options.max_wait):
                while len(batch) < options.max_size:
                    while self._queue and len(batch) < options.max_size:
                        delivery = self._queue.popleft()
                        if not self._skip(delivery):
                            batch.append(delivery)
                    if len(batch) < options.max_size:
                        if self._stopping:
                            break
                        await self._lot.park()
            if batch:
                await self._run_batch(batch)

    async def _run_batch(self, batch: list[Delivery]) -> None:
        set_correlation(None)
        self._outside += 1
        started = clock.monotonic()
        try:
            with trio.move_on_after(self.handler.timeout if self.handler.is_async else float("inf")) as scope:
                result = await self._call([d.event for d in batch], batch)
            if scope.cancelled_caught:
                raise self._timed_out()
            failures: dict[int, Exception] = {}
        except BatchFailure as failure:
            result, failures = failure.events, failure.failures
        except BaseException as error:
            if above := _for_above(error):
                raise above
            log.info("a batch failed; its events run one by one", group=self.group, handler=self.handler.name)
            for delivery in batch:
                await self._run_alone(delivery)
            return
        finally:
            self._outside -= 1
        self.statistics.durations[int((clock.monotonic() - started) * 1e6).bit_length()] += 1
        derived: dict[int, list[Event]] = {}
        try:
            for position, event in result or ():
                if not 0 <= position < len(batch):
                    raise ValueError
                derived.setdefault(position, []).append(event)
        except (TypeError, ValueError):
            wrong = TypeError(
                f"{self.handler.name} must return an iterable of (position, event), with positions from 0 to "
                f"{len(batch) - 1}"
            )
            failures = dict.fromkeys(range(len(batch)), wrong)
        for index, delivery in enumerate(batch):
            if index in failures:
                self._ended(delivery, Raised(failures[index]))
            else:
                self._ended(delivery, None, derived.get(index))
        self._check_quiet()

    # --- outcomes ------------------------------------------------------------------------------------------------

    def _ended(self, delivery: Delivery, outcome: Outcome | None, result: Any = None) -> None:
        """Turn what a handler did into a verdict, and hand that to the settler."""
        outgoing: list[Outgoing] = []
        if outcome is None:
            try:
                outcome = Returned(_events(self.handler, result))
                outgoing = self._derive(delivery, outcome.events)
            except Exception as error:
                outcome = Raised(error)
        verdict = decide(outcome, delivery.failures, self.handler.retry, self._random)
        match verdict:
            case Ack():
                self.statistics.handled += 1
                if outgoing or delivery.look:
                    delivery.topic.settler.commit(delivery, outgoing)
                else:
                    self._done(delivery)
            case Retry(after, failures):
                assert isinstance(outcome, Raised)
                if failures > delivery.failures:
                    self.statistics.failed += 1
                    delivery.first_failure = delivery.first_failure or clock.now()
                    delivery.failures = failures
                    delivery.topic.settler.note_attempt(delivery, failures)
                    log.warning(
                        "a handler failed; the event waits for another attempt",
                        group=self.group,
                        handler=self.handler.name,
                        event_type=delivery.topic.event_type,
                        entry_id=delivery.entry_id.decode(),
                        attempt=failures,
                        of=self.handler.retry.attempts,
                        wait=round(after, 3),
                        error=_said(outcome.error),
                    )
                self.statistics.retries += 1
                self.held -= 1
                heapq.heappush(self._waiting, (trio.current_time() + after, next(self._order), delivery))
                self._timer.set()
                self._on_room()
            case DeadLetter(reason):
                assert isinstance(outcome, Raised)
                self._bury(delivery, reason, outcome.error)

    def _derive(self, delivery: Delivery, events: tuple[Event, ...]) -> list[Outgoing]:
        parent = delivery.envelope
        assert parent is not None
        return [
            self._codec.encode(
                event,
                event_id=ids.derived(parent.id, self.group, self.handler.name, index),
                causation_id=parent.id,
                traceparent=parent.traceparent,
            )
            for index, event in enumerate(events)
        ]

    def _bury(self, delivery: Delivery, reason: str, error: BaseException) -> None:
        unread = delivery.error is not None
        attempts = delivery.failures + (0 if unread or reason == "lost_workers" else 1)
        now = clock.now()
        self.statistics.dead += 1
        if not unread:
            self.statistics.failed += 1
        envelope = delivery.envelope
        record = DeadLetterRecord(
            group=self.group,
            event_type=delivery.topic.event_type,
            entry_id=delivery.entry_id.decode(),
            event_id=str(envelope.id) if envelope else None,
            handler="" if unread else self.handler.name,
            reason=reason,
            error=_said(error),
            traceback="" if unread else _plain("".join(traceback.format_exception(error))[-8000:]),
            attempts=attempts,
            first_failure=delivery.first_failure or now,
            last_failure=now,
            consumer=delivery.topic.settler.consumer,
            fields=tuple(delivery.fields),
        )
        announced: list[Outgoing] = []
        if delivery.topic.event_type not in OWN_TYPES:
            correlation = delivery.event.correlation_id if delivery.event else ids.uuid7()
            failed = HandlerFailed(
                correlation_id=correlation,
                group=self.group,
                handler=record.handler,
                event_type=record.event_type,
                entry_id=record.entry_id,
                event_id=envelope.id if envelope else None,
                reason=reason,
                error=record.error,
                attempts=attempts,
            )
            parent = envelope.id if envelope else ids.foreign(record.event_type, record.entry_id)
            announced = [
                self._own.encode(
                    failed,
                    event_id=ids.derived(parent, self.group, "handler.failed", 0),
                    causation_id=envelope.id if envelope else None,
                )
            ]
        log.error(
            "an event was given up; see `canvasbus dlq show`",
            group=self.group,
            handler=record.handler,
            event_type=record.event_type,
            entry_id=record.entry_id,
            reason=reason,
            error=record.error,
            attempts=attempts,
        )
        delivery.topic.settler.bury(delivery, record, announced)

    def refused(self, delivery: Delivery, error: Exception) -> None:
        """The server will not take what the handler returned: the run has failed."""
        self._ended(delivery, Raised(error))

    # --- leaving -------------------------------------------------------------------------------------------------

    def stop(self) -> list[Delivery]:
        """Start nothing new. Returns the deliveries that no handler has begun, which are to be handed back."""
        self._stopping = True
        rest = [*self._queue, *self._suspects, *(item[2] for item in self._waiting)]
        self.held -= len(self._queue) + len(self._suspects)
        self._queue.clear()
        self._suspects.clear()
        self._waiting.clear()
        if self.handler.batch:
            self._lot.unpark_all()
        self._check_quiet()
        return rest

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


_ABOVE = (trio.Cancelled, KeyboardInterrupt, GeneratorExit)


def _for_above(error: BaseException) -> BaseException | None:
    """What of an exception is not the handler's failure but meant for somebody above: cancellation and Ctrl-C. Out of
    a group only that part is passed on, so that a handler which fails while it is cancelled does not end the worker."""
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(_ABOVE)
    return error if isinstance(error, _ABOVE) else None


def _events(handler: Handler, result: Any) -> tuple[Event, ...]:
    if result is None:
        return ()
    if isinstance(result, Event):
        return (result,)
    try:
        events = tuple(result)
    except TypeError:
        events = (None,)
    for event in events:
        if not isinstance(event, Event):
            raise TypeError(
                f"{handler.name} returned {type(result).__qualname__}: return an event, an iterable of events, or None"
            )
    return events


def _said(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:
        text = "(its text cannot be had: __str__ raises)"
    return _plain(f"{type(error).__name__}: {text}"[:500])


def _plain(text: str) -> str:
    """The text without lone surrogates, which file names bring along and UTF-8 cannot carry."""
    return text.encode("utf-8", "backslashreplace").decode()


def _invoker(handler: Handler, lane: Lane) -> Callable[[Any, Any], Any]:
    """A coroutine function (event, delivery) → result; for a batch handler (events, deliveries)."""
    function = handler.function
    batch = handler.batch is not None

    def context(delivery: Any) -> Any:
        return [Context(d, lane) for d in delivery] if batch else Context(delivery, lane)

    if handler.is_async:
        if handler.wants_context:
            return lambda event, delivery: function(event, context(delivery))
        return lambda event, _delivery: function(event)
    limiter = lane._limiter

    def call(*args: Any) -> Any:
        result = function(*args)
        return list(result) if isinstance(result, Iterator) else result  # the body of a generator runs here too

    async def in_thread(event: Any, delivery: Any) -> Any:
        args = (event, context(delivery)) if handler.wants_context else (event,)
        return await trio.to_thread.run_sync(call, *args, abandon_on_cancel=True, limiter=limiter)

    return in_thread
