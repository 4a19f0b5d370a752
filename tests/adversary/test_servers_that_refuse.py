"""Attacks by the server's side: no memory, missing permissions, streams that take no more, on real servers."""

from collections.abc import Callable
from typing import Any

import pytest
import trio
from servers import ServerProcess
from studio import Eyes, PaintingFramed, PaintingMade, SculptureMade, quiet, running
from waiting import until

from canvasbus.worker import Backoff, Reject, Worker


def framing(gate: trio.Event | None = None, **options: Any) -> Worker:
    worker = Worker("framers")

    @worker.on(PaintingMade, **options)
    async def frame(event: PaintingMade) -> list[PaintingFramed]:
        if gate is not None:
            await gate.wait()
        if event.title == "reject":
            raise Reject("no")
        return [PaintingFramed(number=event.number)]

    return worker


@pytest.mark.parametrize("kind", ["redis", "valkey"])
async def test_a_full_server_takes_dead_letters_and_later_everything(
    make_server: Callable[..., ServerProcess], namespace: str, kind: str
) -> None:
    """At maxmemory the dead letter of a rejected event is written, derived events wait, and with room each comes once."""
    server = make_server(kind)
    eyes = Eyes(server.url, namespace)
    async with running(server.url, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n, title="reject" if n % 10 == 0 else "") for n in range(100)])
    gate = trio.Event()
    async with running(server.url, framing(gate, concurrency=200), namespace=namespace, grace=0.1):
        await until(lambda: eyes.pending("framers"))
        eyes.call("CONFIG", "SET", "maxmemory", "1")
        gate.set()
        await until(lambda: len(eyes.dead("framers")) == 10)
        assert eyes.count("painting.framed") == 0
        eyes.call("CONFIG", "SET", "maxmemory", "0")
        await until(lambda: eyes.count("painting.framed") >= 90)
        await quiet(eyes)
    assert sorted(e.number for e in eyes.events("painting.framed")) == [n for n in range(100) if n % 10]
    eyes.close()


async def test_without_the_right_to_acknowledge_nothing_is_written_twice(
    make_server: Callable[..., ServerProcess], namespace: str
) -> None:
    """An ACL without XACK: the error is in the log, derived events are not repeated at every attempt."""
    server = make_server("redis")
    eyes = Eyes(server.url, namespace)
    async with running(server.url, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(3)])
    eyes.call("ACL", "SETUSER", "worker", "on", ">pw", "~*", "&*", "+@all", "-xack")
    url = server.url.replace("redis://", "redis://worker:pw@")
    with trio.move_on_after(2):
        async with running(url, framing(retry=Backoff(attempts=3, base=0.01)), namespace=namespace, grace=0.1):
            await trio.sleep(1)
    assert eyes.count("painting.framed") == 0
    eyes.call("ACL", "SETUSER", "worker", "+xack")
    async with running(url, framing(), namespace=namespace):
        await until(lambda: eyes.count("painting.framed") >= 3, 15)
        await quiet(eyes)
    assert sorted(e.number for e in eyes.events("painting.framed")) == [0, 1, 2]
    eyes.close()


async def test_a_stream_that_takes_no_more_ids_stops_only_its_own(server_url: str, namespace: str) -> None:
    """The last possible id is used up: who derives events there fails and ends in the dead letters, its neighbours in
    the same batch are committed once."""
    eyes = Eyes(server_url, namespace)
    eyes.call("XADD", eyes.stream("sculpture.made"), f"{2**64 - 1}-{2**64 - 1}", "e", "x")
    worker = Worker("framers")

    @worker.on(PaintingMade, retry=Backoff(attempts=2, base=0.01))
    async def frame(event: PaintingMade) -> list[Any]:
        framed = PaintingFramed(number=event.number)
        return [framed, SculptureMade()] if event.number == 7 else [framed]

    async with running(server_url, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(20)])
    async with running(server_url, worker, namespace=namespace):
        await quiet(eyes)
    assert sorted(e.number for e in eyes.events("painting.framed")) == [n for n in range(20) if n != 7]
    (letter,) = eyes.dead("framers")
    assert "ID" in letter.error
    eyes.close()
