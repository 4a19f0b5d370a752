"""Events that come later: on time, once, replaced and cancelled by name, over lost replies and dead processes."""

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog.testing
import trio
import trio.testing
from faulty import Fault, FaultyServer
from studio import Eyes, PaintingFramed, PaintingMade, SculptureMade, quiet, running
from waiting import until

from canvasbus import ContractError, EncodeError, Producer, clock
from canvasbus.bus import EventBus
from canvasbus.consume import maintain
from canvasbus.transport.connect import open_server
from canvasbus.transport.memory import MemoryServer
from canvasbus.transport.settle_script import SETTLE
from canvasbus.transport.timer_scripts import DUE, FIRE
from canvasbus.wire.codec import MAX_EVENT_BYTES
from canvasbus.wire.keys import LATER_INBOX
from canvasbus.worker import Backoff, Cancel, Later, Worker

Clock = trio.testing.MockClock


@pytest.fixture(autouse=True)
def _soon(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where time is real, timers are looked for more often: waiting for them is all that these tests would do."""
    if "virtual" not in request.fixturenames:
        monkeypatch.setattr(maintain, "IDLE_SECONDS", 0.05)


def arrivals(name: str = "viewers") -> tuple[Worker, list[tuple[float, Any]]]:
    """A worker that notes when sculptures and frames arrive."""
    worker, seen = Worker(name), []

    @worker.on(SculptureMade, PaintingFramed)
    async def note(event: Any) -> None:
        seen.append((trio.current_time(), event))

    return worker, seen


# --- publishing with a delay ------------------------------------------------------------------------------------------


async def test_what_is_published_with_a_delay_comes_then(virtual: Clock, memory: MemoryServer, namespace: str) -> None:
    """After so many seconds or at a moment, up to a second late and never early; in the order of their times."""
    worker, seen = arrivals()
    async with running(memory, worker, namespace=namespace) as bus:
        begun = trio.current_time()
        assert (await bus.publish(SculptureMade(title="c"), delay=30)).startswith("~")  # type: ignore[union-attr]
        await bus.publish(SculptureMade(title="b"), at=clock.now() + timedelta(seconds=20))
        bus.publish_nowait(SculptureMade(title="a"), delay=0.2)
        await bus.publish(SculptureMade(title="now"))
        await until(lambda: len(seen) == 4, timeout=60)
    assert [event.title for _, event in seen] == ["now", "a", "b", "c"]
    for (when, _), due in zip(seen, (0.0, 0.2, 20.0, 30.0), strict=True):
        assert due <= when - begun <= due + 1.0


async def test_a_moment_that_has_passed_comes_at_once(any_url: str, namespace: str) -> None:
    """An `at` in the past, and no delay at all, are due."""
    worker, seen = arrivals()
    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish(SculptureMade(title="old"), at=datetime(2020, 1, 1, tzinfo=UTC))
        await bus.publish(SculptureMade(title="soon"), delay=0)
        await until(lambda: len(seen) == 2)
    assert {event.title for _, event in seen} == {"old", "soon"}


@pytest.mark.parametrize(
    "options",
    [
        {"delay": -1},
        {"delay": math.nan},
        {"delay": "1"},
        {"at": datetime(2026, 1, 1)},
        {"at": 5},
        {"delay": 1, "at": 1},
    ],
    ids=str,
)
async def test_a_delay_that_is_none_is_an_error(namespace: str, options: dict[str, Any]) -> None:
    """Nothing is published, and the error says what is wrong."""
    async with EventBus("memory://", namespace=namespace) as bus:
        with pytest.raises(ContractError, match="SculptureMade"):
            await bus.publish(SculptureMade(), **options)
        with pytest.raises(ContractError):
            bus.publish_nowait(SculptureMade(), **options)
    with Producer(f"memory://{namespace}") as producer, pytest.raises(ContractError):
        producer.publish(SculptureMade(), **options)


async def test_delayed_events_expire_after_they_were_due(virtual: Clock, memory: MemoryServer, namespace: str) -> None:
    """`expires_in` counts from the moment at which the event comes: the delay does not use it up."""
    worker, seen = arrivals()
    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish(SculptureMade(title="fresh"), delay=60, expires_in=10)
        await until(lambda: seen, timeout=90)


async def test_a_lost_reply_schedules_once(any_url: str, namespace: str, eyes: Eyes) -> None:
    """The transaction ran and its reply is lost, or it never ran: also after the entry has become a timer, each event
    comes exactly once."""
    faulty = FaultyServer(open_server(any_url))
    worker, seen = arrivals()
    async with running(any_url, worker, namespace=namespace), running(faulty, namespace=namespace) as bus:
        for number in range(6):
            faulty.faults.append(Fault("lose_reply" if number % 2 else "lose_request", b"EXEC"))
            await bus.publish(SculptureMade(title=str(number)), delay=0.0)
            await until(lambda number=number: len(seen) > number)
        assert faulty.struck == 6
    assert [event.title for _, event in seen] == list("012345")


def test_a_producer_publishes_with_a_delay(any_url: str, namespace: str) -> None:
    """The threaded door takes the same arguments; what waits is on the server before anybody runs."""
    eyes = Eyes(any_url, namespace)
    with Producer(any_url, namespace=namespace) as producer:
        producer.publish(SculptureMade(title="later"), delay=0.05)
        assert producer.flush(10)
    assert eyes.count("sculpture.made") == 0
    worker, seen = arrivals()

    async def main() -> None:
        async with running(any_url, worker, namespace=namespace):
            await until(lambda: seen)

    trio.run(main)
    assert [event.title for _, event in seen] == ["later"]
    eyes.close()


@pytest.mark.parametrize("due", [b"nan", b"-nan", b"+nan", b"inf", b"1e400", b"0x10", b"+" + b"9" * 400, b"-5", b""])
async def test_what_a_stranger_puts_into_the_inbox(any_url: str, namespace: str, due: bytes) -> None:
    """An entry whose time is none is passed by, and holds up nothing that comes after it."""
    worker, seen = arrivals()
    eyes = Eyes(any_url, namespace)
    async with running(any_url, worker, namespace=namespace) as bus:
        eyes.call("XADD", eyes.keys.stream(LATER_INBOX), "*", "e", due + b"\nsculpture.made\nnobody knows")
        eyes.call("XADD", eyes.keys.stream(LATER_INBOX), "*", due, due)
        await bus.publish(SculptureMade(title="mine"), delay=0.01)
        await until(lambda: len(seen) == 1)
    assert seen[0][1].title == "mine"
    eyes.close()


# --- timers of handlers -----------------------------------------------------------------------------------------------


async def test_a_handler_sets_replaces_and_cancels_timers(virtual: Clock, memory: MemoryServer, namespace: str) -> None:
    """Debounce: the same name starts anew with each event; Cancel removes it; without a name each is its own."""
    worker = Worker("framers")

    @worker.on(PaintingMade)
    async def handle(event: PaintingMade) -> Any:
        if event.title == "cancel":
            return Cancel("debounce")
        if event.title == "each":
            return [Later(SculptureMade(title=f"each {event.number}"), after=5), PaintingFramed(number=event.number)]
        return Later(SculptureMade(title=event.title), after=10, timer="debounce")

    viewer, seen = arrivals()
    async with running(memory, worker, viewer, namespace=namespace) as bus:
        begun = trio.current_time()
        for n in range(4):
            await bus.publish(PaintingMade(title=f"debounced {n}"))
            await trio.sleep(3)
        await until(lambda: seen, timeout=30)
        assert [e.title for _, e in seen] == ["debounced 3"] and 19 <= seen[0][0] - begun <= 20.5
        await bus.publish(PaintingMade(title="never"))
        await trio.sleep(1)
        await bus.publish(PaintingMade(title="cancel"))
        await bus.publish_many([PaintingMade(title="each", number=n) for n in range(3)])
        await trio.sleep(60)
    rest = [e for _, e in seen[1:]]
    assert sorted(e.title for e in rest if isinstance(e, SculptureMade)) == ["each 0", "each 1", "each 2"]
    assert sorted(e.number for e in rest if isinstance(e, PaintingFramed)) == [0, 1, 2]


async def test_a_timer_is_derived_from_its_event(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Cause, correlation and a reproducible id, as with events that are returned."""
    worker = Worker("framers")

    @worker.on(PaintingMade)
    async def handle(event: PaintingMade) -> Later:
        return Later(SculptureMade(title="made later"), at=event.occurred_on)

    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade())
        await until(lambda: eyes.count("sculpture.made"))
    ((parent, cause),) = eyes.entries("painting.made")
    ((envelope, event),) = eyes.entries("sculpture.made")
    assert envelope.causation_id == parent.id and event.correlation_id == cause.correlation_id
    assert envelope.id.version == 5 and envelope.source == "framers"


async def test_a_failed_run_sets_no_timer(virtual: Clock, memory: MemoryServer, namespace: str) -> None:
    """What a handler returned goes with the acknowledgement or not at all: a sibling that cannot be encoded undoes it."""
    worker, runs = Worker("framers"), []

    @worker.on(PaintingMade, retry=Backoff(attempts=3, base=0.01))
    async def handle(event: PaintingMade) -> Any:
        runs.append(event)
        wrong: Any = SculptureMade(title=7) if len(runs) < 3 else SculptureMade(title="right")  # type: ignore[arg-type]
        return [Later(PaintingFramed(title="later"), after=1), wrong]

    viewer, seen = arrivals()
    async with running(memory, worker, viewer, namespace=namespace) as bus:
        await bus.publish(PaintingMade())
        await trio.sleep(30)
    assert len(runs) == 3
    assert sorted(e.title for _, e in seen) == ["later", "right"]


@pytest.mark.parametrize("script", [SETTLE, DUE, FIRE], ids=lambda s: s.name)
@pytest.mark.parametrize("kind", ["lose_reply", "lose_request"])
async def test_lost_replies_neither_lose_nor_double_a_timer(
    any_url: str, namespace: str, eyes: Eyes, script: Any, kind: Any
) -> None:
    """Setting, finding and firing are each repeated safely."""
    faulty = FaultyServer(open_server(any_url))
    worker = Worker("framers")

    @worker.on(PaintingMade)
    async def handle(event: PaintingMade) -> Later:
        return Later(PaintingFramed(number=event.number), after=0.01)

    async with running(faulty, worker, namespace=namespace) as bus:
        for number in range(4):
            faulty.faults.append(Fault(kind, script.sha.encode()))
            await bus.publish(PaintingMade(number=number))
            await until(lambda number=number: eyes.count("painting.framed") > number)
            await until(lambda: not faulty.faults)
        await quiet(eyes)
    assert [e.number for e in eyes.events("painting.framed")] == [0, 1, 2, 3]


async def test_many_buses_fire_each_timer_once(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Three maintainers that all believe to hold the lease."""
    worker = Worker("framers")

    @worker.on(PaintingMade)
    async def handle(event: PaintingMade) -> Later:
        return Later(PaintingFramed(number=event.number), after=0.05)

    async with (
        running(any_url, worker, namespace=namespace) as bus,
        running(any_url, namespace=namespace),
        running(any_url, namespace=namespace),
        trio.open_nursery() as nursery,
    ):

        async def steal() -> None:
            while True:
                eyes.call("DEL", eyes.keys.maintainer)
                await trio.sleep(0.002)

        nursery.start_soon(steal)
        await bus.publish_many([PaintingMade(number=n) for n in range(700)])
        await until(lambda: eyes.count("painting.framed") >= 700)
        await until(lambda: eyes.call("ZCARD", eyes.keys.timers) == eyes.call("HLEN", eyes.keys.timer_bodies) == 0)
        nursery.cancel_scope.cancel()
    assert sorted(e.number for e in eyes.events("painting.framed")) == list(range(700))


async def test_who_leaves_lets_others_fire(virtual: Clock, memory: MemoryServer, namespace: str) -> None:
    """As in a rolling restart: the bus that sees to the timers leaves right before some are due, and they come up to a
    second late all the same."""
    (worker, seen), leave = arrivals(), trio.Event()

    async def first() -> None:
        async with running(memory, namespace=namespace):
            await leave.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(first)
        await trio.sleep(1)
        async with running(memory, worker, namespace=namespace) as bus:
            begun = trio.current_time()
            for due in range(1, 9):
                await bus.publish(SculptureMade(title=str(due)), delay=due)
            await trio.sleep(2.9)
            leave.set()
            await until(lambda: len(seen) == 8, timeout=20)
    for (when, _), due in zip(seen, range(1, 9), strict=True):
        assert due <= when - begun <= due + 1.1


async def test_a_stream_that_refuses_holds_up_no_other_timer(
    virtual: Clock, memory: MemoryServer, namespace: str
) -> None:
    """A key that is no stream: its timers wait a minute and are told, others come; mended, they come too."""
    eyes = Eyes(memory, namespace)
    eyes.call("SET", eyes.stream("painting.framed"), "no stream")
    with structlog.testing.capture_logs() as logs:
        async with running(memory, namespace=namespace) as bus:
            await bus.publish(PaintingFramed(title="stuck"), delay=1)
            await bus.publish(SculptureMade(title="free"), delay=1)
            await until(lambda: eyes.count("sculpture.made"), timeout=5)
            assert any("a timer cannot be published" in log["event"] for log in logs)
            eyes.call("DEL", eyes.stream("painting.framed"))
            await until(lambda: eyes.count("painting.framed"), timeout=70)
    eyes.close()


async def test_a_foreign_writer_holds_up_no_timer(any_url: str, namespace: str, eyes: Eyes) -> None:
    """What somebody else puts into the inbox and cannot be published waits a minute, is told, and others come; nobody
    asks for it again and again."""
    for value in (b"0\nno type at all", b"0\n", b"0\n\nno name", b"0", b"", b"soon\nsculpture.made\nx"):
        eyes.put(value, LATER_INBOX)
    worker, seen = arrivals()
    with structlog.testing.capture_logs() as logs:
        async with running(any_url, worker, namespace=namespace) as bus:
            await bus.publish(SculptureMade(title="ours"), delay=0)
            await until(lambda: seen)
            await until(lambda: eyes.call("ZCARD", eyes.keys.timers) == 3)
            seconds = int(eyes.call("TIME")[0])
            due = eyes.call("ZRANGE", eyes.keys.timers, 0, -1, "WITHSCORES")[1::2]
            assert all(float(at) / 1000 > seconds + 30 for at in due)
    assert len([log for log in logs if "a timer cannot be published" in log["event"]]) == 3
    assert b"" not in eyes.call("SMEMBERS", eyes.keys.topics)


async def test_no_timer_comes_twice_while_something_else_lies_where_the_topics_are_listed(
    any_url: str, namespace: str, eyes: Eyes
) -> None:
    """Nothing is published until that is mended, rather than the same event at every look."""
    eyes.call("ZADD", eyes.keys.timers, 1, "t")
    eyes.call("HSET", eyes.keys.timer_bodies, "t", b"sculpture.made\n" + b'{"type":"sculpture.made","data":{}}')
    eyes.call("RPUSH", eyes.keys.topics, "x")
    with structlog.testing.capture_logs() as logs:
        async with running(any_url, namespace=namespace):
            await until(lambda: any("maintaining the namespace fails" in log["event"] for log in logs))
            assert eyes.call("EXISTS", eyes.stream("sculpture.made")) == 0
            eyes.call("DEL", eyes.keys.topics)
            await until(lambda: eyes.call("ZCARD", eyes.keys.timers) == 0)
    assert eyes.count("sculpture.made") == 1


async def test_what_came_late_comes_once_whatever_else_is_deleted(any_url: str, namespace: str, eyes: Eyes) -> None:
    """How far the inbox has been read goes and comes with it: of all other keys none brings back what has come."""
    async with running(any_url, namespace=namespace) as bus:
        await bus.publish(SculptureMade(title="a"), delay=0)
        await until(lambda: eyes.count("sculpture.made") == 1)
        keep = {eyes.stream("sculpture.made"), eyes.stream(LATER_INBOX)}
        others = set(eyes.call("KEYS", f"{{{namespace}:0}}:*")) - keep
        eyes.call("DEL", *others)
        await bus.publish(SculptureMade(title="b"), delay=0)
        await until(lambda: eyes.count("sculpture.made") > 1)
    assert [event.title for event in eyes.events("sculpture.made")] == ["a", "b"]


async def test_a_delay_is_no_longer_after_the_servers_clock_was_ahead(any_url: str, namespace: str, eyes: Eyes) -> None:
    """The clock was an hour ahead and is right again: entries go on getting ids of then, and what is published with a
    delay comes after that delay, not in an hour."""
    ahead = int(eyes.call("TIME")[0]) + 3600
    envelope = b'{"type":"sculpture.made","data":{"title":"a"}}'
    eyes.call("XADD", eyes.stream(LATER_INBOX), f"{ahead}000-0", "e", b"+10\nsculpture.made\n" + envelope)
    async with running(any_url, namespace=namespace) as bus:
        await bus.publish(SculptureMade(title="b"), delay=0.01)
        await until(lambda: eyes.call("EXISTS", eyes.stream("sculpture.made")) and eyes.count("sculpture.made") == 2)
    assert {event.title for event in eyes.events("sculpture.made")} == {"a", "b"}


async def test_what_waited_long_in_the_inbox_comes(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Producers alone were there for hours, and published more with a delay than is sorted in one step."""
    begun = int(eyes.call("TIME")[0]) * 1000 - 2 * maintain.INBOX_MS
    for n in range(2 * maintain.AT_ONCE + 1):
        envelope = b'{"type":"sculpture.made","data":{"title":"%d"}}' % n
        eyes.call("XADD", eyes.stream(LATER_INBOX), f"{begun + n}-0", "e", b"+10\nsculpture.made\n" + envelope)
    async with running(any_url, namespace=namespace):
        await until(lambda: eyes.count("sculpture.made") == 2 * maintain.AT_ONCE + 1)
    assert eyes.count(LATER_INBOX) <= 1


async def test_a_short_delay_behind_thousands_of_long_ones(any_url: str, namespace: str, eyes: Eyes) -> None:
    """It comes on time: what is in the inbox is sorted step by step without a pause, and not five hundred a look."""
    async with running(any_url, namespace=namespace) as bus:
        await until(lambda: eyes.call("EXISTS", eyes.keys.maintainer))
        for _ in range(10 * maintain.AT_ONCE):
            bus.publish_nowait(SculptureMade(title="far"), delay=3600)
        await bus.publish(SculptureMade(title="near"), delay=0.1)
        await until(lambda: eyes.call("EXISTS", eyes.stream("sculpture.made")), timeout=2.5)
    assert [event.title for event in eyes.events("sculpture.made")] == ["near"]


def test_many_large_ones_go_in_small_steps(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Five hundred of a megabyte in one step would keep the server from everybody else for seconds."""
    keys = [eyes.keys.timers, eyes.keys.timer_bodies, eyes.stream(LATER_INBOX)]
    for _ in range(24):
        eyes.put(b"0\nsculpture.made\n" + bytes(MAX_EVENT_BYTES), LATER_INBOX)
    steps = []
    for _ in range(9):
        coming, _, *due = eyes.run(DUE.call(keys, [500, 3600_000, "~timers"]))
        steps.append((coming, eyes.call("ZCARD", keys[0]), len(due) // 2))
        for timer in due[1::2]:
            eyes.call("ZREM", keys[0], timer)
            eyes.call("HDEL", keys[1], timer)
    assert sum(fired for *_, fired in steps) == 24 and max(lying for _, lying, _ in steps) <= 8
    assert steps[0][0] == 0 and steps[-1] == (-1, 0, 0)


async def test_timers_whose_events_somebody_has_deleted_are_told(any_url: str, namespace: str, eyes: Eyes) -> None:
    """They cannot come any more; bus.loss says so, and how many they were."""
    eyes.call("ZADD", eyes.keys.timers, 1, "a", 2, "b")
    async with running(any_url, namespace=namespace):
        await until(lambda: eyes.count("bus.loss"))
    (loss,) = eyes.events("bus.loss")
    assert (loss.reason, loss.lost) == ("timer_gone", 2) and "2 events for later will not come" in loss.detail


async def test_timers_that_somebody_has_deleted_are_put_back(any_url: str, namespace: str, eyes: Eyes) -> None:
    """What they carry says when they are due: each comes once, at its time, those that a handler set and those that were
    published with a delay. Of one that does not say it bus.loss tells."""
    worker, seen = arrivals()

    @worker.on(PaintingMade)
    async def remind(event: PaintingMade) -> list[Later]:
        return [Later(SculptureMade(title="set"), after=3600, timer="t"), Later(SculptureMade(title="soon"), after=2)]

    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade())
        await bus.publish(SculptureMade(title="delayed"), delay=1800)
        await bus.publish(SculptureMade(title="later"), delay=2)
        await until(lambda: eyes.call("ZCARD", eyes.keys.timers) == 4)
        due = eyes.call("ZRANGE", eyes.keys.timers, 0, -1, "WITHSCORES")
        eyes.call("HSET", eyes.keys.timer_bodies, "stranger", "sculpture.made\n{}")
        eyes.call("DEL", eyes.keys.timers)
        await until(lambda: eyes.count("bus.loss"))
        assert eyes.call("ZRANGE", eyes.keys.timers, 0, -1, "WITHSCORES") == due
        await until(lambda: len(seen) == 2)
        assert eyes.call("ZCARD", eyes.keys.timers) == eyes.call("HLEN", eyes.keys.timer_bodies) == 2
    assert sorted(event.title for event in eyes.events("sculpture.made")) == ["later", "soon"]
    (loss,) = eyes.events("bus.loss")
    assert (loss.reason, loss.lost) == ("timer_gone", 1) and "when they are due is no longer in" in loss.detail


async def test_many_deleted_timers_are_put_back_page_by_page(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Also while others are set and cancelled."""
    for start in range(0, 3000, 500):
        pairs = [
            part for n in range(start, start + 500) for part in (f"t{n}", f"sculpture.made {9 * 10**12 + n}\n{{}}")
        ]
        eyes.call("HSET", eyes.keys.timer_bodies, *pairs)
    eyes.call("ZADD", eyes.keys.timers, 9 * 10**12, "t0")
    async with running(any_url, namespace=namespace):
        await until(lambda: eyes.call("ZCARD", eyes.keys.timers) == 3000)
    assert float(eyes.call("ZSCORE", eyes.keys.timers, "t2999")) == 9 * 10**12 + 2999


async def test_bodies_of_timers_that_somebody_has_deleted_are_told_at_once(
    any_url: str, namespace: str, eyes: Eyes
) -> None:
    """Not only when they are due, which may be in a year; those that are left come."""
    worker, seen = arrivals()
    async with running(any_url, worker, namespace=namespace) as bus:
        for delay in (3600, 7200):
            await bus.publish(SculptureMade(title="gone"), delay=delay)
        await until(lambda: eyes.call("ZCARD", eyes.keys.timers) == 2)
        eyes.call("DEL", eyes.keys.timer_bodies)
        await bus.publish(SculptureMade(title="comes"), delay=0.5)
        await until(lambda: eyes.count("bus.loss") and seen)
        await until(lambda: eyes.call("ZCARD", eyes.keys.timers) == 0)
    assert [(loss.reason, loss.lost) for loss in eyes.events("bus.loss")] == [("timer_gone", 2)]


async def test_a_lease_that_somebody_has_written_by_hand_ends(
    virtual: Clock, memory: MemoryServer, namespace: str
) -> None:
    """A name or another kind of value, without an end: somebody does the work again within seconds."""
    worker, seen = arrivals()
    eyes = Eyes(memory, namespace)
    for write in (("SET", eyes.keys.maintainer, "nobody"), ("RPUSH", eyes.keys.maintainer, "x")):
        seen.clear()
        async with running(memory, worker, namespace=namespace) as bus:
            eyes.call("DEL", eyes.keys.maintainer)
            eyes.call(*write)
            await bus.publish(SculptureMade(), delay=0)
            await until(lambda: seen, 10)
    eyes.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Later(SculptureMade()),
        lambda: Later(SculptureMade(), after=1, at=clock.now()),
        lambda: Later(SculptureMade(), after=-1),
        lambda: Later("no event", after=1),  # type: ignore[arg-type]
        lambda: Later(SculptureMade(), after=1, timer=""),
        lambda: Cancel(""),
        lambda: Cancel(7),  # type: ignore[arg-type]
    ],
)
def test_wrong_timers_are_errors_where_they_are_made(make: Any) -> None:
    """In the handler's own traceback."""
    with pytest.raises(ContractError):
        make()


async def test_what_cannot_be_encoded_is_not_scheduled(namespace: str) -> None:
    """The same check as for events that go at once."""
    async with EventBus("memory://", namespace=namespace) as bus:
        with pytest.raises(EncodeError):
            await bus.publish(SculptureMade(title=7), delay=5)  # type: ignore[arg-type]
