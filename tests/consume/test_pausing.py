"""A paused group: its workers stop reading, finish what they hold, stay, and go on."""

import contextlib
from collections import Counter
from typing import Any

import pytest
import structlog
import trio
import trio.testing
from studio import Eyes, PaintingFramed, PaintingMade, quiet, runner_of, running, subscription_of
from trio.abc import Clock
from waiting import until

from canvasbus.operate import steering
from canvasbus.transport.memory import MemoryServer
from canvasbus.worker import RetryLater, Worker


def pause(eyes: Eyes, seconds: float | None = None) -> None:
    eyes.run(steering.pause([eyes.keys], "framers", by="me@here", seconds=seconds))


def resume(eyes: Eyes) -> bool:
    return eyes.run(steering.resume([eyes.keys], "framers"))


def state(bus: Any) -> str:
    return str(runner_of(bus).statistics().state)


@pytest.fixture
def seen() -> list[int]:
    return []


@pytest.fixture
def worker(seen: list[int]) -> Worker:
    worker = Worker("framers")
    worker.on(PaintingMade)(lambda event: seen.append(event.number))
    return worker


async def test_a_paused_group_reads_nothing(
    any_url: str, namespace: str, eyes: Eyes, worker: Worker, seen: list[int]
) -> None:
    """What comes meanwhile waits on its stream, not in anybody's hands, and is handled when the group is resumed."""
    with structlog.testing.capture_logs() as lines:
        other = Worker("others")
        others: list[int] = []
        other.on(PaintingMade)(lambda event: others.append(event.number))
        async with running(any_url, worker, other, namespace=namespace) as bus:
            await bus.publish(PaintingMade(number=1))
            await quiet(eyes)
            pause(eyes)
            await until(lambda: state(bus) == "paused" and not subscription_of(bus)._blocked)
            await bus.publish_many([PaintingMade(number=i) for i in range(2, 30)])
            await until(lambda: len(others) == 29)
            assert (seen, eyes.pending("framers")) == ([1], [])
            assert resume(eyes)
            await until(lambda: sorted(seen) == list(range(1, 30)))
            await until(lambda: state(bus) == "running")
    told = [(line["event"], line.get("by")) for line in lines if "paused" in line["event"]]
    assert told == [
        ("the group is paused: nothing new is read until `canvasbus groups resume`", "me@here"),
        ("the group is paused no more", None),
    ]


async def test_what_is_held_is_finished(memory: MemoryServer, virtual: Clock) -> None:
    """Running handlers, queued events and waiting retries: none of them is thrown away or kept back."""
    done: list[int] = []
    eyes = Eyes(memory, "studio")
    worker = Worker("framers")

    @worker.on(PaintingMade, concurrency=2)
    async def handle(event: PaintingMade) -> None:
        if event.number == 0 and trio.current_time() < 20:
            raise RetryLater(30)
        await trio.sleep(5)
        done.append(event.number)

    async with running(memory, worker, namespace="studio") as bus:
        await bus.publish_many([PaintingMade(number=i) for i in range(6)])
        await until(lambda: runner_of(bus).statistics().running == 2)
        held = {number for number, _, _ in eyes.pending("framers")}
        pause(eyes)
        await until(lambda: state(bus) == "paused")
        await trio.sleep(60)
        left = {number for number, _, _ in eyes.pending("framers")}
        assert not left & held and len(done) == len(held)
        resume(eyes)
        await until(lambda: sorted(done) == list(range(6)), 60)


async def test_the_pools_wait_too(memory: MemoryServer, virtual: Clock, worker: Worker, seen: list[int]) -> None:
    """What another worker handed back is not taken while the group is paused."""
    eyes = Eyes(memory, "studio")
    async with running(memory, worker, namespace="studio") as bus:
        pause(eyes)
        await until(lambda: state(bus) == "paused")
        await bus.publish(PaintingMade(number=1))
        eyes.call("XREADGROUP", "GROUP", "framers", "~free", "STREAMS", eyes.stream(), ">")
        await trio.sleep(30)
        assert [owner for _, owner, _ in eyes.pending("framers")] == ["~free"]
        resume(eyes)
        await until(lambda: seen == [1])


async def test_a_worker_that_starts_is_paused_from_the_first_moment(
    any_url: str, namespace: str, eyes: Eyes, worker: Worker, seen: list[int]
) -> None:
    """Also one that makes the group: the pause lies on the server. It drains and leaves like any other."""
    pause(eyes)
    async with running(any_url, worker, namespace=namespace) as bus:
        assert state(bus) == "paused"
        await bus.publish(PaintingMade(number=1))
        assert len(eyes.consumers("framers")) == 0
    assert seen == []
    assert resume(eyes)
    async with running(any_url, worker, namespace=namespace):
        await until(lambda: seen == [1])


async def test_a_pause_for_a_while_ends_by_itself(
    memory: MemoryServer, virtual: Clock, worker: Worker, seen: list[int]
) -> None:
    """After its time and a second; it begins within two."""
    eyes = Eyes(memory, "studio")
    async with running(memory, worker, namespace="studio") as bus:
        pause(eyes, 300)
        await trio.sleep(2)
        assert state(bus) == "paused"
        await bus.publish(PaintingMade(number=1))
        await trio.sleep(290)
        assert seen == []
        await trio.sleep(15)
        assert (seen, state(bus)) == ([1], "running")


async def test_a_worker_that_joins_again_stays_paused(memory: MemoryServer, virtual: Clock, worker: Worker) -> None:
    """Taken for dead, it comes back under another name and does not begin to read."""
    eyes = Eyes(memory, "studio")
    pause(eyes)
    async with running(memory, worker, namespace="studio") as bus:
        await bus.publish(PaintingMade(number=1))
        runner = runner_of(bus)
        first = runner.statistics().consumer
        assert runner._current is not None
        runner._current._fenced.set()
        await until(lambda: runner.statistics().consumer != first and state(bus) == "paused")
        await trio.sleep(10)
        assert eyes.pending("framers") == []


async def test_a_value_of_somebody_elses_pauses_too(memory: MemoryServer, virtual: Clock, worker: Worker) -> None:
    """A SET by hand with any value: better paused without a name than not paused."""
    eyes = Eyes(memory, "studio")
    eyes.call("SET", eyes.keys.paused("framers"), "please")
    async with running(memory, worker, namespace="studio") as bus:
        assert state(bus) == "paused"


async def test_a_group_that_is_set_back_handles_again_under_the_same_ids(
    any_url: str, namespace: str, eyes: Eyes, seen: list[int]
) -> None:
    """Paused, reset and resumed while its workers stay: every event once more, and what follows from it is told apart
    from nothing new by its id."""
    worker = Worker("framers")

    @worker.on(PaintingMade, concurrency=1)
    async def frame(event: PaintingMade) -> PaintingFramed:
        seen.append(event.number)
        return PaintingFramed(number=event.number)

    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=i) for i in range(20)])
        await until(lambda: eyes.count("painting.framed") == 20)
        await quiet(eyes)
        pause(eyes)
        await until(lambda: state(bus) == "paused" and not subscription_of(bus)._blocked)
        moves = eyes.run(steering.plan([eyes.keys], "framers", "earliest", lambda _: True))
        eyes.run(steering.reset([eyes.keys], "framers", moves))
        assert [move.again.value for move in moves] == [20]
        resume(eyes)
        await until(lambda: eyes.count("painting.framed") == 40)
        await quiet(eyes)
    assert seen == [*range(20), *range(20)]
    ids = [envelope.id for envelope, _ in eyes.entries("painting.framed")]
    assert ids[:20] == ids[20:] and len(set(ids)) == 20


async def test_what_is_held_when_a_group_is_set_back_at_once_is_handled_once(
    any_url: str, namespace: str, eyes: Eyes
) -> None:
    """Nobody waits until its worker has heard of the pause: it reads on from the start, and is given what it has in its hands
    once more. That does not run twice at a time, and is framed once; what was framed is framed twice."""
    held, tried = trio.Event(), Counter[int]()
    worker = Worker("framers")

    @worker.on(PaintingMade, concurrency=20)
    async def frame(event: PaintingMade) -> PaintingFramed:
        tried[event.number] += 1
        if event.number % 2:
            await held.wait()
        return PaintingFramed(number=event.number)

    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(10)])
        await until(lambda: len(tried) == 10 and eyes.count("painting.framed") == 5)
        await until(lambda: len(eyes.pending("framers")) == 5)
        moves = eyes.run(steering.plan([eyes.keys], "framers", "earliest", lambda _: True))
        eyes.run(steering.reset([eyes.keys], "framers", moves))
        await until(lambda: eyes.count("painting.framed") == 10)
        held.set()
        await quiet(eyes)
    framed = Counter(framed.number for framed in eyes.events("painting.framed"))
    assert framed == tried == {n: 1 if n % 2 else 2 for n in range(10)}


@pytest.mark.parametrize("workers", [1, 2])
async def test_what_is_held_when_a_group_is_set_back_is_handled_once(
    any_url: str, namespace: str, eyes: Eyes, workers: int
) -> None:
    """Paintings that wait to be tried again were not handled yet. Set back to the start the group is given them once more, by
    way of the same worker or of its colleague: they are framed once all the same, those that were framed twice."""
    waits, tried = True, Counter[int]()

    def framing() -> Worker:
        worker = Worker("framers")

        @worker.on(PaintingMade)
        async def frame(event: PaintingMade) -> PaintingFramed:
            tried[event.number] += 1
            if waits and event.number % 2:
                raise RetryLater(after=3)
            return PaintingFramed(number=event.number)

        return worker

    async with contextlib.AsyncExitStack() as stack:
        buses = [
            await stack.enter_async_context(running(any_url, framing(), namespace=namespace)) for _ in range(workers)
        ]
        await buses[0].publish_many([PaintingMade(number=n) for n in range(10)])
        await until(lambda: len(tried) == 10 and eyes.count("painting.framed") == 5)
        pause(eyes)
        await until(lambda: all(state(bus) == "paused" and not subscription_of(bus)._blocked for bus in buses))
        assert len(eyes.pending("framers")) == 5
        waits = False
        moves = eyes.run(steering.plan([eyes.keys], "framers", "earliest", lambda _: True))
        eyes.run(steering.reset([eyes.keys], "framers", moves))
        resume(eyes)
        await until(
            lambda: eyes.count("painting.framed") >= 15 and not any(runner_of(b).statistics().waiting for b in buses)
        )
        await until(lambda: not any(runner_of(bus).statistics().held for bus in buses))
        await quiet(eyes)
    framed = Counter(framed.number for framed in eyes.events("painting.framed"))
    assert framed == {n: 1 if n % 2 else 2 for n in range(10)}
