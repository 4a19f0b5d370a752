"""A Redis or Valkey server over TCP, TLS or a unix socket: how connections to it are opened, and what it means when that
fails.

trio code has its own connection (`remote_trio`), because redis-py knows no trio: hiredis parses, trio moves bytes. Threads
use redis-py's (`remote_threads`), which does TLS, authentication and unix sockets already. Each is loaded when it is first
asked for: a training job that publishes pays for no trio, and a worker's loop for no redis-py.
"""

import ssl
from typing import TYPE_CHECKING

from canvasbus.errors import Refused, TransportError, Unavailable
from canvasbus.transport.address import Address
from canvasbus.transport.resp import Reply, ReplyError, code, translate

if TYPE_CHECKING:
    from canvasbus.transport.remote_threads import RemoteBlockingConnection
    from canvasbus.transport.remote_trio import RemoteConnection

CONNECT_TIMEOUT = 5.0
"""Seconds for opening a connection, handshake included."""

RECEIVE_BYTES = 256 * 1024


class RemoteServer:
    """One server, by its address. `name`: what errors call it, else its URL; `timeout`: seconds for connecting (default:
    CONNECT_TIMEOUT)."""

    blocks = True
    shared = True

    def __init__(self, address: Address, *, name: str = "", timeout: float | None = None) -> None:
        self._address = address
        self.timeout = CONNECT_TIMEOUT if timeout is None else timeout
        self.name = name or address.shown

    async def connect(self) -> "RemoteConnection":
        from canvasbus.transport.remote_trio import connect

        return await connect(self._address, self.name, self.timeout)

    def connect_blocking(self) -> "RemoteBlockingConnection":
        from canvasbus.transport.remote_threads import RemoteBlockingConnection

        return RemoteBlockingConnection(self._address, self.name, self.timeout)

    def __repr__(self) -> str:
        return f"<RemoteServer {self.name}>"


def no_pong(name: str, reply: Reply) -> str:
    """Unavailable, since it may pass: connecting to a port of this machine on which nobody listens can, once in some
    thousand times, connect the socket to itself, and then every command is its own answer."""
    return f"{name}: PING was answered with {reply!r:.60}; is that a Redis or Valkey server?"


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


def connect_failure(name: str, address: Address, error: BaseException, *, broken: bool = False) -> TransportError:
    """What a failed connect means, and whose move is next. `broken`: the connection was there, and broke."""
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
    if address.tls and (broken or any(isinstance(inner, ConnectionResetError) for inner in seen)):
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
