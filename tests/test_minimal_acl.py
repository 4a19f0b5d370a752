"""The promises under the least rights: each role as the user that `canvasbus doctor --acl` makes, on real servers.

Whatever the ACL denied stands in the server's ACL log, which is empty at the end of each test.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from cli.commands import Run, runner
from faulty import Fault, FaultyServer
from servers import ServerProcess
from studio import Eyes, PaintingFramed, PaintingMade, SculptureMade, quiet, runner_of, running, subscription_of
from waiting import until

from canvasbus import Producer
from canvasbus.bus import Retention
from canvasbus.cli.main import main
from canvasbus.consume.delivery import NO_DOUBT
from canvasbus.transport import connect
from canvasbus.transport.connect import open_server
from canvasbus.worker import Backoff, Context, Later, Reject, Worker


class Count(msgspec.Struct):
    total: int = 0


class Users:
    """A server with one user for each role."""

    def __init__(self, server: ServerProcess, namespace: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.server = server
        self.namespace = namespace
        self.eyes = Eyes(server.url, namespace)
        for role in ("producer", "worker", "operator"):
            capsys.readouterr()
            assert main(["doctor", "--acl", role, "--namespace", namespace]) == 0
            self.eyes.call(*capsys.readouterr().out.split())
            self.eyes.call("ACL", "SETUSER", f"{namespace}-{role}", f">{role}")

    def url(self, role: str) -> str:
        return self.server.url.replace("redis://", f"redis://{self.namespace}-{role}:{role}@")

    def denied(self) -> list[str]:
        """What users tried and were refused."""
        rows = [dict(zip(row[::2], row[1::2], strict=True)) for row in self.eyes.call("ACL", "LOG")]
        return [f"{row[b'username'].decode()}: {row[b'object'].decode()}" for row in rows]


@pytest.fixture(params=["redis", "valkey"])
def users(
    request: pytest.FixtureRequest,
    make_server: Callable[..., ServerProcess],
    namespace: str,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Users]:
    users = Users(make_server(request.param), namespace, capsys)
    yield users
    denied = users.denied()
    users.eyes.close()
    assert not denied


def test_a_producer_that_loses_replies(users: Users, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each event is there once, in order, also those whose reply or request was lost, and those for later."""
    faulty = FaultyServer(open_server(users.url("producer")))
    monkeypatch.setattr(connect, "open_server", lambda _: faulty)
    with Producer(users.url("producer"), namespace=users.namespace) as bus:
        for start, kind in ((0, "lose_reply"), (100, "lose_request"), (200, "lose_reply")):
            faulty.faults.append(Fault(kind, b"EXEC"))  # type: ignore[arg-type]
            for number in range(start, start + 100):
                bus.publish(PaintingMade(number=number))
            assert bus.flush(timeout=10) is True
        faulty.faults.append(Fault("lose_reply", b"EXEC"))
        bus.publish(SculptureMade(), delay=3600)
        assert bus.flush(timeout=10) is True
    assert faulty.struck == 4
    assert [event.number for event in users.eyes.events("painting.made")] == list(range(300))
    assert users.eyes.call("XLEN", users.eyes.keys.stream("~later")) == 1


def test_a_producer_that_stores_once(users: Users) -> None:
    """Under keys, for later, with the script lost, with a reply lost: each once."""
    for _ in range(2):
        with Producer(users.url("producer"), namespace=users.namespace) as bus:
            for number in range(50):
                bus.publish(PaintingMade(number=number), dedupe_key=str(number))
            bus.publish(SculptureMade(), delay=3600, dedupe_key="s")
            assert bus.flush(timeout=10) is True
        users.eyes.call("SCRIPT", "FLUSH")
    assert [event.number for event in users.eyes.events("painting.made")] == list(range(50))
    assert users.eyes.call("XLEN", users.eyes.keys.stream("~later")) == 1


def everything(name: str = "framers") -> Worker:
    """A worker that uses all that a worker may use."""
    worker = Worker(name)

    @worker.on(PaintingMade, retry=Backoff(attempts=2, base=0.01), dedupe=3600)
    async def frame(event: PaintingMade, ctx: Context) -> Any:
        if event.title == "reject":
            raise Reject("no")
        if event.title == "fail":
            raise ValueError("never")
        count = await ctx.state("count", Count, ttl=60)
        count.value.total += 1
        parts = ctx.parts("all", int, ttl=60)
        parts.put(str(event.number), event.number)
        return [PaintingFramed(number=event.number), Later(SculptureMade(title="later"), after=0.01, timer="one")]

    @worker.on("sculpture.*")
    async def look(event: SculptureMade) -> None: ...

    return worker


async def test_a_worker_with_all_that_workers_do(users: Users) -> None:
    """Derived events, state, parts, timers, retries, dead letters, globs, lost replies of settles, lost groups."""
    faulty = FaultyServer(open_server(users.url("worker")))
    eyes = users.eyes
    async with running(faulty, everything(), namespace=users.namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(50)])
        await until(lambda: eyes.count("painting.framed") == 50)
        faulty.faults.append(Fault("lose_reply", b"EVALSHA"))
        await bus.publish_many([PaintingMade(number=n, title="" if n % 10 else "reject") for n in range(50, 100)])
        await bus.publish(PaintingMade(title="fail"))
        await until(lambda: eyes.count("painting.framed") == 95 and len(eyes.dead("framers")) == 6)
        eyes.call("XGROUP", "DESTROY", eyes.stream(), "framers")
        eyes.call("SCRIPT", "FLUSH")
        await bus.publish(PaintingMade(number=100), dedupe_key="100")
        await until(lambda: eyes.count("painting.framed") == 96)
        eyes.put(eyes.call("XREVRANGE", eyes.stream(), "+", "-", "COUNT", 1)[0][1][1])
        await until(lambda: bus.statistics()[0].duplicates == 1)
        await until(lambda: eyes.count("sculpture.made") >= 1)
        await quiet(eyes)
    assert sorted(event.number for event in eyes.events("painting.framed")) == [
        n for n in range(101) if n < 50 or n % 10 or n == 100
    ]
    assert eyes.consumers("framers") == set()


async def test_a_worker_takes_over_from_a_dead_one(users: Users) -> None:
    """The dead one's entries run again at the living one, and the dead one's name is forgotten."""
    cable = FaultyServer(open_server(users.url("worker")))
    eyes, namespace = users.eyes, users.namespace
    hanging, finishing = Worker("framers"), Worker("framers")
    done: list[int] = []

    @hanging.on(PaintingMade)
    async def hang(_: PaintingMade) -> None:
        await trio.sleep_forever()

    @finishing.on(PaintingMade)
    async def finish(event: PaintingMade) -> PaintingFramed:
        done.append(event.number)
        return PaintingFramed(number=event.number)

    async with running(users.url("worker"), namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(5)])
        async with running(cable, hanging, namespace=namespace, grace=0.1) as dying:
            await until(lambda: len(eyes.pending("framers")) == 5)
            dead = runner_of(dying).statistics().consumer
            cable.cut()
            async with running(users.url("worker"), finishing, namespace=namespace):
                await until(lambda: eyes.count("painting.framed") == 5, timeout=20)
                await quiet(eyes)
                await until(lambda: dead not in eyes.consumers("framers"))
    assert sorted(done) == list(range(5))


async def test_a_worker_settles_what_the_server_may_have_given_to_another(users: Users) -> None:
    """After a restart it compares what lies there with what it has read: outcomes, acknowledgements and failures."""
    opened = trio.Event()
    runs: list[int] = []
    worker = Worker("framers")

    @worker.on(PaintingMade, retry=Backoff(attempts=2, base=0.01))
    async def frame(event: PaintingMade) -> PaintingFramed | None:
        runs.append(event.number)
        await opened.wait()
        if event.number == 2 and runs.count(2) == 1:
            raise ValueError
        return PaintingFramed(number=event.number) if event.number else None

    faulty = FaultyServer(open_server(users.url("worker")))
    async with running(faulty, worker, namespace=users.namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(4)])
        await until(lambda: len(runs) == 4)
        faulty.replace()
        await until(lambda: any(t.doubt != NO_DOUBT for t in subscription_of(bus).topics.values()))
        opened.set()
        await quiet(users.eyes, "framers")
        assert runner_of(bus).statistics().not_ours == 0
    assert sorted(e.number for e in users.eyes.events("painting.framed")) == [1, 2, 3]


async def test_a_worker_that_leaves_hands_back(users: Users) -> None:
    """What it has not finished is taken by the next one."""
    eyes = users.eyes
    first, second = Worker("framers"), Worker("framers")
    done: list[int] = []

    @first.on(PaintingMade)
    async def hang(_: PaintingMade) -> None:
        await trio.sleep_forever()

    @second.on(PaintingMade)
    async def finish(event: PaintingMade) -> None:
        done.append(event.number)

    async with running(users.url("worker"), first, namespace=users.namespace, grace=0.1) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(5)])
        await until(lambda: len(eyes.pending("framers")) == 5)
    async with running(users.url("worker"), second, namespace=users.namespace):
        await until(lambda: len(done) == 5)
        await quiet(eyes)


async def test_a_stream_at_its_cap(users: Users) -> None:
    """What somebody has not handled goes, and is told in the same step."""
    eyes, policy = users.eyes, Retention(cap=10, when_full="drop_with_loss_event")
    eyes.call("HSET", eyes.keys.groups, "slow", '{"types": ["painting.made"], "globs": []}')
    async with running(users.url("worker"), namespace=users.namespace, retention={"painting.made": policy}) as bus:
        await bus.publish_many([PaintingMade() for _ in range(20)])
        await until(lambda: eyes.count("painting.made") == 9)
    assert [loss.lost for loss in eyes.events("bus.loss")] == [11]


async def test_an_operator_looks_and_publishes(
    users: Users, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command of `canvasbus` for a server in service does its work completely."""
    monkeypatch.chdir(tmp_path)
    run: Run = runner(users.url("operator"), users.namespace, capsys)
    async with running(users.url("worker"), everything(), namespace=users.namespace) as bus:
        await bus.publish_many([PaintingMade(title="reject"), PaintingMade()])
        await quiet(users.eyes)
        await until(lambda: users.eyes.call("HLEN", users.eyes.keys.accepts("framers")) == 1)
        (answer,) = run("schema", "can-publish", "painting.made@1", "--json").records
        assert answer["answer"] == "taken"
    assert run("publish", "drift.resolved", '{"model_name": "m"}').code == 0
    (sculpture, *_) = [row for row in run("topics", "--json").records if row["name"] == "painting.made"]
    assert sculpture["entries"] == 2 and sculpture["bytes"] and sculpture["groups"] == ["framers"]
    (group,) = run("groups", "--json").records
    assert (group["group"], group["dead_letters"]) == ("framers", 1)
    (letter,) = run("dlq", "list", "--json").records
    assert run("dlq", "show", letter["id"]).code == 0
    assert len(run("tail", "--from", "0", "--json").records) >= 3
    assert run("dlq", "redrive", "--id", letter["id"], "--yes").code == 0
    assert run("dlq", "purge", "--group", "framers", "--yes").code == 0
    for argv in (("set", "painting.*", "--max-length", "1"), ("trim",), ("list",), ("clear", "painting.*")):
        assert run("retention", *argv).code == 0, argv
    for argv in (("pause", "framers"), ("reset", "framers", "--to", "earliest", "--yes"), ("resume", "framers")):
        assert run("groups", *argv).code == 0, argv
    assert run("groups", "forget", "framers", "--yes").code == 0
    users.eyes.call("XADD", users.eyes.stream("foreign.one"), "*", "e", "x")
    assert "foreign.one" in run("topics").out


def test_what_a_producer_may_not(users: Users) -> None:
    """Read dead letters or state, join groups, delete, look at the server: none of it. (This is the one test in which
    something is denied.)"""
    producer = Eyes(users.url("producer"), users.namespace)
    for words in (
        ("XRANGE", producer.keys.dead("framers"), "-", "+"),
        ("XGROUP", "CREATE", producer.stream(), "framers", "0"),
        ("GET", producer.keys.state("framers", "x")),
        ("DEL", producer.stream()),
        ("XADD", "elsewhere", "*", "e", "x"),
        ("SET", producer.keys.done("framers", "id"), "x"),
        ("CONFIG", "GET", "*"),
        ("INFO",),
        ("FLUSHALL",),
    ):
        with pytest.raises(AssertionError, match="NOPERM"):
            producer.call(*words)
    producer.close()
    assert len(users.denied()) == 9
    users.eyes.call("ACL", "LOG", "RESET")
