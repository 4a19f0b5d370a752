"""What follows from a run: the verdict on what a handler did goes to the settler, told with all that people need.

Nothing here waits or talks to the server. A verdict that is not final comes back to the lane as seconds to wait.
"""

import math
import traceback
from dataclasses import dataclass
from random import Random
from typing import Any

from canvasbus import clock, ids
from canvasbus.consume.changes import Changes
from canvasbus.consume.delivery import Delivery
from canvasbus.consume.handlers import Handler
from canvasbus.consume.inbox import Inbox
from canvasbus.consume.invoke import for_above
from canvasbus.consume.policy import Ack, DeadLetter, Outcome, Park, Raised, Retry, Returned, decide
from canvasbus.consume.timers import Cancel, Later
from canvasbus.contract.bus_events import BusLoss, HandlerFailed
from canvasbus.contract.event import Event
from canvasbus.contract.globs import OWN_TYPES
from canvasbus.log import get_logger
from canvasbus.wire import later
from canvasbus.wire.codec import Codec
from canvasbus.wire.deadletter import DeadLetterRecord
from canvasbus.wire.keys import version_pool
from canvasbus.wire.outgoing import Outgoing

log = get_logger("canvasbus.worker")

Returnable = Event | Later | Cancel
"""What a handler may return, or an iterable of it."""


@dataclass(slots=True)
class LaneStatistics:
    """Counters of one handler since its worker joined; one that was taken for dead and joins again counts from 0."""

    handled: int = 0
    """Deliveries whose handler returned."""
    failed: int = 0
    """Runs that raised, timeouts included."""
    timeouts: int = 0
    retries: int = 0
    """Deliveries sent into a wait."""
    spared: int = 0
    """Runs that failed while the circuit was open; they cost no attempt."""
    dead: int = 0
    """Deliveries given up."""
    parked: int = 0
    """Events of a newer version, left to workers that know it."""
    expired: int = 0
    """Events that were stale when they came; skipped."""
    duplicates: int = 0
    """Events that the group had handled under another entry (`dedupe=`): not run, or run and not committed."""


class Outcomes:
    """Judges the runs of one handler."""

    def __init__(self, handler: Handler, group: str, codec: Codec, random: Random) -> None:
        self.statistics = LaneStatistics()
        self.inbox = Inbox(group, handler.dedupe) if handler.dedupe else None
        """The marks of its events; None: they have none."""
        self._handler = handler
        self._group = group
        self._codec = codec
        self._own = Codec(group, limit=1 << 62)  # a dead letter's announcement must not fail for its size
        self._random = random
        self._tell_again: dict[tuple[str, int], float] = {}

    def done(self, delivery: Delivery) -> None:
        """Nothing follows from it: acknowledge."""
        delivery.topic.acks.append((delivery.entry_id, delivery.fields))
        delivery.topic.settler.poke()

    def ended(
        self, delivery: Delivery, outcome: Outcome | None, result: Any = None, *, spared: bool = False
    ) -> float | None:
        """Judge a run: an outcome, or what the handler returned. `spared`: a failure costs no attempt. Returns after how
        many seconds it should run again; None: it is settled."""
        outgoing: list[Outgoing] = []
        run, changes = delivery.run, None
        delivery.run = None
        if outcome is None:
            try:
                returned = _returned(self._handler, result)
                outgoing, changes = self._derive(delivery, returned)
                if run is not None:
                    changes = run.finish(changes)
                outcome = Returned()
            except BaseException as error:  # what it returned may be a generator, with anything in it
                if above := for_above(error):
                    raise above
                outcome = Raised(error)
        if run is not None:
            run.drop()
        try:
            verdict = decide(
                outcome,
                delivery.failures,
                self._handler.retry,
                self._random,
                overdue=delivery.overdue or delivery.error is None,  # what the handler could not read is something else
                spared=spared,
            )
        except Exception as error:  # an exception class of the handler's own that lacks what its base has
            outcome = Raised(error)
            verdict = decide(outcome, delivery.failures, self._handler.retry, self._random)
        match verdict:
            case Ack():
                self.statistics.handled += 1
                if self.inbox is not None:
                    changes = self.inbox.mark(delivery, changes)
                if outgoing or delivery.look or changes:
                    delivery.topic.settler.commit(delivery, outgoing, changes)
                else:
                    self.done(delivery)
            case Retry(after, failures):
                assert isinstance(outcome, Raised)
                if failures > delivery.failures:
                    self.statistics.failed += 1
                    delivery.first_failure = delivery.first_failure or clock.now()
                    delivery.failures = failures
                    delivery.topic.settler.note_failures(delivery, failures)
                    log.warning(
                        "a handler failed; the event waits for another attempt",
                        group=self._group,
                        handler=self._handler.name,
                        event_type=delivery.topic.event_type,
                        entry_id=delivery.entry_id.decode(),
                        attempt=failures,
                        of=self._handler.retry.for_error(outcome.error).attempts,
                        wait=round(after, 3),
                        error=_said(outcome.error),
                    )
                elif delivery.suspect:  # its attempt was written before it began
                    delivery.topic.settler.note_failures(delivery, failures)
                if spared:
                    self.statistics.spared += 1
                else:
                    self.statistics.retries += 1
                return after
            case DeadLetter(reason):
                assert isinstance(outcome, Raised)
                self.bury(delivery, reason, outcome.error)
            case Park():
                self._park(delivery)
        return None

    def _park(self, delivery: Delivery) -> None:
        envelope = delivery.envelope
        assert envelope is not None
        self.statistics.parked += 1
        now = clock.monotonic()
        if now >= self._tell_again.get((envelope.type, envelope.version), -math.inf):
            self._tell_again[envelope.type, envelope.version] = now + 60
            log.warning(
                "events of a newer version than this worker knows are parked for newer workers",
                group=self._group,
                event_type=envelope.type,
                version=envelope.version,
            )
        pool = version_pool(envelope.type, envelope.version, suspects=delivery.suspect)
        delivery.topic.settler.park(delivery, pool)

    def lost(self, delivery: Delivery) -> None:
        """Its body was trimmed before it was handled: acknowledge, and publish `bus.loss`."""
        topic, entry_id = delivery.topic, delivery.entry_id.decode()
        loss = BusLoss(
            topic=topic.event_type,
            group=self._group,
            reason="entry_trimmed",
            detail=f"entry {entry_id} was trimmed before group {self._group} had handled it",
            lost=1,
        )
        loss_id = ids.derived(ids.foreign(topic.event_type, entry_id), self._group, "bus.loss", 0)
        topic.settler.lose(delivery, self._own.encode(loss, event_id=loss_id))

    def _derive(self, delivery: Delivery, returned: tuple[Returnable, ...]) -> tuple[list[Outgoing], Changes | None]:
        """The events that a handler returned, encoded, and the timers."""
        parent = delivery.envelope
        assert parent is not None
        keys, group, traceparent = delivery.topic.settler.keys, self._group, delivery.traceparent
        outgoing: list[Outgoing] = []
        changes: Changes | None = None
        for index, item in enumerate(returned):
            if item is delivery.event:
                raise TypeError(
                    f"{self._handler.name} returned the event that it was given, which would come to it again for ever: return "
                    "another, or None"
                )
            if isinstance(item, Cancel):
                changes = changes or Changes()
                changes.cancel_timer(keys, f"{group}\n{item.timer}")
                continue
            encoded = self._codec.encode(
                item.event if isinstance(item, Later) else item,
                event_id=ids.derived(parent.id, group, self._handler.name, index),
                causation_id=parent.id,
                traceparent=traceparent,
            )
            if isinstance(item, Later):
                changes = changes or Changes()
                timer = f"{group}\n{item.timer}" if item.timer is not None else encoded.id.hex
                changes.start_timer(keys, timer, item.due, later.body(encoded.type, encoded.data))
            else:
                outgoing.append(encoded)
        return outgoing, changes

    def bury(self, delivery: Delivery, reason: str, error: BaseException) -> None:
        """Give it up: a dead letter, and handler.failed for the others."""
        unread = delivery.error is not None
        attempts = delivery.failures + (0 if unread or reason == "lost_workers" else 1)
        now = clock.now()
        self.statistics.dead += 1
        if not unread:
            self.statistics.failed += 1
        envelope = delivery.envelope
        record = DeadLetterRecord(
            group=self._group,
            event_type=delivery.topic.event_type,
            entry_id=delivery.entry_id.decode(),
            event_id=str(envelope.id) if envelope else None,
            handler="" if unread else self._handler.name,
            reason=reason,
            error=_said(error),
            traceback="" if unread else _traced(error),
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
                group=self._group,
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
                    event_id=ids.derived(parent, self._group, "handler.failed", 0),
                    causation_id=envelope.id if envelope else None,
                    traceparent=delivery.traceparent,
                )
            ]
        log.error(
            "an event was given up; see `canvasbus dlq show`",
            group=self._group,
            handler=record.handler,
            event_type=record.event_type,
            entry_id=record.entry_id,
            reason=reason,
            error=record.error,
            attempts=attempts,
        )
        unmark = self.inbox.unmark(delivery) if self.inbox is not None else None
        delivery.topic.settler.bury(delivery, record, announced, unmark)


def _returned(handler: Handler, result: Any) -> tuple[Returnable, ...]:
    if result is None:
        return ()
    if isinstance(result, Event | Later | Cancel):
        return (result,)
    try:
        items = tuple(result)
    except TypeError:
        raise TypeError(_wanted(handler, type(result).__qualname__)) from None
    for item in items:
        if not isinstance(item, Event | Later | Cancel):
            raise TypeError(_wanted(handler, f"{type(result).__qualname__} with a {type(item).__qualname__} in it"))
    return items


def _wanted(handler: Handler, got: str) -> str:
    return f"{handler.name} returned a {got}: return an event, Later, Cancel, an iterable of those, or None"


_ON_TRIO = (
    " (async handlers run on trio: use asyncio libraries in a plain def handler, which has a thread, by asyncio.run, or by "
    "trio_asyncio)"
)


def _said(error: BaseException) -> str:
    within = ""
    while isinstance(error, BaseExceptionGroup):  # out of a nursery: what is wrong is in it
        within = within or f", first of {len(error.exceptions)} in the {type(error).__name__}"
        error = error.exceptions[0]
    try:
        text = str(error)
    except Exception:  # a user's class: whatever its __str__ raises, the failure is still told
        text = "(its text cannot be had: __str__ raises)"
    if isinstance(error, RuntimeError) and text == "no running event loop":
        text += _ON_TRIO
    return _plain(f"{type(error).__name__}: {text}"[:500] + within)


def _traced(error: BaseException) -> str:
    try:
        text = "".join(traceback.format_exception(error))
    except Exception as failure:  # a group of groups of groups
        text = f"(the traceback cannot be had: {type(failure).__name__})"
    return _plain(text[-8000:])


def _plain(text: str) -> str:
    """The text without lone surrogates, which file names bring along and UTF-8 cannot carry."""
    return text.encode("utf-8", "backslashreplace").decode()
