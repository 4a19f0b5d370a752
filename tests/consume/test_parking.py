"""Events of a newer version than their reader knows: parked, taken up by those who know it, given up after a day."""

import itertools
from collections import Counter
from typing import Any

import pytest
import trio
from faulty import FaultyServer
from studio import Eyes, PaintingFramed, PaintingMade, quiet, runner_of, running, subscription_of
from trio.abc import Clock
from versions import LAID, Era
from waiting import until

from canvasbus import Event, event
from canvasbus.bus import Retention
from canvasbus.config import Settings
from canvasbus.consume.parking import PATIENCE_SECONDS
from canvasbus.consume.retention import Trimmer, declare
from canvasbus.contract.registry import Registry
from canvasbus.transport.memory import MemoryServer
from canvasbus.wire.codec import VERSIONS_AHEAD, Codec
from canvasbus.worker import Backoff, Worker

_numbers = itertools.count()


class Mosaic:
    """An event type of which this process knows version 1, until somebody deploys the second."""

    def __init__(self) -> None:
        self.name = f"mosaic{next(_numbers)}.laid"

        @event(self.name)
        class First(Event):
            number: int = 0

        self.first = First

    def newer(self, number: int, version: int = 2, **more: Any) -> bytes:
        """What a producer of a later version puts on the stream."""

        class Later(Event):
            number: int = 0
            colours: int = 7

        elsewhere = Registry()
        Later.__event_type__ = elsewhere.register(Later, self.name, version, None, since=version)  # type: ignore[attr-defined]
        return Codec("laid", registry=elsewhere).encode(Later(number=number), **more).data

    def deploy(self, version: int = 2) -> None:
        """From now on this process knows it."""

        @event(self.name, version=version, upcast=dict.fromkeys(range(1, version), dict))
        class Later(Event):
            number: int = 0
            colours: int = 0

    def worker(self, seen: list[Any], **options: Any) -> Worker:
        worker = Worker("layers")

        @worker.on(self.name, **options)
        async def lay(event: Any) -> None:
            seen.append((type(event).__name__, event.number))

        return worker


@pytest.fixture
def mosaic() -> Mosaic:
    return Mosaic()


async def test_a_newer_version_waits_for_a_newer_worker(
    any_url: str, namespace: str, eyes: Eyes, mosaic: Mosaic
) -> None:
    """The old worker reads each entry once, parks it and handles what it knows; the new one handles the rest, once, and
    leaves no trace of the pool. Nothing is a dead letter, and no attempt is counted."""
    seen: list[Any] = []
    async with running(any_url, mosaic.worker(seen), namespace=namespace) as bus:
        for number in range(0, 40, 2):
            await bus.publish(mosaic.first(number=number))
            eyes.put(mosaic.newer(number + 1), mosaic.name)
        await until(lambda: len(seen) == 20 and runner_of(bus).statistics().parked == 20)
        await until(lambda: {(o, n) for _, o, n in eyes.pending("layers", mosaic.name)} == {(f"~v:{mosaic.name}:2", 1)})
        await until(lambda: runner_of(bus).statistics().held == 0)
        assert subscription_of(bus).statistics.entries == 40
    mosaic.deploy()
    assert len(eyes.pending("layers", mosaic.name)) == 20
    async with running(any_url, mosaic.worker(seen), namespace=namespace):
        await until(lambda: len(seen) == 40)
        await until(lambda: not eyes.pending("layers", mosaic.name))
        await until(lambda: not any(name.startswith("~v") for name in eyes.consumers("layers", mosaic.name)), 20)
    assert sorted(seen) == [*(("First", n) for n in range(0, 40, 2)), *(("Later", n) for n in range(1, 40, 2))]
    assert eyes.dead("layers") == []


async def test_a_version_that_is_too_new_for_everybody_stays_parked(
    any_url: str, namespace: str, eyes: Eyes, mosaic: Mosaic
) -> None:
    """A worker that knows version 2 takes up what waits for it and leaves alone what waits for version 3."""
    seen: list[Any] = []
    async with running(any_url, mosaic.worker(seen), namespace=namespace) as bus:
        for version in (2, 3):
            eyes.put(mosaic.newer(version, version), mosaic.name)
        await until(lambda: runner_of(bus).statistics().parked == 2)
        await until(lambda: runner_of(bus).statistics().held == 0)
    mosaic.deploy()
    async with running(any_url, mosaic.worker(seen), namespace=namespace):
        await until(lambda: seen)
        await until(lambda: len(eyes.pending("layers", mosaic.name)) == 1)
    assert seen == [("Later", 2)]
    assert [owner for _, owner, _ in eyes.pending("layers", mosaic.name)] == [f"~v:{mosaic.name}:3"]


@pytest.mark.long
async def test_after_its_time_it_is_given_up(
    virtual: Clock, memory: MemoryServer, namespace: str, mosaic: Mosaic
) -> None:
    """Not before: then it is one dead letter with its bytes, and nothing was read twice meanwhile. (A day by default.)"""
    eyes, value = Eyes(memory, namespace), mosaic.newer(5)
    async with running(memory, mosaic.worker([]), namespace=namespace, park=600.0) as bus:
        eyes.put(value, mosaic.name)
        await trio.sleep(599)
        assert eyes.dead("layers") == [] and subscription_of(bus).statistics.entries == 1
        await trio.sleep(10)
        (letter,) = eyes.dead("layers")
        await quiet(eyes, event_type=mosaic.name)
        subscription = subscription_of(bus)
        assert (subscription.statistics.entries, subscription.recovery.statistics.taken) == (1, 1)
    assert (letter.reason, letter.fields, letter.handler) == ("newer_version", (b"e", value), "")
    assert Settings().park == PATIENCE_SECONDS == 24 * 3600


async def test_how_long_it_waits_can_be_set(any_url: str, namespace: str, eyes: Eyes, mosaic: Mosaic) -> None:
    """park=0: for nobody; the next look gives it up. The pool is forgotten with its last entry."""
    seen: list[Any] = []
    async with running(any_url, mosaic.worker(seen), namespace=namespace, park=0.0) as bus:
        eyes.put(mosaic.newer(1), mosaic.name)
        await bus.publish(mosaic.first(number=2))
        await until(lambda: len(eyes.dead("layers")) == 1, 20)
        await until(lambda: not eyes.pending("layers", mosaic.name))
    assert eyes.dead("layers")[0].reason == "newer_version" and seen == [("First", 2)]


@pytest.mark.parametrize("version", [VERSIONS_AHEAD + 2, 10**12])
async def test_a_number_that_is_no_version_is_not_waited_for(
    any_url: str, namespace: str, eyes: Eyes, mosaic: Mosaic, version: int
) -> None:
    """Whoever writes such numbers could otherwise give the group as many pools as there are events."""
    async with running(any_url, mosaic.worker([]), namespace=namespace):
        eyes.put(mosaic.newer(1, version), mosaic.name)
        await until(lambda: eyes.dead("layers"))
        await quiet(eyes, event_type=mosaic.name)
    assert [letter.reason for letter in eyes.dead("layers")] == ["unknown_type"]


async def test_a_parked_entry_outlives_those_who_parked_it(
    virtual: Clock, memory: MemoryServer, namespace: str, mosaic: Mosaic
) -> None:
    """It belongs to nobody: workers that come and go, and the sweep for the dead, leave it where it is."""
    eyes = Eyes(memory, namespace)
    for life in range(3):
        async with running(memory, mosaic.worker([]), PAINTERS, namespace=namespace) as bus:
            if life == 0:
                eyes.put(mosaic.newer(1), mosaic.name)
            await bus.publish(PaintingMade(number=life))
            await trio.sleep(60)
    assert [(owner, n) for _, owner, n in eyes.pending("layers", mosaic.name)] == [(f"~v:{mosaic.name}:2", 1)]


PAINTERS = Worker("painters")


@PAINTERS.on(PaintingMade)
async def look(event: PaintingMade) -> None:
    """Another group on the same bus."""


async def test_a_parked_event_keeps_its_trace(any_url: str, namespace: str, eyes: Eyes, mosaic: Mosaic) -> None:
    """What waited for a newer worker has the trace context that it came with, and hands it on."""
    said = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    eyes.put(mosaic.newer(1, traceparent=said), mosaic.name)

    def layers() -> Worker:
        worker = Worker("layers")
        worker.on(mosaic.name)(lambda event: PaintingFramed(number=event.number))
        return worker

    async with running(any_url, layers(), namespace=namespace) as bus:
        await until(lambda: runner_of(bus).statistics().parked == 1)
    mosaic.deploy()
    async with running(any_url, layers(), namespace=namespace):
        await until(lambda: eyes.count("painting.framed") == 1)
    ((framed, _),) = eyes.entries("painting.framed")
    assert framed.traceparent == said


async def test_what_is_dropped_at_the_cap_while_parked_is_told_once(
    any_url: str, namespace: str, eyes: Eyes, mosaic: Mosaic
) -> None:
    """By who drops it, in one step, and not once more by the newer worker that comes for it; of what is left none is lost."""
    seen: list[Any] = []
    async with running(any_url, mosaic.worker(seen), namespace=namespace) as bus:
        for number in range(20):
            eyes.put(mosaic.newer(number), mosaic.name)
        await until(lambda: runner_of(bus).statistics().parked == 20)
        await until(lambda: runner_of(bus).statistics().held == 0)
    policy = Retention(max_age=None, max_length=None, cap=10, when_full="drop_with_loss_event")
    eyes.run(declare([eyes.keys], {mosaic.name: policy}))
    eyes.run(Trimmer(eyes.keys).look(0.0))
    assert [loss.lost for loss in eyes.events("bus.loss")] == [11]
    mosaic.deploy()
    async with running(any_url, mosaic.worker(seen), namespace=namespace):
        await until(lambda: not eyes.pending("layers", mosaic.name))
    assert sorted(seen) == [("Later", n) for n in range(11, 20)]
    assert [loss.lost for loss in eyes.events("bus.loss")] == [11]


async def test_a_newer_version_that_kills_its_worker_is_given_up_beside_an_old_worker(
    virtual: Clock, memory: MemoryServer, namespace: str
) -> None:
    """Of six events of the newer version one kills every worker that runs it. An old worker gets hold of what the dead
    held, and parks it; all the same the killer ends as the only dead letter, after one death in the crowd, one among
    suspects and two alone, and its neighbours are handled."""
    eyes, old, new, done = Eyes(memory, namespace), Era(1), Era(2), Counter[int]()

    def laying(killed: trio.Event) -> Worker:
        worker = Worker("layers")

        @worker.on(LAID, retry=Backoff(attempts=2, base=0.1))
        async def lay(event: Any) -> None:
            await trio.sleep(1)
            if event.number == 3:
                killed.set()
                await trio.sleep_forever()
            await trio.sleep(1)
            done[event.number] += 1

        return worker

    async def live() -> bool:
        killed, faulty = trio.Event(), FaultyServer(memory)

        async def work() -> None:
            async with new.running(faulty, laying(killed), namespace=namespace):
                await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            with trio.move_on_after(60):
                await killed.wait()
                faulty.cut()
            nursery.cancel_scope.cancel()
        return killed.is_set()

    async with old.running(memory, laying(trio.Event()), namespace=namespace):
        async with new.running(memory, namespace=namespace) as bus:
            await bus.publish_many([new.event(number=n) for n in range(6)])
        deaths = 0
        while await live():
            deaths += 1
            assert deaths < 9
            await trio.sleep(20)  # the old worker has it all by now
    (letter,) = eyes.dead("layers")
    assert (letter.reason, letter.attempts, deaths) == ("lost_workers", 2, 4)
    assert done == {n: 1 for n in range(6) if n != 3} and not eyes.pending("layers", LAID)
