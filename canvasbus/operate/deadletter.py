"""Dead letters: what groups gave up, why, and the original event inside."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec

from canvasbus.contract.globs import glob_matches
from canvasbus.ids import id_order
from canvasbus.operate.entry import Entry, View, view
from canvasbus.operate.topics import scan, time_of
from canvasbus.operate.words import text
from canvasbus.transport.resp import Operation, check, command
from canvasbus.wire import deadletter
from canvasbus.wire.codec import Codec
from canvasbus.wire.deadletter import DeadLetterRecord
from canvasbus.wire.keys import Keys

PAGE = 200


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One given-up entry as it lies in its group's dead-letter stream."""

    id: str
    """Its id there; `canvasbus dlq show` takes it."""
    group: str
    partition: int
    record: DeadLetterRecord | None
    """None: somebody else wrote into the stream, see `problem`."""
    problem: str | None = None

    @property
    def time(self) -> datetime | None:
        """When it was given up."""
        return time_of(self.id)

    def original(self, codec: Codec) -> View | None:
        """The event inside, as far as it can be read."""
        if self.record is None:
            return None
        return view(Entry(self.record.event_type, self.partition, self.record.entry_id, self.record.fields), codec)


@dataclass(frozen=True, slots=True)
class Listing:
    """What `dead_letters` found."""

    letters: tuple[DeadLetter, ...]
    """The newest that match, oldest first."""
    more: bool
    """There are older ones that match."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which dead letters are meant; None matches all."""

    group: str | None = None
    event_type: str | None = None
    """Type name; * stands for any characters."""
    reason: str | None = None
    id: str | None = None
    """Its id in the dead-letter stream, or the id of the event inside."""
    since: str | None = None
    """The first id in the dead-letter stream."""
    until: str | None = None
    """The id behind the last."""

    def matches(self, letter: DeadLetter) -> bool:
        record, at = letter.record, id_order(letter.id)
        if (self.since and at < id_order(self.since)) or (self.until and at >= id_order(self.until)):
            return False
        if self.id is not None and self.id not in (letter.id, record.event_id if record else None):
            return False
        if record is None:
            return self.event_type is None and self.reason in (None, "foreign")
        return self.reason in (None, record.reason) and (
            self.event_type is None or glob_matches(self.event_type, record.event_type)
        )


def dead_letters(partitions: Sequence[Keys], wanted: Filter, *, limit: int = 100) -> Operation[Listing]:
    """The newest `limit` dead letters that match."""
    found: list[DeadLetter] = []
    for keys in partitions:
        for group in (yield from _groups(keys)) if wanted.group is None else [wanted.group]:
            found += yield from _newest(keys, group, wanted, limit + 1)
    found.sort(key=lambda letter: (id_order(letter.id), letter.group))
    return Listing(tuple(found[-limit:]), len(found) > limit)


def _groups(keys: Keys) -> Operation[list[str]]:
    """Groups that may have dead letters: declared ones, and those whose workers are long gone."""
    (declared,) = yield command("HKEYS", keys.groups)
    names = set(check(declared, "look for groups"))
    head = keys.dead("")
    names |= {key[len(head) :] for key in (yield from scan(keys.dead("*")))}
    return sorted(map(text, names))


def _newest(keys: Keys, group: str, wanted: Filter, limit: int) -> Operation[list[DeadLetter]]:
    found: list[DeadLetter] = []
    end = b"+"
    while len(found) < limit:
        (rows,) = yield command("XREVRANGE", keys.dead(group), end, "-", "COUNT", PAGE)
        for entry_id, fields in check(rows, f"read the dead letters of {group}"):
            letter = _letter(group, keys.partition, entry_id.decode(), fields)
            if wanted.matches(letter):
                found.append(letter)
        if len(rows) < PAGE:
            break
        end = b"(" + rows[-1][0]
    return found[:limit]


def _letter(group: str, partition: int, letter_id: str, fields: list[bytes]) -> DeadLetter:
    if len(fields) != 2 or fields[0] != b"e":
        return DeadLetter(letter_id, group, partition, None, "not written by the bus")
    try:
        return DeadLetter(letter_id, group, partition, deadletter.decode(fields[1]))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        return DeadLetter(letter_id, group, partition, None, f"not a dead letter: {error}")
