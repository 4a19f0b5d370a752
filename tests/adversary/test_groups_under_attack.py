"""Attacks on what a group of workers agrees about: who is dead, who owns what, who waits for whom."""

import threading
from typing import Any

import pytest
import structlog.testing
import trio
from faulty import Fault, FaultyServer
from studio import Eyes, PaintingFramed, PaintingMade, SculptureMade, framing, quiet, runner_of, running
from trio.abc import Clock
from waiting import until

from canvasbus.consume.liveness import Heart, Progress
from canvasbus.transport.memory import MemoryServer
from canvasbus.transport.owner_scripts import REAP
from canvasbus.transport.settle_script import SETTLE
from canvasbus.wire.keys import SUSPECT_POOL
from canvasbus.worker import RetryLater, Worker

A_SCULPTURE = b'{"type":"sculpture.made","data":{"title":"a"}}'


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


def hanging(*types: Any, began: list[Any], concurrency: int = 4) -> Worker:
    worker = Worker("framers")

    @worker.on(*types, concurrency=concurrency, timeout=10_000)
    async def hang(event: Any) -> None:
        began.append(event)
        await trio.sleep_forever()

    return worker


@pytest.mark.parametrize("redriven", [False, True])
async def test_entries_of_a_type_that_the_watching_worker_does_not_know_are_recovered(
    virtual: Clock, memory: MemoryServer, namespace: str, eyes: Eyes, redriven: bool
) -> None:
    """Two versions of a worker side by side, of which the older, which knows fewer types, watches over the dead: what
    the newer one held runs again within seconds all the same, also what had come out of the dead letters."""
    older, newer, began, seen, crash = Worker("framers"), Worker("framers"), list[Any](), list[str](), trio.Event()

    @older.on(PaintingMade)
    async def only(event: PaintingMade) -> None: ...

    @newer.on(SculptureMade)
    async def note(event: SculptureMade) -> None:
        seen.append(event.title)

    async with running(memory, older, namespace=namespace), trio.open_nursery() as nursery:
        nursery.start_soon(live, memory, hanging(SculptureMade, began=began), namespace, crash)
        await trio.sleep(3)
        if redriven:
            eyes.call("SADD", eyes.keys.retries("framers"), "sculpture.made")
            eyes.call("XADD", eyes.keys.retry("framers", "sculpture.made"), "*", "e", A_SCULPTURE)
        else:
            eyes.put(A_SCULPTURE, "sculpture.made")
        await until(lambda: began)
        async with running(memory, newer, namespace=namespace):
            await trio.sleep(3)
            crash.set()
            await until(lambda: seen == ["a"], 15)


class FarServer(FaultyServer):
    """A server at the other end of a cable: each packet takes `seconds` to get there."""

    seconds = 0.0

    async def connect(self) -> Any:
        connection: Any = await super().connect()
        send = connection.send

        async def send_far(data: bytes) -> None:
            await trio.sleep(self.seconds)
            await send(data)

        connection.send = send_far
        return connection


@pytest.mark.long
async def test_a_thousand_topics_do_not_keep_the_dead_from_being_noticed(
    virtual: Clock, memory: MemoryServer, namespace: str, eyes: Eyes
) -> None:
    """A glob over a thousand topics, 3 ms away: a look at all of them takes no second, and the dead are still found."""
    for number in range(1000):
        eyes.call("SADD", eyes.keys.topics, f"painting.kind{number}")
    crash, began, seen, far = trio.Event(), list[Any](), list[int](), FarServer(memory)
    worker = Worker("framers")

    @worker.on("painting.*")
    async def note(event: Any) -> None:
        seen.append(event.number)

    async with running(memory, namespace=namespace) as bus, trio.open_nursery() as nursery:
        nursery.start_soon(live, memory, hanging(PaintingMade, began=began), namespace, crash)
        await trio.sleep(1)
        await bus.publish(PaintingMade(number=1))
        await until(lambda: began)
        async with running(far, worker, namespace=namespace):
            far.seconds = 0.003
            await trio.sleep(3)
            crash.set()
            await until(lambda: seen == [1], 15)


def test_an_attempt_is_never_written_over_somebody_elses(
    virtual: Clock, memory: MemoryServer, namespace: str, eyes: Eyes
) -> None:
    """An attempt that comes late, after its entry was handed back and taken by another, changes nothing, although the
    batch it belongs to needs no look at its entries."""
    eyes.call("XGROUP", "CREATE", eyes.stream(), "framers", "0", "MKSTREAM")
    entry = eyes.put(b"x")
    eyes.call("XREADGROUP", "GROUP", "framers", "you", "STREAMS", eyes.stream(), ">")
    args: list[Any] = [0, "framers", "me", 0, "x", 1, 2, entry, "try", 0, 9]
    assert eyes.run(SETTLE.call([eyes.keys.fence("me"), eyes.stream()], args)) == [0]
    assert eyes.pending("framers") == [(entry, "you", 1)]


async def test_at_maxmemory_what_needs_no_memory_goes_on(
    virtual: Clock, memory: MemoryServer, namespace: str, eyes: Eyes
) -> None:
    """While a commit with derived events waits for memory, handlers that emit nothing are acknowledged and read on."""
    faulty, worker, seen = FaultyServer(memory), Worker("framers"), list[str]()

    @worker.on(PaintingMade)
    async def frame(event: PaintingMade) -> PaintingFramed:
        return PaintingFramed(number=event.number)

    @worker.on(SculptureMade, concurrency=1)
    async def note(event: SculptureMade) -> None:
        seen.append(event.title)
        if seen.count(event.title) == 1 and event.title == "7":
            raise RetryLater(after=1)

    async with running(faulty, worker, namespace=namespace) as bus:
        refusal = Fault(
            "answer", SETTLE.sha.encode(), "OOM command not allowed when used memory > 'maxmemory'.", times=10**6
        )
        faulty.faults.append(refusal)
        await bus.publish(PaintingMade(number=1))
        await until(lambda: faulty.struck)
        await bus.publish_many([SculptureMade(title=str(n)) for n in range(3000)])
        await quiet(eyes, event_type="sculpture.made", timeout=60)
        assert len(set(seen)) == 3000 and eyes.count("painting.framed") == 0
        faulty.faults.clear()
        await until(lambda: eyes.count("painting.framed") == 1)


async def test_a_worker_that_is_declared_dead_while_it_leaves_does_not_wait_for_its_grace(
    virtual: Clock, memory: MemoryServer, namespace: str, eyes: Eyes
) -> None:
    """Its entries are others' already and it may commit nothing: there is nothing left to wait for."""
    worker, began, go_on = Worker("framers"), trio.Event(), trio.Event()

    @worker.on(PaintingMade, timeout=1000)
    async def frame(event: PaintingMade) -> PaintingFramed:
        began.set()
        await go_on.wait()
        return PaintingFramed(number=event.number)

    async def declare_dead(bus: Any) -> None:
        await until(lambda: runner_of(bus).state == "draining")
        ((_, owner, _),) = eyes.pending("framers")
        args: list[Any] = ["framers", owner, SUSPECT_POOL, 100, 600]
        names = [eyes.keys.fence(owner), eyes.keys.beats("framers"), eyes.stream(), eyes.keys.accepts("framers")]
        eyes.run(REAP.call(names, args))
        go_on.set()

    async with trio.open_nursery() as nursery:
        async with running(memory, worker, namespace=namespace, grace=500.0) as bus:
            await bus.publish(PaintingMade(number=1))
            await began.wait()
            nursery.start_soon(declare_dead, bus)
            left = trio.current_time()
        assert trio.current_time() - left < 20
    assert eyes.count("painting.framed") == 0
    assert [owner for _, owner, _ in eyes.pending("framers")] == [SUSPECT_POOL]


async def test_a_suspect_that_is_handed_back_stays_a_suspect(
    virtual: Clock, memory: MemoryServer, namespace: str, eyes: Eyes
) -> None:
    """A rolling restart clears nobody who may kill a worker and counts no attempt, also when it cuts a run short."""
    crash, began, again = trio.Event(), list[Any](), list[Any]()
    async with running(memory, namespace=namespace) as bus, trio.open_nursery() as nursery:
        nursery.start_soon(live, memory, hanging(PaintingMade, began=began), namespace, crash)
        await trio.sleep(1)
        await bus.publish_many([PaintingMade(number=n) for n in range(3)])
        await until(lambda: len(began) == 3)
        async with running(memory, hanging(PaintingMade, began=again), namespace=namespace, grace=0.1):
            await trio.sleep(3)
            crash.set()
            await until(lambda: len(again) == 3, 20)
            assert {tries for _, _, tries in eyes.pending("framers")} == {0}, "they run among others"
        assert [(owner, tries) for _, owner, tries in eyes.pending("framers")] == [(SUSPECT_POOL, 1)] * 3


async def test_the_neighbours_of_an_event_that_kills_run_before_it(any_url: str, namespace: str) -> None:
    """Of the suspects that a worker takes up together, those that have killed fewest run first: the others would die with
    the poison each time anew."""
    eyes, seen, worker = Eyes(any_url, namespace), list[int](), Worker("framers")

    @worker.on(PaintingMade)
    async def note(event: PaintingMade) -> None:
        seen.append(event.number)

    stream = eyes.stream()
    entry_ids = [eyes.put(b'{"type": "painting.made", "data": {"number": %d}}' % number) for number in range(5)]
    eyes.call("XGROUP", "CREATE", stream, "framers", "0")
    eyes.call("XREADGROUP", "GROUP", "framers", "dead", "COUNT", 10, "STREAMS", stream, ">")
    for entry_id, deaths in zip(entry_ids, (2, 0, 1, 0, 0), strict=True):
        eyes.call("XCLAIM", stream, "framers", SUSPECT_POOL, 0, entry_id, "RETRYCOUNT", deaths + 1, "JUSTID")
    async with running(any_url, worker, namespace=namespace):
        await until(lambda: len(seen) == 5)
    eyes.close()
    assert seen == [1, 3, 4, 2, 0]


async def test_garbage_among_the_heartbeats_stops_nobody(
    virtual: Clock, memory: MemoryServer, namespace: str, eyes: Eyes
) -> None:
    """A count that is none, and consumers whose names are no text, are passed by or removed; the dead are found."""
    crash, began, seen = trio.Event(), list[Any](), list[int]()
    worker = Worker("framers")

    @worker.on(PaintingMade)
    async def note(event: PaintingMade) -> None:
        seen.append(event.number)

    async with running(memory, worker, namespace=namespace) as bus:
        eyes.call("HSET", eyes.keys.beats("framers"), "foreign", "no number")
        eyes.call("HSET", eyes.keys.beats("framers"), b"\xff\xfe", "1")
        eyes.put(b'{"type": "painting.made", "data": {"number": 2}}')
        await until(lambda: 2 in seen)
        eyes.call("XGROUP", "CREATECONSUMER", eyes.stream(), "framers", b"\xfd")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(live, memory, hanging(PaintingMade, began=began), namespace, crash)
            while not began:
                await bus.publish(PaintingMade(number=3))
                await trio.sleep(0.1)
            crash.set()
        await quiet(eyes, timeout=30)
        await until(lambda: eyes.call("HLEN", eyes.keys.beats("framers")) == 1, 30)
        assert {name for name in eyes.consumers("framers") if not name.startswith("~")} == {
            runner_of(bus).statistics().consumer
        }


NO_JSON = [b'"\xff"', b"[" * 50_000, b"{", b"[]", b"5"]


async def test_garbage_in_what_the_bus_remembers(
    virtual: Clock, memory: MemoryServer, namespace: str, eyes: Eyes
) -> None:
    """Counts of thousands of digits, declarations and pauses that are no text: workers and maintainers pass them by."""
    worker, seen, keys = Worker("framers"), list[int](), eyes.keys

    @worker.on(PaintingMade)
    async def note(event: PaintingMade) -> None:
        seen.append(event.number)

    eyes.call("HSET", keys.beats("framers"), "foreign", "9" * 5000)
    eyes.call("HSET", keys.beats("elsewhere"), "foreign", "9" * 5000)
    eyes.call("HSET", keys.groups, "elsewhere", b'{"types": [], "globs": [], "instance": true}')
    for number, garbage in enumerate(NO_JSON):
        eyes.call("HSET", keys.groups, f"g{number}", garbage)
    eyes.call("HSET", keys.groups, "globs", b'{"types": [], "globs": [5]}')
    async with running(memory, worker, namespace=namespace) as bus:
        for number, garbage in enumerate(NO_JSON):
            eyes.call("SET", keys.paused("framers"), garbage)
            await until(lambda: bus.statistics()[0].state == "paused", 20)
            eyes.call("DEL", keys.paused("framers"))
            await until(lambda: bus.statistics()[0].state == "running", 20)
            await bus.publish(PaintingMade(number=number))
            await until(lambda number=number: number in seen, 20)
        await until(lambda: eyes.call("HEXISTS", keys.beats("framers"), "foreign") == 0, 30)


async def test_a_worker_joins_among_garbage(any_url: str, namespace: str) -> None:
    """The same on every server, for a moment: who joins a group of which only nonsense is known works."""
    worker, seen, eyes = Worker("framers"), list[int](), Eyes(any_url, namespace)
    keys = eyes.keys

    @worker.on(PaintingMade)
    async def note(event: PaintingMade) -> None:
        seen.append(event.number)

    eyes.call("HSET", keys.beats("framers"), "foreign", "9" * 5000)
    eyes.call("HSET", keys.cursors("framers"), "~made", "9" * 400)
    eyes.call("HSET", keys.groups, "g", NO_JSON[0])
    eyes.call("SET", keys.paused("framers"), NO_JSON[0], "PX", 1)
    async with running(any_url, worker, namespace=namespace) as bus:
        mine = bus.statistics()[0].consumer
        await until(lambda: int(eyes.call("HGET", keys.beats("framers"), mine) or 0) >= 3)
        await bus.publish(PaintingMade(number=1))
        await until(lambda: seen == [1])
    eyes.close()


async def test_a_worker_that_joins_again_waits_for_a_key_to_be_mended(any_url: str, namespace: str) -> None:
    """It was taken for dead, and meanwhile somebody has put another kind of value where a pause lies: the process does
    not end, and goes on when that is mended."""
    eyes = Eyes(any_url, namespace)
    with structlog.testing.capture_logs() as logs:
        async with running(any_url, framing(), namespace=namespace) as bus:
            eyes.call("RPUSH", eyes.keys.paused("framers"), "x")
            eyes.call("SET", eyes.keys.fence(bus.statistics()[0].consumer), "dead")
            await bus.publish(PaintingMade(number=1))
            await until(lambda: any(log["event"] == "joining waits for the server" for log in logs))
            eyes.call("DEL", eyes.keys.paused("framers"))
            await until(lambda: bus.statistics()[0].state == "running")
    eyes.close()


async def test_a_heart_beats_again_when_the_loop_turns_again(server_url: str, namespace: str) -> None:
    """A loop that was stuck and got free is a living worker again, which its peers must be able to see."""
    from canvasbus.transport.connect import open_server
    from canvasbus.wire.keys import Keys

    progress, stuck = Progress(), threading.Event()
    heart = Heart(
        open_server(server_url),
        [Keys(namespace)],
        "framers",
        "me",
        progress,
        every=0.01,
        max_block=0.05,
        on_stuck=stuck.set,
    )
    heart.start_thread()
    await until(stuck.is_set)
    beats = heart.beats
    progress.mark()
    await until(lambda: progress.mark() or heart.beats > beats + 3)
    heart.stop()
    heart.join(5)


async def test_a_raised_fence_outlives_its_week(
    virtual: Clock, memory: MemoryServer, namespace: str, eyes: Eyes
) -> None:
    """The number that a lost reply has raised is kept alive while its worker lives: were it forgotten after a week, the
    worker would be taken for a stranger and lose the handlers that run."""
    faulty, worker, began, go_on = FaultyServer(memory), Worker("framers"), trio.Event(), trio.Event()

    @worker.on(PaintingMade, timeout=10**6)
    async def frame(event: PaintingMade) -> PaintingFramed:
        if event.number == 2:
            began.set()
            await go_on.wait()
        return PaintingFramed(number=event.number)

    async with running(faulty, worker, namespace=namespace) as bus:
        faulty.faults.append(Fault("lose_reply", SETTLE.sha.encode()))
        await bus.publish(PaintingMade(number=1))
        await until(lambda: eyes.count("painting.framed") == 1)
        consumer = runner_of(bus).statistics().consumer
        await until(lambda: eyes.call("GET", eyes.keys.fence(consumer)) == b"1")
        eyes.call("EXPIRE", eyes.keys.fence(consumer), 3600)
        await trio.sleep(100)
        assert eyes.call("TTL", eyes.keys.fence(consumer)) > 100_000
