"""`ctx.extend`: a run that asks for more time gets it, from any thread, and only that run."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import trio
from studio import Eyes, PaintingMade, quiet, runner_of, running
from trio.abc import Clock
from waiting import until

from canvasbus.transport.memory import MemoryServer
from canvasbus.worker import Backoff, Context, HandlerTimeout, RetryLater, Worker

Extend = Callable[[Context, float], None]


def here(ctx: Context, seconds: float) -> None:
    ctx.extend(seconds)


def from_a_thread(ctx: Context, seconds: float) -> None:
    thread = threading.Thread(target=ctx.extend, args=(seconds,))
    thread.start()
    thread.join()


@pytest.mark.parametrize("extend", [here, from_a_thread])
@pytest.mark.parametrize("batch", [False, True])
async def test_an_extended_run_goes_on(
    virtual: Clock, memory: MemoryServer, namespace: str, extend: Extend, batch: bool
) -> None:
    """Ten seconds of timeout and three times nine more: 30 seconds of work are done in one run, while another run of
    the same handler, which asks for nothing, ends in time."""
    ended: dict[int, float] = {}
    worker = Worker("framers")

    async def work(number: int, ctx: Context) -> None:
        try:
            for _ in range(3):
                if number == 1:
                    extend(ctx, 19)
                await trio.sleep(10)
        finally:
            ended[number] = trio.current_time() - began

    if batch:

        @worker.on_batch(PaintingMade, max_size=1, timeout=10, retry=Backoff(attempts=1))
        async def frame_all(events: list[PaintingMade], ctxs: list[Context]) -> None:
            await work(events[0].number, ctxs[0])
    else:

        @worker.on(PaintingMade, timeout=10, retry=Backoff(attempts=1))
        async def frame(event: PaintingMade, ctx: Context) -> None:
            await work(event.number, ctx)

    eyes = Eyes(memory, namespace)
    for number in (1, 2):
        async with running(memory, worker, namespace=namespace) as bus:
            began = trio.current_time()
            await bus.publish(PaintingMade(number=number))
            await quiet(eyes, timeout=120)
    assert ended[1] == pytest.approx(30, abs=1.1)
    assert ended[2] == pytest.approx(10, abs=1.1)
    (letter,) = eyes.dead("framers")
    assert "HandlerTimeout" in letter.error


async def test_time_that_was_asked_for_ends(virtual: Clock, memory: MemoryServer, namespace: str) -> None:
    """extend(25) at a timeout of 10: cut at 25, not sooner and not later; a smaller word after that takes nothing back;
    the next attempt has 10 again."""
    runs: list[float] = []
    worker = Worker("framers")

    @worker.on(PaintingMade, timeout=10, retry={HandlerTimeout: Backoff(attempts=2, base=0)})
    async def frame(event: PaintingMade, ctx: Context) -> None:
        began = trio.current_time()
        try:
            if ctx.attempt == 1:
                ctx.extend(25)
                ctx.extend(1)
            await trio.sleep_forever()
        finally:
            runs.append(trio.current_time() - began)

    eyes = Eyes(memory, namespace)
    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade())
        await quiet(eyes, timeout=120)
    assert runs == pytest.approx([25, 10], abs=0.1)


async def test_a_run_that_was_put_off_has_no_word_left(virtual: Clock, memory: MemoryServer, namespace: str) -> None:
    """RetryLater after extend(1000): the next run is cut after its own 10 seconds."""
    runs: list[float] = []
    worker = Worker("framers")

    @worker.on(PaintingMade, timeout=10, retry=Backoff(attempts=1))
    async def frame(event: PaintingMade, ctx: Context) -> None:
        began = trio.current_time()
        if not runs:
            runs.append(0.0)
            ctx.extend(1000)
            raise RetryLater(1)
        try:
            await trio.sleep_forever()
        finally:
            runs.append(trio.current_time() - began)

    eyes = Eyes(memory, namespace)
    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade())
        await quiet(eyes, timeout=120)
    assert runs == pytest.approx([0, 10], abs=0.1)


async def test_what_is_left_of_a_run_has_no_word_for_the_next(
    virtual: Clock, memory: MemoryServer, namespace: str
) -> None:
    """A run timed out, and something that it left behind, a thread say, asks for more time, too late: while the event waits
    for its next attempt, and while that runs. The next attempt has its own time, and no more."""
    ctxs: list[Context] = []
    ends: list[float] = []
    worker = Worker("framers")

    @worker.on(PaintingMade, timeout=5, retry=Backoff(attempts=2, base=10, cap=10))
    async def frame(event: PaintingMade, ctx: Context) -> None:
        ctxs.append(ctx)
        began = trio.current_time()
        try:
            await trio.sleep(2)
            ctxs[0].extend(1 if ctx is ctxs[0] else 100)
            await trio.sleep_forever()
        finally:
            ends.append(trio.current_time() - began)

    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade())
        await until(lambda: len(ends) == 1)
        ctxs[0].extend(100)
        await until(lambda: len(ends) == 2, 200)
    assert ends == pytest.approx([5, 5])


@pytest.mark.parametrize("asks", [True, False])
async def test_a_plain_function_is_not_complained_of_while_its_time_lasts(
    virtual: Clock, memory: MemoryServer, namespace: str, asks: bool
) -> None:
    """A thread cannot be stopped, only told of: after its timeout, or after the time that it asked for."""
    go_on, began = threading.Event(), threading.Event()
    worker = Worker("framers")

    @worker.on(PaintingMade, timeout=10)
    def frame(event: PaintingMade, ctx: Context) -> None:
        if asks:
            ctx.extend(50)
        began.set()
        assert go_on.wait(20)

    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade())
        await until(began.is_set, 1e9)  # a real thread starts, while virtual time flies
        seen = runner_of(bus).statistics
        asked = trio.current_time()
        await until(lambda: seen().timeouts, 100)
        assert not asks or trio.current_time() - asked > 30  # 50 less what flew by until this task saw it begin
        go_on.set()
        await until(lambda: seen().handled == 1, 1e9)
        assert seen().timeouts == 1


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), float("inf"), "5"])
async def test_what_is_no_time_is_refused(any_url: str, namespace: str, eyes: Eyes, wrong: Any) -> None:
    """In the handler's own line: the run fails."""
    worker = Worker("framers")

    @worker.on(PaintingMade, retry=Backoff(attempts=1))
    async def frame(event: PaintingMade, ctx: Context) -> None:
        ctx.extend(wrong)

    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade())
        await until(lambda: eyes.dead("framers"))
    assert eyes.dead("framers")[0].error.startswith("ValueError: ctx.extend")
