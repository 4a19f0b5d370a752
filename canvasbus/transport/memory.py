"""fakeredis in this process: the same commands, the same bytes, no server.

RESP bytes go into fakeredis' socket object and its replies come out of a queue, so nothing above knows the
difference. Four things are different and are dealt with here:

* BLOCK is never sent: with COUNT fakeredis does not block, without it entries are delivered into the pending list and
  thrown away (measured, 2.40). A change callback of the database wakes the waiting reader instead. The callback runs
  on the writer's thread with the server's lock held, so all it does is `TrioToken.run_sync_soon`.
* Time is canvasbus.clock: the `time` that fakeredis' modules see is replaced by a shim that asks our clock, which is
  the machine's unless a test says otherwise. Expiry, TIME, entry ids and idle times then move with a simulated clock.
* Errors must be raw replies: redis-py's classes cut the first word off some of them. And fakeredis puts "ERR" before
  BUSYGROUP, where a server does not.
* Each command pays for what only other uses of fakeredis need: every script was compiled again at each call, Lua's
  garbage collected after it and its global variables listed before each of its commands; each reply went through a
  queue between threads, and was walked through four times. `_Lua` and `_Socket` leave that out, which spares a script
  half of its time, and other commands a third.

The parts of fakeredis used here are not documented; the extra pins the minor version and
tests/transport/test_memory.py holds a canary for each of them.
"""

import threading
import types
from collections.abc import Callable
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
    from fakeredis import _msgs as msgs
    from fakeredis._helpers import SimpleError, SimpleString
    from fakeredis._socket import FakeSocket
    from fakeredis._socket._resp import convert_to_resp2
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
_PLAIN = {bytes, int, type(None)}

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


class _Lua:
    """The Lua of a server, as far as fakeredis uses it for each call of a script."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self._compiled: dict[bytes, Callable[[], Any]] = {}
        self._calls = 0
        self.table_from = runtime.table_from
        self._count = runtime.eval("function() local n = 0 for _ in pairs(_G) do n = n + 1 end return n end")
        self._expected = self._count()
        self.inside = types.SimpleNamespace(globals=dict, table_from=runtime.table_from)
        """What a command within a script is given: there no global variable is looked for."""

    def globals(self) -> Any:
        return {} if self._count() == self._expected else self._runtime.globals()

    def execute(self, script: bytes | str) -> Any:
        if script == "collectgarbage()":
            self._calls += 1
            return self._runtime.execute(script) if self._calls % 500 == 0 else None
        assert isinstance(script, bytes)
        run = self._compiled.get(script)
        if run is None:
            run = self._compiled[script] = self._runtime.compile(script)
        return run()


class _Socket(FakeSocket):
    """A fake socket whose error replies are hiredis errors with the server's whole text. Nobody subscribes on one, and it
    speaks RESP2 to a server of one kind, so that it need not be asked with each command."""

    server_type = "redis"
    version = _SERVER_VERSION
    _resp_version = 2
    _server: Any

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.arrived: list[Any] = []

    def put_response(self, msg: Any) -> None:
        self.arrived.append(msg)

    def add_subkey_event(self, *_: Any) -> None: ...  # `_run_command` of fakeredis would empty what they gather in

    def take(self) -> list[Any]:
        """The replies that there are."""
        arrived, self.arrived = self.arrived, []
        return arrived

    def _get_server_runtime(self, server: Any) -> Any:
        if not hasattr(server, "_lua_runtime"):
            server._lua_runtime = _Lua(super()._get_server_runtime(server))
        return server._lua_runtime

    def _lua_redis_call(self, lua_runtime: Any, expected_globals: Any, op: bytes, *args: Any) -> Any:
        return super()._lua_redis_call(self._server._lua_runtime.inside, expected_globals, op, *args)

    def _decode_result(self, result: Any) -> Reply:
        return _as_wire(result)

    def _run_command(self, func: Any, sig: Any, args: list[Any], from_script: bool) -> Any:
        """As FakeSocket's own, without what only other kinds of server and subscribers need."""
        items: list[Any] = []
        try:
            applied = sig.apply(args, self._db, _SERVER_VERSION)
            if from_script and msgs.FLAG_NO_SCRIPT in sig.flags:
                raise SimpleError(msgs.COMMAND_IN_SCRIPT_MSG)
            if len(applied) == 1:  # what it says of a key that is not there
                result = applied[0]
            else:
                args, items = applied
                result = func(*args)
                if type(result) not in _PLAIN and msgs.FLAG_SKIP_CONVERT_TO_RESP2 not in sig.flags:
                    result = convert_to_resp2(result)
        except SimpleError as error:
            result = error
        for item in items:
            item.writeback(remove_empty_val=msgs.FLAG_LEAVE_EMPTY_VAL not in sig.flags)
        return result


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
        self._reader = hiredis.Reader()
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
        for fields in split(self._reader, data):
            self._socket._process_command(fields)
        self._arrived.set()

    async def receive(self) -> list[Reply]:
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            self._check()
            replies: list[Reply] = self._socket.take()
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
        self._reader = hiredis.Reader()

    def request(self, data: bytes, replies: int, timeout: float) -> list[Reply]:
        return self.execute(split(self._reader, data))

    def execute(self, commands: list[list[bytes]]) -> list[Reply]:
        """What `request` does, for who has the commands apart."""
        if self._socket is None or not (self._server._fake.connected or self._always):
            self.close()
            raise Unavailable(f"{self._server.name} is switched off")
        for fields in commands:
            self._socket._process_command(fields)
        replies: list[Reply] = self._socket.take()
        return replies

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def split(reader: hiredis.Reader, data: bytes) -> list[list[bytes]]:
    """The commands in `data`. They have the grammar of replies, so hiredis splits them; fakeredis' own parser copies the
    rest of the buffer for every field, which makes a batch of 500 quadratic."""
    reader.feed(data)
    return list(iter(reader.gets, False))


def _as_wire(reply: Any) -> Reply:
    """The reply as hiredis would give it: fakeredis has classes of its own for some, and str, float and bool in places."""
    kind = type(reply)
    if kind is bytes or kind is int or reply is None:
        return reply
    if kind is list:
        return [item if type(item) in _PLAIN else _as_wire(item) for item in reply]
    if kind is SimpleString:
        return reply.value
    if kind is SimpleError:
        text = reply.value
        return ReplyError(text.removeprefix("ERR ") if "BUSYGROUP" in text else text)
    if kind is str:
        return reply.encode()
    if kind is bool:
        return int(reply)
    if kind is float:
        return repr(reply).encode()
    return reply
