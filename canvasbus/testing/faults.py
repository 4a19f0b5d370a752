"""Trouble between a worker and its server, on order: lost requests, lost replies, and a process that dies.

A `FaultyServer` stands between one simulated process and the server in memory. What happens to a packet depends on
what is in it: publishing ends in EXEC or is the script ONCE, reading is XREADGROUP, committing is the settle script or
XACK.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import hiredis
import trio

from canvasbus.errors import Unavailable
from canvasbus.transport.resp import Reply
from canvasbus.transport.scripts import ONCE
from canvasbus.transport.server import BlockingConnection, Connection, Server
from canvasbus.transport.settle_script import SETTLE

What = Literal["publish", "read", "commit"]
How = Literal["lost_reply", "lost_request", "crash"]

_SETTLES = {SETTLE.sha.encode(), SETTLE.source.encode()}
_STORES_ONCE = {ONCE.sha.encode(), ONCE.source.encode()}
_ACKNOWLEDGES = {b"ack", b"bury"}  # its other verbs write down that an attempt begins


@dataclass(eq=False)
class Fault:
    """What is to happen to the next packets of one kind."""

    what: What
    how: How
    group: str | None
    """The worker whose packets are meant; None: anybody's."""
    times: int

    def __str__(self) -> str:
        return f"{self.what}, {self.how}" + (f" of {self.group}" if self.group else "")


class FaultyServer:
    """The server as one simulated process sees it. `group` is None for the process that publishes."""

    blocks = False
    shared = False

    def __init__(self, inner: Server, group: str | None, faults: list[Fault], on_crash: Callable[[], None]) -> None:
        self.name = inner.name
        self._inner = inner
        self._group = group
        self._faults = faults
        self._on_crash = on_crash
        self.is_cut = False

    def cut(self) -> None:
        """Nothing passes from now on: what the process still does after its death reaches nobody."""
        self.is_cut = True

    def check(self) -> None:
        """Raise Unavailable when nothing passes."""
        if self.is_cut:
            raise Unavailable(f"{self.name}: the process is dead", ambiguous=True)

    def fault_for(self, data: bytes) -> Fault | None:
        """The fault that this packet meets. It counts as having happened once it has `struck`."""
        if not self._faults:
            return None
        kinds = _kinds(data)
        for fault in self._faults:
            if fault.what in kinds and fault.group in (None, self._group):
                return fault
        return None

    def struck(self, fault: Fault) -> None:
        """One of its times is over. Raises Unavailable where the request is what got lost."""
        fault.times -= 1
        if fault.times <= 0 and fault in self._faults:
            self._faults.remove(fault)
        if fault.how == "crash":
            self.cut()
            self._on_crash()
            self.check()
        if fault.how == "lost_request":
            raise Unavailable(f"{self.name}: the request was lost", ambiguous=True)

    async def connect(self) -> Connection:
        self.check()
        return _FaultyConnection(self, await self._inner.connect())

    def connect_blocking(self) -> BlockingConnection:
        self.check()
        return self._inner.connect_blocking()

    def __repr__(self) -> str:
        return f"<FaultyServer {self.name} for {self._group or 'publishing'}, {len(self._faults)} faults to come>"


class _FaultyConnection:
    def __init__(self, server: FaultyServer, inner: Connection) -> None:
        self.client_id = inner.client_id
        self.history = inner.history
        self._server = server
        self._inner = inner
        self._fault: Fault | None = None

    async def send(self, data: bytes) -> None:
        self._server.check()
        fault = self._server.fault_for(data)
        if fault is not None and fault.how != "lost_reply":
            await trio.lowlevel.checkpoint()
            self._server.struck(fault)
        await self._inner.send(data)
        self._fault = fault

    async def receive(self) -> list[Reply]:
        replies = await self._inner.receive()
        self._server.check()
        fault, self._fault = self._fault, None
        if fault is not None and (fault.what != "read" or any(replies)):  # an empty read is nothing to lose
            self._server.struck(fault)
            raise Unavailable(f"{self._server.name}: the reply was lost", ambiguous=True)
        return replies

    def trouble(self) -> str:
        return self._inner.trouble()

    async def wait_change(self, seconds: float) -> None:
        await self._inner.wait_change(seconds)

    async def aclose(self) -> None:
        await self._inner.aclose()


def _kinds(data: bytes) -> set[What]:
    """What the commands of a packet are for."""
    reader = hiredis.Reader()
    reader.feed(data)
    found: set[What] = set()
    for fields in iter(reader.gets, False):
        name = fields[0]
        if name == b"EXEC" or not _STORES_ONCE.isdisjoint(fields[1:2]):
            found.add("publish")
        elif name == b"XREADGROUP":
            found.add("read")
        elif name == b"XACK" or (not _SETTLES.isdisjoint(fields[1:2]) and not _ACKNOWLEDGES.isdisjoint(fields)):
            found.add("commit")
    return found
