"""Attacks by the server's side: no memory, missing permissions, streams that take no more, on real servers."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import structlog
import trio
from faulty import Fault, FaultyServer
from servers import ServerProcess
from studio import Eyes, PaintingFramed, PaintingMade, SculptureMade, quiet, running
from waiting import until

from canvasbus import Producer, Refused
from canvasbus.consume import aside
from canvasbus.consume import state as states
from canvasbus.transport.connect import open_server
from canvasbus.transport.memory import MemoryServer
from canvasbus.transport.settle_script import SETTLE
from canvasbus.wire.codec import Codec
from canvasbus.worker import Backoff, Cancel, Context, Later, Reject, Worker


class Count(msgspec.Struct):
    total: int = 0


@pytest.fixture
def refusing(make_server: Callable[..., ServerProcess]) -> ServerProcess:
    """A server whose users may be given and taken rights."""
    return make_server("redis")


ALL_RIGHTS = ("ACL", "SETUSER", "worker", "reset", "on", ">pw", "~*", "&*", "+@all")


def as_worker(server: ServerProcess) -> str:
    """The URL of the user whose rights these are."""
    return server.url.replace("redis://", "redis://worker:pw@")


def framing(gate: trio.Event | None = None, **options: Any) -> Worker:
    worker = Worker("framers")

    @worker.on(PaintingMade, **options)
    async def frame(event: PaintingMade) -> list[PaintingFramed]:
        if gate is not None:
            await gate.wait()
        if event.title == "reject":
            raise Reject("no")
        return [PaintingFramed(number=event.number)]

    return worker


@pytest.mark.parametrize("kind", ["redis", "valkey"])
async def test_a_full_server_takes_dead_letters_and_later_everything(
    make_server: Callable[..., ServerProcess], namespace: str, kind: str
) -> None:
    """At maxmemory the dead letter of a rejected event is written, derived events wait, and with room each comes once."""
    server = make_server(kind)
    eyes = Eyes(server.url, namespace)
    async with running(server.url, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n, title="reject" if n % 10 == 0 else "") for n in range(100)])
    gate = trio.Event()
    async with running(server.url, framing(gate, concurrency=200), namespace=namespace, grace=0.1):
        await until(lambda: eyes.pending("framers"))
        eyes.call("CONFIG", "SET", "maxmemory", "1")
        gate.set()
        await until(lambda: len(eyes.dead("framers")) == 10)
        assert eyes.count("painting.framed") == 0
        eyes.call("CONFIG", "SET", "maxmemory", "0")
        await until(lambda: eyes.count("painting.framed") >= 90)
        await quiet(eyes)
    assert sorted(e.number for e in eyes.events("painting.framed")) == [n for n in range(100) if n % 10]
    eyes.close()


@pytest.mark.parametrize(
    "command", ["xack", "xclaim", "xpending", "xinfo", "xadd", "hincrby", "hgetall", "get", "set", "evalsha"]
)
async def test_a_user_without_a_command_that_trouble_needs_is_refused_at_once(
    refusing: ServerProcess, namespace: str, command: str
) -> None:
    """Also the rights to beat, to look at others and to take over: a worker that only lacks those would seem to run."""
    eyes = Eyes(refusing.url, namespace)
    eyes.call(*ALL_RIGHTS, f"-{command}")
    with pytest.raises(ExceptionGroup) as caught:
        async with running(as_worker(refusing), framing(), namespace=namespace):
            pass
    error: BaseException = caught.value
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, Refused) and f"'{command}" in str(error)
    eyes.close()


@pytest.mark.parametrize("what", ["painting.made", "painting.*", "*"])
async def test_who_is_refused_leaves_no_group(refusing: ServerProcess, namespace: str, what: str) -> None:
    """It would hold retention back for good. The same of a worker that names no topic, and of what its glob matches."""
    eyes = Eyes(refusing.url, namespace)
    async with running(refusing.url, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(), SculptureMade()])
    worker = Worker("framers")

    @worker.on(what)
    async def look(event: object) -> None: ...

    eyes.call(*ALL_RIGHTS, "-xclaim")
    with pytest.raises(ExceptionGroup):
        async with running(as_worker(refusing), worker, namespace=namespace):
            pass
    assert eyes.call("XINFO", "GROUPS", eyes.stream()) == eyes.call("HGETALL", eyes.keys.groups) == []
    eyes.close()


async def test_who_is_refused_hears_of_all_that_is_missing(refusing: ServerProcess, namespace: str) -> None:
    """Of what it needs to look for topics, too."""
    eyes, worker = Eyes(refusing.url, namespace), framing()

    @worker.on("sculpture.*")
    async def look(event: object) -> None: ...

    eyes.call(*ALL_RIGHTS, "-xclaim", "-smembers", "-scan")
    with pytest.raises(ExceptionGroup) as caught:
        async with running(as_worker(refusing), worker, namespace=namespace):
            pass
    error: BaseException = caught.value
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert [name for name in ("xclaim", "smembers", "scan") if f"'{name}'" not in str(error)] == []
    eyes.close()


async def test_topics_that_are_kept_from_a_user_do_not_stop_what_its_glob_matches(
    refusing: ServerProcess, namespace: str
) -> None:
    """Its keys are those of some streams: it reads them, and the log names the others."""
    eyes, seen = Eyes(refusing.url, namespace), list[str]()
    async with running(refusing.url, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(), SculptureMade()])
    worker = Worker("framers")

    @worker.on("*")
    async def look(event: object) -> None:
        seen.append(type(event).__name__)

    eyes.call(*ALL_RIGHTS, "resetkeys", f"~{{{namespace}:0}}:[^s]*", "~*:state:*", "~*:stream:sculpture.*")
    with structlog.testing.capture_logs() as logs:
        async with running(as_worker(refusing), worker, namespace=namespace):
            await until(lambda: seen == ["SculptureMade"])
    assert [log["topic"] for log in logs if "cannot be read" in log["event"]] == ["painting.made"]
    eyes.close()


@pytest.mark.parametrize("emits", [True, False])
@pytest.mark.parametrize("right", ["-xack", "-xadd", "-evalsha", "-@all", "resetkeys"])
async def test_losing_the_right_to_settle_costs_nothing(
    refusing: ServerProcess, namespace: str, monkeypatch: pytest.MonkeyPatch, right: str, emits: bool
) -> None:
    """A command is forbidden while a worker runs: what its handlers returned waits, and is not added at every attempt, nor
    does anything run again; allowed again, each is there once."""
    monkeypatch.setattr(aside, "ASIDE_SECONDS", 0.1)
    eyes = Eyes(refusing.url, namespace)
    eyes.call(*ALL_RIGHTS)
    worker, runs, gate = Worker("framers"), list[int](), trio.Event()

    @worker.on(PaintingMade, retry=Backoff(attempts=1))
    async def frame(event: PaintingMade) -> PaintingFramed | None:
        runs.append(event.number)
        await gate.wait()
        return PaintingFramed(number=event.number) if emits else None

    with structlog.testing.capture_logs() as logs:
        async with running(as_worker(refusing), worker, namespace=namespace, grace=0.1) as bus:
            await bus.publish_many([PaintingMade(number=n) for n in range(3)])
            await until(lambda: len(runs) == 3)
            eyes.call("ACL", "SETUSER", "worker", right)
            gate.set()
            if emits or right in ("-xack", "-@all", "resetkeys"):  # an acknowledgement alone needs no more than that
                told = {"settling waits for the server", "an outcome waits for a right that this worker's user lacks"}
                await until(lambda: told & {log["event"] for log in logs})
                assert eyes.count("painting.framed") == 0 and len(eyes.pending("framers")) == 3
            eyes.call(*ALL_RIGHTS)
            await quiet(eyes)
            assert bus.statistics()[0].failed == 0
    assert sorted(runs) == [0, 1, 2] and eyes.dead("framers") == []
    assert sorted(e.number for e in eyes.events("painting.framed")) == ([0, 1, 2] if emits else [])
    eyes.close()


async def test_a_stream_that_a_worker_may_not_write_to(refusing: ServerProcess, namespace: str) -> None:
    """Forbidden by its key, it is the failure of those who return events for it; others go on."""
    eyes = Eyes(refusing.url, namespace)
    eyes.call(*ALL_RIGHTS)
    worker, gate = Worker("framers"), trio.Event()

    @worker.on(PaintingMade, retry=Backoff(attempts=2, base=0.01))
    async def frame(event: PaintingMade) -> Any:
        await gate.wait()
        return SculptureMade() if event.number == 7 else PaintingFramed(number=event.number)

    async with running(as_worker(refusing), worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(10)])
        await until(lambda: len(eyes.pending("framers")) == 10)
        patterns = [f"~{{{namespace}:0}}:{name}" for name in ("[^s]*", "stream:[^s]*", "state:*")]
        eyes.call("ACL", "SETUSER", "worker", "resetkeys", *patterns)
        gate.set()
        await quiet(eyes)
    (letter,) = eyes.dead("framers")
    assert "NOPERM" in letter.error
    assert sorted(e.number for e in eyes.events("painting.framed")) == [n for n in range(10) if n != 7]
    eyes.close()


@pytest.mark.parametrize("right", ["set", "pexpire", "hset", "hdel", "zadd", "zrem", "time"])
async def test_losing_a_right_that_only_some_outcomes_need_writes_nothing_twice(
    refusing: ServerProcess, namespace: str, monkeypatch: pytest.MonkeyPatch, right: str
) -> None:
    """It is missed before anything is written, not in the middle, where the events would be added at every attempt."""
    monkeypatch.setattr(aside, "ASIDE_SECONDS", 0.1)
    eyes = Eyes(refusing.url, namespace)
    eyes.call(*ALL_RIGHTS)
    worker, gate = Worker("framers"), trio.Event()

    @worker.on(PaintingMade, retry=Backoff(attempts=1))
    async def frame(event: PaintingMade, ctx: Context) -> list[Any]:
        await gate.wait()
        (await ctx.state(str(event.number), Count, ttl=60)).value.total += 1
        parts = ctx.parts("all", int)
        parts.put(str(event.number), 1)
        parts.remove("none")
        later = Later(SculptureMade(), after=0.01, timer=str(event.number))
        return [PaintingFramed(number=event.number), later, Cancel("none")]

    with structlog.testing.capture_logs() as logs:
        async with running(as_worker(refusing), worker, namespace=namespace, grace=0.1) as bus:
            await bus.publish_many([PaintingMade(number=n) for n in range(3)])
            await until(lambda: len(eyes.pending("framers")) == 3)
            eyes.call("ACL", "SETUSER", "worker", f"-{right}")
            gate.set()
            await until(lambda: [log for log in logs if log["event"].startswith("an outcome waits for a right")])
            assert eyes.count("painting.framed") == 0
            eyes.call(*ALL_RIGHTS)
            await quiet(eyes)
            await until(lambda: eyes.count("sculpture.made") == 3)
    assert sorted(e.number for e in eyes.events("painting.framed")) == [0, 1, 2]
    assert eyes.dead("framers") == []
    eyes.close()


async def test_losing_the_right_that_failures_need_writes_nothing_twice(
    refusing: ServerProcess, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some runs fail and some return, in one batch: what the latter made is not added before the former are refused."""
    monkeypatch.setattr(aside, "ASIDE_SECONDS", 0.1)
    eyes = Eyes(refusing.url, namespace)
    eyes.call(*ALL_RIGHTS)
    worker, gate = Worker("framers"), trio.Event()

    @worker.on(PaintingMade, retry=Backoff(attempts=9, base=0.1, cap=0.1))
    async def frame(event: PaintingMade, ctx: Context) -> PaintingFramed:
        await gate.wait()
        if event.number % 2 and ctx.attempt == 1:
            raise ValueError("once")
        return PaintingFramed(number=event.number)

    with structlog.testing.capture_logs() as logs:
        async with running(as_worker(refusing), worker, namespace=namespace, grace=0.1) as bus:
            await bus.publish_many([PaintingMade(number=n) for n in range(6)])
            await until(lambda: len(eyes.pending("framers")) == 6)
            eyes.call("ACL", "SETUSER", "worker", "-xrange")
            gate.set()
            await until(lambda: [log for log in logs if log["event"].startswith("an outcome waits for a right")])
            eyes.call(*ALL_RIGHTS)
            await quiet(eyes)
    assert sorted(e.number for e in eyes.events("painting.framed")) == list(range(6)) and eyes.dead("framers") == []
    eyes.close()


async def test_losing_the_right_to_load_parts_stops_no_state(refusing: ServerProcess, namespace: str) -> None:
    """What one handler may not load is no reason for others to wait."""
    eyes = Eyes(refusing.url, namespace)
    eyes.call(*ALL_RIGHTS)
    worker = Worker("framers")

    @worker.on(PaintingMade)
    async def look(event: PaintingMade, ctx: Context) -> None:
        await ctx.parts("all", int).items()

    @worker.on(SculptureMade)
    async def count(event: SculptureMade, ctx: Context) -> None:
        (await ctx.state("all", Count)).value.total += 1

    async with running(as_worker(refusing), worker, namespace=namespace, grace=0.1) as bus:
        eyes.call("ACL", "SETUSER", "worker", "-hgetall")
        await bus.publish(PaintingMade())
        await until(lambda: bus.statistics()[0].retries == 1)
        await bus.publish_many([SculptureMade() for _ in range(20)])
        with trio.fail_after(states.REFUSED_SECONDS - 1):
            await quiet(eyes, event_type="sculpture.made")
    eyes.close()


async def test_who_may_not_acknowledge_leaves_at_once(refusing: ServerProcess, namespace: str) -> None:
    """Of what is done and cannot be said it has nothing to wait for."""
    eyes = Eyes(refusing.url, namespace)
    eyes.call(*ALL_RIGHTS)
    worker, gate = Worker("framers"), trio.Event()

    @worker.on(PaintingMade)
    async def look(event: PaintingMade) -> None:
        await gate.wait()

    with structlog.testing.capture_logs() as logs, trio.fail_after(10):
        async with running(as_worker(refusing), worker, namespace=namespace, grace=20) as bus:
            await bus.publish(PaintingMade())
            await until(lambda: len(eyes.pending("framers")) == 1)
            eyes.call("ACL", "SETUSER", "worker", "-xack")
            gate.set()
            await until(lambda: [log for log in logs if "settling waits" in log["event"]])
    eyes.close()


@pytest.mark.parametrize("what", ["state", "parts"])
@pytest.mark.parametrize("taken", [("off",), ("resetpass", ">other"), ("-get", "-hgetall")], ids=" ".join)
async def test_losing_the_right_to_load_costs_no_attempt(
    refusing: ServerProcess, namespace: str, monkeypatch: pytest.MonkeyPatch, what: str, taken: tuple[str, ...]
) -> None:
    """Its user is switched off, its password changed, a right of its taken away, while a worker runs: its events wait, the log
    tells of it, and when it is as before each has its effect once."""
    monkeypatch.setattr(states, "REFUSED_SECONDS", 0.1)
    eyes = Eyes(refusing.url, namespace)
    eyes.call(*ALL_RIGHTS)
    worker, runs, gate = Worker("framers"), list[int](), trio.Event()

    @worker.on(PaintingMade, retry=Backoff(attempts=1))
    async def frame(event: PaintingMade, ctx: Context) -> PaintingFramed:
        runs.append(ctx.attempt)
        await gate.wait()
        if what == "state":
            (await ctx.state("all", Count)).value.total += 1
        else:
            assert await ctx.parts("all", int).items() == {}
        return PaintingFramed(number=event.number)

    with structlog.testing.capture_logs() as logs:
        async with running(as_worker(refusing), worker, namespace=namespace, grace=0.1) as bus:
            await bus.publish_many([PaintingMade(number=n) for n in range(3)])
            await until(lambda: len(runs) == 3)
            eyes.call("ACL", "SETUSER", "worker", *taken)
            if taken[0] != "-get":  # who is connected stays that
                eyes.call("CLIENT", "KILL", "USER", "worker")
            gate.set()
            await until(lambda: len(runs) > 12)
            assert eyes.count("painting.framed") == 0
            eyes.call(*ALL_RIGHTS)
            await quiet(eyes)
            assert bus.statistics()[0].failed == 0
    assert set(runs) == {1} and eyes.dead("framers") == []
    assert sorted(e.number for e in eyes.events("painting.framed")) == [0, 1, 2]
    assert len([log for log in logs if "refuses to load" in log["event"]]) == 1
    eyes.close()


@pytest.mark.parametrize("right", ["zrem", "zadd", "hdel"])
async def test_losing_a_right_that_timers_need_fires_none_twice(
    refusing: ServerProcess, namespace: str, right: str
) -> None:
    """A timer that could not be taken away is not published, once a second; with the right it comes, once."""
    eyes = Eyes(refusing.url, namespace)
    eyes.call(*ALL_RIGHTS)
    with Producer(refusing.url, namespace=namespace) as producer:
        producer.publish(PaintingMade(number=1), delay=0.01)
    with structlog.testing.capture_logs() as logs:
        async with running(as_worker(refusing), namespace=namespace):
            await until(lambda: eyes.count("painting.made") == 1)
            eyes.call("ACL", "SETUSER", "worker", f"-{right}")
            eyes.call("ZADD", eyes.keys.timers, 1, "due")
            eyes.call(
                "HSET",
                eyes.keys.timer_bodies,
                "due",
                b"painting.made\n" + Codec("lab").encode(PaintingMade(number=2)).data,
            )
            await until(lambda: [log for log in logs if f"'{right}'" in log.get("error", "")])
            assert eyes.count("painting.made") == 1
            eyes.call(*ALL_RIGHTS)
            await until(lambda: not eyes.call("EXISTS", eyes.keys.timers))
    assert [e.number for e in eyes.events("painting.made")] == [1, 2]
    eyes.close()


async def test_a_stream_that_takes_no_more_ids_stops_only_its_own(server_url: str, namespace: str) -> None:
    """The last possible id is used up: who derives events there fails and ends in the dead letters, its neighbours in
    the same batch are committed once."""
    eyes = Eyes(server_url, namespace)
    eyes.call("XADD", eyes.stream("sculpture.made"), f"{2**64 - 1}-{2**64 - 1}", "e", "x")
    worker = Worker("framers")

    @worker.on(PaintingMade, retry=Backoff(attempts=2, base=0.01))
    async def frame(event: PaintingMade) -> list[Any]:
        framed = PaintingFramed(number=event.number)
        return [framed, SculptureMade()] if event.number == 7 else [framed]

    async with running(server_url, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(20)])
    async with running(server_url, worker, namespace=namespace):
        await quiet(eyes)
    assert sorted(e.number for e in eyes.events("painting.framed")) == [n for n in range(20) if n != 7]
    (letter,) = eyes.dead("framers")
    assert "ID" in letter.error
    eyes.close()


@pytest.mark.parametrize("kind", ["redis", "valkey"])
async def test_a_dead_letter_that_breaks_each_connection_stops_only_itself(
    make_server: Callable[..., ServerProcess], namespace: str, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The server takes no longer value than the event has, and ends the connection over which a longer one is sent: the
    others are committed, once each, it is told, and with room the dead letter is written."""
    monkeypatch.setattr(aside, "ASIDE_SECONDS", 0.1)
    server = make_server(kind, config=("--proto-max-bulk-len", "1mb"))
    eyes, worker = Eyes(server.url, namespace), Worker("framers")

    @worker.on(PaintingFramed)
    async def hang(event: PaintingFramed) -> SculptureMade:
        if event.number % 10 == 0:
            raise Reject("no" * 200)
        return SculptureMade(title=str(event.number))

    with structlog.testing.capture_logs() as logs:
        async with running(server.url, worker, namespace=namespace) as bus:
            await bus.publish_many(
                [PaintingFramed(number=n, title="" if n else "x" * (2**20 - 300)) for n in range(20)]
            )
            await until(lambda: eyes.count("sculpture.made") == 18)
            await until(lambda: any(log["event"] == "an outcome waits for a server that takes it" for log in logs))
            assert len(eyes.dead("framers")) == 1
            eyes.call("CONFIG", "SET", "proto-max-bulk-len", "4mb")
            await until(lambda: len(eyes.dead("framers")) == 2 and not eyes.pending("framers", "painting.framed"))
    assert sorted(int(e.title) for e in eyes.events("sculpture.made")) == [n for n in range(20) if n % 10]
    eyes.close()


async def test_what_was_committed_unheard_and_is_refused_then_is_not_committed_again(
    any_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to a commit is lost, and when it is repeated the server refuses it, since a right was lost meanwhile. When
    that is given back, what was committed before is not added once more."""
    monkeypatch.setattr(aside, "ASIDE_SECONDS", 0.1)
    eyes, faulty, settle = Eyes(any_url, namespace), FaultyServer(open_server(any_url)), SETTLE.sha.encode()
    refused = Fault("answer", settle, "NOPERM this user has no permissions to run the 'xadd' command", times=4)
    async with running(faulty, framing(), namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=0))
        await until(lambda: eyes.count("painting.framed") == 1)  # the server knows the script
        faulty.faults = [Fault("lose_reply", settle), refused]
        await bus.publish_many([PaintingMade(number=n) for n in range(1, 3)])
        await until(lambda: not faulty.faults)
        await quiet(eyes)
    assert sorted(e.number for e in eyes.events("painting.framed")) == [0, 1, 2]
    eyes.close()


async def test_a_server_too_slow_to_answer_is_not_asked_for_each_outcome(memory: MemoryServer, namespace: str) -> None:
    """It takes commits and does not answer in time, five times in a row, while it answers other things: that says nothing of
    the outcomes, which stay together."""
    eyes, faulty, settle = Eyes(memory, namespace), FaultyServer(memory), SETTLE.sha.encode()
    packets: list[bytes] = []
    async with running(faulty, framing(), namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=0))
        await until(lambda: eyes.count("painting.framed") == 1)  # the server knows the script
        faulty.on_packet = lambda data: packets.append(data) if settle in data else None
        faulty.faults = [Fault("no_answer", settle, times=5)]
        await bus.publish_many([PaintingMade(number=n) for n in range(1, 50)])
        await until(lambda: not faulty.faults, 60)
        await quiet(eyes)
    assert sorted(e.number for e in eyes.events("painting.framed")) == list(range(50))
    assert len(packets) < 10
    eyes.close()
