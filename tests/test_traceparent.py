"""Trace context goes from whoever publishes to whatever follows, with nothing installed but the bus."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import trio
from studio import Eyes, PaintingFramed, PaintingMade, SculptureMade, quiet, running
from waiting import until

from canvasbus import Event, Producer, traceparent
from canvasbus.bus import EventBus
from canvasbus.consume import maintain
from canvasbus.operate.deadletter import Filter, dead_letters
from canvasbus.operate.redrive import portions, redrive
from canvasbus.wire.cloudevents import to_structured
from canvasbus.wire.codec import Codec
from canvasbus.worker import Backoff, Context, Handle, Later, Worker

TRACE = "0af7651916cd43dd8448eb211c80319c"
JUNK = ("", "00-1-2-01", f"00-{TRACE.upper()}-b7ad6b7169203331-01", "x" * 600_000, f"00-{'0' * 32}-b7ad6b7169203331-01")


def trace(number: int) -> str:
    """A trace of its own for each number."""
    return f"00-{TRACE}-{number + 1:016x}-01"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timers are looked for more often: waiting for them is all that these tests would do."""
    monkeypatch.setattr(maintain, "IDLE_SECONDS", 0.05)


def carried(eyes: Eyes, event_type: str = "painting.made") -> dict[int, str | None]:
    """Number → traceparent of what lies on a stream."""
    return {event.number: envelope.traceparent for envelope, event in eyes.entries(event_type)}


# --- through every door -----------------------------------------------------------------------------------------------

Bus = Any
Door = Callable[[Bus, list[Event]], Awaitable[None]]


def calls(publish: Callable[[Bus, list[Event]], Any]) -> Door:
    async def door(bus: Bus, events: list[Event]) -> None:
        with traceparent(trace(0)):
            publish(bus, events[:2])
        publish(bus, events[2:])

    return door


def awaits(publish: Callable[[Bus, list[Event]], Awaitable[Any]]) -> Door:
    async def door(bus: Bus, events: list[Event]) -> None:
        with traceparent(trace(0)):
            await publish(bus, events[:2])
        await publish(bus, events[2:])

    return door


def each(**options: Any) -> Callable[[Bus, list[Event]], None]:
    def publish(bus: Bus, events: list[Event]) -> None:
        for event in events:
            bus.publish(event, **options)

    return publish


def awaited_each(**options: Any) -> Callable[[Bus, list[Event]], Awaitable[None]]:
    async def publish(bus: Bus, events: list[Event]) -> None:
        for event in events:
            key = {"dedupe_key": str(event.number)} if "keyed" in options else options  # type: ignore[attr-defined]
            await bus.publish(event, **key)

    return publish


def nowait(bus: Bus, events: list[Event]) -> None:
    for event in events:
        bus.publish_nowait(event)


def key(event: Any) -> str:
    return str(event.number)


PRODUCER_DOORS = {
    "publish": each(),
    "expires_in": each(expires_in=60),
    "many": lambda bus, events: bus.publish_many(events),
    "many, expires_in": lambda bus, events: bus.publish_many(events, expires_in=60),
    "many, dedupe_key": lambda bus, events: bus.publish_many(events, dedupe_key=key),
}
BUS_DOORS = {
    "publish": awaits(awaited_each()),
    "expires_in": awaits(awaited_each(expires_in=60)),
    "dedupe_key": awaits(awaited_each(keyed=True)),
    "many": awaits(lambda bus, events: bus.publish_many(events)),
    "many, expires_in": awaits(lambda bus, events: bus.publish_many(events, expires_in=60)),
    "nowait": calls(nowait),
}
EXPECTED = {0: trace(0), 1: trace(0), 2: None, 3: None}


@pytest.mark.parametrize("partitions", [1, 2])
@pytest.mark.parametrize("name", PRODUCER_DOORS)
async def test_a_producer_sends_it_along(any_url: str, namespace: str, name: str, partitions: int) -> None:
    """What is published inside of the block carries it, what is published outside does not."""
    events: list[Event] = [PaintingMade(number=number, title="one") for number in range(4)]
    with Producer(any_url, namespace=namespace, partitions=partitions) as bus:
        await calls(PRODUCER_DOORS[name])(bus, events)
        assert await trio.to_thread.run_sync(bus.flush, 10)
    assert found(any_url, namespace, partitions) == EXPECTED


@pytest.mark.parametrize("partitions", [1, 2])
@pytest.mark.parametrize("name", BUS_DOORS)
async def test_a_bus_sends_it_along(any_url: str, namespace: str, name: str, partitions: int) -> None:
    """The same; that the bus itself was opened while another was in force means nothing."""
    events: list[Event] = [PaintingMade(number=number, title="one") for number in range(4)]
    bus = EventBus(any_url, namespace=namespace, partitions=partitions)
    with traceparent(trace(9)):
        await bus.__aenter__()
    await BUS_DOORS[name](bus, events)
    await bus.__aexit__(None, None, None)
    assert found(any_url, namespace, partitions) == EXPECTED


def found(url: str, namespace: str, partitions: int) -> dict[int, str | None]:
    eyes = [Eyes(url, namespace, partition) for partition in range(partitions)]
    result = {number: said for one in eyes for number, said in carried(one).items()}
    for one in eyes:
        one.close()
    return result


async def test_what_comes_later_carries_it(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Delayed by a Producer or a bus, to a moment or by seconds."""
    moment = datetime(2020, 1, 1, tzinfo=UTC)
    async with EventBus(any_url, namespace=namespace) as bus:
        with Producer(any_url, namespace=namespace) as producer, producer.traceparent(trace(1)):
            producer.publish(PaintingMade(number=1), delay=0)
            assert await trio.to_thread.run_sync(producer.flush, 10)
        with bus.traceparent(trace(2)):
            await bus.publish(PaintingMade(number=2), at=moment)
            bus.publish_nowait(PaintingMade(number=3), delay=0)
        await bus.publish(PaintingMade(number=4), delay=0)
        await until(lambda: eyes.count("painting.made") == 4)
    assert carried(eyes) == {1: trace(1), 2: trace(2), 3: trace(2), 4: None}


async def test_tasks_that_publish_at_once_do_not_mix(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Each of many tasks has its own, also where their events go out in one batch with those that have none."""
    async with EventBus(any_url, namespace=namespace) as bus:

        async def one(number: int) -> None:
            with traceparent(trace(number) if number % 3 else None):
                for turn in range(5):
                    await bus.publish(PaintingMade(number=number * 10 + turn))

        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(one, number)
    expected = {n * 10 + turn: trace(n) if n % 3 else None for n in range(40) for turn in range(5)}
    assert carried(eyes) == expected


def test_it_is_shown_as_cloudevents_have_it() -> None:
    """The attribute of the distributed tracing extension; events without one do not show it."""
    codec = Codec("studio")
    for said in (trace(1), None):
        data = codec.encode(PaintingMade(), traceparent=said).data
        shown = to_structured(*codec.decode(data, stream_type="painting.made", entry_id="1-0"))
        assert shown.get("traceparent") == said


# --- from an event to what follows ------------------------------------------------------------------------------------


async def publish_traced(bus: EventBus, count: int) -> None:
    """Events 0, 2, 4 … have a trace of their own each; 1, 3, 5 … have none."""
    for number in range(count):
        with traceparent(None if number % 2 else trace(number)):
            await bus.publish(PaintingMade(number=number, title=str(number)))


def traces(count: int) -> dict[int, str | None]:
    return {number: None if number % 2 else trace(number) for number in range(count)}


@pytest.mark.parametrize("kind", ["async", "plain", "batch", "plain batch"])
async def test_returned_events_carry_it(any_url: str, namespace: str, eyes: Eyes, kind: str) -> None:
    """What a handler returns for an event has the trace of that event, timers included."""
    worker = Worker("framers")

    def framed(event: PaintingMade) -> list[Event | Later]:
        return [PaintingFramed(number=event.number), Later(PaintingFramed(number=event.number + 100), after=0)]

    async def one(event: PaintingMade) -> list[Event | Later]:
        await trio.lowlevel.checkpoint()
        return framed(event)

    async def many(events: list[PaintingMade]) -> list[tuple[int, Event]]:
        return plain_many(events)

    def plain_many(events: list[PaintingMade]) -> list[tuple[int, Event]]:
        return [(at, item) for at, event in enumerate(events) for item in framed(event)]  # type: ignore[misc]

    if "batch" in kind:
        worker.on_batch(PaintingMade)(plain_many if "plain" in kind else many)
    else:
        worker.on(PaintingMade)(framed if kind == "plain" else one)
    async with running(any_url, worker, namespace=namespace) as bus:
        await publish_traced(bus, 10)
        await until(lambda: eyes.count("painting.framed") == 20)
    by_timer = {number + 100: said for number, said in traces(10).items()}
    assert carried(eyes, "painting.framed") == traces(10) | by_timer


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_what_a_handler_publishes_carries_it(any_url: str, namespace: str, eyes: Eyes, kind: str) -> None:
    """As with the correlation id: also from many runs that interleave, from tasks that a handler starts, and from threads."""
    worker, buses = Worker("framers"), []
    entered: list[int] = []
    full = trio.Event()

    @worker.on(PaintingMade, concurrency=16)
    async def frame(event: PaintingMade, ctx: Context) -> None:
        assert ctx.traceparent == traces(8)[event.number]
        entered.append(event.number)
        if len(entered) == 8:
            full.set()
        await full.wait()  # all of them run by now
        async with trio.open_nursery() as nursery:
            nursery.start_soon(buses[0].publish, PaintingFramed(number=event.number))
        await buses[0].publish_many([PaintingFramed(number=event.number + 100)])

    plain = Worker("framers")

    @plain.on(PaintingMade, concurrency=16)
    def frame_in_thread(event: PaintingMade) -> None:
        with Producer(any_url, namespace=namespace) as bus:
            bus.publish_many([PaintingFramed(number=event.number + more) for more in (0, 100)])
            assert bus.flush(20)

    with traceparent(trace(99)):  # what the tasks of the bus inherit is not what they handle
        running_bus = running(any_url, worker if kind == "async" else plain, namespace=namespace)
        bus = await running_bus.__aenter__()
    buses.append(bus)
    await publish_traced(bus, 8)
    await quiet(eyes)
    await running_bus.__aexit__(None, None, None)
    later = {number + 100: said for number, said in traces(8).items()}
    assert carried(eyes, "painting.framed") == traces(8) | later


async def test_what_a_batch_handler_publishes_itself_carries_none(any_url: str, namespace: str, eyes: Eyes) -> None:
    """It belongs to no one of its events, whatever ran before; run one by one, after a failure, it does."""
    worker, buses = Worker("framers"), []

    @worker.on_batch(PaintingMade, max_size=3, max_wait=5)
    async def frame(events: list[PaintingMade]) -> None:
        await buses[0].publish_many([PaintingFramed(number=event.number + 10 * len(events)) for event in events])
        if len(events) == 3:
            raise ValueError("not together")

    async with running(any_url, worker, namespace=namespace) as bus:
        buses.append(bus)
        for _ in range(2):
            await publish_traced(bus, 3)
            await quiet(eyes)
    together = {number + 30: None for number in range(3)}
    assert carried(eyes, "painting.framed") == together | {n + 10: said for n, said in traces(3).items()}


async def test_middleware_may_give_another(any_url: str, namespace: str, eyes: Eyes) -> None:
    """What follows carries what `ctx.traceparent` was set to, if that is one; else what the event had."""
    worker = Worker("framers")

    @worker.use
    def spans(handle: Handle) -> Handle:
        async def run(event: Any, ctx: Any) -> Any:
            ctx.traceparent = trace(50 + event.number) if event.number != 2 else "no span"
            return await handle(event, ctx)

        return run

    @worker.on(PaintingMade)
    async def frame(event: PaintingMade) -> PaintingFramed:
        return PaintingFramed(number=event.number)

    async with running(any_url, worker, namespace=namespace) as bus:
        await publish_traced(bus, 4)
        await quiet(eyes)
    assert carried(eyes, "painting.framed") == {0: trace(50), 1: trace(51), 2: trace(2), 3: trace(53)}


async def test_a_dead_letter_keeps_it(any_url: str, namespace: str, eyes: Eyes) -> None:
    """`handler.failed` tells it, and so does what comes of the event when it is redriven."""
    worker, mended = Worker("framers"), []

    @worker.on(PaintingMade, retry=Backoff(attempts=1))
    async def frame(event: PaintingMade) -> PaintingFramed:
        if not mended:
            raise ValueError("no frames")
        return PaintingFramed(number=event.number)

    def failed() -> list[Any]:
        return eyes.entries("handler.failed")

    async with running(any_url, worker, namespace=namespace) as bus:
        await publish_traced(bus, 2)
        await until(lambda: len(failed()) == 2)
        mended.append(True)
        letters = eyes.run(dead_letters([eyes.keys], Filter(), limit=10)).letters
        assert sum(eyes.run(redrive([eyes.keys], portion)) for portion in portions(letters)) == 2
        await until(lambda: eyes.count("painting.framed") == 2)
    ids = {envelope.id: event.number for envelope, event in eyes.entries("painting.made")}
    told: dict[int, str | None] = {ids[e.event_id]: envelope.traceparent for envelope, e in failed()}
    assert told == carried(eyes, "painting.framed") == traces(2)


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("kind", ["async", "plain", "batch"])
async def test_junk_from_strangers_is_handled_and_goes_no_further(
    any_url: str, namespace: str, eyes: Eyes, kind: str, junk: str
) -> None:
    """An event with a torn traceparent, even one so long that what follows from it would not fit, is handled like any
    other; the next one has its own."""
    worker, buses = Worker("framers"), []

    async def frame(event: PaintingMade, ctx: Context) -> PaintingFramed:
        await buses[0].publish(SculptureMade(title=str(ctx.traceparent)))
        return PaintingFramed(number=event.number)

    def frame_in_thread(event: PaintingMade, ctx: Context) -> PaintingFramed:
        trio.from_thread.run(buses[0].publish, SculptureMade(title=str(ctx.traceparent)))
        return PaintingFramed(number=event.number)

    async def frame_many(events: list[PaintingMade], ctxs: list[Context]) -> list[tuple[int, Event]]:
        await buses[0].publish_many([SculptureMade(title=str(ctx.traceparent)) for ctx in ctxs])
        return [(at, PaintingFramed(number=event.number)) for at, event in enumerate(events)]

    if kind == "batch":
        worker.on_batch(PaintingMade)(frame_many)
    else:
        worker.on(PaintingMade, concurrency=1)(frame_in_thread if kind == "plain" else frame)
    codec = Codec("stranger")
    async with running(any_url, worker, namespace=namespace) as bus:
        buses.append(bus)
        eyes.put(codec.encode(PaintingMade(number=0), traceparent=junk).data)
        eyes.put(b'{"type": "painting.made", "traceparent": "%s", "data": {"number": 1}}' % junk.encode())
        eyes.put(codec.encode(PaintingMade(number=2), traceparent=trace(2)).data)
        eyes.put(codec.encode(PaintingMade(number=3), traceparent=junk).data)
        await quiet(eyes)
    assert eyes.dead("framers") == []
    assert carried(eyes, "painting.framed") == {0: None, 1: None, 2: trace(2), 3: None}
    published = [envelope.traceparent for envelope, _ in eyes.entries("sculpture.made")]
    assert published == ([None] * 4 if kind == "batch" else [None, None, trace(2), None])
    assert [event.title for event in eyes.events("sculpture.made")] == ["None", "None", trace(2), "None"]
