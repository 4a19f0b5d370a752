"""Probes of an open circuit: whatever becomes of one, its lane does not stay shut."""

import threading
from collections import Counter

import trio
from consume.circuits import Dependency, calling, framed, suspect
from studio import Eyes, PaintingFramed, PaintingMade, SculptureMade, quiet, running
from trio.abc import Clock
from waiting import until

from canvasbus.transport.memory import MemoryServer
from canvasbus.worker import Backoff, Breaker, RetryLater, Worker, rate_limit


class Hanging:
    """A plain handler: event 1 hangs in its thread until it is let go, the others meet an outage."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.down = True
        self.finished: list[int] = []
        self.worker = Worker("callers")
        guarded = self.worker.on(PaintingMade, concurrency=4, timeout=5, breaker=Breaker(failures=1, pause=1, cap=4))
        guarded(self.call)

    def call(self, event: PaintingMade) -> PaintingFramed:
        if event.number == 1:
            self.let_go.wait()
        elif self.down:
            raise ConnectionRefusedError("nobody there")
        self.finished.append(event.number)
        return PaintingFramed(number=event.number)


async def test_a_suspect_that_comes_while_the_probe_waits_for_its_turn_keeps_no_lane_shut(
    virtual: Clock, memory: MemoryServer, namespace: str, eyes: Eyes
) -> None:
    """Suspects run alone one at a time in a process. While the probe waits until that of another lane is done, a suspect
    of its own lane comes back from its retry, and stands before it. Both run in the end."""
    eyes, dependency, finished = Eyes(memory, namespace), Dependency(), list[int]()
    async with running(memory, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(4)])
        await bus.publish(SculptureMade())
    suspect(eyes)
    suspect(eyes, "sculpture.made", alone=True)
    worker, runs = Worker("callers"), Counter[int]()

    @worker.on(
        PaintingMade,
        concurrency=2,
        retry={ValueError: Backoff(attempts=5, base=20, cap=20), Exception: Backoff(attempts=5)},
        breaker=Breaker(failures=1, pause=1),
    )
    async def call(event: PaintingMade) -> None:
        runs[event.number] += 1
        if event.number == 0 and runs[0] == 1:
            raise ValueError("not the dependency's fault")
        await dependency.call(event.number)
        finished.append(event.number)

    @worker.on(SculptureMade, concurrency=1, timeout=300)
    async def carve(event: SculptureMade) -> None:
        await trio.sleep(60)

    dependency.down = True
    async with running(memory, worker, namespace=namespace) as bus:
        await until(lambda: bus.statistics()[0].open_circuits, 30)
        dependency.down = False
        await trio.sleep(900)
        await bus.publish(PaintingMade(number=4))
        await trio.sleep(100)
        assert bus.statistics()[0].open_circuits == (), "it is up again, for a quarter of an hour"
        assert sorted(finished) == [0, 1, 2, 3, 4]


async def test_a_probe_that_joins_a_batch_which_was_being_gathered_keeps_no_lane_shut(
    virtual: Clock, memory: MemoryServer, namespace: str
) -> None:
    """A batch is gathered for longer than the circuit pauses. It opens meanwhile, by a suspect that runs alone, and the
    probe comes into that batch, which fails. Once the dependency is back all are handled."""
    eyes, dependency = Eyes(memory, namespace), Dependency()
    async with running(memory, namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=0))
    suspect(eyes, alone=True)
    worker, finished = Worker("callers"), list[int]()

    @worker.on_batch(PaintingMade, max_size=8, max_wait=10, breaker=Breaker(failures=1, pause=1))
    async def call_all(events: list[PaintingMade]) -> None:
        await dependency.call(events[0].number)
        finished.extend(event.number for event in events)

    dependency.down = True
    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(1, 4)])
        await until(lambda: bus.statistics()[0].open_circuits, 30)
        await bus.publish(PaintingMade(number=4))
        await trio.sleep(30)
        dependency.down = False
        await trio.sleep(900)
        assert bus.statistics()[0].open_circuits == (), "it is up again, for a quarter of an hour"
        assert sorted(finished) == [0, 1, 2, 3, 4]


async def test_a_suspect_in_a_batch_that_meets_an_outage_is_not_left_behind(
    virtual: Clock, memory: MemoryServer, namespace: str
) -> None:
    """A suspect runs in a batch among others when the dependency goes down. When it is back, that suspect and those that
    wait for their turn behind it are handled as well."""
    eyes, dependency = Eyes(memory, namespace), Dependency()
    async with running(memory, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(3)])
    suspect(eyes)
    async with running(memory, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(3, 6)])
    worker, finished = Worker("callers"), list[int]()

    @worker.on_batch(PaintingMade, max_size=8, max_wait=1, breaker=Breaker(failures=1))
    async def call_all(events: list[PaintingMade]) -> None:
        await dependency.call(events[0].number)
        finished.extend(event.number for event in events)

    dependency.down = True
    async with running(memory, worker, namespace=namespace) as bus:
        await until(lambda: bus.statistics()[0].open_circuits, 30)
        await trio.sleep(20)
        dependency.down = False
        await until(lambda: not bus.statistics()[0].open_circuits, 120)
        await trio.sleep(900)
        assert sorted(finished) == [0, 1, 2, 3, 4, 5], "the dependency is up again, for a quarter of an hour"


async def test_a_probe_that_hangs_in_a_thread_keeps_no_lane_shut(
    virtual: Clock, memory: MemoryServer, namespace: str
) -> None:
    """A plain function cannot be cut short. Such a probe has failed when its time is over: it keeps its slot, and the others
    are probed with in those that are left. What it says in the end is its own outcome."""
    eyes, hanging = Eyes(memory, namespace), Hanging()
    try:
        async with running(memory, hanging.worker, namespace=namespace) as bus:
            await bus.publish(PaintingMade(number=0))
            await until(lambda: bus.statistics()[0].open_circuits, 30)
            await bus.publish(PaintingMade(number=1))
            await until(lambda: bus.statistics()[0].timeouts == 1, 30)
            hanging.down = False
            await bus.publish_many([PaintingMade(number=n) for n in range(2, 6)])
            await trio.sleep(120)
            assert bus.statistics()[0].open_circuits == (), "it is up again, for two minutes"
            assert sorted(hanging.finished) == [0, 2, 3, 4, 5] and bus.statistics()[0].running == 1
            hanging.let_go.set()
            await quiet(eyes, timeout=60)
    finally:
        hanging.let_go.set()
    assert framed(eyes) == dict.fromkeys(range(6), 1) and eyes.dead("callers") == []


async def test_a_probe_that_cannot_be_cancelled_keeps_no_lane_shut(
    virtual: Clock, memory: MemoryServer, namespace: str
) -> None:
    """An async handler that waits behind a shield, for a thread of its own for example, is as little to be ended as a plain
    function, and no more waited for. What it says in the end is that its time was over."""
    eyes, hanging, down, finished = Eyes(memory, namespace), trio.Event(), True, list[int]()
    worker = Worker("callers")

    @worker.on(PaintingMade, concurrency=4, timeout=5, breaker=Breaker(failures=1, pause=1, cap=4))
    async def call(event: PaintingMade) -> PaintingFramed:
        if event.number == 1:
            with trio.CancelScope(shield=True):
                await hanging.wait()
        elif down:
            raise ConnectionRefusedError("nobody there")
        finished.append(event.number)
        return PaintingFramed(number=event.number)

    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=0))
        await until(lambda: bus.statistics()[0].open_circuits, 30)
        await bus.publish(PaintingMade(number=1))
        await trio.sleep(20)
        down = False
        await bus.publish_many([PaintingMade(number=n) for n in range(2, 6)])
        await trio.sleep(120)
        resting, running_yet, before = bus.statistics()[0].open_circuits, bus.statistics()[0].running, sorted(finished)
        hanging.set()
        assert resting == (), "it is up again, for two minutes"
        assert before == [0, 2, 3, 4, 5] and running_yet == 1
        await quiet(eyes, timeout=60)
    assert framed(eyes) == dict.fromkeys(range(6), 1) and eyes.dead("callers") == []


async def test_a_suspect_that_hangs_in_a_thread_is_not_waited_for_by_the_next_probe(
    virtual: Clock, memory: MemoryServer, namespace: str
) -> None:
    """Nothing but suspects is there to probe with, and the first of them hangs. The second would have to wait until that one
    has run: it is no probe, but what comes is."""
    eyes, hanging = Eyes(memory, namespace), Hanging()
    async with running(memory, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(3)])
    suspect(eyes, alone=True)
    try:
        async with running(memory, hanging.worker, namespace=namespace) as bus:
            await until(lambda: bus.statistics()[0].timeouts == 1, 60)
            await trio.sleep(60)
            hanging.down = False
            await bus.publish_many([PaintingMade(number=n) for n in range(3, 6)])
            await trio.sleep(120)
            assert bus.statistics()[0].open_circuits == (), "it is up again, for two minutes"
            assert {3, 4, 5} <= set(hanging.finished)
            hanging.let_go.set()
            await quiet(eyes, timeout=60)
    finally:
        hanging.let_go.set()
    assert framed(eyes) == dict.fromkeys(range(6), 1) and eyes.dead("callers") == []


async def test_a_suspect_that_runs_for_long_keeps_no_other_lane_shut(
    virtual: Clock, memory: MemoryServer, namespace: str
) -> None:
    """One suspect runs alone at a time in a process. One that would have to wait for that of another lane is no probe, but
    what comes is."""
    eyes, down, finished = Eyes(memory, namespace), True, list[int]()
    async with running(memory, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(2)])
        await bus.publish(SculptureMade())
    suspect(eyes, alone=True)
    suspect(eyes, "sculpture.made", alone=True)
    worker = Worker("callers")

    @worker.on(SculptureMade, timeout=500)
    async def carve(event: SculptureMade) -> None:
        await trio.sleep(300)

    @worker.on(PaintingMade, concurrency=4, breaker=Breaker(failures=1, pause=1, cap=4))
    async def call(event: PaintingMade) -> PaintingFramed:
        if down:
            raise ConnectionRefusedError("nobody there")
        finished.append(event.number)
        return PaintingFramed(number=event.number)

    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=5))
        await until(lambda: bus.statistics()[0].open_circuits, 30)
        await trio.sleep(20)
        down = False
        await bus.publish_many([PaintingMade(number=n) for n in range(2, 5)])
        await trio.sleep(60)
        assert bus.statistics()[0].open_circuits == (), "it is up again, for a minute"
        assert {2, 3, 4, 5} <= set(finished)
        await quiet(eyes, timeout=400)
    assert framed(eyes) == dict.fromkeys(range(6), 1) and eyes.dead("callers") == []


async def test_a_plain_function_that_is_only_slow_closes_the_circuit(
    virtual: Clock, memory: MemoryServer, namespace: str
) -> None:
    """Each run takes twice its timeout, which is only told, and comes to a good end: so do its probes."""
    eyes, down = Eyes(memory, namespace), True
    worker = Worker("callers")

    @worker.on(PaintingMade, concurrency=2, timeout=5, breaker=Breaker(failures=1, pause=1, cap=4))
    def call(event: PaintingMade) -> PaintingFramed:
        if down:
            raise ConnectionRefusedError("nobody there")
        trio.from_thread.run(trio.sleep, 10)
        return PaintingFramed(number=event.number)

    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(6)])
        await until(lambda: bus.statistics()[0].open_circuits, 30)
        down = False
        await until(lambda: not bus.statistics()[0].open_circuits, 60)
        await quiet(eyes, timeout=120)
    assert framed(eyes) == dict.fromkeys(range(6), 1) and eyes.dead("callers") == []


async def test_whoever_is_put_off_tells_nothing_of_the_outside(
    virtual: Clock, memory: MemoryServer, namespace: str
) -> None:
    """A handler with a rate limit meets an outage of ten minutes. Those that the limit puts off were not even run, so as probes
    they do not close the circuit: no event is given up."""
    dependency, eyes = Dependency(), Eyes(memory, namespace)
    dependency.down = True
    worker = calling(dependency, breaker=Breaker(failures=3, within=1000))
    worker.use(rate_limit(1, per=10))
    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(30)])
        await until(lambda: bus.statistics()[0].open_circuits, 60)
        await trio.sleep(600)
        assert bus.statistics()[0].open_circuits and eyes.dead("callers") == []
        dependency.down = False
        await until(lambda: eyes.count("painting.framed") == 30, 600)
    assert framed(eyes) == dict.fromkeys(range(30), 1) and eyes.dead("callers") == []


async def test_whoever_is_put_off_again_and_again_leaves_the_probe_to_others(
    virtual: Clock, memory: MemoryServer, namespace: str
) -> None:
    """One event says "in half a second" each time, and never asks the dependency; the other one would close the circuit."""
    worker, down, finished = Worker("callers"), True, list[int]()

    @worker.on(PaintingMade, concurrency=1, breaker=Breaker(failures=1, pause=1))
    async def call(event: PaintingMade) -> None:
        if event.number == 0:
            raise RetryLater(0.5)
        if down:
            raise ConnectionRefusedError("nobody there")
        finished.append(event.number)

    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(2)])
        await until(lambda: bus.statistics()[0].open_circuits, 30)
        await trio.sleep(20)
        assert bus.statistics()[0].open_circuits
        down = False
        await trio.sleep(120)
        assert bus.statistics()[0].open_circuits == () and finished == [1]
