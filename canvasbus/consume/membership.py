"""Belonging to a group: making it, noting how far it has come, and making it anew when it was lost.

Theory of operation. FLUSHALL, DEL and XGROUP DESTROY take a group away, and with it what was pending and how far it had
come. Everybody who reads hears of it at once (NOGROUP), the others within a second. Where to go on?

* The stream is another one: from its start, at once. All that is in it is new.
* The stream is the same, and only the group is gone: behind the last entry that any worker was given, else what the
  others were given in the meantime would run twice. Each worker notes how far it has read once a second
  (`Keys.cursors`); so whoever finds the group gone notes what it knows and waits GATHER_SECONDS for the others to do the
  same. A worker that is alone need not wait.

What a worker holds at that moment is not pending any more, and nobody will be given it again: it is entered anew, in
our name, so that it is handed back, or taken over, should we go. Until then handing back, parking and what is looked up
before it is committed wait (`Settler.ask_group`), and whoever leaves makes the group anew itself. What lies behind the place where the group goes on
will be given to somebody again; we may commit it only if that is us (`Topic.doubt`). What was in a pool, or with a
worker that was dead by then, is lost, which bus.loss tells, since nobody knows about it.

XTRIM by hand takes away what was not read, too. The one worker that holds the lease of the group compares what the
server has counted: entries added, entries there, entries given to the group. Not seen is what is trimmed and read past
between two looks, on servers that correct their count then (Valkey, Redis since 7.2). A server that starts again on its
append-only file has forgotten how many entries it gave to groups (Redis 7.0.15; Valkey 7.2 has not), so counts are
compared within one server's life only, and what is trimmed around its end is not seen either.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import trio

from canvasbus.consume.complaints import Complaints
from canvasbus.consume.declaration import read_group
from canvasbus.consume.delivery import Topic
from canvasbus.consume.retention import policy_for, read_policies
from canvasbus.consume.settle import Settler
from canvasbus.contract.bus_events import BusLoss
from canvasbus.errors import ConfigError, Refused, Unavailable
from canvasbus.ids import id_order
from canvasbus.log import get_logger
from canvasbus.transport.group_scripts import MISSED, RENEW, REPORT
from canvasbus.transport.link import Link, SharedLink
from canvasbus.transport.resp import Operation, Reply, ReplyError, check, chunks, command, commands, pairs, translate
from canvasbus.wire.codec import Codec
from canvasbus.wire.keys import Keys

GATHER_SECONDS = 2.5
"""How long a group stays away so that all its workers can note how far they had read: each does so once a second."""

AGAIN_SECONDS = 5.0
"""Between two attempts where the server refuses, because something else lies where the stream was, for example."""

log = get_logger("canvasbus.worker")


@dataclass(slots=True)
class MembershipStatistics:
    """Counters of one membership."""

    renewed: int = 0
    """Groups that were gone and that we made anew."""
    missed: int = 0
    """Entries that were removed before the group was given them, as far as we told."""


class Membership:
    """Of one worker, in the groups of one partition: one for each topic, all of the same name."""

    def __init__(
        self,
        keys: Keys,
        group: str,
        shared: SharedLink,
        topics: Mapping[bytes, Topic],
        settler: Settler,
        codec: Codec,
    ) -> None:
        self.declaration = b"{}"
        """What the group reads, for `Keys.groups`."""
        self.statistics = MembershipStatistics()
        self._keys = keys
        self._group = group
        self._shared = shared
        self._topics = topics
        self._settler = settler
        self._codec = codec
        self._reported: dict[bytes, bytes] = {}
        self._held_from: dict[bytes, bytes] = {}
        """By stream: from where and when its group was made anew, when what we hold was last let be pending in it."""
        self._made: int | None = None
        self._gone: dict[bytes, float] = {}
        self._complaints = Complaints(group)
        settler.ask_group = self.report

    async def join(self, stream: bytes, event_type: str, start: str) -> bytes:
        """Make stream and group if need be; returns the last entry that the group was given. A group whose workers are
        to note first how far they had read is made by `renew`, once `due` has come."""
        keys, group = self._keys, self._group
        if not await self._renew_lost(stream, event_type):
            return b"0-0"
        entries_read = ("ENTRIESREAD", 0) if start == "0" else ()
        replies = await self._shared.request(
            commands(
                ("SADD", self._list(stream, event_type), event_type),
                ("XGROUP", "CREATE", stream, group, start, "MKSTREAM", *entries_read),
                ("XINFO", "GROUPS", stream),
                ("XINFO", "STREAM", stream),
            )
        )
        for reply in replies[:2]:
            if isinstance(reply, ReplyError) and not str(reply).startswith("BUSYGROUP"):
                raise translate(reply, f"join group {group!r} on {stream.decode()}")
        if not isinstance(replies[1], ReplyError):  # what was noted about an earlier group of this name means nothing
            await self._shared.call("HDEL", keys.cursors(group), stream, b"~gone:" + stream)
        # A group may begin ahead of all that there is (`start=` a moment, a reset to one). What a stream never came to is
        # not where we stood: made anew there, the group would take it for another stream, and begin at its start.
        cursor = cursor_of(replies[2], group.encode()) or b"0-0"
        last = b"0-0" if isinstance(replies[3], ReplyError) else bytes(pairs(replies[3])[b"last-generated-id"])
        return min(cursor, last, key=id_order)

    async def _renew_lost(self, stream: bytes, event_type: str) -> bool:
        """A group of which is noted how far it had read, and which is not there, is lost: it is made anew where it was,
        and that is told, rather than begun at the start once more. Its living workers, if any, do that themselves. False:
        so that they can, it stays away for now."""
        keys, group = self._keys, self._group
        look = commands(("HGET", keys.cursors(group), stream), ("XINFO", "GROUPS", stream), ("HLEN", keys.beats(group)))
        cursor, groups, beating = await self._shared.request(look)
        if not isinstance(cursor, bytes) or cursor_of(groups, group.encode()) is not None:
            return True
        if isinstance(beating, int) and beating:
            self._gone.setdefault(stream, trio.current_time() + GATHER_SECONDS)
            return False
        check(
            await self._shared.run(self._renewal(stream, event_type, b"0-0", only_other=False)), f"join group {group!r}"
        )
        return True

    def _list(self, stream: bytes, event_type: str) -> bytes:
        """The list that names the stream: of the topics, or of what was redriven out of the group's dead letters."""
        keys = self._keys
        return keys.topics if stream == keys.stream(event_type) else keys.retries(self._group)

    # --- once a second -------------------------------------------------------------------------------------------

    async def report(self, link: Link | SharedLink | None = None) -> None:
        """Note how far we have read, and write down again what a FLUSHALL took."""
        keys, group, link = self._keys, self._group, link or self._shared
        news: dict[bytes, bytes] = {}
        # How far we have read on a server that has since lost its last seconds says nothing about the one of now.
        if link.history == self._settler.reads_from:
            news = {s: t.cursor for s, t in self._topics.items() if t.cursor != self._reported.get(s, b"0-0")}
        args: list[bytes | str | int] = [group, self.declaration]
        for noted in news.items():
            args += noted
        reply = await link.run(REPORT.call([keys.cursors(group), keys.groups], args))
        if isinstance(reply, ReplyError):  # no memory for it, for example; the next one says the same
            return
        self._reported.update(news)  # and not what has been read since
        made, emptied = reply
        if emptied or (self._made is not None and made != self._made):  # a fellow may have been the first to see it
            self._settler.forget_topics()
            for stream, topic in list(self._topics.items()):
                await link.request(command("SADD", self._list(stream, topic.event_type), topic.event_type))
        if self._made is not None and made != self._made:
            await self._made_anew(link, list(self._topics.values()))
        self._made = made

    async def look_for_missed(self) -> None:
        """Tell of entries that went before the group was given them. For the holder of the group's lease."""
        keys, group = self._keys, self._group
        for asked in chunks(list(self._topics.values()), 250):
            steps: list[tuple[bytes | str, ...]] = [
                ("HMGET", keys.cursors(group), *(b"~gone:" + t.stream for t in asked))
            ]
            for topic in asked:
                steps += [("XINFO", "STREAM", topic.stream), ("XINFO", "GROUPS", topic.stream)]
            before = self._shared.history
            noted, *infos = await self._shared.request(commands(*steps))
            check(noted, "look for entries that are gone")
            history = self._shared.history.encode()
            if not history or history != before.encode():
                return  # who has counted this cannot be told, or only at the next look
            for topic, note, info, groups in zip(asked, noted, infos[::2], infos[1::2], strict=True):
                gone = gone_unread(info, groups, group.encode())
                if gone is not None and b"%d %s" % (gone, history) != note:
                    await self._note_missed(topic, note or b"", gone, history)

    async def _note_missed(self, topic: Topic, note: bytes, gone: int, history: bytes) -> None:
        keys, payload = self._keys, b""
        known, _, theirs = note.partition(b" ")
        lost = gone - int(known) if known.isdigit() and len(known) < 20 and theirs == history else 0
        if lost > 0 and not await self._told_by_retention(topic.event_type):
            payload = self._codec.encode(
                BusLoss(
                    topic=topic.event_type,
                    group=self._group,
                    reason="trimmed_unread",
                    detail=f"{lost:,} {'entry was' if lost == 1 else 'entries were'} removed from {topic.stream.decode()} "
                    f"before group {self._group} was given {'it' if lost == 1 else 'them'}, and not by retention",
                    lost=lost,
                )
            ).data
        streams = [keys.cursors(self._group), keys.stream("bus.loss"), keys.topics]
        told = await self._shared.run(MISSED.call(streams, [topic.stream, note, b"%d %s" % (gone, history), payload]))
        if check(told, "tell of entries that are gone") and payload:
            self.statistics.missed += lost
            log.error("entries were removed unread", group=self._group, topic=topic.event_type, lost=lost)

    async def _told_by_retention(self, event_type: str) -> bool:
        try:
            policies = await self._shared.run(read_policies(self._keys))
        except ConfigError:
            return False
        policy = policy_for(event_type, policies)
        return bool(policy.cap) and policy.when_full == "drop_with_loss_event"

    # --- lost ----------------------------------------------------------------------------------------------------

    def is_gone(self, stream: bytes) -> bool:
        """True for a topic whose group is away for the moment: reading it would raise NOGROUP for all of them."""
        return stream in self._gone

    @property
    def due(self) -> float:
        """When `renew` must be called, on trio's clock."""
        return min(self._gone.values(), default=math.inf)

    async def find_gone(self, link: Link) -> None:
        """After NOGROUP: see which groups are gone, and make them anew, some of them later."""
        for asked in chunks(list(self._topics)):
            answers = await link.request(commands(*(("XINFO", "GROUPS", stream) for stream in asked)))
            for stream, groups in zip(asked, answers, strict=True):
                if cursor_of(groups, self._group.encode()) is None:
                    self._gone.setdefault(stream, trio.current_time() + GATHER_SECONDS)
        await self.report(link)
        (beating,) = await link.request(command("HLEN", self._keys.beats(self._group)))
        alone = check(beating, "look at heartbeats") <= 1
        for stream in list(self._gone):
            await self._renew(link, self._topics[stream], only_other=not alone)

    async def renew(self, link: Link) -> None:
        """Make those groups anew whose time has come."""
        now = trio.current_time()
        for stream in [stream for stream, due in self._gone.items() if due <= now]:
            await self._renew(link, self._topics[stream], only_other=False)

    async def restore(self, link: Link) -> None:
        """Make anew what is gone, as soon as all have noted how far they had read. For whoever leaves, and reads no more."""
        if self._gone:
            await trio.sleep_until(self.due)
            await self.renew(link)

    async def _renew(self, link: Link, topic: Topic, *, only_other: bool) -> None:
        group = self._group
        reply = await link.run(self._renewal(topic.stream, topic.event_type, topic.cursor, only_other=only_other))
        if isinstance(reply, ReplyError):
            failure = translate(reply, f"make group {group!r} anew on {topic.stream.decode()}")
            if isinstance(failure, Unavailable):
                raise failure
            self._complaints.tell("a consumer group is gone and cannot be made anew", Refused(str(failure)))
            self._gone[topic.stream] = trio.current_time() + AGAIN_SECONDS  # the other topics go on
            return
        start, other = reply
        if start == b"later":
            return
        self._gone.pop(topic.stream, None)
        if other:
            topic.cursor = b"0-0"
            self._reported.pop(topic.stream, None)
        if start:
            self.statistics.renewed += 1
            what = "the stream is another one" if other else f"it goes on after {start.decode()}"
            redriven = topic.stream == self._keys.retry(group, topic.event_type)
            log.error(
                "a consumer group was gone and has been made anew",
                group=group,
                topic=f"{topic.event_type} (its redriven events)" if redriven else topic.event_type,
                what=f"{what}; what was pending in it may be lost: `canvasbus tail --type bus.loss --from 1h`",
            )
        await self._made_anew(link, [topic])

    def _renewal(self, stream: bytes, event_type: str, cursor: bytes, *, only_other: bool) -> Operation[Reply]:
        keys, group, where = self._keys, self._group, stream.decode()
        goes_on = (
            f"group {group} was missing on {where} and goes on behind the last entry that its workers had been given; "
        )
        if read_group(group, self.declaration).instance:  # nothing has held back retention meanwhile
            goes_on += "what has been removed behind that while its process slept or was cut off it will not see"
        else:
            goes_on += (
                "what had been handed back, parked for newer workers or left by the dead comes no more, unless somebody sets "
                f"the group back: `canvasbus groups reset {group}`"
            )
        details = {
            "group_recreated": goes_on,
            "stream_recreated": f"{where} is another stream than before, and group {group} reads it from its start; what "
            "was in the old one is lost",
        }
        losses = [
            self._codec.encode(BusLoss(topic=event_type, group=group, reason=reason, detail=detail)).data
            for reason, detail in details.items()
        ]
        listed = self._list(stream, event_type)
        names = [keys.cursors(group), stream, listed, keys.topics, keys.stream("bus.loss")]
        args: list[bytes | str | int] = [group, event_type, cursor, int(only_other), *losses]
        return RENEW.call(names, args)

    async def _made_anew(self, link: Link | SharedLink, topics: list[Topic]) -> None:
        """Some group is a new one: what we hold is not pending in it."""
        held = [topic for topic in topics if topic.held]
        if not held:
            return
        keys = self._keys.cursors(self._group)
        (starts,) = await link.request(command("HMGET", keys, *(b"~from:" + t.stream for t in held)))
        for topic, start in zip(held, check(starts, "look at the group"), strict=True):
            known, self._held_from[topic.stream] = self._held_from.get(topic.stream), start
            if start == known:  # held already: what is pending no more by now was committed, and must stay so
                continue
            start = (start or b"").partition(b" ")[0]
            if start and start != b"0-0":
                if any(id_order(entry_id) > id_order(start) for entry_id in topic.held):
                    topic.doubt_held()
                self._settler.holding.again(topic, start)


def gone_unread(info: Reply, groups: Reply, group: bytes) -> int | None:
    """How many entries were removed before the group was given them, since its beginning, by the server's own count;
    None: that cannot be told now. The count is right where nothing or everything that is there is behind the cursor.
    """
    if isinstance(info, ReplyError) or isinstance(groups, ReplyError):
        return None
    facts = pairs(info)
    row = next((row for row in map(pairs, groups) if row[b"name"] == group), None)
    read = row.get(b"entries-read") if row else None
    added, length = facts.get(b"entries-added"), facts[b"length"]
    if row is None or read is None or added is None:
        return None
    cursor = id_order(row[b"last-delivered-id"])
    if not length or cursor >= id_order(facts[b"last-entry"][0]):
        behind = 0
    elif cursor < id_order(facts[b"first-entry"][0]):
        behind = length
    else:
        return None
    return max(0, int(added) - int(read) - int(behind))


def cursor_of(groups: Reply, name: bytes) -> bytes | None:
    """The last entry that the group of this name was given; None where it is not."""
    if isinstance(groups, ReplyError):
        return None
    known = (pairs(group) for group in groups)
    return next((bytes(group[b"last-delivered-id"]) for group in known if group[b"name"] == name), None)
