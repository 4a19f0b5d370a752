"""A server that is away, and a Producer whose buffer fills: what each `when_full` does, and what flush says of it."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from studio import PaintingMade, numbers

from canvasbus import BufferFull, EncodeError, Producer
from canvasbus.transport.memory import MemoryServer

Soon = Callable[..., Any]


def in_hand(bus: Producer) -> int:
    return sum(bus._buffer._in_hand)


def test_drop_oldest(away: MemoryServer, namespace: str, soon: Soon, warnings: Callable[[], list[str]]) -> None:
    """Publishing goes on without waiting; the batch in hand and the newest events arrive, what lies between is dropped
    and counted, the buffer never holds more than its limit, and one warning says so."""
    with Producer(away.name, namespace=namespace, buffer_bytes=20_000) as bus:
        bus.publish(PaintingMade(number=0))
        soon(lambda: in_hand(bus) == 1)
        for n in range(1, 1000):
            bus.publish(PaintingMade(number=n))
            assert bus._buffer.bytes <= 20_000
        now = bus.statistics()
        assert now.published == 1000 == now.dropped + now.waiting_events and 18_000 < now.waiting_bytes <= 20_000
        away.set_connected(True)
        assert bus.flush(timeout=10) is False  # some were dropped
        assert bus.flush(timeout=10) is True  # none since
        kept = 1000 - now.dropped - 1
        assert numbers(namespace) == [0, *range(1000 - kept, 1000)]
        assert bus.statistics().stored == kept + 1
    assert len(warnings()) == 2 and "switched off" in warnings()[0] and f"{now.dropped} dropped in all" in warnings()[1]


def test_drop_oldest_with_publish_many(away: MemoryServer, namespace: str, soon: Soon) -> None:
    """publish_many drops the oldest as publish does and returns the ids of all, the dropped ones included."""
    with Producer(away.name, namespace=namespace, buffer_bytes=20_000) as bus:
        bus.publish(PaintingMade(number=0))
        soon(lambda: in_hand(bus) == 1)
        assert len(bus.publish_many(PaintingMade(number=n) for n in range(1, 1000))) == 999
        away.set_connected(True)
        assert bus.flush(timeout=10) is False
        stored = numbers(namespace)
        assert stored[0] == 0 and stored[1:] == list(range(1000 - len(stored) + 1, 1000))


def test_an_event_over_the_buffer_is_refused(away: MemoryServer, namespace: str) -> None:
    """An event that could never fit into the buffer is an EncodeError that names the setting, not a dropped event."""
    bus = Producer(away.name, namespace=namespace, buffer_bytes=1000)
    with pytest.raises(EncodeError, match=r"over the limit of 1,000 \(buffer_bytes\)"):
        bus.publish(PaintingMade(title="x" * 1000))
    bus.close(timeout=0)


def test_raise(away: MemoryServer, namespace: str) -> None:
    """when_full="raise": BufferFull, nothing dropped; what was accepted arrives, and there is room again."""
    with Producer(away.name, namespace=namespace, buffer_bytes=5000, when_full="raise") as bus:
        accepted = 0
        with pytest.raises(BufferFull, match="limit is 5,000"):
            while True:
                bus.publish(PaintingMade(number=accepted))
                accepted += 1
        assert 10 < accepted < 50 and bus.statistics().published == accepted
        away.set_connected(True)
        assert bus.flush(timeout=10) is True
        bus.publish(PaintingMade(number=accepted))
        assert bus.flush(timeout=10) is True
        assert numbers(namespace) == list(range(accepted + 1))


def test_raise_forgets_the_callback(away: MemoryServer, namespace: str) -> None:
    """An event that was not accepted is told to nobody, and its callback is not kept."""
    told: list[Any] = []
    bus = Producer(away.name, namespace=namespace, buffer_bytes=200, when_full="raise")
    bus.publish(PaintingMade())
    with pytest.raises(BufferFull):
        bus.publish(PaintingMade(), on_delivery=lambda *args: told.append(args))
    assert bus._sender is not None and bus._sender.callbacks == {}
    bus.close(timeout=0)
    assert told == []


def test_one_of_two_under_a_key_finds_no_room(away: MemoryServer, namespace: str, soon: Soon) -> None:
    """Its callback is forgotten, and not that of the other, whatever the order in which they came."""
    told: list[str] = []
    bus = Producer(away.name, namespace=namespace, buffer_bytes=1000, when_full="block", max_block=0.3)

    def large() -> None:
        with pytest.raises(BufferFull):
            event = PaintingMade(title="x" * 400)
            bus.publish(event, dedupe_key="one", on_delivery=lambda *_: told.append("large"))

    with ThreadPoolExecutor(1) as pool:
        bus.publish(PaintingMade(title="x" * 300))
        failing = pool.submit(large)
        soon(lambda: len(bus._buffer._changed._waiters) == 1)  # type: ignore[attr-defined]
        bus.publish(PaintingMade(), dedupe_key="one", on_delivery=lambda *_: told.append("small"))
        failing.result()
    away.set_connected(True)
    assert bus.close(timeout=10) is True
    assert told == ["small"]


@pytest.mark.parametrize("spool", [False, True])
def test_who_ends_waits_for_what_was_accepted(
    away: MemoryServer, namespace: str, tmp_path: Path, soon: Soon, spool: bool
) -> None:
    """What other threads publish while the program ends is dropped, and does not stand for what was accepted before."""
    bus = Producer(away.name, namespace=namespace, **({"spool": tmp_path} if spool else {}))
    bus.publish(PaintingMade())
    soon(lambda: sum(bus._buffer._in_hand))
    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(bus._sender.at_exit, 10)  # type: ignore[union-attr]
        soon(lambda: len(bus._buffer._changed._waiters))  # type: ignore[attr-defined]
        for _ in range(5):
            bus.publish(PaintingMade())
        with bus._buffer.lock:
            bus._buffer._changed.notify_all()
        with pytest.raises(TimeoutError):
            ending.result(timeout=0.2)
        away.set_connected(True)
        ending.result()
    now = bus.statistics()
    assert (now.published, now.stored, now.dropped, now.waiting_events) == (6, 1, 5, 0)


def test_block(away: MemoryServer, namespace: str, soon: Soon) -> None:
    """when_full="block": publish waits while the server is away and goes on when it is back; nothing is dropped."""
    with Producer(away.name, namespace=namespace, buffer_bytes=5000, when_full="block", max_block=60) as bus:
        publisher = threading.Thread(
            target=lambda: [bus.publish(PaintingMade(number=n)) for n in range(300)],
        )
        publisher.start()
        soon(lambda: len(bus._buffer._changed._waiters) == 1)  # type: ignore[attr-defined]
        assert bus.statistics().published < 50
        away.set_connected(True)
        publisher.join(20)
        assert not publisher.is_alive()
        assert bus.flush(timeout=10) is True and bus.statistics().dropped == 0
    assert numbers(namespace) == list(range(300))


def test_block_with_publish_many(memory: MemoryServer, namespace: str) -> None:
    """publish_many of more than the buffer holds waits in pieces and keeps the order."""
    with Producer(memory.name, namespace=namespace, buffer_bytes=5000, when_full="block") as bus:
        bus.publish_many(PaintingMade(number=n) for n in range(1000))
        assert bus.flush(timeout=10) is True
    assert numbers(namespace) == list(range(1000))


def test_block_ends_after_max_block(away: MemoryServer, namespace: str) -> None:
    """After max_block seconds publish raises BufferFull and names them."""
    bus = Producer(away.name, namespace=namespace, buffer_bytes=300, when_full="block", max_block=0.05)
    bus.publish(PaintingMade())
    bus.publish(PaintingMade())
    started = time.monotonic()
    with pytest.raises(BufferFull, match=r"max_block=0\.05 s"):
        bus.publish(PaintingMade())
    assert 0.05 <= time.monotonic() - started < 5
    bus.close(timeout=0)


def test_publishing_inside_on_delivery_never_waits(memory: MemoryServer, namespace: str) -> None:
    """With "block" and a full buffer on_delivery gets BufferFull, counted as its error, instead of a dead end."""
    bus: Producer

    def again(*_: object) -> None:
        for n in range(100):
            bus.publish(PaintingMade(number=n))

    bus = Producer(memory.name, namespace=namespace, buffer_bytes=5000, when_full="block", max_block=60)
    bus.publish(PaintingMade(), on_delivery=again)
    assert bus.flush(timeout=10) is True
    assert bus.close() is True
    assert bus.statistics().callback_errors == 1


# --- flush ------------------------------------------------------------------------------------------------------------


def test_flush_is_false_when_late_and_true_when_it_arrived(away: MemoryServer, namespace: str) -> None:
    """While the server is away flush returns False after its timeout; once everything arrived it is True."""
    with Producer(away.name, namespace=namespace) as bus:
        bus.publish(PaintingMade())
        assert bus.flush(timeout=0) is False
        assert bus.flush(timeout=0.01) is False
        away.set_connected(True)
        assert bus.flush(timeout=10) is True


def test_flush_waits_flush_timeout_by_default(away: MemoryServer, namespace: str) -> None:
    """flush() without a timeout waits `flush_timeout` seconds, and so does close()."""
    bus = Producer(away.name, namespace=namespace, flush_timeout=0.05)
    bus.publish(PaintingMade())
    for finish in (bus.flush, bus.close):
        started = time.monotonic()
        assert finish() is False
        assert 0.05 <= time.monotonic() - started < 2


def test_flush_makes_the_sender_try_at_once(away: MemoryServer, namespace: str, soon: Soon) -> None:
    """However long the sender's pause has become, a flush ends it."""
    with Producer(away.name, namespace=namespace) as bus:
        bus.publish(PaintingMade())
        sender = bus._sender
        assert sender is not None
        soon(lambda: sender._troubled)
        for _ in range(8):  # each failure doubles the pause, up to 2 s
            bus.flush(timeout=0.02)
        away.set_connected(True)
        started = time.monotonic()
        assert bus.flush(timeout=10) is True
        assert time.monotonic() - started < 1


def test_flush_without_anything() -> None:
    """There is nothing to wait for: True at once, without a connection."""
    with Producer("redis://127.0.0.1:1") as bus:
        assert bus.flush(timeout=0) is True


def test_flush_does_not_wait_for_what_comes_later(memory: MemoryServer, namespace: str) -> None:
    """A flush returns while another thread goes on publishing without end."""
    with Producer(memory.name, namespace=namespace) as bus:
        stop = threading.Event()

        def publish() -> None:
            while not stop.is_set():
                bus.publish(PaintingMade())

        publisher = threading.Thread(target=publish)
        publisher.start()
        try:
            assert bus.flush(timeout=20) is True
        finally:
            stop.set()
            publisher.join()


def test_close_drops_and_counts_what_did_not_make_it(away: MemoryServer, namespace: str, soon: Soon) -> None:
    """Closing while the server is away returns False, and every event is counted as dropped and told."""
    told: list[tuple[Any, Any]] = []
    bus = Producer(away.name, namespace=namespace, on_delivery=lambda *args: told.append(args))
    ids = [bus.publish(PaintingMade()) for _ in range(700)]
    assert bus.close(timeout=0.05) is False
    soon(lambda: bus.statistics().dropped == 700)
    assert [event_id for event_id, _ in told] == ids
    assert all("closed before the server had the event" in str(error) for _, error in told)
    assert bus.statistics().waiting_events == 0


# --- warnings ---------------------------------------------------------------------------------------------------------


def test_one_warning_a_minute(
    away: MemoryServer,
    namespace: str,
    soon: Soon,
    warnings: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An outage is one warning, with what waits; after a minute of it comes the next."""
    from canvasbus import clock

    offset = 0.0
    real = clock.monotonic
    monkeypatch.setattr(clock, "monotonic", lambda: real() + offset)
    with Producer(away.name, namespace=namespace) as bus:
        sender = bus._sender
        assert sender is not None

        def attempts(count: int) -> None:
            for _ in range(count):
                before = sender._lanes and sender._lanes[0].link
                bus.flush(timeout=0.02)
                del before

        bus.publish(PaintingMade())
        soon(lambda: sender._troubled)
        attempts(5)
        soon(lambda: len(warnings()) == 1)
        assert warnings()[0] == f"memory://{namespace} is switched off; 1 event (126 bytes in memory) wait"
        offset = 61.0
        soon(lambda: bus.flush(timeout=0.02) or len(warnings()) == 2)
        attempts(5)
        assert len(warnings()) == 2
        away.set_connected(True)
        assert bus.flush(timeout=10)
