"""Handlers with dedupe=: an event that lies on the stream twice has its effect once."""

import random
from collections import Counter
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from faulty import Fault, FaultyServer
from operate.test_redrive import redrive_all
from seeds import seeds
from servers import ServerProcess
from studio import Eyes, PaintingFramed, PaintingMade, SculptureMade, quiet, runner_of, running
from waiting import until

from canvasbus import ContractError
from canvasbus.consume.instances import forget
from canvasbus.operate.steering import plan, reset
from canvasbus.transport.connect import open_server
from canvasbus.transport.memory import MemoryServer
from canvasbus.transport.settle_script import SETTLE
from canvasbus.worker import Backoff, Breaker, Context, Later, RetryLater, Worker

Clock = trio.testing.MockClock
DAY = 24 * 3600.0


class Framers:
    """A worker that frames each painting, and what it was called for."""

    def __init__(self, *, dedupe: float | None = DAY, **options: Any) -> None:
        self.worker = Worker("framers")
        self.called: list[int] = []
        self.broken: set[int] = set()
        self.gate = trio.Event()
        self.gate.set()

        @self.worker.on(PaintingMade, dedupe=dedupe, **options)
        async def frame(event: PaintingMade) -> PaintingFramed:
            self.called.append(event.number)
            await self.gate.wait()
            if event.number in self.broken:
                raise ValueError("no frame")
            return PaintingFramed(number=event.number)


def copy(eyes: Eyes, *which: int) -> None:
    """Put entries of the stream on it once more, as a bridge or a careless producer would; all of them by default."""
    rows = eyes.call("XRANGE", eyes.stream(), "-", "+")
    for row in [rows[index] for index in which] if which else rows:
        eyes.put(row[1][1])


def framed(eyes: Eyes) -> Counter[int]:
    return Counter(event.number for event in eyes.events("painting.framed"))


def marks(eyes: Eyes) -> list[bytes]:
    return list(eyes.call("KEYS", eyes.keys.done("framers", "*")))


def duplicates(bus: Any) -> int:
    return int(bus.statistics()[0].duplicates)


@pytest.mark.parametrize("dedupe", [None, DAY])
async def test_published_again(any_url: str, namespace: str, eyes: Eyes, dedupe: float | None) -> None:
    """With dedupe the handler is not called again, nothing is committed, and it is counted; without it all happens
    twice. Nothing stays pending."""
    framers = Framers(dedupe=dedupe)
    async with running(any_url, framers.worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(50)])
        await quiet(eyes)
        copy(eyes)
        await quiet(eyes)
        times = 1 if dedupe else 2
        assert framed(eyes) == dict.fromkeys(range(50), times) and len(framers.called) == 50 * times
        await until(lambda: duplicates(bus) == (50 if dedupe else 0) and bus.statistics()[0].handled == 50 * times)
    assert len(marks(eyes)) == (50 if dedupe else 0)


async def test_the_mark(any_url: str, namespace: str, eyes: Eyes) -> None:
    """It names the entry that was handled and lives as long as the window; a double changes nothing of it."""
    async with running(any_url, Framers(dedupe=1000).worker, namespace=namespace) as bus:
        entry_id = await bus.publish(PaintingMade())
        await quiet(eyes)
        ((envelope, _),) = eyes.entries("painting.made")
        name = eyes.keys.done("framers", envelope.id.hex)
        assert eyes.call("GET", name) == str(entry_id).encode() and 900_000 < eyes.call("PTTL", name) <= 1_000_000
        eyes.call("PEXPIRE", name, 500_000)
        copy(eyes)
        await quiet(eyes)
        assert eyes.call("GET", name) == str(entry_id).encode() and eyes.call("PTTL", name) <= 500_000


async def test_doubles_in_one_read(any_url: str, namespace: str, eyes: Eyes) -> None:
    """They come in together, before any mark is there: the second waits for the first, and is not called either."""
    async with running(any_url, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(20)])
        copy(eyes)
        copy(eyes, *range(10))
    framers = Framers()
    async with running(any_url, framers.worker, namespace=namespace) as bus:
        await quiet(eyes)
        assert framed(eyes) == dict.fromkeys(range(20), 1) and sorted(framers.called) == list(range(20))
        await until(lambda: duplicates(bus) == 30)


async def test_a_double_of_one_that_fails(any_url: str, namespace: str, eyes: Eyes) -> None:
    """It waits until the first is given up, then is tried itself: what was never handled has no mark."""
    framers = Framers(retry=Backoff(attempts=2, base=0.01))
    framers.broken.add(0)
    async with running(any_url, namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=0))
        copy(eyes)
    async with running(any_url, framers.worker, namespace=namespace):
        await until(lambda: len(eyes.dead("framers")) == 1)
        framers.broken.clear()
        await quiet(eyes)
    assert framed(eyes) == {0: 1} and framers.called == [0, 0, 0] and len(marks(eyes)) == 1


async def test_two_processes_at_the_same_moment(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Each runs one of the two entries; the script lets one of them have its effect."""
    one, two = Framers(concurrency=1), Framers(concurrency=1)
    one.gate, two.gate = trio.Event(), trio.Event()
    async with (
        running(any_url, one.worker, namespace=namespace) as a,
        running(any_url, two.worker, namespace=namespace) as b,
    ):
        await a.publish(PaintingMade(number=0))
        await until(lambda: one.called or two.called)
        (runner_of(a) if one.called else runner_of(b))._current.lanes[0].window = 1  # type: ignore[union-attr]
        for _ in range(100):  # until the other one is given an entry
            copy(eyes, 0)
            if one.called and two.called:
                break
            await trio.sleep(0.02)
        assert one.called == two.called == [0]
        one.gate.set()
        two.gate.set()
        await quiet(eyes, timeout=20)
        assert framed(eyes) == {0: 1} and duplicates(a) + duplicates(b) == eyes.count("painting.made") - 1


@pytest.mark.parametrize("match", ["settle", "MGET"])
@pytest.mark.parametrize("kind", ["lose_reply", "lose_request"])
async def test_lost_packets(any_url: str, namespace: str, eyes: Eyes, kind: Any, match: str) -> None:
    """Whatever is lost, of the look before or of the commit: one effect for each event."""
    faulty = FaultyServer(open_server(any_url))
    framers = Framers()
    async with running(faulty, framers.worker, namespace=namespace) as bus:
        for start in range(0, 100, 20):
            faulty.faults.append(Fault(kind, SETTLE.sha.encode() if match == "settle" else b"$4\r\nMGET"))
            await bus.publish_many([PaintingMade(number=n) for n in range(start, start + 20)])
            copy(eyes)
            await until(lambda start=start: framed(eyes).total() == start + 20)
            await quiet(eyes)
        assert faulty.struck == 5 and framed(eyes) == dict.fromkeys(range(100), 1)


async def test_plain_handlers_stay_plain(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Without dedupe a handler that returns nothing is acknowledged by XACK and by nothing else, and nobody asks for
    marks."""
    faulty = FaultyServer(open_server(any_url))
    packets: list[bytes] = []
    worker = Worker("framers")

    @worker.on(PaintingMade)
    async def look(_: PaintingMade) -> None: ...

    async with running(faulty, worker, namespace=namespace) as bus:
        faulty.on_packet = packets.append
        await bus.publish_many([PaintingMade(number=n) for n in range(50)])
        await quiet(eyes)
        faulty.on_packet = None
    assert any(b"XACK" in packet for packet in packets)
    assert not any(
        SETTLE.sha.encode() in packet or b"$4\r\nMGET" in packet or b":done:" in packet for packet in packets
    )


async def test_a_handler_that_returns_nothing(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Its mark is its only effect, and known."""
    worker, called = Worker("framers"), []

    @worker.on(PaintingMade, dedupe=60)
    def look(event: PaintingMade) -> None:
        called.append(event.number)

    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(20)])
        copy(eyes)
        await quiet(eyes)
    assert sorted(called) == list(range(20)) and len(marks(eyes)) == 20


class Total(msgspec.Struct):
    total: int = 0


async def test_nothing_of_a_double_is_committed(any_url: str, namespace: str, eyes: Eyes) -> None:
    """State, parts, timers and derived events: also where both entries were run, because no mark was there to be seen."""
    worker = Worker("framers")
    runs: list[int] = []
    gate = trio.Event()

    @worker.on(PaintingMade, dedupe=60)
    async def frame(event: PaintingMade, ctx: Context) -> Any:
        runs.append(event.number)
        state = await ctx.state("all", Total)
        state.value.total += 1
        ctx.parts("all", int).put(f"{len(runs)}", event.number)
        await gate.wait()
        return [PaintingFramed(number=event.number), Later(SculptureMade(), after=3600, timer=f"{len(runs)}")]

    async with running(any_url, worker, namespace=namespace) as bus:
        entry = await bus.publish(PaintingMade(number=1))
        await until(lambda: runs)
        ((envelope, _),) = eyes.entries("painting.made")
        # Another process handles it meanwhile, under another entry.
        eyes.call("SET", eyes.keys.done("framers", envelope.id.hex), "1-1")
        gate.set()
        await quiet(eyes)
        await until(lambda: duplicates(bus) == 1)  # counted when the answer comes, after the server has acknowledged
        assert entry and framed(eyes) == {}
        assert eyes.call("EXISTS", eyes.keys.state("framers", "all"), eyes.keys.parts("framers", "all")) == 0
        assert eyes.call("ZCARD", eyes.keys.timers) == 0
        await bus.publish(PaintingMade(number=2))
        await quiet(eyes)
        raw = eyes.call("GET", eyes.keys.state("framers", "all"))
        assert framed(eyes) == {2: 1} and raw[16:] == b"\x81\xa5total\x01"
        assert eyes.call("ZCARD", eyes.keys.timers) == 1


async def test_batch_handlers(any_url: str, namespace: str, eyes: Eyes) -> None:
    """A double is not in the list that the handler gets; positions of derived events are those of the list."""
    worker = Worker("framers")
    lists: list[list[int]] = []

    @worker.on_batch(PaintingMade, max_size=10, max_wait=0.01, dedupe=60)
    async def frame(events: list[PaintingMade]) -> Any:
        lists.append([event.number for event in events])
        return [(at, PaintingFramed(number=event.number)) for at, event in enumerate(events)]

    async with running(any_url, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(25)])
        copy(eyes, *range(0, 25, 2))
    async with running(any_url, worker, namespace=namespace) as bus:
        await quiet(eyes)
        copy(eyes, *range(25))
        await quiet(eyes)
        await until(lambda: duplicates(bus) == 13 + 25)
    assert sorted(n for some in lists for n in some) == list(range(25)) and framed(eyes) == dict.fromkeys(range(25), 1)


async def test_a_reset_runs_them_again(any_url: str, namespace: str, eyes: Eyes) -> None:
    """The entries that were handled are handled once more; their doubles are doubles still."""
    framers = Framers()
    async with running(any_url, framers.worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(10)])
        await quiet(eyes)
        copy(eyes)
        await quiet(eyes)
    keys = [eyes.keys]
    moves = eyes.run(plan(keys, "framers", "earliest", lambda _: True))
    eyes.run(reset(keys, "framers", moves))
    async with running(any_url, framers.worker, namespace=namespace) as bus:
        await quiet(eyes)
        await until(lambda: duplicates(bus) == 10)
        assert framed(eyes) == dict.fromkeys(range(10), 2)


async def test_a_dead_letter_that_is_redriven_runs(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Also one whose entry had been handled before a reset: giving it up takes its mark away. Redriven and handled, it
    is marked, and published again it is a double."""
    framers = Framers(retry=Backoff(attempts=1))
    async with running(any_url, framers.worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=1))
        await quiet(eyes)
    assert len(marks(eyes)) == 1
    framers.broken = {1, 2}
    moves = eyes.run(plan([eyes.keys], "framers", "earliest", lambda _: True))
    eyes.run(reset([eyes.keys], "framers", moves))
    async with running(any_url, framers.worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=2))
        await until(lambda: len(eyes.dead("framers")) == 2)
        assert marks(eyes) == []
        framers.broken.clear()
        assert redrive_all(eyes) == 2
        await until(lambda: framed(eyes) == {1: 2, 2: 1})
        copy(eyes)
        await quiet(eyes)
        await until(lambda: duplicates(bus) == 2)
        assert framed(eyes) == {1: 2, 2: 1}
        values = {eyes.call("GET", name)[:1] for name in marks(eyes)}
        assert values == {b"~"}


async def test_giving_up_a_double_leaves_the_mark(any_url: str, namespace: str, eyes: Eyes) -> None:
    """The second entry was running when the first came to its effect, and fails for good: its dead letter, redriven, is
    a double."""
    framers = Framers(retry=Backoff(attempts=1))
    framers.broken, framers.gate = {1}, trio.Event()
    async with running(any_url, framers.worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=1))
        await until(lambda: framers.called)
        ((envelope, _),) = eyes.entries("painting.made")
        name = eyes.keys.done("framers", envelope.id.hex)
        eyes.call("SET", name, "1-1")
        framers.gate.set()
        await until(lambda: len(eyes.dead("framers")) == 1)
        assert eyes.call("GET", name) == b"1-1"
        framers.broken.clear()
        assert redrive_all(eyes) == 1
        await until(lambda: duplicates(bus) == 1)
        assert framed(eyes) == {}


async def test_the_window_ends(virtual: Clock, memory: MemoryServer, namespace: str) -> None:
    """Known until then, handled anew after it."""
    eyes, framers = Eyes(memory, namespace), Framers(dedupe=120)
    async with running(memory, framers.worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=1))
        await quiet(eyes)
        for wait, count in ((110, 1), (20, 2), (110, 2)):
            await trio.sleep(wait)
            copy(eyes, 0)
            await quiet(eyes)
            assert framed(eyes) == {1: count}, wait


async def test_a_double_is_no_probe(virtual: Clock, memory: MemoryServer, namespace: str) -> None:
    """While a circuit is open a double tells nothing about the outside: it neither closes the circuit nor keeps it
    open."""
    eyes = Eyes(memory, namespace)
    worker, down, called = Worker("framers"), False, []

    @worker.on(PaintingMade, dedupe=DAY, breaker=Breaker(on=(ConnectionError,)))
    async def frame(event: PaintingMade) -> PaintingFramed:
        called.append(event.number)
        if down:
            raise ConnectionError("no frames")
        return PaintingFramed(number=event.number)

    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=-1))
        await quiet(eyes)
        down = True
        await bus.publish_many([PaintingMade(number=n) for n in range(20)])
        await until(lambda: bus.statistics()[0].open_circuits)
        copy(eyes, *([0] * 20))
        await until(lambda: duplicates(bus) >= 1, timeout=600)
        assert bus.statistics()[0].open_circuits
        down = False
        await quiet(eyes, timeout=600)
        assert framed(eyes) == dict.fromkeys(range(-1, 20), 1) and called.count(-1) == 1


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("suspects", [(), (0,), (1,), (0, 1)])
async def test_a_twin_keeps_no_circuit_open(
    virtual: Clock, memory: MemoryServer, namespace: str, batch: bool, suspects: tuple[int, ...]
) -> None:
    """The one event of a lane lies on the stream twice, and its handler finds the dependency down. Whichever of the two
    entries were with a worker that died, the other one does not take the place of the one that can probe, for ever."""
    eyes, worker, down = Eyes(memory, namespace), Worker("framers"), True
    options: dict[str, Any] = {"dedupe": DAY, "breaker": Breaker(failures=1, pause=1)}

    def frame(event: PaintingMade) -> PaintingFramed:
        if down:
            raise ConnectionError("no frames")
        return PaintingFramed(number=event.number)

    if batch:

        @worker.on_batch(PaintingMade, max_size=2, **options)
        async def frame_all(events: list[PaintingMade]) -> list[tuple[int, PaintingFramed]]:
            return [(index, frame(event)) for index, event in enumerate(events)]
    else:

        @worker.on(PaintingMade, concurrency=2, **options)
        async def frame_one(event: PaintingMade) -> PaintingFramed:
            return frame(event)

    async with running(memory, namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=1))
    copy(eyes)
    eyes.call("XGROUP", "CREATE", eyes.stream(), "framers", "0")
    eyes.call("XREADGROUP", "GROUP", "framers", "~free", "STREAMS", eyes.stream(), ">")
    entries = [entry for entry, _, _ in eyes.pending("framers")]
    for index in suspects:
        eyes.call("XCLAIM", eyes.stream(), "framers", "~suspect", 0, entries[index], "RETRYCOUNT", 0, "JUSTID")
    async with running(memory, worker, namespace=namespace) as bus:
        await until(lambda: bus.statistics()[0].open_circuits, 30)
        await trio.sleep(20)
        down = False
        await trio.sleep(300)
        assert bus.statistics()[0].open_circuits == (), "it is up again, for five minutes"
        await quiet(eyes)
    assert framed(eyes) == {1: 1} and eyes.dead("framers") == []


async def test_a_twin_whose_other_entry_waits_for_long_keeps_no_circuit_open(
    virtual: Clock, memory: MemoryServer, namespace: str
) -> None:
    """An event that said "in ten minutes" lies on the stream twice. While it waits, its twin leaves the probe to others."""
    eyes, worker, down = Eyes(memory, namespace), Worker("framers"), True

    @worker.on(PaintingMade, concurrency=1, dedupe=DAY, breaker=Breaker(failures=1, pause=1))
    async def frame(event: PaintingMade) -> PaintingFramed:
        if event.number == 0 and down:
            raise RetryLater(600)
        if down:
            raise ConnectionError("no frames")
        return PaintingFramed(number=event.number)

    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=0), PaintingMade(number=1)])
        copy(eyes, 0)
        await until(lambda: bus.statistics()[0].open_circuits, 30)
        await trio.sleep(20)
        down = False
        await trio.sleep(120)
        assert bus.statistics()[0].open_circuits == (), "it is up again, for two minutes"
        await quiet(eyes, timeout=600)
    assert framed(eyes) == {0: 1, 1: 1} and eyes.dead("framers") == []


@pytest.mark.parametrize("kind", ["redis", "valkey"])
async def test_a_server_without_memory(make_server: Any, kind: str, namespace: str) -> None:
    """The commit waits with its mark until there is some; one effect each."""
    server: ServerProcess = make_server(kind)
    eyes, framers = Eyes(server.url, namespace), Framers()
    framers.gate = trio.Event()
    async with running(server.url, framers.worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(5)])
        copy(eyes)
        await until(lambda: len(framers.called) == 5)
        eyes.call("CONFIG", "SET", "maxmemory", "1")
        framers.gate.set()
        settler = runner_of(bus)._current.settlers[0]  # type: ignore[union-attr]
        await until(lambda: settler.statistics.repeated >= 2)
        assert marks(eyes) == [] and framed(eyes) == {}
        eyes.call("CONFIG", "SET", "maxmemory", "0")
        await quiet(eyes)
        assert framed(eyes) == dict.fromkeys(range(5), 1) and len(framers.called) == 5


async def test_a_group_that_is_forgotten_takes_its_marks_along(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Nothing stays behind that would make a later group of this name pass events by."""
    async with running(any_url, Framers().worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(5)])
        await quiet(eyes)
    assert len(marks(eyes)) == 5
    assert eyes.run(forget(eyes.keys, "framers")) and marks(eyes) == []


@pytest.mark.parametrize("window", [0, -1, True, "day", float("nan"), float("inf"), 1e12])
def test_what_is_no_window(window: Any) -> None:
    """Said when the handler is declared."""
    with pytest.raises(ContractError, match="worker 'framers': dedupe="):
        Framers(dedupe=window)


@pytest.mark.parametrize("seed", seeds(4, "inbox"))
async def test_at_random(virtual: Clock, memory: MemoryServer, namespace: str, seed: int) -> None:
    """Entries of few events in any number and order, two workers, failures, lost requests and replies, a worker that
    vanishes: the naive model says one effect for each event, and nothing stays pending."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    eyes = Eyes(memory, namespace)
    servers = [FaultyServer(memory), FaultyServer(memory), FaultyServer(memory)]
    calls: Counter[int] = Counter()

    def worker() -> Worker:
        made = Worker("framers")

        @made.on(PaintingMade, dedupe=DAY, concurrency=4, retry=Backoff(attempts=1000, base=0.1, cap=1))
        async def frame(event: PaintingMade) -> PaintingFramed:
            calls[event.number] += 1
            await trio.sleep(rng.choice([0, 0, 0.05, 0.5]))
            if rng.random() < 0.15:
                raise ValueError("bad luck")
            return PaintingFramed(number=event.number)

        return made

    async with running(memory, namespace=namespace) as bus, trio.open_nursery() as nursery:

        async def doomed() -> None:
            async with running(servers[2], worker(), namespace=namespace, grace=0.0):
                await trio.sleep_forever()

        nursery.start_soon(doomed)
        async with (
            running(servers[0], worker(), namespace=namespace) as first,
            running(servers[1], worker(), namespace=namespace) as second,
        ):
            for n in range(60):
                await bus.publish(PaintingMade(number=n))
                for _ in range(rng.randrange(4)):
                    copy(eyes, rng.randrange(eyes.count("painting.made")))
                if rng.random() < 0.3:
                    kind = rng.choice(["lose_reply", "lose_request"])
                    servers[rng.randrange(3)].faults.append(
                        Fault(kind, rng.choice([b"EVALSHA", b"$4\r\nMGET", b"XREADGROUP", b"XACK"]))  # type: ignore[arg-type]
                    )
                await trio.sleep(rng.choice([0, 0.01, 0.3]))
                if n == 30:
                    servers[2].cut()
            await quiet(eyes, timeout=600)
            assert framed(eyes) == dict.fromkeys(range(60), 1)
            assert duplicates(first) + duplicates(second) > 10
        nursery.cancel_scope.cancel()
    assert eyes.dead("framers") == []
