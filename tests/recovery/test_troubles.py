"""What happens to servers, one after another: events published before, during and after each trouble have their effect
exactly once, nobody has to be restarted, and nobody hammers on a server that says no."""

import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from proxy import Proxy
from servers import ServerProcess
from studio import Eyes, PaintingFramed, PaintingMade, quiet, runner_of, running
from waiting import until

from canvasbus import Producer
from canvasbus.bus import EventBus
from canvasbus.transport.blocking import BlockingLink
from canvasbus.transport.connect import open_server
from canvasbus.transport.resp import Reply, ReplyError
from canvasbus.worker import Worker

MakeServer = Callable[..., ServerProcess]

CALM = 200
"""Commands a second that a server in trouble may get from one bus, one worker and one producer. (A loop without a pause
gets some 10,000 through.)"""


class Admin:
    """A connection that is there before the trouble."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self._link = BlockingLink(open_server(server.unix_url))
        self.call("PING")

    def reply(self, *args: bytes | str | float) -> Reply:
        return self._link.call(*args)

    def call(self, *args: bytes | str | float) -> Any:
        reply = self.reply(*args)
        assert not isinstance(reply, ReplyError), reply
        return reply

    def settings(self, **values: object) -> None:
        for name, value in values.items():
            self.call("CONFIG", "SET", name.replace("_", "-"), str(value))

    def commands(self) -> int:
        """How many it has executed so far."""
        stats = self.call("INFO", "stats").decode()
        return int(stats.partition("total_commands_processed:")[2].split()[0])

    def kill_all(self) -> None:
        """End everybody else's connection."""
        self.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    def close(self) -> None:
        self._link.close()


class Gate:
    """Where handlers wait while it is shut."""

    def __init__(self) -> None:
        self.waiting = 0
        self._opened = trio.Event()
        self._opened.set()

    def shut(self) -> None:
        self.waiting, self._opened = 0, trio.Event()

    def open(self) -> None:
        self._opened.set()

    async def pass_through(self) -> None:
        self.waiting += 1
        await self._opened.wait()


def framing(gate: Gate) -> Worker:
    worker = Worker("framers")

    @worker.on(PaintingMade, concurrency=200)
    async def frame(event: PaintingMade) -> PaintingFramed:
        await gate.pass_through()
        return PaintingFramed(number=event.number)

    return worker


class Studio:
    """Everybody who is connected, and what they publish."""

    def __init__(self, bus: EventBus, producer: Producer, eyes: Eyes, admin: Admin, gate: Gate) -> None:
        self.gate = gate
        self.bus = bus
        self.producer = producer
        self.eyes = eyes
        self.admin = admin
        self.published = 0

    @property
    def failures(self) -> int:
        """How often the bus was told to wait, or not answered."""
        return self.bus._publisher._lanes[0].sender.statistics.failures

    def numbers(self, count: int = 20) -> list[PaintingMade]:
        self.published += count
        return [PaintingMade(number=n) for n in range(self.published - count, self.published)]

    async def publish(self) -> None:
        """Some by the bus, some by the producer."""
        for event in self.numbers():
            self.producer.publish(event)
        await self.bus.publish_many(self.numbers())

    async def all_framed(self) -> None:
        """Each event that was published is framed once, and nothing is left over."""
        await until(lambda: self.eyes.count("painting.framed") >= self.published, 20)
        assert await trio.to_thread.run_sync(self.producer.flush, 5)
        await quiet(self.eyes)
        assert Counter(e.number for e in self.eyes.events("painting.made")) == dict.fromkeys(range(self.published), 1)
        assert Counter(e.number for e in self.eyes.events("painting.framed")) == dict.fromkeys(range(self.published), 1)
        assert self.eyes.dead("framers") == [] and self.eyes.events("bus.loss") == []
        assert runner_of(self.bus).state == "running"


@asynccontextmanager
async def studio(server: ServerProcess, namespace: str, url: str = "") -> AsyncIterator[Studio]:
    """A bus, a worker and a producer on this server, by way of `url`."""
    admin, eyes, gate = Admin(server), Eyes(server.url, namespace), Gate()
    async with running(url or server.url, framing(gate), namespace=namespace) as bus:
        with Producer(url or server.url, namespace=namespace) as producer:
            found = Studio(bus, producer, eyes, admin, gate)
            await found.publish()
            await found.all_framed()
            yield found
    admin.close()
    eyes.close()


# --- troubles that the server says ------------------------------------------------------------------------------------


@asynccontextmanager
async def no_memory(studio: Studio) -> AsyncIterator[None]:
    studio.admin.settings(maxmemory=1)
    yield
    studio.admin.settings(maxmemory=0)


@asynccontextmanager
async def too_few_replicas(studio: Studio) -> AsyncIterator[None]:
    studio.admin.settings(min_replicas_to_write=1)
    yield
    studio.admin.settings(min_replicas_to_write=0)


@asynccontextmanager
async def a_replica_of_nobody(studio: Studio) -> AsyncIterator[None]:
    """Demoted, with a master that nobody can reach."""
    studio.admin.call("REPLICAOF", "127.0.0.1", 1)
    yield
    studio.admin.call("REPLICAOF", "NO", "ONE")


@asynccontextmanager
async def a_stale_replica(studio: Studio) -> AsyncIterator[None]:
    """The same, and it does not even let read."""
    studio.admin.settings(replica_serve_stale_data="no")
    async with a_replica_of_nobody(studio):
        yield


@asynccontextmanager
async def no_disk(studio: Studio) -> AsyncIterator[None]:
    """Snapshots fail: where the file should be there is a folder."""
    (Path(studio.admin.server.folder) / "taken").mkdir()
    studio.admin.settings(dbfilename="taken", save="3600 1")
    studio.admin.call("BGSAVE")
    await until(lambda: b"rdb_last_bgsave_status:err" in studio.admin.call("INFO", "persistence"))
    yield
    studio.admin.settings(save="")


@asynccontextmanager
async def too_many_clients(studio: Studio) -> AsyncIterator[None]:
    """Everybody is thrown out, and the one place that there is is taken."""
    before = studio.admin.call("CONFIG", "GET", "maxclients")[1].decode()
    studio.admin.settings(maxclients=1)
    studio.admin.kill_all()
    yield
    studio.admin.settings(maxclients=before)


@asynccontextmanager
async def a_long_script(studio: Studio) -> AsyncIterator[None]:
    """Somebody's script runs and runs: BUSY to everybody else."""
    studio.admin.settings(busy_reply_threshold=20)
    with socket.socket(socket.AF_UNIX) as culprit:
        culprit.connect(studio.admin.server.socket)
        culprit.sendall(b"EVAL 'while true do end' 0\r\n")
        await until(
            lambda: isinstance(studio.admin.reply("PING"), ReplyError)
        )  # else what comes next may be served yet
        yield
        studio.admin.call("SCRIPT", "KILL")


@asynccontextmanager
async def a_restart(studio: Studio) -> AsyncIterator[None]:
    server = studio.admin.server
    await trio.to_thread.run_sync(server.stop)
    yield
    await trio.to_thread.run_sync(server.start)


@asynccontextmanager
async def a_crash(studio: Studio) -> AsyncIterator[None]:
    server = studio.admin.server
    await trio.to_thread.run_sync(server.kill)
    yield
    await trio.to_thread.run_sync(server.start)


Trouble = Callable[[Studio], AbstractAsyncContextManager[None]]
TROUBLES: list[Trouble] = [
    no_memory, too_few_replicas, a_replica_of_nobody, a_stale_replica, no_disk, too_many_clients, a_long_script,
    a_restart, a_crash,
]  # fmt: skip


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_a_trouble_passes(kind: str, make_server: MakeServer, namespace: str, trouble: Trouble) -> None:
    """It begins while handlers run, which finish meanwhile. The publisher has noticed three times before it passes, and
    the server is left in peace."""
    server = make_server(kind, persistent=True, config=("--enable-protected-configs", "yes"))
    countable = trouble not in (a_restart, a_crash, a_long_script)
    async with studio(server, namespace) as here, trio.open_nursery() as nursery:
        here.gate.shut()
        await here.publish()
        await until(lambda: here.gate.waiting == 40)
        async with trouble(here):
            here.gate.open()
            failures = here.failures
            nursery.start_soon(here.publish)
            await until(
                lambda: here.failures >= failures + 3, 40
            )  # a server that computes answers slowly, on a busy machine
            if countable:
                before, began = here.admin.commands(), trio.current_time()
                await until(lambda: here.failures >= failures + 5)
                rate = (here.admin.commands() - before) / (trio.current_time() - began)
                print(f"{rate:.0f} commands a second")
                assert rate < CALM
        await here.publish()
        await here.all_framed()


async def test_a_pause_is_waited_for(server: ServerProcess, namespace: str) -> None:
    """CLIENT PAUSE for a second, of all commands: nobody takes it for an outage."""
    async with studio(server, namespace) as here:
        failures = here.failures
        here.admin.call("CLIENT", "PAUSE", 1000, "ALL")
        await here.publish()
        assert here.failures == failures
        await here.all_framed()


async def test_any_connection_may_end(server: ServerProcess, namespace: str) -> None:
    """CLIENT KILL of each connection in turn, of the publishers, the reader, the settler, the heart and the shared one:
    whoever loses it goes on over a new one."""
    async with studio(server, namespace) as here:
        not_ours = [b"%d" % each.call("CLIENT", "ID") for each in (here.admin, here.eyes)]

        def connections() -> dict[bytes, bytes]:
            """Number → last command of each connection of the bus."""
            listed = here.admin.call("CLIENT", "LIST").splitlines()
            rows = [dict(field.split(b"=", 1) for field in row.split(b" ") if field) for row in listed]
            return {row[b"id"]: row[b"cmd"] for row in rows if row[b"id"] not in not_ours}

        beats = runner_of(here.bus)._current
        assert beats is not None
        await until(lambda: beats.heart.beats >= 2)  # with the first one goes more than a beat
        mine = connections()
        assert len(mine) == 6 and {b"xreadgroup", b"hincrby"} <= set(mine.values()), mine
        for number in mine:
            here.admin.call("CLIENT", "KILL", "ID", number)
            await here.publish()
        seen = beats.heart.beats
        await until(lambda: beats.heart.beats > seen + 1)
        assert not connections().keys() & mine.keys()
        await here.all_framed()


# --- troubles on the way ----------------------------------------------------------------------------------------------


@pytest.fixture
def proxy(server: ServerProcess) -> Iterator[Proxy]:
    with Proxy(server.port) as proxy:
        yield proxy


async def test_batches_that_are_begun_early_over_a_bad_network(
    server: ServerProcess, proxy: Proxy, namespace: str
) -> None:
    """publish_many, whose packets commit one batch and begin the next: what is lost, torn or comes late is neither lost nor
    doubled, and stays in order."""
    eyes = Eyes(server.url, namespace)
    async with running(proxy.url, namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=-1))
        for fault in ("cut", "lose", "tear", "hold"):
            start = eyes.count("painting.made") - 1
            proxy.next(b"EXEC", fault)  # type: ignore[arg-type]
            await bus.publish_many([PaintingMade(number=n) for n in range(start, start + 2500)])
            assert proxy.pending == 0
        proxy.release()
    assert [made.number for made in eyes.events("painting.made")] == list(range(-1, 10_000))


@pytest.mark.long
async def test_a_network_that_loses_stalls_and_cuts(server: ServerProcess, proxy: Proxy, namespace: str) -> None:
    """Every kind of request is lost before the server has it, and after it has run; everything stands still for a
    while, takes its time, and breaks."""
    async with studio(server, namespace, proxy.url) as here:
        for match in (b"XADD", b"EVALSHA", b"XREADGROUP", b"HINCRBY", b"XINFO"):
            for fault in ("cut", "lose", "tear"):
                proxy.next(match, fault)  # type: ignore[arg-type]
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(here.publish)
                    await until(lambda: proxy.pending == 0)
        proxy.stall()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.publish)
            began = trio.current_time()
            await until(lambda: trio.current_time() > began + 0.5)
            proxy.go_on()
        proxy.delay = 0.02
        await here.publish()
        proxy.delay = 0.0
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(here.publish)
                proxy.cut()
        await here.all_framed()


# --- troubles that somebody makes by hand -----------------------------------------------------------------------------


async def test_everything_is_flushed_in_the_middle_of_the_work(server: ServerProcess, namespace: str) -> None:
    """FLUSHALL between events that were read and those that come: what was in hand may be committed, what comes is
    framed once, the loss is told once, and the namespace is whole again without anybody's restart."""
    async with studio(server, namespace) as here:
        here.gate.shut()
        await here.publish()
        await until(lambda: here.gate.waiting == 40)
        here.admin.call("FLUSHALL")
        here.gate.open()
        await here.publish()
        await until(lambda: here.eyes.events("bus.loss"))
        fresh = range(here.published - 40, here.published)
        await until(lambda: {e.number for e in here.eyes.events("painting.framed")} >= set(fresh))
        await quiet(here.eyes)
        keys = here.eyes.keys
        await until(lambda: here.eyes.call("HGET", keys.meta, "partitions") == b"1")
        await until(lambda: here.eyes.call("HEXISTS", keys.groups, "framers"))
        topics = {b"painting.made", b"painting.framed", b"bus.loss"}
        await until(lambda: topics <= set(here.eyes.call("SMEMBERS", keys.topics)))
    framed = Counter(e.number for e in here.eyes.events("painting.framed"))
    assert set(framed.values()) == {1} and set(fresh) <= set(framed)
    assert [loss.reason for loss in here.eyes.events("bus.loss")] == ["stream_recreated"]


async def test_a_publisher_alone_mends_what_was_flushed(server: ServerProcess, namespace: str) -> None:
    """No bus runs, only a producer, whose connection a FLUSHALL leaves as it is: its next event lies in a namespace that
    workers find."""
    eyes = Eyes(server.url, namespace)
    with Producer(server.url, namespace=namespace) as producer:
        producer.publish(PaintingMade(number=1))
        assert await trio.to_thread.run_sync(producer.flush, 5)
        eyes.call("FLUSHALL")
        producer.publish(PaintingMade(number=2))
        assert await trio.to_thread.run_sync(producer.flush, 5)
    assert [e.number for e in eyes.events("painting.made")] == [2]
    assert eyes.call("SMEMBERS", eyes.keys.topics) == [b"painting.made"]
    assert eyes.call("HGETALL", eyes.keys.meta) == [b"partitions", b"1"]
    eyes.close()
