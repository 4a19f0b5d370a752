"""Groups that are lost, streams that are replaced or cut by hand: what goes on where, and what is told."""

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog.testing
import trio
from faulty import FaultyServer
from servers import ServerProcess, binaries
from studio import Eyes, PaintingFramed, PaintingMade, SculptureMade, quiet, running, subscription_of
from trio.abc import Clock
from waiting import until

from canvasbus import Event, event
from canvasbus.bus import EventBus
from canvasbus.consume import membership
from canvasbus.consume.membership import gone_unread
from canvasbus.transport.connect import open_server
from canvasbus.transport.group_scripts import HOLD
from canvasbus.transport.memory import MemoryServer
from canvasbus.worker import Worker


@event("painting.stored")
class PaintingStored(Event):
    pass


def framing(**options: Any) -> Worker:
    worker = Worker("framers")

    @worker.on(PaintingMade, **options)
    async def frame(event: PaintingMade) -> PaintingFramed:
        await trio.sleep(0.001)
        return PaintingFramed(number=event.number)

    return worker


class Gate:
    """A worker whose handlers wait until the gate opens."""

    def __init__(self, concurrency: int = 100) -> None:
        self.opened = trio.Event()
        self.seen: list[int] = []
        self.worker = Worker("framers")

        @self.worker.on(PaintingMade, concurrency=concurrency)
        async def frame(event: PaintingMade) -> PaintingFramed:
            self.seen.append(event.number)
            await self.opened.wait()
            return PaintingFramed(number=event.number)


def losses(eyes: Eyes) -> list[tuple[str, str, int | None]]:
    return [(loss.topic, loss.reason, loss.lost) for loss in eyes.events("bus.loss")]


# --- the group is gone ------------------------------------------------------------------------------------------------


async def test_two_busy_workers_lose_their_group(any_url: str, namespace: str, eyes: Eyes) -> None:
    """XGROUP DESTROY while both read and commit: each event is framed once all the same, and it is told once."""
    async with (
        running(any_url, framing(), namespace=namespace) as bus,
        running(any_url, framing(), namespace=namespace),
    ):
        async with trio.open_nursery() as nursery:

            async def publish() -> None:
                for start in range(0, 1500, 10):
                    await bus.publish_many([PaintingMade(number=n) for n in range(start, start + 10)])
                    await trio.sleep(0.01)

            nursery.start_soon(publish)
            await until(lambda: eyes.count("painting.framed") > 300)
            eyes.call("XGROUP", "DESTROY", eyes.stream(), "framers")
        await until(lambda: eyes.count("painting.framed") >= 1500, 20)
        await quiet(eyes)
    assert Counter(e.number for e in eyes.events("painting.framed")) == dict.fromkeys(range(1500), 1)
    assert losses(eyes) == [("painting.made", "group_recreated", None)]


async def test_what_is_held_when_the_group_goes_is_not_forgotten(any_url: str, namespace: str, eyes: Eyes) -> None:
    """It is pending in the new group again, in the name of who holds it, who may then hand it back and leave."""
    gate = Gate()
    async with running(any_url, gate.worker, namespace=namespace, grace=0.01) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(20)])
        await until(lambda: len(gate.seen) == 20)
        before = eyes.pending("framers")
        eyes.call("XGROUP", "DESTROY", eyes.stream(), "framers")
        await until(lambda: eyes.pending("framers") == before)
    async with running(any_url, framing(), namespace=namespace):
        await until(lambda: eyes.count("painting.framed") == 20)
        await quiet(eyes)
    assert sorted(e.number for e in eyes.events("painting.framed")) == list(range(20))


async def test_who_leaves_before_it_has_heard_of_the_new_group_hands_back_what_it_holds(
    any_url: str, namespace: str, eyes: Eyes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker made the group anew, where this one's events are pending no more. Told to leave at that moment, it
    does not take them along."""
    gate, idle = Gate(), Gate()
    async with running(any_url, gate.worker, namespace=namespace, grace=0.0) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(20)])
        await until(lambda: len(gate.seen) == 20)
        async with running(any_url, idle.worker, namespace=namespace) as other:
            subscription = subscription_of(bus)
            subscription.stop()  # so that it hears of it by its reports only
            await subscription.stopped.wait()
            report = subscription.membership.report

            async def none() -> None:
                pass

            monkeypatch.setattr(subscription.membership, "report", none)
            eyes.call("XGROUP", "DESTROY", eyes.stream(), "framers")
            await until(lambda: losses(eyes))
            monkeypatch.setattr(subscription.membership, "report", report)
            await bus.aclose()
            idle.opened.set()
            await until(lambda: eyes.count("painting.framed") == 20)
            assert other.statistics()[0].dead == 0
    assert sorted(e.number for e in eyes.events("painting.framed")) == list(range(20))


async def test_what_is_held_is_pending_again_once(any_url: str, namespace: str, eyes: Eyes) -> None:
    """A worker makes the group anew, and hears of it a second time when it next reports. What was committed in between, and
    only the answer was lost, must not be pending again: its commit is tried again, and would have its effect twice."""
    gate = Gate()
    async with running(any_url, gate.worker, namespace=namespace, grace=0.01) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(3)])
        await until(lambda: len(gate.seen) == 3)
        before = eyes.pending("framers")
        members = subscription_of(bus).membership
        eyes.call("XGROUP", "DESTROY", eyes.stream(), "framers")
        await until(lambda: eyes.pending("framers") == before)
        eyes.call("XACK", eyes.stream(), "framers", before[0][0])
        members._made = -1  # as if it had not been heard of yet
        await members.report()
        await until(lambda: not subscription_of(bus).settler.holding.due)
        assert eyes.pending("framers") == before[1:]


async def test_two_groups_that_are_made_anew_at_once(any_url: str, namespace: str, eyes: Eyes) -> None:
    """While what is held of one is let be pending again, another follows: it has its turn."""
    server, gate = FaultyServer(open_server(any_url)), Gate()
    async with running(server, gate.worker, namespace=namespace, grace=0.01) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(3)])
        await until(lambda: len(gate.seen) == 3)
        before = eyes.pending("framers")
        first, _, last = (entry_id.encode() for entry_id, _, _ in before)
        eyes.call("XACK", eyes.stream(), "framers", *(entry_id for entry_id, _, _ in before))
        settler, topic = subscription_of(bus).settler, subscription_of(bus).topics[eyes.stream()]
        later = [last]

        def meet(data: bytes) -> None:
            if HOLD.sha.encode() in data and later:
                settler.holding.again(topic, later.pop())

        server.on_packet = meet
        settler.holding.again(topic, first)
        await until(lambda: not settler.holding.due)
        assert eyes.pending("framers") == before


async def test_a_group_goes_on_where_the_furthest_of_its_workers_was(any_url: str, namespace: str, eyes: Eyes) -> None:
    """The one that makes it anew has read nothing lately; the other has read all, and is still busy with it. (Alive are
    both: the one that notices first must not begin where only it was.)"""
    gate, idle = Gate(), Gate(concurrency=1)
    async with running(any_url, gate.worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(20)])
        await until(lambda: len(gate.seen) == 20)
        async with running(any_url, idle.worker, namespace=namespace) as other:
            subscription_of(other).topics[eyes.stream()].cursor = b"0-0"
            await until(lambda: len(eyes.call("HKEYS", eyes.keys.beats("framers"))) == 2)
            eyes.call("XGROUP", "DESTROY", eyes.stream(), "framers")
            subscription_of(bus).stop()  # it reads no more, and hears of it by the other way only
            await until(lambda: losses(eyes))
            gate.opened.set()
            idle.opened.set()
            await until(lambda: eyes.count("painting.framed") == 20)
            await quiet(eyes)
    assert sorted(e.number for e in eyes.events("painting.framed")) == list(range(20)) and idle.seen == []


async def test_how_far_a_server_of_the_past_was_read_is_not_noted(any_url: str, namespace: str, eyes: Eyes) -> None:
    """A server that comes back without its last seconds gives those entries out again: should the group be lost then,
    it must not go on behind them."""
    async with running(any_url, framing(), namespace=namespace) as bus:
        subscription = subscription_of(bus)
        topic, cursors = subscription.topics[eyes.stream()], eyes.keys.cursors("framers")
        await until(lambda: subscription.settler.reads_from)
        topic.cursor = b"7-7"
        await subscription.membership.report()
        topic.cursor, subscription.settler.reads_from = b"9-9", "its life before"
        await subscription.membership.report()
        assert eyes.call("HGET", cursors, topic.stream) == b"7-7"


# --- the stream is another one ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["all keys", "the stream"])
async def test_a_new_stream_is_read_from_its_start(any_url: str, namespace: str, eyes: Eyes, what: str) -> None:
    """FLUSHALL or DEL under two workers: what is published at once afterwards is handled once, the loss is told once,
    and as what it is; and all that the namespace needs is written again."""
    async with (
        running(any_url, framing(), namespace=namespace) as bus,
        running(any_url, framing(), namespace=namespace),
    ):
        await bus.publish_many([PaintingMade(number=n) for n in range(100)])
        await until(lambda: eyes.count("painting.framed") == 100)
        await quiet(eyes)
        keys = eyes.keys
        if what == "all keys":
            before = {key: eyes.call("HGETALL", key) for key in (keys.groups, keys.meta)}
            eyes.call("DEL", *eyes.call("KEYS", f"{{{namespace}:0}}:*"))
        else:
            eyes.call("DEL", eyes.stream())
        await bus.publish_many([PaintingMade(number=n) for n in range(100, 200)])
        framed = 200 if what == "the stream" else 100
        await until(lambda: eyes.count("painting.framed") >= framed)
        await until(lambda: losses(eyes) == [("painting.made", "stream_recreated", None)])
        if what == "all keys":
            await until(lambda: {key: eyes.call("HGETALL", key) for key in (keys.groups, keys.meta)} == before)
            topics = {b"painting.made", b"painting.framed", b"bus.loss"}
            await until(lambda: topics <= set(eyes.call("SMEMBERS", keys.topics)))
        await quiet(eyes)
    numbers = Counter(e.number for e in eyes.events("painting.framed"))
    assert numbers == dict.fromkeys(range(200 - framed, 200), 1)
    assert losses(eyes) == [("painting.made", "stream_recreated", None)]


async def test_every_worker_lists_its_topics_anew(virtual: Clock, memory: MemoryServer, namespace: str) -> None:
    """Two versions of a worker side by side, each of which publishes something of its own, when all keys are gone: whichever
    is the first to write down again that the group exists, the topics of both are listed, for retention among others."""
    older, newer, eyes = Worker("framers"), Worker("framers"), Eyes(memory, namespace)
    older.on(SculptureMade)(lambda event: PaintingStored())
    newer.on(PaintingMade)(lambda event: PaintingFramed())

    async def work(bus: EventBus) -> None:
        for made in (PaintingMade(), SculptureMade()):
            await bus.publish(made)
        await until(lambda: eyes.count("painting.framed") == eyes.count("painting.stored") == 1)

    async with running(memory, older, namespace=namespace) as bus, running(memory, newer, namespace=namespace):
        await work(bus)
        eyes.call("FLUSHALL")
        await trio.sleep(5)
        await work(bus)
        assert {b"painting.framed", b"painting.stored"} <= set(eyes.call("SMEMBERS", eyes.keys.topics))
    eyes.close()


async def test_the_log_tells_what_may_be_lost_with_a_group(
    virtual: Clock, memory: MemoryServer, namespace: str
) -> None:
    """A line for each stream, told apart from that of its redriven events, and where to look."""
    eyes = Eyes(memory, namespace)
    eyes.call("SADD", eyes.keys.retries("framers"), "painting.made")
    with structlog.testing.capture_logs() as logs:
        async with running(memory, framing(), namespace=namespace):
            eyes.call("XGROUP", "DESTROY", eyes.stream(), "framers")
            eyes.call("XGROUP", "DESTROY", eyes.keys.retry("framers", "painting.made"), "framers")
            made = "a consumer group was gone and has been made anew"
            told = await until(lambda: [log for log in logs if log["event"] == made][1:] and logs)
    told = [log for log in told if log["event"] == made]
    assert {log["topic"] for log in told} == {"painting.made", "painting.made (its redriven events)"}
    assert all("pending in it may be lost: `canvasbus tail --type bus.loss" in log["what"] for log in told)


async def test_another_kind_of_value_stops_its_own_topic_only(
    server_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody put a string where a stream was: the other topics are read on, and it, too, once the string is gone. (fakeredis raises an AttributeError for such a read.)"""
    monkeypatch.setattr(membership, "AGAIN_SECONDS", 0.2)
    worker, seen, eyes = framing(), [], Eyes(server_url, namespace)

    @worker.on(SculptureMade)
    async def note(event: SculptureMade) -> None:
        seen.append(event.title)

    async with running(server_url, worker, namespace=namespace) as bus:
        eyes.call("SET", eyes.stream(), "a string")
        for title in ("a", "b"):
            await bus.publish(SculptureMade(title=title))
            await until(lambda title=title: title in seen)
        eyes.call("DEL", eyes.stream())
        await bus.publish(PaintingMade(number=1))
        await until(lambda: eyes.count("painting.framed") == 1)
    eyes.close()


# --- entries are gone that nobody read --------------------------------------------------------------------------------


async def test_entries_that_somebody_trims_unread_are_told(any_url: str, namespace: str, eyes: Eyes) -> None:
    """XTRIM by hand over what two full workers have not read yet: once, with the number, and again for the next time."""
    first, second = Gate(concurrency=1), Gate(concurrency=1)
    async with (
        running(any_url, first.worker, namespace=namespace) as bus,
        running(any_url, second.worker, namespace=namespace),
    ):
        await bus.publish_many([PaintingMade(number=n) for n in range(4000)])

        def unread() -> int:
            (row,) = eyes.call("XINFO", "GROUPS", eyes.stream())
            cursor = dict(zip(row[::2], row[1::2], strict=True))[b"last-delivered-id"]
            return len(eyes.call("XRANGE", eyes.stream(), b"(" + cursor, "+"))

        await until(lambda: first.seen and second.seen and unread() < 4000)
        await until(lambda: (noted(eyes) or b"").startswith(b"0 "))
        expected = []
        for left in (1000, 900):
            lost = unread() - left
            eyes.call("XTRIM", eyes.stream(), "MAXLEN", left)
            expected.append(("painting.made", "trimmed_unread", lost))
            await until(lambda: losses(eyes) == expected)
        first.opened.set()
        second.opened.set()
        await until(lambda: unread() == 0, 20)
    assert [loss for loss in losses(eyes) if loss[1] == "trimmed_unread"] == expected


def noted(eyes: Eyes) -> bytes | None:
    """How many entries are known to be gone unread, and whose count that is."""
    note: bytes | None = eyes.call("HGET", eyes.keys.cursors("framers"), b"~gone:" + eyes.stream())
    return note


async def test_who_joins_a_group_that_was_destroyed(any_url: str, namespace: str, eyes: Eyes) -> None:
    """A worker that starts where its group was destroyed meanwhile goes on behind what the group had been given, and that
    is told; it does not begin at the start of the stream once more. After `forget`, which takes the note along, it does."""
    async with running(any_url, framing(), namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(20)])
        await quiet(eyes)
        last = eyes.call("XREVRANGE", eyes.stream(), "+", "-", "COUNT", 1)[0][0]
        await until(lambda: eyes.call("HGET", eyes.keys.cursors("framers"), eyes.stream()) == last)
    eyes.call("XGROUP", "DESTROY", eyes.stream(), "framers")
    async with running(any_url, framing(), namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(20, 25)])
        await quiet(eyes)
    assert sorted(made.number for made in eyes.events("painting.framed")) == list(range(25))
    assert losses(eyes) == [("painting.made", "group_recreated", None)]
    eyes.call("XGROUP", "DESTROY", eyes.stream(), "framers")
    eyes.call("DEL", eyes.keys.cursors("framers"))
    async with running(any_url, framing(), namespace=namespace):
        await quiet(eyes)
    assert eyes.count("painting.framed") == 50 and len(losses(eyes)) == 1


@pytest.mark.parametrize("events", [0, 5])
async def test_a_group_that_begins_ahead_of_its_stream(any_url: str, namespace: str, eyes: Eyes, events: int) -> None:
    """Of `start=` now, with nothing published since: destroyed, it is made anew where the stream had come to, and what was
    there before its start is not handled."""
    async with EventBus(any_url, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(events)])
    ahead = datetime.now(UTC) + timedelta(seconds=2)
    async with running(any_url, framing(start=ahead), namespace=namespace) as bus:
        eyes.call("XGROUP", "DESTROY", eyes.stream(), "framers")
        await bus.publish(PaintingMade(number=99))
        await until(lambda: eyes.events("painting.framed"))
        await quiet(eyes)
        await until(lambda: losses(eyes))
    assert [made.number for made in eyes.events("painting.framed")] == [99]
    assert "stream_recreated" not in [reason for _, reason, _ in losses(eyes)]


async def test_a_group_is_made_anew_although_its_notes_are_nonsense(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Somebody has written over how far it had read and how often it was made: its worker says both anew, and goes on
    behind what it had been given when the group is destroyed, which is told."""
    async with running(any_url, framing(), namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(20)])
        await quiet(eyes)
        for field in (eyes.stream(), b"~made", b"~from:" + eyes.stream(), b"~gone:" + eyes.stream()):
            eyes.call("HSET", eyes.keys.cursors("framers"), field, b"\xff\xfe")
        eyes.call("XGROUP", "DESTROY", eyes.stream(), "framers")
        await until(lambda: losses(eyes))
        await bus.publish_many([PaintingMade(number=n) for n in range(20, 25)])
        await until(lambda: eyes.count("painting.framed") >= 25)
        await quiet(eyes)
    assert sorted(made.number for made in eyes.events("painting.framed")) == list(range(25))
    assert losses(eyes) == [("painting.made", "group_recreated", None)]


@pytest.mark.parametrize("partitions", [1, 3])
async def test_who_joins_waits_for_no_lost_group(
    virtual: Clock, memory: MemoryServer, namespace: str, partitions: int
) -> None:
    """The groups of three topics are gone while others of the group live, who are to note how far they had read: a worker
    joins at once, reads what is there, and all are made anew together when that time is over."""
    worker, seen = Worker("framers"), list[Event]()

    @worker.on(PaintingMade, PaintingFramed, SculptureMade, PaintingStored)
    async def note(event: Event) -> None:
        seen.append(event)

    each = [PaintingMade(), PaintingFramed(), SculptureMade()]
    eyes = [Eyes(memory, namespace, partition) for partition in range(partitions)]
    async with running(memory, worker, namespace=namespace, partitions=partitions) as bus:
        await bus.publish_many([*each, PaintingStored()] * 9)
        await until(lambda: len(seen) == 36)
        await trio.sleep(3)
    destroyed = 0
    for look in eyes:
        noted = look.call("HKEYS", look.keys.cursors("framers"))
        for event_type in ("painting.made", "painting.framed", "sculpture.made"):
            look.call("XGROUP", "DESTROY", look.stream(event_type), "framers")
            destroyed += look.stream(event_type) in noted
        look.call("HSET", look.keys.beats("framers"), "somebody", 1)
    assert destroyed >= 3
    began = trio.current_time()
    async with running(memory, worker, namespace=namespace, partitions=partitions) as bus:
        assert trio.current_time() - began < 0.5
        await bus.publish(PaintingStored())
        await until(lambda: len(seen) == 37, 1)
        await until(lambda: sum(look.count("bus.loss") for look in eyes) == destroyed, 4)
        await bus.publish_many(each)
        await until(lambda: len(seen) == 40, 3)
    assert {loss.reason for look in eyes for loss in look.events("bus.loss")} == {"group_recreated"}


async def test_who_joins_a_group_that_is_away_goes_on_where_it_was(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Its living workers, who have not noticed yet, are given the time to note how far they had read; the group goes on
    behind that, and it is told once."""
    gate = Gate()
    gate.opened.set()
    async with running(any_url, gate.worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(20)])
        last = (await until(lambda: eyes.call("XREVRANGE", eyes.stream(), "+", "-", "COUNT", 1)))[0][0]
        await until(lambda: eyes.call("HGET", eyes.keys.cursors("framers"), eyes.stream()) == last)
        subscription_of(bus).stop()  # it reads no more, and hears of it by the other way only
        await subscription_of(bus).stopped.wait()
        eyes.call("XGROUP", "DESTROY", eyes.stream(), "framers")
        async with running(any_url, gate.worker, namespace=namespace) as other:
            assert losses(eyes) == []
            await other.publish_many([PaintingMade(number=n) for n in range(20, 25)])
            await until(lambda: len(gate.seen) == 25)
            await quiet(eyes)
    assert sorted(gate.seen) == list(range(25)) and losses(eyes) == [("painting.made", "group_recreated", None)]


@pytest.mark.parametrize("kind", binaries())
async def test_a_server_that_forgets_its_counts_has_lost_nothing(
    make_server: Callable[..., ServerProcess], kind: str, namespace: str
) -> None:
    """Redis 7.0 comes back from its append-only file without knowing how much it gave to groups: that is no loss."""
    server = make_server(kind, persistent=True)
    gate = Gate(concurrency=1)
    gate.opened.set()
    eyes = Eyes(server.url, namespace)
    async with running(server.url, gate.worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(50)])
        first = await until(lambda: len(gate.seen) == 50 and noted(eyes), 20)
        await trio.to_thread.run_sync(server.restart)
        await bus.publish_many([PaintingMade(number=n) for n in range(50, 60)])
        await until(lambda: len(gate.seen) >= 60 and noted(eyes) not in (None, first), 20)
        assert losses(eyes) == []
    eyes.close()


def info(added: int, length: int, first: int, read: int | None, cursor: int, name: bytes = b"g") -> tuple[Any, Any]:
    entries = [b"%d-0" % first, []], [b"%d-0" % (first + length - 1), []]
    stream = [b"length", length, b"entries-added", added]
    stream += [b"first-entry", entries[0] if length else None, b"last-entry", entries[1] if length else None]
    return stream, [[b"name", name, b"last-delivered-id", b"%d-0" % cursor, b"entries-read", read]]


@pytest.mark.parametrize(
    ("facts", "gone"),
    [
        (info(added=10, length=10, first=1, read=0, cursor=0), 0),
        (info(added=10, length=10, first=1, read=4, cursor=4), None),
        (info(added=10, length=10, first=1, read=10, cursor=10), 0),
        (info(added=10, length=3, first=8, read=4, cursor=4), 3),
        (info(added=10, length=0, first=0, read=4, cursor=4), 6),
        (info(added=10, length=3, first=8, read=7, cursor=10), 3),
        (info(added=10, length=3, first=8, read=None, cursor=4), None),
        (info(added=10, length=3, first=8, read=4, cursor=4, name=b"other"), None),
    ],
    ids=["new", "half-way", "done", "gone before it", "all gone", "gone and read past", "no count", "no group"],
)
def test_what_the_server_has_counted(facts: tuple[Any, Any], gone: int | None) -> None:
    """Entries added less those given to the group less those still to be given, where the latter are known."""
    assert gone_unread(*facts, b"g") == gone


async def test_topics_that_come_while_a_worker_lists_its_own(memory: MemoryServer, namespace: str) -> None:
    """After a FLUSHALL each lists them anew, which takes a request for each; meanwhile it finds others."""
    worker = Worker("framers")

    @worker.on("*")
    async def frame(event: object) -> None: ...

    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade())
        await bus.publish(SculptureMade())
        subscription = subscription_of(bus)
        await until(lambda: len(subscription.topics) >= 2 and subscription.membership._made is not None)
        lane = next(iter(subscription.topics.values())).lane
        subscription.membership._made -= 1  # type: ignore[operator]  # as if a fellow had seen the flush first
        async with trio.open_nursery() as nursery:
            nursery.start_soon(subscription.membership.report)
            for number in range(30):
                nursery.start_soon(subscription.add, f"new.topic{number}", lane)
        assert len(subscription.topics) >= 32


async def test_what_is_read_while_the_place_is_noted_is_noted_next(
    virtual: Clock, memory: MemoryServer, namespace: str
) -> None:
    """Else a group that is lost then would be given it once more."""
    eyes, worker = Eyes(memory, namespace), Worker("framers")

    @worker.on(PaintingMade)
    async def frame(event: PaintingMade) -> None: ...

    async with running(memory, worker, namespace=namespace) as bus:
        subscription = subscription_of(bus)
        (topic,) = subscription.topics.values()

        class Slow:
            history = bus._shared.history
            request = bus._shared.request

            async def run(self, operation: Any) -> Any:
                reply = await bus._shared.run(operation)
                topic.cursor = b"99999999999999-0"
                return reply

        await bus.publish(PaintingMade())
        await until(lambda: topic.cursor != b"0-0")
        await subscription.membership.report(Slow())  # type: ignore[arg-type]
        await until(lambda: eyes.call("HGET", eyes.keys.cursors("framers"), topic.stream) == topic.cursor, 10)
    eyes.close()
