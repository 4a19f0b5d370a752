"""TestBus: publish, settle, look."""

import asyncio
import math
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from testing.sketches import SketchDrawn, SketchInked, SketchSold

from canvasbus import ContractError, EncodeError, Producer, clock
from canvasbus.bus import EventBus
from canvasbus.errors import ConfigError, Refused
from canvasbus.testing import NotSettled, TestBus, in_virtual_time
from canvasbus.transport.blocking import BlockingLink
from canvasbus.transport.connect import open_server
from canvasbus.worker import Backoff, BatchFailure, Context, HandlerTimeout, Reject, RetryLater, Worker

Clock = trio.testing.MockClock


def inker() -> Worker:
    worker = Worker("inker")

    @worker.on(SketchDrawn)
    async def on_drawn(event: SketchDrawn) -> SketchInked:
        return SketchInked(title=event.title, number=event.number)

    return worker


def seller() -> Worker:
    worker = Worker("seller")

    @worker.on(SketchInked)
    def on_inked(event: SketchInked) -> list[SketchSold]:
        return [SketchSold(title=event.title)]

    return worker


def failing(times: int, *, retry: Backoff, error: type[Exception] = ValueError) -> Worker:
    """A worker that fails `times` times with each event before it does its work."""
    worker = Worker("unlucky")

    @worker.on(SketchDrawn, retry=retry)
    async def on_drawn(event: SketchDrawn, ctx: Context) -> SketchInked:
        if ctx.attempt <= times:
            raise error(f"attempt {ctx.attempt}")
        return SketchInked(title=event.title)

    return worker


async def test_settling_follows_a_chain_to_its_end(any_clock: Clock) -> None:
    """Events, what async and plain handlers return for them, and what follows from that: each with its cause."""
    drawn = SketchDrawn(title="cat", number=3)
    async with TestBus(inker(), seller()) as bus:
        entry_id = await bus.publish(drawn)
        await bus.settle()
    (first,), (second,), (third,) = bus.published(SketchDrawn), bus.published(SketchInked), bus.published(SketchSold)
    assert (first.event, first.entry_id, first.cause) == (drawn, entry_id, None)
    assert (second.event.title, second.event.number, second.cause) == ("cat", 3, first)
    assert (third.event.title, third.cause, third.causation_id) == ("cat", second, second.id)
    assert third.event.correlation_id == drawn.correlation_id
    assert bus.published() == [first, second, third]
    assert bus.published("sketch.inked") == [second]
    assert {name: s.handled for name, s in bus.statistics().items()} == {"inker": 1, "seller": 1}


async def test_many_events_keep_the_order_of_their_stream(any_clock: Clock) -> None:
    """publish_many in order, also over several partitions; all are handled."""
    async with TestBus(inker(), partitions=3) as bus:
        sent = [SketchDrawn(title=f"t{number % 7}", number=number) for number in range(200)]
        entry_ids = await bus.publish_many(sent)
        await bus.settle()
    assert [one.entry_id for one in bus.published(SketchDrawn) if one.event.title == "t3"] == entry_ids[3::7]
    assert sorted(one.event.number for one in bus.published(SketchInked)) == list(range(200))


async def test_backoffs_pass_in_virtual_time(any_clock: Clock) -> None:
    """Three failures with backoffs of up to a minute are waited for, and each attempt is written down."""
    event = SketchDrawn(title="cat")
    async with TestBus(failing(3, retry=Backoff(attempts=4, base=60, cap=60))) as bus:
        await bus.publish(event)
        await bus.settle()
        passed = trio.current_time()
    attempts = bus.attempts(event)
    assert [attempt.number for attempt in attempts] == [1, 2, 3, 4]
    assert [str(attempt.error) for attempt in attempts[:3]] == ["attempt 1", "attempt 2", "attempt 3"]
    assert attempts[3].error is None
    assert attempts[3].started <= passed <= attempts[3].started + 2
    assert {(a.group, a.handler.rpartition(".")[2]) for a in attempts} == {("unlucky", "on_drawn")}
    assert len(bus.published(SketchInked)) == 1


def test_an_event_type_is_no_worker() -> None:
    """The first thing that a newcomer hands over is told with what is wanted."""
    for wrong, shown in ((SketchDrawn, "SketchDrawn"), ("seller", "'seller'")):
        with pytest.raises(ContractError, match=f"TestBus runs workers, not {shown}: "):
            TestBus(wrong)  # type: ignore[arg-type]


@in_virtual_time
async def test_a_type_that_nobody_has() -> None:
    """What a test misspells must not pass as "there is none"."""
    async with TestBus() as bus:
        assert bus.published("sketch.drawn") == []
        with pytest.raises(
            ContractError, match=r"no event type 'sketch.drwan' is declared; did you mean sketch.drawn\?"
        ):
            bus.published("sketch.drwan")


async def test_looking_for_what_is_no_event_is_refused(any_clock: Clock) -> None:
    """`attempts(SketchDrawn) == []` would pass for ever, too."""
    async with TestBus(inker()) as bus:
        for wrong in (SketchDrawn, "sketch.drawn", 5):
            with pytest.raises(ContractError, match="an event, what `published` gave, or an id is wanted"):
                bus.attempts(wrong)  # type: ignore[arg-type]
        with pytest.raises(ContractError, match="an event class or the name of a type is wanted"):
            bus.published(5)  # type: ignore[call-overload]


async def test_looking_at_a_worker_that_is_not_there_is_refused(any_clock: Clock) -> None:
    """A misspelt name would let `dead_letters(...) == []` pass for ever: it is told, with the names that there are."""
    strict, lucky = Worker("strict"), Worker("lucky")
    for worker in (strict, lucky):

        @worker.on(SketchDrawn)
        async def look(event: SketchDrawn) -> None: ...

    async with TestBus(strict, lucky) as bus:
        for ask in (bus.dead_letters, lambda group: bus.attempts(group=group)):
            with pytest.raises(
                ContractError, match=r"no worker 'strct' on .*did you mean strict. there are lucky, strict"
            ):
                ask("strct")
            assert ask("strict") == []


async def test_dead_letters_bring_the_event_and_the_reason(any_clock: Clock) -> None:
    """exhausted and rejected, with the original event, by group or all; handler.failed is among the published."""
    strict = Worker("strict")

    @strict.on(SketchDrawn)
    async def refuse(event: SketchDrawn) -> None:
        raise Reject("no cats")

    event = SketchDrawn(title="cat")
    async with TestBus(failing(9, retry=Backoff(attempts=2)), strict) as bus:
        await bus.publish(event)
        await bus.settle()
    (rejected,), (exhausted,) = bus.dead_letters("strict"), bus.dead_letters("unlucky")
    assert (rejected.reason, rejected.event, rejected.attempts) == ("rejected", event, 1)
    assert (exhausted.reason, exhausted.error, exhausted.attempts) == ("exhausted", "ValueError: attempt 2", 2)
    assert exhausted.envelope == rejected.envelope == bus.published(SketchDrawn)[0].envelope
    assert "no cats" in rejected.record.traceback
    assert {letter.group for letter in bus.dead_letters()} == {"strict", "unlucky"}
    assert [one.event.reason for one in bus.published("handler.failed")] == ["rejected", "exhausted"]
    assert all(one.cause.event == event for one in bus.published("handler.failed"))


async def test_what_was_given_up_goes_back_to_work(any_clock: Clock) -> None:
    """After the repair `redrive` gives the events back to the group that gave them up; settling waits for them, too."""
    broken = True
    worker = Worker("mended")

    @worker.on(SketchDrawn, retry=Backoff(attempts=1))
    async def ink(event: SketchDrawn) -> SketchInked:
        if broken:
            raise ValueError("no ink")
        return SketchInked(title=event.title)

    async with TestBus(worker, inker()) as bus:
        await bus.publish_many([SketchDrawn(title="cat"), SketchDrawn(title="dog")])
        await bus.settle()
        assert len(bus.dead_letters("mended")) == 2
        broken = False
        assert bus.redrive(worker) == 2
        await bus.settle()
        assert bus.redrive("mended") == 0
    assert bus.dead_letters() == []
    by_mended = [one for one in bus.published(SketchInked) if one.envelope.source == "mended"]
    assert [(one.event.title, one.cause.event.title) for one in by_mended] == [("cat", "cat"), ("dog", "dog")]
    assert len(bus.attempts(group="inker")) == 2


async def test_what_cannot_be_read_is_a_dead_letter_without_an_event(any_clock: Clock) -> None:
    """Foreign bytes on a stream are no published event; the dead letter has them."""
    async with TestBus(inker()) as bus:
        link = BlockingLink(open_server(bus.url))
        link.call("XADD", "{canvasbus:0}:stream:sketch.drawn", "*", "e", b"\xc1 no event")
        await bus.settle()
    (letter,) = bus.dead_letters()
    assert (letter.reason, letter.event, letter.envelope) == ("undecodable", None, None)
    assert letter.record.fields == (b"e", b"\xc1 no event")
    assert bus.published(SketchDrawn) == []


async def test_a_doubled_entry_is_seen_twice(any_clock: Clock) -> None:
    """`published` shows what lies on the stream, not what should."""
    async with TestBus() as bus:
        await bus.publish(SketchDrawn())
        link = BlockingLink(open_server(bus.url))
        ((_, fields),) = link.call("XRANGE", "{canvasbus:0}:stream:sketch.drawn", "-", "+")
        link.call("XADD", "{canvasbus:0}:stream:sketch.drawn", "*", *fields)
    first, second = bus.published(SketchDrawn)
    assert first.id == second.id
    assert first.entry_id != second.entry_id


async def test_batches_are_attempts_of_each_event(any_clock: Clock) -> None:
    """A batch handler: positions that fail run again, the others are done, derived events know their parent."""
    worker = Worker("printer")
    sizes = []

    @worker.on_batch(SketchDrawn, max_size=10, max_wait=0.5, retry=Backoff(attempts=2))
    async def print_all(events: list[SketchDrawn], ctxs: list[Context]) -> None:
        sizes.append(len(events))
        bad = {i: ValueError("smudged") for i, ctx in enumerate(ctxs) if events[i].number == 1 and ctx.attempt == 1}
        raise BatchFailure(bad, [(i, SketchInked(number=e.number)) for i, e in enumerate(events) if i not in bad])

    async with TestBus(worker) as bus:
        events = [SketchDrawn(number=number) for number in range(4)]
        await bus.publish_many(events)
        await bus.settle()
    assert sizes == [4, 1]
    assert [len(bus.attempts(event)) for event in events] == [1, 2, 1, 1]
    assert sorted((one.event.number, one.cause.event.number) for one in bus.published(SketchInked)) == [
        (number, number) for number in range(4)
    ]


async def test_time_stands_still_while_a_plain_handler_runs(any_clock: Clock) -> None:
    """Two plain handlers that wait for each other meet, and no virtual second has passed meanwhile, timeouts included."""
    together = threading.Barrier(2, timeout=10)
    worker = Worker("duet")

    @worker.on(SketchDrawn, timeout=0.001, concurrency=2, retry=Backoff(attempts=1))
    def play(event: SketchDrawn) -> SketchInked:
        together.wait()
        return SketchInked(title=event.title)

    async with TestBus(worker) as bus:
        await bus.publish_many([SketchDrawn(), SketchDrawn()])
        await bus.settle()
        assert trio.current_time() == 0
    assert len(bus.published(SketchInked)) == 2
    assert bus.statistics()["duet"].timeouts == 0


async def test_an_async_handler_meets_its_timeout(any_clock: Clock) -> None:
    """A handler that waits longer than it may is cut off at its timeout, as often as it may try, and given up."""
    worker = Worker("slow")

    @worker.on(SketchDrawn, timeout=20, retry=Backoff(attempts=2, base=0))
    async def wait(event: SketchDrawn) -> None:
        await trio.sleep(1000)

    async with TestBus(worker) as bus:
        await bus.publish(SketchDrawn())
        await bus.settle()
    assert [type(attempt.error) for attempt in bus.attempts()] == [HandlerTimeout, HandlerTimeout]
    assert [round(attempt.seconds) for attempt in bus.attempts()] == [20, 20]
    assert [letter.reason for letter in bus.dead_letters()] == ["exhausted"]


async def test_a_handler_that_is_never_done_is_told(any_clock: Clock) -> None:
    """After the horizon NotSettled lists what waits, with how often it ran and what it said last, and what runs."""
    worker = Worker("patient")

    @worker.on(SketchDrawn)
    async def later(event: SketchDrawn) -> None:
        raise RetryLater(after=30, reason="the ink is wet")

    @worker.on(SketchInked, timeout=10_000)
    async def sit(event: SketchInked) -> None:
        await trio.sleep(9_000)

    async with TestBus(worker) as bus:
        await bus.publish(SketchDrawn(title="cat"))
        await bus.publish(SketchInked(title="dog"))
        with pytest.raises(NotSettled) as told:
            await bus.settle(limit=100)
    said = str(told.value)
    assert said.startswith("after 100 s of virtual time this is left to do:")
    assert "title='cat'" in said
    assert "it has run 4 times, and at last raised RetryLater: the ink is wet" in said
    assert "title='dog'" in said
    assert "sit for 100 s" in said


async def test_events_that_cause_each_other_are_told(any_clock: Clock) -> None:
    """A circle of events ends by real time, and the error names them with their numbers."""
    worker = Worker("circle")

    @worker.on(SketchDrawn)
    async def ink(event: SketchDrawn) -> SketchInked:
        return SketchInked()

    @worker.on(SketchInked)
    async def draw(event: SketchInked) -> list[SketchDrawn]:
        return [SketchDrawn() for _ in range(100)]

    async with TestBus(worker) as bus:
        await bus.publish(SketchDrawn())
        with pytest.raises(NotSettled, match=r"0.5 s of real time(.|\n)*× sketch.(.|\n)*do they cause each other"):
            await bus.settle(real_seconds=0.5)


async def test_a_plain_handler_that_does_not_return_is_told(any_clock: Clock) -> None:
    """A thread cannot be jumped over; after some real time the error says in which handler it is."""
    released = threading.Event()
    worker = Worker("stubborn")

    @worker.on(SketchDrawn)
    def sit(event: SketchDrawn) -> None:
        released.wait(20)

    try:
        async with TestBus(worker) as bus:
            await bus.publish(SketchDrawn())
            with pytest.raises(NotSettled, match=r"0.1 s of real time(.|\n)*runs in .*sit for 0 s"):
                await bus.settle(real_seconds=0.1)
    finally:
        released.set()


async def test_only_twenty_are_listed(any_clock: Clock) -> None:
    """A long list is cut, and says how much is missing."""
    worker = Worker("patient")

    @worker.on(SketchDrawn)
    async def later(event: SketchDrawn) -> None:
        raise RetryLater(after=30)

    async with TestBus(worker) as bus:
        await bus.publish_many([SketchDrawn() for _ in range(23)])
        with pytest.raises(NotSettled) as told:
            await bus.settle(limit=1)
    assert len(str(told.value).splitlines()) == 22
    assert str(told.value).endswith("and 3 more")


async def test_advancing_stops_exactly_there(any_clock: Clock) -> None:
    """What is due in that time has happened, in order; what is due later has not."""
    started = []
    worker = Worker("patient")

    @worker.on(SketchDrawn)
    async def later(event: SketchDrawn) -> None:
        started.append(trio.current_time())
        raise RetryLater(after=10)

    async with TestBus(worker) as bus:
        await bus.publish(SketchDrawn())
        await bus.advance(35)
        assert trio.current_time() == 35
        assert started == pytest.approx([0, 10, 20, 30])


async def test_wall_time_moves_along(any_clock: Clock) -> None:
    """`start` is where the wall clock begins; events are dated by it; expired ones are skipped."""
    start = datetime(2030, 5, 1, 12, tzinfo=UTC)
    async with TestBus(inker(), start=start) as bus:
        assert clock.now() == start
        await bus.advance(90)
        event = SketchDrawn()
        bus.outage(60)
        await bus.publish(event, expires_in=5)
        await bus.settle()
    assert event.occurred_on == start + timedelta(seconds=90)
    assert bus.attempts() == []
    assert len(bus.published(SketchDrawn)) == 1


async def test_a_clock_that_moves_by_itself_goes_on_doing_so(autojump_clock: Clock) -> None:
    """Sleeping in the test works, and the bus works meanwhile; afterwards the clock is as it was."""
    async with TestBus(failing(1, retry=Backoff(base=5, cap=5))) as bus:
        await bus.publish(SketchDrawn())
        await trio.sleep(30)
        assert len(bus.published(SketchInked)) == 1
        assert trio.current_time() == 30
    assert autojump_clock.autojump_threshold == 0
    await trio.sleep(1000)


async def test_a_producer_in_a_thread_reaches_the_bus(any_clock: Clock) -> None:
    """Code under test makes its own Producer on `bus.url`."""
    async with TestBus(inker()) as bus:

        def train() -> None:
            with Producer(bus.url, source="trainer") as producer:
                producer.publish(SketchDrawn(title="from a thread"))
                assert producer.flush(timeout=10)

        await trio.to_thread.run_sync(train)
        await bus.settle()
    (inked,) = bus.published(SketchInked)
    assert inked.cause is not None
    assert (inked.event.title, inked.cause.envelope.source) == ("from a thread", "trainer")


async def test_losses_are_seen(any_clock: Clock) -> None:
    """Somebody deletes the group of a worker: bus.loss is among the losses."""
    async with TestBus(inker()) as bus:
        await bus.publish(SketchDrawn())
        await bus.settle()
        assert bus.losses == []
        BlockingLink(open_server(bus.url)).call("XGROUP", "DESTROY", "{canvasbus:0}:stream:sketch.drawn", "inker")
        await bus.publish(SketchDrawn())
        await bus.settle()
    (loss,) = bus.losses
    assert (loss.group, loss.reason) == ("inker", "group_recreated")
    assert len(bus.published(SketchInked)) == 2


async def test_globs_find_topics_that_come_later(any_clock: Clock) -> None:
    """Settling waits until a glob has found the new topic and its first event is handled."""
    seen = []
    worker = Worker("archive")

    @worker.on("sketch.*")
    async def keep(event: Any) -> None:
        seen.append(event)

    async with TestBus(worker) as bus:
        await bus.publish(SketchSold(title="first of its kind"))
        await bus.settle()
    assert [event.title for event in seen] == ["first of its kind"]


async def test_two_buses_in_one_test(any_clock: Clock) -> None:
    """Each has a server of its own, the time is one; afterwards canvasbus' clock is the one that it was."""
    before = clock.current()
    async with TestBus(inker()) as first:
        async with TestBus(inker()) as second:
            await first.publish(SketchDrawn(title="a"))
            await second.publish(SketchDrawn(title="b"))
            await first.settle()
            await second.settle()
        await first.advance(5)
    assert trio.current_time() < 10
    assert [one.event.title for one in first.published()] == ["a", "a"]
    assert [one.event.title for one in second.published()] == ["b", "b"]
    assert clock.current() is before


async def test_the_worker_stays_as_it_is(any_clock: Clock) -> None:
    """What is run is a copy: the same worker serves in any number of tests, and in production."""
    worker = inker()
    handlers = list(worker.handlers)
    for _ in range(2):
        async with TestBus(worker) as bus:
            await bus.publish(SketchDrawn())
            await bus.settle()
        assert len(bus.published(SketchInked)) == 1
    assert worker.handlers == handlers


async def test_leaving_waits_for_nothing(any_clock: Clock) -> None:
    """A block that ends while handlers run and retries wait is left at once."""
    worker = Worker("slow")

    @worker.on(SketchDrawn)
    async def wait(event: SketchDrawn) -> None:
        await trio.sleep(50)

    async with TestBus(worker) as bus:
        await bus.publish(SketchDrawn())
        await bus.advance(1)
        assert bus.statistics()["slow"].running == 1
    assert trio.current_time() < 2
    assert len(bus.attempts()) == 1


async def test_errors_of_the_test_come_out_as_they_are(any_clock: Clock) -> None:
    """A failed assertion in the block is no group of exceptions; nor is an error of publish."""
    with pytest.raises(AssertionError, match=r"^my own$"):
        async with TestBus(inker()) as bus:
            raise AssertionError("my own")
    with pytest.RaisesGroup(AssertionError):
        async with TestBus(inker()):
            raise ExceptionGroup("mine", [AssertionError()])
    with pytest.raises(EncodeError):
        async with TestBus(inker()) as bus:
            await bus.publish("no event")  # type: ignore[arg-type]


async def test_what_goes_wrong_in_a_worker_comes_out_of_the_block(any_clock: Clock) -> None:
    """A worker that cannot run ends the block with its error, not with a group of groups."""
    server = open_server("memory://ruined")
    BlockingLink(server).call("SET", "{canvasbus:0}:stream:sketch.drawn", "no stream")
    with pytest.raises(Refused, match=r"sketch\.drawn"):
        async with TestBus(inker(), url="memory://ruined"):
            pass
    fine = Worker("fine")

    @fine.on(SketchInked)
    async def nothing(event: SketchInked) -> None: ...

    @fine.lifespan
    @asynccontextmanager
    async def open_for_ten_seconds() -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:

            async def burst() -> None:
                await trio.sleep(10)
                raise OSError("the gallery burns")

            nursery.start_soon(burst)
            yield
            nursery.cancel_scope.cancel()

    with pytest.raises(Exception, match="fine") as told:
        async with TestBus(fine) as bus:
            await bus.advance(20)
    assert not isinstance(told.value, ExceptionGroup)


def test_without_virtual_time_it_says_what_to_do() -> None:
    """On a real clock: one line with the three ways out."""

    async def main() -> None:
        async with TestBus(inker()):
            pass

    with pytest.raises(ContractError, match=r"in_virtual_time.*autojump_clock.*MockClock"):
        trio.run(main)


def test_without_trio_it_says_so() -> None:
    """Under asyncio neither a TestBus nor an EventBus can be entered, which is told in words of canvasbus."""

    async def main(bus: EventBus | TestBus) -> None:
        async with bus:
            pass

    for bus in (TestBus(inker()), EventBus("memory://")):
        with pytest.raises(ContractError, match="lives in trio"):
            asyncio.run(main(bus))


def test_the_decorator_needs_no_pytest_trio() -> None:
    """in_virtual_time runs an async function to its end, passes arguments and results, and moves the clock."""

    @in_virtual_time
    async def main(title: str, *, number: int) -> list[str]:
        async with TestBus(inker()) as bus:
            await trio.sleep(100)
            await bus.publish(SketchDrawn(title=title, number=number))
            await bus.settle()
        return [f"{one.event.title} {one.event.number}" for one in bus.published(SketchInked)]

    assert main("cat", number=5) == ["cat 5"]
    assert main.__name__ == "main"


async def test_misuse_is_told(any_clock: Clock) -> None:
    """Entering twice, publishing outside, two settles at once, two workers of one name, another kind of server."""
    bus = TestBus(inker())
    with pytest.raises(ContractError, match="inside the block"):
        await bus.publish(SketchDrawn())
    async with bus:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bus.advance, 10)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(ContractError, match="one task at a time"):
                await bus.settle()
    with pytest.raises(ContractError, match="lives once"):
        await bus.__aenter__()
    with pytest.raises(ContractError, match="several workers are named 'inker'"):
        TestBus(inker(), inker())
    with pytest.raises(ConfigError, match="not on redis://localhost"):
        TestBus(url="redis://localhost")
    assert repr(bus).startswith("<TestBus memory://testbus-")
    for other in (bus, TestBus(inker())):  # one that has ended, one that was not entered
        for early in (other.settle, partial(other.advance, 1.0), partial(other.crash, "inker")):
            with pytest.raises(ContractError, match="inside the block"):
                await early()
        with pytest.raises(ContractError, match="inside the block"):
            other.outage(1.0)
    for seconds in (-1.0, math.nan, "1"):
        with pytest.raises(ContractError, match="number"):
            await bus.advance(seconds)  # type: ignore[arg-type]
