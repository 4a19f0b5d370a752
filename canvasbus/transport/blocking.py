"""The link for threads: the producer's sender, the heartbeat, the command line."""

import time
from collections.abc import Callable
from typing import TypeVar

from canvasbus.errors import TransportError, Unavailable
from canvasbus.transport.resp import Operation, Packet, Pause, Reply, command, is_demoted
from canvasbus.transport.server import REPLY_TIMEOUT, BlockingConnection, Server

T = TypeVar("T")


class BlockingLink:
    """One ordered pipe for one thread. Connects when first used and again after a failure; resends nothing."""

    def __init__(
        self, server: Server, *, timeout: float = REPLY_TIMEOUT, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self.server = server
        self.epoch = 0
        """How often this link has connected."""
        self._timeout = timeout
        self._sleep = sleep
        self._connection: BlockingConnection | None = None

    def request(self, packet: Packet) -> list[Reply]:
        """Send a packet and return its replies, error replies as values. Raises Unavailable or Refused."""
        if self._connection is None:
            self._connection = self.server.connect_blocking()
            self.epoch += 1
        try:
            replies = self._connection.request(packet.data, packet.replies, self._timeout)
        except Unavailable:
            self._connection = None
            raise
        if is_demoted(replies):
            self.close()
        return replies

    def call(self, *args: bytes | str | float) -> Reply:
        """One command, its one reply; an error reply is a value."""
        return self.request(command(*args))[0]

    def run(self, operation: Operation[T]) -> T:
        """Drive an operation to its end."""
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
                if wish.reconnect:
                    self.close()
                self._sleep(wish.seconds)
                continue
            try:
                replies = self.request(wish)
            except TransportError as error:
                failure = error

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def __repr__(self) -> str:
        state = "connected" if self._connection else "closed"
        return f"<BlockingLink {self.server.name} {state}, epoch {self.epoch}>"
