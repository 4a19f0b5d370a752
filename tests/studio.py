"""A small studio for the tests of consuming: three kinds of events, a bus with workers on it, and eyes on the server."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import trio
from waiting import until

from canvasbus import Event, event
from canvasbus.bus import EventBus
from canvasbus.consume.runner import Runner
from canvasbus.consume.subscription import Subscription
from canvasbus.transport.blocking import BlockingLink
from canvasbus.transport.connect import open_server
from canvasbus.transport.resp import Operation, ReplyError
from canvasbus.transport.server import Server
from canvasbus.wire import deadletter
from canvasbus.wire.codec import Codec
from canvasbus.wire.deadletter import DeadLetterRecord
from canvasbus.wire.envelope import Envelope
from canvasbus.wire.keys import Keys
from canvasbus.worker import Worker

T = TypeVar("T")


@event("painting.made", key="title")
class PaintingMade(Event):
    title: str = "untitled"
    number: int = 0


@event("painting.framed")
class PaintingFramed(Event):
    title: str = ""
    number: int = 0


@event("sculpture.made")
class SculptureMade(Event):
    title: str = ""


class Eyes:
    """What lies on the server, read past the bus with plain commands."""

    def __init__(self, server: str | Server, namespace: str, partition: int = 0) -> None:
        self.server = open_server(server) if isinstance(server, str) else server
        self.keys = Keys(namespace, partition)
        self._link = BlockingLink(self.server)
        self._codec = Codec()

    def call(self, *args: bytes | str | float) -> Any:
        reply = self._link.call(*args)
        assert not isinstance(reply, ReplyError), reply
        return reply

    def run(self, operation: Operation[T]) -> T:
        """Run an operation of the bus's own."""
        return self._link.run(operation)

    def stream(self, event_type: str = "painting.made") -> bytes:
        return self.keys.stream(event_type)

    def put(self, value: bytes, event_type: str = "painting.made") -> str:
        """Add an entry as a foreign writer would."""
        return self.call("XADD", self.stream(event_type), "*", "e", value).decode()

    def count(self, event_type: str) -> int:
        return int(self.call("XLEN", self.stream(event_type)))

    def events(self, event_type: str) -> list[Any]:
        return [event for _, event in self.entries(event_type)]

    def entries(self, event_type: str) -> list[tuple[Envelope, Any]]:
        rows = self.call("XRANGE", self.stream(event_type), "-", "+")
        return [
            self._codec.decode(fields[1], stream_type=event_type, entry_id=entry_id.decode())
            for entry_id, fields in rows
        ]

    def dead(self, group: str) -> list[DeadLetterRecord]:
        rows = self.call("XRANGE", self.keys.dead(group), "-", "+")
        return [deadletter.decode(fields[1]) for _, fields in rows]

    def pending(self, group: str, event_type: str = "painting.made") -> list[tuple[str, str, int]]:
        """(entry id, owner, deliveries counted) of all that the group has not acknowledged."""
        rows = self._link.call("XPENDING", self.stream(event_type), group, "-", "+", 10_000)
        return [] if isinstance(rows, ReplyError) else [(row[0].decode(), row[1].decode(), row[3]) for row in rows]

    def consumers(self, group: str, event_type: str = "painting.made") -> set[str]:
        rows = self._link.call("XINFO", "CONSUMERS", self.stream(event_type), group)
        return set() if isinstance(rows, ReplyError) else {row[1].decode() for row in rows}

    def close(self) -> None:
        self._link.close()


def framing(name: str = "framers", **options: Any) -> Worker:
    """A worker that answers every painting with a frame."""
    worker = Worker(name)

    @worker.on(PaintingMade, **options)
    async def frame(event: PaintingMade) -> PaintingFramed:
        return PaintingFramed(title=event.title, number=event.number)

    return worker


@asynccontextmanager
async def running(url: str | Server, *workers: Worker, namespace: str, **options: Any) -> AsyncIterator[EventBus]:
    """A bus with these workers on it, all of which have joined. `url` may be a Server, for servers that misbehave."""
    bus = EventBus(url if isinstance(url, str) else "memory://", namespace=namespace, **options)
    if not isinstance(url, str):
        replace_server(bus, url)
    for worker in workers:
        bus.add(worker)
    async with bus:
        with trio.fail_after(20):
            await bus.wait_ready()
        yield bus


def replace_server(bus: EventBus, server: Server) -> None:
    """Put a server of the test's own under a bus that has not been entered."""
    bus._server = server
    bus._shared.server = server
    for lane in bus._publisher._lanes:
        lane.link.server = server


def runner_of(bus: EventBus, index: int = 0) -> Runner:
    return bus._runners[index]


def subscription_of(bus: EventBus, index: int = 0) -> Subscription:
    incarnation = runner_of(bus, index)._current
    assert incarnation is not None
    return incarnation.subscriptions[0]


async def quiet(eyes: Eyes, *groups: str, event_type: str = "painting.made", timeout: float = 10.0) -> None:
    """Return when the groups have read everything and nothing is pending."""

    def done() -> bool:
        rows = eyes.call("XINFO", "GROUPS", eyes.stream(event_type))
        info = [dict(zip(row[::2], row[1::2], strict=True)) for row in rows]
        last = eyes.call("XREVRANGE", eyes.stream(event_type), "+", "-", "COUNT", 1)
        return all(
            i[b"pending"] == 0 and (not last or i[b"last-delivered-id"] == last[0][0])
            for i in info
            if not groups or i[b"name"].decode() in groups
        )

    await until(done, timeout)


Handle = Callable[..., Any]


def numbers(namespace: str) -> list[int]:
    """Of the paintings that were published in a memory server's namespace of its own name."""
    return [made.number for made in Eyes(f"memory://{namespace}", namespace).events("painting.made")]
