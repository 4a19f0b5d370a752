"""Suspects: a few at a time, then those among whom the killer is, alone."""

from collections import Counter

import pytest
import trio
from faulty import FaultyServer
from studio import Eyes, PaintingMade, quiet, running
from trio.abc import Clock
from waiting import until

from canvasbus.consume.quarantine import BEDS
from canvasbus.transport.memory import MemoryServer
from canvasbus.worker import Backoff, Context, Worker


class Lives:
    """One worker after another on one server. Each handles an event for two seconds."""

    def __init__(self, memory: MemoryServer, namespace: str) -> None:
        self.memory = memory
        self.namespace = namespace
        self.eyes = Eyes(memory, namespace)
        self.running: set[int] = set()
        self.most = 0
        """How many ran at a time, in this life."""
        self.runs: Counter[int] = Counter()
        self.done: Counter[int] = Counter()
        self.attempts: dict[int, list[int]] = {}

    def worker(self, killers: set[int], crash: trio.Event, concurrency: int, *, batch: bool = False) -> Worker:
        worker = Worker("framers")
        retry = Backoff(attempts=2, base=0.1)

        async def run(events: list[PaintingMade], attempt: int) -> None:
            numbers = {event.number for event in events}
            self.running |= numbers
            self.most = max(self.most, len(self.running))
            self.runs.update(numbers)
            for number in numbers:
                self.attempts.setdefault(number, []).append(attempt)
            try:
                await trio.sleep(1)
                if numbers & killers:
                    crash.set()
                    await trio.sleep_forever()
                await trio.sleep(1)
                self.done.update(numbers)
            finally:
                self.running -= numbers

        if batch:

            @worker.on_batch(PaintingMade, max_size=concurrency, retry=retry)
            async def frame_all(events: list[PaintingMade], ctxs: list[Context]) -> None:
                await run(events, ctxs[0].attempt)
        else:

            @worker.on(PaintingMade, concurrency=concurrency, retry=retry)
            async def frame(event: PaintingMade, ctx: Context) -> None:
                await run([event], ctx.attempt)

        return worker

    async def live(self, killers: set[int], concurrency: int = 8, *, seconds: float = 900, batch: bool = False) -> bool:
        """Run until a killer has killed the worker, or all is done. True: it was killed."""
        crash, faulty = trio.Event(), FaultyServer(self.memory)
        self.running.clear()
        self.most = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run, faulty, self.worker(killers, crash, concurrency, batch=batch))
            with trio.move_on_after(seconds):
                while not crash.is_set() and not self.over:
                    await trio.sleep(0.25)
            if crash.is_set():
                faulty.cut()
            nursery.cancel_scope.cancel()
        return crash.is_set()

    async def _run(self, server: FaultyServer, worker: Worker) -> None:
        async with running(server, worker, namespace=self.namespace):
            await trio.sleep_forever()

    @property
    def over(self) -> bool:
        """All are done or given up, and acknowledged."""
        ended = len(self.done) + len(self.eyes.dead("framers"))
        return ended == self.published and not self.eyes.pending("framers")

    async def publish(self, count: int) -> None:
        self.published = count
        async with running(self.memory, namespace=self.namespace) as bus:
            await bus.publish_many([PaintingMade(number=n) for n in range(count)])

    def owners(self) -> Counter[tuple[str, int]]:
        return Counter((owner.partition("-")[0], count) for _, owner, count in self.eyes.pending("framers"))


@pytest.fixture
def lives(virtual: Clock, memory: MemoryServer, namespace: str) -> Lives:
    return Lives(memory, namespace)


async def test_what_a_dead_worker_held_runs_side_by_side(virtual: Clock, lives: Lives) -> None:
    """Its death had nothing to do with its events: 200 of them, two seconds each, are done in the time that eight at a
    time take, and not one after another (that took 400 seconds)."""
    await lives.publish(200)
    assert await lives.live(set(range(200)), concurrency=200)
    assert len(lives.eyes.pending("framers")) == 200
    began = trio.current_time()
    assert not await lives.live(set(), concurrency=8)
    assert trio.current_time() - began < 7 + 200 / 8 * 2 * 1.5
    assert lives.done == dict.fromkeys(range(200), 1) and lives.most == 8
    assert lives.eyes.dead("framers") == []


async def test_what_a_dead_worker_held_runs_in_batches(virtual: Clock, memory: MemoryServer, namespace: str) -> None:
    """A handler of batches gets its suspects as many at a time, and not one by one, each after a wait for more (320
    suspects and five seconds took 37 minutes)."""
    eyes, sizes = Eyes(memory, namespace), list[int]()
    async with running(memory, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(10 * BEDS)])
    eyes.call("XGROUP", "CREATE", eyes.stream(), "framers", "0")
    eyes.call("XREADGROUP", "GROUP", "framers", "~suspect", "STREAMS", eyes.stream(), ">")
    worker = Worker("framers")

    @worker.on_batch(PaintingMade, max_size=100, max_wait=5)
    async def frame_all(events: list[PaintingMade]) -> None:
        sizes.append(len(events))
        await trio.sleep(2)

    async with running(memory, worker, namespace=namespace):
        began = trio.current_time()
        await quiet(eyes, timeout=4000)
    assert trio.current_time() - began < 10 * (5 + 2) * 1.5 and sizes == [BEDS] * 10


@pytest.mark.parametrize("batch", [False, True])
async def test_the_killer_among_few_then_alone(virtual: Clock, lives: Lives, batch: bool) -> None:
    """First death among all, second among eight at most; those eight run alone after that, and only there the killer's
    attempts are counted: two, and it is the only dead letter. Nobody else ever sees a second attempt."""
    await lives.publish(40)
    deaths = 0
    while await lives.live({17}, batch=batch):
        deaths += 1
        assert deaths < 9
        if deaths == 2:
            assert lives.most <= 8
    assert deaths == 4
    (letter,) = lives.eyes.dead("framers")
    assert (letter.reason, letter.attempts) == ("lost_workers", 2)
    assert lives.done == {n: 1 for n in range(40) if n != 17}
    assert lives.attempts[17] == [1, 1, 1, 2]
    assert {attempt for n, seen in lives.attempts.items() for attempt in seen if n != 17} == {1}


async def test_two_killers_do_not_hide_behind_each_other(virtual: Clock, lives: Lives) -> None:
    """Each ends in the dead letters after its own two attempts alone, all others are done."""
    await lives.publish(60)
    deaths = 0
    while await lives.live({20, 23}):
        deaths += 1
        assert deaths < 15
    letters = lives.eyes.dead("framers")
    assert [(d.reason, d.attempts) for d in letters] == [("lost_workers", 2)] * 2
    assert lives.done == {n: 1 for n in range(60) if n not in (20, 23)}


async def test_no_more_than_the_beds_run_side_by_side(virtual: Clock, lives: Lives) -> None:
    """So many would have to run alone after another death, whatever the concurrency."""
    await lives.publish(150)
    assert await lives.live(set(range(150)), concurrency=150)
    assert not await lives.live(set(), concurrency=150)
    assert lives.most == BEDS and len(lives.done) == 150


async def test_whoever_has_to_run_alone_still_has_after_a_restart(virtual: Clock, lives: Lives) -> None:
    """Handed back before their turn, they keep their mark; the one whose run alone was cut short has no attempt more."""
    await lives.publish(8)
    assert await lives.live({3}) and await lives.live({3})
    await lives.live(set(), seconds=8)  # dead after five seconds, then the first one runs alone, and is cut short
    assert lives.owners() == {("~suspect", 0): len(lives.eyes.pending("framers"))}
    left = len(lives.eyes.pending("framers"))
    assert left >= 6
    began = trio.current_time()
    assert not await lives.live(set())
    assert lives.most == 1 and trio.current_time() - began > left * 2 - 2
    assert lives.done == dict.fromkeys(range(8), 1)


async def test_marks_are_kept_by_every_server(any_url: str, namespace: str, eyes: Eyes) -> None:
    """A count of 0 is written and read back by fakeredis, Redis and Valkey alike: such an entry runs alone."""
    stream, most, now, go_on = eyes.stream(), 0, 0, trio.Event()
    worker = Worker("framers")

    @worker.on(PaintingMade, concurrency=8)
    async def frame(event: PaintingMade) -> None:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await go_on.wait()
        await trio.lowlevel.checkpoint()
        now -= 1

    async with running(any_url, namespace=namespace) as bus:
        entries = await bus.publish_many([PaintingMade(number=n) for n in range(4)])
    eyes.call("XGROUP", "CREATE", stream, "framers", "0")
    eyes.call("XREADGROUP", "GROUP", "framers", "~suspect", "STREAMS", stream, ">")
    eyes.call("XCLAIM", stream, "framers", "~suspect", 0, *entries, "RETRYCOUNT", 0, "JUSTID")
    async with running(any_url, worker, namespace=namespace):
        await until(lambda: now == 1)
        counts = Counter(count for _, _, count in eyes.pending("framers"))
        assert counts == {0: 3, 2: 1}, "its attempt is written before it begins"
        go_on.set()
        await quiet(eyes)
    assert most == 1


async def test_what_a_handler_raised_is_no_death(virtual: Clock, memory: MemoryServer, namespace: str) -> None:
    """Some exceptions have more attempts than a worker may die of an event. What has failed oftener than that with them, as
    in an outage, runs on when its worker is killed or leaves, with its number; only a death on top of it is the end."""
    eyes, attempts, deadly = Eyes(memory, namespace), list[int](), False
    rules = {ConnectionError: Backoff(attempts=30, base=60, cap=60), Exception: Backoff(attempts=2)}

    async def live(until_attempt: int, *, killed: bool) -> None:
        faulty, worker, came = FaultyServer(memory), Worker("framers"), trio.Event()

        @worker.on(PaintingMade, retry=rules)
        async def frame(event: PaintingMade, ctx: Context) -> None:
            attempts.append(ctx.attempt)
            if ctx.attempt == until_attempt:
                came.set()
                if deadly:
                    await trio.sleep_forever()
            raise ConnectionError("the framer is away")

        async with trio.open_nursery() as nursery, running(faulty, worker, namespace=namespace):
            with trio.move_on_after(2_000):
                await came.wait()
            await trio.sleep(0.05)  # what it failed is written down
            if killed:
                faulty.cut()
                nursery.cancel_scope.cancel()

    async with running(memory, namespace=namespace) as bus:
        await bus.publish(PaintingMade())
    for last, killed in ((6, True), (9, False), (12, False), (15, True)):
        await live(last, killed=killed)
        assert attempts == list(range(1, last + 1)) and eyes.dead("framers") == []
    deadly = True
    await live(16, killed=True)
    await live(99, killed=False)
    (letter,) = eyes.dead("framers")
    assert (letter.reason, letter.attempts) == ("lost_workers", 16)
    assert attempts == list(range(1, 17)) and eyes.pending("framers") == []
