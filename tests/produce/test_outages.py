"""Servers that are away, die, refuse, fill up, and networks that lose replies: nothing is lost, nothing is doubled."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from proxy import Proxy
from servers import ServerProcess, free_port
from studio import Eyes, PaintingMade, SculptureMade

from canvasbus import Producer
from canvasbus.transport.memory import MemoryServer

Soon = Callable[..., Any]
Warnings = Callable[[], list[str]]
MakeServer = Callable[..., ServerProcess]


@pytest.fixture
def server(make_server: MakeServer) -> ServerProcess:
    """A server of the test's own that keeps what it acknowledged."""
    return make_server(persistent=True)


@pytest.fixture
def proxy(server: ServerProcess) -> Iterator[Proxy]:
    """A proxy before that server."""
    with Proxy(server.port) as proxy:
        yield proxy


def numbers(url: str, namespace: str) -> list[int]:
    eyes = Eyes(url, namespace)
    found = [made.number for made in eyes.events("painting.made")]
    eyes.close()
    return found


# --- away -------------------------------------------------------------------------------------------------------------


def test_a_server_that_comes_later(make_server: MakeServer, namespace: str, soon: Soon, warnings: Warnings) -> None:
    """A Producer may be there before its server: events wait, one warning says why, and they arrive."""
    server = make_server()
    server.kill()
    with Producer(server.url, namespace=namespace) as bus:
        for n in range(20):
            bus.publish(PaintingMade(number=n))
        assert bus.flush(timeout=0.2) is False
        (warning,) = warnings()
        waiting = r"(1 event \(126 bytes in memory\)|\d+ events \([\d,]+ bytes in memory\)) wait"  # as many as the sender had seen by then
        assert re.fullmatch(
            f"{re.escape(server.url)}: nobody listens there; is the server running\\?; {waiting}", warning
        )
        assert "nobody listens" in str(bus.statistics().last_error)
        server.start()
        assert bus.flush(timeout=10) is True
        assert len(warnings()) == 1
    assert numbers(server.url, namespace) == list(range(20))


def test_a_server_that_is_killed_and_restarted(server: ServerProcess, namespace: str, soon: Soon) -> None:
    """kill -9 in the middle of publishing, again and again: every event is stored once, in order."""
    total = 0
    with Producer(server.url, namespace=namespace) as bus:
        for _ in range(3):
            for _ in range(1500):
                bus.publish(PaintingMade(number=total))
                total += 1
            soon(lambda: bus.statistics().stored > total - 1500)
            server.kill()
            for _ in range(500):
                bus.publish(PaintingMade(number=total))
                total += 1
            server.start()
        assert bus.flush(timeout=20) is True
        assert bus.statistics().stored == total
    assert numbers(server.url, namespace) == list(range(total))


def test_an_idle_producer_whose_server_restarts_empty(make_server: MakeServer, namespace: str) -> None:
    """A server without persistence restarts while nothing is under way: the next event is stored, nothing is unknown,
    and what the namespace needs besides the stream is there again."""
    server = make_server()
    with Producer(server.url, namespace=namespace) as bus:
        bus.publish(PaintingMade(number=0))
        assert bus.flush(timeout=10) is True
        server.restart()
        bus.publish(PaintingMade(number=1))
        assert bus.flush(timeout=10) is True
        bus.publish(PaintingMade(number=2))
        assert bus.flush(timeout=10) is True
        assert (bus.statistics().stored, bus.statistics().unknown) == (3, 0)
    eyes = Eyes(server.url, namespace)
    assert eyes.call("SMEMBERS", eyes.keys.topics) == [b"painting.made"]
    assert eyes.call("HGET", eyes.keys.meta, "partitions") == b"1"
    assert numbers(server.url, namespace) == [1, 2]


def test_closing_tells_what_is_lost(namespace: str, warnings: Callable[[], list[str]]) -> None:
    """Leaving the block is not silent about events that nobody has: how many, and why."""
    with Producer(f"redis://127.0.0.1:{free_port()}", namespace=namespace, flush_timeout=0.1) as bus:
        bus.publish_many(PaintingMade(number=number) for number in range(3))
    said = warnings()[-1]
    assert "the Producer is closed and 3 events did not reach the server within 0.1 s" in said
    assert "nobody listens there" in said


def test_closing_tells_what_was_dropped_before(namespace: str, warnings: Callable[[], list[str]]) -> None:
    """Most of what is lost in an outage is dropped long before the end: at close that is told, too."""
    with Producer(f"redis://127.0.0.1:{free_port()}", namespace=namespace, buffer_bytes=20_000, flush_timeout=0) as bus:
        for number in range(3000):
            bus.publish(PaintingMade(number=number))
        now = bus.statistics()
    assert now.dropped > 2000 and now.dropped + now.waiting_events == 3000
    assert f"{now.waiting_events} events did not reach" in (said := warnings()[-1]), said
    assert said.endswith(f"; {now.dropped:,} dropped before that")


def test_closing_tells_what_was_dropped_when_nothing_waits(
    away: MemoryServer, namespace: str, warnings: Callable[[], list[str]]
) -> None:
    """Also when the server is there again, and all the rest is stored; once, though the program's end comes as well."""
    bus = Producer(away.name, namespace=namespace, buffer_bytes=20_000)
    for number in range(300):
        bus.publish(PaintingMade(number=number))
    away.set_connected(True)
    assert bus.flush(timeout=10) is False and bus.close() is True
    assert (
        warnings()[-1] == f"{bus.name}: the Producer is closed; of its events {bus.statistics().dropped} dropped in all"
    )
    told = len(warnings())
    bus._sender.at_exit(0.0)  # type: ignore[union-attr]
    assert len(warnings()) == told


def test_closing_without_a_replica(server: ServerProcess, namespace: str, soon: Soon, warnings: Warnings) -> None:
    """Who wants a replica to have the events is told that none has, not that the server has none of them."""
    bus = Producer(server.url, namespace=namespace, durability="replicated")
    bus.publish(PaintingMade())
    soon(lambda: "no replica" in str(bus.statistics().last_error))
    bus.close(timeout=0)
    said = "1 event did not reach the server and a replica of it within 0 s ("
    assert said in warnings()[-1] and "the server has it, but no replica" in warnings()[-1]


def test_a_server_that_stops_answering(server: ServerProcess, namespace: str) -> None:
    """A frozen server: publish goes on, flush and close return in time, and the callers are told that it is late."""
    bus = Producer(server.url, namespace=namespace)
    bus.publish(PaintingMade(number=0))
    assert bus.flush(timeout=10)
    server.freeze()
    started = time.monotonic()
    bus.publish(PaintingMade(number=1))
    assert bus.flush(timeout=0.1) is False
    assert bus.close(timeout=0.1) is False
    assert time.monotonic() - started < 2
    server.thaw()


# --- lost replies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["cut", "tear", "lose"])
@pytest.mark.parametrize("match", [b"HSETNX", b"MULTI", b"SADD", b"XADD"])
def test_a_connection_that_ends_before_or_after_any_step(
    server: ServerProcess, proxy: Proxy, namespace: str, match: bytes, fault: Any
) -> None:
    """Whichever request or reply is lost: each event is stored exactly once, with its id, in order."""
    proxy.next(match, fault)
    with Producer(proxy.url, namespace=namespace) as bus:
        ids = [bus.publish(PaintingMade(number=0))]
        assert bus.flush(timeout=10) is True
        proxy.next(b"XADD", fault)
        ids += [bus.publish(PaintingMade(number=1)), bus.publish(PaintingMade(number=2))]
        assert bus.flush(timeout=10) is True
        now = bus.statistics()
        assert (now.stored, now.unknown) == (3, 0)
    assert proxy.faults == [fault, fault]
    eyes = Eyes(server.url, namespace)
    assert [(envelope.id, made.number) for envelope, made in eyes.entries("painting.made")] == list(
        zip(ids, range(3), strict=True)
    )


def test_every_reply_is_lost_many_times(server: ServerProcess, proxy: Proxy, namespace: str) -> None:
    """The reply is lost, then the question for it, then its answer: still stored once."""
    with Producer(proxy.url, namespace=namespace) as bus:
        bus.publish(PaintingMade(number=0))
        assert bus.flush(timeout=10)
        proxy.next(b"XADD", "lose")
        for fault in ("cut", "lose", "lose"):
            proxy.next(b"INCR", fault)  # type: ignore[arg-type]
        proxy.next(b"XRANGE", "lose")
        bus.publish_many([PaintingMade(number=1), PaintingMade(number=2), SculptureMade()])
        assert bus.flush(timeout=20) is True
    assert len(proxy.faults) == 5
    assert numbers(server.url, namespace) == [0, 1, 2]
    eyes = Eyes(server.url, namespace)
    assert eyes.count("sculpture.made") == 1


def test_a_late_batch_finds_its_fence_closed(server: ServerProcess, proxy: Proxy, namespace: str) -> None:
    """A batch that sat in the network while it was sent again is not executed when it arrives at last."""
    with Producer(proxy.url, namespace=namespace) as bus:
        bus.publish(PaintingMade(number=0))
        assert bus.flush(timeout=10)
        proxy.next(b"XADD", "hold")
        bus.publish(PaintingMade(number=1))
        assert bus.flush(timeout=10) is True
        proxy.release()
        bus.publish(PaintingMade(number=2))
        assert bus.flush(timeout=10) is True
    assert proxy.faults == ["hold"]
    assert numbers(server.url, namespace) == [0, 1, 2]


def test_a_connection_that_is_replaced_while_the_namespace_is_looked_at_is_fenced(
    server: ServerProcess, proxy: Proxy, namespace: str
) -> None:
    """After an outage the number of partitions is looked at again; when that finds the connection gone, the batch that
    follows on the new one is fenced there: held up and sent again, it is stored once."""
    with Producer(proxy.url, namespace=namespace) as bus:
        bus.publish(PaintingMade(number=0))
        assert bus.flush(timeout=10)
        proxy.next(b"XADD", "cut")
        bus.publish(PaintingMade(number=1))
        assert bus.flush(timeout=10)
        proxy.next(b"HSETNX", "cut")
        proxy.next(b"XADD", "hold")
        bus.publish_many([PaintingMade(number=2), PaintingMade(number=3)])
        assert bus.flush(timeout=10)
        proxy.release()
        assert (bus.statistics().stored, bus.statistics().unknown) == (4, 0)
    assert proxy.faults == ["cut", "cut", "hold"]
    assert numbers(server.url, namespace) == [0, 1, 2, 3]


def test_a_lost_reply_and_a_trimmed_stream(server: ServerProcess, proxy: Proxy, namespace: str, soon: Soon) -> None:
    """The reply is lost and, before anybody can ask, everything is trimmed: unknown, counted, told; flush is False."""
    told: list[Any] = []
    eyes = Eyes(server.url, namespace)
    with Producer(proxy.url, namespace=namespace, on_delivery=lambda _, error: told.append(error)) as bus:
        bus.publish(PaintingMade(number=0))
        assert bus.flush(timeout=10)
        proxy.next(b"XADD", "lose")
        proxy.next(b"INCR", "cut")
        bus.publish(PaintingMade(number=1))
        soon(lambda: "lose" in proxy.faults)
        proxy.refuse()
        eyes.call("XTRIM", eyes.stream(), "MAXLEN", 0)
        proxy.accept()
        assert bus.flush(timeout=10) is False
        now = bus.statistics()
        assert (now.stored, now.unknown, now.waiting_events) == (1, 1, 0)
        assert told[0] is None and told[1].ambiguous and "cannot be known" in str(told[1])
        bus.publish(PaintingMade(number=2))
        assert bus.flush(timeout=10) is True
    assert numbers(server.url, namespace) == [2]
    eyes.close()


def test_closing_with_a_batch_of_which_nobody_knows(server: ServerProcess, proxy: Proxy, namespace: str) -> None:
    """Closed between a lost reply and its answer: the batch counts as unknown, what was queued behind it as dropped."""
    bus = Producer(proxy.url, namespace=namespace)
    bus.publish(PaintingMade(number=0))
    assert bus.flush(timeout=10)
    proxy.next(b"XADD", "lose")
    for _ in range(50):
        proxy.next(b"INCR", "cut")
    bus.publish(PaintingMade(number=1))
    assert bus.flush(timeout=0.2) is False
    bus.publish(PaintingMade(number=2))
    assert bus.close(timeout=0.1) is False
    now = bus.statistics()
    assert (now.stored, now.unknown, now.dropped, now.waiting_events) == (1, 1, 1, 0)
    assert numbers(server.url, namespace) == [0, 1]


# --- a server that says no --------------------------------------------------------------------------------------------


def test_out_of_memory(make_server: MakeServer, namespace: str, warnings: Warnings) -> None:
    """At maxmemory (noeviction) events wait and the warning says why; when there is room they arrive, in order."""
    server = make_server(config=("--maxmemory-policy", "noeviction"))
    eyes = Eyes(server.url, namespace)
    with Producer(server.url, namespace=namespace) as bus:
        bus.publish(PaintingMade(number=0))
        assert bus.flush(timeout=10) is True
        eyes.call("CONFIG", "SET", "maxmemory", "1mb")
        eyes.call("CONFIG", "SET", "maxmemory", "1")
        for n in range(1, 30):
            bus.publish(PaintingMade(number=n))
            bus.publish(SculptureMade(title=str(n)))
        assert bus.flush(timeout=0.3) is False
        assert "maxmemory" in str(bus.statistics().last_error) and "maxmemory" in warnings()[0]
        eyes.call("CONFIG", "SET", "maxmemory", "0")
        assert bus.flush(timeout=10) is True
        now = bus.statistics()
        assert (now.stored, now.refused, now.unknown, now.dropped) == (59, 0, 0, 0)
    assert numbers(server.url, namespace) == list(range(30)) and eyes.count("sculpture.made") == 29
    eyes.close()


def test_a_read_only_replica(make_server: MakeServer, namespace: str, warnings: Warnings) -> None:
    """A server that has become a replica: events wait, and arrive once it takes writes again."""
    server = make_server()
    eyes = Eyes(server.url, namespace)
    with Producer(server.url, namespace=namespace) as bus:
        bus.publish(PaintingMade(number=0))
        assert bus.flush(timeout=10) is True
        eyes.call("REPLICAOF", "127.0.0.1", free_port())
        bus.publish(PaintingMade(number=1))
        assert bus.flush(timeout=0.3) is False
        assert "read-only replica" in warnings()[0]
        eyes.call("REPLICAOF", "NO", "ONE")
        assert bus.flush(timeout=10) is True
        assert bus.statistics().stored == 2
    eyes.close()


def test_a_wrong_password(make_server: MakeServer, namespace: str, warnings: Warnings) -> None:
    """With a wrong password events wait; the warning says so without the password; corrected, they arrive."""
    server = make_server(config=("--requirepass", "right"))
    url = f"redis://:wr0ng@127.0.0.1:{server.port}"
    with Producer(url, namespace=namespace) as bus:
        bus.publish(PaintingMade(number=0))
        assert bus.flush(timeout=0.3) is False
        said = [*warnings(), str(bus.statistics().last_error), repr(bus)]
        assert "refuses this user or password" in said[0] and len(warnings()) == 1
        assert not any("wr0ng" in text or "right" in text for text in said)
        right = Eyes(f"redis://:right@127.0.0.1:{server.port}", namespace)
        right.call("CONFIG", "SET", "requirepass", "wr0ng")
        assert bus.flush(timeout=10) is True
        assert right.count("painting.made") == 1
        right.close()


@pytest.mark.parametrize("command", ["xadd", "sadd", "watch", "hsetnx", "multi", "@all"])
def test_a_missing_permission(make_server: MakeServer, namespace: str, command: str, warnings: Warnings) -> None:
    """An ACL that forbids a command that publishing needs, from the start or later on: events wait, nothing is lost."""
    server = make_server()
    eyes = Eyes(server.url, namespace)
    eyes.call("ACL", "SETUSER", "ada", "on", ">pw", "~*", "+@all")
    with Producer(f"redis://ada:pw@127.0.0.1:{server.port}", namespace=namespace) as bus:
        bus.publish(PaintingMade(number=0))
        assert bus.flush(timeout=10) is True
        eyes.call("ACL", "SETUSER", "ada", f"-{command}")
        bus.publish(PaintingMade(number=1))
        bus.flush(timeout=0.1)
        bus.publish(SculptureMade())
        bus.flush(timeout=0.1)
        bus.publish(PaintingMade(number=2))
        if command != "hsetnx":  # the namespace was looked at already
            assert bus.flush(timeout=0.1) is False
            assert "ACL" in warnings()[0]
        eyes.call("ACL", "SETUSER", "ada", f"+{command}")
        assert bus.flush(timeout=10) is True
        now = bus.statistics()
        assert (now.stored, now.refused, now.unknown) == (4, 0, 0)
    assert numbers(server.url, namespace) == [0, 1, 2] and eyes.count("sculpture.made") == 1
    eyes.close()


def test_another_number_of_partitions(server_url: str, namespace: str, warnings: Warnings) -> None:
    """Another number of partitions than the namespace has: events wait, last_error and the warning say what to do."""
    with Producer(server_url, namespace=namespace, partitions=2) as bus:
        bus.publish(PaintingMade())
        assert bus.flush(timeout=10) is True
    eyes = Eyes(server_url, namespace)
    with Producer(server_url, namespace=namespace, partitions=3) as bus:
        bus.publish(PaintingMade())
        assert bus.flush(timeout=0.2) is False
        now = bus.statistics()
        assert (now.stored, now.waiting_events, now.refused, now.dropped) == (0, 1, 0, 0)
        assert "has 2 partitions" in str(now.last_error) and "has 2 partitions" in warnings()[0]
        eyes.call("HSET", eyes.keys.meta, "partitions", 3)
        assert bus.flush(timeout=10) is True
    eyes.close()


def test_loading(make_server: MakeServer, namespace: str, soon: Soon) -> None:
    """A server that is still loading its data takes no events: they wait, last_error says so, and they arrive."""
    server = make_server(persistent=True, config=("--key-load-delay", "150"))  # it looks up every 1,024 commands
    eyes = Eyes(server.url, namespace)
    eyes.call("EVAL", "for i = 1, 6000 do redis.call('SET', KEYS[1], i) end", 1, "filler")
    eyes.close()
    with Producer(server.url, namespace=namespace) as bus:
        bus.publish(PaintingMade(number=0))
        assert bus.flush(timeout=10)
        server.kill()
        bus.publish(PaintingMade(number=1))
        starting = threading.Thread(target=server.start)
        starting.start()
        soon(lambda: not bus.flush(timeout=0.01) and "loading its data" in str(bus.statistics().last_error))
        starting.join()
        assert bus.flush(timeout=10) is True
    assert numbers(server.url, namespace) == [0, 1]
