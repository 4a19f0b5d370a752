"""Time that nobody has to wait for: timers, long pauses, and who else is woken by them."""

from datetime import timedelta

import pytest
import trio
import trio.testing
from testing.sketches import SketchDrawn, SketchInked, SketchSold

from canvasbus import clock
from canvasbus.testing import NotSettled, TestBus
from canvasbus.worker import PER_INSTANCE, Cancel, Context, Later, Reject, RetryLater, Worker

Clock = trio.testing.MockClock
DAY = 86400.0


def reminder(after: float) -> Worker:
    """A worker that asks after some time whether a drawn sketch was inked."""
    worker = Worker("reminder")

    @worker.on(SketchDrawn)
    async def remind(event: SketchDrawn) -> Later:
        return Later(SketchSold(title=event.title), after=after, timer=event.title)

    @worker.on(SketchInked)
    async def forget(event: SketchInked) -> Cancel:
        return Cancel(event.title)

    return worker


@pytest.mark.parametrize("after", [5, 2 * 3600, 30 * DAY])
async def test_a_timer_comes_when_it_is_due(any_clock: Clock, after: float) -> None:
    """Not before, a second later at most, also after a month; it knows its cause. One that was cancelled never comes."""
    async with TestBus(reminder(after)) as bus:
        await bus.publish(SketchDrawn(title="cat"))
        await bus.publish(SketchDrawn(title="dog"))
        await bus.publish(SketchInked(title="dog"))
        await bus.settle(horizon=0)
        assert trio.current_time() < 2
        await bus.advance(after - 2)
        assert bus.published(SketchSold) == []
        await bus.advance(3)
    (sold,) = bus.published(SketchSold)
    assert sold.cause is not None
    assert (sold.event.title, sold.cause.event.title) == ("cat", "cat")
    assert sold.event.correlation_id == sold.cause.event.correlation_id


async def test_settling_waits_for_timers_within_its_horizon_only(any_clock: Clock) -> None:
    """A timer that starts itself anew comes as often as the horizon has room for."""
    worker = Worker("clockwork")

    @worker.on(SketchDrawn)
    async def again(event: SketchDrawn) -> Later:
        return Later(SketchDrawn(number=event.number + 1), after=25)

    async with TestBus(worker) as bus:
        await bus.publish(SketchDrawn())
        await bus.settle(horizon=60)
        assert [one.event.number for one in bus.published(SketchDrawn)] == [0, 1, 2]
        await bus.settle(horizon=1000)
        assert trio.current_time() < 1100
    assert 38 <= len(bus.published(SketchDrawn)) <= 43


async def test_an_event_published_with_a_delay(any_clock: Clock) -> None:
    """delay= and at= mean virtual time."""
    async with TestBus() as bus:
        await bus.publish(SketchDrawn(title="soon"), delay=40)
        await bus.publish(SketchDrawn(title="late"), at=clock.now() + timedelta(days=3))
        await bus.settle()
        assert [one.event.title for one in bus.published(SketchDrawn)] == ["soon"]
        await bus.advance(3 * DAY)
        assert [one.event.title for one in bus.published(SketchDrawn)] == ["soon", "late"]


async def test_a_timer_that_is_not_reached_is_told(any_clock: Clock) -> None:
    """The server is away when a timer would be due: the error names the timer."""
    async with TestBus(reminder(20)) as bus:
        await bus.publish(SketchDrawn(title="cat"))
        await bus.settle(horizon=0)
        bus.outage(500)
        with pytest.raises(NotSettled, match=r"is away(.|\n)*a timer with sketch.sold is due in 0 s"):
            await bus.settle(horizon=30, limit=100)


async def test_a_leap_passes_over_nobody(any_clock: Clock) -> None:
    """Tasks of the test wake up exactly when they wanted to, and a deadline around it ends it on time."""
    woken = []

    async def sleeper(seconds: float) -> None:
        await trio.sleep(seconds)
        woken.append(trio.current_time())

    async with TestBus(reminder(5)) as bus, trio.open_nursery() as nursery:
        for seconds in (1000, 2000.5, 70_000):
            nursery.start_soon(sleeper, seconds)
        await bus.advance(DAY)
        assert woken == [1000, 2000.5, 70_000]
        with trio.move_on_after(5000) as scope:
            await bus.advance(DAY)
        assert scope.cancelled_caught
        assert trio.current_time() == DAY + 5000


async def test_a_bus_that_slept_works_at_once(any_clock: Clock) -> None:
    """After a month without anything to do, the first event is handled as ever, by the same process."""
    async with TestBus(reminder(5)) as bus:
        consumer = bus.statistics()["reminder"].consumer
        await bus.advance(30 * DAY)
        await bus.publish(SketchDrawn(title="cat"))
        await bus.settle()
        assert trio.current_time() < 30 * DAY + 10
        assert bus.statistics()["reminder"].consumer == consumer
    assert bus.losses == []
    assert len(bus.published(SketchSold)) == 1


async def test_a_clock_that_moves_by_itself_leaps_too(autojump_clock: Clock) -> None:
    """Sleeping for a month in a test takes no longer than settling."""
    async with TestBus(reminder(20 * DAY)) as bus:
        await bus.publish(SketchDrawn())
        await trio.sleep(30 * DAY)
        assert trio.current_time() == 30 * DAY
        assert len(bus.published(SketchSold)) == 1


async def test_a_handler_that_asks_for_a_day(any_clock: Clock) -> None:
    """RetryLater(after=a day), three times: the handler runs when it wanted to."""
    started = []
    worker = Worker("patient")

    @worker.on(SketchDrawn)
    async def ink(event: SketchDrawn) -> SketchInked:
        started.append(trio.current_time())
        if len(started) <= 3:
            raise RetryLater(after=DAY)
        return SketchInked(title=event.title)

    async with TestBus(worker, reminder(5)) as bus:
        await bus.publish(SketchDrawn(title="cat"))
        await bus.settle(limit=4 * DAY)
    assert started == pytest.approx([0, DAY, 2 * DAY, 3 * DAY], abs=1)
    assert len(bus.published(SketchInked)) == 1


async def test_a_worker_with_a_group_for_each_process(any_clock: Clock) -> None:
    """Settling waits for it; what it did goes by the worker's name; after a crash the new process has another group."""
    worker = Worker("board", group=PER_INSTANCE)
    seen = []

    @worker.on(SketchDrawn)
    async def show(event: SketchDrawn, ctx: Context) -> None:
        seen.append(ctx.group)
        if event.title == "sun":
            raise Reject("too bright")

    async with TestBus(worker) as bus:
        await bus.publish(SketchDrawn())
        await bus.settle()
        await bus.crash("board")
        await bus.settle()
        await bus.publish(SketchDrawn(title="sun"))
        await bus.settle()
        assert [letter.reason for letter in bus.dead_letters("board")] == ["rejected"]
        assert set(bus.statistics()) == {"board"}
    assert len(bus.attempts(group="board")) == 2
    assert len(set(seen)) == 2
