"""Running batch handlers: what they are given, what they may return, and what becomes of one that fails."""

import threading
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
import trio
import trio.testing
from studio import Eyes, PaintingFramed, PaintingMade, quiet, runner_of, running
from trio.abc import Clock
from waiting import until

from canvasbus import Event, ids
from canvasbus.transport.memory import MemoryServer
from canvasbus.worker import Backoff, BatchFailure, Context, Worker

AT_ONCE = Backoff(attempts=3, base=0.0)


@pytest.fixture
def worker() -> Worker:
    return Worker("framers")


async def test_a_batch_handler_gets_lists(any_url: str, namespace: str, eyes: Eyes, worker: Worker) -> None:
    """Up to max_size events with their contexts, in order; derived events name their parent by position."""
    sizes: list[int] = []
    order: list[int] = []

    @worker.on_batch(PaintingMade, max_size=40, max_wait=0.01)
    async def handle(events: list[PaintingMade], ctxs: list[Context]) -> list[tuple[int, Event]]:
        assert [c.envelope.key for c in ctxs] == [e.title for e in events]
        sizes.append(len(events))
        order.extend(e.number for e in events)
        return [(i, PaintingFramed(number=e.number)) for i, e in enumerate(events) if e.number % 10 == 0]

    made = [PaintingMade(title=f"t{i}", number=i, correlation_id=uuid4()) for i in range(100)]
    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish_many(made)
        await quiet(eyes)
    assert order == list(range(100)) and max(sizes) <= 40 and len(sizes) < 30
    parents = {event.number: envelope for envelope, event in eyes.entries("painting.made")}
    for envelope, event in eyes.entries("painting.framed"):
        assert envelope.causation_id == parents[event.number].id
        assert envelope.id == ids.derived(parents[event.number].id, "framers", worker.handlers[0].name, 0)
    assert eyes.count("painting.framed") == 10


async def test_a_batch_does_not_wait_for_ever(
    namespace: str, worker: Worker, virtual: Clock, memory: MemoryServer
) -> None:
    """max_wait after the first event the batch runs with what there is."""
    runs: list[tuple[float, int]] = []

    @worker.on_batch(PaintingMade, max_size=500, max_wait=3)
    async def handle(events: list[PaintingMade]) -> None:
        runs.append((trio.current_time(), len(events)))

    async with running(memory, worker, namespace=namespace) as bus:
        began = trio.current_time()
        await bus.publish(PaintingMade())
        await trio.sleep(1)
        await bus.publish(PaintingMade())
        await until(lambda: runs, 30)
    ((ran, size),) = runs
    assert size == 2 and 3 <= ran - began < 3.2


async def test_batch_failure_settles_the_rest(any_url: str, namespace: str, eyes: Eyes, worker: Worker) -> None:
    """The named positions fail, each with its own error; the others are done and their events published."""
    batches: list[list[int]] = []

    @worker.on_batch(PaintingMade, max_wait=0.05, retry=Backoff(attempts=2, base=0))
    async def handle(events: list[PaintingMade]) -> None:
        batches.append([e.number for e in events])
        bad = {i: ValueError(f"bad {e.number}") for i, e in enumerate(events) if e.number % 4 == 3}
        good = [(i, PaintingFramed(number=e.number)) for i, e in enumerate(events) if i not in bad]
        raise BatchFailure(bad, good)  # type: ignore[arg-type]

    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=i) for i in range(8)])
        await quiet(eyes)
    assert sorted(letter.error for letter in eyes.dead("framers")) == ["ValueError: bad 3", "ValueError: bad 7"]
    assert sorted(e.number for e in eyes.events("painting.framed")) == [0, 1, 2, 4, 5, 6]
    assert sorted(n for batch in batches for n in batch) == [0, 1, 2, 3, 3, 4, 5, 6, 7, 7]


@pytest.mark.parametrize("wrong", [False, True])
async def test_a_batch_failure_means_the_same_for_one_event(
    virtual: Clock, memory: MemoryServer, namespace: str, worker: Worker, wrong: bool
) -> None:
    """A handler always ends with BatchFailure, also where nothing failed. Run one by one, its events are done, with what it
    derives from them; a position that is none is the same error as in a batch."""
    eyes = Eyes(memory, namespace)

    @worker.on_batch(PaintingMade, max_size=6, retry=Backoff(attempts=2, base=0.1))
    async def handle(events: list[PaintingMade]) -> None:
        if len(events) > 1:
            raise ValueError("not together")
        bad = {int(wrong): ValueError("bad")} if events[0].number == 3 else {}
        raise BatchFailure(bad, [(0, PaintingFramed(number=event.number)) for event in events])

    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(6)])
        await quiet(eyes, timeout=60)
    (letter,) = eyes.dead("framers")
    assert letter.attempts == 2
    assert ("the positions [1] of a batch of 1" in letter.error) == wrong
    assert sorted(e.number for e in eyes.events("painting.framed")) == [0, 1, 2, 4, 5]


async def test_any_other_error_runs_a_batch_one_by_one(
    any_url: str, namespace: str, eyes: Eyes, worker: Worker
) -> None:
    """So that the one event at fault is found: its neighbours succeed, with their derived events, exactly once."""

    @worker.on_batch(PaintingMade, max_wait=0.05, retry=Backoff(attempts=2, base=0))
    async def handle(events: list[PaintingMade]) -> list[tuple[int, Event]]:
        if any(e.number == 2 for e in events):
            raise ValueError("two")
        return [(i, PaintingFramed(number=e.number)) for i, e in enumerate(events)]

    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=i) for i in range(5)])
        await quiet(eyes)
    (letter,) = eyes.dead("framers")
    assert letter.error == "ValueError: two" and letter.attempts == 2
    assert sorted(e.number for e in eyes.events("painting.framed")) == [0, 1, 3, 4]


@pytest.mark.parametrize("wrong", [[(99, PaintingFramed())], [(-1, PaintingFramed())], [PaintingFramed()], 7])
async def test_derived_events_of_a_batch_must_name_a_parent(
    any_url: str, namespace: str, eyes: Eyes, worker: Worker, wrong: Any
) -> None:
    """A position outside the batch is an error that is told, not an event that vanishes."""

    @worker.on_batch(PaintingMade, max_wait=0.01, retry=Backoff(attempts=1))
    async def handle(events: list[PaintingMade]) -> Any:
        return wrong

    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=i) for i in range(3)])
        await quiet(eyes)
    assert len(eyes.dead("framers")) == 3 and eyes.count("painting.framed") == 0
    assert "iterable of (position, event)" in eyes.dead("framers")[0].error


async def test_a_plain_batch_handler_runs_in_a_thread(any_url: str, namespace: str, eyes: Eyes, worker: Worker) -> None:
    """The same in a thread, generators included."""
    threads: set[int] = set()

    @worker.on_batch(PaintingMade, max_size=10)
    def handle(events: list[PaintingMade]) -> Iterator[tuple[int, Event]]:
        for i, e in enumerate(events):
            threads.add(threading.get_ident())
            yield i, PaintingFramed(number=e.number)

    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=i) for i in range(30)])
        await quiet(eyes)
    assert threading.get_ident() not in threads
    assert [e.number for e in eyes.events("painting.framed")] == list(range(30))


async def test_a_batch_that_takes_too_long_runs_one_by_one(
    namespace: str, worker: Worker, virtual: Clock, memory: MemoryServer
) -> None:
    """The timeout holds for a batch, then for each of its events."""
    sizes: list[int] = []

    @worker.on_batch(PaintingMade, timeout=5, max_wait=0.1, retry=Backoff(attempts=1))
    async def handle(events: list[PaintingMade]) -> None:
        sizes.append(len(events))
        await trio.sleep(3 * len(events))

    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=i) for i in range(3)])
        eyes = Eyes(memory, namespace)
        await quiet(eyes, timeout=60)
        assert runner_of(bus).statistics().timeouts == 1
    assert sizes == [3, 1, 1, 1] and eyes.dead("framers") == []
