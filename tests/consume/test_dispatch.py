"""Running handlers: what they are given, what they may return, how they may fail, and how long they may take."""

import asyncio
import threading
from collections.abc import Iterator
from itertools import pairwise
from typing import Any
from uuid import uuid4

import pytest
import trio
import trio.testing
from studio import Eyes, PaintingFramed, PaintingMade, SculptureMade, quiet, runner_of, running
from trio.abc import Clock
from waiting import until

from canvasbus import DecodeError, Event, ids
from canvasbus.bus import EventBus
from canvasbus.transport.memory import MemoryServer
from canvasbus.worker import Backoff, Context, Reject, RetryLater, Worker

AT_ONCE = Backoff(attempts=3, base=0.0)


@pytest.fixture
def worker() -> Worker:
    return Worker("framers")


# --- what a handler is given ------------------------------------------------------------------------------------------


async def test_an_async_handler_gets_each_event_once(any_url: str, namespace: str, eyes: Eyes, worker: Worker) -> None:
    """Everything published is handled, in order with one slot, and acknowledged."""
    seen: list[int] = []

    @worker.on(PaintingMade, concurrency=1)
    async def handle(event: PaintingMade) -> None:
        seen.append(event.number)

    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=i) for i in range(1000)])
        await quiet(eyes)
        await until(lambda: runner_of(bus).statistics().held == 0)
        assert runner_of(bus).statistics().handled == 1000
    assert seen == list(range(1000))


async def test_a_plain_function_runs_in_a_thread(any_url: str, namespace: str, eyes: Eyes, worker: Worker) -> None:
    """Off the trio thread, as many at a time as the concurrency says."""
    threads: set[int] = set()
    together = threading.Barrier(3, timeout=10)

    @worker.on(PaintingMade, concurrency=3)
    def handle(event: PaintingMade) -> PaintingFramed:
        threads.add(threading.get_ident())
        together.wait()
        return PaintingFramed(title=event.title, number=event.number)

    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=i) for i in range(6)])
        await quiet(eyes)
    assert threading.get_ident() not in threads
    assert sorted(e.number for e in eyes.events("painting.framed")) == list(range(6))


async def test_the_context_knows_the_event(any_url: str, namespace: str, eyes: Eyes, worker: Worker) -> None:
    """Envelope, entry id, group and attempt; a logger with all of it bound."""
    seen: list[Context] = []
    attempts: list[int] = []

    @worker.on(PaintingMade, retry=AT_ONCE)
    async def handle(event: PaintingMade, ctx: Context) -> None:
        seen.append(ctx)
        attempts.append(ctx.attempt)
        if ctx.attempt < 3:
            raise ValueError("again")

    async with running(any_url, worker, namespace=namespace, source="atelier-7") as bus:
        entry_id = await bus.publish(PaintingMade(title="Dune"))
        await until(lambda: len(attempts) == 3)
        await quiet(eyes)
    ctx = seen[0]
    assert attempts == [1, 2, 3]
    assert (ctx.entry_id, ctx.group) == (entry_id, "framers")
    assert (ctx.envelope.type, ctx.envelope.source, ctx.envelope.key) == ("painting.made", "atelier-7", "Dune")
    assert ctx.envelope.causation_id is None and ctx.envelope.id.version == 7
    bound = ctx.log._context
    assert bound["event_id"] == str(ctx.envelope.id) and bound["group"] == "framers" and "event" not in bound


# --- what it may return -----------------------------------------------------------------------------------------------

FRAMES = [PaintingFramed(number=1), PaintingFramed(number=2)]


async def returns_one(event: PaintingMade) -> Event:
    return FRAMES[0]


async def returns_list(event: PaintingMade) -> list[Event]:
    return list(FRAMES)


async def returns_generator(event: PaintingMade) -> Iterator[Event]:
    return (frame for frame in FRAMES)


def yields(event: PaintingMade) -> Iterator[Event]:
    yield from FRAMES


def returns_tuple(event: PaintingMade) -> tuple[Event, ...]:
    return tuple(FRAMES)


async def returns_nothing(event: PaintingMade) -> list[Event]:
    return []


@pytest.mark.parametrize(
    ("function", "numbers"),
    [
        (returns_one, [1]),
        (returns_list, [1, 2]),
        (returns_generator, [1, 2]),
        (yields, [1, 2]),
        (returns_tuple, [1, 2]),
        (returns_nothing, []),
    ],
)
async def test_returned_events_are_published(
    any_url: str, namespace: str, eyes: Eyes, worker: Worker, function: Any, numbers: list[int]
) -> None:
    """One event, any iterable of events, a generator, or nothing; in the order returned."""
    worker.on(PaintingMade)(function)
    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade())
        await quiet(eyes)
    assert [e.number for e in eyes.events("painting.framed")] == numbers


async def test_a_plain_generator_runs_in_its_thread(namespace: str, worker: Worker) -> None:
    """What stands between the yields may block, so it does not run on the trio thread."""
    threads: list[int] = []

    @worker.on(PaintingMade)
    def handle(event: PaintingMade) -> Iterator[Event]:
        threads.append(threading.get_ident())
        yield PaintingFramed()
        threads.append(threading.get_ident())

    async with running("memory://", worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade())
        await until(lambda: len(threads) == 2)
    assert threading.get_ident() not in threads


async def test_derived_events_inherit_what_belongs_to_their_parent(
    any_url: str, namespace: str, eyes: Eyes, worker: Worker
) -> None:
    """Correlation id and causation; the id is uuid5 of parent, group, handler and position; the source is the group."""

    @worker.on(PaintingMade)
    async def handle(event: PaintingMade) -> list[Event]:
        return [PaintingFramed(number=1), SculptureMade(title="bust")]

    @worker.on(PaintingFramed)
    def in_thread(event: PaintingFramed) -> PaintingMade | None:
        return None if event.number != 1 else SculptureMade(title="from a thread")  # type: ignore[return-value]

    correlation = uuid4()
    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade(correlation_id=correlation))
        await until(lambda: eyes.count("sculpture.made") == 2)
    ((parent, _),) = eyes.entries("painting.made")
    ((framed, framed_event),) = eyes.entries("painting.framed")
    (bust, bust_event), (from_thread, thread_event) = eyes.entries("sculpture.made")
    assert {framed_event.correlation_id, bust_event.correlation_id, thread_event.correlation_id} == {correlation}
    assert framed.causation_id == bust.causation_id == parent.id and from_thread.causation_id == framed.id
    name = worker.handlers[0].name
    assert framed.id == ids.derived(parent.id, "framers", name, 0)
    assert bust.id == ids.derived(parent.id, "framers", name, 1)
    assert framed.source == "framers"


async def test_each_event_has_its_own_correlation(namespace: str, worker: Worker, virtual: object) -> None:
    """Handlers that run side by side or one after another in one slot do not mix their correlation ids up."""
    pairs: list[tuple[Any, Any]] = []

    @worker.on(PaintingMade, concurrency=4)
    async def handle(event: PaintingMade) -> None:
        await trio.sleep(0.1 * (event.number % 3))
        pairs.append((event.correlation_id, PaintingFramed().correlation_id))

    async with running("memory://", worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=i, correlation_id=uuid4()) for i in range(20)])
        await until(lambda: len(pairs) == 20)
    assert all(parent == derived for parent, derived in pairs) and len(set(pairs)) == 20


@pytest.mark.parametrize("wrong", [42, "text", [PaintingFramed(), 7], object()])
async def test_returning_something_else_is_a_failure(
    any_url: str, namespace: str, eyes: Eyes, worker: Worker, wrong: object
) -> None:
    """Nothing of it is published, and the dead letter says what may be returned."""

    @worker.on(PaintingMade, retry=Backoff(attempts=1))
    async def handle(event: PaintingMade) -> Any:
        return wrong

    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade())
        await quiet(eyes)
    (letter,) = eyes.dead("framers")
    assert (
        letter.reason == "exhausted" and "return an event, Later, Cancel, an iterable of those, or None" in letter.error
    )
    assert eyes.count("painting.framed") == 0


async def test_an_event_that_cannot_be_encoded_is_a_failure(
    any_url: str, namespace: str, eyes: Eyes, worker: Worker
) -> None:
    """A derived event with a wrong field type fails its handler's run; its valid siblings are not published alone."""

    @worker.on(PaintingMade, retry=Backoff(attempts=1))
    async def handle(event: PaintingMade) -> list[Event]:
        return [PaintingFramed(), PaintingFramed(number="many")]  # type: ignore[arg-type]

    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade())
        await quiet(eyes)
    (letter,) = eyes.dead("framers")
    assert "EncodeError" in letter.error and "number" in letter.error
    assert eyes.count("painting.framed") == 0


# --- how it may fail --------------------------------------------------------------------------------------------------


async def test_a_failing_event_ends_in_the_dead_letters(
    any_url: str, namespace: str, eyes: Eyes, worker: Worker
) -> None:
    """After the last attempt: original bytes, error, traceback, attempts, times; and handler.failed for the others."""
    runs = 0

    @worker.on(PaintingMade, retry=AT_ONCE)
    async def handle(event: PaintingMade) -> None:
        nonlocal runs
        runs += 1
        raise ValueError(f"no frame for {event.title}")

    correlation = uuid4()
    async with running(any_url, worker, namespace=namespace) as bus:
        entry_id = await bus.publish(PaintingMade(title="Dune", correlation_id=correlation))
        await quiet(eyes)
        assert runner_of(bus).statistics().dead == 1
    assert runs == 3
    (letter,) = eyes.dead("framers")
    ((envelope, _),) = eyes.entries("painting.made")
    ((_, original),) = eyes.call("XRANGE", eyes.stream(), "-", "+")
    assert list(letter.fields) == original
    assert (letter.group, letter.event_type, letter.entry_id) == ("framers", "painting.made", entry_id)
    assert (letter.reason, letter.attempts, letter.error) == ("exhausted", 3, "ValueError: no frame for Dune")
    assert letter.event_id == str(envelope.id) and letter.handler == worker.handlers[0].name
    assert 'raise ValueError(f"no frame' in letter.traceback
    assert letter.first_failure <= letter.last_failure
    ((announced, failed),) = eyes.entries("handler.failed")
    assert (failed.group, failed.event_type, failed.reason, failed.attempts) == (
        "framers",
        "painting.made",
        "exhausted",
        3,
    )
    assert failed.correlation_id == correlation and announced.causation_id == envelope.id == failed.event_id


async def test_reject_gives_up_at_once(any_url: str, namespace: str, eyes: Eyes, worker: Worker) -> None:
    """One run, reason "rejected", and the neighbours are handled."""
    seen: list[int] = []

    @worker.on(PaintingMade)
    async def handle(event: PaintingMade) -> None:
        seen.append(event.number)
        if event.number == 1:
            raise Reject("no rule for this one")

    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=i) for i in range(3)])
        await quiet(eyes)
    assert sorted(seen) == [0, 1, 2]
    (letter,) = eyes.dead("framers")
    assert (letter.reason, letter.attempts, letter.error) == ("rejected", 1, "Reject: no rule for this one")


async def test_retry_later_counts_no_attempt(
    namespace: str, worker: Worker, virtual: Clock, memory: MemoryServer
) -> None:
    """Run again after the given time, as often as the handler says, and the attempt stays 1."""
    runs: list[tuple[float, int]] = []

    @worker.on(PaintingMade, retry=Backoff(attempts=1))
    async def handle(event: PaintingMade, ctx: Context) -> None:
        runs.append((trio.current_time(), ctx.attempt))
        if len(runs) < 4:
            raise RetryLater(after=30)

    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade())
        await until(lambda: len(runs) == 4, 600)
    assert [attempt for _, attempt in runs] == [1, 1, 1, 1]
    gaps = [b[0] - a[0] for a, b in pairwise(runs)]
    assert all(30 <= gap < 30.1 for gap in gaps)
    assert Eyes(memory, namespace).dead("framers") == []


async def test_waiting_for_a_retry_takes_no_slot(
    namespace: str, worker: Worker, virtual: Clock, memory: MemoryServer
) -> None:
    """One slot, the first event waits a minute for its next attempt: the others are handled meanwhile."""
    order: list[int] = []

    @worker.on(PaintingMade, concurrency=1)
    async def handle(event: PaintingMade) -> None:
        if event.number == 0 and 0 not in order and len(order) < 50:
            raise RetryLater(after=60)
        order.append(event.number)

    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=i) for i in range(51)])
        await until(lambda: len(order) == 51, 120)
    assert order == [*range(1, 51), 0]


async def test_waits_follow_the_backoff(namespace: str, worker: Worker, virtual: Clock, memory: MemoryServer) -> None:
    """Each wait lies between 0 and min(cap, base · 2^(n-1))."""
    times: dict[int, list[float]] = {}

    @worker.on(PaintingMade, retry=Backoff(attempts=6, base=10, cap=40))
    async def handle(event: PaintingMade) -> None:
        times.setdefault(event.number, []).append(trio.current_time())
        raise ValueError

    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=i) for i in range(40)])
        eyes = Eyes(memory, namespace)
        await until(lambda: len(eyes.dead("framers")) == 40, 3600)
    for n, bound in enumerate((10, 20, 40, 40, 40)):
        waits = [t[n + 1] - t[n] for t in times.values()]
        assert 0 <= min(waits) < bound / 3 and bound / 2 < max(waits) <= bound + 1.1


async def test_a_library_of_asyncio_is_told_of_trio(namespace: str, worker: Worker, memory: MemoryServer) -> None:
    """The dead letter says why there is no event loop, and what to do."""

    @worker.on(PaintingMade, retry=Backoff(attempts=1))
    async def handle(event: PaintingMade) -> None:
        asyncio.get_running_loop()

    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=0))
        eyes = Eyes(memory, namespace)
        (letter,) = await until(lambda: eyes.dead("framers"))
    assert letter.error.startswith("RuntimeError: no running event loop (async handlers run on trio: ")
    assert "a plain def handler" in letter.error


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even that")


@pytest.mark.parametrize(
    "error",
    [
        Unprintable(),
        ValueError("\udcff lone surrogate"),
        ValueError("x" * 100_000),
        ExceptionGroup("two", [ValueError("a"), KeyError("b")]),
        SystemExit(3),
        StopIteration(),
        RecursionError("deep"),
        BaseException("bare"),
    ],
    ids=lambda e: type(e).__name__,
)
async def test_whatever_a_handler_raises_becomes_a_dead_letter(
    any_url: str, namespace: str, eyes: Eyes, worker: Worker, error: BaseException
) -> None:
    """Errors that cannot be printed, encoded or that end programs: the event is given up, the worker goes on."""
    seen: list[int] = []

    @worker.on(PaintingMade, retry=Backoff(attempts=1))
    async def handle(event: PaintingMade) -> None:
        if event.number == 0:
            raise error
        seen.append(event.number)

    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=i) for i in range(3)])
        await quiet(eyes)
    (letter,) = eyes.dead("framers")
    assert letter.reason == "exhausted" and len(letter.error) <= 1000
    assert sorted(seen) == [1, 2]
    assert eyes.count("handler.failed") == 1


async def test_what_a_handler_could_not_read_itself_is_not_parked(
    virtual: Clock, memory: MemoryServer, namespace: str, worker: Worker
) -> None:
    """A handler reads another message and lets a DecodeError "newer_version" pass. That tells nothing of its own event,
    which would come back at once, ten times a second and for ever: it is a dead letter."""
    eyes, runs = Eyes(memory, namespace), 0

    @worker.on(PaintingMade)
    async def handle(event: PaintingMade) -> None:
        nonlocal runs
        runs += 1
        raise DecodeError("of something else", reason="newer_version")

    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade())
        await trio.sleep(60)
        assert runs == 1 and runner_of(bus).statistics().parked == 0
    (letter,) = eyes.dead("framers")
    assert (letter.reason, letter.attempts, bool(letter.handler)) == ("newer_version", 1, True)
    assert not eyes.pending("framers")


async def test_a_dead_letter_passes_any_size_limit(any_url: str, namespace: str, eyes: Eyes, worker: Worker) -> None:
    """The limit is for events; an announcement that would exceed a small one does not stop the burial."""

    @worker.on(PaintingMade, retry=Backoff(attempts=1))
    async def handle(event: PaintingMade) -> None:
        raise ValueError("x" * 400)

    async with running(any_url, worker, namespace=namespace, max_event_bytes=300) as bus:
        await bus.publish(PaintingMade())
        await quiet(eyes)
    assert len(eyes.dead("framers")) == 1 and eyes.count("handler.failed") == 1


async def test_a_failure_of_handler_failed_feeds_nothing(any_url: str, namespace: str, eyes: Eyes) -> None:
    """A broken handler of handler.failed has its dead letter and announces nothing."""
    framers, alarms = Worker("framers"), Worker("alarms")

    @framers.on(PaintingMade, retry=Backoff(attempts=1))
    async def handle(event: PaintingMade) -> None:
        raise ValueError

    @alarms.on("handler.failed", retry=Backoff(attempts=1))
    async def alarm(event: Event) -> None:
        raise ValueError("the pager is broken")

    async with running(any_url, framers, alarms, namespace=namespace) as bus:
        await bus.publish(PaintingMade())
        await until(lambda: eyes.dead("alarms"))
        await quiet(eyes, event_type="handler.failed")
    assert eyes.count("handler.failed") == 1


# --- how long it may take ---------------------------------------------------------------------------------------------


async def test_a_handler_that_runs_too_long_is_cancelled(
    namespace: str, worker: Worker, virtual: Clock, memory: MemoryServer
) -> None:
    """After `timeout` seconds, counted as a failed attempt; its neighbours in other slots run on."""
    ended: list[tuple[int, float]] = []

    @worker.on(PaintingMade, timeout=5, concurrency=2, retry=Backoff(attempts=2, base=0))
    async def handle(event: PaintingMade) -> None:
        before = trio.current_time()
        try:
            await trio.sleep(60 if event.number == 0 else 4)
        finally:
            ended.append((event.number, trio.current_time() - before))

    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=i) for i in range(6)])
        eyes = Eyes(memory, namespace)
        await until(lambda: eyes.dead("framers"), 60)
        await quiet(eyes)
        statistics = runner_of(bus).statistics()
    assert statistics.timeouts == 2 and statistics.handled == 5
    assert all(5 <= took < 5.2 if number == 0 else 4 <= took < 4.2 for number, took in ended)
    (letter,) = eyes.dead("framers")
    assert "HandlerTimeout" in letter.error and "timeout of 5 s" in letter.error


async def test_a_handler_that_is_done_just_in_time_costs_the_next_one_nothing(
    namespace: str, worker: Worker, virtual: Clock, memory: MemoryServer
) -> None:
    """Finishing at the very moment of the timeout, or refusing to be cancelled, does not cancel the next event's run."""
    done: list[int] = []

    @worker.on(PaintingMade, timeout=5, concurrency=1, retry=Backoff(attempts=1))
    async def handle(event: PaintingMade) -> None:
        if event.number == 0:
            await trio.sleep(5)
        elif event.number == 1:
            with trio.CancelScope(shield=True):
                await trio.sleep(7)
        elif event.number == 2:
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                pass
        else:
            await trio.sleep(1)
        done.append(event.number)

    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=i) for i in range(6)])
        eyes = Eyes(memory, namespace)
        await quiet(eyes, timeout=60)
    assert [n for n in done if n > 0] == [1, 2, 3, 4, 5]
    assert len(eyes.dead("framers")) == (0 if 0 in done else 1)


async def test_a_handler_that_fails_while_it_is_cancelled_harms_nobody(
    namespace: str, worker: Worker, virtual: Clock, memory: MemoryServer
) -> None:
    """Cleaning up after a timeout raises, with and without a nursery: a failed attempt like any other."""
    seen: list[int] = []

    @worker.on(PaintingMade, timeout=2, retry=Backoff(attempts=1))
    async def handle(event: PaintingMade) -> None:
        async def child() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("clean-up failed")

        if event.number == 0:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(child)
                nursery.start_soon(trio.sleep_forever)
        elif event.number == 1:
            await child()
        seen.append(event.number)

    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=i) for i in range(4)])
        eyes = Eyes(memory, namespace)
        await quiet(eyes)
    assert sorted(seen) == [2, 3] and len(eyes.dead("framers")) == 2


async def test_a_plain_function_cannot_be_stopped_and_keeps_its_slot(
    any_url: str, namespace: str, eyes: Eyes, worker: Worker
) -> None:
    """Its timeout is counted and logged; what it returns in the end is its outcome, and it never runs twice."""
    go_on = threading.Event()
    runs: list[int] = []

    @worker.on(PaintingMade, timeout=0.02, concurrency=1, retry=Backoff(attempts=1))
    def handle(event: PaintingMade) -> PaintingFramed:
        runs.append(event.number)
        assert go_on.wait(20)
        return PaintingFramed(number=event.number)

    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=i) for i in range(2)])
        await until(lambda: runs and runner_of(bus).statistics().timeouts >= 1)
        assert runs == [0] and runner_of(bus).statistics().running == 1
        go_on.set()
        await quiet(eyes)
    assert runs == [0, 1] and eyes.dead("framers") == []
    assert [e.number for e in eyes.events("painting.framed")] == [0, 1]


async def test_no_more_run_at_a_time_than_the_concurrency(
    namespace: str, worker: Worker, virtual: Clock, memory: MemoryServer
) -> None:
    """5 slots, 200 events that wait: never more than 5 at a time, and all 5 are used."""
    now = most = 0

    @worker.on(PaintingMade, concurrency=5)
    async def handle(event: PaintingMade) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await trio.sleep(1)
        now -= 1

    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=i) for i in range(200)])
        began = trio.current_time()
        await until(lambda: runner_of(bus).statistics().handled == 200, 120)
        assert trio.current_time() - began < 45
    assert most == 5


async def test_slow_handlers_hold_little(namespace: str, worker: Worker, virtual: Clock, memory: MemoryServer) -> None:
    """Handlers of a second: the lane holds its concurrency and leaves the rest to other processes."""

    @worker.on(PaintingMade, concurrency=4)
    async def handle(event: PaintingMade) -> None:
        await trio.sleep(1)

    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=i) for i in range(100)])
        eyes = Eyes(memory, namespace)
        await until(lambda: runner_of(bus).statistics().handled >= 12, 60)
        assert len(eyes.pending("framers")) <= 8


# --- stale events -----------------------------------------------------------------------------------------------------


async def test_a_stale_event_is_skipped_and_counted(
    namespace: str, worker: Worker, virtual: Clock, memory: MemoryServer
) -> None:
    """Published with expires_in and read after that time: acknowledged, never handled."""
    seen: list[int] = []

    @worker.on(PaintingMade)
    async def handle(event: PaintingMade) -> None:
        seen.append(event.number)

    async with EventBus("memory://", namespace=namespace) as early:
        assert early.server is not None
        await early.publish(PaintingMade(number=1), expires_in=10)
        await early.publish(PaintingMade(number=2), expires_in=100)
        await early.publish(PaintingMade(number=3))
        await trio.sleep(50)
        async with running(early.server, worker, namespace=namespace) as bus:  # type: ignore[arg-type]
            eyes = Eyes(early.server, namespace)
            await quiet(eyes)
            (lane,) = runner_of(bus)._current.lanes  # type: ignore[union-attr]
            assert lane.statistics.expired == 1
    assert seen == [2, 3] and eyes.dead("framers") == []
