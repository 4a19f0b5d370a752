"""The promises of the README, one after another: each on memory and on real servers, with the faults that threaten it."""

import os
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import trio
from faulty import Fault, FaultyServer
from servers import ServerProcess
from studio import Eyes, PaintingFramed, PaintingMade, SculptureMade, framing, quiet, runner_of, running
from trio.abc import Clock
from waiting import until

from canvasbus import BufferFull, EncodeError, Unavailable
from canvasbus.bus import EventBus
from canvasbus.transport.connect import open_server
from canvasbus.transport.memory import MemoryServer
from canvasbus.transport.owner_scripts import REAP, RELEASE
from canvasbus.wire.codec import decode_envelope
from canvasbus.worker import Backoff, Context, Worker


@pytest.fixture
def faulty(any_url: str) -> FaultyServer:
    return FaultyServer(open_server(any_url))


# --- 1: accepted is stored --------------------------------------------------------------------------------------------


async def test_what_publish_returns_is_on_the_server(any_url: str, namespace: str, eyes: Eyes) -> None:
    """When publish has returned, the entry with the returned id holds the event."""
    async with EventBus(any_url, namespace=namespace, source="here") as bus:
        first = await bus.publish(PaintingMade(title="a", number=1))
        more = await bus.publish_many([PaintingMade(number=n) for n in range(2, 1200)])
        rows = eyes.call("XRANGE", eyes.stream(), "-", "+")
    assert [row[0].decode() for row in rows] == [first, *more]
    assert [event.number for event in eyes.events("painting.made")] == list(range(1, 1200))
    assert {envelope.source for envelope, _ in eyes.entries("painting.made")} == {"here"}


@pytest.mark.parametrize("kind", ["lose_reply", "lose_request"])
async def test_a_lost_reply_is_neither_a_lost_nor_a_doubled_event(
    faulty: FaultyServer, namespace: str, eyes: Eyes, kind: Any
) -> None:
    """Batches whose reply or request is lost on the way are there once, in order, and publish returns their ids."""
    async with running(faulty, namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=0))
        ids = []
        for start in (1, 101, 201):
            faulty.faults.append(Fault(kind, b"EXEC"))
            ids += await bus.publish_many([PaintingMade(number=start + n) for n in range(100)])
    assert faulty.struck == 3
    assert [event.number for event in eyes.events("painting.made")] == list(range(301))
    assert [row[0].decode() for row in eyes.call("XRANGE", eyes.stream(), "-", "+")][1:] == ids


async def test_patience_ends_in_an_error(faulty: FaultyServer, namespace: str) -> None:
    """With `patience` publish raises Unavailable for a server that stays away; without it waits."""
    async with running(faulty, namespace=namespace, patience=0.01) as bus:
        faulty.cut()
        with pytest.raises(Unavailable):
            await bus.publish(PaintingMade())
        assert bus.publisher_statistics().failed == 1


# --- 2: at least once, effects once -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lose_reply", "lose_request"])
async def test_a_lost_reply_of_a_settle_doubles_nothing(
    faulty: FaultyServer, namespace: str, eyes: Eyes, kind: Any
) -> None:
    """Acknowledgement and derived event are one step: when its fate is unknown it is done exactly once all the same."""
    async with running(faulty, framing(), namespace=namespace) as bus:
        for start in (0, 100, 200):
            faulty.faults.append(Fault(kind, b"EVALSHA"))
            await bus.publish_many([PaintingMade(number=start + n) for n in range(100)])
        await until(lambda: eyes.count("painting.framed") >= 300)
        await quiet(eyes)
    assert faulty.struck == 3
    assert sorted(event.number for event in eyes.events("painting.framed")) == list(range(300))


async def test_derived_events_know_where_they_come_from(any_url: str, namespace: str, eyes: Eyes) -> None:
    """They inherit the correlation id and name the event that caused them."""
    async with running(any_url, framing(), namespace=namespace) as bus:
        await bus.publish(PaintingMade(title="a"))
        await quiet(eyes)
    ((cause, painting),) = eyes.entries("painting.made")
    ((envelope, framed),) = eyes.entries("painting.framed")
    assert framed.correlation_id == painting.correlation_id
    assert (envelope.causation_id, envelope.source) == (cause.id, "framers")


async def test_a_worker_that_lost_its_entry_changes_nothing(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Declared dead in the middle of a handler, a worker commits nothing; it joins again and the entry runs anew."""
    worker = Worker("framers")
    began, go_on = trio.Event(), trio.Event()
    runs: list[int] = []

    @worker.on(PaintingMade)
    async def frame(event: PaintingMade) -> PaintingFramed:
        runs.append(event.number)
        if len(runs) == 1:
            began.set()
            await go_on.wait()
        return PaintingFramed(number=len(runs))

    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=7))
        await began.wait()
        ((_, owner, _),) = eyes.pending("framers")
        keys = eyes.keys
        args: list[Any] = ["framers", owner, "~suspect", 100, 600]
        names = [keys.fence(owner), keys.beats("framers"), eyes.stream(), keys.accepts("framers")]
        moved = eyes.run(REAP.call(names, args))
        assert moved == [1]
        go_on.set()
        await until(lambda: eyes.count("painting.framed") == 1)
        await quiet(eyes)
        assert runner_of(bus).statistics().consumer != owner
    assert runs == [7, 7]
    assert [event.number for event in eyes.events("painting.framed")] == [2]
    assert eyes.dead("framers") == []


# --- 3 and 4: recovery by liveness, failures are bounded --------------------------------------------------------------


class Crash(Exception):
    """The machine of a worker is gone."""


async def live(server: MemoryServer, worker: Worker, namespace: str, crash: trio.Event) -> None:
    """Run a worker until `crash`; then it says nothing more, as after kill -9."""
    faulty = FaultyServer(server)
    try:
        async with running(faulty, worker, namespace=namespace):
            await crash.wait()
            faulty.cut()
            raise Crash
    except* Crash:
        pass


async def test_a_handler_that_takes_long_runs_once(virtual: Clock, namespace: str) -> None:
    """For five minutes others idle beside it: while its owner lives an entry stays where it is."""
    server, runs = MemoryServer(), []

    def slow() -> Worker:
        worker = Worker("framers")

        @worker.on(PaintingMade, timeout=10_000)
        async def frame(event: PaintingMade) -> PaintingFramed:
            runs.append(event.number)
            await trio.sleep(300)
            return PaintingFramed(number=event.number)

        return worker

    async with running(server, slow(), namespace=namespace) as bus, running(server, slow(), namespace=namespace):
        await bus.publish(PaintingMade(number=1))
        eyes = Eyes(server, namespace)
        await trio.sleep(301)
        await quiet(eyes)
    assert runs == [1] and eyes.count("painting.framed") == 1


async def test_a_dead_workers_entries_run_again_within_seconds(virtual: Clock, namespace: str) -> None:
    """They move when their owner is gone, and only they: five seconds after its last sign of life, and some to notice."""
    server, runs, crash = MemoryServer(), Counter[int](), trio.Event()
    ended: dict[int, float] = {}

    def slow(name: str) -> Worker:
        worker = Worker("framers")

        @worker.on(PaintingMade, concurrency=2)
        async def frame(event: PaintingMade) -> PaintingFramed:
            runs[event.number] += 1
            await trio.sleep(3 if runs[event.number] > 1 or name == "survivor" else 1000)
            ended[event.number] = trio.current_time()
            return PaintingFramed(number=event.number)

        return worker

    async with trio.open_nursery() as nursery:
        nursery.start_soon(live, server, slow("victim"), namespace, crash)
        async with running(server, namespace=namespace) as bus:
            await trio.sleep(3)
            await bus.publish_many([PaintingMade(number=n) for n in range(2)])
            await until(lambda: len(runs) == 2)
            async with running(server, slow("survivor"), namespace=namespace):
                await trio.sleep(8)
                await bus.publish_many([PaintingMade(number=n) for n in range(2, 4)])
                crash.set()
                died = trio.current_time()
                eyes = Eyes(server, namespace)
                await until(lambda: eyes.count("painting.framed") == 4, 60)
                await quiet(eyes)
    assert dict(runs) == {0: 2, 1: 2, 2: 1, 3: 1}
    # 5 s to be declared dead, at most 2 to be noticed and fetched, then one after the other, 3 s each
    assert max(ended[0], ended[1]) - died < 5 + 2 + 2 * 3 + 2
    assert eyes.dead("framers") == []


async def test_one_event_that_kills_its_workers_makes_one_dead_letter(virtual: Clock, namespace: str) -> None:
    """Among 200 in flight the one that kills every worker ends in the dead letters after `attempts` deaths alone; its
    neighbours are all handled and none of them is blamed."""
    server, handled, deaths = MemoryServer(), set[int](), 0
    async with running(server, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(200)])
    eyes = Eyes(server, namespace)

    def fragile(crash: trio.Event) -> Worker:
        worker = Worker("framers")

        @worker.on(PaintingMade, concurrency=200, retry=Backoff(attempts=3))
        async def frame(event: PaintingMade) -> PaintingFramed:
            await trio.sleep(0.1)
            if event.number == 77:
                crash.set()
                await trio.sleep_forever()
            handled.add(event.number)
            await trio.sleep(0.1)
            return PaintingFramed(number=event.number)

        return worker

    while not eyes.dead("framers"):
        assert deaths < 10, "the poison is never given up"
        crash = trio.Event()
        with trio.move_on_after(400):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(live, server, fragile(crash), namespace, crash)
                await until(lambda crash=crash: crash.is_set() or eyes.dead("framers"), 300)
                deaths += crash.is_set()
                if not crash.is_set():
                    await quiet(eyes, timeout=100)
                    nursery.cancel_scope.cancel()
    (letter,) = eyes.dead("framers")
    assert (letter.reason, letter.attempts) == ("lost_workers", 3)
    assert handled == set(range(200)) - {77}
    assert sorted(e.number for e in eyes.events("painting.framed")) == sorted(handled)
    assert deaths == 5  # the first two, among others, prove nothing; three alone


async def test_attempts_survive_the_workers_that_made_them(virtual: Clock, namespace: str) -> None:
    """A failure counts for good: each worker fails once, then dies while the event waits for its next attempt. The
    third attempt is the last of three, whoever makes it; deaths while nothing runs count nothing."""
    server, attempts = MemoryServer(), list[int]()
    async with running(server, namespace=namespace) as bus:
        await bus.publish(PaintingMade())
    eyes = Eyes(server, namespace)

    def failing(crash: trio.Event) -> Worker:
        worker = Worker("framers")

        @worker.on(PaintingMade, retry={ValueError: Backoff(attempts=3, base=10_000, cap=10_000)})
        async def frame(event: PaintingMade, ctx: Context) -> None:
            attempts.append(ctx.attempt)
            trio.lowlevel.current_trio_token().run_sync_soon(crash.set)
            raise ValueError("not today")

        return worker

    for life in (1, 2, 3):
        crash, left = trio.Event(), trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(live, server, failing(left), namespace, crash)
            await left.wait()
            await trio.sleep(1)  # what it failed is written down
            crash.set()
        assert attempts == list(range(1, life + 1))
    (letter,) = eyes.dead("framers")
    assert (letter.reason, letter.attempts) == ("exhausted", 3)
    assert eyes.pending("framers") == []


# --- 5: bad input is an ordinary delivery -----------------------------------------------------------------------------

CANVAS = msgspec.json.encode({"type": "painting.made", "data": {"title": "json", "number": 5}})

BAD = {
    "garbage": (b"\x93\x01garbage", "undecodable"),
    "empty": (b"", "undecodable"),
    "json without data": (b'{"type": "painting.made"}', "undecodable"),
    "json of another shape": (b'{"type": "painting.made", "data": {"number": "three"}}', "invalid"),
    "json with an infinite number": (b'{"type": "painting.made", "data": {"number": 1e999}}', "invalid"),
    "nested too deep": (b"\x91" * 100_000, "undecodable"),
    "another type": (b'{"type": "sculpture.made", "data": {}}', "foreign"),
    "oversize": (b"{" + b" " * (1 << 20) + CANVAS[1:], "oversize"),
}


async def test_bad_entries_become_dead_letters_and_hold_nobody_up(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Each keeps its bytes and says its reason; the good entries between them are handled."""
    worker, seen = framing(), []

    @worker.on("sculpture.*", "mystery.*")
    async def other(event: SculptureMade) -> None:
        seen.append(event)

    async with running(any_url, worker, namespace=namespace) as bus:
        for value, _ in BAD.values():
            eyes.put(value)
            await bus.publish(PaintingMade(title="good"))
        eyes.put(CANVAS)
        eyes.call("XADD", eyes.stream(), "*", "user", "alice", "e", "x")
        eyes.put(b'{"type": "mystery.novel", "data": {}}', "mystery.novel")
        eyes.call("SADD", eyes.keys.topics, "mystery.novel")
        await until(lambda: len(eyes.dead("framers")) == len(BAD) + 2)
        await quiet(eyes)
    letters = {letter.fields: letter for letter in eyes.dead("framers")}
    for name, (value, reason) in BAD.items():
        letter = letters.pop((b"e", value))
        assert (name, letter.reason, letter.attempts) == (name, reason, 0)
        assert letter.error and letter.event_type == "painting.made"
    assert letters.pop((b"user", b"alice", b"e", b"x")).reason == "foreign"
    (unknown,) = letters.values()
    assert unknown.reason == "unknown_type"
    assert Counter(event.title for event in eyes.events("painting.framed")) == {"good": len(BAD), "json": 1}
    assert len(eyes.events("handler.failed")) == len(BAD) + 2


async def test_a_key_that_is_no_stream_stops_nobody_else(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Publishing to a key that holds something else is refused for that type alone, and a glob passes it by."""
    eyes.call("SET", eyes.stream("sculpture.made"), "a string")
    worker, seen = Worker("everyone"), []

    @worker.on("*")
    async def note(event: object) -> None:
        seen.append(type(event).__name__)

    async with running(any_url, worker, namespace=namespace) as bus:
        with pytest.raises(Exception, match=r"sculpture\.made"):
            await bus.publish(SculptureMade())
        await bus.publish(PaintingMade())
        await until(lambda: seen == ["PaintingMade"])


async def test_events_that_cannot_be_published_are_refused_at_once(any_url: str, namespace: str, eyes: Eyes) -> None:
    """An event over the limit raises EncodeError where it is published, and its neighbours go on."""
    async with EventBus(any_url, namespace=namespace, max_event_bytes=1000) as bus:
        with pytest.raises(EncodeError, match=r"1,000|1000"):
            await bus.publish(PaintingMade(title="x" * 2000))
        await bus.publish(PaintingMade())
    assert eyes.count("painting.made") == 1


# --- 7: back-pressure -------------------------------------------------------------------------------------------------


async def test_publishing_without_waiting_is_bounded(faulty: FaultyServer, namespace: str, eyes: Eyes) -> None:
    """publish_nowait raises BufferFull at its limit while the server is away; what was accepted arrives later."""
    async with running(faulty, namespace=namespace, buffer_bytes=20_000) as bus:
        await bus.publish(PaintingMade(number=0))
        faulty.faults.append(Fault("answer", b"XADD", "LOADING Redis is loading the dataset in memory", times=3))
        accepted = 0
        with pytest.raises(BufferFull, match="20,000"):
            for _ in range(1000):
                bus.publish_nowait(PaintingMade(number=accepted + 1))
                accepted += 1
        assert 50 < accepted < 500
        await until(lambda: eyes.count("painting.made") == accepted + 1)
    assert [event.number for event in eyes.events("painting.made")] == list(range(accepted + 1))


# --- 8: it comes back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        "LOADING Redis is loading the dataset in memory",
        "READONLY You can't write against a read only replica.",
        "OOM command not allowed when used memory > 'maxmemory'.",
        "BUSY Redis is busy running a script.",
        "MISCONF Redis is configured to save RDB snapshots",
    ],
)
@pytest.mark.parametrize("what", [b"XADD", b"XREADGROUP", b"EVALSHA"])
async def test_a_server_that_refuses_for_a_while_is_waited_for(
    faulty: FaultyServer, namespace: str, eyes: Eyes, answer: str, what: bytes
) -> None:
    """Publishing, reading and settling each try again after such an answer; nothing is lost, nothing happens twice."""
    async with running(faulty, framing(), namespace=namespace) as bus:
        faulty.faults.append(Fault("answer", what, answer, times=2))
        await bus.publish_many([PaintingMade(number=n) for n in range(20)])
        await until(lambda: eyes.count("painting.framed") >= 20)
        await quiet(eyes)
    assert faulty.struck >= 1
    assert sorted(event.number for event in eyes.events("painting.framed")) == list(range(20))
    assert eyes.dead("framers") == []


async def test_a_flushed_script_cache_is_refilled(any_url: str, namespace: str, eyes: Eyes) -> None:
    """SCRIPT FLUSH, as a restart does it, costs one more round trip."""
    async with running(any_url, framing(), namespace=namespace) as bus:
        for number in range(3):
            eyes.call("SCRIPT", "FLUSH")
            await bus.publish(PaintingMade(number=number))
            await until(lambda number=number: eyes.count("painting.framed") == number + 1)


async def test_a_lost_group_goes_on_where_it_was(any_url: str, namespace: str, eyes: Eyes) -> None:
    """A destroyed group is made anew at its cursor, says so as bus.loss, and repeats nothing it had done."""
    async with running(any_url, framing(), namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(10)])
        await until(lambda: eyes.count("painting.framed") == 10)
        await quiet(eyes)
        eyes.call("XGROUP", "DESTROY", eyes.stream(), "framers")
        await bus.publish_many([PaintingMade(number=n) for n in range(10, 20)])
        await until(lambda: eyes.count("painting.framed") >= 20)
        await until(lambda: eyes.events("bus.loss"))
    assert [event.number for event in eyes.events("painting.framed")] == list(range(20))
    (loss,) = eyes.events("bus.loss")
    assert (loss.topic, loss.group, loss.reason) == ("painting.made", "framers", "group_recreated")


async def test_after_a_flush_everything_begins_anew(any_url: str, namespace: str, eyes: Eyes) -> None:
    """All keys gone under a running worker: what is published from then on is handled."""
    async with running(any_url, framing(), namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=1))
        await until(lambda: eyes.count("painting.framed") == 1)
        names = eyes.call("KEYS", f"{{{namespace}:0}}:*")
        eyes.call("DEL", *names)
        await bus.publish(PaintingMade(number=2))
        await until(lambda: [event.number for event in eyes.events("painting.framed")] == [2])


@pytest.mark.parametrize("kind", ["redis", "valkey"])
async def test_a_server_that_crashes_and_comes_back_loses_nothing(
    make_server: Callable[..., ServerProcess], namespace: str, kind: str
) -> None:
    """kill -9 of a persistent server in the middle of the work, twice: everything is published, handled and committed
    once, and nobody had to be restarted."""
    server = make_server(kind, persistent=True)
    eyes = Eyes(server.url, namespace)
    async with running(server.url, framing(), namespace=namespace) as bus:

        async def publish() -> None:
            for start in range(0, 3000, 50):
                await bus.publish_many([PaintingMade(number=n) for n in range(start, start + 50)])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish)
            for mark in (300, 1500):
                await until(lambda mark=mark: eyes.count("painting.framed") > mark, 30)
                await trio.to_thread.run_sync(server.restart)
        await until(lambda: eyes.count("painting.framed") >= 3000, 30)
        await quiet(eyes)
    assert [event.number for event in eyes.events("painting.made")] == list(range(3000))
    assert sorted(event.number for event in eyes.events("painting.framed")) == list(range(3000))
    assert eyes.dead("framers") == []
    eyes.close()


# --- 9: it leaves cleanly ---------------------------------------------------------------------------------------------


async def test_leaving_finishes_what_runs_and_hands_back_the_rest(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Handlers that run are waited for and committed; what has not begun is another worker's at once, and the consumer
    is gone from the group."""
    worker, began, go_on = Worker("framers"), trio.Event(), trio.Event()
    seen: list[int] = []

    @worker.on_batch(PaintingMade, max_size=4, max_wait=0)
    async def frame(events: list[PaintingMade]) -> Any:
        seen.extend(event.number for event in events)
        began.set()
        await go_on.wait()
        return [(i, PaintingFramed(number=event.number)) for i, event in enumerate(events)]

    async with EventBus(any_url, namespace=namespace) as publisher:
        await publisher.publish_many([PaintingMade(number=n) for n in range(20)])
    async with trio.open_nursery() as nursery:
        async with running(any_url, worker, namespace=namespace) as bus:
            await began.wait()
            nursery.start_soon(_open_soon, bus, go_on)
        assert runner_of(bus).state == "left"
        assert sorted(e.number for e in eyes.events("painting.framed")) == sorted(seen)
        assert eyes.consumers("framers") <= {"~free"}
        assert all((owner, tries) == ("~free", 1) for _, owner, tries in eyes.pending("framers"))
    async with running(any_url, framing(), namespace=namespace):
        await until(lambda: eyes.count("painting.framed") == 20, 5)
        await quiet(eyes)
    assert sorted(e.number for e in eyes.events("painting.framed")) == list(range(20))


async def _open_soon(bus: EventBus, gate: trio.Event) -> None:
    await until(lambda: runner_of(bus).state == "draining")
    gate.set()


@pytest.mark.parametrize("lost", ["lose_request", "lose_reply"])
async def test_leaving_over_lost_packets(faulty: FaultyServer, namespace: str, eyes: Eyes, lost: Any) -> None:
    """What is handed back gets there although the network loses it, twice: nobody has to wait until we count as dead."""
    worker, began = Worker("framers"), trio.Event()

    @worker.on(PaintingMade)
    async def hang(event: PaintingMade) -> None:
        began.set()
        await trio.sleep_forever()

    async with running(faulty, worker, namespace=namespace, grace=0.01) as bus:
        await bus.publish(PaintingMade(number=3))
        await began.wait()
        faulty.faults.append(Fault(lost, RELEASE.sha.encode(), times=2))
    assert faulty.struck == 2
    assert eyes.consumers("framers") <= {"~free"}
    assert [owner for _, owner, _ in eyes.pending("framers")] == ["~free"]


async def test_after_the_grace_time_what_still_runs_is_handed_back(any_url: str, namespace: str, eyes: Eyes) -> None:
    """It is cancelled, counts no attempt, and the next worker gets it without waiting for anybody's death."""
    worker, began = Worker("framers"), trio.Event()

    @worker.on(PaintingMade)
    async def hang(event: PaintingMade) -> None:
        began.set()
        await trio.sleep_forever()

    async with running(any_url, worker, namespace=namespace, grace=0.01) as bus:
        await bus.publish(PaintingMade(number=3))
        await began.wait()
    assert eyes.consumers("framers") <= {"~free"}
    attempts: list[int] = []
    second = Worker("framers")

    @second.on(PaintingMade)
    async def note(event: PaintingMade, ctx: Context) -> None:
        attempts.append(ctx.attempt)

    async with running(any_url, second, namespace=namespace):
        await until(lambda: attempts, 5)
    assert attempts == [1]


# --- all together -----------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("offset", range(4))
async def test_random_lives_against_a_naive_model(virtual: Clock, namespace: str, offset: int) -> None:
    """Workers come, crash and leave, packets are lost, handlers fail: every event is framed once or is one dead letter,
    and a dead letter only after four attempts."""
    seed = int(os.environ.get("CANVASBUS_TEST_SEED", "20261")) + offset
    print(f"CANVASBUS_TEST_SEED={seed - offset}, offset {offset}")
    dice = random.Random(seed)
    server = MemoryServer()
    eyes = Eyes(server, namespace)
    failing = {n: dice.choice([0, 0, 0, 1, 2, 9]) for n in range(400)}  # how often a handler fails on it
    failed: Counter[int] = Counter()
    runs: Counter[int] = Counter()

    def framer() -> Worker:
        worker = Worker("framers")

        @worker.on(PaintingMade, concurrency=dice.choice([1, 8, 64]), retry=Backoff(attempts=4, base=0.2, cap=1))
        async def frame(event: PaintingMade) -> PaintingFramed:
            runs[event.number] += 1
            await trio.sleep(event.number % 7 / 10)
            if failed[event.number] < failing[event.number]:
                failed[event.number] += 1
                raise ValueError(event.number)
            return PaintingFramed(number=event.number)

        return worker

    async def one_life() -> None:
        faulty, worker = FaultyServer(server), framer()
        falls = dice.random() < 0.5
        length = dice.uniform(0.5, 15)
        for _ in range(dice.randrange(4)):
            what = dice.choice([b"EVALSHA", b"XREADGROUP", b"XACK", b"HINCRBY"])
            faulty.faults.append(Fault(dice.choice(["lose_reply", "lose_request"]), what))  # type: ignore[arg-type]
        try:
            async with running(faulty, worker, namespace=namespace, grace=dice.choice([0.1, 5.0])):
                await trio.sleep(length)
                if falls:
                    faulty.cut()
                    raise Crash
        except* Crash:
            pass

    async with trio.open_nursery() as nursery:
        async with running(server, namespace=namespace) as bus:
            for start in range(0, 400, 40):
                await bus.publish_many([PaintingMade(number=n) for n in range(start, start + 40)])
                for _ in range(dice.randrange(3)):
                    nursery.start_soon(one_life)
                await trio.sleep(dice.uniform(0, 5))
    async with running(server, framer(), namespace=namespace):
        await trio.sleep(30)
        await quiet(eyes, timeout=600)
    framed = Counter(event.number for event in eyes.events("painting.framed"))
    dead = Counter(msgspec.msgpack.decode(decode_envelope(d.fields[1]).data)["number"] for d in eyes.dead("framers"))
    assert set(framed.values()) == {1} and set(dead.values()) <= {1}
    assert framed.keys() | dead.keys() == set(range(400)) and not framed.keys() & dead.keys()
    assert {n for n, times in failing.items() if times >= 9} <= set(dead)
    assert {letter.attempts for letter in eyes.dead("framers")} == {4}
    assert min(runs[n] for n in dead) > 0
