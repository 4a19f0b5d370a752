"""The one module that talks HTTP: a POST to an address that was looked at, within a deadline.

    URL ─► name looked up ─► each address judged (guard) ─► connected to that address ─► TLS for the name ─► POST

httpx2 on trio, by its engine (httpcore2, released with it): connections are made by a backend of ours there, which is
the only place where the guard sees what is connected to. What httpx2's client has on top is what is not wanted here:
redirects, proxies of the environment, cookies, and a log line with the URL for every request.

Connections are not kept: alerts are rare, and so every request is judged by the address that its name has now, and none
fails because an idle connection was closed. The body of an answer is read only for the text of an error: the status has
decided, and a body that never ends, or breaks off, changes nothing.
"""

import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpcore2
import httpx2
import trio

from canvasbus.errors import ConfigError
from canvasbus.worker import Reject
from canvasbus_workers.alerts.destinations.answer import Undelivered
from canvasbus_workers.alerts.destinations.guard import Allow, refusal
from canvasbus_workers.alerts.destinations.secret import Secret, repeats

BODY_CAP = 4096
"""Bytes of the body of an error that are read."""
SHOWN = 120
"""Characters of it that are shown."""


async def look_up(host: str, port: int) -> list[str]:
    """The addresses of a name, the most fitting first."""
    found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


@dataclass(frozen=True)
class Network:
    """How names are looked up and addresses connected to: a seam for tests."""

    look_up: Callable[[str, int], Awaitable[list[str]]] = look_up
    backend: httpcore2.AsyncNetworkBackend = field(default_factory=httpcore2.TrioBackend)


class _Guarded(httpcore2.AsyncNetworkBackend):
    """Connects to addresses that were judged, and to nothing else."""

    def __init__(self, network: Network, allow: Allow, timeout: float, free: str | None) -> None:
        self._network, self._allow, self._timeout = network, allow, timeout
        self._free = free  # the proxy: named by the operator

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore2.AsyncNetworkStream:  # fmt: skip
        try:
            addresses = await self._network.look_up(host, port)
        except (OSError, UnicodeError) as error:
            said = getattr(error, "strerror", None) or "it is no name"
            raise _Unreached(f"{host} cannot be looked up: {said}") from None
        refused = {one: refusal(host, one, self._allow) for one in addresses if host != self._free}
        open_to = [one for one in addresses if not refused.get(one)]
        if not open_to:
            one, word = next(iter(refused.items()))
            raise _Blocked(f"{host} resolves to {one}, a {word} address: if that is meant, add it to allow")
        said = "it has no address"
        for address in open_to:
            try:
                share = self._timeout / len(
                    open_to
                )  # an address that drops packets must not use up the time of the next
                return await self._network.backend.connect_tcp(address, port, share, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                said = _cause(error)
        raise _Unreached(f"{host}:{port} cannot be connected to: {said}")


class _Blocked(Exception):
    """The guard says no."""


class _Unreached(httpcore2.ConnectError):
    """Says all that there is to say."""


def _cause(error: Exception) -> str:
    """What was wrong, in words that hold nothing of the request and nothing of the answer."""
    if isinstance(error, _Unreached):
        return str(error)
    chain: list[BaseException] = [error]
    while (deeper := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(deeper)
    for inner in reversed(chain):
        if isinstance(inner, ssl.SSLCertVerificationError):
            return f"its certificate is not accepted: {inner.verify_message}"
        if isinstance(inner, ssl.SSLError):
            return f"TLS fails: {inner.reason or 'no reason given'}"
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
    if isinstance(error, httpcore2.ProxyError):
        return "the proxy refuses"
    if isinstance(error, httpcore2.TimeoutException):
        return "no answer in time"
    if isinstance(error, httpcore2.LocalProtocolError):
        return "the request is not HTTP"
    return "the connection was closed before an answer" if "disconnected" in str(error) else "its answer is not HTTP"


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    said: str
    """The beginning of the body of an error, where it is text and repeats no secret."""


class Client:
    """Posts to one URL."""

    def __init__(
        self, name: str, place: str, url: Secret, *, allow: Allow, timeout: float, ca_file: str | None = None,
        proxy: Secret | None = None, authorization: Secret | None = None, network: Network | None = None,
    ) -> None:  # fmt: skip
        """`name`: of the destination, with which errors begin. `place`: of its settings, with which ConfigErrors do."""
        self._name = name
        self._url = _parse(f"{place}: the URL", url)
        self._timeout = timeout
        self._authorization = authorization
        through = None if proxy is None else _parse(f"{place}: the URL of the proxy", proxy)
        free = None if through is None else through.host.decode("ascii")
        options: dict[str, Any] = {
            "ssl_context": _trust(place, ca_file),
            "max_keepalive_connections": 0,
            "network_backend": _Guarded(network or Network(), allow, timeout, free),
        }
        self._pool = httpcore2.AsyncConnectionPool(**options)
        if through is not None:
            auth = httpx2.URL(proxy.reveal()) if proxy else httpx2.URL()
            user = (auth.username, auth.password) if auth.userinfo else None
            self._pool = httpcore2.AsyncHTTPProxy(through, proxy_auth=user, **options)

    async def __aenter__(self) -> Self:
        await self._pool.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._pool.__aexit__(kind, error, trace)

    async def post(self, headers: Mapping[str, str], body: bytes) -> Answer:
        """Send it. Raises Undelivered when there is no answer in time, Reject when the address may not be called."""
        status, found, said, failure, blocked = 0, {}, b"", f"no answer within {self._timeout:g} s", ""
        with trio.move_on_after(self._timeout):
            try:
                async with self._pool.stream("POST", self._url, headers=self._all(headers), content=body) as response:
                    status = response.status
                    found = {
                        name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers
                    }
                    if status >= 400:
                        async for chunk in response.aiter_stream():
                            said += chunk[: BODY_CAP - len(said)]
                            if len(said) >= BODY_CAP:
                                break
            except _Blocked as error:
                blocked = str(error)
            except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.ProxyError) as error:
                failure = _cause(error)
            except (httpcore2.TimeoutException, OSError) as error:  # ssl.SSLError is an OSError
                failure = _cause(error)
        # Raised here, where no exception and no frame of the engine, which know the request, go along.
        if blocked:
            raise Reject(f"{self._name}: {blocked}")
        if not status:
            raise Undelivered(f"{self._name}: {failure}")
        return Answer(status, found, self._shown(said))

    def _all(self, headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
        every = {"User-Agent": "canvasbus-alerts", "Accept-Encoding": "identity", **headers}
        if self._authorization is not None:
            every["Authorization"] = self._authorization.reveal()
        return [(name.encode("ascii"), value.encode("ascii")) for name, value in every.items()]

    def _shown(self, body: bytes) -> str:
        text = body.decode("utf-8", "replace").strip()
        if not text or "\ufffd" in text:
            return ""
        key = "" if self._authorization is None else self._authorization.reveal()
        if repeats(text, self._url.target.decode("ascii").removeprefix("/"), key):
            return "its text repeats a secret and is not shown"
        line = " ".join("".join(one if one.isprintable() else " " for one in text).split())
        return line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"


def _parse(what: str, url: Secret) -> httpcore2.URL:
    wrong = ConfigError(f"{what} is not one of http:// or https://")
    try:
        parsed = httpx2.URL(url.reveal())
    except httpx2.InvalidURL:
        raise wrong from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise wrong
    return httpcore2.URL(scheme=parsed.raw_scheme, host=parsed.raw_host, port=parsed.port, target=parsed.raw_path)


def _trust(place: str, ca_file: str | None) -> ssl.SSLContext:
    if ca_file is None:
        return httpcore2.default_ssl_context()
    try:
        return ssl.create_default_context(cafile=str(Path(ca_file)))
    except (OSError, ssl.SSLError) as error:
        said = "it holds no certificates" if isinstance(error, ssl.SSLError) else error.strerror
        raise ConfigError(f"{place}: ca_file names {ca_file}, which cannot be used: {said}") from None
