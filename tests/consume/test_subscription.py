"""What a group reads: from where, which topics, which share of them; and what happens to replies that never arrive."""

import gc
from datetime import timedelta
from typing import Any

import pytest
import structlog.testing
import trio
import trio.testing
from faulty import Fault, FaultyServer
from studio import (
    Eyes,
    PaintingFramed,
    PaintingMade,
    SculptureMade,
    framing,
    quiet,
    runner_of,
    running,
    subscription_of,
)
from trio.abc import Clock
from waiting import until

from canvasbus import Event, clock, event
from canvasbus.bus import EventBus
from canvasbus.consume.delivery import Delivery
from canvasbus.errors import DecodeError
from canvasbus.transport.connect import open_server
from canvasbus.transport.memory import MemoryServer
from canvasbus.transport.settle_script import SETTLE
from canvasbus.wire.keys import FREE_POOL, Keys
from canvasbus.worker import Backoff, Context, Reject, Worker


@event("mural.made", key="wall")
class MuralMade(Event):
    wall: str = ""
    number: int = 0


def collecting(name: str, *what: Any, **options: Any) -> tuple[Worker, list[Any]]:
    """A worker that notes what it gets."""
    worker, seen = Worker(name), []

    @worker.on(*what, **options)
    async def note(event: Event) -> None:
        seen.append(event)

    return worker, seen


def numbers(seen: list[Any]) -> list[int]:
    return [event.number for event in seen]


# --- start positions --------------------------------------------------------------------------------------------------


async def test_a_new_group_starts_where_it_says(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Earliest, latest, an entry id or a moment: each decides what of the past a new group sees."""
    async with EventBus(any_url, namespace=namespace) as bus:
        ids = await bus.publish_many([PaintingMade(number=n) for n in range(5)])
    assert len(set(ids)) == 5
    eyes.call("XADD", eyes.stream(), "2000000000000-0", "e", eyes.call("XRANGE", eyes.stream(), "-", "+")[0][1][1])
    moment = clock.now() + timedelta(days=1)
    starts = {"all": "earliest", "none": "latest", "after": ids[2], "since": moment}
    workers, seen = [], {}
    for name, start in starts.items():
        worker, seen[name] = collecting(name, PaintingMade, start=start)
        workers.append(worker)
    async with running(any_url, *workers, namespace=namespace):
        eyes.call("XADD", eyes.stream(), "*", "e", eyes.call("XRANGE", eyes.stream(), "-", "+")[1][1][1])
        await quiet(eyes)
    assert numbers(seen["all"]) == [0, 1, 2, 3, 4, 0, 1]
    assert numbers(seen["none"]) == [1]
    assert numbers(seen["after"]) == [3, 4, 0, 1]
    assert numbers(seen["since"]) == [0, 1]


async def test_start_counts_only_when_the_group_is_made(any_url: str, namespace: str, eyes: Eyes) -> None:
    """A group that exists goes on where it was, whatever a later worker says."""
    first, seen = collecting("framers", PaintingMade)
    async with running(any_url, first, namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=1))
        await quiet(eyes)
    async with EventBus(any_url, namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=2))
    second, later = collecting("framers", PaintingMade, start="latest")
    async with running(any_url, second, namespace=namespace):
        await quiet(eyes)
    assert (numbers(seen), numbers(later)) == ([1], [2])


# --- topics -----------------------------------------------------------------------------------------------------------


async def test_a_glob_misses_nothing_of_topics_that_come_later(any_url: str, namespace: str, eyes: Eyes) -> None:
    """A topic that appears under a running glob is read from its first entry, even by a group that starts at the end."""
    worker, seen = collecting("everything", "*", start="latest")
    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(10)])
        await bus.publish(SculptureMade(title="s"))
        await until(lambda: len(seen) == 11)
    assert sorted(numbers([e for e in seen if isinstance(e, PaintingMade)])) == list(range(10))


async def test_an_exact_type_beats_a_glob(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Of two handlers of one worker the one that names the type gets it; globs see nothing of the bus's own events."""
    worker, rest = collecting("studio", "painting.*", "*.made", "handler.*", "bus.*")
    exact: list[Any] = []

    @worker.on(PaintingMade)
    async def fail(event: PaintingMade) -> None:
        exact.append(event)
        from canvasbus.worker import Reject

        raise Reject("for the announcement")

    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=1))
        await bus.publish(PaintingFramed(number=2))
        await until(lambda: rest and exact and eyes.count("handler.failed"))
        await trio.testing.wait_all_tasks_blocked(0.01)
    assert (numbers(exact), numbers(rest)) == ([1], [2])


async def test_every_group_sees_everything(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Fan-out is by groups; within a group the workers share."""
    groups = {name: collecting(name, PaintingMade) for name in ("a", "b")}
    twin, twin_seen = collecting("a", PaintingMade)
    async with (
        running(any_url, *(worker for worker, _ in groups.values()), namespace=namespace) as bus,
        running(any_url, twin, namespace=namespace),
    ):
        for start in range(0, 200, 10):
            await bus.publish_many([PaintingMade(number=n) for n in range(start, start + 10)])
        await quiet(eyes)
    assert sorted(numbers(groups["b"][1])) == list(range(200))
    assert sorted(numbers(groups["a"][1]) + numbers(twin_seen)) == list(range(200))


async def test_a_worker_reads_all_partitions(any_url: str, namespace: str) -> None:
    """Keyed events of four partitions all arrive, and derived events stay with their parents."""
    worker, seen = Worker("painters"), []

    @worker.on(MuralMade)
    async def paint(event: MuralMade) -> PaintingFramed:
        seen.append(event.number)
        return PaintingFramed(title=event.wall, number=event.number)

    async with running(any_url, worker, namespace=namespace, partitions=4) as bus:
        await bus.publish_many([MuralMade(wall=f"wall {n % 9}", number=n) for n in range(90)])
        await until(lambda: len(seen) == 90)
        await until(lambda: bus.statistics()[0].derived == 90)
    assert sorted(seen) == list(range(90))
    eyes = Eyes(any_url, namespace)
    for partition in range(4):
        eyes.keys = Keys(namespace, partition)
        parents = sorted(e.number for e in eyes.events("mural.made"))
        assert sorted(e.number for e in eyes.events("painting.framed")) == parents != []
    eyes.close()


# --- replies that never arrive ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lose_reply", "lose_request"])
async def test_entries_of_a_lost_read_are_found_again(any_url: str, namespace: str, eyes: Eyes, kind: Any) -> None:
    """A read that the server answered and nobody got leaves entries under our name: the audit fetches them, at once."""
    faulty = FaultyServer(open_server(any_url))
    worker, seen = collecting("framers", PaintingMade)
    async with running(faulty, worker, namespace=namespace) as bus:
        for start in range(0, 60, 20):
            faulty.faults.append(Fault(kind, b"XREADGROUP"))
            await bus.publish_many([PaintingMade(number=n) for n in range(start, start + 20)])
            await until(lambda start=start: len(seen) >= start + 20)
        await quiet(eyes)
        assert faulty.struck >= 2
    assert sorted(numbers(seen)) == list(range(60))


async def test_what_was_trimmed_before_it_was_handled_is_told(any_url: str, namespace: str, eyes: Eyes) -> None:
    """An entry that is pending but gone from its stream is acknowledged and published as bus.loss."""
    async with EventBus(any_url, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(3)])
    eyes.call("XGROUP", "CREATE", eyes.stream(), "framers", "0")
    eyes.call("XREADGROUP", "GROUP", "framers", "~free", "COUNT", 2, "STREAMS", eyes.stream(), ">")
    eyes.call("XTRIM", eyes.stream(), "MAXLEN", 2)
    worker, seen = collecting("framers", PaintingMade)
    async with running(any_url, worker, namespace=namespace):
        await until(lambda: sorted(numbers(seen)) == [1, 2])
        await until(lambda: eyes.events("bus.loss"))
        await quiet(eyes)
    (loss,) = eyes.events("bus.loss")
    assert (loss.topic, loss.group, loss.reason, loss.lost) == ("painting.made", "framers", "entry_trimmed", 1)


@pytest.mark.parametrize("owner", ["~free", "somebody dead"])
async def test_two_workers_tell_of_a_trimmed_entry_once(any_url: str, namespace: str, eyes: Eyes, owner: str) -> None:
    """Whoever finds it, in a pool or with a dead worker: each of many entries is told by one event, and none twice."""
    async with EventBus(any_url, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(40)])
    eyes.call("XGROUP", "CREATE", eyes.stream(), "framers", "0")
    eyes.call("XREADGROUP", "GROUP", "framers", owner, "COUNT", 30, "STREAMS", eyes.stream(), ">")
    eyes.call("XTRIM", eyes.stream(), "MAXLEN", 15)
    first, seen = collecting("framers", PaintingMade)
    second, others = collecting("framers", PaintingMade)
    async with running(any_url, first, namespace=namespace), running(any_url, second, namespace=namespace):
        await until(lambda: sorted(numbers(seen) + numbers(others)) == list(range(25, 40)), timeout=20)
        await until(lambda: sum(loss.lost for loss in eyes.events("bus.loss")) >= 25, timeout=20)
        await quiet(eyes)
    losses = eyes.events("bus.loss")
    assert len({loss.detail for loss in losses}) == len(losses) == 25
    assert {loss.reason for loss in losses} == {"entry_trimmed"}


async def test_a_subscription_shows_itself(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Its repr and counters say what it reads and has read."""
    worker, seen = collecting("framers", PaintingMade)
    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(7)])
        await until(lambda: len(seen) == 7)
        subscription = subscription_of(bus)
        assert subscription.statistics.entries == 7
        assert "framers" in repr(subscription)


async def test_a_fence_that_it_raised_itself_is_nobody_elses(any_url: str, namespace: str, eyes: Eyes) -> None:
    """The answer to raising its fence is lost. What it takes from a pool meanwhile is refused, and it does not think that
    others took it for dead."""
    faulty = FaultyServer(open_server(any_url))
    lost = Fault("lose_request", b"\r\nINCR\r\n", times=1 << 30)
    async with running(faulty, framing(), namespace=namespace) as bus:
        subscription = subscription_of(bus)
        settler = subscription.settler
        faulty.faults = [Fault("lose_request", SETTLE.sha.encode()), Fault("lose_reply", b"\r\nINCR\r\n"), lost]
        await bus.publish(PaintingMade(number=1))
        await until(lambda: faulty.struck > 2)
        assert int(eyes.call("GET", eyes.keys.fence(settler.consumer))) > settler.fence.number
        taken: list[bool] = []

        async def take() -> None:
            taken.append(await subscription.recovery.take(FREE_POOL, 10))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            faulty.faults.remove(lost)
        await until(lambda: eyes.count("painting.framed") == 1)
        assert taken == [True] and runner_of(bus).statistics().consumer == settler.consumer
        eyes.call("SET", eyes.keys.fence(settler.consumer), "dead")
        assert not await subscription.recovery.take(FREE_POOL, 10)


@pytest.mark.parametrize("what", ["commits", "takes", "hands back", "leaves"])
async def test_a_raising_of_its_fence_that_comes_late(any_url: str, namespace: str, eyes: Eyes, what: str) -> None:
    """A worker whose fence has a higher number than it knows of, since a raising of its own that it had to repeat arrived after
    all, does not think that others took it for dead: it would join again, and what it holds would run again."""
    gate, runs = trio.Event(), []
    worker = Worker("framers")

    @worker.on(PaintingMade, concurrency=1 if what == "hands back" else 2)
    async def frame(event: PaintingMade, ctx: Context) -> PaintingFramed:
        runs.append((event.number, ctx.attempt))
        await gate.wait()
        return PaintingFramed(number=event.number)

    async with running(any_url, worker, namespace=namespace, grace=0.0) as bus:
        subscription = subscription_of(bus)
        consumer, fence = subscription.consumer, subscription.settler.fence
        lane = runner_of(bus)._current.lanes[0]  # type: ignore[union-attr]
        lane.window = 2
        await bus.publish(PaintingMade(number=1))
        await until(lambda: runs == [(1, 1)])
        eyes.call("INCR", fence.key)
        if what == "takes":
            assert await subscription.recovery.take(FREE_POOL, 10) and fence.number >= 2
        if what == "hands back":
            await bus.publish(PaintingMade(number=2))
            await until(lambda: len(lane._queue) == 1)
            lane._unload(lane._halt())
            await until(lambda: fence.number >= 2 and not runner_of(bus)._current._leaving._back)  # type: ignore[union-attr]
        if what != "leaves":
            gate.set()
            await quiet(eyes, "framers")
        assert runner_of(bus).statistics().consumer == consumer
    if what == "leaves":
        assert [(owner, deliveries) for _, owner, deliveries in eyes.pending("framers")] == [(FREE_POOL, 1)]
    else:
        numbers = [1, 2] if what == "hands back" else [1]
        assert runs == [(number, 1) for number in numbers] and eyes.count("painting.framed") == len(numbers)


async def test_an_outcome_that_the_server_has_lost_is_no_failure(any_url: str, namespace: str, eyes: Eyes) -> None:
    """The last attempt of what was with a dead worker is counted before it begins. A server that forgets how it ended gives
    the event back to who has run it: as the same attempt, not as one too many."""
    worker, attempts = Worker("framers"), []

    @worker.on(PaintingMade, retry=Backoff(attempts=2))
    async def frame(event: PaintingMade, ctx: Context) -> PaintingFramed:
        attempts.append(ctx.attempt)
        return PaintingFramed(number=event.number)

    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=1))
        await quiet(eyes, "framers")
        ((entry_id, _),) = eyes.call("XRANGE", eyes.stream(), "-", "+")
        name = subscription_of(bus).consumer
        eyes.call("XCLAIM", eyes.stream(), "framers", name, 0, entry_id, "RETRYCOUNT", 3, "FORCE")
        subscription_of(bus).recovery.audit_soon()
        await until(lambda: len(attempts) == 2)
        await quiet(eyes, "framers")
    assert attempts == [1, 2] and eyes.dead("framers") == []


async def test_an_acknowledgement_that_is_refused_does_not_count(any_url: str, namespace: str, eyes: Eyes) -> None:
    """One that the server has no memory for is repeated; one that it refuses is told, and its entry stays pending."""
    faulty = FaultyServer(open_server(any_url))
    worker, seen = collecting("readers", PaintingMade)
    with structlog.testing.capture_logs() as logs:
        async with running(faulty, worker, namespace=namespace) as bus:
            settler = subscription_of(bus).settler
            faulty.faults.append(Fault("answer", b"$4\r\nXACK", "OOM command not allowed", times=2))
            await bus.publish(PaintingMade(number=1))
            await quiet(eyes)
            await until(lambda: (settler.statistics.acked, settler.statistics.repeated) == (1, 2))
            faulty.faults.append(Fault("answer", b"$4\r\nXACK", "WRONGTYPE no stream"))
            await bus.publish(PaintingMade(number=2))
            await until(lambda: [log for log in logs if log["event"].startswith("acknowledging was refused")])
            assert settler.statistics.acked == 1
            assert len(eyes.pending("readers")) == 1
    assert numbers(seen) == [1, 2]


async def test_a_dead_letter_that_nothing_takes_is_kept_in_hand(
    virtual: Clock, memory: MemoryServer, namespace: str
) -> None:
    """Something else lies where the group's dead letters go: the event stays pending and is not counted as written; its
    neighbours are handled, and mended, the letter is there."""
    eyes, worker = Eyes(memory, namespace), Worker("readers")

    @worker.on(PaintingMade)
    async def read(event: PaintingMade) -> None:
        if event.number == 1:
            raise Reject("never")

    eyes.call("SET", eyes.keys.dead("readers"), "something else")
    async with running(memory, worker, namespace=namespace) as bus:
        settler = subscription_of(bus).settler
        await bus.publish_many([PaintingMade(number=n) for n in range(3)])
        await until(lambda: settler.statistics.acked == 2)
        await trio.sleep(12)
        assert (settler.statistics.buried, len(eyes.pending("readers"))) == (0, 1)
        eyes.call("DEL", eyes.keys.dead("readers"))
        await until(lambda: settler.statistics.buried == 1, 10)
        await quiet(eyes)
    (letter,) = eyes.dead("readers")
    assert (letter.reason, letter.attempts) == ("rejected", 1)


async def test_what_could_not_be_read_is_forgotten(any_url: str, namespace: str, eyes: Eyes) -> None:
    """A worker that has buried bad entries for weeks keeps none of them."""

    def kept() -> int:
        gc.collect()
        return sum(isinstance(each, Delivery | DecodeError) for each in gc.get_objects())

    before = kept()
    async with running(any_url, framing(), namespace=namespace):
        for _ in range(20):
            eyes.put(b"{}", "painting.made")
            eyes.put(b"\xc1", "painting.made")
        await until(lambda: len(eyes.call("XRANGE", eyes.keys.dead("framers"), "-", "+")) == 40)
        await quiet(eyes, "framers")
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert kept() < before + 10  # what waits for the next in a local name
