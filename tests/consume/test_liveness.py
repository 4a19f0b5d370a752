"""Who counts as dead. The watcher is pure, so these are tables of looks: (time, counts seen) and the verdict."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog.testing
import trio
import trio.testing
from faulty import Fault, FaultyServer
from studio import Eyes, PaintingFramed, PaintingMade, framing, running
from trio.abc import Clock
from waiting import TurnedClock, until

from canvasbus import clock
from canvasbus.bus import EventBus
from canvasbus.cli.health import _answer
from canvasbus.consume import liveness
from canvasbus.consume.liveness import Heart, Progress, Watcher
from canvasbus.transport.blocking import BlockingLink
from canvasbus.transport.memory import MemoryServer
from canvasbus.wire.keys import Keys
from canvasbus.worker import Worker

Look = tuple[float, dict[str, int], set[str]] | None
"""When, the counts on the server, the consumers that own something. None: the look failed."""


def watch(looks: list[Look], limit: float = 5.0) -> list[list[str]]:
    watcher = Watcher("me", limit)
    verdicts = []
    for look in looks:
        if look is None:
            watcher.reset()
            verdicts.append([])
        else:
            verdicts.append(watcher.judge(*look))
    return verdicts


def seconds(n: int, you: Any, me: Any = lambda t: t, owners: set[str] | None = None) -> list[Look]:
    """One look a second from 0 to n. `you` and `me`: the count at second t, None for no count at all."""
    looks: list[Look] = []
    for t in range(n + 1):
        counts = {name: f(t) for name, f in (("me", me), ("you", you)) if f(t) is not None}
        looks.append((float(t), counts, {"me", "you"} if owners is None else owners))
    return looks


def first_death(verdicts: list[list[str]]) -> int | None:
    return next((t for t, dead in enumerate(verdicts) if dead), None)


def test_who_counts_on_lives() -> None:
    """A count that moves, however slowly within the limit, is a living worker."""
    assert first_death(watch(seconds(60, you=lambda t: t))) is None
    assert first_death(watch(seconds(60, you=lambda t: t // 4))) is None


def test_a_count_that_stands_still_for_the_limit_is_dead() -> None:
    """Last movement seen at second 3, limit 5: dead at 8, not before, and still at every look after that."""
    verdicts = watch(seconds(12, you=lambda t: min(t, 3)))
    assert first_death(verdicts) == 8
    assert verdicts[8:] == [["you"]] * 5


def test_a_consumer_without_a_count_is_judged_like_one_that_stands_still() -> None:
    """It owns entries and never beat (killed before its first beat): dead after the limit."""
    assert first_death(watch(seconds(10, you=lambda t: None))) == 5


def test_a_count_without_entries_is_judged_too() -> None:
    """A dead worker that owned nothing leaves its consumer and its count behind; both are to be removed."""
    assert first_death(watch(seconds(10, you=lambda t: 7, owners=set()))) == 5


def test_who_never_saw_it_move_waits_the_whole_limit() -> None:
    """Only what this watcher has seen with its own eyes counts; the first look says nothing."""
    assert watch([(100.0, {"me": 1, "you": 5}, {"you"})]) == [[]]


def test_coming_back_to_life_starts_over() -> None:
    """A count that moves again, even just in time, is watched anew for the whole limit."""
    assert first_death(watch(seconds(20, you=lambda t: 0 if t < 5 else 1 if t < 9 else 2))) == 14


def test_a_count_that_goes_back_is_a_sign_of_life() -> None:
    """The server lost its data and the count began again: somebody beat."""
    assert first_death(watch(seconds(8, you=lambda t: 50 if t < 4 else t - 3))) is None


def test_own_beats_must_get_through() -> None:
    """In trouble that everybody has, everybody's count stands still: while mine does, nobody is dead."""
    assert first_death(watch(seconds(60, you=lambda t: 3, me=lambda t: 9))) is None
    assert first_death(watch(seconds(60, you=lambda t: 3, me=lambda t: None))) is None


def test_after_common_trouble_all_observation_starts_anew() -> None:
    """Beats stand still from 2 to 20 for all; mine move again from 20 on, yours never: dead 5 seconds later, at 25 or
    26, and not at once at 20."""
    verdicts = watch(seconds(40, you=lambda t: min(t, 2), me=lambda t: min(t, 2) if t < 20 else t))
    died = first_death(verdicts)
    assert died is not None and 25 <= died <= 26


def test_a_failed_look_forgets_everything() -> None:
    """Whoever could not look may have missed a movement, or now sees another server."""
    looks: list[Look] = seconds(20, you=lambda t: 1)
    looks[4] = None
    assert first_death(watch(looks)) == 10


def test_who_was_paused_with_all_others_kills_nobody() -> None:
    """All are frozen for a minute and this watcher wakes up first: its own count has moved on, theirs not yet."""
    looks = seconds(3, you=lambda t: t)
    looks += [(63.0, {"me": 4, "you": 3}, {"you"}), (64.0, {"me": 5, "you": 4}, {"you"})]
    assert first_death(watch(looks)) is None


def test_a_watcher_that_looks_too_rarely_judges_nobody() -> None:
    """Every look starts over when the last one is half a limit ago."""
    assert first_death(watch([(t * 3.0, {"me": t, "you": 1}, {"you"}) for t in range(20)])) is None


def test_several_deaths_come_in_order() -> None:
    """All the dead of one look, sorted by name, the living and the watcher itself never among them."""
    looks: list[Look] = [(float(t), {"me": t, "a": t}, {"me", "a", "z", "b"}) for t in range(7)]
    assert watch(looks)[-1] == ["b", "z"]


def test_repr_says_who_is_watched() -> None:
    """For logs."""
    watcher = Watcher("me")
    watcher.judge(0, {"me": 1, "a": 1, "b": 2}, set())
    assert repr(watcher) == "<Watcher me watches 2>"


# --- the loop ---------------------------------------------------------------------------------------------------------


def test_what_is_a_stuck_loop() -> None:
    """Silent for longer than max_block, and no handler has asked for more time, or its time is over."""
    turned = TurnedClock()
    with clock.using(turned):
        progress = Progress()
        begun = clock.monotonic()
        turned.turn(60)
        assert not progress.stuck(60, 0)
        turned.turn(1)
        assert progress.stuck(60, 0) and not progress.stuck(100, 0)
        assert not progress.stuck(60, begun + 62) and progress.stuck(60, begun + 61)
        progress.mark()
        assert not progress.stuck(60, 0)


async def test_a_worker_that_waits_for_the_server_is_alive(
    virtual: trio.testing.MockClock, memory: MemoryServer, namespace: str
) -> None:
    """Joining, reading and leaving while the server is away: nobody may take the program for stuck and end it."""
    early, late = Worker("early"), Worker("late")
    for worker in (early, late):
        worker.on(PaintingMade)(lambda event: None)
    async with running(memory, early, namespace=namespace, grace=1) as bus:
        memory.set_connected(False)
        bus.add(late)
        await trio.sleep(1000)
        assert [s.state for s in bus.statistics()] == ["running", "joining"]
        assert bus.progressing
        memory.set_connected(True)
        await bus.wait_ready()
        memory.set_connected(False)


async def test_a_bus_that_waits_to_be_entered_is_alive(virtual: trio.testing.MockClock, memory: MemoryServer) -> None:
    """A program may wait for its server before it enters the bus."""
    bus = EventBus("memory://", server=memory)
    await trio.sleep(1000)
    assert bus.progressing


# --- the heart --------------------------------------------------------------------------------------------------------


def beats_of(server: MemoryServer, keys: Keys, consumer: str = "me") -> int:
    return int(BlockingLink(server).call("HGET", keys.beats("g"), consumer) or 0)


async def test_a_heart_in_a_thread_beats_whatever_the_loop_does() -> None:
    """The thread counts up on the server although trio's loop is blocked."""
    server, keys, progress = MemoryServer(), Keys(), Progress()
    heart = Heart(server, [keys], "g", "me", progress, every=0.01)
    heart.start_thread()
    blocked = threading.Event()
    while beats_of(server, keys) < 5:
        blocked.wait(0.002)  # this is the trio thread: the loop does not turn meanwhile
    heart.stop()
    heart.join(5)
    assert heart.beats >= 5


async def test_a_heart_stops_when_the_loop_is_stuck_for_too_long() -> None:
    """No progress for max_block: the beat ends, so that others take over, and somebody is told."""
    server, keys, progress = MemoryServer(), Keys(), Progress()
    stuck = threading.Event()
    heart = Heart(server, [keys], "g", "me", progress, every=0.005, max_block=0.05, on_stuck=stuck.set)
    heart.start_thread()
    assert stuck.wait(10)
    heart.stop()
    heart.join(5)
    count = beats_of(server, keys)
    assert count == heart.beats


async def test_a_loop_that_was_stopped_with_its_heart_is_not_stuck() -> None:
    """As by SIGSTOP: the heart is the first to wake up, sees a loop that was silent for long, and looks once more."""
    looks: Iterator[bool] = itertools.cycle([True, False])
    progress, stuck = Progress(), threading.Event()
    progress.stuck = lambda *_: next(looks)  # type: ignore[method-assign]
    heart = Heart(MemoryServer(), [Keys()], "g", "me", progress, every=0.001, on_stuck=stuck.set)
    heart.start_thread()
    wait_stubbornly(lambda: heart.beats >= 10)
    assert not stuck.is_set()
    looks = itertools.repeat(True)
    assert stuck.wait(10)
    heart.stop()
    heart.join(5)


async def test_a_loop_is_not_stuck_while_a_handler_has_asked_for_time() -> None:
    """`allowed` says until when; the beat goes on, and only after that time it is stuck."""
    server, keys, progress = MemoryServer(), Keys(), Progress()
    stuck, until_when = threading.Event(), [clock.monotonic() + 3600.0]
    heart = Heart(
        server,
        [keys],
        "g",
        "me",
        progress,
        every=0.005,
        max_block=0.02,
        allowed=lambda: until_when[0],
        on_stuck=stuck.set,
    )
    heart.start_thread()
    wait_stubbornly(lambda: heart.beats >= 30)
    assert not stuck.is_set()
    until_when[0] = 0.0
    assert stuck.wait(10)
    heart.stop()
    heart.join(5)


@pytest.mark.parametrize("blocks", [{"max_block": 0.01}, {"blocked": 0.01, "max_block": 0.3}])
async def test_a_stuck_loop_is_ended_although_nobody_reads_the_log(
    monkeypatch: pytest.MonkeyPatch, blocks: dict[str, float]
) -> None:
    """Telling of it may block, like a full pipe does: on_stuck is called all the same. So may telling that a handler blocks
    the loop, which comes first: the heart beats on."""
    full, stuck = threading.Event(), threading.Event()

    class Blocked:
        def critical(self, *_: object, **__: object) -> None:
            full.wait(20)

        warning = critical

    monkeypatch.setattr(liveness, "log", Blocked())
    monkeypatch.setattr(liveness, "TELL_SECONDS", 0.01)
    heart = Heart(MemoryServer(), [Keys()], "g", "me", Progress(), every=0.005, on_stuck=stuck.set, **blocks)
    heart.start_thread()
    assert stuck.wait(10)
    assert heart.beats > 2 or not blocks.get("blocked")
    full.set()
    heart.stop()
    heart.join(5)


async def test_a_blocked_loop_is_told_with_its_stack() -> None:
    """A handler that does not give way is named by the stack in one warning, and once more when it happens again."""
    progress = Progress()
    heart = Heart(MemoryServer(), [Keys()], "g", "me", progress, every=0.002, blocked=0.05)
    with structlog.testing.capture_logs() as logs:
        heart.start_thread()
        for times in (1, 2):
            wait_stubbornly(lambda times=times: len(logs) == times)
            beats = heart.beats
            wait_stubbornly(lambda beats=beats: heart.beats > beats + 10)
            progress.mark()
            beats = heart.beats
            wait_stubbornly(lambda beats=beats: heart.beats > beats + 2)
        heart.stop()
        heart.join(5)
    assert [log["log_level"] for log in logs][:2] == ["warning", "warning"]
    assert "blocks the loop" in logs[0]["event"] and "wait_stubbornly" in logs[0]["stack"]


def wait_stubbornly(condition: Callable[[], bool]) -> None:
    """Wait as a bad handler does: in the loop's thread, without an await."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


async def test_a_heart_survives_an_outage() -> None:
    """It beats again when the server is back."""
    server = FaultyServer(MemoryServer())
    heart = Heart(server, [Keys()], "g", "me", Progress(), every=0.005)
    heart.start_thread()
    await until(lambda: heart.beats >= 2)
    server.faults.append(Fault("lose_request", b"HINCRBY", times=3))
    await until(lambda: server.struck == 3)
    before = heart.beats
    await until(lambda: heart.beats > before + 2)
    heart.stop()
    heart.join(5)


@pytest.mark.parametrize("blocks", [{"max_block": 0.01}, {"blocked": 0.01, "max_block": 0.3}])
async def test_a_stuck_loop_is_ended_where_no_thread_can_be_had(
    monkeypatch: pytest.MonkeyPatch, blocks: dict[str, float]
) -> None:
    """At its limit of processes nothing can be told in a thread of its own: it is told all the same, and who blocks the loop
    is ended."""
    stuck = threading.Event()
    heart = Heart(MemoryServer(), [Keys()], "g", "me", Progress(), every=0.005, on_stuck=stuck.set, **blocks)
    heart.start_thread()

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with structlog.testing.capture_logs() as logs:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        assert stuck.wait(10)
        monkeypatch.undo()
    heart.stop()
    heart.join(5)
    assert logs[-1]["log_level"] == "critical"


async def test_a_heart_survives_what_its_process_lacks() -> None:
    """No memory for the answer to a beat, no memory to connect anew: it is told, and beats again when there is some. A worker
    that goes on without a heartbeat would look dead to all others, and what it has would run twice."""
    server = FaultyServer(MemoryServer())
    heart = Heart(server, [Keys()], "g", "me", Progress(), every=0.005)
    lacking = 0

    def lack(data: bytes) -> None:
        nonlocal lacking
        if lacking:
            lacking -= 1
            raise MemoryError

    server.on_packet = lack
    heart.start_thread()
    await until(lambda: heart.beats >= 2)
    with structlog.testing.capture_logs() as logs:
        lacking = 3
        await until(lambda: lacking == 0)
        before = heart.beats
        await until(lambda: heart.beats > before + 2)
    heart.stop()
    heart.join(5)
    told = ["this worker cannot beat", "the server takes this worker's heartbeat again"]
    assert [entry["event"] for entry in logs] == told and heart.refused == ""
    assert logs[0]["error"] == "MemoryError"


class Pauses(threading.Event):
    """Instead of a heart's stop: notes for how long it would wait, and lets time pass at once."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self._count = count

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout or 0.0)
        return len(self.seconds) > self._count


@pytest.mark.parametrize("kind", ["answer", "lose_request"])
def test_a_heart_in_trouble_keeps_its_pace(kind: Any) -> None:
    """Refused or unheard from the first beat on, it tries once a second; what the server did not count is no beat."""
    server, progress = FaultyServer(MemoryServer()), Progress()
    server.faults.append(Fault(kind, b"HINCRBY", "OOM command not allowed when used memory > 'maxmemory'.", times=3))
    progress.mark()
    heart = Heart(server, [Keys()], "g", "me", progress, every=1.0)
    heart._stop = pauses = Pauses(5)
    with structlog.testing.capture_logs() as logs:
        heart._run()
    assert pauses.seconds == [0.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert server.struck == 3 and heart.beats == 2
    told = ["the server refuses this worker's heartbeat", "the server takes this worker's heartbeat again"]
    assert [entry["event"] for entry in logs] == (told if kind == "answer" else [])


async def test_a_heart_in_a_task_beats_on_trios_clock(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """In one process with a memory server: one beat a second of simulated time, outages forgiven, refusals not
    counted."""
    server, keys = FaultyServer(MemoryServer()), Keys()
    server.faults.append(Fault("lose_request", b"HINCRBY", times=2))
    server.faults.append(Fault("answer", b"HINCRBY", "OOM no", times=3))
    heart = Heart(server, [keys], "g", "me", Progress())
    nursery.start_soon(heart.run_task)
    await trio.sleep(10.5)
    assert heart.beats == 6 == beats_of(server.inner, keys)
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("partitions", [1, 3])
async def test_a_heart_beats_in_every_partition(partitions: int) -> None:
    """Each partition has its own watcher, so the count is kept in each."""
    server = MemoryServer()
    keys = [Keys("canvasbus", p) for p in range(partitions)]
    heart = Heart(server, keys, "g", "me", Progress(), every=0.005)
    heart.start_thread()
    await until(lambda: all(beats_of(server, k) >= 2 for k in keys))
    heart.stop()
    heart.join(5)


async def test_a_worker_that_joins_again_is_not_ready(virtual: Clock, memory: MemoryServer, namespace: str) -> None:
    """Others took it for dead, and the server does not let it back in: it handles nothing, and /readyz says so."""
    server, eyes = FaultyServer(memory), Eyes(memory, namespace)
    async with running(server, framing(), namespace=namespace) as bus:
        first = bus.statistics()[0].consumer
        server.faults.append(Fault("answer", b"MKSTREAM", "NOPERM this user has no permissions", times=100))
        eyes.call("SET", eyes.keys.fence(first), "dead")
        await until(lambda: bus.statistics()[0].consumer != first)
        answer = await _answer(bus, b"GET /readyz HTTP/1.1")
        assert answer.startswith(b"HTTP/1.1 503 ") and b"worker framers is joining" in answer
        server.faults.clear()
        await until(lambda: bus.statistics()[0].state == "running")
        assert (await _answer(bus, b"GET /readyz HTTP/1.1")).startswith(b"HTTP/1.1 200 ")


async def test_a_handler_that_hangs_keeps_no_worker_from_joining_again(
    any_url: str, namespace: str, eyes: Eyes
) -> None:
    """Others took it for dead while a handler of it hangs behind a shield, where nothing ends it. It joins again and goes on;
    what the old run returns in the end is not committed, since others have its event."""
    worker, hanging, over = Worker("framers"), trio.Event(), trio.Event()

    @worker.on(PaintingMade, concurrency=2)
    async def frame(event: PaintingMade) -> PaintingFramed:
        if event.number == 0:
            with trio.CancelScope(shield=True):
                await hanging.wait()
            over.set()
        return PaintingFramed(number=event.number)

    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=0))
        await until(lambda: bus.statistics()[0].running == 1)
        first = bus.statistics()[0].consumer
        eyes.call("SET", eyes.keys.fence(first), "dead")
        await bus.publish(PaintingMade(number=1))  # its commit finds out
        try:
            await until(lambda: bus.statistics()[0].consumer != first and bus.statistics()[0].state == "running")
            await bus.publish(PaintingMade(number=2))
            await until(lambda: eyes.count("painting.framed") == 1)
        finally:
            hanging.set()
        await over.wait()
    assert [event.number for event in eyes.events("painting.framed")] == [2]
    assert {owner for _, owner, _ in eyes.pending("framers")} == {first}
