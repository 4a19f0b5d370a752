"""Room in a lane: a reader that is told of it looks again at once, and nothing takes more than there is."""

import threading
from typing import Any

import pytest
import trio
from studio import Eyes, PaintingFramed, PaintingMade, SculptureMade, quiet, runner_of, running, subscription_of
from trio.abc import Clock
from waiting import until

from canvasbus.consume.recovery import Recovery
from canvasbus.transport.memory import MemoryServer
from canvasbus.worker import Backoff, Worker


async def test_an_interruption_while_asking_is_not_lost(memory: MemoryServer, namespace: str) -> None:
    """A handler gets room while the reader's question is on its way: the reader asks again instead of waiting a second."""
    worker = Worker("narrow")

    @worker.on(PaintingMade, concurrency=1)
    async def paint(event: PaintingMade) -> None: ...

    async with running(memory, worker, namespace=namespace) as bus:
        subscription = subscription_of(bus)
        ask = subscription._link.request
        asked: list[float] = []

        async def interrupted(packet: Any, **options: Any) -> Any:
            reply = await ask(packet, **options)
            if len(asked) == 3:
                subscription.interrupt()
            asked.append(trio.current_time())
            return reply

        subscription._link.request = interrupted  # type: ignore[method-assign]
        await until(lambda: len(asked) > 4)
        assert asked[4] - asked[3] < 0.5


@pytest.mark.parametrize("pool", ["~free", "~suspect"])
async def test_a_pool_is_taken_from_as_far_as_each_lane_has_room(
    virtual: Clock, memory: MemoryServer, namespace: str, pool: str
) -> None:
    """A hundred paintings were handed back; a worker paints two at a time, and has room for any number of sculptures. It
    takes two, and leaves the others to its colleagues, as it does when it reads."""
    eyes = Eyes(memory, namespace)
    async with running(memory, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(100)])
        await bus.publish_many([SculptureMade(), PaintingFramed()])
    for topic in "painting.made", "sculpture.made", "painting.framed":
        eyes.call("XGROUP", "CREATE", eyes.stream(topic), "makers", "0")
        eyes.call("XREADGROUP", "GROUP", "makers", pool, "STREAMS", eyes.stream(topic), ">")
    worker, carved = Worker("makers"), list[str]()

    @worker.on(PaintingMade, concurrency=2)
    async def paint(event: PaintingMade) -> None:
        await trio.sleep_forever()

    @worker.on("sculpture.*", "painting.framed", concurrency=500)
    async def carve(event: object) -> None:
        carved.append(type(event).__name__)

    async with running(memory, worker, namespace=namespace, grace=0.1) as bus:
        await trio.sleep(20)
        assert runner_of(bus).statistics().held == 2 and len(carved) == 2
        assert [owner for _, owner, _ in eyes.pending("makers")].count(pool) == 98


@pytest.mark.parametrize("concurrency", [1, 16])
async def test_suspects_of_quick_events_come_without_a_pause(
    any_url: str, namespace: str, eyes: Eyes, concurrency: int
) -> None:
    """What a dead worker had in its hands is many events where they are quick: as soon as there is a bed the next is fetched,
    and not a second later, also beside a handler that has nothing to do."""
    done, many = list[int](), 150
    async with running(any_url, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(many)])
    stream = eyes.stream()
    eyes.call("XGROUP", "CREATE", stream, "makers", "0")
    eyes.call("XREADGROUP", "GROUP", "makers", "~suspect", "STREAMS", stream, ">")
    worker = Worker("makers")

    @worker.on(PaintingMade, concurrency=concurrency)
    async def paint(event: PaintingMade) -> None:
        done.append(event.number)

    @worker.on(SculptureMade)
    async def carve(event: SculptureMade) -> None: ...

    async with running(any_url, worker, namespace=namespace):
        with trio.fail_after(many / concurrency / 2):  # asked for once a second it would be twice that
            await until(lambda: len(done) == many, many)
        await quiet(eyes)
    assert sorted(done) == list(range(many))


async def test_while_the_server_is_away_suspects_are_asked_for_once_a_second(
    virtual: Clock, memory: MemoryServer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although there are more, and room for them."""
    eyes, asked, take = Eyes(memory, namespace), list[str](), Recovery.take
    async with running(memory, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(100)])
    stream = eyes.stream()
    eyes.call("XGROUP", "CREATE", stream, "makers", "0")
    eyes.call("XREADGROUP", "GROUP", "makers", "~suspect", "STREAMS", stream, ">")

    async def and_note(self: Recovery, pool: str, limit: int) -> bool:
        asked.append(pool)
        return await take(self, pool, limit)

    monkeypatch.setattr(Recovery, "take", and_note)
    worker, began = Worker("makers"), trio.Event()

    @worker.on(PaintingMade, concurrency=64)
    async def paint(event: PaintingMade) -> None:
        if not began.is_set():
            memory.set_connected(False)
            began.set()
        await trio.sleep(5)

    async with running(memory, worker, namespace=namespace) as bus:
        await began.wait()
        del asked[:]
        await trio.sleep(4)
        assert 2 <= len(asked) <= 8
        memory.set_connected(True)
        await quiet(eyes, timeout=60)


async def test_suspects_that_wait_for_their_turn_take_no_room(
    virtual: Clock, memory: MemoryServer, namespace: str
) -> None:
    """Suspects run alone, one after another, and each takes its time. The slots of their lane are free meanwhile, so what is
    new is read and handled; the suspects come to their end as well."""
    eyes, done = Eyes(memory, namespace), list[int]()
    async with running(memory, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(6)])
    stream = eyes.stream()
    eyes.call("XGROUP", "CREATE", stream, "makers", "0")
    eyes.call("XREADGROUP", "GROUP", "makers", "~suspect", "STREAMS", stream, ">")
    entries = [entry_id for entry_id, _, _ in eyes.pending("makers")]
    eyes.call("XCLAIM", stream, "makers", "~suspect", 0, *entries, "RETRYCOUNT", 0, "JUSTID")
    worker = Worker("makers")

    @worker.on(PaintingMade, concurrency=4, timeout=500)
    async def paint(event: PaintingMade) -> None:
        await trio.sleep(100 if event.number < 6 else 1)
        done.append(event.number)

    async with running(memory, worker, namespace=namespace) as bus:
        await trio.sleep(5)
        await bus.publish_many([PaintingMade(number=n) for n in range(6, 30)])
        await trio.sleep(60)
        assert sorted(done) == list(range(6, 30))
        await until(lambda: len(done) == 30, 700)


@pytest.mark.parametrize("same_lane", [True, False])
async def test_a_suspect_that_hangs_alone_keeps_no_other_from_running(
    virtual: Clock, memory: MemoryServer, namespace: str, same_lane: bool
) -> None:
    """In a thread it cannot be ended. When its time is over the others that wait to run alone have their turn, in its own lane
    and in others of the process."""
    eyes, started, done, hanging = Eyes(memory, namespace), list[Any](), list[str](), threading.Event()
    async with running(memory, namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=0))
        await bus.publish_many([PaintingMade(number=1)] if same_lane else [SculptureMade()])
    for name in ("painting.made", "sculpture.made"):
        stream = eyes.stream(name)
        eyes.call("XGROUP", "CREATE", stream, "makers", "0", "MKSTREAM")
        eyes.call("XREADGROUP", "GROUP", "makers", "~suspect", "STREAMS", stream, ">")
        for entry_id, _, _ in eyes.pending("makers", name):
            eyes.call("XCLAIM", stream, "makers", "~suspect", 0, entry_id, "RETRYCOUNT", 0, "JUSTID")
    worker = Worker("makers")

    @worker.on(PaintingMade, concurrency=4, timeout=2)
    @worker.on(SculptureMade, timeout=2)
    def make(event: PaintingMade | SculptureMade) -> None:
        first = not started
        started.append(event)
        if first:
            hanging.wait()
        done.append("the first" if first else "another")

    async with running(memory, worker, namespace=namespace) as bus:
        try:
            await until(lambda: done == ["another"], 30)
        finally:
            hanging.set()
        await until(lambda: done == ["another", "the first"], 30)
        for name in ("painting.made", "sculpture.made"):
            await quiet(eyes, event_type=name)


async def test_a_suspect_that_hangs_twice_keeps_no_other_from_running(
    virtual: Clock, memory: MemoryServer, namespace: str
) -> None:
    """Behind a shield: it was late, failed, and hangs again. That is another run, whose time ends, too."""
    eyes, done, runs = Eyes(memory, namespace), list[int](), list[float]()
    async with running(memory, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(3)])
    stream = eyes.stream()
    eyes.call("XGROUP", "CREATE", stream, "makers", "0", "MKSTREAM")
    eyes.call("XREADGROUP", "GROUP", "makers", "~other", "STREAMS", stream, ">")
    first, *others = [entry_id for entry_id, _, _ in eyes.pending("makers")]
    eyes.call("XCLAIM", stream, "makers", "~suspect", 0, first, "RETRYCOUNT", 0, "JUSTID")
    worker = Worker("makers")

    @worker.on(PaintingMade, concurrency=4, timeout=2, retry=Backoff(attempts=9, base=0, cap=0))
    async def make(event: PaintingMade) -> None:
        if event.number == 0:
            runs.append(trio.current_time())
            with trio.CancelScope(shield=True):
                await trio.sleep(5 if len(runs) == 1 else 300)
            await trio.lowlevel.checkpoint()
        done.append(event.number)

    async with running(memory, worker, namespace=namespace, grace=0.1):
        await until(lambda: len(runs) == 2, 100)
        for entry_id in others:
            eyes.call("XCLAIM", stream, "makers", "~suspect", 0, entry_id, "RETRYCOUNT", 3, "JUSTID")
        await until(lambda: sorted(done) == [1, 2], 100)


async def test_a_suspect_that_hangs_among_others_keeps_none_from_running_alone(
    any_url: str, namespace: str, eyes: Eyes
) -> None:
    """It survived nothing yet, so it runs beside others, and hangs in a thread. One that has to run alone waits for it until
    its time is over."""
    done, hanging = list[int](), threading.Event()
    async with running(any_url, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(2)])
    stream = eyes.stream()
    eyes.call("XGROUP", "CREATE", stream, "makers", "0", "MKSTREAM")
    eyes.call("XREADGROUP", "GROUP", "makers", "~suspect", "STREAMS", stream, ">")
    (_, _, _), (second, _, _) = eyes.pending("makers")
    eyes.call("XCLAIM", stream, "makers", "~suspect", 0, second, "RETRYCOUNT", 2, "JUSTID")
    worker = Worker("makers")

    @worker.on(PaintingMade, concurrency=4, timeout=0.5)
    def make(event: PaintingMade) -> None:
        if event.number == 0:
            hanging.wait()
        done.append(event.number)

    async with running(any_url, worker, namespace=namespace):
        try:
            await until(lambda: done == [1], 30)
        finally:
            hanging.set()
        await until(lambda: done == [1, 0], 30)
        await quiet(eyes)
