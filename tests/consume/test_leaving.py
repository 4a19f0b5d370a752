"""A worker that leaves while the network is in trouble leaves nothing that others have to wait for, and nothing of it
comes later."""

import trio
from faulty import FaultyServer, commands_in
from studio import Eyes, PaintingMade, framing, running
from waiting import until

from canvasbus.errors import Unavailable
from canvasbus.transport.connect import open_server
from canvasbus.transport.settle_script import SETTLE
from canvasbus.worker import Worker


class Trouble:
    """From its start to its end no packet comes through that has one of these commands or scripts in it."""

    def __init__(self, server: FaultyServer) -> None:
        self.kept: list[bytes] = []
        self._server = server

    def start(self, *words: bytes) -> None:
        def meet(data: bytes) -> None:
            names = commands_in(data)
            if any(word in (data if len(word) == 40 else names) for word in words):
                self.kept.append(data)
                raise Unavailable("the request was lost", ambiguous=True)

        self._server.on_packet = meet

    def end(self) -> None:
        self._server.on_packet = None


async def test_a_commit_that_comes_late_changes_nothing(any_url: str, namespace: str, eyes: Eyes) -> None:
    """What was on its way when its worker left is not executed once others have what it was about."""
    server = FaultyServer(open_server(any_url))
    sha = SETTLE.sha.encode()
    trouble = Trouble(server)
    async with running(server, framing(), namespace=namespace, grace=0.0) as bus:
        trouble.start(sha, b"INCR")
        await bus.publish(PaintingMade(number=1))
        await until(lambda: bool(trouble.kept))
        trouble.end()
        await bus.aclose()
    assert eyes.count("painting.framed") == 0
    async with running(any_url, framing(), namespace=namespace):
        await until(lambda: eyes.count("painting.framed") > 0)
    late = next(packet for packet in trouble.kept if sha in packet)
    connection = eyes.server.connect_blocking()
    connection.request(late, 1, 1.0)
    connection.close()
    assert eyes.count("painting.framed") == 1 and eyes.pending("framers") == []


async def test_what_was_given_out_and_never_came_is_handed_back(any_url: str, namespace: str, eyes: Eyes) -> None:
    """The answer that brought it was lost, and the worker could not look for it before it left."""
    server = FaultyServer(open_server(any_url))
    trouble = Trouble(server)
    trouble.start(b"XREADGROUP")
    async with running(server, framing(), namespace=namespace, grace=0.0) as bus:
        trouble.start(b"XREADGROUP", b"XPENDING")
        await bus.publish(PaintingMade(number=1))
        name = bus.statistics()[0].consumer
        given = eyes.call("XREADGROUP", "GROUP", "framers", name, "STREAMS", eyes.stream("painting.made"), ">")
        assert len(given) == 1
        trouble.end()
        await bus.aclose()
    assert [owner for _, owner, _ in eyes.pending("framers")] in (["~free"], [])


async def test_what_is_done_is_not_done_again(any_url: str, namespace: str, eyes: Eyes) -> None:
    """An acknowledgement that was cut short is said once more by whoever leaves."""
    server = FaultyServer(open_server(any_url))
    trouble = Trouble(server)
    done = trio.Event()
    worker = Worker("framers")

    @worker.on(PaintingMade)
    async def look(event: PaintingMade) -> None:
        done.set()

    async with running(server, worker, namespace=namespace, grace=0.0) as bus:
        trouble.start(b"XACK")
        await bus.publish(PaintingMade(number=1))
        await done.wait()
        await until(lambda: bool(trouble.kept))
        trouble.end()
        await bus.aclose()
    assert eyes.pending("framers") == [] and eyes.consumers("framers") == set()
