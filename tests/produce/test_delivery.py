"""on_delivery, and publishing from where nobody expects it: signal handlers, `__del__`, callbacks, event loops."""

import asyncio
import gc
import logging
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import trio
from studio import Eyes, PaintingMade, SculptureMade

from canvasbus import BufferFull, CanvasbusError, Producer
from canvasbus.transport.memory import MemoryServer

Soon = Callable[..., Any]


@pytest.fixture
def bus(namespace: str) -> Any:
    with Producer(f"memory://{namespace}", namespace=namespace) as bus:
        yield bus


def stored(namespace: str) -> list[int]:
    return [made.number for made in Eyes(f"memory://{namespace}", namespace).events("painting.made")]


# --- on_delivery ------------------------------------------------------------------------------------------------------


def test_told_of_every_event_once_stored(any_url: str, namespace: str) -> None:
    """on_delivery gets each id, in order, with None, in the sender's thread; when flush returns all have been told."""
    told: list[Any] = []
    threads: set[str] = set()

    def tell(event_id: Any, error: CanvasbusError | None) -> None:
        told.append((event_id, error))
        threads.add(threading.current_thread().name)

    with Producer(any_url, namespace=namespace, on_delivery=tell) as bus:
        ids = [bus.publish(PaintingMade(number=n)) for n in range(600)]
        assert bus.flush(timeout=10)
        assert told == [(event_id, None) for event_id in ids]
    assert threads == {"canvasbus-producer"}


def test_the_own_callback_comes_before_the_producers(memory: MemoryServer, namespace: str) -> None:
    """publish(on_delivery=) is called for that event alone, before the Producer's, and then forgotten."""
    calls: list[tuple[str, Any]] = []
    with Producer(memory.name, namespace=namespace, on_delivery=lambda i, _: calls.append(("all", i))) as bus:
        first = bus.publish(PaintingMade(), on_delivery=lambda i, _: calls.append(("one", i)))
        second = bus.publish(PaintingMade())
        assert bus.flush(timeout=5)
        assert calls == [("one", first), ("all", first), ("all", second)]
        assert bus._sender is not None and bus._sender.callbacks == {}


def test_told_of_drops(memory: MemoryServer, namespace: str) -> None:
    """A dropped event is told with BufferFull, whether the Producer or the event has the callback, before flush returns."""
    memory.set_connected(False)
    told: dict[Any, Any] = {}
    with Producer(memory.name, namespace=namespace, buffer_bytes=1000) as bus:
        ids = [bus.publish(PaintingMade(), on_delivery=told.__setitem__) for _ in range(30)]
        memory.set_connected(True)
        assert bus.flush(timeout=10) is False
        dropped = bus.statistics().dropped
        assert dropped > 10 and len(told) == 30
        assert sum(isinstance(error, BufferFull) for error in told.values()) == dropped
        assert set(told) == set(ids) and sum(error is None for error in told.values()) == 30 - dropped


def test_told_of_a_drop_where_nothing_waits(memory: MemoryServer, namespace: str, tmp_path: Path) -> None:
    """An event that is larger than the spool, with what that adds to it, is dropped though the sender has nothing to do:
    flush says False when its callback has been called."""
    called = threading.Event()
    with Producer(memory.name, namespace=namespace, spool=tmp_path, spool_bytes=3000) as bus:
        for _ in range(5):
            called.clear()
            bus.publish(PaintingMade(title="x" * 1440), on_delivery=lambda *_: called.set())
            assert bus.flush(timeout=10) is False and called.is_set()
            bus.publish(PaintingMade())
            assert bus.flush(timeout=10) is True


def test_told_of_refusals(any_url: str, namespace: str) -> None:
    """A stream key of another type: its events are refused, told and counted, those of other types are stored."""
    eyes = Eyes(any_url, namespace)
    eyes.call("SET", eyes.stream("sculpture.made"), "not a stream")
    told: dict[Any, Any] = {}
    with Producer(any_url, namespace=namespace, on_delivery=told.__setitem__) as bus:
        good = [bus.publish(PaintingMade(number=n)) for n in range(2)]
        bad = bus.publish(SculptureMade())
        good.append(bus.publish(PaintingMade(number=2)))
        assert bus.flush(timeout=10) is False
        assert bus.flush(timeout=10) is True
        assert [told[event_id] for event_id in good] == [None] * 3
        assert "not a stream" in str(told[bad])
        now = bus.statistics()
        assert (now.stored, now.refused) == (3, 1) and "not a stream" in str(now.last_error)
    assert [made.number for made in eyes.events("painting.made")] == [0, 1, 2]
    eyes.close()


@pytest.mark.parametrize("error", [ValueError("boom"), SystemExit(3), KeyboardInterrupt()])
def test_a_callback_that_raises(
    memory: MemoryServer, namespace: str, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever on_delivery raises is counted, logged once with its traceback, and stops nothing."""

    def fail(*_: object) -> None:
        raise error

    with Producer(memory.name, namespace=namespace, on_delivery=fail) as bus:
        bus.publish_many([PaintingMade()] * 5)
        assert bus.flush(timeout=5) is True
        now = bus.statistics()
        assert (now.stored, now.callback_errors) == (5, 5)
        assert f"on_delivery raised {type(error).__name__}" in str(now.last_error)
    records = [record for record in caplog.records if record.name == "canvasbus.producer"]
    assert len(records) == 1 and records[0].exc_info is not None


def test_publishing_inside_on_delivery(memory: MemoryServer, namespace: str) -> None:
    """A callback may publish; a flush that follows sees what it published."""
    bus: Producer

    def answer(*_: object) -> None:
        if bus.statistics().published < 5:
            bus.publish(PaintingMade(number=bus.statistics().published), on_delivery=answer)

    with Producer(memory.name, namespace=namespace) as bus:
        bus.publish(PaintingMade(number=0), on_delivery=answer)
        for _ in range(5):
            assert bus.flush(timeout=5)
        assert stored(namespace) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("method", ["flush", "close"])
def test_flush_inside_on_delivery_is_refused(memory: MemoryServer, namespace: str, method: str) -> None:
    """flush and close inside on_delivery raise RuntimeError instead of waiting for themselves."""
    bus: Producer
    with Producer(memory.name, namespace=namespace) as bus:
        bus.publish(PaintingMade(), on_delivery=lambda *_: getattr(bus, method)())
        assert bus.flush(timeout=5) is True
        assert "RuntimeError" in str(bus.statistics().last_error) and bus.statistics().callback_errors == 1


# --- interrupted and re-entered ---------------------------------------------------------------------------------------


def test_publishing_in_a_signal_handler(bus: Producer, namespace: str) -> None:
    """A signal handler publishes while the thread it interrupts is publishing: no deadlock, nothing lost."""
    handled = 0

    def handler(*_: object) -> None:
        nonlocal handled
        handled += 1
        bus.publish(PaintingMade(number=-1))

    previous = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
    try:
        published = 0
        while handled < 200:
            bus.publish(PaintingMade(number=published))
            published += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert bus.flush(timeout=30)
    numbers = stored(namespace)
    assert [n for n in numbers if n >= 0] == list(range(published))
    assert numbers.count(-1) == handled == bus.statistics().published - published


def test_the_first_event_comes_from_a_signal_handler(memory: MemoryServer, namespace: str) -> None:
    """A handler that publishes while its own thread is starting the sender starts no second one."""
    for round_ in range(20):
        with Producer(memory.name, namespace=namespace) as bus:
            sender = bus._sender
            assert sender is not None
            before = threading.active_count()
            start = threading.Thread.start

            def interrupted(
                thread: threading.Thread, bus: Producer = bus, start: Callable[..., None] = start, n: int = round_
            ) -> None:
                bus.publish(PaintingMade(number=n))
                start(thread)
                bus.publish(PaintingMade(number=n))

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(threading.Thread, "start", interrupted)
                bus.publish(PaintingMade(number=round_))
            assert threading.active_count() == before + 1
            assert bus.flush(timeout=5)
            assert bus.statistics().stored == 3


def test_no_thread_can_be_started(memory: MemoryServer, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started, publishing raises nothing, last_error says so, and the next event tries again."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with Producer(memory.name, namespace=namespace) as bus:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            bus.publish(PaintingMade(number=0))
        assert "can't start new thread" in str(bus.statistics().last_error)
        bus.publish(PaintingMade(number=1))
        assert bus.flush(timeout=5)
    assert stored(namespace) == [0, 1]


def test_publishing_in_del(bus: Producer, namespace: str) -> None:
    """Objects in cycles that publish when they are collected, from whatever thread the collector runs in."""

    published: list[int] = []

    class Canvas:
        def __init__(self, number: int) -> None:
            self.itself = self
            self.number = number

        def __del__(self) -> None:
            bus.publish(PaintingMade(number=self.number))
            published.append(self.number)

    threshold = gc.get_threshold()
    gc.set_threshold(20)
    try:
        for n in range(500):
            Canvas(n)
            bus.publish(PaintingMade(number=1000 + n))
    finally:
        gc.set_threshold(*threshold)
    deadline = time.monotonic() + 10
    while len(published) < 500 and time.monotonic() < deadline:
        gc.collect()  # it does nothing while another thread collects
    assert bus.flush(timeout=10)
    assert sorted(stored(namespace)) == [*range(500), *range(1000, 1500)]


def test_a_log_handler_that_publishes(memory: MemoryServer, namespace: str) -> None:
    """A handler of the Producer's own logger may publish: no deadlock, no endless recursion."""
    import logging

    memory.set_connected(False)
    with Producer(memory.name, namespace=namespace) as bus:

        class Publishing(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                bus.publish(PaintingMade(number=2))

        handler = Publishing()
        logging.getLogger("canvasbus.producer").addHandler(handler)
        try:
            bus.publish(PaintingMade(number=1))
            bus.flush(timeout=0.1)
            memory.set_connected(True)
            assert bus.flush(timeout=5)
            assert bus.flush(timeout=5)
        finally:
            logging.getLogger("canvasbus.producer").removeHandler(handler)
    assert sorted(set(stored(namespace))) == [1, 2]


# --- event loops and pools --------------------------------------------------------------------------------------------


def test_in_asyncio(any_url: str, namespace: str) -> None:
    """An asyncio application publishes in its coroutines and flushes in a thread; the loop goes on meanwhile."""

    async def main() -> tuple[bool, int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        with Producer(any_url, namespace=namespace) as bus:
            ticking = asyncio.create_task(tick())
            for n in range(300):
                bus.publish(PaintingMade(number=n))
                if n % 50 == 0:
                    await asyncio.sleep(0)
            done = await asyncio.to_thread(bus.flush, 10)
            ticking.cancel()
        return done, ticks

    done, ticks = asyncio.run(main())
    assert done is True and ticks > 5
    eyes = Eyes(any_url, namespace)
    assert [made.number for made in eyes.events("painting.made")] == list(range(300))
    eyes.close()


async def test_in_trio(bus: Producer, namespace: str) -> None:
    """trio code may use a Producer too: publish does not wait, flush goes to a thread."""
    for n in range(10):
        bus.publish(PaintingMade(number=n))
    assert await trio.to_thread.run_sync(bus.flush, 10)
    assert stored(namespace) == list(range(10))


def test_in_a_thread_pool(bus: Producer, namespace: str) -> None:
    """Request handlers in a thread pool, as in FastAPI, share one Producer; each may flush."""

    def request(n: int) -> bool:
        bus.publish(PaintingMade(number=n))
        return bus.flush(10)

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(request, range(200)))
    assert sorted(stored(namespace)) == list(range(200))


@pytest.mark.parametrize("spool", [True, False], ids=["spool", "memory"])
def test_a_log_handler_that_raises(any_url: str, namespace: str, tmp_path: Path, spool: bool) -> None:
    """Whatever is logged, by the sender's thread or by a publish, and however it is refused there: no event is lost by it,
    nothing is raised, it is counted. Only the first such error hides what went wrong."""
    logger, raised = logging.getLogger("canvasbus.producer"), 0

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            nonlocal raised
            raised += 1
            raise OSError("the disk of the log is full")

    handler = Broken()
    logger.addHandler(handler)
    eyes = Eyes(any_url, namespace)
    eyes.call("SET", eyes.stream("sculpture.made"), "not a stream")
    try:
        options: dict[str, Any] = {"spool": tmp_path} if spool else {}
        bus = Producer(any_url, namespace=namespace, **options, on_delivery=lambda *_: 1 / 0)
        bus.publish(SculptureMade())
        assert bus.flush(10) is False
        bus.publish_many(PaintingMade(number=n) for n in range(10))
        assert bus.flush(10) is True and "on_delivery raised" in str(bus.statistics().last_error)
        assert (bus.statistics().stored, bus.statistics().dropped) == (10, 0)
        assert bus._sender is not None
        bus._sender._quiet_until = 0.0
        bus._sender.lament("what a publish meets")
        assert raised == bus.statistics().log_errors == 3
        assert bus.statistics().last_error == "what a publish meets" and bus.close() is True
    finally:
        logger.removeHandler(handler)
    assert [made.number for made in eyes.events("painting.made")] == list(range(10))
    eyes.close()


# --- left behind ------------------------------------------------------------------------------------------------------


def test_a_forgotten_producer_sends_what_is_queued(any_url: str, namespace: str, soon: Soon) -> None:
    """A Producer that nobody refers to any more sends what is queued, then its thread ends and nothing is left."""
    before = set(threading.enumerate())
    bus = Producer(any_url, namespace=namespace)
    bus.publish_many(PaintingMade(number=n) for n in range(1200))
    sender = weakref.ref(bus._sender)  # type: ignore[type-var]
    del bus
    gc.collect()
    eyes = Eyes(any_url, namespace)
    soon(lambda: eyes.call("EXISTS", eyes.stream()) and eyes.count("painting.made") == 1200)
    soon(lambda: set(threading.enumerate()) <= before)
    gc.collect()
    soon(lambda: sender() is None)
    eyes.close()


def test_a_forgotten_producer_that_never_published(namespace: str) -> None:
    """A Producer that was never used leaves nothing behind."""
    bus = Producer(f"memory://{namespace}", namespace=namespace)
    sender = weakref.ref(bus._sender)  # type: ignore[type-var]
    del bus
    gc.collect()
    assert sender() is None


@pytest.mark.parametrize("heavy", ["trio", "structlog", "redis", "hiredis", "asyncio"])
def test_switched_off_is_light(heavy: str) -> None:
    """Publishing to off:// loads nothing of what sending needs."""
    code = (
        "import sys, canvasbus\n"
        "from canvasbus.events import DriftDetected\n"
        "bus = canvasbus.Producer('off://')\n"
        "bus.publish(DriftDetected(model_name='m', drift_score=0.1, drift_type='psi'))\n"
        f"assert {heavy!r} not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("reachable", [True, False])
def test_making_a_producer_loads_what_sending_needs(server_url: str, namespace: str, reachable: bool) -> None:
    """The sending thread imports nothing: a fork while it imports would leave the child with a locked module."""
    url = server_url if reachable else "redis://127.0.0.1:1"
    code = (
        "import sys, canvasbus\n"
        "from canvasbus.events import DriftDetected\n"
        f"bus = canvasbus.Producer({url!r}, namespace={namespace!r})\n"
        "before = set(sys.modules)\n"
        "bus.publish(DriftDetected(model_name='m', drift_score=0.1, drift_type='psi'))\n"
        f"assert bus.flush({10 if reachable else 0.2}) is {reachable}, bus.statistics()\n"
        "bus.close(0)\n"
        "assert set(sys.modules) == before, set(sys.modules) - before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("publishes", ["while it ends", "afterwards", "no more"])
@pytest.mark.parametrize("spool", [True, False], ids=["spool", "memory"])
def test_a_thread_that_ends_by_a_fault_is_replaced(
    any_url: str, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, publishes: str, spool: bool
) -> None:
    """A fault with a batch in hand: the next publish, or the next flush, starts a thread
    that goes on, from disk where there is a spool. Without one, what was in hand is counted as dropped."""
    with Producer(any_url, namespace=namespace, spool=tmp_path if spool else None) as bus:
        sender, more = bus._sender, publishes != "no more"
        assert sender is not None
        disconnect = sender._disconnect

        def fault(*_: object, **__: object) -> None:
            monkeypatch.undo()
            monkeypatch.setattr(sender, "_disconnect", ending)
            raise ValueError("a fault")

        def ending() -> None:
            monkeypatch.undo()
            disconnect()
            if publishes == "while it ends":
                bus.publish(PaintingMade(number=1))

        monkeypatch.setattr(bus._buffer, "settle", fault)
        bus.publish(PaintingMade(number=0))
        thread = sender._thread
        if thread is not None:
            thread.join(10)
        if publishes == "afterwards":
            bus.publish(PaintingMade(number=1))
        assert bus.flush(10) is spool
        now = bus.statistics()
        assert (now.published, now.stored, now.dropped) == (1 + more, spool + more, not spool)
    assert sorted(made.number for made in Eyes(any_url, namespace).events("painting.made")) == [0, 1][: 1 + more]
