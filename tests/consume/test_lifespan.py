"""@worker.lifespan: opened before the worker joins, closed after it has left, and plain words when that goes wrong."""

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from typing import Any

import pytest
import structlog
import trio
import trio.testing
from studio import Eyes, PaintingMade, quiet, runner_of, running
from trio.abc import Clock
from waiting import until

from canvasbus.bus import EventBus
from canvasbus.errors import ContractError, LifespanError, Refused
from canvasbus.transport.memory import MemoryServer
from canvasbus.worker import Context, Worker


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def worker(said: list[str]) -> Worker:
    """Writes down what it handles, with what its lifespan opened."""
    worker = Worker("framers")

    @worker.on(PaintingMade)
    async def handle(event: PaintingMade, ctx: Context) -> None:
        said.append(f"{event.number} with {ctx.resources}")

    return worker


async def test_it_is_open_while_the_worker_runs(
    any_url: str, namespace: str, eyes: Eyes, worker: Worker, said: list[str]
) -> None:
    """Opened before the group exists, reachable in handlers, closed when the group has been left."""

    @worker.lifespan
    async def studio() -> AsyncIterator[str]:
        said.append(f"opened, {eyes.call('EXISTS', eyes.stream())} groups")
        yield "a brush"
        await trio.sleep(0)
        said.append(f"closed, {len(eyes.consumers('framers'))} consumers")

    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=1))
        await quiet(eyes)
        assert len(eyes.consumers("framers")) == 1
    assert said == ["opened, 0 groups", "1 with a brush", "closed, 0 consumers"]


async def test_a_worker_that_joins_again_keeps_it(
    any_url: str, namespace: str, eyes: Eyes, worker: Worker, said: list[str]
) -> None:
    """Taken for dead, the worker comes back under another name, with what it had opened before."""

    @worker.lifespan
    async def studio() -> AsyncIterator[str]:
        said.append("opened")
        yield "a brush"
        said.append("closed")

    async with running(any_url, worker, namespace=namespace) as bus:
        first = runner_of(bus).statistics().consumer
        eyes.call("SET", eyes.keys.fence(first), "dead")
        await until(lambda: runner_of(bus).statistics().consumer != first)
        await bus.publish(PaintingMade(number=1))
        await quiet(eyes)
    assert said == ["opened", "1 with a brush", "closed"]


@asynccontextmanager
async def manager() -> AsyncIterator[str]:
    yield "a brush"


@contextmanager
def plain_manager() -> Iterator[str]:
    yield "a brush"


def plain_generator() -> Iterator[str]:
    yield "a brush"


class Opened:
    async def __aenter__(self) -> str:
        return "a brush"

    async def __aexit__(self, *error: object) -> None:
        pass


@pytest.mark.parametrize("function", [manager, plain_manager, plain_generator, Opened])
async def test_what_may_be_a_lifespan(namespace: str, worker: Worker, said: list[str], function: Any) -> None:
    """Generators and functions that return context managers, async or plain; a class is one, too."""
    assert worker.lifespan(function) is function
    async with running("memory://", worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=1))
        await until(lambda: said)
    assert said == ["1 with a brush"]


async def test_a_plain_one_runs_off_the_loop(namespace: str, worker: Worker) -> None:
    """Loading a model for a minute in a plain function does not stop the other workers of the process."""
    threads: list[threading.Thread] = []

    @worker.lifespan
    def studio() -> Iterator[None]:
        threads.append(threading.current_thread())
        yield
        threads.append(threading.current_thread())

    async with running("memory://", worker, namespace=namespace):
        pass
    assert len(threads) == 2 and threading.main_thread() not in threads


async def test_batch_handlers_reach_it(memory: MemoryServer, virtual: Clock) -> None:
    """Every context of a batch has the resources."""
    worker, seen = Worker("framers"), list[Any]()
    worker.lifespan(manager)

    @worker.on_batch(PaintingMade)
    async def handle(events: list[PaintingMade], ctxs: list[Context]) -> None:
        seen.extend(ctx.resources for ctx in ctxs)

    async with running(memory, worker, namespace="studio") as bus:
        await bus.publish_many([PaintingMade(), PaintingMade()])
        await until(lambda: len(seen) == 2)
    assert seen == ["a brush", "a brush"]


async def test_without_one_there_are_no_resources(
    memory: MemoryServer, virtual: Clock, worker: Worker, said: list[str]
) -> None:
    """`ctx.resources` is None."""
    async with running(memory, worker, namespace="studio") as bus:
        await bus.publish(PaintingMade(number=1))
        await until(lambda: said)
    assert said == ["1 with None"]


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (trio.sleep_forever, "yield once"),
        (lambda worker: None, "no arguments"),
        ("studio", "must be a function"),
    ],
)
def test_what_may_not(worker: Worker, function: Any, says: str) -> None:
    """Refused where it is declared, by the name of the worker."""
    with pytest.raises(ContractError, match=f"worker 'framers': .*{says}"):
        worker.lifespan(function)


def test_there_is_one(worker: Worker) -> None:
    """A second lifespan is refused."""
    worker.lifespan(manager)
    with pytest.raises(ContractError, match="has a lifespan already"):
        worker.lifespan(manager)


# --- when it goes wrong -----------------------------------------------------------------------------------------------


def only(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    return error


async def fails(server: MemoryServer, worker: Worker, *others: Worker) -> BaseException:
    """Run until the bus ends by itself; why it did."""
    with pytest.raises((ExceptionGroup, LifespanError)) as raised:
        async with running(server, worker, *others, namespace="studio"):
            await trio.sleep_forever()
    return only(raised.value)


async def test_an_error_on_starting_ends_the_bus(
    memory: MemoryServer, virtual: Clock, worker: Worker, said: list[str]
) -> None:
    """The error names the worker, what went wrong and the line, and no group has been made."""

    @worker.lifespan
    async def studio() -> AsyncIterator[None]:
        raise FileNotFoundError("weights.pt")
        yield

    error = await fails(memory, worker)
    assert isinstance(error, LifespanError) and isinstance(error.__cause__, FileNotFoundError)
    assert str(error).startswith(
        f"worker 'framers': its lifespan failed on starting: FileNotFoundError: weights.pt ({__file__}, line "
    )
    assert Eyes(memory, "studio").call("DBSIZE") == 1  # the number of partitions


@pytest.mark.parametrize("function", [lambda: None, lambda: 3, lambda: iter(())])
async def test_what_is_no_context_manager_is_an_error_on_starting(
    memory: MemoryServer, virtual: Clock, worker: Worker, function: Any
) -> None:
    """Said by its type."""
    worker.lifespan(function)
    error = await fails(memory, worker)
    assert isinstance(error, LifespanError) and "which is no context manager" in str(error)


async def test_an_error_on_leaving_comes_last(
    any_url: str, namespace: str, eyes: Eyes, worker: Worker, said: list[str]
) -> None:
    """The other workers drain and what is queued is sent before it is raised."""
    other, go_on = Worker("others"), trio.Event()

    @worker.lifespan
    async def studio() -> AsyncIterator[str]:
        yield "a brush"
        go_on.set()
        raise OSError("the disk is full")

    @other.on(PaintingMade, timeout=20)
    async def slow(event: PaintingMade) -> None:
        said.append("begun")
        await go_on.wait()
        await trio.testing.wait_all_tasks_blocked()
        said.append("done")

    with pytest.raises(LifespanError, match="on leaving: OSError: the disk is full"):
        async with running(any_url, worker, other, namespace=namespace) as bus:
            await bus.publish(PaintingMade(number=1))
            await until(lambda: "begun" in said)
            bus.publish_nowait(PaintingMade(number=2))
    assert "done" in said
    assert eyes.count("painting.made") == 2


async def test_an_error_of_the_block_counts_for_more(memory: MemoryServer, virtual: Clock, worker: Worker) -> None:
    """What ended the block is raised, not what followed from it."""

    @worker.lifespan
    async def studio() -> AsyncIterator[None]:
        yield
        raise OSError

    with pytest.raises(KeyError, match="the block"):
        async with running(memory, worker, namespace="studio"):
            raise KeyError("the block")


async def test_a_task_of_its_own_that_fails_ends_the_worker(
    memory: MemoryServer, virtual: Clock, worker: Worker
) -> None:
    """A nursery around the yield belongs to the worker: when a task in it fails the program ends and says why."""
    fail = trio.Event()

    async def refresh() -> None:
        await fail.wait()
        raise ValueError("no such feature store")

    @worker.lifespan
    async def studio() -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refresh)
            yield
            nursery.cancel_scope.cancel()

    async def later(bus: EventBus) -> None:
        await bus.wait_ready()
        fail.set()

    async with trio.open_nursery() as nursery:
        with pytest.raises(ExceptionGroup) as raised:
            async with running(memory, worker, namespace="studio") as bus:
                nursery.start_soon(later, bus)
                await trio.sleep_forever()
    assert isinstance(only(raised.value), LifespanError)
    assert "failed while the worker was running: ValueError: no such feature store" in str(only(raised.value))


async def test_one_that_ends_the_worker_is_an_error(memory: MemoryServer, virtual: Clock, worker: Worker) -> None:
    """A cancel scope around the yield that is cancelled does not leave a process that lives and handles nothing."""

    @worker.lifespan
    async def studio() -> AsyncIterator[None]:
        with trio.move_on_after(60):
            yield

    error = await fails(memory, worker)
    assert "its lifespan ended it while it was running" in str(error)


async def test_one_that_swallows_errors_hides_nothing(
    memory: MemoryServer, virtual: Clock, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ends the worker is raised although the lifespan catches it."""

    @worker.lifespan
    async def studio() -> AsyncIterator[None]:
        try:
            yield
        except Refused:
            pass

    Eyes(memory, "studio").call("SET", Eyes(memory, "studio").stream(), "no stream")
    assert isinstance(await fails(memory, worker), Refused)


# --- in time ----------------------------------------------------------------------------------------------------------


async def test_closing_gets_what_is_left_of_the_grace_time(
    memory: MemoryServer, worker: Worker, virtual: Clock
) -> None:
    """It is cancelled when the grace time is over, which is no error."""

    @worker.lifespan
    async def studio() -> AsyncIterator[None]:
        yield
        await trio.sleep_forever()

    async with running(memory, worker, namespace="studio", grace=10.0):
        told = trio.current_time()
    assert 10 <= trio.current_time() - told <= 11


async def test_closing_may_await_when_everything_is_cancelled(
    memory: MemoryServer, virtual: Clock, worker: Worker
) -> None:
    """Cancelled from outside, the lifespan still closes in order, within a second."""
    closed = trio.Event()

    @worker.lifespan
    async def studio() -> AsyncIterator[None]:
        try:
            yield
        finally:
            await trio.sleep(0.5)
            closed.set()
            await trio.sleep_forever()

    with trio.CancelScope() as scope:
        async with running(memory, worker, namespace="studio"):
            told = trio.current_time()
            scope.cancel()
            await trio.sleep_forever()
    assert closed.is_set()
    assert trio.current_time() - told <= 2


async def test_stopping_does_not_wait_for_what_is_still_being_opened(
    memory: MemoryServer, virtual: Clock, worker: Worker
) -> None:
    """A bus that ends while a lifespan opens cancels that; what it had opened so far is closed, and nobody joins."""
    said: list[str] = []

    @worker.lifespan
    async def studio() -> AsyncIterator[None]:
        said.append("opening")
        try:
            await trio.sleep(600)
            yield
        finally:
            said.append("closed")

    bus = EventBus("memory://")
    bus.add(worker)
    told = trio.current_time()
    async with bus:
        await until(lambda: said)
        assert runner_of(bus).statistics().state == "starting"
    assert said == ["opening", "closed"]
    assert trio.current_time() - told <= 5
    assert runner_of(bus).statistics().state == "left"


@pytest.mark.parametrize("now", ["opening", "closing"])
async def test_who_is_waited_for_is_told(memory: MemoryServer, virtual: Clock, worker: Worker, now: str) -> None:
    """Behind a shield nobody ends it: the bus waits, and says for what, once."""
    other = Worker("archive")
    other.lifespan(nullcontext)
    other.on(PaintingMade)(lambda event: None)
    begun = trio.Event()

    @worker.lifespan
    async def studio() -> AsyncIterator[None]:
        if now == "closing":
            yield
        begun.set()
        with trio.CancelScope(shield=True):
            await trio.sleep(60)
        if now == "opening":
            yield

    bus = EventBus("memory://", grace=5.0)
    bus.add(worker)
    bus.add(other)
    with structlog.testing.capture_logs() as logs:
        async with bus:
            await until(lambda: begun.is_set() if now == "opening" else runner_of(bus).ready.is_set())
    told = [(line["group"], line["now"]) for line in logs if "goes on although it was cancelled" in line["event"]]
    assert told == [("framers", now)]


async def test_a_plain_one_that_is_being_opened_is_closed_again(namespace: str, worker: Worker) -> None:
    """A thread cannot be stopped: the bus waits until it has opened, does not join, and closes."""
    said: list[str] = []
    go_on = threading.Event()

    @worker.lifespan
    def studio() -> Iterator[None]:
        said.append("opening")
        go_on.wait(10)
        yield
        said.append("closed")

    bus = EventBus("memory://")
    bus.add(worker)
    async with bus:
        await until(lambda: said)
        bus._runners[0].stop()
        go_on.set()
    assert said == ["opening", "closed"]
    assert not bus._runners[0].ready.is_set()
