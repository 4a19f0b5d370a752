"""A master under three sentinels dies or is cut off: everybody follows to the new one by themselves."""

from collections import Counter
from collections.abc import Callable
from uuid import UUID

import pytest
import trio
from proxy import Proxy
from servers import ServerProcess, Watched
from studio import Eyes, PaintingMade, framing, quiet, running
from waiting import until

from canvasbus import Producer
from canvasbus.bus import EventBus
from canvasbus.cli.main import main
from canvasbus.errors import CanvasbusError
from canvasbus.produce import fenced
from canvasbus.produce.fenced import Durability

MakeServer = Callable[..., ServerProcess]


class Publishing:
    """Two publishers that go on and on, and what they were told about each event."""

    def __init__(self, bus: EventBus, producer: Producer) -> None:
        self.stored: dict[int, float] = {}
        """Number → when it was acknowledged, on trio's clock of the moment."""
        self.failed: list[int] = []
        self._bus = bus
        self._producer = producer
        self._numbers: dict[UUID, int] = {}

    def since(self, when: float, parity: int) -> bool:
        """Whether the bus (0) or the Producer (1) had something acknowledged after that moment."""
        return any(number % 2 == parity and at > when for number, at in self.stored.items())

    async def by_bus(self) -> None:
        for number in range(0, 10_000_000, 2):
            try:
                await self._bus.publish(PaintingMade(number=number))
            except CanvasbusError:
                self.failed.append(number)
            else:
                self.stored[number] = trio.current_time()
            await trio.sleep(0.002)

    async def by_producer(self) -> None:
        token = trio.lowlevel.current_trio_token()
        numbers = self._numbers

        def told(event_id: UUID, error: CanvasbusError | None) -> None:
            def note() -> None:
                if error is None:
                    self.stored[numbers[event_id]] = trio.current_time()
                else:
                    self.failed.append(numbers[event_id])

            token.run_sync_soon(note)

        for number in range(1, 10_000_000, 2):
            event_id = self._producer.publish(PaintingMade(number=number), on_delivery=told)
            assert event_id is not None
            numbers[event_id] = number
            await trio.sleep(0.002)


async def test_everybody_follows_when_the_master_is_killed(
    watched: Watched, namespace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """kill -9 of the master under load: bus, Producer, worker and command line go on with the new one. What was
    acknowledged in the last moments may be gone, as one server's word promises no more; all else is there, in order
    for each publisher, and framed exactly once."""
    async with running(watched.url, framing(), namespace=namespace) as bus:
        with Producer(watched.url, namespace=namespace) as producer:
            publishing = Publishing(bus, producer)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(publishing.by_bus)
                nursery.start_soon(publishing.by_producer)
                await until(lambda: len(publishing.stored) >= 200)
                watched.master.kill()
                killed = trio.current_time()
                for parity in (0, 1):
                    await until(lambda parity=parity: publishing.since(killed + 0.5, parity), 20)
                before = len(publishing.stored)
                await until(lambda: len(publishing.stored) >= before + 200)
                nursery.cancel_scope.cancel()
            assert await trio.to_thread.run_sync(producer.flush, 10)
        eyes = Eyes(watched.replica.url, namespace)
        await quiet(eyes, timeout=20)
        topics = await trio.to_thread.run_sync(main, ["topics", "--url", watched.url, "--namespace", namespace])
    numbers = [event.number for event in eyes.events("painting.made")]
    lost = publishing.stored.keys() - set(numbers)
    assert publishing.failed == []
    assert all(killed - publishing.stored[number] < 1 for number in lost) and len(lost) < 100
    assert topics == 0 and "painting.framed" in capsys.readouterr().out
    for parity in (0, 1):
        mine = [number for number in numbers if number % 2 == parity]
        assert mine == sorted(set(mine))
    assert Counter(event.number for event in eyes.events("painting.framed")) == dict.fromkeys(numbers, 1)
    eyes.close()


async def test_a_frozen_master_loses_nothing_that_a_replica_confirmed(watched: Watched, namespace: str) -> None:
    """The master stops for the time of a failover and comes back with what it had in hand: with
    durability="replicated" every acknowledged event is on the new one, once, and nothing is unknown."""
    async with running(watched.url, framing(), namespace=namespace, durability="replicated") as bus:
        with Producer(watched.url, namespace=namespace, durability="replicated") as producer:
            publishing = Publishing(bus, producer)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(publishing.by_bus)
                nursery.start_soon(publishing.by_producer)
                await until(lambda: len(publishing.stored) >= 100)
                watched.master.freeze()
                await until(lambda: watched.promoted, 15)
                watched.master.thaw()
                changed = trio.current_time()
                # There is no replica until the old master follows, which the sentinels see to after eight seconds.
                watched.master.ask(f"REPLICAOF 127.0.0.1 {watched.replica.port}")
                for parity in (0, 1):
                    await until(lambda parity=parity: publishing.since(changed + 0.1, parity), 20)
                nursery.cancel_scope.cancel()
            assert await trio.to_thread.run_sync(producer.flush, 10)
        eyes = Eyes(watched.replica.url, namespace)
        await quiet(eyes, timeout=20)
    numbers = Counter(event.number for event in eyes.events("painting.made"))
    assert publishing.failed == []
    assert publishing.stored.keys() <= numbers.keys() and set(numbers.values()) == {1}
    assert Counter(event.number for event in eyes.events("painting.framed")) == dict(numbers)
    eyes.close()


@pytest.mark.parametrize("dedupe", [False, True])
@pytest.mark.parametrize("durability", ["server", "replicated"])
async def test_a_publisher_left_beside_the_old_master(
    kind: str,
    make_server: MakeServer,
    namespace: str,
    monkeypatch: pytest.MonkeyPatch,
    durability: Durability,
    dedupe: bool,
) -> None:
    """The replica has been promoted behind the back of a publisher, whose old master goes on accepting until it hears
    of it. What only the old master had is lost where its word was enough, and published again where it was not. Marks
    change nothing of that: those of the old master are lost with their events."""
    monkeypatch.setattr(fenced, "WAIT_MS", 50)
    old, new = (make_server(kind, config=("--repl-diskless-sync-delay", "0")) for _ in range(2))
    old_eyes, new_eyes = Eyes(old.url, namespace), Eyes(new.url, namespace)
    new_eyes.call("REPLICAOF", "127.0.0.1", old.port)
    await until(lambda: "master_link_status:up" in new.ask("INFO replication"))
    with Proxy(old.port) as proxy:
        async with EventBus(proxy.url, namespace=namespace, durability=durability, dedupe=dedupe) as bus:
            await bus.publish_many([PaintingMade(number=number) for number in range(50)])
            await until(lambda: new_eyes.count("painting.made") == 50)
            new_eyes.call("REPLICAOF", "NO", "ONE")
            acknowledged: list[int] = []

            async def publish() -> None:
                for number in range(50, 100):
                    await bus.publish(PaintingMade(number=number))
                    acknowledged.append(number)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(publish)
                await until(lambda: old_eyes.count("painting.made") > 50)
                if durability == "server":
                    await until(lambda: len(acknowledged) == 50)
                else:
                    await until(lambda: bus._publisher._lanes[0].sender.statistics.unconfirmed >= 2)
                    assert acknowledged == []
                proxy.lead_to(new.port)
                old_eyes.call("REPLICAOF", "127.0.0.1", new.port)
            await bus.publish(PaintingMade(number=100))
    numbers = [event.number for event in new_eyes.events("painting.made")]
    assert acknowledged == list(range(50, 100))
    if durability == "replicated":
        assert numbers == list(range(101))
    else:
        assert numbers == [*range(50), 100]
    old_eyes.close()
    new_eyes.close()
