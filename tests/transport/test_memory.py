"""The memory transport: its clock, its wake-ups, and a canary for every private part of fakeredis that it uses.

A canary that fails says that a new fakeredis moved something: look there before anything else.
"""

import ast
import hashlib
import inspect
import threading
from collections.abc import Iterator
from types import ModuleType

import fakeredis._helpers
import fakeredis._socket._base
import fakeredis.commands_mixins.server_mixin
import fakeredis.model._stream
import pytest
import trio
from fakeredis import FakeServer
from fakeredis._socket import FakeSocket
from waiting import TrioClock, TurnedClock

from canvasbus import clock
from canvasbus.errors import Unavailable
from canvasbus.transport.blocking import BlockingLink
from canvasbus.transport.connect import open_server
from canvasbus.transport.link import Link
from canvasbus.transport.memory import MemoryServer, _Socket
from canvasbus.transport.resp import Packet, ReplyError, command, commands, pack

TIMED_MODULES = [
    fakeredis._helpers,
    fakeredis._socket._base,
    fakeredis.commands_mixins.server_mixin,
    fakeredis.model._stream,
]


@pytest.fixture
def server() -> MemoryServer:
    return MemoryServer()


@pytest.fixture
def turned() -> Iterator[TurnedClock]:
    turned = TurnedClock()
    with clock.using(turned):
        yield turned


# --- canaries ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", TIMED_MODULES, ids=lambda m: m.__name__)
def test_fakeredis_takes_its_time_from_a_module_named_time(module: ModuleType) -> None:
    """Each module whose `time` is replaced calls time.time() and nothing else of it."""
    used = {
        node.attr
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "time"
    }
    assert used == {"time"}
    assert module.time.time is clock.time  # type: ignore[attr-defined]


def test_a_fake_socket_has_the_parts_we_use(server: MemoryServer) -> None:
    """FakeSocket: what is called, and what `_Socket` puts something else in place of; FakeServer: `connected`, `lock`,
    `dbs`."""
    assert callable(FakeSocket._process_command) and callable(FakeSocket.close)
    fake = FakeServer(version=(7, 0))
    assert fake.connected is True
    with fake.lock:
        database = fake.dbs[0]
    assert callable(database.add_change_callback) and callable(database.remove_change_callback)
    ours = {name for name in vars(_Socket) if name != "take" and not name.startswith("__")}
    assert {name for name in ours if hasattr(FakeSocket, name)} == ours
    socket = server._socket()
    socket._process_command([b"PING"])
    assert socket.take() == [b"PONG"] and socket.take() == []


def test_commands_are_run_as_fakeredis_would() -> None:
    """`_Socket._run_command` leaves out parts of fakeredis' own, as it was read in 2.40: when that changes, look again."""
    source = inspect.getsource(FakeSocket._run_command)
    assert hashlib.sha256(source.encode()).hexdigest()[:16] == "816d998ad6c12290"


def test_a_script_is_compiled_once_and_watched_for_globals(server: MemoryServer) -> None:
    """Called again, a script is the compiled one; one that makes a global variable is refused, as on a real server."""
    link = BlockingLink(server)
    assert [link.call("EVAL", "return ARGV[1]", 0, word) for word in ("a", "b")] == [b"a", b"b"]
    assert len(server._fake._lua_runtime._compiled) == 1  # type: ignore[attr-defined]
    refused = link.call("EVAL", "forgotten = 1", 0)
    assert isinstance(refused, ReplyError) and "forgotten" in str(refused)


@pytest.mark.parametrize(
    "write",
    [
        commands(("XADD", "s", "*", "e", "1")),
        commands(("EVAL", "return redis.call('XADD', 's', '*', 'e', '1')", 0)),
        commands(("MULTI",), ("XADD", "s", "*", "e", "1"), ("EXEC",)),
        commands(("XGROUP", "CREATE", "s", "g", "0", "MKSTREAM")),
    ],
    ids=["plain", "script", "transaction", "group"],
)
def test_every_kind_of_write_calls_back(server: MemoryServer, write: Packet) -> None:
    """The change callback is called for an XADD, one in a script, one in a transaction, and for a new group."""
    calls: list[int] = []
    server._fake.dbs[0].add_change_callback(lambda *_: calls.append(1))
    server.connect_blocking().request(write.data, write.replies, 1)
    assert calls


def test_reading_does_not_call_back(server: MemoryServer) -> None:
    """A read that wakes its own reader would be a hot loop."""
    link = BlockingLink(server)
    link.call("XGROUP", "CREATE", "s", "g", "0", "MKSTREAM")
    calls: list[int] = []
    server._fake.dbs[0].add_change_callback(lambda *_: calls.append(1))
    link.call("XREADGROUP", "GROUP", "g", "me", "COUNT", 10, "STREAMS", "s", ">")
    link.call("XRANGE", "s", "-", "+")
    link.call("HGETALL", "h")
    assert calls == []


def test_the_callback_runs_under_the_lock_of_the_server(server: MemoryServer) -> None:
    """So it may do nothing but hand a wake-up over: it runs on the writer's thread while the server is locked."""
    seen: list[tuple[int, bool]] = []

    def callback(*_: object) -> None:
        free = threading.Event()

        def probe() -> None:
            if server._fake.lock.acquire(blocking=False):
                server._fake.lock.release()
                free.set()

        other = threading.Thread(target=probe)
        other.start()
        other.join()
        seen.append((threading.get_ident(), free.is_set()))

    server._fake.dbs[0].add_change_callback(callback)
    BlockingLink(server).call("XADD", "s", "*", "e", "1")
    assert seen == [(threading.get_ident(), False)]


# --- time -------------------------------------------------------------------------------------------------------------


def test_a_lifetime_follows_the_clock(server: MemoryServer, turned: TurnedClock) -> None:
    """A key with PX lives exactly as long as canvasbus.clock says, and not a moment by the machine's clock."""
    link = BlockingLink(server)
    link.call("SET", "lease", "me", "PX", 4000)
    turned.turn(3.999)
    assert link.call("GET", "lease") == b"me"
    turned.turn(0.002)
    assert link.call("GET", "lease") is None


def test_entry_ids_follow_the_clock(server: MemoryServer, turned: TurnedClock) -> None:
    """The milliseconds of an entry id are the clock's; TIME says the same."""
    link = BlockingLink(server)
    for _ in range(2):
        turned.turn(1.5)
        assert link.call("XADD", "s", "*", "e", "1") == b"%d-0" % round(turned.seconds * 1000)
    seconds, _ = link.call("TIME")
    assert int(seconds) == int(turned.seconds)


def test_entry_ids_rise_even_when_the_clock_goes_back(server: MemoryServer, turned: TurnedClock) -> None:
    """As on a real server: the last id's milliseconds stay, the sequence grows."""
    link = BlockingLink(server)
    first = link.call("XADD", "s", "*", "e", "1")
    turned.turn(-3600)
    assert link.call("XADD", "s", "*", "e", "1") == first.replace(b"-0", b"-1")


def test_idle_times_follow_the_clock(server: MemoryServer, turned: TurnedClock) -> None:
    """XPENDING's idle time is what has passed on the clock since the delivery."""
    link = BlockingLink(server)
    link.call("XADD", "s", "*", "e", "1")
    link.call("XGROUP", "CREATE", "s", "g", "0")
    link.call("XREADGROUP", "GROUP", "g", "me", "STREAMS", "s", ">")
    turned.turn(90)
    ((_, _, idle, _),) = link.call("XPENDING", "s", "g", "-", "+", 10)
    assert idle == 90_000


async def test_a_lifetime_moves_with_trios_mock_clock(
    server: MemoryServer, autojump_clock: trio.testing.MockClock
) -> None:
    """With the clock set to trio's, sleeping an hour ends an hour's lease, in no time."""
    with clock.using(TrioClock(autojump_clock)):
        link = Link(server)
        await link.request(command("SET", "lease", "me", "PX", 3_600_000))
        await trio.sleep(3599)
        assert await link.request(command("GET", "lease")) == [b"me"]
        await trio.sleep(2)
        assert await link.request(command("GET", "lease")) == [None]
        await link.aclose()


# --- being a server ---------------------------------------------------------------------------------------------------


def test_memory_with_a_name_is_shared_and_without_is_private() -> None:
    """memory://name is one server for the whole process; each memory:// is one of its own."""
    one, two = open_server("memory://studio-a"), open_server("memory://studio-a")
    BlockingLink(one).call("SET", "k", "v")
    assert BlockingLink(two).call("GET", "k") == b"v"
    assert BlockingLink(open_server("memory://studio-b")).call("GET", "k") is None
    assert open_server("memory://") is not open_server("memory://")


async def test_a_server_switched_off_is_unavailable_and_keeps_its_data(server: MemoryServer) -> None:
    """An outage fails what is sent, new connections too; afterwards the data is there and links connect again."""
    link, blocking = Link(server), BlockingLink(server)
    await link.request(command("SET", "k", "v"))
    blocking.call("GET", "k")
    server.set_connected(False)
    with pytest.raises(Unavailable, match="switched off"):
        await link.request(command("GET", "k"))
    with pytest.raises(Unavailable, match="switched off"):
        blocking.call("GET", "k")
    with pytest.raises(Unavailable, match="switched off"):
        await link.request(command("GET", "k"))
    server.set_connected(True)
    assert await link.request(command("GET", "k")) == [b"v"]
    assert blocking.call("GET", "k") == b"v"
    assert link.epoch == blocking.epoch == 2
    await link.aclose()


async def test_a_closed_connection_listens_no_more(server: MemoryServer) -> None:
    """Connections that waited for changes leave no callback behind when they close."""
    for _ in range(3):
        link = Link(server)
        await link.wait_change(0)
        await link.aclose()
    callbacks = server._fake.dbs[0]._change_callbacks
    assert len(callbacks) == 0


async def test_a_wake_up_between_read_and_wait_is_not_missed(server: MemoryServer) -> None:
    """A change after the last look and before the wait ends the wait at once."""
    link, writer = Link(server), BlockingLink(server)
    await link.wait_change(0)
    writer.call("XADD", "s", "*", "e", "1")
    with trio.fail_after(5):
        await link.wait_change(60)
    await link.aclose()


async def test_publishing_threads_never_touch_trios_insides(server: MemoryServer) -> None:
    """Eight threads write while a task waits for changes: every entry is seen, nothing crashes."""
    link = Link(server)
    await link.request(command("XGROUP", "CREATE", "s", "g", "0", "MKSTREAM"))
    read = 0

    def write() -> None:
        other = BlockingLink(server)
        for _ in range(50):
            other.request(Packet(pack("XADD", "s", "*", "e", "1"), 1))

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    with trio.fail_after(20):
        while read < 400:
            reply = await link.request(command("XREADGROUP", "GROUP", "g", "me", "COUNT", 100, "STREAMS", "s", ">"))
            if reply[0]:
                read += len(reply[0][0][1])
            else:
                await link.wait_change(5)
    for thread in threads:
        thread.join()
    await link.aclose()


def test_a_large_batch_is_not_quadratic(server: MemoryServer) -> None:
    """Commands are split by hiredis: 5,000 in one piece are all executed, in order."""
    link = BlockingLink(server)
    replies = link.request(Packet(b"".join(pack("RPUSH", "l", i) for i in range(5000)), 5000))
    assert replies == list(range(1, 5001))
