"""Reading: one blocking connection per worker and partition, feeding the lanes.

Theory of operation. One XREADGROUP names all streams whose lanes have room, with COUNT = the free places divided by
the streams; an entry read is an entry held, so a full lane is simply not asked for. BLOCK is at most a second. A reader
that must come back earlier (a lane has room again, the worker stops) is ended by CLIENT UNBLOCK, where the ACL allows
it; the connection is never closed under a blocked read, because the server may be handing over entries just then
(measured: 125 of 4,000 entries were left with nobody).

What can go wrong, and what happens then:

* The reply of a read, or of taking from a pool, is lost: its entries are pending under our name and nobody has them.
  After every new connection and after every such failure the reader audits (`recovery`), until it has succeeded once.
* The group or stream is gone (FLUSHALL, DEL, XGROUP DESTROY): the others are read on, and the group of that stream is
  made anew (`membership`).
* The new connection leads to another server, or to one that restarted: it may lack the last seconds. What was read
  before is looked up before it is committed (`Topic.doubt`); what it gives us again while we hold it is not run twice.
* The group was set back while it was paused: the same, for what we still held.
* The server is away or refuses: backoff, a warning a minute, never a hot loop, never giving up.
"""

from dataclasses import dataclass

import trio

from canvasbus.consume.backoff import ServerBackoff
from canvasbus.consume.delivery import Delivery, Topic, deliver_many
from canvasbus.consume.dispatch import Lane
from canvasbus.consume.handlers import start_id
from canvasbus.consume.membership import Membership, cursor_of
from canvasbus.consume.recovery import Recovery
from canvasbus.consume.settle import Settler
from canvasbus.errors import TransportError
from canvasbus.log import get_logger
from canvasbus.transport.link import Link, SharedLink
from canvasbus.transport.resp import (
    Argument,
    Reply,
    ReplyError,
    code,
    command,
    commands,
    is_no_group,
    translate,
)
from canvasbus.transport.server import Server
from canvasbus.wire.codec import Codec
from canvasbus.wire.keys import Keys

READ_COUNT = 500
"""Entries of one stream in one read, at most."""

BLOCK_SECONDS = 1.0
LATE_SECONDS = 0.5
"""How late the answer of a read may be that nobody wants to wait for any more."""

log = get_logger("canvasbus.worker")


@dataclass(slots=True)
class SubscriptionStatistics:
    """Counters of one subscription."""

    reads: int = 0
    """XREADGROUP calls that were answered."""
    entries: int = 0
    """Entries that were read."""


class Subscription:
    """The topics of one group in one partition."""

    def __init__(
        self,
        server: Server,
        shared: SharedLink,
        keys: Keys,
        group: str,
        consumer: str,
        codec: Codec,
        settler: Settler,
    ) -> None:
        self.keys = keys
        self.topics: dict[bytes, Topic] = {}
        self.statistics = SubscriptionStatistics()
        self._server = server
        self._shared = shared
        self._link = Link(server)
        self.group = group
        self.consumer = consumer
        self._codec = codec
        self.settler = settler
        self.membership = Membership(keys, group, shared, self.topics, settler, codec)
        self.recovery = Recovery(group, shared, self.topics, settler, codec, on_due=self.interrupt)
        settler.on_away = self.group_away
        self._group_away = False
        self._room = trio.Event()
        self._asked: set[Lane] = set()
        self._blocked = False
        self._cut = False  # interrupted since the read began: on memory that may come before there is a pause to cancel
        self._pause: trio.CancelScope | None = None
        self.away = False
        """The last thing that the server did was not to answer."""
        self.stopped = trio.Event()
        """Set when, after `stop`, nothing more comes in."""
        self._interrupts = trio.Event()

    # --- topics --------------------------------------------------------------------------------------------------

    async def add(self, event_type: str, lane: Lane, *, from_start: bool = False) -> None:
        """Join the group of a topic, making both if need be. A topic that appeared while the group was already there
        is read from its first entry, whatever `start` says: nothing was there before it to be skipped."""
        stream = self.keys.stream(event_type)
        await self._add(stream, event_type, lane, "0" if from_start else start_id(lane.handler.start))

    async def add_retries(self, event_type: str, lane: Lane) -> None:
        """Read what was redriven of a type out of the group's dead letters, if that is not read already."""
        stream = self.keys.retry(self.group, event_type)
        if stream not in self.topics:
            await self._add(stream, event_type, lane, "0")

    async def trim_retries(self) -> None:
        """Remove what is done from the streams of redriven events, which nobody else reads. The floor only ever rises,
        so asking and removing need not be one step."""
        for stream, topic in list(self.topics.items()):
            if stream != self.keys.retry(self.group, topic.event_type):
                continue
            groups, pending = await self._shared.request(
                commands(("XINFO", "GROUPS", stream), ("XPENDING", stream, self.group))
            )
            if not isinstance(pending, ReplyError):
                floor = pending[1] or cursor_of(groups, self.group.encode()) or b"0"
                await self._shared.call("XTRIM", stream, "MINID", floor)

    async def _add(self, stream: bytes, event_type: str, lane: Lane, start: str) -> None:
        cursor = await self.membership.join(stream, event_type, start)
        topic = Topic(event_type, stream, lane, self.settler)
        topic.cursor = cursor
        self.settler.watch(topic)
        self.topics[stream] = topic
        self.room()

    def trust_again(self) -> None:
        """Forget doubts that are over; to be called once a second."""
        if [topic for topic in self.topics.values() if topic.trust_again()]:
            self.recovery.audit_soon()  # given to us again while the outcome was on its way, an entry can be with nobody

    # --- reading -------------------------------------------------------------------------------------------------

    def room(self) -> None:
        """A lane may have room again."""
        self._room.set()
        if self._blocked and any(
            topic.lane.free > 0 and topic.lane not in self._asked for topic in self.topics.values()
        ):
            self.interrupt()

    def group_away(self) -> None:
        """Somebody has found no group; a reader without room would not."""
        self._group_away = True
        self._room.set()
        self.interrupt()

    def interrupt(self) -> None:
        """End a blocked read early."""
        self._cut = True
        if self._pause is not None:
            self._pause.cancel()
        self._interrupts.set()

    def pause(self, paused: bool) -> None:
        """Read and take nothing, or go on, from wherever the group's cursors are by then."""
        self.recovery.paused = paused
        for topic in self.topics.values():  # set back meanwhile, the group gives what we hold to somebody once more
            topic.doubt_held()
        if paused:
            self.interrupt()
        else:
            for topic in self.topics.values():  # somebody may have moved them back; the sweep remembers them anew
                topic.cursor = b"0-0"
            self.room()

    def stop(self) -> None:
        """Read nothing more; `run` returns soon."""
        self.recovery.stopping = True
        self._room.set()
        self.interrupt()

    async def run(self) -> None:
        """Read until `stop`."""
        backoff = ServerBackoff("reading waits for the server", self.group)
        epoch = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_interrupts)
            try:
                while not self.recovery.stopping:
                    await trio.lowlevel.checkpoint_if_cancelled()  # reads are shielded, so nothing below would notice
                    try:
                        await self._link.connect()
                        if self._link.epoch != epoch:
                            self._connected(again=bool(epoch))
                            epoch = self._link.epoch
                        if self.recovery.due:
                            await self.recovery.audit(self._link)
                        if self._group_away:
                            await self.membership.find_gone(self._link)
                            self._group_away = False
                        await self._read()
                        backoff.reset()
                        self.away = False
                    except TransportError as error:
                        self.away = True
                        with trio.move_on_after(backoff.next(error)):
                            while not self.recovery.stopping:
                                self._room = trio.Event()
                                await self._room.wait()
            finally:
                with trio.CancelScope(shield=True):
                    await self._link.aclose()
            nursery.cancel_scope.cancel()
        self.stopped.set()

    def _connected(self, *, again: bool) -> None:
        history = self._link.history
        if again:
            self.recovery.due = True
            if not history or history != self.settler.reads_from:
                for topic in self.topics.values():
                    topic.doubt_held()
                    topic.cursor = b"0-0"
                held = sum(len(topic.held) for topic in self.topics.values())
                log.warning(
                    "the server has restarted, or another is master now",
                    group=self.group,
                    server=self._server.name,
                    held=held,
                )
        self.settler.reads_from = history

    def _plan(self) -> tuple[int, list[Topic]]:
        """How many entries to ask of each stream, and which streams."""
        if self.recovery.paused:
            return 0, []
        lanes: dict[Lane, list[Topic]] = {}
        for stream, topic in self.topics.items():
            if self.membership.is_gone(stream):
                continue
            lanes.setdefault(topic.lane, []).append(topic)
        open_lanes = {lane: topics for lane, topics in lanes.items() if lane.free > 0 and lane.free >= lane.least}
        if not open_lanes:
            return 0, []
        count = min(max(1, lane.free // len(topics)) for lane, topics in open_lanes.items())
        self._asked = set(open_lanes)
        return min(READ_COUNT, count), [topic for topics in open_lanes.values() for topic in topics]

    async def _read(self) -> None:
        if self.membership.due <= trio.current_time():
            await self.membership.renew(self._link)
        count, topics = self._plan()
        if not topics:
            self._room = trio.Event()
            if not (self._plan()[1] or self.recovery.stopping or self._group_away):
                with trio.move_on_at(self.membership.due):
                    await self._room.wait()
            return
        head: tuple[Argument, ...] = ("XREADGROUP", "GROUP", self.group, self.consumer, "COUNT", count)
        tail: tuple[Argument, ...] = ("STREAMS", *[topic.stream for topic in topics], *[">" for _ in topics])
        self._blocked = True
        try:
            reply = await (self._block(head, tail) if self._server.blocks else self._poll(head, tail))
        finally:
            self._blocked = False
        self.statistics.reads += 1
        if isinstance(reply, ReplyError):
            if is_no_group(reply) or code(reply) == "WRONGTYPE":  # the latter: something else lies there now
                await self.membership.find_gone(self._link)
                return
            if str(reply).startswith("UNBLOCKED"):
                return
            raise translate(reply, f"read as group {self.group!r}")
        if reply:
            await self._take_in(reply)

    async def _block(self, head: tuple[Argument, ...], tail: tuple[Argument, ...]) -> Reply:
        packet = command(*head, "BLOCK", int(BLOCK_SECONDS * 1000), *tail)
        # A cancelled blocked read leaves entries with nobody, so it may end by itself, which takes a second; but a
        # server that is frozen must not hold up whoever wants to leave. The next checkpoint cancels again.
        with trio.CancelScope(shield=True):
            await self._link.send(packet)
        try:
            return (await self._link.receive(1, timeout=BLOCK_SECONDS + 4))[0]
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                return (await self._link.receive(1, timeout=BLOCK_SECONDS + LATE_SECONDS))[0]

    async def _poll(self, head: tuple[Argument, ...], tail: tuple[Argument, ...]) -> Reply:
        packet = command(*head, *tail)
        deadline = trio.current_time() + BLOCK_SECONDS
        self._cut = False
        while True:
            reply = (await self._link.request(packet))[0]
            left = deadline - trio.current_time()
            if reply or self.recovery.stopping or left <= 0:
                return reply
            if self._cut:
                return None
            with trio.CancelScope() as pause:
                self._pause = pause
                await self._link.wait_change(left)
            self._pause = None
            if pause.cancelled_caught:
                return None

    async def _run_interrupts(self) -> None:
        while True:
            await self._interrupts.wait()
            self._interrupts = trio.Event()
            client = self._link.client_id
            if self._blocked and client is not None:
                try:
                    await self._shared.call("CLIENT", "UNBLOCK", client)
                except TransportError:
                    pass  # the read ends by itself within BLOCK_SECONDS
            await trio.sleep(0.001)

    async def _take_in(self, reply: Reply) -> None:
        codec = self._codec
        taken: list[tuple[Topic, list[Delivery]]] = []
        for stream, entries in reply:
            topic = self.topics[stream]
            entry_ids = [entry[0] for entry in entries]
            if not topic.held.isdisjoint(entry_ids):
                # It forgot that we have these, or the group was set back before we heard of a pause.
                topic.doubt_held()
                entries = [entry for entry in entries if entry[0] not in topic.held]
                if not entries:
                    continue
            topic.held.update(entry_ids)
            topic.cursor = entries[-1][0]
            self.statistics.entries += len(entries)
            taken.append((topic, deliver_many(codec, topic, entries)))
        failure: TransportError | None = None
        for topic, deliveries in taken:  # all of them are held by now, so that nothing is with nobody while we ask
            inbox = topic.lane.inbox
            if inbox is not None and failure is None:
                try:
                    await inbox.look(self._link, deliveries)
                except TransportError as error:
                    failure = error  # what was read is run all the same
            topic.lane.feed_fresh(deliveries)
        if failure is not None:
            raise failure

    def __repr__(self) -> str:
        return f"<Subscription {self.group} {self.keys!r} {len(self.topics)} topics, {self.statistics}, {self.recovery.statistics}>"
