"""Middleware: what surrounds the runs of a worker's handlers, whatever kind of handler it is."""

import math
import re
import threading
from datetime import timedelta
from random import Random
from typing import Any
from uuid import UUID, uuid4

import pytest
import structlog
import trio
import trio.testing
from seeds import seeds
from studio import Eyes, PaintingFramed, PaintingMade, quiet, runner_of, running
from trio.abc import Clock
from waiting import until

from canvasbus import Event, clock
from canvasbus.consume.middleware.rate_limit import Buckets
from canvasbus.errors import CanvasbusError, ContractError
from canvasbus.transport.memory import MemoryServer
from canvasbus.worker import (
    Backoff,
    BatchFailure,
    Context,
    Handle,
    Middleware,
    Reject,
    RetryLater,
    Worker,
    gate,
    log_context,
    log_runs,
    max_age,
    rate_limit,
    trace,
)

ONCE = Backoff(attempts=1)
KINDS = ("async", "async with context", "plain", "plain with context", "batch", "plain batch with contexts")


def add_handler(worker: Worker, kind: str, seen: list[int], **options: Any) -> None:
    """A handler of this kind that writes numbers down and frames each painting."""

    def one(event: PaintingMade) -> Event:
        seen.append(event.number)
        return PaintingFramed(number=event.number)

    if "batch" not in kind:
        match kind:
            case "async":

                async def handle(event: PaintingMade) -> Event:
                    return one(event)
            case "async with context":

                async def handle(event: PaintingMade, ctx: Context) -> Event:  # type: ignore[misc]
                    assert ctx.envelope.type == "painting.made"
                    return one(event)
            case "plain":
                handle = one  # type: ignore[assignment]
            case _:

                def handle(event: PaintingMade, ctx: Context) -> Event:  # type: ignore[misc]
                    assert ctx.envelope.type == "painting.made"
                    return one(event)

        worker.on(PaintingMade, **options)(handle)
    elif kind == "batch":

        @worker.on_batch(PaintingMade, **options)
        async def handle_batch(events: list[PaintingMade]) -> list[tuple[int, Event]]:
            return [(at, one(event)) for at, event in enumerate(events)]
    else:

        @worker.on_batch(PaintingMade, **options)
        def handle_in_thread(events: list[PaintingMade], ctxs: list[Context]) -> list[tuple[int, Event]]:
            assert len(events) == len(ctxs)
            return [(at, one(event)) for at, event in enumerate(events)]


def noted(name: str, said: list[str]) -> Middleware:
    def middleware(handle: Handle) -> Handle:
        async def run(event: Any, ctx: Any) -> Any:
            said.append(f"into {name}")
            try:
                return await handle(event, ctx)
            finally:
                said.append(f"out of {name}")

        return run

    return middleware


@pytest.fixture
def worker() -> Worker:
    return Worker("framers")


@pytest.fixture
def seen() -> list[int]:
    return []


# --- what middleware is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_it_surrounds_every_kind_of_handler(
    any_url: str, namespace: str, eyes: Eyes, worker: Worker, seen: list[int], kind: str
) -> None:
    """The first is the outermost; what the handler returned is published all the same, with the usual ids."""
    said: list[str] = []
    worker.use(noted("first", said))
    add_handler(worker, kind, seen)
    worker.use(noted("second", said))
    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=7))
        await quiet(eyes)
    assert (seen, said) == ([7], ["into first", "into second", "out of second", "out of first"])
    ((framed, event),) = eyes.entries("painting.framed")
    assert (event.number, framed.causation_id) == (7, eyes.entries("painting.made")[0][0].id)


async def test_it_may_be_given_with_the_worker(memory: MemoryServer, virtual: Clock, seen: list[int]) -> None:
    """`Worker(..., middleware=[...])` is the same as `use`."""
    said: list[str] = []
    worker = Worker("framers", middleware=[noted("first", said), noted("second", said)])
    add_handler(worker, "async", seen)
    async with running(memory, worker, namespace="studio") as bus:
        await bus.publish(PaintingMade(number=7))
        await until(lambda: len(said) == 4)
    assert said == ["into first", "into second", "out of second", "out of first"]


async def test_it_sees_events_and_contexts(
    memory: MemoryServer, virtual: Clock, worker: Worker, seen: list[int]
) -> None:
    """One of each, or lists of the same length; the context names the handler."""
    met: list[Any] = []

    @worker.use
    def look(handle: Handle) -> Handle:
        async def run(event: Any, ctx: Any) -> Any:
            met.append((event, ctx))
            return await handle(event, ctx)

        return run

    add_handler(worker, "batch", seen)
    other = Worker("others", middleware=[look])
    add_handler(other, "async", seen)
    async with running(memory, worker, other, namespace="studio") as bus:
        await bus.publish_many([PaintingMade(number=1), PaintingMade(number=2)])
        await until(lambda: len(met) == 3)
    batches = [(events, ctxs) for events, ctxs in met if isinstance(events, list)]
    ((events, ctxs),) = batches
    assert [event.number for event in events] == [1, 2] and [ctx.attempt for ctx in ctxs] == [1, 1]
    assert {ctx.handler for event, ctx in met if not isinstance(event, list)} == {other.handlers[0].name}


@pytest.mark.parametrize("kind", KINDS)
async def test_it_may_answer_by_itself(
    any_url: str, namespace: str, eyes: Eyes, worker: Worker, seen: list[int], kind: str
) -> None:
    """What it returns instead of calling the handler is published and acknowledged like what a handler returns."""

    @worker.use
    def answer(handle: Handle) -> Handle:
        async def run(event: Any, ctx: Any) -> Any:
            framed = PaintingFramed(title="by the middleware")
            return [(0, framed)] if isinstance(event, list) else framed

        return run

    add_handler(worker, kind, seen)
    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade())
        await quiet(eyes)
    assert (seen, [event.title for event in eyes.events("painting.framed")]) == ([], ["by the middleware"])


@pytest.mark.parametrize("kind", KINDS)
async def test_what_it_raises_is_the_handlers_failure(
    any_url: str, namespace: str, eyes: Eyes, worker: Worker, seen: list[int], kind: str
) -> None:
    """Tried as often as the handler's backoff says, then a dead letter with the middleware's error; the others go on."""

    @worker.use
    def guard(handle: Handle) -> Handle:
        async def run(event: Any, ctx: Any) -> Any:
            for one in event if isinstance(event, list) else [event]:
                if one.number == 1:
                    raise ValueError("no ones here")
                if one.number == 2:
                    raise Reject("nor twos")
            return await handle(event, ctx)

        return run

    add_handler(worker, kind, seen, retry=Backoff(attempts=2, base=0))
    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=i) for i in range(4)])
        await quiet(eyes)
    assert sorted(seen) == [0, 3]
    letters = sorted((letter.reason, letter.attempts, letter.error) for letter in eyes.dead("framers"))
    assert letters == [("exhausted", 2, "ValueError: no ones here"), ("rejected", 1, "Reject: nor twos")]


async def test_the_timeout_holds_for_it(memory: MemoryServer, virtual: Clock, worker: Worker, seen: list[int]) -> None:
    """A middleware that hangs is cancelled like a handler that hangs."""

    @worker.use
    def hang(handle: Handle) -> Handle:
        async def run(event: Any, ctx: Any) -> Any:
            await trio.sleep_forever()

        return run

    add_handler(worker, "async", seen, retry=ONCE, timeout=5)
    eyes = Eyes(memory, "studio")
    async with running(memory, worker, namespace="studio") as bus:
        await bus.publish(PaintingMade())
        await until(lambda: eyes.dead("framers"), 20)
    assert "ran longer than its timeout" in eyes.dead("framers")[0].error


async def not_plain(handle: Handle) -> Handle:
    return handle


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (not_plain, "not_plain is async"),
        (3, "3 is no function"),
        (log_runs, r"log_runs must be called, it makes one: log_runs\(\.\.\.\)"),
        (trace, "trace must be called"),
        (rate_limit, "rate_limit must be called"),
    ],
)
def test_what_cannot_be_one_is_refused(worker: Worker, wrong: Any, says: str) -> None:
    """Where it is used, by the name of the worker."""
    for use in (worker.use, lambda one: Worker("framers", middleware=[one])):
        with pytest.raises(ContractError, match=f"worker 'framers': the middleware {says}"):
            use(wrong)


async def test_one_that_returns_no_handler_ends_the_worker(
    memory: MemoryServer, virtual: Clock, worker: Worker, seen: list[int]
) -> None:
    """It cannot be known before it is called; then the error names it."""

    @worker.use
    def forgetful(handle: Handle) -> Handle:
        pass  # type: ignore[return]

    add_handler(worker, "async", seen)
    with pytest.raises(ExceptionGroup) as raised:
        async with running(memory, worker, namespace="studio"):
            await trio.sleep_forever()
    assert raised.group_contains(ContractError, match="forgetful must return a handler, not None")


async def test_one_that_fails_when_it_is_given_a_handler_ends_the_worker(
    memory: MemoryServer, virtual: Clock, worker: Worker, seen: list[int]
) -> None:
    """A slip of its author like the other: one line for programs to print, with its name, the error and where."""

    @worker.use
    def hasty(handle: Handle) -> Handle:
        return {}[handle]  # type: ignore[no-any-return]

    add_handler(worker, "async", seen)
    with pytest.raises(ExceptionGroup) as raised:
        async with running(memory, worker, namespace="studio"):
            await trio.sleep_forever()
    said = r"worker 'framers': the middleware .*hasty failed when it was given a handler: KeyError: .*test_middleware.py, line"
    assert raised.group_contains(CanvasbusError, match=said) and not raised.group_contains(ContractError)


def test_without_middleware_the_short_way_is_taken(worker: Worker, memory: MemoryServer, seen: list[int]) -> None:
    """An async handler without a context is called directly; there is nothing between it and the slot."""
    from canvasbus.consume.dispatch import Lane
    from canvasbus.wire.codec import Codec

    add_handler(worker, "async", seen)
    options: dict[str, Any] = {"on_room": lambda: None, "hand_back": lambda _: None, "quarantine": trio.Lock()}
    lane = Lane(worker.handlers[0], "framers", Codec(), **options)
    assert lane._bare is worker.handlers[0].function
    lane = Lane(worker.handlers[0], "framers", Codec(), middleware=[log_context], **options)
    assert lane._bare is None


# --- gate -------------------------------------------------------------------------------------------------------------


def odd(event: Any, ctx: Context) -> bool:
    """Passes 1, 3, 5; skips 0; refuses the rest."""
    if event.number and event.number % 2 == 0:
        raise Reject("even")
    return bool(event.number)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_gate_checks_one_event_at_a_time(
    any_url: str, namespace: str, eyes: Eyes, worker: Worker, seen: list[int], kind: str
) -> None:
    """Also of a batch: those that pass are handled, and derived events belong to their own parents."""
    worker.use(gate(odd))
    add_handler(worker, kind, seen)
    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=i, title=str(i)) for i in range(6)])
        await quiet(eyes)
    assert sorted(seen) == [1, 3, 5]
    assert sorted(letter.error for letter in eyes.dead("framers")) == ["Reject: even"] * 2
    parents = {envelope.id: event.number for envelope, event in eyes.entries("painting.made")}
    framed = eyes.entries("painting.framed")
    assert {parents[e.causation_id]: event.number for e, event in framed if e.causation_id} == {1: 1, 3: 3, 5: 5}


async def test_failures_behind_a_gate_are_at_their_places(
    any_url: str, namespace: str, eyes: Eyes, worker: Worker, seen: list[int]
) -> None:
    """BatchFailure of a handler that was given a part of the batch names positions of that part."""
    worker.use(gate(odd))

    @worker.on_batch(PaintingMade, retry=ONCE)
    async def handle(events: list[PaintingMade]) -> None:
        bad = {at: ValueError(f"painting {e.number}") for at, e in enumerate(events) if e.number == 3}
        raise BatchFailure(bad, [(at, PaintingFramed(number=e.number)) for at, e in enumerate(events) if e.number != 3])

    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=i) for i in range(6)])
        await quiet(eyes)
    errors = sorted(letter.error for letter in eyes.dead("framers"))
    assert errors == ["Reject: even", "Reject: even", "ValueError: painting 3"]
    assert sorted(event.number for event in eyes.events("painting.framed")) == [1, 5]


@pytest.mark.parametrize("position", [-1, 3])
async def test_a_position_outside_of_the_part_is_a_failure(
    memory: MemoryServer, virtual: Clock, worker: Worker, position: int
) -> None:
    """It does not land on another event of the batch."""
    worker.use(gate(odd))

    @worker.on_batch(PaintingMade, retry=ONCE)
    async def handle(events: list[PaintingMade]) -> list[tuple[int, Event]]:
        return [(position, PaintingFramed())] if len(events) > 1 else []

    eyes = Eyes(memory, "studio")
    async with running(memory, worker, namespace="studio") as bus:
        await bus.publish_many([PaintingMade(number=i) for i in (1, 2, 3, 5)])
        await quiet(eyes)
    assert eyes.count("painting.framed") == 0
    assert [letter.error for letter in eyes.dead("framers")] == ["Reject: even"]


# --- those that come along --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("then", ["reject", "skip"])
async def test_old_events_are_not_handled(
    any_url: str, namespace: str, eyes: Eyes, worker: Worker, seen: list[int], kind: str, then: Any
) -> None:
    """max_age judges by `occurred_on`: what is older becomes a dead letter, or is acknowledged."""
    worker.use(max_age(60, then=then))
    add_handler(worker, kind, seen)
    old = clock.now() - timedelta(seconds=90)
    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=1, occurred_on=old), PaintingMade(number=2)])
        await quiet(eyes)
    assert seen == [2]
    letters = [letter.error for letter in eyes.dead("framers")]
    said = r"Reject: it occurred \d+ s ago, and this worker takes 60 s at most"
    assert [bool(re.fullmatch(said, error)) for error in letters] == ([True] if then == "reject" else [])


@pytest.mark.parametrize("kind", ["async", "batch"])
async def test_runs_are_limited(memory: MemoryServer, virtual: Clock, worker: Worker, kind: str) -> None:
    """Two at once, then one every half a second; what waits holds no slot and counts no attempt."""
    times: list[float] = []
    worker.use(rate_limit(2, per=1.0))

    @worker.use
    def clocked(handle: Handle) -> Handle:
        async def run(event: Any, ctx: Any) -> Any:
            assert {one.attempt for one in (ctx if isinstance(ctx, list) else [ctx])} == {1}
            times.extend([trio.current_time()] * (len(event) if isinstance(event, list) else 1))
            return await handle(event, ctx)

        return run

    add_handler(worker, kind, [], concurrency=1) if kind == "async" else add_handler(worker, kind, [], max_wait=0)
    async with running(memory, worker, namespace="studio") as bus:
        started = trio.current_time()
        await bus.publish_many([PaintingMade(number=i) for i in range(6)])
        await until(lambda: len(times) == 6)
        assert runner_of(bus).statistics().failed == 0
    assert [time - started for time in times] == pytest.approx([0, 0, 0.5, 1.0, 1.5, 2.0], abs=0.1)


async def test_each_key_has_a_limit_of_its_own(memory: MemoryServer, virtual: Clock, worker: Worker) -> None:
    """A busy key does not keep the others waiting, although there is one slot only."""
    done: list[tuple[str, float]] = []
    worker.use(rate_limit(1, per=10.0, key=lambda event: event.title))

    @worker.on(PaintingMade, concurrency=1)
    async def handle(event: PaintingMade) -> None:
        done.append((event.title, trio.current_time()))

    async with running(memory, worker, namespace="studio") as bus:
        started = trio.current_time()
        await bus.publish_many([PaintingMade(title=title) for title in "aaab"])
        await until(lambda: len(done) == 4, 60)
    assert [title for title, _ in done] == ["a", "b", "a", "a"]
    assert [time - started for _, time in done] == pytest.approx([0, 0, 10, 20], abs=0.2)


@pytest.mark.parametrize("seed", seeds(20, "rate limits"))
def test_a_limit_is_kept(seed: int) -> None:
    """In any order of arrivals, no more than `burst` runs lie within one interval, and nothing is lost."""
    random = Random(seed)
    limit, burst = random.randint(1, 5), random.randint(1, 4)
    buckets, now = Buckets(1 / limit, burst), 0.0
    due: list[tuple[float, UUID]] = []
    ran: list[float] = []
    for _ in range(300):
        due.append((now, uuid4()))
        now += random.expovariate(limit)
        for when, event in sorted(due):
            if when <= now:
                due.remove((when, event))
                wait = buckets.take("key", event, when)
                if wait:
                    due.append((when + wait, event))
                else:
                    ran.append(when)
    ran.sort()
    for at in range(len(ran) - burst):
        assert ran[at + burst] - ran[at] >= 1 / limit - 0.01
    assert len(due) + len(ran) == 300


def test_buckets_forget_what_is_full() -> None:
    """A hundred thousand keys, each seen once, do not stay."""
    buckets = Buckets(1.0, 1)
    for number in range(100_000):
        assert buckets.take(number, uuid4(), number / 1000) == 0
    assert len(buckets._full) <= 10_000


@pytest.mark.parametrize(
    "make",
    [
        lambda: max_age(0),
        lambda: max_age(1, then="drop"),  # type: ignore[arg-type]
        lambda: rate_limit(0),
        lambda: rate_limit(1, per=0),
        lambda: rate_limit(math.inf),
        lambda: rate_limit(1, per=math.inf),
        lambda: rate_limit(1, burst=0),
        lambda: rate_limit("10"),  # type: ignore[arg-type]
        lambda: rate_limit(10, key="model_name"),  # type: ignore[arg-type]
        lambda: gate(None),  # type: ignore[arg-type]
        lambda: log_runs("loud"),
    ],
)
def test_wrong_arguments_are_refused(make: Any) -> None:
    """Where the middleware is made."""
    with pytest.raises(ContractError):
        make()


async def test_runs_are_logged(memory: MemoryServer, virtual: Clock, worker: Worker) -> None:
    """A line each with what came of it; batches say how many events they had."""
    worker.use(log_runs())

    @worker.on(PaintingMade, retry=ONCE)
    async def handle(event: PaintingMade) -> None:
        if event.number:
            raise RetryLater(5) if event.number == 1 else ValueError(event.number)
        await trio.sleep(0.25)

    with structlog.testing.capture_logs() as lines:
        async with running(memory, worker, namespace="studio") as bus:
            await bus.publish_many([PaintingMade(number=i) for i in range(3)])
            await until(lambda: len([line for line in lines if line["event"] == "a handler ran"]) == 3)
    runs = [line for line in lines if line["event"] == "a handler ran"]
    assert {line["outcome"]: line["seconds"] for line in runs} == {
        "returned": pytest.approx(0.25, abs=0.01),
        "raised RetryLater": pytest.approx(0, abs=0.01),
        "raised ValueError": pytest.approx(0, abs=0.01),
    }
    assert {(line["group"], line["event_type"], line["attempt"], line["log_level"]) for line in runs} == {
        ("framers", "painting.made", 1, "info")
    }


@pytest.mark.parametrize("kind", ["async", "plain", "batch"])
async def test_other_loggers_say_which_event(namespace: str, kind: str) -> None:
    """What is bound for the time of a run reaches code that knows nothing of contexts, threads included, and is gone
    afterwards."""
    found: list[dict[str, Any]] = []
    correlation = uuid4()

    def deep_inside() -> None:
        found.append(structlog.contextvars.get_contextvars())
        found[-1]["thread"] = threading.current_thread() is threading.main_thread()

    @(worker := Worker("framers")).use
    def probe(handle: Handle) -> Handle:
        async def run(event: Any, ctx: Any) -> Any:
            try:
                return await log_context(handle)(event, ctx)
            finally:
                deep_inside()

        return run

    if kind == "async":

        @worker.on(PaintingMade)
        async def handle(event: PaintingMade) -> None:
            deep_inside()
    elif kind == "plain":

        @worker.on(PaintingMade)
        def in_thread(event: PaintingMade) -> None:
            deep_inside()
    else:

        @worker.on_batch(PaintingMade)
        async def many(events: list[PaintingMade]) -> None:
            deep_inside()

    async with running("memory://", worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade(correlation_id=correlation))
        await until(lambda: len(found) == 2)
    during, after = found
    assert during.pop("thread") == (kind != "plain") and after == {"thread": True}
    if kind == "batch":
        assert during == {"group": "framers", "handler": worker.handlers[0].name, "events": 1}
    else:
        assert during.pop("event_id") and during == {
            "group": "framers",
            "event_type": "painting.made",
            "correlation_id": str(correlation),
            "attempt": 1,
        }
