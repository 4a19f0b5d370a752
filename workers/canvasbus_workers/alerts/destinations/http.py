"""The one module of destinations that talks HTTP: a request to an address that was looked at, within a deadline.

    URL ─► dial (name looked up ─► addresses judged ─► connected) ─► TLS for the name ─► Answer

httpx2 on trio, by its engine (httpcore2, released with it, pinned by it): only there can connections be made by code of
ours (`dial.py`), so that the guard sees what is connected to. What httpx2's client has on top is what is not wanted here:
redirects, proxies of the environment, cookies, and a log line with the URL for every request.

Connections are not kept: alerts are rare, and so every request is judged by the address that its name has now, and none
fails because an idle connection was closed. The body of an answer is read only for the text of an error: the status has
decided, and a body that never ends, or breaks off, changes nothing.
"""

import logging
import ssl
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any, Self

import httpcore2
import httpx2
import trio

from canvasbus.errors import ConfigError
from canvasbus.worker import Reject
from canvasbus_workers.alerts.destinations.answer import Undelivered
from canvasbus_workers.alerts.destinations.dial import Blocked, Guarded, Network, cause
from canvasbus_workers.alerts.destinations.guard import Allow
from canvasbus_workers.alerts.destinations.message import Message, Question
from canvasbus_workers.outside.answer import shown
from canvasbus_workers.outside.secret import Secret

# At DEBUG it logs the headers of answers, and with a redirect or an echo of the request the secret of the URL.
logging.getLogger("httpcore2").setLevel(logging.INFO)

BODY_CAP = 4096
"""Bytes of the body of an error that are read."""
ANSWER_CAP = 1024 * 1024
"""Bytes of the answer to a question that are read."""


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    retry_after: str
    """That header; empty: there is none. The others are dropped: Location may repeat the URL."""
    said: str
    """The beginning of the body of an error, where it is text and repeats no secret."""
    body: bytes = b""
    """The answer to a question."""


class Client:
    """Posts to one URL."""

    def __init__(
        self, name: str, place: str, url: Secret, *, allow: Allow, timeout: float, ca_file: str | None = None,
        proxy: Secret | None = None, authorization: Secret | None = None, network: Network | None = None,
    ) -> None:  # fmt: skip
        """`name`: of the destination, with which errors begin. `place`: of its settings, with which ConfigErrors do."""
        self._name = name
        parsed = _parse(f"{place}: the URL", url)
        self._url, self._host = _engine_url(parsed), parsed.netloc.decode("ascii")
        self._timeout = timeout
        self._authorization = authorization
        through = None if proxy is None else _parse(f"{place}: the URL of the proxy", proxy)
        free = None if through is None else through.raw_host.decode("ascii")
        options: dict[str, Any] = {
            "ssl_context": _trust(place, ca_file),
            "max_keepalive_connections": 0,
            "network_backend": Guarded(network or Network(), allow, timeout, free),
        }
        if through is None:
            self._pool = httpcore2.AsyncConnectionPool(**options)
        else:
            user = (through.username, through.password) if through.userinfo else None
            self._pool = httpcore2.AsyncHTTPProxy(_engine_url(through), proxy_auth=user, **options)

    async def __aenter__(self) -> Self:
        await self._pool.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._pool.__aexit__(kind, error, trace)

    async def call(self, request: Message | Question, deadline: float) -> Answer:
        """Send it. `deadline`: on trio's clock. Raises Undelivered when there is no answer in time, Reject when the address
        may not be called."""
        status, wait, body, failure, blocked = 0, "", bytearray(), f"no answer within {self._timeout:g} s", ""
        with trio.move_on_at(deadline):
            try:
                async with self._begun(request) as response:
                    status = response.status
                    waits = (value for name, value in response.headers if name.lower() == b"retry-after")
                    wait = next(waits, b"").decode("latin-1")
                    if status >= 400:
                        await _read(response, BODY_CAP, body)
                    elif isinstance(request, Question):
                        await _read(response, ANSWER_CAP, body)
            except Blocked as error:
                blocked = str(error)
            except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.ProxyError) as error:
                failure = cause(error)
            except (httpcore2.TimeoutException, OSError) as error:  # ssl.SSLError is an OSError
                failure = cause(error)
        # Raised here, where no exception and no frame of the engine, which know the request, go along.
        if blocked:
            raise Reject(f"{self._name}: {blocked}")
        if not status:
            raise Undelivered(f"{self._name}: {failure}")
        if status >= 400:
            return Answer(status, wait, self._shown(body))
        return Answer(status, wait, "", bytes(body))

    def _begun(self, request: Message | Question) -> AbstractAsyncContextManager[httpcore2.Response]:
        headers = {
            "Host": self._host,
            "User-Agent": "canvasbus-alerts",
            "Accept-Encoding": "identity",
            **request.headers,
        }
        if self._authorization is not None:
            headers["Authorization"] = self._authorization.reveal()
        if isinstance(request, Message):
            return self._pool.stream("POST", self._url, headers=_encoded(headers), content=request.body)
        url = httpcore2.URL(
            scheme=self._url.scheme, host=self._url.host, port=self._url.port,
            target=self._url.target + b"?" + request.query.encode("ascii"),
        )  # fmt: skip
        return self._pool.stream("GET", url, headers=_encoded(headers))

    def _shown(self, body: bytearray) -> str:
        key = "" if self._authorization is None else self._authorization.reveal()
        return shown(bytes(body), self._url.target.decode("ascii").removeprefix("/"), key)


async def _read(response: httpcore2.Response, cap: int, found: bytearray) -> None:
    """Add the beginning of the body to `found`, and be content with what has come when it breaks off."""
    with suppress(httpcore2.NetworkError, httpcore2.ProtocolError, OSError):
        async with aclosing(response.aiter_stream()) as chunks:
            async for chunk in chunks:
                found += chunk[: cap - len(found)]
                if len(found) >= cap:
                    return


def _encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("ascii"), value.encode("ascii")) for name, value in headers.items()]


def _parse(what: str, url: Secret) -> httpx2.URL:
    with suppress(httpx2.InvalidURL):
        parsed = httpx2.URL(url.reveal())
        if parsed.scheme in ("http", "https") and parsed.host:
            return parsed
    raise ConfigError(f"{what} is not one of http:// or https://")


def _engine_url(url: httpx2.URL) -> httpcore2.URL:
    return httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)


def _trust(place: str, ca_file: str | None) -> ssl.SSLContext:
    if ca_file is None:
        return _trust_of_the_system()
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        said = "it holds no certificates" if isinstance(error, ssl.SSLError) else error.strerror
        raise ConfigError(f"{place}: ca_file names {ca_file}, which cannot be used: {said}") from None


@cache  # tens of milliseconds and a megabyte each
def _trust_of_the_system() -> ssl.SSLContext:
    return httpcore2.default_ssl_context()
