"""The buffer of a Producer with a spool: the log on disk is the truth, memory a part of it that need not be read back.

Every event is written down before `add` returns, then kept in memory while there is room for it. The sender takes the
numbers of a partition one after the other, from memory where it finds them there, else from the log. Where the log
cannot be written (no room, no right, a broken disk) events live in memory alone, as without a spool, and it is tried
again once a second.

Before a batch is sent the log says so (`note`), and afterwards that it is settled. What a dead process left is adopted
(see `adoption`) before anything of one's own is sent: its last batch is sent by whoever has its fence
(FencedSender.suspect), the rest as if it were one's own.

Somebody may remove the folder under a living process (a cleaner of temporary files, an admin): what is written then goes
into a file without a name. So the sender looks once a second, while anything waits, whether the files are still there
(`tend`), makes them anew and writes down again what memory has of them. What was on disk alone is lost, and counted.

The lock is held while a record is written, which takes a microsecond or two, and never while one is read, a file is
deleted, or what a dead process left is looked at; all that is done by the sender's thread. While it makes a file anew, a
tenth of a second for 8 MiB, publishers wait.

A signal handler or a `__del__` that publishes while its own thread is in here would come between an event's number and
its record. Its event is laid aside and written down when the lock is free, by the next to come.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, repeat
from pathlib import Path
from typing import Final, Literal

from canvasbus import clock
from canvasbus.errors import BufferFull, ConfigError, Unavailable
from canvasbus.produce import adoption, spoolfolder
from canvasbus.produce.adoption import Adoption
from canvasbus.produce.buffer import BATCH_EVENTS, Buffer, WhenFull
from canvasbus.produce.spool import (
    EVENT,
    HEAD_BYTES,
    RESTING_BYTES,
    SEGMENT_BYTES,
    Segment,
    Sending,
    encode_event,
    frame,
)
from canvasbus.produce.spoolfile import Damaged, Log, Whose, discard
from canvasbus.produce.spoolfolder import Folder
from canvasbus.wire.outgoing import Outgoing

RETRY_SECONDS: Final = 1.0
"""How often a log that cannot be written is tried again, and how often is looked whether its files are still there."""


@dataclass(slots=True)
class _Hand:
    """The batch that the sender has."""

    lane: int
    items: list[Outgoing]
    log: Log | None
    numbers: Sequence[int]
    unlogged: frozenset[int] = frozenset()
    """Those of the numbers that are not on disk."""
    settled: int = 0
    """How many of its events have been settled; what follows goes on as parts of it, in order."""

    def settle(self, count: int) -> tuple[int, int]:
        """The next `count` events are settled: the number behind the last of them, and how many of them are on disk."""
        numbers = self.numbers[self.settled : self.settled + count]
        self.settled += count
        return numbers[-1] + 1, count - sum(number in self.unlogged for number in numbers)


class SpooledBuffer(Buffer):
    """A Buffer that loses nothing when its process is killed."""

    def __init__(
        self,
        limit: int,
        when_full: WhenFull,
        max_block: float,
        lanes: int,
        rouse: Callable[[], bool],
        lament: Callable[..., None],
        *,
        root: Path,
        spool_bytes: int,
        namespace: str,
        server: str,
    ) -> None:
        self.root = root
        self.spool_bytes = spool_bytes
        segment = max(4096, min(SEGMENT_BYTES, spool_bytes // 8))
        resting = min(RESTING_BYTES, spool_bytes // (4 * lanes))
        self._whose = Whose(namespace, lanes, server, segment, resting)
        self._own: Folder | None = None
        self._logs: dict[int, Log] = {}
        self._adoption = Adoption(root, self._whose, lanes)
        super().__init__(limit, when_full, max_block, lanes, rouse, lament)
        self.keeps = str(root)
        self.note = self._note_sending
        try:
            if why := spoolfolder.is_usable(self.root):
                raise ConfigError(f"spool={self.keeps!r} {why}: name a folder that this process may write to")
            self._looked = not spoolfolder.folders(self.root)
        except OSError as error:
            self._failed(error)

    def begin(self) -> None:
        """Send what others left, without waiting for the first event."""
        if not self._looked:
            with self.lock:
                self._asleep = not self._rouse()

    def reset(self) -> None:
        # A forked child lets go of its copies of the parent's files: the lock stays the parent's until that ends.
        for log in self._all_logs():
            log.close()
        for folder in self._folders():
            folder.release()
        super().reset()
        if not self.closed:
            self._room = self.spool_bytes
        self._memory = self.limit - self._batch_bytes  # one batch may be read back into a full memory
        self._failing_until = 0.0
        self._trouble = self._trouble_text = ""
        self._late: deque[tuple[Outgoing, int]] = deque()
        self._looked = True
        self._next_tend = 0.0
        self.spool_errors = 0
        self.recovered = 0
        self.quarantined = 0
        self._forget()

    def _forget(self) -> None:
        self._own = None
        self._logs = {}
        self._adoption = Adoption(self.root, self._whose, len(self._lanes))
        self._cache: list[deque[tuple[int, Outgoing]]] = [deque() for _ in self._lanes]
        self._next = [0 for _ in self._lanes]
        self._taken = [0 for _ in self._lanes]
        self._unsent = [0 for _ in self._lanes]
        self._unlogged: set[tuple[int, int]] = set()
        """Lane and number of events that are in memory alone."""
        self._hand = _Hand(0, [], None, ())
        self.spool_bytes_used = 0

    def close(self, how: Literal["closed", "muted"]) -> None:
        super().close(how)
        if how == "closed":
            adoption.leaves(self, self._whose, self._folders)

    # --- publishers ----------------------------------------------------------------------------------------------

    def add(self, item: Outgoing, lane: int) -> None:
        payload = encode_event(item)
        if self.lock._is_owned():  # type: ignore[attr-defined]
            if not self.closed or self._make_room(item, len(item.data), lane):
                self._late.append((item, lane))
                self._rouse()
            return
        with self.lock:
            if self._late:
                self._put_late()
            kept = self._put(item, payload, lane)
            if self._asleep:
                self._asleep = not self._rouse()
        if not kept:
            self._lament("" if self.closed else f"{self._full()}: what is published now is dropped")
        if self._trouble:
            self._tell()

    def add_many(self, items: list[Outgoing], lane: int) -> None:
        payloads = list(map(encode_event, items))
        size = sum(map(len, payloads)) + HEAD_BYTES * len(items)
        if not self.lock._is_owned():  # type: ignore[attr-defined]
            with self.lock:
                if self._late:
                    self._put_late()
                if self.spool_bytes_used + size <= self._room and self._write(lane, payloads):
                    numbers = range(self._next[lane] - len(items), self._next[lane])
                    for number, item in zip(numbers, items, strict=True):
                        self._remember(number, item, lane)
                    if self._asleep:
                        self._asleep = not self._rouse()
                    return
        for item in items:
            self.add(item, lane)

    def _put(self, item: Outgoing, payload: bytes, lane: int) -> bool:
        """Accept an event. False: it was dropped."""
        size = len(payload) + HEAD_BYTES
        if self.spool_bytes_used + size > self._room and not self._make_room(item, size, lane):
            return False
        if self._write(lane, (payload,)):
            self._remember(self._next[lane] - 1, item, lane)
            return True
        size = len(item.data)
        if not self._fits(size) and not self._make_room(item, size, lane):
            return False
        number = self._next[lane]
        self._next[lane] = number + 1
        self._unsent[lane] += 1
        self._unlogged.add((lane, number))
        self.bytes += size
        self._cache[lane].append((number, item))
        return True

    def _put_late(self) -> None:
        while self._late:
            item, lane = self._late.popleft()
            unsent = self._unsent[lane]
            self._room = self.spool_bytes  # also when closed since: it was accepted before
            try:
                self._put(item, encode_event(item), lane)
            except BufferFull:  # whoever published it has been told that it is accepted
                self._turn_away(item)
            except BaseException:  # Ctrl-C
                if self._unsent[lane] == unsent:
                    self._late.appendleft((item, lane))
                raise
            finally:
                self._room = -1 if self.closed else self.spool_bytes

    def _write(self, lane: int, payloads: "list[bytes] | tuple[bytes]") -> bool:
        """Write events down under the next numbers. False: that is not possible now, and nothing is changed."""
        if self._failing_until and clock.monotonic() < self._failing_until:
            return False
        first, events = self._next[lane], len(payloads)
        self._next[lane] = first + events  # before the record is there: a number may be missing, never given twice
        self._unsent[lane] += events
        log, there = self._logs.get(lane), 0
        try:
            log = log or self._open(lane, first)
            there = log.ledger.events
            if events == 1:
                data = frame(EVENT, first, payloads[0])
            else:
                data = b"".join(map(frame, repeat(EVENT), count(first), payloads))
            before = log.ledger.bytes
            log.append(data, first, first + events - 1, events)
        except OSError as error:
            self._unsent[lane] -= events
            self._failed(error)
            return False
        except BaseException:  # Ctrl-C, in a notebook that goes on
            if log is None or log.ledger.events == there:
                self._unsent[lane] -= events
            raise
        self.spool_bytes_used += log.ledger.bytes - before
        self._failing_until = 0.0
        return True

    def _remember(self, number: int, item: Outgoing, lane: int) -> None:
        size = len(item.data)
        if self.bytes + size <= self._memory:
            self.bytes += size
            self._cache[lane].append((number, item))

    def _open(self, lane: int, first: int) -> Log:
        if self._own is None:
            self._own = spoolfolder.create(self.root)
        log = Log(self._own.path, lane, self._whose)
        log.ledger.settled = log.ledger.next = first
        self._logs[lane] = log
        return log

    def _fits(self, size: int) -> bool:
        if self._failing_until:
            return self.bytes + size <= self._memory
        return self.spool_bytes_used + size <= self._room

    def _full(self) -> str:
        if self._failing_until:
            return f"{self.bytes:,} bytes of events wait in memory, the limit is {self.limit:,}; {self._trouble_text}"
        return f"{self.spool_bytes_used:,} bytes are in the spool {self.keeps}, the limit is {self.spool_bytes:,}"

    def why_dropped(self) -> str:
        return f"dropped: {self._full()}"

    def _failed(self, error: OSError) -> None:
        self.spool_errors += 1
        self._failing_until = clock.monotonic() + RETRY_SECONDS
        self._trouble_text = f"the spool {self.keeps} cannot be used ({error.strerror or error})"
        self._trouble = f"{self._trouble_text}: events are kept in memory only"

    def _tell(self) -> None:
        trouble, self._trouble = self._trouble, ""
        if trouble:
            self._lament(trouble)

    # --- the sender ----------------------------------------------------------------------------------------------

    def take(self) -> tuple[int, list[Outgoing]] | None:
        """As the Buffer's. Raises Unavailable when the spool cannot be read, but may be later."""
        if self._adoption.due or not (self._looked or self._adoption.folders):
            self._adopt()
        self.tend()
        with self.lock:
            self._asleep = True
            self._put_late()
            turn = self._turn
        if self._trouble:
            self._tell()
        for step in self._lanes:
            lane = (turn + step) % len(self._lanes)
            items = self._take_adopted(lane) or (self._take_own(lane) if self._looked else [])
            if items:
                self._turn = lane + 1
                self._asleep = False
                return lane, items
        return None if self._looked else self.take()

    def _take_own(self, lane: int) -> list[Outgoing]:
        self.doubt = None
        while True:
            with self.lock:
                cache, start = self._cache[lane], self._taken[lane]
                if cache and cache[0][0] == start:
                    return self._take_cached(lane)
                until = cache[0][0] if cache else self._next[lane]
                log = self._logs.get(lane)
                if start == until:
                    if log is not None:
                        log.ledger.events -= self._unsent[lane]
                    self._write_off(lane, self._unsent[lane])
                    return []
            items, numbers = self._read(log, start, until) if log else ([], [])
            with self.lock:
                self._taken[lane] = numbers[-1] + 1 if numbers else until
                if items:
                    self._in_hands(_Hand(lane, items, log, numbers))
                    self.bytes += sum([len(item.data) for item in items])
                    return items

    def _take_cached(self, lane: int) -> list[Outgoing]:
        cache = self._cache[lane]
        items: list[Outgoing] = []
        size, start = 0, cache[0][0]
        end = start
        while cache and cache[0][0] == end and size < self._batch_bytes and len(items) < BATCH_EVENTS:
            items.append(cache.popleft()[1])
            size += len(items[-1].data)
            end += 1
        numbers = range(start, end)
        unlogged = self._unlogged.intersection(zip(repeat(lane), numbers)) if self._unlogged else ()
        self._unlogged.difference_update(unlogged)
        self._taken[lane] = end
        self._in_hands(_Hand(lane, items, self._logs.get(lane), numbers, frozenset(n for _, n in unlogged)))
        return items

    def _take_adopted(self, lane: int) -> list[Outgoing]:
        while logs := self._adoption.logs[lane]:
            log = logs[0]
            start, until, sending = log.taken, log.ledger.next, log.ledger.sending
            self.doubt = None
            if sending is not None and start < sending.start:
                until = sending.start
            elif sending is not None and start < sending.end:
                until, self.doubt = sending.end, sending
            items, numbers = self._read(log, start, until, whole=self.doubt is not None)
            log.taken = numbers[-1] + 1 if numbers else until
            if items:
                with self.lock:
                    self._in_hands(_Hand(lane, items, log, numbers))
                    self.bytes += sum([len(item.data) for item in items])
                return items
            if log.taken >= log.ledger.next:
                self._finish(log)
        return []

    def _read(self, log: Log, start: int, until: int, *, whole: bool = False) -> tuple[list[Outgoing], list[int]]:
        most, most_bytes = (1 << 62, 1 << 62) if whole else (BATCH_EVENTS, self._batch_bytes)
        while True:
            try:
                return log.read(start, until, most, most_bytes)
            except Damaged as damaged:
                if damaged.is_gone:
                    self._restore_all()
                    continue
                with self.lock:
                    self.quarantined += 1
                    try:
                        log.begin_anew(damaged)
                    except OSError as error:
                        self._failed(error)
                    self._trouble = f"the spool {self.keeps} is damaged: {damaged} of {log!r} cannot be read"
                self._tell()
            except OSError as error:
                with self.lock:
                    self.spool_errors += 1
                raise Unavailable(f"the spool {self.keeps} cannot be read now ({error.strerror})") from None

    def _in_hands(self, hand: _Hand) -> None:
        self._hand = hand
        self._in_hand[hand.lane] += len(hand.items)
        self._unsent[hand.lane] -= len(hand.items)

    def _write_off(self, lane: int, lost: int) -> None:
        """So many events that were on disk are not to be found."""
        if lost > 0:
            self.dropped += lost
            self._settled[lane] += lost
        self._unsent[lane] -= lost
        if lost:
            self._changed.notify_all()

    def _note_sending(self, part: Sequence[Outgoing], fence: str, cursors: Mapping[str, bytes]) -> None:
        """`part` of the batch in hand is about to be sent, in order. Some before its last may be refused: nobody was told yet,
        so whoever adopts this has to know of them, too."""
        hand = self._hand
        ids = [item.raw_id for item in hand.items]
        first = ids.index(part[0].raw_id, hand.settled)
        last, at = part[-1].raw_id, first - 1
        for _ in range(sum([item.raw_id == last for item in part])):  # published twice under one key, it has one id
            at = ids.index(last, at + 1)
        numbers = hand.numbers[hand.settled : at + 1]
        if hand.log is None or hand.unlogged.issuperset(numbers):
            return
        with self.lock:
            try:
                hand.log.note_sending(Sending(numbers[0], numbers[-1] + 1, fence, dict(cursors)))
            except OSError as error:
                self._failed(error)

    def settle(
        self, lane: int, items: Sequence[Outgoing], *, stored: int = 0, refused: int = 0, unknown: int = 0
    ) -> None:
        hand = self._hand
        log, files = hand.log, []
        with self.lock:
            end, logged = hand.settle(len(items))
            if log is not None:
                files = log.settle(end, logged)
                if log.error is not None:
                    self._failed(log.error)
                self._measure()
            super().settle(lane, items, stored=stored, refused=refused, unknown=unknown)
        for file in files:
            discard(file)
        whole = hand.settled == len(hand.items)  # else the rest of the batch is still to be sent
        if whole and log is not None and log in self._adoption.folders and log.taken >= log.ledger.next:
            self._finish(log)

    def _measure(self) -> None:
        self.spool_bytes_used = sum(log.ledger.bytes for log in self._all_logs())

    def _all_logs(self) -> list[Log]:
        return [*self._logs.values(), *self._adoption.folders]

    def _folders(self) -> list[Folder]:
        return [*([self._own] if self._own else []), *dict.fromkeys(self._adoption.folders.values())]

    # --- what somebody removed -----------------------------------------------------------------------------------

    def tend(self) -> None:
        if clock.monotonic() >= self._next_tend and self.waiting:
            self._restore_all()

    def _restore_all(self) -> None:
        """Make anew what was removed of the files, the folder and its lock included."""
        self._next_tend = clock.monotonic() + RETRY_SECONDS
        with self.lock:
            folders = self._folders()
            files = [(log, each, each.size) for log in self._all_logs() for each in log.ledger.segments]
        for folder in folders:
            try:
                folder.keep()
            except OSError as error:
                with self.lock:
                    self._failed(error)
        gone = [(log, segment) for log, segment, size in files if log.is_gone(segment, size)]
        if gone:
            lost = sum(self._restore(log, segment) for log, segment in gone)
            with self.lock:
                self.spool_errors += 1
                self._measure()
                bare = len(self._unlogged) + len(
                    self._hand.unlogged.intersection(self._hand.numbers[self._hand.settled :])
                )
            if lost:
                less = f"{lost:,} events that were on disk alone are lost"
            elif bare:
                less = (
                    f"{self._trouble_text}: {bare:,} events are in memory only now, and lost when this process ends before the "
                    "server has them"
                )
            else:
                less = "no event is lost by that, all are in memory"
            self._lament(f"somebody removed files of the spool {self.keeps}; {less}: keep cleaners away from it", True)

    def _restore(self, log: Log, segment: Segment) -> int:
        """Write down again what memory has of a file that is gone. Returns how many events are lost with it."""
        hand, lane = self._hand, log.partition
        with self.lock:
            held: dict[int, Outgoing] = {}
            if hand.log is log:
                held = dict(zip(hand.numbers[hand.settled :], hand.items[hand.settled :], strict=True))
            cache = self._cache[lane] if self._logs.get(lane) is log else ()
            # Those that were never written down go into the last file as well: it was perhaps for the lack of its folder.
            last = self._next[lane] if segment is log.ledger.segments[-1] else segment.last
            found = [each for each in (*held.items(), *cache) if segment.first <= each[0] <= last]
            in_hand = {number for number, _ in found if number in held}
            waiting = {(lane, number) for number, _ in found if number not in held}
            unlogged = len(hand.unlogged & in_hand) + len(self._unlogged & waiting)
            lost = max(0, log.ledger.unsettled(segment) - len(found) + unlogged)
            try:
                log.restore(segment, [(number, encode_event(item)) for number, item in found])
                hand.unlogged -= in_hand
                self._unlogged -= waiting
                self._failing_until, self._trouble = 0.0, ""
            except OSError as error:
                self._failed(error)
                hand.unlogged |= in_hand
                self._unlogged |= waiting
            self._write_off(lane, lost)
        return lost

    # --- what others left ----------------------------------------------------------------------------------------

    def _adopt(self) -> None:
        for folder, left in self._adoption.look(self._cannot_adopt):
            with self.lock:
                self.recovered += self._adoption.add(folder, left)
                for log in left.logs:
                    self._unsent[log.partition] += log.ledger.events
                self.quarantined += left.damaged
                self._trouble = left.trouble or self._trouble
                self._measure()
        with self.lock:
            self._looked = self._adoption.complete
            self._changed.notify_all()
        if (path := self._adoption.waits_for) is not None:
            raise Unavailable(f"{path} is still in the hands of a Producer that was closed a moment ago")

    def _cannot_adopt(self, path: Path, error: OSError) -> None:
        with self.lock:
            self.spool_errors += 1
            self._trouble = f"what is in the spool {path} cannot be adopted ({error.strerror}); it stays there"

    def _finish(self, log: Log) -> None:
        """All of an adopted log is settled, but for what was not to be found."""
        with self.lock:
            self._write_off(log.partition, log.ledger.events)
            folder = self._adoption.remove(log)
            self._measure()
        log.delete()
        if folder is not None:
            folder.remove()

    def kept(self) -> int:
        with self.lock:
            files = [
                (log, each, each.size, log.ledger.unsettled(each))
                for log in self._all_logs()
                for each in log.ledger.segments
            ]
        return sum(events for log, segment, size, events in files if events and not log.is_gone(segment, size))

    def leave(self) -> tuple[list[bytes], list[bytes]]:
        lost: list[bytes] = []
        unknown: list[Outgoing] = []
        if self.waiting and not self.lock._is_owned():  # type: ignore[attr-defined]
            self._restore_all()  # what is left to the next Producer must be there
        with self.lock:
            self._put_late()
            self.dropped += len(self._unlogged)
            for lane, cache in enumerate(self._cache):
                lost += [item.raw_id for number, item in cache if (lane, number) in self._unlogged]
            for lane, _ in self._unlogged:
                self._unsent[lane] -= 1
                self._settled[lane] += 1
            self._unlogged.clear()
            hand = self._hand
            if self._in_hand[hand.lane]:  # what is not on disk may be on the server, and nobody will ever look
                rest = zip(hand.items[hand.settled :], hand.numbers[hand.settled :], strict=True)
                unknown = [item for item, number in rest if number in hand.unlogged]
                super().settle(hand.lane, unknown, unknown=len(unknown))
            for log in self._all_logs():
                log.close()
            if self._own is not None and all(log.ledger.done() for log in self._logs.values()):
                for log in self._logs.values():
                    log.delete()
                self._logs = {}
                self._own.remove()
            for folder in self._folders():
                folder.release()
            adoption.left(self)
            self._measure()
            if not self.closed:  # the sender's thread ended by a fault: the next one adopts what this one had
                self.recovered -= sum(log.ledger.events for log in self._all_logs())  # which is no news then
                self._in_hand = [0 for _ in self._lanes]
                self.bytes = 0
                self._forget()
                self._looked = False
        return lost, [item.raw_id for item in unknown]

    # --- watchers ------------------------------------------------------------------------------------------------

    def _queued(self, lane: int) -> int:
        return self._unsent[lane]

    def wait_settled(self, timeout: float) -> bool:
        # What a signal handler has interrupted is in the midst of a step, and goes on only after the handler: to wait here
        # would give the lock away, and the sender would take the event that is being written for one that is lost.
        if self.lock._is_owned():  # type: ignore[attr-defined]
            return False
        started = clock.monotonic()
        with self.lock:
            if self._asleep and not self._looked:  # the sender's thread ended by a fault
                self._asleep = not self._rouse()
            if not self._wait_for(lambda: self._looked, timeout):
                return False
            if self._late:
                self._put_late()
            return super().wait_settled(max(0.0, timeout - (clock.monotonic() - started)))

    @property
    def published(self) -> int:
        return super().published - self.recovered

    def spool_statistics(self) -> dict[str, int]:
        return {
            "spool_events": sum(log.ledger.events for log in self._all_logs()),
            "spool_bytes": self.spool_bytes_used,
            "spool_errors": self.spool_errors,
            "recovered": max(0, self.recovered),
            "quarantined": self.quarantined,
        }
