"""Links: what trio code holds. They connect when first used and again after a failure.

Theory of operation. A `Link` belongs to one task: a request goes out, its replies come back. A `SharedLink` belongs to
everybody: requests are put into one buffer, a writer task sends what has gathered in one piece, a reader task hands
the replies out first-in-first-out ("implicit pipelining").

Rules, each of which somebody else broke first:

* A cancelled request never hands its reply to somebody else. On a Link the replies still owed are counted and skipped;
  on a SharedLink the cancelled waiter stays in the queue and its reply is dropped. A send cut in the middle poisons
  the connection: it is closed.
* Nothing is resent silently. A request that fails after its bytes may have left raises Unavailable(ambiguous=True);
  the caller knows whether repeating is safe.
* A server that does not answer within `timeout` seconds is away, connection or not.
* A server that says that it is no master (any more) is left, so that the next request finds whoever is.
* `epoch` counts connections, `history` names what a connection leads to, so that a caller can see that the server it
  talks to may be another one.
"""

from collections import deque
from math import inf
from typing import TypeVar

import trio

from canvasbus.errors import TransportError, Unavailable
from canvasbus.transport.resp import UNASKED, Operation, Packet, Pause, Reply, command, is_demoted
from canvasbus.transport.server import REPLY_TIMEOUT, Connection, Server

T = TypeVar("T")


class Link:
    """One ordered pipe to the server for one task."""

    def __init__(self, server: Server, *, timeout: float = REPLY_TIMEOUT) -> None:
        self.server = server
        self.epoch = 0
        """How often this link has connected."""
        self._timeout = timeout
        self._connection: Connection | None = None
        self._ready: list[Reply] = []
        self._owed = 0

    async def connect(self) -> None:
        """Connect if there is no connection. Raises Unavailable or Refused."""
        if self._connection is None:
            self._connection = await self.server.connect()
            self._ready, self._owed = [], 0
            self.epoch += 1

    @property
    def client_id(self) -> int | None:
        return self._connection.client_id if self._connection else None

    @property
    def history(self) -> str:
        """See Connection.history; empty while there is no connection."""
        return self._connection.history if self._connection else ""

    async def request(self, packet: Packet, *, timeout: float | None = None) -> list[Reply]:
        """Send a packet and return its replies, error replies as values."""
        connection = await self._ready_to_send(packet)
        limit = self._timeout if timeout is None else timeout
        sent = False
        with trio.move_on_after(self._timeout) as scope:  # one for both ways: it costs more than either
            await self._put(connection, packet)
            sent = True
            scope.deadline = trio.current_time() + limit
            return await self._take(connection, packet.replies, packet.later)
        raise self._unanswered(limit) if sent else self._stuck()

    async def send(self, packet: Packet) -> None:
        """Send only; `receive` must follow."""
        connection = await self._ready_to_send(packet)
        with trio.move_on_after(self._timeout):
            await self._put(connection, packet)
            return
        raise self._stuck()

    async def receive(self, count: int, *, later: int = 0, timeout: float | None = None) -> list[Reply]:
        """The replies of the packet sent last, but for the `later` ones; those of cancelled requests before it are skipped."""
        connection = self._connection
        if connection is None:
            raise Unavailable(f"{self.server.name}: the connection is gone", ambiguous=True)
        limit = self._timeout if timeout is None else timeout
        with trio.move_on_after(limit):
            return await self._take(connection, count, later)
        raise self._unanswered(limit)

    async def _ready_to_send(self, packet: Packet) -> Connection:
        if packet.early > self._owed:
            raise Unavailable(f"{self.server.name}: the connection was given up in between")  # nothing was sent
        await self.connect()
        connection = self._connection
        assert connection is not None
        if not self._owed and (trouble := connection.trouble()):
            self._drop()
            raise Unavailable(f"{self.server.name}: {trouble}")  # nothing was sent: not ambiguous
        return connection

    async def _put(self, connection: Connection, packet: Packet) -> None:
        try:
            await connection.send(packet.data)
        except TransportError as error:
            self._drop()
            raise Unavailable(str(error), ambiguous=True) from error
        except BaseException:  # cut in the middle
            self._drop()
            raise
        self._owed += packet.replies - packet.early + packet.later

    async def _take(self, connection: Connection, count: int, later: int) -> list[Reply]:
        end = self._owed - later
        try:
            while len(self._ready) < end:
                self._ready += await connection.receive()
            if len(self._ready) > self._owed:
                raise Unavailable(f"{self.server.name}: {UNASKED}")
        except TransportError as error:
            self._drop()
            raise Unavailable(str(error), ambiguous=True) from error
        replies = self._ready[end - count : end]
        demoted = is_demoted(self._ready)
        self._ready, self._owed = self._ready[end:], later
        if demoted:
            self._drop()
        return replies

    def _stuck(self) -> Unavailable:
        return Unavailable(f"{self.server.name}: could not send for {self._timeout:g} s", ambiguous=True)

    def _unanswered(self, limit: float) -> Unavailable:
        self._drop()
        return Unavailable(f"{self.server.name}: no answer for {limit:g} s", ambiguous=True)

    async def wait_change(self, seconds: float) -> None:
        """See Connection.wait_change."""
        await self.connect()
        assert self._connection is not None
        await self._connection.wait_change(seconds)

    async def run(self, operation: Operation[T]) -> T:
        """Drive an operation to its end."""
        return await _drive(self, operation)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        self._ready, self._owed = [], 0
        if connection is not None:
            trio.lowlevel.spawn_system_task(connection.aclose)

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        self._ready, self._owed = [], 0
        if connection is not None:
            await connection.aclose()

    def __repr__(self) -> str:
        state = "connected" if self._connection else "closed"
        return f"<{type(self).__name__} {self.server.name} {state}, epoch {self.epoch}>"


class _Waiter:
    __slots__ = ("count", "error", "event", "replies")

    def __init__(self, count: int) -> None:
        self.count = count
        self.replies: list[Reply] = []
        self.error: Exception | None = None
        self.event = trio.Event()


class SharedLink:
    """One connection for many tasks, with implicit pipelining. `run_tasks` must run in a nursery meanwhile."""

    def __init__(self, server: Server, *, timeout: float = REPLY_TIMEOUT) -> None:
        self.server = server
        self.epoch = 0
        self._timeout = timeout
        self._connection: Connection | None = None
        self._connecting = trio.Lock()
        self._out: list[bytes] = []
        self._waiters: deque[_Waiter] = deque()
        self._work = trio.Event()
        self._connected = trio.Event()
        self._reply_scope: trio.CancelScope | None = None
        self._closed = False

    @property
    def history(self) -> str:
        """See Connection.history; empty while there is no connection."""
        return self._connection.history if self._connection else ""

    async def request(self, packet: Packet) -> list[Reply]:
        """Send a packet and return its replies, error replies as values."""
        if self._connection is None:
            await self._connect()
        waiter = _Waiter(packet.replies)
        if not self._waiters and self._reply_scope is not None:
            self._reply_scope.deadline = trio.current_time() + self._timeout
        self._waiters.append(waiter)
        self._out.append(packet.data)
        self._work.set()
        await waiter.event.wait()
        if waiter.error is not None:
            raise Unavailable(str(waiter.error), ambiguous=True) from waiter.error
        return waiter.replies

    async def call(self, *args: bytes | str | float) -> Reply:
        """One command, its one reply; an error reply is a value."""
        return (await self.request(command(*args)))[0]

    async def run(self, operation: Operation[T]) -> T:
        """Drive an operation to its end."""
        return await _drive(self, operation)

    async def _connect(self) -> None:
        async with self._connecting:
            if self._closed:  # nobody would read the answer
                raise Unavailable(f"{self.server.name}: this link is closed")
            if self._connection is None:
                connection = await self.server.connect()
                if self._closed:
                    await connection.aclose()
                    raise Unavailable(f"{self.server.name}: this link is closed")
                self._connection = connection
                self.epoch += 1
                self._connected.set()

    async def run_tasks(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """The writer and the reader, for as long as the caller's scope lives."""
        task_status.started()
        try:
            while True:
                await self._connected.wait()
                connection = self._connection
                assert connection is not None
                try:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._write, connection)
                        nursery.start_soon(self._read, connection)
                except* TransportError as group:
                    self._fail(group.exceptions[0])
                finally:  # also when it was cancelled in the same moment, which `except*` lets pass
                    self._connected = trio.Event()
                    with trio.CancelScope(shield=True):
                        await connection.aclose()
        finally:
            self._closed = True
            left = self._connection
            self._fail(Unavailable("the bus is closing"))
            if left is not None:
                with trio.CancelScope(shield=True):
                    await left.aclose()

    async def _write(self, connection: Connection) -> None:
        while True:
            await self._work.wait()
            self._work = trio.Event()
            if self._out:
                data, self._out = b"".join(self._out), []
                await connection.send(data)

    async def _read(self, connection: Connection) -> None:
        while True:
            with trio.CancelScope() as scope:
                self._reply_scope = scope
                while not scope.cancel_called:
                    scope.deadline = trio.current_time() + self._timeout if self._waiters else inf
                    self._hand_out(await connection.receive())
            if scope.cancelled_caught:
                raise Unavailable(f"{self.server.name}: no answer for {self._timeout:g} s", ambiguous=True)

    def _hand_out(self, replies: list[Reply]) -> None:
        waiters = self._waiters
        for reply in replies:
            if not waiters:
                raise Unavailable(f"{self.server.name}: {UNASKED}", ambiguous=True)
            waiter = waiters[0]
            waiter.replies.append(reply)
            if len(waiter.replies) == waiter.count:
                waiters.popleft()
                waiter.event.set()
        if is_demoted(replies):
            raise Unavailable(f"{self.server.name} is no master any more", ambiguous=True)

    def _fail(self, error: BaseException) -> None:
        self._connection = None
        self._out = []
        self._reply_scope = None
        for waiter in self._waiters:
            waiter.error = error if isinstance(error, Exception) else Unavailable(str(error))
            waiter.event.set()
        self._waiters.clear()

    def __repr__(self) -> str:
        state = "connected" if self._connection else "closed"
        return f"<SharedLink {self.server.name} {state}, epoch {self.epoch}, {len(self._waiters)} waiting>"


async def _drive(link: Link | SharedLink, operation: Operation[T]) -> T:
    replies: list[Reply] = []
    failure: TransportError | None = None
    while True:
        try:
            wish = operation.throw(failure) if failure else operation.send(replies or None)  # type: ignore[arg-type]
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        failure = None
        replies = []
        if isinstance(wish, Pause):
            if wish.reconnect and isinstance(link, Link):  # one that others use, too, is not ours to give up
                await link.aclose()
            await trio.sleep(wish.seconds)
            continue
        try:
            replies = await link.request(wish)
        except TransportError as error:
            failure = error
