"""A master that becomes a replica while everybody is connected to it, and a server that freezes: real servers."""

from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import trio
from faulty import Fault, FaultyServer
from proxy import Proxy
from servers import ServerProcess
from studio import Eyes, PaintingMade, framing, quiet, running
from waiting import until

from canvasbus import Producer
from canvasbus.bus import EventBus
from canvasbus.transport.blocking import BlockingLink
from canvasbus.transport.connect import open_server
from canvasbus.transport.link import Link, SharedLink
from canvasbus.transport.resp import ReplyError, command

DEMOTED = (
    "READONLY You can't write against a read only replica.",
    "READONLY You can't write against a read only replica. script: 1e6f, on @user_script:4.",
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
)
STAYING = ("UNBLOCKED client unblocked via CLIENT UNBLOCK", "OOM command not allowed", "NOGROUP no READONLY here")


@pytest.mark.parametrize("text", [*DEMOTED, *STAYING])
async def test_a_link_leaves_a_server_that_is_no_master_any_more(
    any_url: str, nursery: trio.Nursery, text: str
) -> None:
    """The error comes back as a value, as always; the next request finds whoever is master now by a new connection.
    Other errors cost no connection."""
    server = FaultyServer(open_server(any_url))
    link, shared, blocking = Link(server), SharedLink(server), BlockingLink(server)
    await nursery.start(shared.run_tasks)
    for each in (link, shared, blocking):
        server.faults.append(Fault("answer", b"DBSIZE", answer=text))
        packet = command("DBSIZE")
        (reply,) = each.request(packet) if isinstance(each, BlockingLink) else await each.request(packet)
        assert isinstance(reply, ReplyError) and str(reply) == text
        await until(lambda each=each: ("closed" in repr(each)) == (text in DEMOTED))
        (again,) = each.request(packet) if isinstance(each, BlockingLink) else await each.request(packet)
        assert isinstance(again, int) and each.epoch == (2 if text in DEMOTED else 1)
    await link.aclose()
    blocking.close()
    nursery.cancel_scope.cancel()


@pytest.fixture(params=["redis", "valkey"])
def pair(
    request: pytest.FixtureRequest, make_server: Callable[..., ServerProcess]
) -> Iterator[tuple[ServerProcess, ServerProcess, Proxy]]:
    """A master, its replica, and an address that leads to whoever is master when somebody connects."""
    first, second = make_server(request.param), make_server(request.param)
    with Proxy(first.port) as proxy:
        yield first, second, proxy


async def test_everybody_follows_a_failover(pair: tuple[ServerProcess, ServerProcess, Proxy], namespace: str) -> None:
    """The old master goes on answering, as a replica: Producer, bus and worker leave it, and each event is framed once
    on the new one, those published before and after the change."""
    first, second, proxy = pair
    old, new = Eyes(first.url, namespace), Eyes(second.url, namespace)
    new.call("REPLICAOF", "127.0.0.1", first.port)
    async with running(proxy.url, framing(), namespace=namespace) as bus:
        with Producer(proxy.url, namespace=namespace) as producer:
            for number in range(20):
                producer.publish(PaintingMade(number=number))
            assert await trio.to_thread.run_sync(producer.flush, 10)
            await bus.publish_many([PaintingMade(number=number) for number in range(20, 40)])
            await until(lambda: old.count("painting.framed") == 40)
            await quiet(old)
            await until(lambda: old.call("WAIT", 1, 1000) == 1 and new.count("painting.framed") == 40, 20)

            new.call("REPLICAOF", "NO", "ONE")
            old.call("REPLICAOF", "127.0.0.1", second.port)
            proxy.lead_to(second.port)

            for number in range(40, 60):
                producer.publish(PaintingMade(number=number))
            assert await trio.to_thread.run_sync(producer.flush, 10)
        with trio.fail_after(10):
            await bus.publish_many([PaintingMade(number=number) for number in range(60, 80)])
        await until(lambda: new.count("painting.framed") == 80)
        await quiet(new)
    assert Counter(frame.number for frame in new.events("painting.framed")) == dict.fromkeys(range(80), 1)
    old.close()
    new.close()


async def test_a_bus_is_left_quickly_although_the_server_is_frozen(
    make_server: Callable[..., ServerProcess], namespace: str
) -> None:
    """Cancelled while nothing answers: the blocked read is waited for as long as it could take, not as long as a reply
    may, and nobody waits to say goodbye. (It took seven seconds.)"""
    server = make_server()
    async with trio.open_nursery() as nursery:
        bus = EventBus(server.url, namespace=namespace)
        bus.add(framing())

        async def publish() -> None:
            async with bus:
                await bus.wait_ready()
                await bus.publish(PaintingMade(number=1))
                server.freeze()
                cancel.set()
                await bus.publish(PaintingMade(number=2))

        cancel = trio.Event()
        nursery.start_soon(publish)
        await cancel.wait()
        began = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - began < 3.5
    server.thaw()
