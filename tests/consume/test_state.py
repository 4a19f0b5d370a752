"""State of handlers: exact under concurrency, lost replies, other processes and dead ones."""

from typing import Any

import msgspec
import numpy
import pytest
import structlog.testing
import trio
import trio.testing
from consume.counted import Count, stored
from faulty import Fault, FaultyServer
from studio import Eyes, PaintingFramed, PaintingMade, SculptureMade, quiet, runner_of, running
from waiting import until

from canvasbus.consume import aside
from canvasbus.consume import state as states
from canvasbus.errors import ContractError
from canvasbus.transport.connect import open_server
from canvasbus.transport.memory import MemoryServer
from canvasbus.transport.settle_script import SETTLE
from canvasbus.worker import Backoff, Context, Later, RetryLater, Worker

Clock = trio.testing.MockClock


def counting(name: str = "framers", **options: Any) -> Worker:
    """A worker that counts paintings by title and publishes each new count."""
    worker = Worker(name)

    @worker.on(PaintingMade, **options)
    async def count(event: PaintingMade, ctx: Context) -> PaintingFramed:
        state = await ctx.state(event.title, Count)
        state.value.total += 1
        return PaintingFramed(title=event.title, number=state.value.total)

    return worker


async def test_counts_are_exact(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Every event is counted once, and what follows from each count is committed with it: no number is missing."""
    titles = ["a", "b", "c"]
    async with running(any_url, counting(), namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(title=titles[n % 3]) for n in range(300)])
        await quiet(eyes)
        assert bus.statistics()[0].failed == 0
    for title in titles:
        assert stored(eyes, "framers", title)["total"] == 100
        counts = [e.number for e in eyes.events("painting.framed") if e.title == title]
        assert counts == list(range(1, 101))


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for somebody to clear a key is tried more often: waiting would be all that a test does."""
    monkeypatch.setattr(aside, "ASIDE_SECONDS", 0.1)
    monkeypatch.setattr(states, "REFUSED_SECONDS", 0.1)


@pytest.mark.usefixtures("soon")
async def test_a_state_that_somebody_has_written_over_costs_no_attempt(
    any_url: str, namespace: str, eyes: Eyes
) -> None:
    """Its events wait, whether the run finds it or the commit does; the log says which key and whose move is next, once;
    other states go on. When it is cleared each event counts once."""
    worker, gate = Worker("framers"), trio.Event()

    @worker.on(PaintingMade, retry=Backoff(attempts=1))
    async def count(event: PaintingMade, ctx: Context) -> PaintingFramed:
        kept = await ctx.state(event.title, Count)
        if event.number == 0:
            await gate.wait()
        kept.value.total += 1
        return PaintingFramed(title=event.title, number=kept.value.total)

    key = eyes.keys.state("framers", "a")
    with structlog.testing.capture_logs() as logs:
        async with running(any_url, worker, namespace=namespace) as bus:
            await bus.publish(PaintingMade(title="a", number=0))
            await until(lambda: eyes.pending("framers"))
            await trio.testing.wait_all_tasks_blocked()
            eyes.call("RPUSH", key, "x")
            gate.set()
            await bus.publish_many([PaintingMade(title="ab"[n % 2], number=n) for n in range(1, 21)])
            await until(lambda: eyes.call("EXISTS", eyes.stream("painting.framed")))
            await until(lambda: eyes.count("painting.framed") == 10)
            await until(lambda: any("holds something else" in log["event"] for log in logs))
            eyes.call("RENAME", key, key + b":aside")
            await quiet(eyes)
            assert bus.statistics()[0].failed == 0
    assert eyes.dead("framers") == []
    counts = [(e.title, e.number) for e in eyes.events("painting.framed")]
    assert sorted(counts) == sorted([("a", n) for n in range(1, 12)] + [("b", n) for n in range(1, 11)])
    told = [log for log in logs if "holds something else" in log["event"]]
    assert 1 <= len(told) <= 2 and all(key.decode() in log["error"] and "RENAME" in log["error"] for log in told)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("which", ["timers", "timer_bodies"])
async def test_timers_that_somebody_has_written_over_cost_no_attempt(
    any_url: str, namespace: str, eyes: Eyes, which: str
) -> None:
    """Who sets none goes on; who does waits, and each timer is set once."""
    worker, key = Worker("framers"), getattr(eyes.keys, which)

    @worker.on(PaintingMade, retry=Backoff(attempts=1))
    async def remind(event: PaintingMade) -> Any:
        return Later(SculptureMade(), after=3600) if event.number % 2 else PaintingFramed(number=event.number)

    eyes.call("SET", key, "x")
    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(20)])
        await until(lambda: eyes.call("EXISTS", eyes.stream("painting.framed")))
        await until(lambda: eyes.count("painting.framed") == 10)
        assert len(eyes.pending("framers")) == 10
        eyes.call("DEL", key)
        await quiet(eyes)
        assert bus.statistics()[0].failed == 0
    assert eyes.dead("framers") == []
    assert eyes.call("ZCARD", eyes.keys.timers) == eyes.call("HLEN", eyes.keys.timer_bodies) == 10


async def test_two_processes_share_a_state(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Whoever is overtaken runs again, on the newer value, and no attempt is counted."""
    options = {"retry": Backoff(attempts=1), "concurrency": 4}
    first, second = counting(**options), counting(**options)
    async with running(any_url, first, namespace=namespace) as a, running(any_url, second, namespace=namespace) as b:
        for _ in range(20):
            await a.publish_many([PaintingMade(title="one") for _ in range(10)])
        await quiet(eyes, timeout=20)
        statistics = a.statistics()[0], b.statistics()[0]
        assert all(each.dead == each.failed == 0 for each in statistics)
    assert stored(eyes, "framers", "one")["total"] == 200
    assert sorted(e.number for e in eyes.events("painting.framed")) == list(range(1, 201))


@pytest.mark.parametrize("kind", ["lose_reply", "lose_request"])
async def test_lost_replies_count_nothing_twice(any_url: str, namespace: str, eyes: Eyes, kind: Any) -> None:
    """A settle whose reply is lost is repeated behind a new fence: what it changed is changed once."""
    faulty = FaultyServer(open_server(any_url))
    async with running(faulty, counting(), namespace=namespace) as bus:
        for n in range(5):
            faulty.faults.append(Fault(kind, SETTLE.sha.encode()))
            await bus.publish_many([PaintingMade(title="one") for _ in range(20)])
            await until(lambda n=n: eyes.count("painting.framed") == (n + 1) * 20)
        assert faulty.struck == 5
        await quiet(eyes)
    assert stored(eyes, "framers", "one")["total"] == 100
    assert sorted(e.number for e in eyes.events("painting.framed")) == list(range(1, 101))


async def test_a_worker_that_vanishes_leaves_the_count_exact(
    virtual: Clock, memory: MemoryServer, namespace: str
) -> None:
    """Cut off in the middle: another takes over what it held, and every event is counted once all the same."""
    eyes = Eyes(memory, namespace)
    faulty = FaultyServer(memory)
    async with running(memory, namespace=namespace) as bus:
        async with trio.open_nursery() as nursery:

            async def doomed() -> None:
                async with running(faulty, counting(), namespace=namespace, grace=0.0):
                    await trio.sleep_forever()

            nursery.start_soon(doomed)
            for _ in range(10):
                await bus.publish_many([PaintingMade(title="one") for _ in range(10)])
                await trio.sleep(0.001)
            await until(lambda: eyes.count("painting.framed") > 20)
            faulty.faults.append(Fault("lose_reply", SETTLE.sha.encode()))
            await bus.publish_many([PaintingMade(title="one") for _ in range(30)])
            await until(lambda: faulty.struck)
            faulty.cut()
            nursery.cancel_scope.cancel()
        async with running(memory, counting(), namespace=namespace):
            await quiet(eyes, timeout=60)
    assert stored(eyes, "framers", "one")["total"] == 130
    assert sorted(e.number for e in eyes.events("painting.framed")) == list(range(1, 131))
    eyes.close()


async def test_a_run_that_fails_changes_nothing(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Neither does one that is too slow, or asks for later; the next run sees the value of before."""
    worker, seen = Worker("framers"), []

    @worker.on(PaintingMade, retry=Backoff(attempts=9, base=0.0), timeout=0.2)
    async def count(event: PaintingMade, ctx: Context) -> None:
        state = await ctx.state("n", Count)
        seen.append(state.value.total)
        state.value.total += 1
        if len(seen) == 1:
            raise ValueError
        if len(seen) == 2:
            raise RetryLater(0.01)
        if len(seen) == 3:
            await trio.sleep_forever()
        if len(seen) == 4:
            state.value.total = "no number"  # type: ignore[assignment]

    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade())
        await quiet(eyes)
        await bus.publish(PaintingMade())
        await quiet(eyes)
    assert seen == [0, 0, 0, 0, 0, 1]
    assert stored(eyes, "framers", "n")["total"] == 2


async def test_values_of_all_kinds(any_url: str, namespace: str, eyes: Eyes) -> None:
    """A default, a plain number, deletion, and whether it was there before; the same key twice is the same object."""
    worker, log = Worker("framers"), []

    @worker.on(PaintingMade, concurrency=1)
    async def handle(event: PaintingMade, ctx: Context) -> None:
        number = await ctx.state("number", int, default=40)
        assert await ctx.state("number", int) is number
        log.append((event.number, number.exists, number.value))
        number.value += 1
        if event.number == 2:
            number.delete()

    async with running(any_url, worker, namespace=namespace) as bus:
        for n in range(4):
            await bus.publish(PaintingMade(number=n))
            await quiet(eyes)
    assert log == [(0, False, 40), (1, True, 41), (2, True, 42), (3, False, 40)]


async def test_a_numpy_scalar_is_kept_as_the_number_that_it_is(any_url: str, namespace: str, eyes: Eyes) -> None:
    """As in an event: nobody means anything else by it."""
    worker, seen = Worker("framers"), []

    @worker.on(PaintingMade, concurrency=1)
    async def handle(event: PaintingMade, ctx: Context) -> None:
        mean = await ctx.state("mean", float, default=0.0)
        seen.append(mean.value)
        mean.value = numpy.float32(0.5)

    async with running(any_url, worker, namespace=namespace) as bus:
        for _ in range(2):
            await bus.publish(PaintingMade())
            await quiet(eyes)
    assert seen == [0.0, 0.5]


async def test_state_is_the_groups_own(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Two groups that use the same key keep two values."""
    async with running(any_url, counting("a"), counting("b"), namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(title="one") for _ in range(10)])
        await quiet(eyes)
    assert stored(eyes, "a", "one")["total"] == stored(eyes, "b", "one")["total"] == 10


async def test_state_expires(virtual: Clock, memory: MemoryServer, namespace: str) -> None:
    """`ttl` seconds after the last change it is gone."""
    worker, seen = Worker("framers"), []

    @worker.on(PaintingMade)
    async def count(event: PaintingMade, ctx: Context) -> None:
        state = await ctx.state("n", Count, ttl=60)
        state.value.total += 1
        seen.append(state.value.total)

    async with running(memory, worker, namespace=namespace) as bus:
        for pause in (50, 50, 70, 0):
            await bus.publish(PaintingMade())
            await trio.sleep(1)
            await trio.sleep(pause)
    assert seen == [1, 2, 3, 1]


@pytest.mark.parametrize("last", ["put", "remove"])
async def test_the_last_part_that_is_put_says_for_how_long_all_are_kept(
    any_url: str, namespace: str, eyes: Eyes, last: str
) -> None:
    """Parts that were put without `ttl` stay, whatever earlier ones had; removing one keeps nothing."""
    worker = Worker("framers")

    @worker.on(PaintingMade)
    async def add(event: PaintingMade, ctx: Context) -> None:
        ctx.parts("window", int, ttl=600).put("first", 1)

    @worker.on(SculptureMade)
    async def add_more(event: SculptureMade, ctx: Context) -> None:
        parts = ctx.parts("window", int)
        parts.put("second", 2) if last == "put" else parts.remove("second")

    key = eyes.keys.parts("framers", "window")
    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade())
        await quiet(eyes)
        assert eyes.call("HGETALL", key) and 0 < eyes.call("PTTL", key) <= 600_000
        await bus.publish(SculptureMade())
        await until(lambda: sum(settler.statistics.acked for settler in runner_of(bus)._current.settlers) == 2)  # type: ignore[union-attr]
        left = eyes.call("PTTL", key)
    assert (left < 0 or left > 1000 * 365 * 86_400_000) == (last == "put")


async def test_what_rests_on_a_value_that_never_came_runs_again(any_url: str, namespace: str, eyes: Eyes) -> None:
    """A run in the chain is refused by the server; those that saw its value, even if they only read it, run again."""
    eyes.call("SET", eyes.stream("sculpture.made"), "no stream")
    worker = Worker("framers")

    @worker.on(PaintingMade, retry=Backoff(attempts=1))
    async def handle(event: PaintingMade, ctx: Context) -> Any:
        state = await ctx.state("n", Count)
        if event.title == "bad":
            state.value.total += 1000
            return SculptureMade()
        if event.title == "count":
            state.value.total += 1
        return PaintingFramed(number=state.value.total)

    async with running(any_url, worker, namespace=namespace) as bus:
        titles = [("count", "bad", "read")[n % 3] for n in range(60)]
        await bus.publish_many([PaintingMade(title=title) for title in titles])
        await quiet(eyes)
        assert bus.statistics()[0].dead == 20
    assert stored(eyes, "framers", "n")["total"] == 20
    assert max(e.number for e in eyes.events("painting.framed")) == 20


@pytest.mark.parametrize("what", ["state", "parts"])
async def test_a_server_that_is_away_costs_no_attempt(
    virtual: Clock, memory: MemoryServer, namespace: str, what: str
) -> None:
    """What cannot be loaded while the server is away is loaded later; the outage is no failure of the handler."""
    eyes, worker, runs, away = Eyes(memory, namespace), Worker("framers"), list[int](), trio.Event()

    @worker.on(PaintingMade, retry=Backoff(attempts=1))
    async def count(event: PaintingMade, ctx: Context) -> PaintingFramed:
        runs.append(ctx.attempt)
        await away.wait()
        if what == "state":
            (await ctx.state("all", Count)).value.total += 1
        else:
            assert await ctx.parts("all", int).items() == {}
        return PaintingFramed(title=event.title)

    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade())
        await until(lambda: runs)
        memory.set_connected(False)
        away.set()
        await trio.sleep(10)
        memory.set_connected(True)
        await quiet(eyes, timeout=30)
        assert bus.statistics()[0].dead == bus.statistics()[0].failed == 0
    assert eyes.dead("framers") == [] and eyes.count("painting.framed") == 1
    assert len(runs) > 1 and set(runs) == {1}


async def test_plain_functions_have_state_too(any_url: str, namespace: str, eyes: Eyes) -> None:
    """From their thread, by trio's own way back."""
    worker = Worker("framers")

    @worker.on(PaintingMade)
    def count(event: PaintingMade, ctx: Context) -> None:
        state = trio.from_thread.run(ctx.state, "n", Count)
        state.value.total += 1

    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade() for _ in range(50)])
        await quiet(eyes)
    assert stored(eyes, "framers", "n")["total"] == 50


@pytest.mark.parametrize("wrong", ["name", "ttl", "type", "missing", "batch", "late"])
async def test_misuse_is_told_in_the_dead_letter(any_url: str, namespace: str, eyes: Eyes, wrong: str) -> None:
    """A name that is none, a time to live that is none, a value of another shape, no default, a batch handler, a
    context that is used when the handler has returned."""
    eyes.call("SET", eyes.keys.state("framers", "text"), b"x" * 16 + msgspec.msgpack.encode("text"))
    worker, late = Worker("framers"), []

    async def handle(event: Any, ctx: Any) -> None:
        if wrong == "late":
            late.append(ctx.parts("p", int))
            if len(late) == 2:
                late[0].put("x", 1)
            raise RetryLater(0)
        where = ctx[0] if isinstance(ctx, list) else ctx
        await where.state(
            "" if wrong == "name" else "text" if wrong == "type" else "n",
            list[int]
            if wrong == "type"
            else object
            if wrong == "missing"
            else (lambda: None) and PaintingMade
            if wrong == "none"
            else int,
            ttl=-1 if wrong == "ttl" else None,
        )
        if wrong == "missing":
            await where.state("m", Nothing)

    if wrong == "batch":
        worker.on_batch(PaintingMade, retry=Backoff(attempts=1))(handle)
    else:
        worker.on(PaintingMade, retry=Backoff(attempts=1))(handle)
    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade())
        await quiet(eyes)
    (letter,) = eyes.dead("framers")
    assert "ContractError" in letter.error


class Nothing(msgspec.Struct):
    needed: int


# --- parts ------------------------------------------------------------------------------------------------------------


async def test_many_workers_fill_one_window(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Parts never conflict, each is there once, and a run sees the committed ones and its own."""
    options: dict[str, Any] = {"retry": Backoff(attempts=1), "concurrency": 4}

    def filling() -> Worker:
        worker = Worker("framers")

        @worker.on(PaintingMade, **options)
        async def fill(event: PaintingMade, ctx: Context) -> None:
            parts = ctx.parts("window", int, ttl=600)
            parts.put(str(ctx.envelope.id), event.number)
            assert (await parts.items())[str(ctx.envelope.id)] == event.number

        @worker.on(SculptureMade, **options)
        async def close(event: SculptureMade, ctx: Context) -> PaintingFramed:
            parts = ctx.parts("window", int)
            total = sum((await parts.items()).values())
            parts.clear()
            parts.put("carried over", 7)
            assert await parts.items() == {"carried over": 7}
            return PaintingFramed(number=total)

        return worker

    async with (
        running(any_url, filling(), namespace=namespace) as bus,
        running(any_url, filling(), namespace=namespace),
    ):
        for start in range(0, 100, 10):
            await bus.publish_many([PaintingMade(number=n) for n in range(start, start + 10)])
        await quiet(eyes)
        await bus.publish(SculptureMade())
        await until(lambda: eyes.count("painting.framed"))
        assert eyes.call("HLEN", eyes.keys.parts("framers", "window")) == 1
        assert bus.statistics()[0].failed == 0
    assert eyes.events("painting.framed")[0].number == sum(range(100))


async def test_states_that_nobody_uses_are_not_kept(any_url: str, namespace: str, eyes: Eyes) -> None:
    """A million keys over time cost the worker nothing."""
    async with running(any_url, counting(), namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(title=f"title {n}") for n in range(200)])
        await quiet(eyes)
        settler = runner_of(bus)._current.settlers[0]  # type: ignore[union-attr]
        await until(lambda: not settler.states._cells)


async def test_several_tasks_of_one_run(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Tasks of one handler that load the same state at once have the same object, and do not wait for each other for
    ever; those that load several have all of them."""
    worker = Worker("framers")

    @worker.on(PaintingMade, timeout=5, retry=Backoff(attempts=1))
    async def count(event: PaintingMade, ctx: Context) -> None:
        found = []

        async def load(name: str) -> None:
            found.append(await ctx.state(name, Count))

        async with trio.open_nursery() as nursery:
            for name in "ababab":
                nursery.start_soon(load, name)
        assert len(set(map(id, found))) == 2
        for state in found:
            state.value.total += 1

    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(), PaintingMade()])
        await quiet(eyes)
        assert bus.statistics()[0].failed == 0
    assert [stored(eyes, "framers", name)["total"] for name in "ab"] == [6, 6]


@pytest.mark.parametrize("later", [False, True], ids=["at once", "late"])
async def test_a_state_that_cannot_be_read_is_kept_from_nobody(
    virtual: Clock, memory: MemoryServer, namespace: str, later: bool
) -> None:
    """A handler that finds the shape of an older version asks once more, for that, and does not wait for itself. One that
    goes on without, and hangs, keeps the key from no other."""
    eyes = Eyes(memory, namespace)
    worker = Worker("framers")

    @worker.on(PaintingMade, timeout=5)
    async def count(event: PaintingMade, ctx: Context) -> None:
        try:
            total = (await ctx.state("a", Count)).value.total
        except ContractError:
            if later and event.number == 1:
                with trio.CancelScope(shield=True):
                    await trio.sleep(1000)
            total = (await ctx.state("a", int)).value
        (await ctx.state("b", int)).value += total

    async with running(memory, worker, namespace=namespace, grace=0.1) as bus:
        eyes.call("SET", eyes.keys.state("framers", "a"), b"t" * 16 + msgspec.msgpack.encode(7))
        await bus.publish_many([PaintingMade(number=n) for n in range(1, 5)])
        await until(lambda: bus.statistics()[0].handled >= 4 - later, 4)
        assert stored(eyes, "framers", "b") == 7 * (4 - later)


async def test_a_task_that_outlives_its_run_keeps_no_state(
    virtual: Clock, memory: MemoryServer, namespace: str
) -> None:
    """It waits for its turn when its handler has long returned: it is told so, and others go on."""
    eyes, told = Eyes(memory, namespace), list[str]()
    worker = Worker("framers")

    async def late(ctx: Context) -> None:
        try:
            await ctx.state("a", Count)
        except ContractError as error:
            told.append(str(error))

    async with trio.open_nursery() as nursery:

        @worker.on(PaintingMade, timeout=5)
        async def count(event: PaintingMade, ctx: Context) -> None:
            if event.number == 1:
                nursery.start_soon(late, ctx)
                await trio.sleep(0.1)
                return
            (await ctx.state("a", Count)).value.total += 1
            await trio.sleep(1)

        async with running(memory, worker, namespace=namespace, grace=0.1) as bus:
            await bus.publish_many([PaintingMade(number=n) for n in range(3)])
            await until(lambda: bus.statistics()[0].handled == 3, 4)
    assert stored(eyes, "framers", "a")["total"] == 2
    assert len(told) == 1 and "has returned" in told[0]
