"""What lies on a test bus's server, read past all simulated trouble and without waiting."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from uuid import UUID

from canvasbus.consume.handlers import Worker
from canvasbus.contract.event import Event
from canvasbus.errors import DecodeError
from canvasbus.ids import id_order
from canvasbus.operate import deadletter
from canvasbus.operate.redrive import portions, redrive
from canvasbus.operate.tail import Tail
from canvasbus.operate.timers import sorted_until
from canvasbus.operate.topics import topic_keys
from canvasbus.transport.blocking import BlockingLink
from canvasbus.transport.resp import ReplyError, pairs
from canvasbus.wire import later
from canvasbus.wire.codec import Codec
from canvasbus.wire.deadletter import DeadLetterRecord
from canvasbus.wire.envelope import Envelope
from canvasbus.wire.keys import LATER_INBOX, Keys, version_in

if TYPE_CHECKING:
    from canvasbus.transport.memory import MemoryServer

E = TypeVar("E", bound=Event, covariant=True)


@dataclass(frozen=True, slots=True)
class Published(Generic[E]):
    """One event on its stream."""

    event: E
    envelope: Envelope
    entry_id: str
    """Its id on the stream, as `publish` returned it."""
    cause: "Published[Any] | None"
    """The event whose handler returned this one; None: it was published from outside."""

    @property
    def id(self) -> UUID:
        """The event's id."""
        return self.envelope.id

    @property
    def causation_id(self) -> UUID | None:
        """The id of `cause`."""
        return self.envelope.causation_id


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One event that a group gave up."""

    group: str
    reason: str
    """exhausted, rejected, lost_workers, undecodable, invalid, unknown_type, newer_version, upcast_failed,
    foreign or oversize."""
    error: str
    """The last error as `Type: message`."""
    attempts: int
    """How often a handler was started."""
    event: Event | None
    """The event; None when it could not be read."""
    envelope: Envelope | None
    record: DeadLetterRecord
    """All of it: handler, traceback, times, the entry's bytes."""


@dataclass(frozen=True, slots=True)
class Unfinished:
    """One entry that a group has not dealt with."""

    group: str
    event_type: str
    stream: bytes
    """Its topic's, or that of what was redriven."""
    entry_id: str
    owner: str | None
    """Who has it; None: nobody has read it."""


class _Past:
    """A server in memory, past its outages."""

    def __init__(self, server: "MemoryServer") -> None:
        self.connect_blocking = server.observe


class Eyes:
    """Reads one namespace."""

    def __init__(self, server: "MemoryServer", partitions: Sequence[Keys]) -> None:
        self._link = BlockingLink(_Past(server))  # type: ignore[arg-type]  # connect_blocking is all it uses
        self._partitions = partitions
        self._codec = Codec(limit=1 << 62)

    def published(self) -> list[Published[Any]]:
        """All valid events of all types, by entry id; within a millisecond causes come before what they caused."""
        tail = Tail(self._partitions, blocks=False)
        self._link.run(tail.begin())
        rows: list[tuple[Envelope, Event, str]] = []
        while entries := self._link.run(tail.page()):
            for entry in entries:
                opened = self._open(entry.fields, entry.topic, entry.entry_id)
                if opened is not None:
                    rows.append((*opened, entry.entry_id))
        by_id = {row[0].id: row for row in reversed(rows)}
        made: dict[UUID, tuple[Published[Any], int]] = {}  # and how many ancestors it has

        def make(row: tuple[Envelope, Event, str]) -> tuple[Published[Any], int]:
            line = [row]  # from the event up to its first ancestor that is made, or to none
            while (cause := line[-1][0].causation_id) in by_id and cause not in made and len(line) <= len(rows):
                line.append(by_id[cause])
            for envelope, event, entry_id in reversed(line):
                parent, depth = made.get(envelope.causation_id, (None, -1)) if envelope.causation_id else (None, -1)
                result = Published(event, envelope, entry_id, parent), depth + 1
                made.setdefault(envelope.id, result)
            return result

        def order(one: tuple[Published[Any], int]) -> tuple[int, int, int, str]:
            milliseconds, sequence = id_order(one[0].entry_id)
            return milliseconds, one[1], sequence, one[0].envelope.type

        return [one for one, _ in sorted(map(make, rows), key=order)]

    def dead_letters(self, group: str | None) -> list[DeadLetter]:
        """What the groups gave up, oldest first."""
        found = self._link.run(deadletter.dead_letters(self._partitions, deadletter.Filter(), limit=1_000_000))
        records = [letter.record for letter in found.letters if letter.record is not None]
        return [self._letter(record) for record in records if group in (None, record.group.partition("@")[0])]

    def _letter(self, record: DeadLetterRecord) -> DeadLetter:
        envelope, event = self._open(record.fields, record.event_type, record.entry_id) or (None, None)
        return DeadLetter(record.group, record.reason, record.error, record.attempts, event, envelope, record)

    def _open(self, fields: Sequence[bytes], topic: str, entry_id: str) -> tuple[Envelope, Event] | None:
        if len(fields) != 2 or fields[0] != b"e":
            return None
        try:
            return self._codec.decode(fields[1], stream_type=topic, entry_id=entry_id)
        except DecodeError:
            return None

    def unfinished(self, groups: Mapping[str, Worker]) -> list[Unfinished]:
        """What groups have not dealt with, by group and entry id: at most a thousand entries of each topic. What waits
        for a worker of a newer version is not among it: nobody here could do it."""
        found: list[Unfinished] = []
        for key in self._link.run(topic_keys(self._partitions)):
            for group, worker in groups.items():
                if worker.handler_for(key.name) is not None:
                    found += self._unfinished(group, key.name, key.stream)
        for keys in self._partitions:
            for group in groups:
                for name in map(bytes.decode, self._link.call("SMEMBERS", keys.retries(group))):
                    found += self._unfinished(group, name, keys.retry(group, name))
        return sorted(found, key=lambda one: (one.group, id_order(one.entry_id)))

    def _unfinished(self, group: str, topic: str, stream: bytes) -> list[Unfinished]:
        rows = self._link.call("XINFO", "GROUPS", stream)
        known = [] if isinstance(rows, ReplyError) else [pairs(row) for row in rows]
        mine = next((row for row in known if row[b"name"] == group.encode()), None)
        cursor = b"(" + mine[b"last-delivered-id"] if mine else b"-"  # no group yet: a glob finds the topic soon
        unread = self._link.call("XRANGE", stream, cursor, "+", "COUNT", 1000)
        found = [Unfinished(group, topic, stream, entry_id.decode(), None) for entry_id, _ in unread]
        if mine and mine[b"pending"]:
            held = self._link.call("XPENDING", stream, group, "-", "+", 1000)
            found += [
                Unfinished(group, topic, stream, entry_id.decode(), owner.decode())
                for entry_id, owner, *_ in held
                if version_in(owner.decode()) is None
            ]
        return found

    def timers(self, until: float = math.inf) -> list[tuple[float, str]]:
        """Events that are put off to a wall time up to `until` (seconds since 1970), the earliest first: when they are
        due, and their types. One that was only just published, and that nobody has looked at, is due now."""
        found: list[tuple[float, str]] = []
        for keys in self._partitions:
            read = sorted_until(self._link.call("XINFO", "GROUPS", keys.stream(LATER_INBOX)))
            rows = self._link.call("XRANGE", keys.stream(LATER_INBOX), b"(" + read if read else "-", "+")
            found += [(0.0, later.unwrap(fields[1])[0]) for _, fields in rows]
            due = self._link.call("ZRANGEBYSCORE", keys.timers, "-inf", until * 1000, "WITHSCORES")
            for timer, score in zip(due[::2], due[1::2], strict=True):
                body = self._link.call("HGET", keys.timer_bodies, timer) or b""
                found.append((float(score) / 1000, later.carried(body)[0]))
        return sorted(found)

    def event(self, one: Unfinished) -> Event | None:
        """The event of an entry; None when it cannot be read."""
        rows = self._link.call("XRANGE", one.stream, one.entry_id, one.entry_id)
        opened = self._open(rows[0][1], one.event_type, one.entry_id) if rows else None
        return opened[1] if opened else None

    def redrive(self, group: str) -> int:
        """Put all dead letters of a group back to work; returns how many there were."""
        found = self._link.run(
            deadletter.dead_letters(self._partitions, deadletter.Filter(group=group), limit=1_000_000)
        )
        return sum(self._link.run(redrive(self._partitions, some)) for some in portions(found.letters))

    def close(self) -> None:
        self._link.close()
