"""The seam: what a kind of server must offer. Small protocols that `memory`, `remote` and `sentinel` implement.

Upwards nothing knows which one it talks to. What a back end cannot do is declared here (`blocks`), not guessed.
"""

from typing import Protocol

from canvasbus.transport.resp import Reply

REPLY_TIMEOUT = 5.0
"""Seconds without an answer after which a server counts as away."""


class Connection(Protocol):
    """One ordered pipe for trio code, handshake done. One task sends, one task receives; both may be the same.

    Any failure raises Unavailable and leaves the connection unusable. `receive` that is cancelled keeps what has
    arrived: the replies it did not hand over are skipped by the next call, never given to another caller.
    """

    client_id: int | None
    """The server's number for this connection; None where CLIENT ID is not permitted."""
    history: str
    """Names the server process and its replication history. Another one than on the connection before: a failover or a
    restart lies between, and what was seen before it need not be there any more. Empty: not known."""

    async def send(self, data: bytes) -> None:
        """Hand all bytes to the server. Cancelled half-way: the connection is poisoned."""
        ...

    async def receive(self) -> list[Reply]:
        """The next replies, at least one, in order."""
        ...

    def trouble(self) -> str:
        """Why nothing more can be sent, although no reply is owed; empty: nothing is known against it."""
        ...

    async def wait_change(self, seconds: float) -> None:
        """Only where `Server.blocks` is False: return when data may have changed, or after `seconds`."""
        ...

    async def aclose(self) -> None: ...


class BlockingConnection(Protocol):
    """The same for threads: one request at a time."""

    def request(self, data: bytes, replies: int, timeout: float) -> list[Reply]:
        """Send and read `replies` replies, error replies as values. Raises Unavailable, after which it is closed."""
        ...

    def close(self) -> None: ...


class Server(Protocol):
    """An address and how to open connections to it."""

    name: str
    """For people: the URL without secrets."""
    blocks: bool
    """XREADGROUP BLOCK works. False: readers poll and sleep in `Connection.wait_change`."""
    shared: bool
    """Other processes can reach it."""

    async def connect(self) -> Connection:
        """Raises Unavailable (away, loading) or Refused (password, ACL, TLS, database number)."""
        ...

    def connect_blocking(self) -> BlockingConnection: ...
