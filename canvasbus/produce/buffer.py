"""What waits for the server: bounded, thread-safe, and safe against the process being forked or interrupted.

One lock, re-entrant, because a signal handler or a `__del__` may publish while the very thread it interrupts is in here
(with a plain lock, or queue.Queue, that is a deadlock). Whatever a handler can interrupt is arranged so that the steps
before and after make sense on their own: numbers are changed in one step, with no call between reading and writing, and
a queue that was not empty a moment ago may be empty now. Nothing logs or does I/O while the lock is held.

Events in hand (taken by the sender, fate unknown) count towards the limit but can no longer be dropped, so a batch
takes a quarter of the buffer at most: while the server is away, "drop the oldest" must have something to drop.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from operator import ge
from typing import TYPE_CHECKING, Final, Literal
from uuid import UUID

from canvasbus.errors import BufferFull, CanvasbusError
from canvasbus.wire.outgoing import Outgoing

if TYPE_CHECKING:
    from canvasbus.produce.fenced import Note
    from canvasbus.produce.spool import Sending

OnDelivery = Callable[[UUID, CanvasbusError | None], object]
"""Called in the sender's thread with the event's id and None once the server has it, else why it is not there."""

WhenFull = Literal["drop_oldest", "block", "raise", "spool"]

BUFFER_BYTES: Final = 64 * 1024 * 1024
"""Encoded bytes that may wait for the server, by default."""
SPOOL_BYTES: Final = 1024 * 1024 * 1024
"""Bytes of events that may wait on disk, by default, where there is a spool."""
FOREVER: Final = 1e9
"""Seconds that whoever says math.inf waits: no lock takes that, or much more than this."""
BATCH_EVENTS: Final = 500
BATCH_BYTES: Final = 1024 * 1024

_CLOSED = "this Producer is closed: nothing more can be published on it; make a new one, or close it later"


class Buffer:
    """Queues of encoded events, one for each partition, under one limit."""

    keeps = ""
    """Where it stays what is left at the end; "": nowhere."""
    note: "Note | None" = None
    """What must be called before a batch is sent."""
    doubt: "Sending | None" = None
    """The batch that was taken last was on its way when its process died."""

    def __init__(
        self,
        limit: int,
        when_full: WhenFull,
        max_block: float,
        lanes: int,
        rouse: Callable[[], bool],
        lament: Callable[..., None],
    ) -> None:
        """`rouse` is called with the lock held when somebody must come and take, and says whether somebody will;
        `lament` without it, with what is to be told ("": an event was dropped because publishing is muted), and True where that cannot
        wait until something may be told again."""
        self.limit = limit
        self.when_full = when_full
        self.max_block = max_block
        self.keep_drops = False
        """The ids of dropped events are kept for whoever must be told (`take_drops`)."""
        self.closed: Literal["", "closed", "muted"] = ""
        self._rouse = rouse
        self._lament = lament
        self._lanes = range(lanes)
        self._batch_bytes = max(1, min(BATCH_BYTES, limit // (4 * lanes)))
        self.reset()

    def reset(self) -> None:
        """Forget everything, locks included: what a forked child does, where another thread may have held them."""
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)
        self._queues: list[deque[Outgoing]] = [deque() for _ in self._lanes]
        self._in_hand = [0 for _ in self._lanes]
        self._settled = [0 for _ in self._lanes]
        self._turned_away = 0
        """Dropped in place of being queued. They are not among the settled, which would end a flush that waits for others."""
        self._turn = 0
        self._room = -1 if self.closed else self.limit  # one comparison in `add` covers both
        self._asleep = True
        self._drops: deque[bytes] = deque()
        self._to_tell = 0
        """Drops so far that somebody must be told of; flush waits until those before it are told."""
        self._told = 0
        self._marked = 0
        self.consumer: int | None = None
        """The thread that takes; it must never wait for room."""
        self.bytes = 0
        self.stored = 0
        self.dropped = 0
        self.refused = 0
        self.unknown = 0

    def begin(self) -> None:
        """Somebody sends from now on."""

    # --- publishers ----------------------------------------------------------------------------------------------

    def add(self, item: Outgoing, lane: int) -> None:
        """Queue an event. Raises BufferFull when it is not accepted."""
        size = len(item.data)
        with self.lock:
            if self.bytes + size <= self._room or self._make_room(item, size, lane):
                self.bytes += size
                self._queues[lane].append(item)
                if self._asleep:
                    self._asleep = not self._rouse()  # not before: interrupted by Ctrl-C, the next event rouses again
                return
        if self.closed == "muted":
            self._lament("")

    def add_many(self, items: list[Outgoing], lane: int) -> None:
        """Queue several; those before the first that is not accepted stay queued."""
        size = sum([len(item.data) for item in items])
        with self.lock:
            if fits := self.bytes + size <= self._room:
                self.bytes += size
                self._queues[lane].extend(items)
                if self._asleep:
                    self._asleep = not self._rouse()
        if not fits:
            for item in items:
                self.add(item, lane)

    def _make_room(self, item: Outgoing, size: int, lane: int) -> bool:
        """True: there is room now. False: this event was dropped itself."""
        if self.closed == "muted":
            self._turn_away(item)
            return False
        if self.closed:
            raise BufferFull(_CLOSED)
        if self.when_full == "drop_oldest":
            # The own partition first: one that is loud must not cost a quiet one its few events.
            for victim in (lane, *sorted(self._lanes, key=lambda other: -len(self._queues[other]))):
                queue = self._queues[victim]
                while self.bytes + size > self._room and (old := _first(queue)) is not None:
                    freed = len(old.data)
                    self.bytes -= freed
                    self._settled[victim] += 1
                    self._drop(old)
        if self.when_full in ("drop_oldest", "spool"):
            if self._fits(size):
                return True
            self._turn_away(item)
            return False
        if self.when_full == "raise":
            raise BufferFull(f"{self._full()}: publish less, drop it, or use when_full='block'")
        if threading.get_ident() == self.consumer:
            raise BufferFull(f"{self._full()}, and on_delivery cannot wait for room: the sender would wait for itself")
        if not self._wait_for(lambda: bool(self.closed) or self._fits(size), self.max_block):
            raise BufferFull(f"{self._full()}, and no room came within max_block={self.max_block:g} s")
        return self._fits(size) or self._make_room(item, size, lane)

    def _fits(self, size: int) -> bool:
        return self.bytes + size <= self._room

    def _full(self) -> str:
        return f"{self.bytes:,} bytes of events wait for the server, the limit is {self.limit:,}"

    def why_dropped(self) -> str:
        """What those are told whose events were dropped for want of room."""
        return f"dropped: {self.limit:,} bytes of newer events wait for the server"

    def _turn_away(self, item: Outgoing) -> None:
        self._turned_away += 1
        self._drop(item)

    def _drop(self, item: Outgoing) -> None:
        self.dropped += 1
        if self.keep_drops:
            self._drops.append(item.raw_id)
            self._to_tell += 1

    def close(self, how: Literal["closed", "muted"]) -> None:
        """Accept nothing more. "muted": publishing is counted as dropped from now on, it raises nothing."""
        with self.lock:
            self.closed = how
            self._room = -1
            self._changed.notify_all()

    # --- the sender ----------------------------------------------------------------------------------------------

    def take(self) -> tuple[int, list[Outgoing]] | None:
        """The next partition's next batch; or None, and the next `add` will rouse the sender."""
        with self.lock:
            self._asleep = True  # first: a lane that is found empty may get an event from a __del__ a moment later
            for step in self._lanes:
                lane = (self._turn + step) % len(self._lanes)
                queue = self._queues[lane]
                items: list[Outgoing] = []
                size = 0
                while size < self._batch_bytes and len(items) < BATCH_EVENTS and (item := _first(queue)) is not None:
                    items.append(item)
                    size += len(item.data)
                if not items:
                    continue
                count = len(items)
                self._in_hand[lane] += count
                self._turn = lane + 1
                self._asleep = False
                return lane, items
            return None

    def tend(self) -> None:
        """Called by the sender between two attempts, while the server is away."""

    def nobody_takes(self) -> None:
        """Who took has ended, and is not coming back: the next `add` rouses another. Called with the lock held."""
        self._asleep = True

    def settle(
        self, lane: int, items: Sequence[Outgoing], *, stored: int = 0, refused: int = 0, unknown: int = 0
    ) -> None:
        """The fate of events in hand is known: so many stored, refused, unknown; the others were dropped."""
        size = sum([len(item.data) for item in items])
        count = len(items)
        dropped = count - stored - refused - unknown
        with self.lock:
            self.bytes -= size
            self.stored += stored
            self.refused += refused
            self.unknown += unknown
            self.dropped += dropped
            self._in_hand[lane] -= count
            self._settled[lane] += count
            self._changed.notify_all()

    def take_drops(self) -> list[bytes]:
        """Ids of events that were dropped since the last call; `told` says that they have been told."""
        drops = self._drops
        return [drops.popleft() for _ in range(len(drops))]

    def told(self, drops: int) -> None:
        """So many that were dropped have been told."""
        with self.lock:
            self._told += drops
            self._changed.notify_all()

    def kept(self) -> int:
        """How many of those that wait stay in what it `keeps`, as far as can be seen now."""
        return 0

    def leave(self) -> tuple[list[bytes], list[bytes]]:
        """Nothing is taken any more. Returns the ids of events that are lost by that, and of those that may be stored."""
        return [], []

    # --- watchers ------------------------------------------------------------------------------------------------

    def wait_settled(self, timeout: float) -> bool:
        """Wait until the fate of everything queued by now is known, and told. True: and since the last call all was stored."""
        with self.lock:
            marked, to_tell = self._marked, self._to_tell
            # Ctrl-C came before the sender was roused, or what was dropped is to be told.
            if self._asleep and (self._drops or any(map(self._queued, self._lanes))):
                self._asleep = not self._rouse()
            targets = [
                settled + in_hand + self._queued(lane)
                for lane, settled, in_hand in zip(self._lanes, self._settled, self._in_hand, strict=True)
            ]
            done = self._wait_for(lambda: self._told >= to_tell and all(map(ge, self._settled, targets)), timeout)
            self._marked = failed = self.failed
            return done and failed == marked

    def _wait_for(self, done: Callable[[], bool], timeout: float) -> bool:
        return self._changed.wait_for(done, min(timeout, FOREVER))

    def spool_statistics(self) -> dict[str, int]:
        """The part of ProducerStatistics that a spool adds."""
        return {}

    def _queued(self, lane: int) -> int:
        """Events that nobody has in hand yet."""
        return len(self._queues[lane])

    @property
    def failed(self) -> int:
        """Events that are not, or not known to be, on the server and never will be."""
        return self.dropped + self.refused + self.unknown

    @property
    def waiting(self) -> int:
        """Events whose fate is open."""
        with self.lock:
            return sum(self._in_hand) + sum(map(self._queued, self._lanes))

    @property
    def published(self) -> int:
        """Events that were accepted so far, or dropped in place of being accepted."""
        with self.lock:
            return sum(self._settled) + self._turned_away + self.waiting


def _first(queue: deque[Outgoing]) -> Outgoing | None:
    try:
        return queue.popleft()
    except IndexError:
        return None
