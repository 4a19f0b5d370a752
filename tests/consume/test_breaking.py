"""A lane whose dependency is down: it rests and probes, no attempt is used up, nothing is lost, the others go on."""

import itertools
import json
from collections import Counter
from itertools import pairwise
from random import Random

import pytest
import structlog.testing
import trio
from consume.circuits import Dependency, calling, framed
from faulty import Fault, FaultyServer
from seeds import seeds
from studio import Eyes, PaintingFramed, PaintingMade, SculptureMade, quiet, runner_of, running
from trio.abc import Clock
from waiting import until

from canvasbus.bus import EventBus
from canvasbus.cli.health import _answer
from canvasbus.transport.memory import MemoryServer
from canvasbus.worker import Backoff, BatchFailure, Breaker, Reject, RetryLater, Worker

OPENED = "what a handler calls is down; its lane rests, and tries again from time to time"
CLOSED = "what a handler calls is back; its lane goes on"


@pytest.mark.long
@pytest.mark.parametrize("batch", [False, True])
async def test_an_outage_of_ten_minutes_costs_no_attempt(
    virtual: Clock, memory: MemoryServer, namespace: str, batch: bool
) -> None:
    """Two attempts an event, 300 events, ten minutes: no dead letter; after the first failures one call in at most a minute
    and at least half of one; each event is framed once, within a minute of the end; told once, and once that it is
    over."""
    dependency, eyes = Dependency(), Eyes(memory, namespace)
    with structlog.testing.capture_logs() as logs:
        async with running(memory, calling(dependency, batch=batch), namespace=namespace) as bus:
            await bus.publish_many([PaintingMade(number=n) for n in range(100)])
            await quiet(eyes, timeout=60)
            dependency.down = True
            began = trio.current_time()
            for start in range(100, 300, 20):
                await bus.publish_many([PaintingMade(number=n) for n in range(start, start + 20)])
                await trio.sleep(60)
            (statistics,) = bus.statistics()
            assert statistics.open_circuits and statistics.failed == 4 and statistics.spared > 8
            assert runner_of(bus).statistics().held < 30
            dependency.down = False
            await until(lambda: eyes.count("painting.framed") == 300, 61)
            await quiet(eyes)
            assert bus.statistics()[0].open_circuits == ()
    assert framed(eyes) == dict.fromkeys(range(300), 1) and eyes.dead("callers") == []
    late = [at for at, _, down in dependency.calls if down and at > began + 30]
    pauses = [after - before for before, after in pairwise(late)]
    assert 8 < len(late) < 22 and max(pauses) <= 62 and min(pauses[5:]) >= 29
    told = [log["event"] for log in logs if log["event"] in (OPENED, CLOSED)]
    assert told == [OPENED, CLOSED]


async def test_who_rests_is_named_and_is_ready_all_the_same(
    virtual: Clock, memory: MemoryServer, namespace: str
) -> None:
    """/readyz answers 200 and names the handler: no orchestrator can help, but whoever looks shall see it."""
    dependency = Dependency()
    dependency.down = True
    async with running(memory, calling(dependency), namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(20)])
        assert b"resting" not in await _answer(bus, b"GET /readyz HTTP/1.1")
        await until(lambda: bus.statistics()[0].open_circuits, 30)
        head, _, body = (await _answer(bus, b"GET /readyz HTTP/1.1")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert json.loads(body) == {"ready": True, "problems": [], "resting": ["callers/calling.<locals>.call"]}


async def test_the_other_lanes_go_on(virtual: Clock, memory: MemoryServer, namespace: str) -> None:
    """Another handler of the same worker notices nothing."""
    dependency, seen = Dependency(), list[str]()
    dependency.down = True
    worker = calling(dependency)

    @worker.on(SculptureMade)
    async def look(event: SculptureMade) -> None:
        seen.append(event.title)

    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(50)])
        await until(lambda: bus.statistics()[0].open_circuits, 30)
        await bus.publish_many([SculptureMade(title=str(n)) for n in range(200)])
        await until(lambda: len(seen) == 200, 2)
        assert bus.statistics()[0].open_circuits


async def test_an_event_that_is_itself_the_trouble_keeps_no_lane_shut(
    virtual: Clock, memory: MemoryServer, namespace: str
) -> None:
    """One event times out each time and is all that the lane has: the circuit opens. As soon as there is another, that
    one is the probe, the lane goes on, and the event runs out of attempts."""
    eyes, runs = Eyes(memory, namespace), Counter[int]()
    worker = Worker("callers")

    @worker.on(
        PaintingMade, timeout=1, retry=Backoff(attempts=3, base=0.1), breaker=Breaker(failures=2, pause=2, cap=8)
    )
    async def call(event: PaintingMade) -> PaintingFramed:
        runs[event.number] += 1
        if event.number == 0:
            await trio.sleep_forever()
        return PaintingFramed(number=event.number)

    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=0))
        await until(lambda: bus.statistics()[0].open_circuits, 60)
        await trio.sleep(120)
        assert eyes.dead("callers") == [] and runs[0] > 10, "alone, it says nothing of the others: it waits"
        number = 0
        while not eyes.dead("callers"):
            assert number < 200
            number += 1
            await bus.publish(PaintingMade(number=number))
            await trio.sleep(1)
        await quiet(eyes, timeout=60)
    (letter,) = eyes.dead("callers")
    assert (letter.reason, letter.attempts) == ("exhausted", 3)
    assert framed(eyes) == dict.fromkeys(range(1, number + 1), 1)


async def test_a_long_outage_takes_no_more_memory(virtual: Clock, memory: MemoryServer, namespace: str) -> None:
    """Most probes are put off by their own word. Of what the lane has handed back since it remembers nothing."""
    worker, runs = Worker("callers"), itertools.count()

    @worker.on(PaintingMade, breaker=Breaker(failures=1, pause=2, cap=2, share=0))
    async def call(event: PaintingMade) -> None:
        if next(runs) % 50 == 0:
            raise ConnectionRefusedError("nobody there")
        raise RetryLater(after=1)

    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(500)])
        await until(lambda: bus.statistics()[0].retries > 1500, 3600)
        (lane,) = runner_of(bus)._current.lanes  # type: ignore[union-attr]
        assert lane.breaking is not None
        await until(lambda: len(lane.breaking._put_off) <= lane.held + lane.waiting, 60)  # type: ignore[union-attr]


async def test_what_one_process_cannot_do_others_do(virtual: Clock, memory: MemoryServer, namespace: str) -> None:
    """Only one of two processes cannot get through: when its first probe has failed, too, it hands back what it holds,
    but a few, and the other one does nearly all of it at once."""
    sick, well, eyes = Dependency(), Dependency(), Eyes(memory, namespace)
    sick.down = True
    async with running(memory, calling(sick), namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(60)])
        await until(lambda: bus.statistics()[0].open_circuits, 60)
        async with running(memory, calling(well), namespace=namespace):
            await until(lambda: eyes.count("painting.framed") >= 50, 15)
            await trio.sleep(300)
            assert len(eyes.pending("callers")) <= 9
            sick.down = False
            await until(lambda: eyes.count("painting.framed") == 60, 61)
            await quiet(eyes)
    assert framed(eyes) == dict.fromkeys(range(60), 1) and eyes.dead("callers") == []


@pytest.mark.long
async def test_other_failures_count_as_ever(virtual: Clock, memory: MemoryServer, namespace: str) -> None:
    """What is not named in `on` opens nothing and costs attempts; Reject is heard while the circuit is open, too, and
    shows that something answers."""
    dependency, eyes = Dependency(), Eyes(memory, namespace)
    worker = Worker("callers")
    retry = {ValueError: Backoff(attempts=2, base=0), ConnectionError: Backoff(attempts=2, base=600, cap=600)}

    @worker.on(PaintingMade, concurrency=1, retry=retry, breaker=Breaker(failures=3))
    async def call(event: PaintingMade) -> None:
        await dependency.call(event.number)
        if event.title == "bad":
            raise ValueError("bad")
        if event.title == "reject":
            raise Reject("no")

    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n, title="bad") for n in range(10)])
        await until(lambda: len(eyes.dead("callers")) == 10, 30)
        assert {(d.reason, d.attempts) for d in eyes.dead("callers")} == {("exhausted", 2)}
        assert not bus.statistics()[0].open_circuits
        dependency.down = True
        await bus.publish_many([PaintingMade(number=n, title="reject") for n in range(10, 20)])
        await until(lambda: bus.statistics()[0].open_circuits, 30)
        dependency.down = False
        await trio.sleep(700)
        assert len(eyes.dead("callers")) == 20
        assert not bus.statistics()[0].open_circuits
    assert Counter(d.reason for d in eyes.dead("callers")) == {"exhausted": 10, "rejected": 10}


async def test_events_that_nobody_runs_are_no_probes(virtual: Clock, memory: MemoryServer, namespace: str) -> None:
    """Undecodable entries become dead letters while the circuit is open and do not close it; stale ones are skipped."""
    dependency, eyes = Dependency(), Eyes(memory, namespace)
    dependency.down = True
    async with running(memory, calling(dependency), namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(20)])
        await until(lambda: bus.statistics()[0].open_circuits, 30)
        for _ in range(30):
            eyes.put(b"garbage")
            await bus.publish(PaintingMade(number=99), expires_in=0.5)
            await trio.sleep(20)
        assert bus.statistics()[0].open_circuits and dependency.in_vain == len(dependency.calls)
        dependency.down = False
        await until(lambda: eyes.count("painting.framed") == 20, 61)
        await quiet(eyes, timeout=60)
    assert {d.reason for d in eyes.dead("callers")} == {"undecodable"} and len(eyes.dead("callers")) == 30


@pytest.mark.long
async def test_failures_named_one_by_one_in_a_batch_open_it(
    virtual: Clock, memory: MemoryServer, namespace: str
) -> None:
    """BatchFailure with ConnectionErrors: each counts, and each event is spared or tried again by its own."""
    eyes, down, calls = Eyes(memory, namespace), [True], list[int]()
    worker = Worker("callers")

    @worker.on_batch(PaintingMade, max_size=10, retry=Backoff(attempts=2, base=1), breaker=Breaker(failures=4))
    async def call_all(events: list[PaintingMade]) -> list[tuple[int, PaintingFramed]]:
        calls.append(len(events))
        if down[0]:
            raise BatchFailure({index: ConnectionError("away") for index in range(len(events))})
        return [(index, PaintingFramed(number=event.number)) for index, event in enumerate(events)]

    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(30)])
        await until(lambda: bus.statistics()[0].open_circuits, 30)
        await trio.sleep(600)
        down[0] = False
        await until(lambda: eyes.count("painting.framed") == 30, 61)
        await quiet(eyes)
    assert framed(eyes) == dict.fromkeys(range(30), 1) and eyes.dead("callers") == []
    assert sum(calls) < 80


async def test_suspects_wait_for_the_end_of_an_outage_too(virtual: Clock, memory: MemoryServer, namespace: str) -> None:
    """A worker dies with five events begun; its successor finds the dependency down. No suspect pays an attempt for
    that, none runs while the circuit is open, and in the end each runs once more, alone."""
    dependency, eyes, faulty = Dependency(), Eyes(memory, namespace), FaultyServer(memory)
    patient = Worker("callers")

    @patient.on(PaintingMade, concurrency=8)
    async def begin(event: PaintingMade) -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        bus = await nursery.start(begin_and_wait, faulty, patient, namespace)
        await bus.publish_many([PaintingMade(number=n) for n in range(5)])
        await until(lambda: bus.statistics()[0].running == 5)
        faulty.cut()
        nursery.cancel_scope.cancel()
    dependency.down = True
    worker = calling(dependency, retry=Backoff(attempts=1), breaker=Breaker(failures=1, pause=20))
    async with running(memory, worker, namespace=namespace) as bus:
        await until(lambda: bus.statistics()[0].open_circuits, 30)
        await trio.sleep(300)
        assert len({number for _, number, _ in dependency.calls}) == 5, "there is nothing else to probe with"
        assert len(dependency.calls) < 15 and bus.statistics()[0].spared == dependency.in_vain
        assert {count for _, _, count in eyes.pending("callers")} == {1}, "what was written before it ran is taken back"
        dependency.down = False
        await until(lambda: eyes.count("painting.framed") == 5, 300)
        await quiet(eyes)
    assert framed(eyes) == dict.fromkeys(range(5), 1) and eyes.dead("callers") == []


async def begin_and_wait(
    server: FaultyServer, worker: Worker, namespace: str, task_status: trio.TaskStatus[EventBus]
) -> None:
    async with running(server, worker, namespace=namespace) as bus:
        task_status.started(bus)
        await trio.sleep_forever()


@pytest.mark.parametrize("batch", [False, True])
async def test_over_every_server(any_url: str, namespace: str, eyes: Eyes, batch: bool) -> None:
    """Down, and back: everything is done once, without a dead letter, and what waits for that is pending or unread."""
    dependency = Dependency()
    dependency.down = True
    worker = calling(dependency, batch=batch, breaker=Breaker(failures=3, pause=0.02, cap=0.1))
    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(100)])
        await until(lambda: dependency.in_vain > 12)
        assert bus.statistics()[0].open_circuits and eyes.count("painting.framed") == 0
        dependency.down = False
        await until(lambda: eyes.count("painting.framed") >= 100)
        await quiet(eyes)
    assert framed(eyes) == dict.fromkeys(range(100), 1) and eyes.dead("callers") == []


async def test_leaving_with_an_open_circuit_hands_everything_back(any_url: str, namespace: str, eyes: Eyes) -> None:
    """At once, however long the pause; whoever comes next handles it, at its first attempt."""
    dependency = Dependency()
    dependency.down = True
    breaker, retry = Breaker(failures=3, pause=600, cap=600), Backoff(attempts=9, base=600, cap=600)
    worker = calling(dependency, breaker=breaker, retry=retry)
    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(40)])
        await until(lambda: bus.statistics()[0].open_circuits)
        await until(lambda: bus.statistics()[0].running == 0)
        with trio.fail_after(5):
            await bus.aclose()
    assert {owner for _, owner, _ in eyes.pending("callers")} <= {"~free"}
    # Of three failures one opened it; what was not written down yet when everything went back is not counted.
    assert sum(deliveries - 1 for _, _, deliveries in eyes.pending("callers")) <= 2
    dependency.down = False
    async with running(any_url, calling(dependency), namespace=namespace):
        await until(lambda: eyes.count("painting.framed") >= 40)
        await quiet(eyes)
    assert framed(eyes) == dict.fromkeys(range(40), 1)


@pytest.mark.parametrize("seed", seeds(3, "outages"))
async def test_random_outages_lose_nothing(virtual: Clock, memory: MemoryServer, namespace: str, seed: int) -> None:
    """Workers come, crash and leave, packets are lost, and what they call falls down and gets up again: in the end each
    event is framed once, none is given up, and nothing is left in anybody's hands."""
    dice, eyes, dependency = Random(seed), Eyes(memory, namespace), Dependency()
    over = trio.Event()

    def caller() -> Worker:
        breaker = Breaker(failures=dice.choice([1, 3]), pause=1, cap=dice.choice([2, 8]), share=dice.choice([0, 0.5]))
        retry = Backoff(attempts=60, base=0.2, cap=1)
        return calling(dependency, batch=dice.random() < 0.3, retry=retry, breaker=breaker)

    async def flap() -> None:
        while not over.is_set():
            dependency.down = not dependency.down
            await trio.sleep(dice.choice([0.3, 3, 20]))
        dependency.down = False

    async def one_life() -> None:
        faulty = FaultyServer(memory)
        for _ in range(dice.randrange(3)):
            what = dice.choice([b"EVALSHA", b"XREADGROUP", b"XACK"])
            faulty.faults.append(Fault(dice.choice(["lose_reply", "lose_request"]), what))
        with trio.move_on_after(dice.uniform(1, 40)) as life:
            async with running(faulty, caller(), namespace=namespace, grace=dice.choice([0.1, 5.0])):
                await trio.sleep(dice.uniform(1, 40))
                if dice.random() < 0.5:
                    faulty.cut()
                    life.cancel()
                    await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flap)
        async with running(memory, namespace=namespace) as bus:
            for start in range(0, 200, 20):
                await bus.publish_many([PaintingMade(number=n) for n in range(start, start + 20)])
                for _ in range(dice.randrange(3)):
                    nursery.start_soon(one_life)
                await trio.sleep(dice.uniform(0, 20))
        over.set()
    async with running(memory, caller(), namespace=namespace) as bus:
        await trio.sleep(120)
        await quiet(eyes, timeout=60)
        assert (runner_of(bus).statistics().held, runner_of(bus).statistics().waiting) == (0, 0)
    assert framed(eyes) == dict.fromkeys(range(200), 1) and eyes.dead("callers") == []
