"""Publishing from trio: gathers what many tasks publish into fenced batches.

Every publish appends to the batch that is being gathered and waits for that batch; a sender task per partition takes
what has gathered, so batches grow by themselves while the server is busy and 256 tasks cost two round trips.
Events of single publishes are encoded when their batch goes out, together; an event is immutable, so that changes
nothing. `publish_many` encodes the next chunk while the previous ones are at the server.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import islice

import trio

from canvasbus.checks import check_function
from canvasbus.contract.event import Event
from canvasbus.errors import BufferFull, CanvasbusError, ContractError, TransportError, Unavailable
from canvasbus.produce.buffer import BATCH_BYTES, BATCH_EVENTS, BUFFER_BYTES
from canvasbus.produce.fenced import Result
from canvasbus.produce.once import Dedupe, PartitionSender
from canvasbus.transport.link import Link
from canvasbus.transport.server import Server
from canvasbus.wire.codec import Codec, expiry
from canvasbus.wire.keys import LATER_INBOX, Keys, partition_of
from canvasbus.wire.outgoing import Alike, Outgoing, sizes_of
from canvasbus.wire.traceparent import current as current_trace

GATHER_EVENTS = 128
"""Single publishes in a batch, at most: while the server works on one half of many tasks, the other half encodes."""

_STORED = {bytes}
_current_task = trio.lowlevel.current_task
_sleep = trio.lowlevel.wait_task_rescheduled
_wake = trio.lowlevel.reschedule
_NOT_OPEN = "this bus has not been entered: publish inside `async with EventBus(...) as bus:`"
_CLOSED = "the bus is closed: nothing more can be published on it"
_GIVEN_UP = "the bus was closed before the server had the event"


def _let_go(_: object) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.SUCCEEDED


class _Batch:
    """Events that go out together, and the tasks that wait for them. (A trio.Event for each would cost 1 µs more.)"""

    __slots__ = ("bytes", "gathered", "items", "marked", "results", "waiting")

    def __init__(self, items: Sequence[Outgoing] | None = None) -> None:
        self.gathered: list[Outgoing | Event] = []
        """Of single publishes, one by one. Events are encoded together, when the batch goes out: half the price."""
        self.items: Sequence[Outgoing | Event] = self.gathered if items is None else items
        self.bytes = 0
        """Of the items; those that are not encoded yet count as what the last ones had."""
        self.marked = False
        """Some of them are to be stored once. (Looking through all batches for that would cost 20 ns an event.)"""
        self.results: Sequence[bytes | Exception] = ()
        """Filled when the fate of the batch is known."""
        self.waiting: list[trio.lowlevel.Task] = []

    async def wait(self) -> None:
        """Return when `results` is filled."""
        if not self.results:
            await _sleep(self.sleeper())

    def sleeper(self) -> Callable[[object], trio.lowlevel.Abort]:
        """Note that the current task waits, which it does with `await _sleep(…)` of what this returns."""
        task = _current_task()
        task.custom_sleep_data = self  # trio makes it None when a task is woken, so also when its wait is cancelled
        self.waiting.append(task)
        return _let_go

    def unwrap(self) -> None:
        """What a woken task gets from trio is this batch: an Outcome for each, which is used once, would cost 0.2 µs."""

    def done(self, results: Sequence[bytes | Exception]) -> None:
        self.results = results
        waiting, self.waiting = self.waiting, []
        for task in waiting:
            if task.custom_sleep_data is self:
                _wake(task, self)


@dataclass(frozen=True, slots=True)
class PublisherStatistics:
    """A moment's picture of a Publisher."""

    published: int
    """Events that the server has."""
    failed: int
    """Events that were refused or whose fate is unknown; their publishers were told."""
    batches: int
    """Batches that the server has."""
    waiting_bytes: int
    """Encoded bytes that wait for the server now."""
    duplicates: int = 0
    """Of the `published`: those that were there already (dedupe), so that nothing was stored."""
    skipped: int = 0
    """Events that were published while the bus is switched off (off://)."""


class _Lane:
    """The queue of one partition."""

    def __init__(self, server: Server, keys: Keys, replicated: bool, partitions: int, dedupe: Dedupe) -> None:
        self.link = Link(server)
        self.sender = PartitionSender(keys, replicated=replicated, partitions=partitions, dedupe=dedupe)
        self.sealed: deque[_Batch] = deque()
        self.gathering = _Batch()
        self.work = trio.Event()

    def add(self, item: Outgoing | Event, size: int) -> tuple[_Batch, int]:
        batch = self.gathering
        items = batch.gathered
        index = len(items)
        items.append(item)
        batch.bytes += size
        if index + 1 >= GATHER_EVENTS or batch.bytes >= BATCH_BYTES:
            self.sealed.append(batch)
            self.gathering = _Batch()
        if index == 0:  # with an earlier one of this batch it was told already
            self.work.set()
        return batch, index

    def add_batch(self, items: Sequence[Outgoing]) -> _Batch:
        if self.gathering.items:  # order is kept
            self.sealed.append(self.gathering)
            self.gathering = _Batch()
        batch = _Batch(items)
        batch.bytes = sum(sizes_of(items))
        batch.marked = items[0].once  # all or none: it is one publish_many
        self.sealed.append(batch)
        self.work.set()
        return batch

    def following(self) -> Sequence[Outgoing] | None:
        """What goes out next, if it can be begun along with what goes out now: it is encoded, and bears no marks."""
        batch = self.sealed[0] if self.sealed else None
        if batch is None or batch.marked or batch.bytes > BATCH_BYTES or batch.items is batch.gathered:
            return None
        return batch.items  # type: ignore[return-value]  # only what is gathered one by one may still be events

    def next(self) -> _Batch | None:
        if self.sealed:
            return self.sealed.popleft()
        if self.gathering.items:
            batch, self.gathering = self.gathering, _Batch()
            return batch
        return None


class Publisher:
    """Sends events of one source. `run` must run in a nursery meanwhile."""

    def __init__(
        self,
        server: Server,
        codec: Codec,
        *,
        namespace: str = "canvasbus",
        partitions: int = 1,
        buffer_bytes: int = BUFFER_BYTES,
        patience: float | None = None,
        replicated: bool = False,
        dedupe: Dedupe = Dedupe(),  # noqa: B008  frozen
    ) -> None:
        self.codec = codec
        self._partitions = partitions
        self._lanes = [_Lane(server, Keys(namespace, p), replicated, partitions, dedupe) for p in range(partitions)]
        self._limit = buffer_bytes
        self._patience = patience
        self._bytes = 0
        self._typical = 256
        """Bytes that an event counts for which is not encoded yet."""
        self._room = trio.Event()
        self._failed = 0
        self._closed: Callable[[], CanvasbusError] | None = partial(ContractError, _NOT_OPEN)
        """Makes what publishing raises; None while it is open."""

    def open(self) -> None:
        """Take events from now on; `run` must follow."""
        self._closed = None

    async def publish(self, event: Event) -> str:
        """Encode, send, and return the entry id once the server has the event.

        Raises EncodeError (nothing was sent), Refused, or Unavailable when `patience` is set and used up. Cancelled
        while waiting: the event may still be stored.
        """
        if self._bytes >= self._limit:
            await self._wait_for_room()
        trace = current_trace()  # here: the sender's task has another context
        if trace is not None or self._partitions > 1:  # which one it is only encoding tells
            batch, index = self._add(self.codec.encode(event, traceparent=trace))
        elif self._closed is not None:
            raise self._closed()
        else:
            size = self._typical
            self._bytes += size
            batch, index = self._lanes[0].add(event, size)
        # As `_result` and `_Batch.wait`, whose coroutines would cost one in ten of these calls.
        if not batch.results:
            await _sleep(batch.sleeper())
        result = batch.results[index]
        if isinstance(result, bytes):
            return result.decode()
        raise result

    async def publish_for(
        self, event: Event, expires_in: float | None, delay: float | None, at: datetime | None, dedupe_key: str | None
    ) -> str:
        """The same for an event that goes stale after a time, comes later, for which the timer's name is returned, or
        is stored once."""
        return await self.put(self.codec.encode_for(event, expires_in, delay, at, dedupe_key, current_trace()))

    async def put(self, item: Outgoing) -> str:
        """The same for an event that is encoded."""
        if self._bytes >= self._limit:
            await self._wait_for_room()
        entry_id = await _result(*self._add(item))
        # A mark knows whether what it stands for came later; that may be another try than this one.
        return f"~{entry_id}" if item.type == LATER_INBOX and not entry_id.startswith("~") else entry_id

    async def publish_many(
        self,
        events: Iterable[Event],
        expires_in: float | None = None,
        dedupe_key: Callable[[Event], str] | None = None,
    ) -> list[str]:
        """Publish events in order and return their entry ids. An event with an error stops no other: when at least one
        failed, an ExceptionGroup of the errors is raised after all were tried (for a single event its error itself). What
        `events` raises itself goes on to the caller, after all that it had yielded were tried. When the bus is closed
        meanwhile no more is taken of `events`."""
        rest = iter(events)
        on_their_way: deque[list[tuple[_Batch, slice]]] = deque()
        entry_ids: list[str] = []
        errors: list[Exception] = []
        broken: Exception | None = None
        and_then = ""
        expiry(expires_in)  # what is no time fails before anything is sent
        if dedupe_key is not None:
            check_function("publish_many: dedupe_key", dedupe_key)
        trace = current_trace()
        each = None if expires_in is None and dedupe_key is None else self._each(expires_in, dedupe_key, trace)

        async def take(most: int) -> None:
            """Wait until at most so many chunks are on their way. What has arrived is let go of: there may be millions."""
            while len(on_their_way) > most:
                for batch, where in on_their_way.popleft():
                    await batch.wait()
                    results = batch.results[where]
                    if set(map(type, results)) == _STORED:
                        entry_ids.extend(map(bytes.decode, results))  # type: ignore[arg-type]
                        continue
                    errors.extend([result for result in results if isinstance(result, Exception)])
                    entry_ids.extend([result.decode() for result in results if isinstance(result, bytes)])

        while broken is None:
            chunk: list[Outgoing | Event] = []
            try:
                chunk.extend(islice(rest, BATCH_EVENTS))
            except Exception as error:
                broken = error  # what it had yielded before is in the list
            if not chunk:
                break
            bad, encoded = self._encode(chunk, each, trace)
            errors += [error for error in bad if error is not None]
            await trio.lowlevel.checkpoint()  # a chunk that is ready goes on its way now
            await take(2)  # one that the server has, one that is begun, one that is begun next
            if self._bytes >= self._limit:
                await self._wait_for_room()
            if encoded and self._closed is not None:
                if not (entry_ids or errors or on_their_way):
                    raise self._closed()
                errors += [self._closed() for _ in encoded]
                and_then = "; what follows them was not tried: the bus was closed"
                break
            if encoded:
                on_their_way.append(self._add_many(encoded))
        await take(0)
        if broken is not None:
            raise broken
        if not errors:
            return entry_ids
        total = len(entry_ids) + len(errors)
        if total == 1:
            raise errors[0]
        raise ExceptionGroup(f"{len(errors)} of {total} events were not published{and_then}", errors)

    def publish_nowait(
        self,
        event: Event,
        expires_in: float | None = None,
        delay: float | None = None,
        at: datetime | None = None,
        dedupe_key: str | None = None,
    ) -> None:
        """Hand the event over and return at once. Raises BufferFull when `buffer_bytes` are waiting already.

        A failure later on is counted in `statistics().failed`.
        """
        self.put_nowait(self.codec.encode_for(event, expires_in, delay, at, dedupe_key, current_trace()))

    def put_nowait(self, item: Outgoing) -> None:
        """The same for an event that is encoded."""
        if self._bytes + len(item.data) > self._limit:
            raise BufferFull(
                f"{self._bytes:,} bytes of events wait for the server, the limit is {self._limit:,}: "
                "await publish() instead, or raise buffer_bytes"
            )
        self._add(item)

    def _add(self, item: Outgoing) -> tuple[_Batch, int]:
        if self._closed is not None:
            raise self._closed()
        size = len(item.data)
        self._bytes += size
        batch, index = self._lanes[partition_of(item.key, self._partitions)].add(item, size)
        batch.marked |= item.once
        return batch, index

    def _add_many(self, items: Sequence[Outgoing]) -> list[tuple[_Batch, slice]]:
        """Queue a chunk while the bus is open; returns where its results will be, in order."""
        if self._partitions > 1:
            placed = [self._add(item) for item in items]
            return [(batch, slice(index, index + 1)) for batch, index in placed]
        batch = self._lanes[0].add_batch(items)
        self._bytes += batch.bytes
        return [(batch, slice(None))]

    async def _wait_for_room(self) -> None:
        while self._bytes >= self._limit:
            await self._room.wait()

    def _tell_of_room(self) -> None:
        room, self._room = self._room, trio.Event()
        room.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """The senders, one for each partition. Returns after `close`, once everything queued has been tried."""
        async with trio.open_nursery() as nursery:
            for lane in self._lanes:
                nursery.start_soon(self._send, lane)
            task_status.started()

    async def _send(self, lane: _Lane) -> None:
        batch: _Batch | None = None
        errors: list[Exception | None] = []
        sent: list[Result] = []
        try:
            while True:
                errors, sent = [], []
                batch = lane.next()
                if batch is None:
                    if self._closed:
                        return
                    lane.work = trio.Event()
                    await lane.work.wait()
                    continue
                errors, outgoing = self._encode(batch.items)
                if outgoing and outgoing is not batch.items:
                    self._typical = sum(sizes_of(outgoing)) // len(outgoing)
                for part in (parts := _parts(outgoing)):
                    following = lane.following() if part is parts[-1] and not batch.marked else None
                    for run in lane.sender.runs(part) if batch.marked else [part]:
                        try:
                            sent += await lane.link.run(
                                lane.sender.send(run, patience=self._patience, following=following)
                            )
                        except TransportError as error:
                            if lane.sender.unsure_of(run):
                                error = Unavailable(f"{error}; the event may be stored all the same", ambiguous=True)
                            sent += [error] * len(run)
                            self._failed += len(run)
                self._done(batch, errors, sent)
        finally:
            self.close()
            if batch is not None and not batch.results:
                why = Unavailable(f"{_GIVEN_UP}; it may be stored all the same", ambiguous=True)
                rest = len(batch.items) - len(sent) - sum(error is not None for error in errors)
                self._failed += rest
                self._done(batch, errors, [*sent, *[why] * rest])
            self._give_up(lane)
            with trio.CancelScope(shield=True):
                await lane.link.aclose()

    def _done(self, batch: _Batch, errors: list[Exception | None], sent: list[Result]) -> None:
        self._bytes -= batch.bytes
        batch.done(_merged(errors, sent) if errors else sent)
        self._tell_of_room()

    def _give_up(self, lane: _Lane) -> None:
        """Tell whoever waits that nobody sends any more."""
        while (left := lane.next()) is not None:
            self._failed += len(left.items)
            self._done(left, [], [Unavailable(_GIVEN_UP)] * len(left.items))

    def _each(
        self, expires_in: float | None, dedupe_key: Callable[[Event], str] | None, trace: str | None
    ) -> Callable[[Event], Outgoing]:
        """What encodes one of many."""

        def encode(event: Event) -> Outgoing:
            key = None if dedupe_key is None else dedupe_key(event)
            return self.codec.encode_for(event, expires_in, dedupe_key=key, traceparent=trace)

        return encode

    def _encode(
        self,
        items: Sequence[Outgoing | Event],
        each: Callable[[Event], Outgoing] | None = None,
        trace: str | None = None,
    ) -> tuple[list[Exception | None], Sequence[Outgoing]]:
        """Encode what is not encoded yet, by `each` if that is given, else as events of this trace. When some cannot be: an
        error or None for each item, else an empty list."""
        kinds = {Outgoing} if isinstance(items, Alike) else set(map(type, items))
        if kinds == {Outgoing}:
            return [], items  # type: ignore[return-value]
        events: Sequence[Event] = items  # type: ignore[assignment]
        if Outgoing in kinds:  # (asking each for its class, a Struct's, takes 150 ns)
            events = [item for item in items if not isinstance(item, Outgoing)]
        encoded = None
        if each is None:
            try:
                encoded = self.codec.encode_many(events, trace)
            except Exception:  # one by one: those that can be published are, and each bad one gets its own error
                pass
        if encoded is not None:
            if len(events) == len(items):
                return [], encoded
            rest = iter(encoded)
            return [], [item if isinstance(item, Outgoing) else next(rest) for item in items]
        errors: list[Exception | None] = []
        outgoing: list[Outgoing] = []
        each = each or partial(self.codec.encode, traceparent=trace)
        for item in items:
            try:
                outgoing.append(item if isinstance(item, Outgoing) else each(item))
                errors.append(None)
            except Exception as error:
                errors.append(error)
        return errors, outgoing

    def close(self) -> None:
        """Take no more events; `run` sends what is queued and returns."""
        self._closed = partial(BufferFull, _CLOSED)
        for lane in self._lanes:
            lane.work.set()

    def statistics(self) -> PublisherStatistics:
        return PublisherStatistics(
            published=sum(lane.sender.statistics.events for lane in self._lanes),
            failed=self._failed + sum(lane.sender.statistics.lost for lane in self._lanes),
            batches=sum(lane.sender.statistics.batches for lane in self._lanes),
            waiting_bytes=self._bytes,
            duplicates=sum(lane.sender.statistics.duplicates for lane in self._lanes),
        )

    def __repr__(self) -> str:
        return f"<Publisher {self.statistics()}>"


async def _result(batch: _Batch, index: int) -> str:
    await batch.wait()
    result = batch.results[index]
    if isinstance(result, bytes):
        return result.decode()
    raise result


def _parts(items: Sequence[Outgoing]) -> Sequence[Sequence[Outgoing]]:
    """The items in pieces of at most 1 MiB and one event."""
    if sum(sizes_of(items)) <= BATCH_BYTES:
        return [items] if items else []
    parts: list[list[Outgoing]] = []
    size = BATCH_BYTES
    for item in items:
        if size >= BATCH_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(item)
        size += len(item.data)
    return parts


def _merged(errors: list[Exception | None], sent: list[Result]) -> list[bytes | Exception]:
    rest = iter(sent)
    return [error or next(rest) for error in errors]
