"""The door to the server itself: plain commands, for a worker that keeps something there which others read.

What a handler remembers belongs into `ctx.state`: it is committed with the acknowledgement. This is for a store beside
the bus, such as feature rows that model servers read: written at least once, so make writing idempotent. Its keys begin
otherwise than the bus's own, which begin with `{NAMESPACE:`.

    @worker.lifespan
    async def opened():
        async with TrioStore() as store:            # the server of the bus that the worker runs on, memory:// too
            yield store

    Store("redis://localhost:6379").ask(("HGETALL", "gallery:7"))   # threads; loads no trio

A store connects when it is first used and again after a failure; nothing is sent twice by itself.
"""

import os
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from canvasbus.errors import ContractError
from canvasbus.transport.blocking import BlockingLink
from canvasbus.transport.connect import open_server
from canvasbus.transport.here import PLACE, Place
from canvasbus.transport.resp import Argument, Reply, ReplyError, check, commands

__all__ = ["Argument", "Reply", "ReplyError", "Store", "TrioStore", "check", "place"]


def place() -> Place:
    """The server and the namespace of the bus that the running worker is on. Raises ContractError elsewhere."""
    found = PLACE.get()
    if found is None:
        raise ContractError("only a worker's lifespan and handlers know the bus they are on: name a URL")
    return found


class Store:
    """For threads, which may share it; after a fork the child has a connection of its own. `timeout`: seconds for an
    answer. Raises ConfigError for a URL that cannot work; of two with memory:// only those with a name meet."""

    def __init__(self, url: str, *, timeout: float = 5.0) -> None:
        self._server = open_server(url)
        self._timeout = timeout
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._link = BlockingLink(self._server, timeout=self._timeout)

    def ask(self, *parts: Sequence[Argument]) -> list[Reply]:
        """Send commands in one packet, and return a reply for each, error replies as values (see `check`). Raises
        Unavailable and Refused."""
        if (
            self._pid != os.getpid()
        ):  # the parent goes on with its socket; it is not closed, which would say goodbye on it
            self._inherited = self._link
            self._begin()
        with self._lock:
            return self._link.request(commands(*map(tuple, parts)))

    def close(self) -> None:
        """Disconnect; the next `ask` connects again."""
        with self._lock:
            self._link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Store {self._link!r}>"


class TrioStore:
    """For trio code; tasks that share it wait for each other. `url` None: the server of the bus that the running worker
    is on. `timeout`: seconds for an answer. Raises ConfigError for a URL that cannot work."""

    def __init__(self, url: str | None = None, *, timeout: float = 5.0) -> None:
        import trio

        from canvasbus.transport.link import Link

        self._lock = trio.Lock()
        self._link = Link(open_server(url) if url is not None else place().server, timeout=timeout)

    async def ask(self, *parts: Sequence[Argument]) -> list[Reply]:
        """As `Store.ask`."""
        async with self._lock:
            return await self._link.request(commands(*map(tuple, parts)))

    async def aclose(self) -> None:
        """Disconnect; the next `ask` connects again."""
        await self._link.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<TrioStore {self._link!r}>"
