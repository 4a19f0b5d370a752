"""A Redis or Valkey server over TCP, TLS or a unix socket.

trio code has its own connection here, because redis-py knows no trio: hiredis parses, trio moves bytes. Threads use
redis-py's connection, which does TLS, authentication and unix sockets already; its retries and health checks are off,
since a retried XADD is a doubled event.
"""

import re
import select
import socket
import ssl
from contextlib import suppress
from typing import Any

import hiredis
import trio

from canvasbus.errors import Refused, TransportError, Unavailable
from canvasbus.transport.address import Address
from canvasbus.transport.resp import UNASKED, Reply, ReplyError, code, commands, translate

CONNECT_TIMEOUT = 5.0
"""Seconds for opening a connection, handshake included."""

_RECEIVE_BYTES = 256 * 1024
_SOCKET_BUFFER = 512 * 1024  # a batch of 500 events leaves in one system call
_NOTHING = object()
_HISTORY = re.compile(rb"^(?:run_id|master_replid):(\w+)", re.MULTILINE)


class RemoteServer:
    """One server, by its address. `name`: what errors call it, else its URL; `timeout`: seconds for connecting."""

    blocks = True
    shared = True

    def __init__(self, address: Address, *, name: str = "", timeout: float = CONNECT_TIMEOUT) -> None:
        self._address = address
        self.timeout = timeout
        self.name = name or address.shown

    async def connect(self) -> "RemoteConnection":
        with trio.move_on_after(self.timeout) as scope:
            stream = await self._open()
            connection = RemoteConnection(stream, self.name)
            try:
                await self._handshake(connection)
            except BaseException:
                with trio.CancelScope(shield=True):
                    await connection.aclose()
                raise
            return connection
        assert scope.cancelled_caught
        hint = "; does the server speak TLS on this port?" if self._address.tls else ""
        raise Unavailable(f"{self.name}: no connection within {self.timeout:g} s{hint}")

    async def _open(self) -> trio.abc.Stream:
        address = self._address
        try:
            if address.path is not None:
                return await trio.open_unix_socket(address.path)
            stream: trio.abc.Stream = await trio.open_tcp_stream(address.host, address.port)
            assert isinstance(stream, trio.SocketStream)
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                stream.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER)
            if not address.tls:
                return stream
            secured = trio.SSLStream(stream, tls_context(address), server_hostname=address.host, https_compatible=True)
            await secured.do_handshake()
            return secured
        except (OSError, trio.BrokenResourceError) as error:
            raise connect_failure(self.name, address, error) from error

    async def _handshake(self, connection: "RemoteConnection") -> None:
        address = self._address
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
                raise handshake_failure(self.name, address, "connect", replies[0]) from None
            raise
        if len(replies) > packet.replies:
            raise Unavailable(f"{self.name}: {UNASKED}")
        for step, reply in zip(steps, replies, strict=True):
            if isinstance(reply, ReplyError) and step[0] not in ("CLIENT", "INFO"):  # an ACL may forbid these
                raise handshake_failure(self.name, address, str(step[0]), reply) from reply
            if step[0] == "PING" and reply != b"PONG":
                raise Unavailable(_no_pong(self.name, reply))
        if isinstance(replies[-1], int):
            connection.client_id = replies[-1]
        if isinstance(replies[-2], bytes):
            connection.history = b" ".join(_HISTORY.findall(replies[-2])).decode()

    def connect_blocking(self) -> "RemoteBlockingConnection":
        return RemoteBlockingConnection(self._address, self.name, self.timeout)

    def __repr__(self) -> str:
        return f"<RemoteServer {self.name}>"


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
                data = await self._stream.receive_some(_RECEIVE_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise Unavailable(f"{self._name}: the connection broke ({_cause(error)})") from error
            if not data:
                raise Unavailable(f"{self._name}: the server closed the connection")
            try:
                reader.feed(data)
                replies = list(iter(reader.gets, _NOTHING))
            except (hiredis.ProtocolError, MemoryError) as error:  # the latter: an array of four billion is announced
                raise Refused(f"{self._name} does not speak the Redis protocol ({error})") from error
            if replies:
                return replies

    async def wait_change(self, seconds: float) -> None:
        raise AssertionError("a remote server blocks")

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)


class RemoteBlockingConnection:
    """redis-py's connection, used as a pipe for prebuilt bytes."""

    def __init__(self, address: Address, name: str, timeout: float) -> None:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        self._errors = redis.exceptions
        self._name = name
        options: dict[str, Any] = {
            "db": address.db,
            "username": address.username,
            "password": address.password,
            "socket_timeout": timeout,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
            "encoding": "latin-1",
            "health_check_interval": 0,
        }
        kind: Any
        if address.path is not None:
            kind = redis.UnixDomainSocketConnection
            options["path"] = address.path
        else:
            kind = redis.Connection
            options |= {"host": address.host, "port": address.port}
            options |= {"socket_connect_timeout": timeout, "socket_keepalive": True}
            if address.tls:
                tls_context(address)  # says in our words what is wrong with the files
                kind = redis.SSLConnection
                options |= {
                    "ssl_cert_reqs": "required" if address.verify else "none",
                    "ssl_check_hostname": address.verify,
                    "ssl_ca_certs": address.ca_file,
                    "ssl_certfile": address.cert_file,
                    "ssl_keyfile": address.key_file,
                }
        self._connection: Any = kind(**options)
        # No CLIENT SETINFO: two round trips a connection, and on newer servers an entry in the ACL log of a plain user.
        self._connection.driver_info = self._connection.lib_name = self._connection.lib_version = None
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        try:
            self._connection.connect()
            self._connection.send_packed_command([commands(("PING",), ("CLIENT", "SETNAME", "canvasbus")).data])
            pong, _ = self._read(), self._read()  # an ACL may forbid CLIENT; nothing needs it
        except (redis.exceptions.RedisError, OSError) as error:
            self.close()
            raise self._translated(error, address) from error
        if isinstance(pong, ReplyError):
            self.close()
            raise handshake_failure(self._name, address, "PING", pong) from pong
        if pong != b"PONG":
            self.close()
            raise Unavailable(_no_pong(self._name, pong))

    def _read(self) -> Reply:
        try:
            reply = self._connection.read_response(disable_decoding=True, disconnect_on_error=False)
        except self._errors.ResponseError as error:
            return _raw(error)
        if type(reply) is list:  # what EXEC answers holds the errors of its commands
            known = self._errors.ResponseError
            return [_raw(item) if isinstance(item, known) else item for item in reply]
        return reply

    def _translated(self, error: Exception, address: Address) -> TransportError:
        exceptions = self._errors
        if isinstance(error, exceptions.InvalidResponse):
            return Refused(f"{self._name} does not speak the Redis protocol ({error})")
        if isinstance(error, exceptions.AuthenticationError | exceptions.ResponseError | exceptions.BusyLoadingError):
            return handshake_failure(self._name, address, "connect", _raw(error))
        cause = error.__cause__ or error.__context__
        return connect_failure(self._name, address, cause if isinstance(cause, OSError) else error)

    def request(self, data: bytes, replies: int, timeout: float) -> list[Reply]:
        """Past redis-py, whose reading costs 2 µs a reply where hiredis takes 0.1.

        A connection that the server closed while it was idle, or on which something waits that nobody asked for, is
        noticed before anything is sent: then nothing is ambiguous. (Not under TLS, where bytes may be waiting that mean
        nothing.) More replies than were asked for, and nobody knows which one answers what: that is ambiguous.
        """
        exceptions = self._errors
        reader: Any = self._reader
        found: list[Reply] = []
        try:
            sock = self._connection._sock
            if trouble := _unusable(sock):
                self.close()
                raise Unavailable(f"{self._name}: {trouble}")
            sock.settimeout(timeout)
            sock.sendall(data)
            while len(found) < replies:
                received = sock.recv(_RECEIVE_BYTES)
                if not received:
                    raise ConnectionResetError("the server closed the connection")
                reader.feed(received)
                found += iter(reader.gets, _NOTHING)
            if len(found) > replies or reader.has_data():
                raise ConnectionError(UNASKED)
        except (exceptions.ConnectionError, exceptions.TimeoutError, OSError, AttributeError) as error:
            self.close()
            raise Unavailable(f"{self._name}: {_told(error)}", ambiguous=True) from error
        except (hiredis.ProtocolError, MemoryError) as error:
            self.close()
            raise Unavailable(f"{self._name} does not speak the Redis protocol ({error})", ambiguous=True) from error
        except BaseException:  # half a request has gone: whoever comes next must not read its reply
            self.close()
            raise
        return found

    def close(self) -> None:
        with suppress(Exception):
            self._connection.disconnect()


def _unusable(sock: Any) -> str:
    """What is wrong with a connection on which nothing is on its way; empty: nothing that can be seen."""
    if sock is None or isinstance(sock, ssl.SSLSocket):
        return ""
    sock.settimeout(0)
    try:
        return UNASKED if sock.recv(1, socket.MSG_PEEK) else "the server closed the connection"
    except BlockingIOError:
        return ""
    except OSError:
        return "the server closed the connection"


def _no_pong(name: str, reply: Reply) -> str:
    """Unavailable, since it may pass: connecting to a port of this machine on which nobody listens can, once in some
    thousand times, connect the socket to itself, and then every command is its own answer."""
    return f"{name}: PING was answered with {reply!r:.60}; is that a Redis or Valkey server?"


def _raw(error: Exception) -> ReplyError:
    """The server's whole text: redis-py cuts the first word off the errors that it has classes for."""
    word = getattr(error, "status_code", None) or ""
    text = str(error)
    return ReplyError(text if not word or text.startswith(word) else f"{word} {text}")


def _told(error: BaseException) -> str:
    if isinstance(error, AttributeError):
        return "the connection is closed"
    return "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__


def _cause(error: BaseException) -> str:
    return str(error.__cause__ or error) or type(error).__name__


def tls_context(address: Address) -> ssl.SSLContext:
    """Verification is on unless the URL says ssl_cert_reqs=none."""
    try:
        context = ssl.create_default_context(cafile=address.ca_file)
        if address.cert_file:
            context.load_cert_chain(address.cert_file, address.key_file)
    except OSError as error:
        raise Refused(f"{address.shown}: cannot read the TLS files named in the URL ({error})") from error
    if not address.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def connect_failure(name: str, address: Address, error: BaseException) -> TransportError:
    """What a failed connect means, and whose move is next."""
    cause: BaseException | None = error
    seen: list[BaseException] = []
    while cause is not None and len(seen) < 8:
        seen.append(cause)
        if isinstance(cause, BaseExceptionGroup):  # one for each address that a name resolves to
            cause = cause.exceptions[0]
        else:
            cause = cause.__cause__ or cause.__context__
    for inner in seen:
        if isinstance(inner, ssl.SSLCertVerificationError):
            return Refused(
                f"{name}: the server's certificate is not trusted ({inner.verify_message}); "
                "name the authority with ?ssl_ca_certs=FILE"
            )
        if isinstance(inner, ssl.SSLError):
            return Refused(f"{name}: no TLS here ({inner.reason or inner}); is it redis:// rather than rediss://?")
        if isinstance(inner, FileNotFoundError):
            return Unavailable(f"{name}: there is no such socket")
        if isinstance(inner, ConnectionRefusedError):
            return Unavailable(f"{name}: nobody listens there; is the server running?")
        if isinstance(inner, PermissionError):
            return Refused(f"{name}: this user may not open the socket")
        if isinstance(inner, TimeoutError) and address.tls:
            return Unavailable(f"{name}: no answer to the TLS handshake; does the server speak TLS on this port?")
    texts = [text for inner in seen if (text := str(inner))]
    if address.tls and any(isinstance(inner, ConnectionResetError | trio.BrokenResourceError) for inner in seen):
        return Refused(f"{name}: the TLS handshake failed; does the server speak TLS on this port?")
    return Unavailable(f"{name}: no connection ({texts[-1] if texts else type(error).__name__})")


def handshake_failure(name: str, address: Address, step: str, reply: ReplyError) -> TransportError:
    """What the server's answer to the first commands means."""
    text = str(reply)
    word = code(reply)
    if word == "WRONGPASS" or "invalid username-password" in text or "invalid password" in text:
        return Refused(f"{name}: the server refuses this user or password")
    if "without any password configured" in text:
        return Refused(f"{name}: the URL has a password, but the server has none configured")
    if "DB index" in text or "SELECT is not allowed" in text:
        return Refused(f"{name}: the server has no database number {address.db}")
    return translate(reply, f"{name}, {step}")
