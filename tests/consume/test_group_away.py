"""What is held while its group is away: destroyed, and not made anew yet. Neither who leaves nor who commits, hands back or
parks in that moment may take it for what others have."""

from typing import Any

import msgspec
import pytest
import trio
from faulty import Fault, FaultyServer
from studio import Eyes, PaintingFramed, PaintingMade, framing, quiet, runner_of, running, subscription_of
from waiting import until

from canvasbus.bus import EventBus
from canvasbus.consume.delivery import Delivery
from canvasbus.transport.connect import open_server
from canvasbus.worker import Backoff, Breaker, Worker

EVENTS = 8


class Gate:
    """A worker whose handlers wait until the gate opens."""

    def __init__(self, **options: Any) -> None:
        self.opened = trio.Event()
        self.seen: list[int] = []
        self.worker = Worker("framers")

        @self.worker.on(PaintingMade, **options)
        async def frame(event: PaintingMade) -> PaintingFramed:
            self.seen.append(event.number)
            await self.opened.wait()
            return PaintingFramed(number=event.number)


async def holding(bus: EventBus, gate: Gate, events: int = EVENTS) -> None:
    await bus.publish_many([PaintingMade(number=n) for n in range(events)])
    await until(lambda: len(gate.seen) == events)


async def full(bus: EventBus) -> None:
    """Return when the worker reads nothing more, and so cannot hear by that what becomes of its group."""
    await until(lambda: not subscription_of(bus)._blocked and not subscription_of(bus)._plan()[1])


def destroy(eyes: Eyes) -> None:
    eyes.call("XGROUP", "DESTROY", eyes.stream(), "framers")


def framed(eyes: Eyes) -> list[int]:
    return sorted(event.number for event in eyes.events("painting.framed"))


async def hand_back_all(url: str, namespace: str, eyes: Eyes, gate: Gate, events: int = EVENTS) -> None:
    """Publish, let a worker hold all of it and leave: it lies in the pool of what is handed back."""
    async with running(url, gate.worker, namespace=namespace, grace=0.0) as bus:
        await holding(bus, gate, events)
    assert {owner for _, owner, _ in eyes.pending("framers")} == {"~free"}


async def test_who_leaves_while_its_group_is_away(any_url: str, namespace: str, eyes: Eyes) -> None:
    """It makes the group anew first, once the others have noted how far they had read, and hands back into that."""
    gate, other = Gate(concurrency=EVENTS), Gate(concurrency=1)
    other.opened.set()
    async with (
        running(any_url, other.worker, namespace=namespace) as second,
        running(any_url, gate.worker, namespace=namespace, grace=0.0) as bus,
    ):
        second_reads = subscription_of(second)
        await until(lambda: len(eyes.call("HKEYS", eyes.keys.beats("framers"))) == 2)
        second_reads.pause(True)
        await holding(bus, gate)
        await full(bus)
        destroy(eyes)
        await bus.aclose()
        second_reads.pause(False)
        await until(lambda: framed(eyes) == list(range(EVENTS)))
        await quiet(eyes)
    assert framed(eyes) == list(range(EVENTS)) and eyes.consumers("framers") <= {"~free"}
    assert [loss.reason for loss in eyes.events("bus.loss")] == ["group_recreated"]


async def test_who_leaves_alone_while_its_group_is_away(any_url: str, namespace: str, eyes: Eyes) -> None:
    """A worker that has no room reads nothing, and does not hear that its group is gone."""
    gate = Gate(concurrency=EVENTS)
    async with running(any_url, gate.worker, namespace=namespace, grace=0.0) as bus:
        await holding(bus, gate)
        await full(bus)
        destroy(eyes)
    assert {owner for _, owner, _ in eyes.pending("framers")} == {"~free"} == eyes.consumers("framers")
    assert eyes.call("HLEN", eyes.keys.beats("framers")) == 0
    async with running(any_url, framing(), namespace=namespace):
        await until(lambda: framed(eyes) == list(range(EVENTS)))
        await quiet(eyes)
    assert framed(eyes) == list(range(EVENTS))


async def test_a_commit_that_looks_while_the_group_is_away(any_url: str, namespace: str, eyes: Eyes) -> None:
    """What came by way of a pool is looked up before it is committed. Where there is no group to look in, it waits for one."""
    await hand_back_all(any_url, namespace, eyes, Gate(concurrency=EVENTS))
    gate = Gate(concurrency=EVENTS)
    async with running(any_url, gate.worker, namespace=namespace) as bus:
        await until(lambda: len(gate.seen) == EVENTS)
        await full(bus)
        destroy(eyes)
        gate.opened.set()
        await until(lambda: framed(eyes) == list(range(EVENTS)))
        await quiet(eyes)
        assert runner_of(bus).statistics().not_ours == 0
    assert framed(eyes) == list(range(EVENTS)) == sorted(gate.seen)


async def test_a_commit_that_never_began_while_the_group_is_away(any_url: str, namespace: str, eyes: Eyes) -> None:
    """The line breaks where a topic is announced, before its first commit is sent. Nothing can have been committed then, and
    what is not found when the commit is tried again, since the group is away, waits for one."""
    await hand_back_all(any_url, namespace, eyes, Gate(concurrency=EVENTS))
    gate, faulty = Gate(concurrency=EVENTS), FaultyServer(open_server(any_url))
    async with running(faulty, gate.worker, namespace=namespace) as bus:
        await until(lambda: len(gate.seen) == EVENTS)
        await full(bus)
        destroy(eyes)
        faulty.faults.append(Fault("lose_reply", b"painting.framed"))
        gate.opened.set()
        await until(lambda: framed(eyes) == list(range(EVENTS)))
        await quiet(eyes)
        assert faulty.struck == 1 and runner_of(bus).statistics().not_ours == 0
    assert framed(eyes) == list(range(EVENTS)) == sorted(gate.seen)


async def test_a_commit_that_looks_before_it_has_heard_of_the_new_group(
    any_url: str, namespace: str, eyes: Eyes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker made the group anew, where this one's events are not pending yet."""
    await hand_back_all(any_url, namespace, eyes, Gate(concurrency=EVENTS))
    gate, other = Gate(concurrency=EVENTS), Gate()
    async with running(any_url, gate.worker, namespace=namespace) as bus:
        await until(lambda: len(gate.seen) == EVENTS)
        await full(bus)
        members = subscription_of(bus).membership
        report = members.report

        async def late(link: Any = None) -> None:
            """Only when it asks itself."""
            if link is not None:
                await report(link)

        monkeypatch.setattr(members, "report", late)
        async with running(any_url, other.worker, namespace=namespace):
            destroy(eyes)
            await until(lambda: eyes.events("bus.loss"))
            gate.opened.set()
            await until(lambda: framed(eyes) == list(range(EVENTS)))
            await quiet(eyes)
        assert runner_of(bus).statistics().not_ours == 0
    assert framed(eyes) == list(range(EVENTS)) and other.seen == []


async def test_a_circuit_that_hands_back_while_the_group_is_away(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Its deliveries stay in its hands until there is a group to hand them back to."""
    worker, up, asked = Worker("framers"), trio.Event(), trio.Event()

    @worker.on(
        PaintingMade,
        concurrency=EVENTS * 4,
        retry=Backoff(attempts=2),
        breaker=Breaker(failures=1, pause=0.2, cap=0.2),
    )
    async def frame(event: PaintingMade) -> PaintingFramed:
        if not up.is_set():
            asked.set()
            raise ConnectionRefusedError
        return PaintingFramed(number=event.number)

    gate = Gate(concurrency=1)
    async with (
        running(any_url, gate.worker, namespace=namespace) as other,
        running(any_url, worker, namespace=namespace, grace=0.0) as bus,
    ):
        subscription_of(other).pause(True)
        await until(lambda: len(eyes.call("HKEYS", eyes.keys.beats("framers"))) == 2)
        lane = next(iter(subscription_of(bus).topics.values())).lane
        await bus.publish_many([PaintingMade(number=n) for n in range(EVENTS * 4)])
        await asked.wait()
        destroy(eyes)
        await until(lambda: lane.held <= EVENTS + 4)  # the rest is on its way back
        await until(lambda: eyes.events("bus.loss"))
        up.set()
        gate.opened.set()
        subscription_of(other).pause(False)
        await until(lambda: len(framed(eyes)) >= EVENTS * 4, 20)
        await quiet(eyes)
    assert framed(eyes) == list(range(EVENTS * 4))


async def test_what_is_parked_while_the_group_is_away(any_url: str, namespace: str, eyes: Eyes) -> None:
    """An event of a newer version is left to newer workers in the new group."""
    envelope = {"type": "painting.made", "version": 99, "data": {"number": 1}}
    async with running(any_url, framing(), namespace=namespace) as bus:
        entry = eyes.put(msgspec.json.encode(envelope))
        settler, parked = subscription_of(bus).settler, trio.Event()
        park = settler.park

        def first(delivery: Delivery, pool: str) -> None:
            destroy(eyes)
            parked.set()
            park(delivery, pool)

        settler.park = first
        await parked.wait()
        settler.park = park
        await until(lambda: [owner for _, owner, _ in eyes.pending("framers")] == ["~v:painting.made:99"])
    assert [entry_id for entry_id, _, _ in eyes.pending("framers")] == [entry]


@pytest.mark.parametrize("what", ["all keys", "the stream"])
async def test_who_leaves_a_stream_that_is_gone(any_url: str, namespace: str, eyes: Eyes, what: str) -> None:
    """FLUSHALL or DEL: what was held is lost with it, which is told, and no name stays behind."""
    gate = Gate(concurrency=EVENTS)
    async with running(any_url, gate.worker, namespace=namespace, grace=0.0) as bus:
        await holding(bus, gate)
        await full(bus)
        with trio.fail_after(2):
            eyes.call("DEL", *(eyes.call("KEYS", f"{{{namespace}:0}}:*") if what == "all keys" else [eyes.stream()]))
            await bus.aclose()
    assert eyes.consumers("framers") == set() and eyes.call("HLEN", eyes.keys.beats("framers")) == 0
    assert [loss.reason for loss in eyes.events("bus.loss")] == ["stream_recreated"]
