"""A server with faults on order: whatever is behind it, requests and replies get lost when a test says so.

server = FaultyServer(open_server(url))
server.faults.append(Fault("lose_reply", b"EXEC"))     # the next packet with EXEC in it runs, its reply is lost
server.cut()                                           # from now on nothing passes: the cable is pulled
server.replace()                                       # what is behind it has restarted, or is another server now
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import hiredis
import trio

from canvasbus.errors import Unavailable
from canvasbus.transport.resp import Reply, ReplyError, pack
from canvasbus.transport.server import BlockingConnection, Connection, Server


@dataclass
class Fault:
    """Something that happens to the next packets that contain `match`."""

    kind: Literal["lose_reply", "lose_request", "answer", "no_answer"]
    match: bytes
    answer: str = ""
    """The error that the server says to every command of the packet instead of running it."""
    times: int = 1


_IN_TRANSACTIONS = {  # what a server says to these while it refuses what they frame
    b"MULTI": b"OK",
    b"WATCH": b"OK",
    b"EXEC": ReplyError("EXECABORT Transaction discarded because of previous errors."),
}


def commands_in(data: bytes) -> list[bytes]:
    """The names of the commands in a packet."""
    reader = hiredis.Reader()
    reader.feed(data)
    return [fields[0] for fields in iter(reader.gets, False)]


class FaultyServer:
    """Behaves like `inner` except for its faults."""

    def __init__(self, inner: Server) -> None:
        self.inner = inner
        self.name = inner.name
        self.blocks = inner.blocks
        self.shared = inner.shared
        self.faults: list[Fault] = []
        self.struck = 0
        """Faults that have happened."""
        self.is_cut = False
        self.lives = 0
        """How often it was replaced."""
        self.on_packet: Callable[[bytes], None] | None = None
        """Called with every packet that is about to leave."""

    def cut(self) -> None:
        """Pull the cable for good."""
        self.is_cut = True

    def replace(self) -> None:
        """End all connections; new ones say that they lead to another server."""
        self.lives += 1

    def fault_for(self, data: bytes) -> Fault | None:
        if self.is_cut:
            raise Unavailable("the cable is cut", ambiguous=True)
        if self.on_packet is not None:
            self.on_packet(data)
        for fault in self.faults:
            if fault.match in data:
                fault.times -= 1
                self.struck += 1
                if fault.times == 0:
                    self.faults.remove(fault)
                if fault.kind == "lose_request":
                    raise Unavailable("the request was lost", ambiguous=True)
                return fault
        return None

    async def connect(self) -> Connection:
        if self.is_cut:
            raise Unavailable("the cable is cut")
        return _FaultyConnection(self, await self.inner.connect())

    def connect_blocking(self) -> BlockingConnection:
        if self.is_cut:
            raise Unavailable("the cable is cut")
        return _FaultyBlocking(self, self.inner.connect_blocking())


class _FaultyConnection:
    def __init__(self, server: FaultyServer, inner: Connection) -> None:
        self._server = server
        self._inner = inner
        self._loses = self._silent = False
        self._due: deque[Reply] = deque()  # what each reply is turned into; None: it stays as it is
        self.client_id = inner.client_id
        self._life = server.lives
        self.history = f"{inner.history} {server.lives}"

    def trouble(self) -> str:
        return "the server closed the connection" if self._life != self._server.lives else self._inner.trouble()

    async def send(self, data: bytes) -> None:
        if self._life != self._server.lives:
            raise Unavailable("the connection broke", ambiguous=True)
        fault = self._server.fault_for(data)
        names = commands_in(data)
        if fault is not None and fault.kind == "answer":
            framed = dict(_IN_TRANSACTIONS)
            if b"EXEC" in names and b"MULTI" not in names[: names.index(b"EXEC")]:  # what it ends was taken earlier
                framed[b"EXEC"] = ReplyError(f"EXECABORT Transaction discarded because of: {fault.answer}")
            self._due.extend([framed.get(name, ReplyError(fault.answer)) for name in names])
            await self._inner.send(pack("PING") * len(names))
            return
        self._due.extend([None] * len(names))
        await self._inner.send(data)
        self._loses = fault is not None
        self._silent = fault is not None and fault.kind == "no_answer"

    async def receive(self) -> list[Reply]:
        if self._silent:
            await trio.sleep_forever()
        replies = await self._inner.receive()
        if self._loses or self._server.is_cut or self._life != self._server.lives:
            raise Unavailable("the reply was lost", ambiguous=True)
        return [self._due.popleft() or reply for reply in replies]

    async def wait_change(self, seconds: float) -> None:
        await self._inner.wait_change(seconds)

    async def aclose(self) -> None:
        await self._inner.aclose()


class _FaultyBlocking:
    def __init__(self, server: FaultyServer, inner: BlockingConnection) -> None:
        self._server = server
        self._inner = inner

    def request(self, data: bytes, replies: int, timeout: float) -> list[Reply]:
        try:
            fault = self._server.fault_for(data)
            if fault is not None and fault.kind == "answer":
                return [ReplyError(fault.answer)] * replies
            found = self._inner.request(data, replies, timeout)
            if fault is not None or self._server.is_cut:
                raise Unavailable("the reply was lost", ambiguous=True)
        except Unavailable:
            self.close()
            raise
        return found

    def close(self) -> None:
        self._inner.close()
