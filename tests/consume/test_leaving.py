"""A worker that leaves while the network is in trouble leaves nothing that others have to wait for, and nothing of it
comes later."""

import threading
from typing import Any

import pytest
import structlog.testing
import trio
import trio.testing
from faulty import Fault, FaultyServer, commands_in
from proxy import Proxy
from studio import Eyes, PaintingMade, framing, quiet, runner_of, running, subscription_of
from trio.abc import Clock
from waiting import until

from canvasbus.bus import EventBus
from canvasbus.consume.dispatch import Lane
from canvasbus.errors import Unavailable
from canvasbus.transport.connect import open_server
from canvasbus.transport.memory import MemoryServer
from canvasbus.transport.owner_scripts import RELEASE, TAKE
from canvasbus.transport.settle_script import SETTLE
from canvasbus.wire.keys import FREE_POOL
from canvasbus.worker import Backoff, Breaker, Context, Later, Worker


def lane_of(bus: EventBus) -> Lane:
    return next(iter(subscription_of(bus).topics.values())).lane


class Trouble:
    """From its start to its end no packet comes through that has one of these commands or scripts in it."""

    def __init__(self, server: FaultyServer) -> None:
        self.kept: list[bytes] = []
        self._server = server

    def start(self, *words: bytes) -> None:
        def meet(data: bytes) -> None:
            names = commands_in(data)
            if any(word in (data if len(word) == 40 else names) for word in words):
                self.kept.append(data)
                raise Unavailable("the request was lost", ambiguous=True)

        self._server.on_packet = meet

    def end(self) -> None:
        self._server.on_packet = None


async def test_a_worker_that_joins_leaves_at_once(server_url: str, namespace: str) -> None:
    """Whatever it is waiting for: here for a server that says nothing."""
    with Proxy(int(server_url.rpartition(":")[2])) as proxy:
        async with running(proxy.url, namespace=namespace) as bus:
            proxy.stall()
            bus.add(framing())
            await trio.testing.wait_all_tasks_blocked()
            runner_of(bus).stop()
            await until(lambda: runner_of(bus).state == "left", 2)
            proxy.go_on()


@pytest.mark.usefixtures("quick_hearts")
async def test_no_beat_comes_after_a_worker_has_left(
    server_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is held up on its way while the worker is told to leave: it hands back what it holds at once, and goes when the
    beat has been answered, so that no name stays behind."""
    server, eyes = FaultyServer(open_server(server_url)), Eyes(server_url, namespace)
    worker, begun = Worker("framers"), trio.Event()
    held, go = threading.Event(), threading.Event()
    pending_then: list[list[str]] = []

    @worker.on(PaintingMade)
    async def frame(event: PaintingMade) -> None:
        begun.set()
        await trio.sleep_forever()

    def delay(data: bytes) -> None:
        if b"HINCRBY" in commands_in(data):
            held.set()
            go.wait(10)

    async with running(server, worker, namespace=namespace, grace=0.0) as bus:
        await bus.publish(PaintingMade(number=1))
        await begun.wait()
        incarnation = runner_of(bus)._current
        assert incarnation is not None
        joined = incarnation.heart.join

        def join(timeout: float) -> None:
            pending_then.append([owner for _, owner, _ in eyes.pending("framers")])
            go.set()
            joined(timeout)

        monkeypatch.setattr(incarnation.heart, "join", join)
        server.on_packet = delay
        await until(held.is_set)
        await bus.aclose()
    go.set()
    joined(10)
    assert eyes.call("HLEN", eyes.keys.beats("framers")) == eyes.call("HLEN", eyes.keys.accepts("framers")) == 0
    assert pending_then == [["~free"]] and eyes.consumers("framers") == {"~free"}
    eyes.close()


async def test_each_partition_is_left_whatever_became_of_the_others(any_url: str, namespace: str) -> None:
    """The word that it leaves the second one is lost, and said once more: by then it has left the first one, and put an end
    to all that could come from it there."""
    server, worker, runs = FaultyServer(open_server(any_url)), Worker("framers"), list[int]()
    eyes = [Eyes(any_url, namespace, partition) for partition in range(2)]

    @worker.on(PaintingMade)
    async def frame(event: PaintingMade) -> None:
        runs.append(event.number)
        await trio.sleep_forever()

    async with running(server, worker, namespace=namespace, partitions=2, grace=0.0) as bus:
        await bus.publish_many([PaintingMade(title=str(n), number=n) for n in range(10)])
        await until(lambda: len(runs) == 10)
        incarnation = runner_of(bus)._current
        assert incarnation is not None
        for settler in incarnation.settlers:  # an answer was lost some time ago
            await settler.make_sure()
        lost = [False]

        def meet(data: bytes) -> None:
            if RELEASE.sha.encode() in data and eyes[1].keys.beats("framers") in data and not lost[0]:
                lost[0] = True
                raise Unavailable("the request was lost", ambiguous=True)

        server.on_packet = meet
        await bus.aclose()
    assert lost[0]
    for look in eyes:
        assert {owner for _, owner, _ in look.pending("framers")} == {"~free"} == look.consumers("framers")
        assert look.call("HLEN", look.keys.beats("framers")) == 0
        look.close()


async def test_a_commit_that_comes_late_changes_nothing(any_url: str, namespace: str, eyes: Eyes) -> None:
    """What was on its way when its worker left is not executed once others have what it was about."""
    server = FaultyServer(open_server(any_url))
    sha = SETTLE.sha.encode()
    trouble = Trouble(server)
    async with running(server, framing(), namespace=namespace, grace=0.0) as bus:
        trouble.start(sha, b"INCR")
        await bus.publish(PaintingMade(number=1))
        await until(lambda: bool(trouble.kept))
        trouble.start(sha)  # all else comes through; a commit that was tried again would be none that is late
        await bus.aclose()
    assert eyes.count("painting.framed") == 0
    async with running(any_url, framing(), namespace=namespace):
        await until(lambda: eyes.count("painting.framed") > 0)
    late = [packet for packet in trouble.kept if sha in packet][-1]
    connection = eyes.server.connect_blocking()
    connection.request(late, 1, 1.0)
    connection.close()
    assert eyes.count("painting.framed") == 1 and eyes.pending("framers") == []


async def test_what_was_given_out_and_never_came_is_handed_back(any_url: str, namespace: str, eyes: Eyes) -> None:
    """The answer that brought it was lost, and the worker could not look for it before it left."""
    server = FaultyServer(open_server(any_url))
    trouble = Trouble(server)
    trouble.start(b"XREADGROUP")
    async with running(server, framing(), namespace=namespace, grace=0.0) as bus:
        trouble.start(b"XREADGROUP", b"XPENDING")
        await bus.publish(PaintingMade(number=1))
        name = bus.statistics()[0].consumer
        given = eyes.call("XREADGROUP", "GROUP", "framers", name, "STREAMS", eyes.stream("painting.made"), ">")
        assert len(given) == 1
        trouble.end()
        await bus.aclose()
    assert [owner for _, owner, _ in eyes.pending("framers")] in (["~free"], [])


async def test_what_is_done_is_not_done_again(any_url: str, namespace: str, eyes: Eyes) -> None:
    """An acknowledgement that was cut short is said once more by whoever leaves."""
    server = FaultyServer(open_server(any_url))
    trouble = Trouble(server)
    done = trio.Event()
    worker = Worker("framers")

    @worker.on(PaintingMade)
    async def look(event: PaintingMade) -> None:
        done.set()

    async with running(server, worker, namespace=namespace, grace=0.0) as bus:
        trouble.start(b"XACK")
        await bus.publish(PaintingMade(number=1))
        await done.wait()
        await until(lambda: bool(trouble.kept))
        trouble.end()
        await bus.aclose()
    assert eyes.pending("framers") == [] and eyes.consumers("framers") == set()


async def test_a_batch_that_is_being_gathered_is_handed_back(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Nothing of it has begun: whoever leaves does not begin it."""
    worker, runs = Worker("framers"), list[int]()

    @worker.on_batch(PaintingMade, max_size=10, max_wait=60)
    async def look(events: list[PaintingMade]) -> None:
        runs.append(len(events))

    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(3)])
        await until(lambda: bus.statistics()[0].held == 3)
        await bus.aclose()
    assert runs == []
    assert [(owner, count) for _, owner, count in eyes.pending("framers")] == [("~free", 1)] * 3


@pytest.mark.parametrize("what", ["dead", "timers"])
@pytest.mark.parametrize("cleared", [True, False])
async def test_an_outcome_that_waits_for_a_key_does_not_hold_up_who_leaves(
    any_url: str, namespace: str, eyes: Eyes, what: str, cleared: bool
) -> None:
    """Somebody has put something else where dead letters or timers lie. It is tried once more, and if it is still so the
    event is handed back at once, which is told once for all of them; when the key is cleared it has its effect, once."""
    worker, runs = Worker("framers"), list[int]()

    @worker.on(PaintingMade, retry=Backoff(attempts=1))
    async def frame(event: PaintingMade) -> Any:
        runs.append(event.number)
        if what == "dead":
            raise ValueError
        return Later(PaintingMade(), after=3600)

    key = eyes.keys.dead("framers") if what == "dead" else eyes.keys.timers
    eyes.call("SET", key, "x")
    with structlog.testing.capture_logs() as logs:
        async with running(any_url, worker, namespace=namespace) as bus:
            await bus.publish_many([PaintingMade(number=n) for n in range(3)])
            await until(lambda: len(subscription_of(bus).settler._aside) == 3)
            if cleared:
                eyes.call("DEL", key)
            with trio.fail_after(4):
                await bus.aclose()
    assert eyes.consumers("framers") == ({"~free"} if not cleared else set())
    told = [log for log in logs if "is not waited for" in log["event"]]
    assert [log for log in logs if "grace time is over" in log["event"]] == []
    after = logs[next(at for at, log in enumerate(logs) if log["event"] == "worker leaves") + 1 :]
    assert after == told and len(told) == (not cleared) and all(key.decode() in log["error"] for log in told)
    eyes.call("DEL", *([] if cleared else [key]), b"none")
    async with running(any_url, worker, namespace=namespace):
        await quiet(eyes)
    assert sorted(runs) == [0, 1, 2] if cleared else sorted(runs) == [0, 0, 1, 1, 2, 2]
    assert eyes.call(*(("XLEN", key) if what == "dead" else ("ZCARD", key))) == 3


@pytest.mark.parametrize("breaker", [None, Breaker(failures=1, pause=600, cap=600)])
async def test_a_batch_that_fails_while_its_worker_leaves_begins_nothing_more(
    virtual: Clock, memory: MemoryServer, namespace: str, breaker: Breaker | None
) -> None:
    """Its events would be tried one by one, or wait for the end of an outage: others do that, and at once."""
    worker, runs = Worker("framers"), list[int]()

    @worker.on_batch(PaintingMade, max_size=8, retry=Backoff(attempts=9, base=600, cap=600), breaker=breaker)
    async def look(events: list[PaintingMade]) -> None:
        runs.append(len(events))
        await trio.sleep(2)
        raise ConnectionRefusedError

    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(8)])
        await until(lambda: bus.statistics()[0].running)
        began = trio.current_time()
        await bus.aclose()
    assert trio.current_time() - began < 3 and runs == [8]
    assert {(owner, count) for _, owner, count in Eyes(memory, namespace).pending("framers")} == {("~free", 1)}


@pytest.mark.parametrize("deaths", [1, 2])
async def test_a_suspect_whose_attempt_is_being_written_is_handed_back(
    virtual: Clock, memory: MemoryServer, namespace: str, deaths: int
) -> None:
    """Told to leave between the word that it begins and its beginning, a worker takes the word back. After one death it
    would run among others, after two alone."""
    runs, eyes = list[int](), Eyes(memory, namespace)
    worker = Worker("framers")

    @worker.on(PaintingMade)
    async def look(event: PaintingMade) -> None:
        runs.append(event.number)
        await trio.sleep(20)

    async def die(task_status: trio.TaskStatus[None]) -> None:
        server = FaultyServer(memory)
        async with running(server, worker, namespace=namespace) as bus:
            if not runs:
                await bus.publish(PaintingMade(number=1))
            await until(lambda: bus.statistics()[0].running, 20)
            server.cut()
            task_status.started()
            await trio.sleep_forever()

    for _ in range(deaths):
        async with trio.open_nursery() as nursery:
            await nursery.start(die)
            nursery.cancel_scope.cancel()
    before = {count for _, _, count in eyes.pending("framers")}
    server = FaultyServer(memory)
    async with running(server, worker, namespace=namespace) as bus:

        def leave(data: bytes) -> None:
            if SETTLE.sha.encode() in data and b"\r\ntry\r\n" in data:
                server.on_packet = None
                server.faults.append(Fault("lose_reply", b"try"))
                runner_of(bus).stop()

        server.on_packet = leave
        await until(lambda: runner_of(bus).state == "left", 15)
    assert len(runs) == deaths
    assert {(owner, count) for _, owner, count in eyes.pending("framers")} == {("~suspect", next(iter(before)))}


async def test_what_is_taken_while_the_rest_is_handed_back_is_handed_back_too(
    virtual: Clock, memory: MemoryServer, namespace: str
) -> None:
    """It was on its way out of a pool when the worker was told to leave."""
    worker, runs, eyes = Worker("framers"), list[int](), Eyes(memory, namespace)

    @worker.on(PaintingMade)
    async def look(event: PaintingMade) -> None:
        runs.append(event.number)
        await trio.sleep(20)

    async with running(memory, worker, namespace=namespace):
        pass
    async with running(memory, namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=1))
    eyes.call("XREADGROUP", "GROUP", "framers", "~free", "STREAMS", eyes.stream(), ">")
    server = FaultyServer(memory)
    async with running(server, worker, namespace=namespace) as bus:

        def stop(data: bytes) -> None:
            if TAKE.sha.encode() in data:
                server.on_packet = None
                lane_of(bus).stop()

        server.on_packet = stop
        await until(lambda: server.on_packet is None)
        await until(lambda: [owner for _, owner, _ in eyes.pending("framers")] == ["~free"])
        assert lane_of(bus).held == 0
    assert runs == []


async def test_what_is_taken_again_before_its_return_is_heard_of_is_run(
    any_url: str, namespace: str, eyes: Eyes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers that it was handed back and that it was taken come in one packet, and the latter is looked at first."""
    worker, runs, gate = Worker("framers"), list[int](), trio.Event()

    @worker.on(PaintingMade, concurrency=1)
    async def look(event: PaintingMade) -> None:
        runs.append(event.number)
        await gate.wait()

    async with running(any_url, worker, namespace=namespace) as bus:
        lane, incarnation = lane_of(bus), runner_of(bus)._current
        assert incarnation is not None
        lane.window = 10
        await bus.publish_many([PaintingMade(number=n) for n in range(2)])
        await until(lambda: runs == [0] and lane._queue)
        release, recovery = incarnation._leaving._release, subscription_of(bus).recovery

        async def release_and_take(*args: Any) -> int:
            moved = await release(*args)
            await recovery.take(FREE_POOL, 10)
            return moved

        monkeypatch.setattr(incarnation._leaving, "_release", release_and_take)
        back = lane._queue.pop()
        lane.held -= 1
        incarnation._leaving.hand_back([back])
        await until(lambda: recovery.statistics.taken == 1)
        gate.set()
        await until(lambda: runs == [0, 1], 5)
        await quiet(eyes)


async def test_what_is_handed_back_is_taken_while_the_last_that_was_taken_still_runs(
    virtual: Clock, memory: MemoryServer, namespace: str
) -> None:
    """A rolling restart: what the second worker hands back waits for no handler of what the first one did, as long as
    there is room."""
    worker, running_now, eyes = Worker("framers"), list[int](), Eyes(memory, namespace)

    @worker.on(PaintingMade)
    async def look(event: PaintingMade) -> None:
        running_now.append(event.number)
        await trio.sleep_forever()

    async with running(memory, worker, namespace=namespace):
        pass
    async with running(memory, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(3)])
    eyes.call("XREADGROUP", "GROUP", "framers", "~out of the way", "STREAMS", eyes.stream(), ">")
    async with running(memory, worker, namespace=namespace, grace=0.0):
        for number, (entry_id, _, _) in enumerate(eyes.pending("framers")):
            eyes.call("XCLAIM", eyes.stream(), "framers", "~free", 0, entry_id, "JUSTID")
            await until(lambda number=number: running_now == list(range(number + 1)), 5)


async def test_what_fails_within_the_grace_time_has_failed(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Eight events run when their worker is told to leave, and fail. Each failure counts for whoever is given them next: an
    event that fails at each restart has no end otherwise."""
    attempts: list[int] = []
    for life in range(3):
        worker, begun, go_on = Worker("framers"), trio.Event(), trio.Event()

        @worker.on(PaintingMade, concurrency=8, retry=Backoff(attempts=3, base=60))
        async def frame(
            event: PaintingMade, ctx: Context, begun: trio.Event = begun, go_on: trio.Event = go_on
        ) -> None:
            attempts.append(ctx.attempt)
            if len(attempts) % 8 == 0:
                begun.set()
            await go_on.wait()
            raise ValueError("no frame")

        async with running(any_url, worker, namespace=namespace) as bus:
            if life == 0:
                await bus.publish_many([PaintingMade(number=n) for n in range(8)])
            with trio.fail_after(10):
                await begun.wait()
            runner_of(bus).stop()
            await until(lambda bus=bus: runner_of(bus).state == "draining")
            go_on.set()
    assert attempts == [1] * 8 + [2] * 8 + [3] * 8
    assert [letter.attempts for letter in eyes.dead("framers")] == [3] * 8
    assert not eyes.pending("framers")


async def test_a_handler_that_nobody_can_end_is_told_of(virtual: Clock, memory: MemoryServer, namespace: str) -> None:
    """It hangs behind a shield: when its time is over, and when the worker shall leave, which waits for it."""
    worker, hanging = Worker("framers"), trio.Event()

    @worker.on(PaintingMade, timeout=2)
    async def frame(event: PaintingMade) -> None:
        with trio.CancelScope(shield=True):
            await hanging.wait()

    with structlog.testing.capture_logs() as logs:
        async with running(memory, worker, namespace=namespace, grace=1.0) as bus:

            def told(what: str) -> int:
                return sum(what in line["event"] and line["log_level"] == "warning" for line in logs)

            await bus.publish(PaintingMade(number=0))
            await until(lambda: told("cancelled at its timeout and runs all the same") == 1, 30)
            await trio.sleep(20)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(bus.aclose)
                await until(lambda: told("run on although they were cancelled") == 1, 30)
                assert bus.statistics()[0].running == 1
                hanging.set()
    assert told("runs all the same") == told("run on although") == 1


@pytest.mark.parametrize("plain", [True, False])
async def test_a_plain_function_that_runs_on_is_told_and_not_waited_for(
    any_url: str, namespace: str, plain: bool
) -> None:
    """Nobody can end a thread, and its event is handed back. Of an async handler that is cancelled nothing is left."""
    worker, begun, returned = Worker("framers"), threading.Event(), threading.Event()

    def wait(event: PaintingMade) -> None:
        begun.set()
        returned.wait(20)

    async def sleep(event: PaintingMade) -> None:
        begun.set()
        await trio.sleep_forever()

    worker.on(PaintingMade)(wait if plain else sleep)
    with structlog.testing.capture_logs() as logs:
        async with running(any_url, worker, namespace=namespace, grace=0.0) as bus:
            await bus.publish(PaintingMade())
            await until(begun.is_set)
        returned.set()
    assert sum("plain functions run on" in line["event"] for line in logs) == plain
    assert not [line for line in logs if "although they were cancelled" in line["event"]]
