"""What the killed worker would have said, had nobody killed it: another one that is given the same events, and lives.

The twin runs on a bus of its own, in memory. Every event that the worker reads and did not publish itself is put there
byte for byte, one step of the story after the other, and what the twin answers is compared, event by event: ids, order
and content. Only `occurred_on` may differ, which is when somebody said it.

Ids can be equal since the id of a derived event is made from that of its parent, the group, the handler and a number;
that the same windows are closed by the same batches, with the same figures, is what a crash could spoil.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from uuid import UUID

import msgspec
import trio

from canvasbus.cli.cast import MORTAL
from canvasbus.cli.onlooker import Onlooker, Seen, asked
from canvasbus.cli.story import Comparison
from canvasbus.errors import CanvasbusError, Unavailable
from canvasbus.transport.resp import Operation, check, command

if TYPE_CHECKING:
    from canvasbus.bus import EventBus

Said = dict[str, list[tuple[UUID, bytes]]]
"""Event type → (id, content) in the order in which they were said."""


@asynccontextmanager
async def twin_of(stuck: float) -> AsyncIterator["Twin"]:
    """Bring it to life. `stuck`: seconds after which it counts as hanging."""
    from canvasbus.bus import EventBus
    from canvasbus.operate import plugins

    worker = plugins.load(MORTAL)
    async with EventBus("memory://", namespace="twin", grace=2.0) as bus:
        bus.add(worker)
        await bus.wait_ready()
        yield Twin(bus, frozenset(topic for handler in worker.handlers for topic in handler.types), stuck)


class Twin:
    """The one that lives, and what both have said."""

    def __init__(self, bus: "EventBus", reads: frozenset[str], stuck: float) -> None:
        self._bus = bus
        self._reads = reads
        self._stuck = stuck
        self._onlooker = Onlooker("twin")
        self._killed: Said = {}
        self._lives: Said = {}

    async def follow(self, seen: Sequence[Seen]) -> None:
        """All that happened on the other bus since the last time. Returns when it has been handled here, too."""
        keep(self._killed, seen)
        given = [one for one in seen if one.envelope.type in self._reads and one.envelope.source != MORTAL]
        for one in given:
            stream = self._onlooker.stream(one.envelope.type)
            await self._give(stream, one.entry.fields)
        with trio.move_on_after(self._stuck):
            while not await self._step():
                await trio.sleep(0.005)
            return
        raise CanvasbusError(f"demo: the twin of {MORTAL} has not come to rest for {self._stuck:g} s")

    async def _give(self, stream: bytes, fields: Sequence[bytes]) -> None:
        """Once, also where the answer was lost: nobody else writes to that stream."""
        while True:
            try:
                await self._bus.link.call("XADD", stream, "*", *fields)
                return
            except Unavailable:
                last = await asked(self._bus.link, lambda: _last(stream))
                if last == list(fields):
                    return

    async def _step(self) -> bool:
        """At rest."""
        link, look = self._bus.link, self._onlooker
        keep(self._lives, await asked(link, look.take))
        done = await asked(link, look.handled)
        new = await asked(link, look.take)
        keep(self._lives, new)
        return done and not new

    def compare(self) -> Comparison:
        """What both have said so far."""
        return compared(self._killed, self._lives)


def _last(stream: bytes) -> Operation[list[bytes]]:
    """The fields of its last entry."""
    (rows,) = yield command("XREVRANGE", stream, "+", "-", "COUNT", 1)
    return rows[0][1] if check(rows, "look at the twin's events") else []


def keep(said: Said, seen: Iterable[Seen]) -> None:
    """Add what the worker said."""
    for one in seen:
        if one.envelope.source == MORTAL:
            said.setdefault(one.envelope.type, []).append((one.envelope.id, _content(one)))


def _content(seen: Seen) -> bytes:
    fields = msgspec.to_builtins(seen.event)
    del fields["occurred_on"]
    return msgspec.json.encode(fields, order="sorted")


def compared(one: Said, other: Said) -> Comparison:
    """Event by event, type by type."""
    equal = 0
    for event_type, events in one.items():
        equal += sum(a == b for a, b in zip(events, other.get(event_type, ()), strict=False))
    more = max(sum(map(len, one.values())), sum(map(len, other.values())))
    return Comparison(equal, more - equal)
