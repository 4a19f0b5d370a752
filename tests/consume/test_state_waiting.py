"""Runs that wait for a state which others hold, and those that hold it for too long."""

import threading

import pytest
import trio
import trio.testing
from consume.counted import Count, stored
from studio import Eyes, PaintingMade, quiet, running
from waiting import until

from canvasbus.transport.memory import MemoryServer
from canvasbus.worker import Backoff, Context, Worker

Clock = trio.testing.MockClock


async def test_runs_that_wait_for_each_other_do_not_wait_for_ever(
    virtual: Clock, memory: MemoryServer, namespace: str
) -> None:
    """Two states taken in both orders: one of the runs gives way and comes again, and no attempt is counted."""
    eyes = Eyes(memory, namespace)
    worker = Worker("framers")

    @worker.on(PaintingMade, retry=Backoff(attempts=1), timeout=5)
    async def both(event: PaintingMade, ctx: Context) -> None:
        names = ("a", "b") if event.number % 2 else ("b", "a")
        for name in names:
            state = await ctx.state(name, Count)
            await trio.sleep(0.01)
            state.value.total += 1

    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(40)])
        await quiet(eyes, timeout=60)
        assert bus.statistics()[0].dead == bus.statistics()[0].timeouts == 0
    assert stored(eyes, "framers", "a")["total"] == stored(eyes, "framers", "b")["total"] == 40
    eyes.close()


async def test_waiting_for_others_is_no_part_of_a_timeout(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Twenty events of one key, each of which takes a quarter of its timeout: they are handled one after the other, and
    none fails for having waited."""
    worker = Worker("framers")

    @worker.on(PaintingMade, retry=Backoff(attempts=1), timeout=0.4)
    async def count(event: PaintingMade, ctx: Context) -> None:
        state = await ctx.state("a", Count)
        await trio.sleep(0.1)
        state.value.total += 1

    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(20)])
        await quiet(eyes, timeout=60)
        assert (bus.statistics()[0].timeouts, eyes.dead("framers")) == (0, [])
    assert stored(eyes, "framers", "a")["total"] == 20


async def test_who_waits_for_long_lets_others_run(virtual: Clock, memory: MemoryServer, namespace: str) -> None:
    """A run has asked for six minutes and holds a key for which there are more events than slots: those of other keys are
    handled meanwhile, and in the end all are. What a run takes for itself counts, however long it has waited before."""
    eyes = Eyes(memory, namespace)
    worker = Worker("framers")
    held = trio.Event()
    others: list[float] = []

    @worker.on(PaintingMade, concurrency=4, retry=Backoff(attempts=1), timeout=5)
    async def count(event: PaintingMade, ctx: Context) -> None:
        state = await ctx.state(event.title, Count)
        if event.number == 0:
            held.set()
            ctx.extend(360)
            await trio.sleep(300)
        if event.number == 5:
            await trio.sleep(6)
        if event.title != "a":
            others.append(trio.current_time())
        state.value.total += 1

    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade(title="a"))
        await held.wait()
        await bus.publish_many([PaintingMade(title="a", number=n) for n in range(1, 41)])
        await bus.publish_many([PaintingMade(title="b", number=n) for n in range(1, 4)])
        await quiet(eyes, timeout=500)
        assert bus.statistics()[0].timeouts == len(eyes.dead("framers")) == 1
    assert stored(eyes, "framers", "a")["total"] == 40
    assert max(others) < 60 and len(others) == 3
    eyes.close()


@pytest.mark.parametrize("again", [False, True], ids=["holds", "takes"])
async def test_a_run_that_hangs_for_ever_keeps_no_state_from_others(
    virtual: Clock, memory: MemoryServer, namespace: str, again: bool
) -> None:
    """It cannot be ended, and there are more events of its key than may wait: when its time is over all others are
    handled, its key's, too. What it makes of its own copy, should it end, is compared: it runs again. The same of a state that
    it takes when it is late already."""
    eyes = Eyes(memory, namespace)
    worker = Worker("framers")
    hangs, ends = trio.Event(), trio.Event()

    @worker.on(PaintingMade, concurrency=4, timeout=5)
    async def count(event: PaintingMade, ctx: Context) -> None:
        if event.number == 0 and not hangs.is_set():
            with trio.CancelScope(shield=True):
                if again:
                    await trio.sleep(20)
                state = await ctx.state(event.title, Count)
                hangs.set()
                await ends.wait()
        else:
            state = await ctx.state(event.title, Count)
        state.value.total += 1

    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade(title="a"))
        await hangs.wait()
        await bus.publish_many([PaintingMade(title="a", number=n) for n in range(1, 1501)])
        await bus.publish_many([PaintingMade(title="b", number=n) for n in range(1, 4)])
        await until(lambda: bus.statistics()[0].handled == 1503, 500)
        assert (stored(eyes, "framers", "a")["total"], stored(eyes, "framers", "b")["total"]) == (1500, 3)
        ends.set()
        await quiet(eyes, timeout=500)
        assert eyes.dead("framers") == []
    assert stored(eyes, "framers", "a")["total"] == 1501
    eyes.close()


@pytest.mark.parametrize("kind", ["shielded", "plain"])
async def test_a_late_run_lets_others_have_its_state(any_url: str, namespace: str, eyes: Eyes, kind: str) -> None:
    """Of both kinds of handlers that nobody can end, on every server: others count on while it hangs, and it counts itself
    when it ends, once."""
    worker = Worker("framers")
    hangs, others = threading.Event(), threading.Event()

    async def add(event: PaintingMade, ctx: Context) -> None:
        state = await ctx.state("a", Count)
        if event.number == 0 and not hangs.is_set():
            hangs.set()
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(others.wait, 60)
        state.value.total += 1

    if kind == "plain":

        @worker.on(PaintingMade, timeout=0.2)
        def count(event: PaintingMade, ctx: Context) -> None:
            trio.from_thread.run(add, event, ctx)

    else:
        worker.on(PaintingMade, timeout=0.2)(add)

    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade())
        await until(hangs.is_set)
        await bus.publish_many([PaintingMade(number=n) for n in range(1, 51)])
        await until(lambda: (stored(eyes, "framers", "a") or {"total": 0})["total"] == 50, 30)
        others.set()
        await quiet(eyes, timeout=30)
        assert eyes.dead("framers") == []
    assert stored(eyes, "framers", "a")["total"] == 51
