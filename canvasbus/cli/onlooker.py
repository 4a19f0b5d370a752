"""Reads all that is said on a bus, in order, and knows when everybody has done what there is to do."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from canvasbus import Event
from canvasbus.cli.story import order
from canvasbus.contract.registry import registry
from canvasbus.errors import Unavailable
from canvasbus.operate.entry import Entry, entries
from canvasbus.transport.resp import Operation, ReplyError, check, command, commands, pairs
from canvasbus.wire.codec import Codec
from canvasbus.wire.envelope import Envelope
from canvasbus.wire.keys import Keys

if TYPE_CHECKING:
    from canvasbus.transport.link import SharedLink

T = TypeVar("T")

TRIES = 5


async def asked(link: "SharedLink", make: Callable[[], Operation[T]]) -> T:
    """What only looks can be asked again. Where one process plays everybody it may be busy with a training for so long that
    an answer counts as none although it is there."""
    for _ in range(TRIES):
        try:
            return await link.run(make())
        except Unavailable:
            pass
    return await link.run(make())


@dataclass(frozen=True, slots=True)
class Seen:
    """One event."""

    entry: Entry
    envelope: Envelope
    event: Event


class Onlooker:
    """Belongs to no group, so nobody notices."""

    def __init__(self, namespace: str) -> None:
        self._codec = Codec()
        self._keys = Keys(namespace)
        self._topic = {self._keys.stream(name): name for name in registry.names()}
        self._read = dict.fromkeys(self._topic, "0-0")
        """Stream → the last entry that was read of it."""

    def stream(self, event_type: str) -> bytes:
        """Its key."""
        return self._keys.stream(event_type)

    def take(self) -> Operation[list[Seen]]:
        """What is new, in the order in which the server took it."""
        reply = yield command("XREAD", "COUNT", 500, "STREAMS", *self._read, *self._read.values())
        found = [entry for name, rows in check(reply[0], "read") or () for entry in entries(self._topic[name], 0, rows)]
        for name, rows in check(reply[0], "read") or ():
            self._read[name] = rows[-1][0].decode()
        seen = []
        for entry in sorted(found, key=lambda entry: order(entry.entry_id, entry.topic)):
            envelope, event = self._codec.decode(entry.fields[1], stream_type=entry.topic, entry_id=entry.entry_id)
            seen.append(Seen(entry, envelope, event))
        return seen

    def joined(self, reads: frozenset[tuple[str, str]]) -> Operation[bool]:
        """Every (group, event type) has its group on its topic."""
        found = yield from self._groups()
        return reads <= {(group, self._topic[stream]) for stream, group, _, _ in found}

    def handled(self) -> Operation[bool]:
        """Every group has handled all that was taken here."""
        found = yield from self._groups()
        return all(pending == 0 and last == self._read[stream] for stream, _, pending, last in found)

    def in_hand(self, group: str) -> Operation[int]:
        """Entries that the group was given and that are not done."""
        found = yield from self._groups()
        return sum(pending for _, name, pending, _ in found if name == group)

    def _groups(self) -> Operation[Sequence[tuple[bytes, str, int, str]]]:
        """(stream, group, entries pending, last entry delivered)"""
        replies = yield commands(*(("XINFO", "GROUPS", stream) for stream in self._read))
        return [
            (stream, row[b"name"].decode(), int(row[b"pending"]), row[b"last-delivered-id"].decode())
            for stream, rows in zip(self._read, replies, strict=True)
            if not isinstance(rows, ReplyError)
            for row in map(pairs, rows)
        ]

    def __repr__(self) -> str:
        return f"<Onlooker of {len(self._read)} topics>"
