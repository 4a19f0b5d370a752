"""Entries that come otherwise than by a read: out of the pools, and by the audit of what is pending under our name.

Theory of operation. The lost reply of a read, or of taking from a pool, leaves entries that are pending under our name
and that nobody has. An audit compares what is pending with what is held, and runs the difference. Whatever comes in here
was given to somebody before, so settling looks up whether it is still ours. A pending entry without a body was trimmed:
it is acknowledged, counted and told by `bus.loss`, in one step.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import trio

from canvasbus.consume.delivery import Delivery, Topic, deliver
from canvasbus.consume.policy import failures_in
from canvasbus.consume.settle import Settler
from canvasbus.errors import Unavailable
from canvasbus.transport.link import Link, SharedLink
from canvasbus.transport.owner_scripts import TAKE
from canvasbus.transport.resp import Argument, ReplyError, check, command, is_no_group, translate
from canvasbus.wire.codec import Codec
from canvasbus.wire.keys import holds_suspects

AUDIT_PAGE = 1000


@dataclass(slots=True)
class RecoveryStatistics:
    """Counters of one recovery."""

    audited: int = 0
    """Entries that were pending under our name without being held, and were fetched."""
    taken: int = 0
    """Entries taken out of a pool."""
    trimmed: int = 0
    """Pending entries whose body was gone."""


class Recovery:
    """What comes to one group in one partition otherwise than by a read."""

    def __init__(
        self,
        group: str,
        shared: SharedLink,
        topics: Mapping[bytes, Topic],
        settler: Settler,
        codec: Codec,
        *,
        on_due: Callable[[], None],
    ) -> None:
        self.statistics = RecoveryStatistics()
        self.due = False
        """The reader is to audit before it reads on."""
        self.paused = False
        """Nothing comes in for now."""
        self.stopping = False
        """Nothing comes in any more, of an audit that is under way neither."""
        self._group = group
        self._shared = shared
        self._topics = topics
        self._settler = settler
        self._codec = codec
        self._on_due = on_due
        self._came_back = False
        self._asking = 0
        """Requests for suspects without an answer yet."""
        self._lost_suspects = False
        """Some may have come with an answer that was lost; until an audit has found all that is pending."""

    def audit_soon(self) -> None:
        """Audit before the next read."""
        self.due = True
        self._on_due()

    def handed_back(self) -> None:
        """What was handed back is held no more. Taken again before we heard that it had gone, it is with nobody now."""
        if self._came_back:
            self._came_back = False
            self.audit_soon()

    @property
    def _may_be_suspects(self) -> bool:
        """What is found pending may have come out of the pool of suspects, also before that is known here."""
        return self._lost_suspects or self._asking > 0

    async def audit(self, link: Link) -> None:
        """Fetch what is pending under our name but not in our hands: a reply was lost on its way. (Over the reader's own
        link, which leads to the server that it reads from.)

        Listed twice: an entry that is being acknowledged on the other connection can still be in the first list
        although it is no longer held; in the second it is gone.
        """
        self.due = False  # set anew by whatever fails from here on
        try:
            for topic in list(self._topics.values()):
                unknown = {i for i, _ in await self._pending(topic, link) if i not in topic.held}
                if not unknown:
                    continue
                again = await self._pending(topic, link)
                orphans = [(i, n) for i, n in again if i in unknown and i not in topic.held]
                for entry_id, deliveries in orphans:
                    (rows,) = await link.request(command("XRANGE", topic.stream, entry_id, entry_id))
                    check(rows, "audit")
                    if self.stopping:
                        return
                    fields = rows[0][1] if rows else []
                    self._adopt(topic, entry_id, fields, deliveries=deliveries, suspect=self._may_be_suspects)
                    self.statistics.audited += 1
        except BaseException:
            self.due = True
            raise
        self._lost_suspects &= self.due or self._asking > 0

    async def unheld(self, link: Link) -> tuple[list[tuple[bytes, bytes]], bool]:
        """What is pending under our name and never reached us, since the answer that brought it was lost: streams and
        entry ids, and whether there may be suspects among them."""
        found: list[tuple[bytes, bytes]] = []
        for topic in self._topics.values():
            found += [(topic.stream, i) for i, _ in await self._pending(topic, link) if i not in topic.held]
        return found, self._may_be_suspects

    async def _pending(self, topic: Topic, link: Link) -> list[tuple[bytes, int]]:
        """What is pending under our name: entry ids, and how often each counts as delivered."""
        found: list[tuple[bytes, int]] = []
        start = b"-"
        while True:
            page = command("XPENDING", topic.stream, self._group, start, "+", AUDIT_PAGE, self._settler.consumer)
            (rows,) = await link.request(page)
            if isinstance(rows, ReplyError):
                if is_no_group(rows):
                    return []
                raise translate(rows, "audit")
            found += [(row[0], row[3]) for row in rows]
            if len(rows) < AUDIT_PAGE:
                return found
            start = b"(" + rows[-1][0]

    async def take(self, pool: str, limit: int, *, topic: Topic | None = None, lain: float | None = None) -> bool:
        """Take up to `limit` entries out of a pool, as far as the lanes have room. False: we are fenced. With `topic` only
        its entries, after which an empty pool is forgotten; with `lain` only those that have lain there for so many
        seconds, to be given up."""
        topics = [t for t in self._topics.values() if t.lane.free > 0 and topic in (None, t)]
        suspects = holds_suspects(pool)
        if suspects:
            topics = [t for t in topics if t.lane.quarantine.wants]
        if not topics or limit <= 0 or self.paused:
            return True
        fence = self._settler.fence
        args: list[Argument] = [self._group, self._settler.consumer, pool, limit]
        args += [int((lain or 0.0) * 1000), 1 if topic else 0]
        lanes = list(dict.fromkeys(t.lane for t in topics))
        args += [lanes.index(t.lane) + 1 for t in topics]
        args += [lane.free for lane in lanes]
        self._asking += suspects
        try:
            reply = await fence.run(self._shared, TAKE, [t.stream for t in topics], args)
        except (Unavailable, trio.Cancelled) as error:
            if fence.in_doubt:  # they may be ours: nobody else would run them
                self._lost_suspects |= suspects
                if isinstance(error, Unavailable):  # what came late would find nobody who looks for it
                    await self._settler.make_sure()
                self.audit_soon()
            raise
        finally:
            self._asking -= suspects
        if isinstance(reply, ReplyError):
            raise translate(reply, f"take from {pool}")
        if reply == b"FENCED":
            return False
        if reply == b"STALE":  # we have raised it ourselves; next time, then
            await self._settler.make_sure()
            return True
        for at in range(0, len(reply), 4):
            index, entry_id, deliveries, fields = reply[at : at + 4]
            self.statistics.taken += 1
            count, overdue = int(deliveries), lain is not None
            self._adopt(topics[index - 2], entry_id, fields, deliveries=count, suspect=suspects, overdue=overdue)
        return True

    def _adopt(
        self,
        topic: Topic,
        entry_id: bytes,
        fields: list[bytes],
        *,
        deliveries: int,
        suspect: bool,
        overdue: bool = False,
    ) -> None:
        if entry_id in topic.held:  # an audit and a take that was under way have both found it; or see `handed_back`
            self._came_back = True
            return
        if not fields:
            self.lost(topic, entry_id)
            return
        delivery: Delivery = deliver(self._codec, topic, entry_id, fields)
        retry = topic.lane.handler.retry
        failures, deaths = failures_in(deliveries)
        # Of a suspect the run is counted before it begins. A server that has lost the outcome of its last one gives it back
        # to us, who live: that run has not failed.
        delivery.failures = failures if suspect else min(failures, retry.most - 1)
        delivery.deadly = suspect and deaths and failures >= retry.attempts
        delivery.suspect = suspect
        delivery.alone = deliveries == 0
        delivery.overdue = overdue
        delivery.look = True
        topic.held.add(entry_id)
        if suspect:
            topic.suspects[entry_id] = delivery
        topic.lane.feed([delivery])

    def lost(self, topic: Topic, entry_id: bytes) -> None:
        """An entry of the group is pending and gone from its stream."""
        if entry_id not in topic.held:  # a pool shows it until the acknowledgement has arrived
            self.statistics.trimmed += 1
            topic.held.add(entry_id)
            topic.lane.lost(Delivery(topic, entry_id, [], None, None, None))

    def __repr__(self) -> str:
        return f"<Recovery {self._group} {self._settler.keys!r} {self.statistics}>"
