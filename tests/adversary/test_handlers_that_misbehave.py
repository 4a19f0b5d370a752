"""Handlers that do what they should not: one event may suffer for it, never its neighbours or the worker."""

import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import structlog
import trio
from studio import Eyes, PaintingFramed, PaintingMade, quiet, running
from trio.abc import Clock
from waiting import until

from canvasbus.signals import until_signal
from canvasbus.transport.memory import MemoryServer
from canvasbus.worker import Backoff, BatchFailure, Cancel, Context, Later, Reject, RetryLater, Worker


async def stale_cancellation() -> None:
    """Raise a Cancelled that belongs to a scope which has ended."""
    kept: list[BaseException] = []
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.sleep_forever()
        except trio.Cancelled as error:
            kept.append(error)
            raise
    raise kept[0]


async def leaked_scope() -> None:
    """Leave a cancelled scope open, as an async generator does that yields inside of one and is dropped."""
    scope = trio.CancelScope()
    scope.__enter__()
    scope.cancel()


async def nested_group() -> None:
    error: Exception = ValueError("innermost")
    for _ in range(3000):
        error = ExceptionGroup("deeper", [error])
    raise error


async def retry_at_no_time() -> None:
    raise RetryLater(after=timedelta(seconds=3), reason="units mixed up")  # type: ignore[arg-type]


async def retry_after_eternities() -> None:
    raise RetryLater(after=10**400, reason="overflows a float")


def exits() -> Iterator[PaintingFramed]:
    yield PaintingFramed()
    raise SystemExit(3)


async def generator_that_exits() -> Any:
    return exits()


@pytest.mark.parametrize(
    "act",
    [
        stale_cancellation,
        leaked_scope,
        nested_group,
        retry_at_no_time,
        retry_after_eternities,
        generator_that_exits,
    ],
    ids=lambda act: act.__name__,
)
@pytest.mark.parametrize("batch", [False, True], ids=["single", "batch"])
async def test_what_one_run_does_stays_with_it(
    virtual: Clock, memory: MemoryServer, namespace: str, eyes: Eyes, act: Any, batch: bool
) -> None:
    """The event that misbehaves is handled or given up; its neighbours are handled, and the worker lives."""
    worker, seen = Worker("framers"), set[int]()
    options: dict[str, Any] = {"retry": Backoff(attempts=1)}

    async def one(event: PaintingMade) -> Any:
        if event.number == 3:
            return await act()
        seen.add(event.number)
        return None

    async def many(events: list[PaintingMade]) -> Any:
        if len(events) > 1:
            raise ValueError("one by one, please")
        for event in events:
            result = await one(event)
            if result is not None:
                return ((0, derived) for derived in result)
        return None

    if batch:
        worker.on_batch(PaintingMade, **options)(many)
    else:
        worker.on(PaintingMade, concurrency=2, **options)(one)

    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(8)])
        await quiet(eyes, timeout=60)
        await trio.sleep(1)
        await bus.publish(PaintingMade(number=8))
        await quiet(eyes, timeout=60)
    assert seen == set(range(9)) - {3}
    # One run in a slot cannot be told from the next, so nobody is blamed for a scope left open; alone it can.
    assert len(eyes.dead("framers")) == (batch or act is not leaked_scope)
    assert eyes.count("painting.framed") == 0


@pytest.mark.parametrize(
    "failure",
    [
        lambda: BatchFailure({99: ValueError("outside")}),
        lambda: BatchFailure({-1: ValueError("from the end")}),
        lambda: BatchFailure({"0": ValueError("a text")}),  # type: ignore[dict-item]
        lambda: BatchFailure({0: "no exception"}),  # type: ignore[dict-item]
        lambda: BatchFailure([ValueError("a list")]),  # type: ignore[arg-type]
    ],
)
async def test_a_batch_failure_that_names_no_event_is_no_success(
    virtual: Clock, memory: MemoryServer, namespace: str, eyes: Eyes, failure: Any
) -> None:
    """Nothing is acknowledged as done that its handler did not say was done."""
    worker = Worker("framers")

    @worker.on_batch(PaintingMade, retry=Backoff(attempts=1))
    async def frame(events: list[PaintingMade]) -> None:
        raise failure()

    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(3)])
        await quiet(eyes, timeout=60)
    assert len(eyes.dead("framers")) == 3
    assert "BatchFailure" in eyes.dead("framers")[0].error


async def test_a_batch_whose_results_cannot_be_read_has_failed(
    virtual: Clock, memory: MemoryServer, namespace: str, eyes: Eyes
) -> None:
    """A generator that raises in the middle of what a batch handler returned: nothing of it is published by halves."""
    worker, runs = Worker("framers"), 0

    @worker.on_batch(PaintingMade, retry=Backoff(attempts=2))
    async def frame(events: list[PaintingMade]) -> Any:
        nonlocal runs
        runs += 1
        names: dict[int, str] = {} if runs == 1 else dict.fromkeys(range(3), "x")
        return ((i, PaintingFramed(number=event.number, title=names[event.number])) for i, event in enumerate(events))

    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(3)])
        await quiet(eyes, timeout=60)
    assert sorted(e.number for e in eyes.events("painting.framed")) == [0, 1, 2]
    assert eyes.dead("framers") == []


@pytest.mark.parametrize("batch", [False, True], ids=["single", "batch"])
async def test_a_handlers_word_is_heard_out_of_a_nursery(
    virtual: Clock, memory: MemoryServer, namespace: str, eyes: Eyes, batch: bool
) -> None:
    """A nursery wraps what is raised inside it into a group: Reject, RetryLater and BatchFailure mean the same there."""
    worker, runs = Worker("framers"), list[int]()

    async def say(error: Exception) -> None:
        async with trio.open_nursery():
            raise error

    async def one(event: PaintingMade) -> None:
        runs.append(event.number)
        if event.number == 0:
            await say(Reject("never"))
        if event.number == 1 and runs.count(1) < 5:
            await say(RetryLater(after=3))

    async def many(events: list[PaintingMade]) -> None:
        runs.extend(event.number for event in events)
        rejected = {i: Reject("never") for i, event in enumerate(events) if event.number == 0}
        await say(BatchFailure(rejected))  # type: ignore[arg-type]

    if batch:
        worker.on_batch(PaintingMade, retry=Backoff(attempts=2))(many)
    else:
        worker.on(PaintingMade, retry=Backoff(attempts=2))(one)
    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(3)])
        await quiet(eyes, timeout=100)
    (letter,) = eyes.dead("framers")
    assert (letter.reason, letter.attempts) == ("rejected", 1)
    assert sorted(runs) == ([0, 1, 2] if batch else [0, 1, 1, 1, 1, 1, 2])


LONE = "\ud800"
"""Half a character, as file names that are no UTF-8 bring along; nothing can be called so on a server."""


async def lone_timer(ctx: Context) -> Any:
    return Later(PaintingFramed(), after=1, timer=LONE)


async def lone_cancel(ctx: Context) -> Any:
    return Cancel(LONE)


async def lone_part(ctx: Context) -> Any:
    ctx.parts("window", int).put(LONE, 1)


async def lone_parts(ctx: Context) -> Any:
    ctx.parts(LONE, int).put("one", 1)


async def lone_state(ctx: Context) -> Any:
    (await ctx.state(LONE, int)).value += 1


@pytest.mark.parametrize("act", [lone_timer, lone_cancel, lone_part, lone_parts, lone_state], ids=lambda a: a.__name__)
async def test_a_name_that_cannot_be_sent(any_url: str, namespace: str, act: Any) -> None:
    """The event that asks for it is given up with the reason; the worker and its other events go on."""
    worker, seen, eyes = Worker("framers"), set[int](), Eyes(any_url, namespace)

    @worker.on(PaintingMade, retry=Backoff(attempts=1))
    async def frame(event: PaintingMade, ctx: Context) -> Any:
        if event.number == 1:
            return await act(ctx)
        seen.add(event.number)
        return None

    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(3)])
        await quiet(eyes)
        (letter,) = eyes.dead("framers")
    assert seen == {0, 2} and letter.error.startswith("ContractError") and "surrogates" in letter.error
    eyes.close()


@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit])
async def test_a_thread_that_raises_what_is_meant_for_others(
    virtual: Clock, memory: MemoryServer, namespace: str, eyes: Eyes, error: type[BaseException]
) -> None:
    """Ctrl-C reaches the main thread only, and nobody closes the coroutine of a thread: in a plain handler both are its own
    failure. The worker lives, and the event ends in the dead letters, not in one worker after the other."""
    worker, seen = Worker("framers"), set[int]()

    @worker.on(PaintingMade, retry=Backoff(attempts=2))
    def frame(event: PaintingMade) -> None:
        if event.number == 1:
            raise error("a library's own")
        seen.add(event.number)

    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(3)])
        await quiet(eyes, timeout=60)
    (letter,) = eyes.dead("framers")
    assert seen == {0, 2} and (letter.reason, letter.attempts) == ("exhausted", 2)


async def test_a_plain_handler_for_which_there_is_no_thread(
    virtual: Clock, memory: MemoryServer, namespace: str, eyes: Eyes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a container's limit of processes it has not begun, which is no failure of its own: its events wait, and the log says
    what for. What it raises itself is one, whatever it is."""
    worker, runs, none = Worker("framers"), list[int](), True

    @worker.on(PaintingMade, retry=Backoff(attempts=1))
    def frame(event: PaintingMade, ctx: Context) -> None:
        runs.append(ctx.attempt)
        if event.number == 1:
            raise RuntimeError("a library's own")

    run_sync = trio.to_thread.run_sync

    async def run_some(*args: Any, **options: Any) -> Any:
        if none:
            raise RuntimeError("can't start new thread")
        return await run_sync(*args, **options)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_some)
    with structlog.testing.capture_logs() as logs:
        async with running(memory, worker, namespace=namespace) as bus:
            await bus.publish_many([PaintingMade(number=n) for n in range(3)])
            await until(lambda: bus.statistics()[0].retries > 10)
            assert not runs and bus.statistics()[0].failed == 0
            none = False
            await quiet(eyes, timeout=60)
    assert runs == [1, 1, 1]
    (letter,) = eyes.dead("framers")
    assert "a library's own" in letter.error
    assert len([log for log in logs if "no thread" in log["event"]]) == 1


async def test_a_handler_that_raises_the_ctrl_c_that_the_program_takes_as_a_signal(
    virtual: Clock, memory: MemoryServer, namespace: str, eyes: Eyes
) -> None:
    """In canvasbus-worker nobody is interrupted by Ctrl-C: what a handler raises is its own."""
    worker, seen = Worker("framers"), set[int]()

    @worker.on(PaintingMade, retry=Backoff(attempts=2))
    async def frame(event: PaintingMade) -> None:
        if event.number == 1:
            raise KeyboardInterrupt
        seen.add(event.number)

    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    async with running(memory, worker, namespace=namespace) as bus, until_signal():
        await bus.publish_many([PaintingMade(number=n) for n in range(3)])
        await quiet(eyes, timeout=60)
    for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
        signal.signal(number, handler)
    (letter,) = eyes.dead("framers")
    assert seen == {0, 2} and (letter.reason, letter.attempts) == ("exhausted", 2)


async def test_a_handler_that_raises_ctrl_c_while_the_program_drains(
    virtual: Clock, memory: MemoryServer, namespace: str, eyes: Eyes
) -> None:
    """Told to end, the others come to their end, and it has failed as before."""
    worker, runs, seen = Worker("framers"), list[int](), set[int]()

    @worker.on(PaintingMade, retry=Backoff(attempts=2, base=0, cap=0))
    async def frame(event: PaintingMade) -> None:
        runs.append(event.number)
        await trio.sleep(1 if event.number == 1 else 3)
        if event.number == 1:
            raise KeyboardInterrupt
        seen.add(event.number)

    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    async with running(memory, worker, namespace=namespace) as bus:
        async with until_signal():
            await bus.publish_many([PaintingMade(number=n) for n in range(3)])
            await until(lambda: len(runs) == 3)
            os.kill(os.getpid(), signal.SIGTERM)
            await trio.sleep_forever()
    for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
        signal.signal(number, handler)
    assert seen == {0, 2} and [owner for _, owner, _ in eyes.pending("framers")] == ["~free"]


@pytest.mark.parametrize("nap", [0.0, 0.02])
async def test_a_handler_that_forks_and_returns_twice(
    any_url: str, namespace: str, capfd: pytest.CaptureFixture[str], nap: float
) -> None:
    """The copy of the program ends and says why, at once or as soon as it touches the connection; the parent goes on."""
    eyes, worker, copies = Eyes(any_url, namespace), Worker("framers"), list[int]()

    @worker.on(PaintingMade, concurrency=4)
    async def frame(event: PaintingMade) -> PaintingFramed:
        if event.number == 3 and (pid := os.fork()):
            copies.append(pid)
        await trio.sleep(nap)
        return PaintingFramed(number=event.number)

    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(8)])
        await quiet(eyes)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in copies] == [70]
    assert sorted(event.number for event in eyes.events("painting.framed")) == list(range(8))
    assert f"canvasbus: process {copies[0]} was forked while its bus was running" in capfd.readouterr().err


async def failed_in_a_nursery(event: PaintingMade) -> None:
    async with trio.open_nursery():
        raise ValueError("no such frame")


def not_awaited(event: PaintingMade) -> Any:
    return failed_in_a_nursery(event)


async def the_same_again(event: PaintingMade) -> PaintingMade:
    return event


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (failed_in_a_nursery, "ValueError: no such frame, first of 1 in the ExceptionGroup"),
        (not_awaited, "TypeError: not_awaited is a plain function that returned a coroutine: make it `async def`"),
        (the_same_again, "TypeError: the_same_again returned the event that it was given"),
    ],
)
async def test_what_is_said_of_it(
    virtual: Clock, memory: MemoryServer, namespace: str, eyes: Eyes, function: Any, said: str
) -> None:
    """One line that names what is wrong, where Python or trio would tell of themselves, or nobody."""
    worker = Worker("framers")
    worker.on(PaintingMade, retry=Backoff(attempts=1))(function)
    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade())
        await quiet(eyes)
    (letter,) = eyes.dead("framers")
    assert letter.error.startswith(said) and eyes.count("painting.made") == 1


@pytest.mark.parametrize("after", [0, -3])
async def test_again_at_once(virtual: Clock, memory: MemoryServer, namespace: str, eyes: Eyes, after: float) -> None:
    """RetryLater counts no attempt, so that nothing would ever end it; it does not keep a processor busy."""
    worker, runs = Worker("framers"), list[float]()

    @worker.on(PaintingMade)
    async def frame(event: PaintingMade) -> None:
        runs.append(trio.current_time())
        raise RetryLater(after)

    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade())
        await trio.sleep(5)
    assert 10 < len(runs) <= 51
