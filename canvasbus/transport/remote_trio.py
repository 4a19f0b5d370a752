"""A connection to a server for trio code: hiredis parses, trio moves bytes."""

import re
import select
import socket
from typing import Any

import hiredis
import trio

from canvasbus.errors import Refused, Unavailable
from canvasbus.transport.address import Address
from canvasbus.transport.remote import RECEIVE_BYTES, connect_failure, handshake_failure, no_pong, tls_context
from canvasbus.transport.resp import NO_MEMORY, UNASKED, Reply, ReplyError, commands

_SOCKET_BUFFER = 512 * 1024  # a batch of 500 events leaves in one system call
_NOTHING = object()
_HISTORY = re.compile(rb"^(?:run_id|master_replid):(\w+)", re.MULTILINE)


async def connect(address: Address, name: str, timeout: float) -> "RemoteConnection":
    """Open a connection within so many seconds, handshake included. Raises Unavailable or Refused."""
    with trio.move_on_after(timeout) as scope:
        stream = await _open(address, name)
        connection = RemoteConnection(stream, name)
        try:
            await _handshake(connection, address, name)
        except BaseException:
            with trio.CancelScope(shield=True):
                await connection.aclose()
            raise
        return connection
    assert scope.cancelled_caught
    hint = "; does the server speak TLS on this port?" if address.tls else ""
    raise Unavailable(f"{name}: no connection within {timeout:g} s{hint}")


async def _open(address: Address, name: str) -> trio.abc.Stream:
    try:
        if address.path is not None:
            return await trio.open_unix_socket(address.path)
        stream: trio.abc.Stream = await trio.open_tcp_stream(address.host, address.port)
        assert isinstance(stream, trio.SocketStream)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            stream.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER)
        if not address.tls:
            return stream
        try:
            secured = trio.SSLStream(stream, tls_context(address), server_hostname=address.host, https_compatible=True)
            await secured.do_handshake()
        except BaseException:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)
            raise
        return secured
    except (OSError, trio.BrokenResourceError) as error:
        raise connect_failure(name, address, error, broken=isinstance(error, trio.BrokenResourceError)) from error


async def _handshake(connection: "RemoteConnection", address: Address, name: str) -> None:
    steps: list[tuple[bytes | str | int, ...]] = []
    if address.username or address.password:
        user = (address.username,) if address.username else ()
        steps.append(("AUTH", *user, address.password or ""))
    steps.append(("PING",))
    if address.db:
        steps.append(("SELECT", address.db))
    steps += [("CLIENT", "SETNAME", "canvasbus"), ("INFO", "server", "replication"), ("CLIENT", "ID")]
    packet = commands(*steps)
    await connection.send(packet.data)
    replies: list[Reply] = []
    try:
        while len(replies) < packet.replies:
            replies += await connection.receive()
    except Unavailable:
        if replies and isinstance(replies[0], ReplyError):  # it said why and hung up
            raise handshake_failure(name, address, "connect", replies[0]) from None
        raise
    if len(replies) > packet.replies:
        raise Unavailable(f"{name}: {UNASKED}")
    for step, reply in zip(steps, replies, strict=True):
        if isinstance(reply, ReplyError) and step[0] not in ("CLIENT", "INFO"):  # an ACL may forbid these
            raise handshake_failure(name, address, str(step[0]), reply) from reply
        if step[0] == "PING" and reply != b"PONG":
            raise Unavailable(no_pong(name, reply))
    if isinstance(replies[-1], int):
        connection.client_id = replies[-1]
    if isinstance(replies[-2], bytes):
        connection.history = b" ".join(_HISTORY.findall(replies[-2])).decode()


class RemoteConnection:
    """A trio stream with a RESP parser behind it."""

    client_id: int | None = None
    history = ""

    def __init__(self, stream: trio.abc.Stream, name: str) -> None:
        self._stream = stream
        self._name = name
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._poll: select.poll | None = None
        if isinstance(stream, trio.SocketStream):  # under TLS bytes may be waiting that mean nothing
            self._poll = select.poll()
            self._poll.register(stream.socket.fileno(), select.POLLIN)

    def trouble(self) -> str:
        if self._reader.has_data():
            return UNASKED
        if self._poll is None or not self._poll.poll(0):
            return ""
        return "the server closed the connection, or sent what nobody asked for"

    async def send(self, data: bytes) -> None:
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Unavailable(f"{self._name}: the connection broke while sending ({_cause(error)})") from error

    async def receive(self) -> list[Reply]:
        reader: Any = self._reader
        while True:
            try:
                data = await self._stream.receive_some(RECEIVE_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise Unavailable(f"{self._name}: the connection broke ({_cause(error)})") from error
            if not data:
                raise Unavailable(f"{self._name}: the server closed the connection")
            try:
                reader.feed(data)
                replies = list(iter(reader.gets, _NOTHING))
            except MemoryError as error:  # also where a stranger announces an array of four billion
                raise Refused(f"{self._name}: {NO_MEMORY}") from error
            except hiredis.ProtocolError as error:
                raise Refused(f"{self._name} does not speak the Redis protocol ({error})") from error
            if replies:
                return replies

    async def wait_change(self, seconds: float) -> None:
        raise AssertionError("a remote server blocks")

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)


def _cause(error: BaseException) -> str:
    return str(error.__cause__ or error) or type(error).__name__
