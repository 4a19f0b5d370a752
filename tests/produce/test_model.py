"""A Producer under random publishing, flushing, outages and lost replies, against the simplest model: a list."""

import random
from typing import Any

import pytest
from proxy import Proxy
from seeds import seeds
from servers import ServerProcess
from studio import Eyes, PaintingMade

from canvasbus import CanvasbusError, Producer
from canvasbus.transport.memory import MemoryServer


@pytest.mark.parametrize("seed", seeds(2, "model"))
def test_nothing_is_lost_or_doubled(make_server: Any, namespace: str, seed: int) -> None:
    """A persistent server is killed and restarted, connections are cut, replies are lost, packets are held up: a flush
    that is True means that all is there, and in the end the stream is the list of what was published."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    server: ServerProcess = make_server(persistent=True)
    published: list[Any] = []
    told: dict[Any, list[CanvasbusError | None]] = {}
    up = True

    def stored() -> list[Any]:
        eyes = Eyes(server.url, namespace)
        ids = [envelope.id for envelope, _ in eyes.entries("painting.made")]
        eyes.close()
        return ids

    def tell(event_id: Any, error: CanvasbusError | None) -> None:
        told.setdefault(event_id, []).append(error)

    with Proxy(server.port) as proxy, Producer(proxy.url, namespace=namespace, on_delivery=tell) as bus:
        for _ in range(90):
            action = rng.choices(
                ["publish", "many", "flush", "fault", "cut", "kill", "release"], [6, 3, 3, 3, 1, 1, 1]
            )[0]
            if action == "publish":
                published.append(bus.publish(PaintingMade(number=len(published))))
            elif action == "many":
                published += bus.publish_many([PaintingMade()] * rng.choice([2, 50, 700]))
            elif action == "flush":
                late = not bus.flush(timeout=10 if up else 0.01)
                assert late is not up
                if up:
                    assert stored() == published
                elif rng.random() < 0.8:
                    server.start()
                    up = True
            elif action == "fault" and proxy.pending < 3:  # more in a row only make the pauses long
                proxy.next(
                    rng.choice([b"XADD", b"XADD", b"INCR", b"WATCH"]), rng.choice(["cut", "tear", "lose", "hold"])
                )
            elif action == "cut":
                proxy.cut()
            elif action == "release" and up:
                proxy.release()
            elif action == "kill" and up and published:
                server.kill()
                published.append(bus.publish(PaintingMade(number=len(published))))
                up = False
        if not up:
            server.start()
        assert bus.flush(timeout=20) is True
        proxy.release()
        now = bus.statistics()
        assert stored() == published
        assert (now.stored, now.published, now.unknown, now.dropped) == (len(published), len(published), 0, 0)
    assert told == {event_id: [None] for event_id in published}


@pytest.mark.parametrize("seed", seeds(4, "model"))
def test_what_is_lost_is_counted(memory: MemoryServer, namespace: str, seed: int) -> None:
    """A small buffer and a server that comes and goes: the numbers always add up, the stream holds exactly what was told
    as stored, in order, and flush is False if and only if something was dropped since the flush before."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    published: list[Any] = []
    told: dict[Any, CanvasbusError | None] = {}
    up = True
    with Producer(
        memory.name, namespace=namespace, buffer_bytes=4000, on_delivery=told.__setitem__, partitions=1
    ) as bus:
        failed = 0
        for _ in range(150):
            action = rng.choices(["publish", "many", "flush", "switch"], [8, 2, 3, 2])[0]
            if action == "publish":
                published.append(bus.publish(PaintingMade(title="x" * rng.randrange(300))))
            elif action == "many":
                published += bus.publish_many([PaintingMade()] * rng.randrange(40))
            elif action == "switch":
                up = not up
                memory.set_connected(up)
            elif up:
                done = bus.flush(timeout=10)
                now = bus.statistics()
                assert now.waiting_events == 0 and done is (now.dropped == failed)
                failed = now.dropped
            now = bus.statistics()
            assert now.published == len(published) == now.stored + now.dropped + now.waiting_events
            assert now.waiting_bytes <= 4000
        memory.set_connected(True)
        bus.flush(timeout=10)
        assert bus.flush(timeout=10) is True
    assert set(told) == set(published)
    good = [event_id for event_id in published if told[event_id] is None]
    assert [envelope.id for envelope, _ in Eyes(memory, namespace).entries("painting.made")] == good
    assert bus.statistics().stored == len(good)
