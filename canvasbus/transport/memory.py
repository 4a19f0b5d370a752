"""fakeredis in this process: the same commands, the same bytes, no server.

RESP bytes go into fakeredis' socket object and its replies come out of a queue, so nothing above knows the
difference. Three things are different and are dealt with here:

* BLOCK is never sent: with COUNT fakeredis does not block, without it entries are delivered into the pending list and
  thrown away (measured, 2.40). A change callback of the database wakes the waiting reader instead. The callback runs
  on the writer's thread with the server's lock held, so all it does is `TrioToken.run_sync_soon`.
* Time is canvasbus.clock: the `time` that fakeredis' modules see is replaced by a shim that asks our clock, which is
  the machine's unless a test says otherwise. Expiry, TIME, entry ids and idle times then move with a simulated clock.
* Errors must be raw replies: redis-py's classes cut the first word off some of them. And fakeredis puts "ERR" before
  BUSYGROUP, where a server does not.

The parts of fakeredis used here are not documented; the extra pins the minor version and
tests/transport/test_memory.py holds a canary for each of them.
"""

import threading
import types
from typing import Any

import hiredis
import trio

from canvasbus import clock
from canvasbus.errors import ConfigError, Unavailable
from canvasbus.transport.resp import Reply, ReplyError

try:
    import fakeredis
    import fakeredis._helpers
    import fakeredis._socket._base
    import fakeredis.commands_mixins.server_mixin
    import fakeredis.model._stream
    import redis
    from fakeredis import FakeServer
    from fakeredis._socket import FakeSocket
except ImportError as error:
    raise ConfigError(
        f"memory:// needs the extra 'memory' ({error.name} is missing): pip install 'canvasbus[memory]'"
    ) from error

_shim = types.SimpleNamespace(time=clock.time)
for _module in (
    fakeredis._helpers,
    fakeredis._socket._base,
    fakeredis.commands_mixins.server_mixin,
    fakeredis.model._stream,
):
    _module.time = _shim  # type: ignore[attr-defined]

_SERVER_VERSION = (7, 0)

_named: dict[str, "MemoryServer"] = {}
_named_lock = threading.Lock()


def named(name: str) -> "MemoryServer":
    """The server behind memory://name, the same for the whole process."""
    with _named_lock:
        server = _named.get(name)
        if server is None:
            server = _named[name] = MemoryServer(name)
        return server


def forget(name: str) -> None:
    """Let memory://name begin anew; who has it open keeps what there was."""
    with _named_lock:
        _named.pop(name, None)


class _Socket(FakeSocket):
    """A fake socket whose error replies are hiredis errors with the server's whole text."""

    def _decode_error(self, error: Any) -> Any:
        return ReplyError(error.value.removeprefix("ERR ") if "BUSYGROUP" in error.value else error.value)


class MemoryServer:
    """One in-process server."""

    blocks = False
    shared = False

    def __init__(self, name: str = "") -> None:
        self.name = f"memory://{name}"
        self._fake = FakeServer(version=_SERVER_VERSION)

    def _socket(self, *, always: bool = False) -> Any:
        if not (self._fake.connected or always):
            raise Unavailable(f"{self.name} is switched off")
        return _Socket(self._fake, 0, client_class=redis.Redis, lua_modules=set())

    async def connect(self) -> "MemoryConnection":
        await trio.lowlevel.checkpoint()
        return MemoryConnection(self)

    def connect_blocking(self) -> "MemoryBlockingConnection":
        return MemoryBlockingConnection(self)

    def observe(self) -> "MemoryBlockingConnection":
        """A connection that `set_connected(False)` does not cut (for test kits)."""
        return MemoryBlockingConnection(self, always=True)

    def set_connected(self, connected: bool) -> None:
        """Switch the server off or on again, as an outage would (for tests); its data stays."""
        self._fake.connected = connected

    def __repr__(self) -> str:
        return f"<MemoryServer {self.name} {'up' if self._fake.connected else 'down'}>"


class MemoryConnection:
    """A pipe to the in-process server. Commands run inside `send`; they never wait, so that is safe under trio."""

    client_id: int | None = None
    history = "memory"

    def __init__(self, server: MemoryServer) -> None:
        self._server = server
        self._socket = server._socket()
        self._replies = self._socket.responses
        self._arrived = trio.Event()
        self._changed = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        self._listening = False

    def _check(self) -> None:
        if self._socket is None or not self._server._fake.connected:
            self._close()
            raise Unavailable(f"{self._server.name} is switched off")

    async def send(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self._check()
        _execute(self._socket, data)
        self._arrived.set()

    async def receive(self) -> list[Reply]:
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            self._check()
            replies = []
            while not self._replies.empty():
                replies.append(_as_wire(self._replies.get_nowait()))
            if replies:
                await trio.lowlevel.cancel_shielded_checkpoint()
                return replies
            self._arrived = trio.Event()
            await self._arrived.wait()

    def trouble(self) -> str:
        return ""  # `send` checks

    def _on_change(self) -> None:
        try:
            self._token.run_sync_soon(self._wake, idempotent=True)
        except trio.RunFinishedError:
            pass

    def _wake(self) -> None:
        self._changed.set()

    async def wait_change(self, seconds: float) -> None:
        if not self._listening:
            # From the first wait on. The caller reads again after it, so a change before it is not missed.
            with self._server._fake.lock:
                self._server._fake.dbs[0].add_change_callback(self._on_change)
            self._listening = True
            await trio.lowlevel.checkpoint()
            return
        with trio.move_on_after(seconds):
            await self._changed.wait()
        self._changed = trio.Event()

    def _close(self) -> None:
        if self._socket is not None:
            if self._listening:
                with self._server._fake.lock:
                    self._server._fake.dbs[0].remove_change_callback(self._on_change)
            self._socket.close()
            self._socket = None
            self._arrived.set()
            self._changed.set()

    async def aclose(self) -> None:
        self._close()
        await trio.lowlevel.checkpoint()


class MemoryBlockingConnection:
    """The same pipe for threads."""

    def __init__(self, server: MemoryServer, *, always: bool = False) -> None:
        self._server = server
        self._always = always
        self._socket = server._socket(always=always)

    def request(self, data: bytes, replies: int, timeout: float) -> list[Reply]:
        if self._socket is None or not (self._server._fake.connected or self._always):
            self.close()
            raise Unavailable(f"{self._server.name} is switched off")
        _execute(self._socket, data)
        return [_as_wire(self._socket.responses.get(timeout=timeout)) for _ in range(replies)]

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _execute(socket: Any, data: bytes) -> None:
    """Run every command in `data`. Commands have the grammar of replies, so hiredis splits them; fakeredis' own
    parser copies the rest of the buffer for every field, which makes a batch of 500 quadratic."""
    reader = hiredis.Reader()
    reader.feed(data)
    while True:
        fields = reader.gets()
        if fields is False:
            return
        socket._process_command(fields)


def _as_wire(reply: Any) -> Reply:
    """The reply as hiredis would give it: fakeredis hands out str, float and bool in places."""
    kind = type(reply)
    if kind is bytes or kind is int or reply is None:
        return reply
    if kind is list:
        return [_as_wire(item) for item in reply]
    if kind is str:
        return reply.encode()
    if kind is bool:
        return int(reply)
    if kind is float:
        return repr(reply).encode()
    if isinstance(reply, redis.exceptions.RedisError):
        return ReplyError(str(reply))
    return reply
