"""Trouble on order: what handlers see of it, and what they do not."""

from collections import Counter
from typing import Any, get_args

import pytest
import trio
import trio.testing
from testing.sketches import SketchDrawn, SketchInked, SketchSold

from canvasbus import ContractError
from canvasbus.testing import NotSettled, TestBus
from canvasbus.testing.faults import How, What
from canvasbus.worker import Context, Worker

Clock = trio.testing.MockClock


class Gallery:
    """Something outside of the bus, with a worker that changes it."""

    def __init__(self) -> None:
        self.sold = 0
        self.keys: set[Any] = set()
        self.worker = Worker("seller")

        @self.worker.on(SketchDrawn)
        async def sell(event: SketchDrawn, ctx: Context) -> SketchSold:
            self.sold += 1
            self.keys.add(ctx.envelope.id)
            return SketchSold(title=event.title)


@pytest.mark.parametrize("what", get_args(What))
@pytest.mark.parametrize("how", ["lost_reply", "lost_request"])
@pytest.mark.parametrize("times", [1, 3])
async def test_what_is_lost_on_the_way_no_handler_sees(any_clock: Clock, what: What, how: How, times: int) -> None:
    """Requests and replies of every kind are lost: each event is stored once, handled once, and sold once."""
    gallery = Gallery()
    async with TestBus(gallery.worker) as bus:
        bus.fail_next(what, how, times=times)
        for number in range(4):
            await bus.publish(SketchDrawn(title=str(number)))
            await bus.settle()
    assert [one.event.title for one in bus.published(SketchDrawn)] == ["0", "1", "2", "3"]
    assert Counter(one.event.title for one in bus.published(SketchSold)) == dict.fromkeys("0123", 1)
    assert gallery.sold == 4


@pytest.mark.parametrize("how", ["lost_reply", "lost_request"])
async def test_what_is_published_once_is_lost_on_the_way_too(any_clock: Clock, how: How) -> None:
    """Events under a key go another way to the server than others: the trouble that was ordered meets them there."""
    gallery = Gallery()
    async with TestBus(gallery.worker) as bus:
        for number in range(2):
            bus.fail_next("publish", how, times=2)
            for _ in range(2):
                await bus.publish(SketchDrawn(title=str(number)), dedupe_key=str(number))
            await bus.publish_many([SketchDrawn(title=str(number))], dedupe_key=lambda event: event.title)
            await bus.settle()
            assert trio.current_time() > 0
    assert [one.event.title for one in bus.published(SketchDrawn)] == ["0", "1"] and gallery.sold == 2


@pytest.mark.parametrize("times", [1, 2])
async def test_a_crash_before_the_commit_runs_the_handler_again(any_clock: Clock, times: int) -> None:
    """The handler has run, its process dies: the event runs again under the same id, and what the bus itself stores is
    there once. What the handler did outside it did twice, which is what the test of a handler is to find."""
    gallery = Gallery()
    event = SketchDrawn(title="cat")
    async with TestBus(gallery.worker) as bus:
        bus.fail_next("commit", "crash", times=times)
        await bus.publish(event)
        await bus.settle()
        assert 5 * times <= trio.current_time() <= 12 * times
    assert gallery.sold == 1 + times
    assert len(gallery.keys) == 1
    assert len(bus.published(SketchSold)) == 1
    assert [attempt.error for attempt in bus.attempts(event)] == [None] * (1 + times)
    assert bus.attempts(bus.published(SketchDrawn)[0]) == bus.attempts(event) == bus.attempts(*gallery.keys)
    assert bus.dead_letters() == []


async def test_state_is_an_effect_too(any_clock: Clock) -> None:
    """A handler that counts in ctx.state counts each event once, although its process dies before two of the commits."""
    worker = Worker("counter")

    @worker.on(SketchDrawn)
    async def count(event: SketchDrawn, ctx: Context) -> SketchInked:
        state = await ctx.state("count", int)
        state.value += 1
        return SketchInked(number=state.value)

    async with TestBus(worker) as bus:
        bus.fail_next("commit", "crash", times=2)
        await bus.publish_many([SketchDrawn(number=number) for number in range(4)])
        await bus.settle()
    assert len(bus.attempts()) > 4
    assert sorted(one.event.number for one in bus.published(SketchInked)) == [1, 2, 3, 4]


async def test_a_crash_with_events_in_hand(any_clock: Clock) -> None:
    """A process that dies while handlers run and events wait: all of them run, in the new process; the other worker
    notices nothing."""
    worker, other = Worker("slow"), Worker("other")

    @worker.on(SketchDrawn, concurrency=2)
    async def ink(event: SketchDrawn) -> SketchInked:
        await trio.sleep(3)
        return SketchInked(number=event.number)

    @other.on(SketchDrawn)
    async def look(event: SketchDrawn) -> None: ...

    async with TestBus(worker, other) as bus:
        await bus.publish_many([SketchDrawn(number=number) for number in range(5)])
        await bus.advance(1)
        await bus.crash(worker)
        await bus.settle()
    assert sorted(one.event.number for one in bus.published(SketchInked)) == list(range(5))
    cut = [attempt for attempt in bus.attempts(group="slow") if attempt.error is not None]
    assert [(type(attempt.error), attempt.seconds) for attempt in cut] == [(trio.Cancelled, 1.0)] * 2
    assert len(bus.attempts(group="other")) == 5


async def test_two_crashes_of_one_life(any_clock: Clock) -> None:
    """A worker that is told to crash while it dies of an ordered fault dies once, and one new process starts."""
    gallery = Gallery()
    async with TestBus(gallery.worker) as bus:
        await bus.publish(SketchDrawn(title="cat"))
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(bus.crash, gallery.worker)
        await bus.settle()
        assert [one.event.title for one in bus.published(SketchSold)] == ["cat"]


async def test_only_the_worker_that_is_meant(any_clock: Clock) -> None:
    """`group` picks one of two workers that commit at the same time."""
    galleries = [Gallery(), Gallery()]
    galleries[1].worker.name = "rival"
    async with TestBus(*(gallery.worker for gallery in galleries)) as bus:
        bus.fail_next("commit", "crash", group="rival")
        await bus.publish(SketchDrawn())
        await bus.settle()
    assert [gallery.sold for gallery in galleries] == [1, 2]


async def test_a_crash_on_reading_costs_nothing_but_time(any_clock: Clock) -> None:
    """The process dies when it would read: nobody had the event, the new process reads it at once."""
    gallery = Gallery()
    async with TestBus(gallery.worker) as bus:
        bus.fail_next("read", "crash")
        await bus.publish(SketchDrawn())
        await bus.settle()
    assert gallery.sold == 1


async def test_an_outage_is_waited_for(any_clock: Clock) -> None:
    """Publishing returns when the server is back; until then settling says that it is away."""
    gallery = Gallery()
    async with TestBus(gallery.worker) as bus:
        bus.outage(40)
        with pytest.raises(NotSettled, match="the server is away"):
            await bus.settle(horizon=0, limit=10)
        assert bus.published() == []
        await bus.publish(SketchDrawn())
        assert 40 <= trio.current_time() < 45
        bus.outage(20)
        await bus.settle()
        assert 60 <= trio.current_time() < 75
    assert gallery.sold == 1
    assert len(bus.published(SketchSold)) == 1


async def test_a_crash_during_an_outage(any_clock: Clock) -> None:
    """The new process waits for the server; nothing is lost."""
    gallery = Gallery()
    async with TestBus(gallery.worker) as bus:
        await bus.publish(SketchDrawn())
        bus.outage(30)
        await bus.crash("seller")
        with pytest.raises(NotSettled, match="seller: is starting"):
            await bus.settle(horizon=0, limit=5)
        await bus.settle()
    assert len(bus.published(SketchSold)) == 1


async def test_a_fault_that_never_happens_is_told(any_clock: Clock) -> None:
    """A test that orders trouble and has none proves nothing. A failure of the test itself comes first."""
    with pytest.raises(AssertionError, match="never happened: commit, crash of seller"):
        async with TestBus(Gallery().worker) as bus:
            bus.fail_next("commit", "crash", group="seller")
            await bus.settle()
    with pytest.raises(KeyError):
        async with TestBus(Gallery().worker) as bus:
            bus.fail_next("commit")
            raise KeyError


async def test_trouble_that_cannot_be_is_refused(any_clock: Clock) -> None:
    """Unknown words, workers that are not there, and a test that would crash itself."""
    bus = TestBus(Gallery().worker)
    for wrong, said in (
        (("comit", "crash"), "what is one of 'publish', 'read', 'commit', not 'comit'"),
        (("commit", "lost"), "how is one of 'lost_reply', 'lost_request', 'crash', not 'lost'"),
        (("publish", "crash"), "the test's own"),
    ):
        with pytest.raises(ContractError, match=said):
            bus.fail_next(*wrong)  # type: ignore[arg-type]
    with pytest.raises(ContractError, match=r"no worker 'seler' on .*did you mean seller"):
        bus.fail_next("commit", group="seler")
    with pytest.raises(ContractError, match="at least 1"):
        bus.fail_next("commit", times=0)
    with pytest.raises(ContractError, match="inside the block"):
        bus.outage(5)
