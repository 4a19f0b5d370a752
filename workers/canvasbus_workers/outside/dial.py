"""Connecting, for `client.py`: a name is looked up, each of its addresses judged, and a judged one connected to.

There is no second question to a resolver between judging and connecting, so a name that is bound to another address
meanwhile (DNS rebinding) changes nothing. TLS is for the name all the same: the engine begins it, on the stream from here.
"""

import os
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, cast

import httpcore2
import trio

from canvasbus_workers.outside.guard import Allow, refusal


async def look_up(host: str, port: int) -> list[str]:
    """The addresses of a name, the most fitting first."""
    found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


@dataclass(frozen=True)
class Network:
    """How names are looked up and addresses connected to: a seam for tests."""

    look_up: Callable[[str, int], Awaitable[list[str]]] = look_up
    backend: httpcore2.AsyncNetworkBackend = field(default_factory=httpcore2.TrioBackend)


class Dial(httpcore2.AsyncNetworkBackend):
    """Connects; with a guard to addresses that were judged, and to nothing else."""

    def __init__(self, network: Network, guard: Allow | None) -> None:
        self._network, self._guard = network, guard

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore2.AsyncNetworkStream:  # fmt: skip
        try:
            addresses = await self._network.look_up(host, port)
        except (OSError, UnicodeError) as error:
            said = getattr(error, "strerror", None) or "it is no name"
            raise _Unreached(f"{host} cannot be looked up: {said}") from None
        refused = {one: None if self._guard is None else refusal(host, one, self._guard) for one in addresses}
        open_to = [one for one, word in refused.items() if word is None]
        if addresses and not open_to:
            one, word = next(iter(refused.items()))
            raise Blocked(f"{host} resolves to {one}, a {word} address: if that is meant, add it to allow")
        said = "it has no address"
        for address in open_to:
            try:
                # A share of the time: an address that drops packets must not use up that of the next.
                share = None if timeout is None else timeout / len(open_to)
                stream = await self._network.backend.connect_tcp(address, port, share, local_address, socket_options)
                return cast("httpcore2.AsyncNetworkStream", _Closing(stream))
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                said = cause(error)
        raise _Unreached(f"{host}:{port} cannot be connected to: {said}")


class _Closing:
    """A stream that is closed when the TLS handshake on it is cancelled, as a deadline does; the engine leaves it open."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def start_tls(self, *args: Any, **options: Any) -> httpcore2.AsyncNetworkStream:
        try:
            return await self._stream.start_tls(*args, **options)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._stream.aclose()
            raise


class Blocked(Exception):
    """The guard says no."""


class _Unreached(httpcore2.ConnectError):
    """Says all that there is to say."""


def cause(error: Exception) -> str:
    """What was wrong, in words that hold nothing of the request and nothing of the answer."""
    if isinstance(error, _Unreached):
        return str(error)
    chain: list[BaseException] = [error]
    while (deeper := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(deeper.exceptions[0] if isinstance(deeper, BaseExceptionGroup) else deeper)
    for inner in reversed(chain):
        if isinstance(inner, ssl.SSLCertVerificationError):
            return f"its certificate is not accepted: {inner.verify_message}"
        if isinstance(inner, ssl.SSLError):
            return f"TLS fails: {inner.reason or 'no reason given'}"
        if isinstance(inner, OSError) and inner.errno:
            return os.strerror(inner.errno)
    if isinstance(error, httpcore2.ProxyError):
        return "the proxy refuses"
    if isinstance(error, httpcore2.TimeoutException):
        return "no answer in time"
    if isinstance(error, httpcore2.LocalProtocolError):
        return "the request is not HTTP"
    if isinstance(error, httpcore2.RemoteProtocolError) and "disconnected" not in str(error):
        return "its answer is not HTTP"
    return "the connection was closed before an answer"
