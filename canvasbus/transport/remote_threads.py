"""A connection to a server for threads: redis-py opens it, and it is used as a pipe for prebuilt bytes.

redis-py's retries and health checks are off, since a retried XADD is a doubled event.
"""

import socket
import ssl
from contextlib import suppress
from typing import Any

import hiredis

from canvasbus.errors import Refused, TransportError, Unavailable
from canvasbus.transport.address import Address
from canvasbus.transport.remote import RECEIVE_BYTES, connect_failure, handshake_failure, no_pong, tls_context
from canvasbus.transport.resp import NO_MEMORY, UNASKED, Reply, ReplyError, commands

_NOTHING = object()


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
        self._connection: Any = None
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        try:
            # In here: it reads a file, for its own version, and there may be no descriptor left.
            self._connection = kind(**options)
            # No CLIENT SETINFO: two round trips a connection, and on newer servers an entry in the ACL log of a plain user.
            self._connection.driver_info = self._connection.lib_name = self._connection.lib_version = None
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
            raise Unavailable(no_pong(self._name, pong))

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
                received = sock.recv(RECEIVE_BYTES)
                if not received:
                    raise ConnectionResetError("the server closed the connection")
                reader.feed(received)
                found += iter(reader.gets, _NOTHING)
            if len(found) > replies or reader.has_data():
                raise ConnectionError(UNASKED)
        except (exceptions.ConnectionError, exceptions.TimeoutError, OSError, AttributeError) as error:
            self.close()
            raise Unavailable(f"{self._name}: {_told(error)}", ambiguous=True) from error
        except MemoryError as error:
            self.close()
            raise Unavailable(f"{self._name}: {NO_MEMORY}", ambiguous=True) from error
        except hiredis.ProtocolError as error:
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


def _raw(error: Exception) -> ReplyError:
    """The server's whole text: redis-py cuts the first word off the errors that it has classes for."""
    word = getattr(error, "status_code", None) or ""
    text = str(error)
    return ReplyError(text if not word or text.startswith(word) else f"{word} {text}")


def _told(error: BaseException) -> str:
    if isinstance(error, AttributeError):
        return "the connection is closed"
    return "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
