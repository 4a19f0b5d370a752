"""The one module of the workers that talks HTTP: a request within a deadline, by httpx2 on trio.

    URL ─► dial (name looked up ─► with a guard: addresses judged ─► connected) ─► TLS for the name ─► Reply

It stands on the engine of httpx2 (httpcore2, released with it, pinned by it): only there can connections be made by code
of ours (`dial.py`), so that a guard sees what is connected to. What httpx2's client has on top is what is not wanted here:
redirects (a token goes where it was meant to go, and no server chooses whom we call), proxies of the environment, cookies,
and a log line with the URL for every request.

Connections are kept only where that is asked for: one that the other side has just closed makes a request ambiguous, and
one that is new is judged by the address that its name has now. The status decides: what is missing of a body when it breaks
off, or never ends, is for the caller to judge (`Reply.whole`).
"""

import logging
import ssl
from collections.abc import Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from functools import cache
from types import TracebackType
from typing import Any, Self

import httpcore2
import httpx2
import trio

from canvasbus.errors import ConfigError
from canvasbus_workers.outside.answer import shown
from canvasbus_workers.outside.dial import Blocked, Dial, Network, cause
from canvasbus_workers.outside.guard import Allow
from canvasbus_workers.outside.secret import Secret, credentials

# At DEBUG it logs the headers of answers, and with a redirect or an echo of the request the secret of the URL.
logging.getLogger("httpcore2").setLevel(logging.INFO)

LARGEST_ANSWER = 1024 * 1024
"""Bytes of an answer that are read."""
LARGEST_ERROR = 4096
"""Bytes of it where its status is not 2xx."""

__all__ = ["LARGEST_ANSWER", "LARGEST_ERROR", "Blocked", "Client", "NoAnswer", "NotSent", "Reply", "parse"]


class NotSent(Exception):
    """Nobody was there: nothing has reached anybody."""


class NoAnswer(Exception):
    """It was sent, at least in part, and nobody knows what became of it."""


@dataclass(frozen=True)
class Reply:
    """What the other side has answered."""

    status: int
    retry_after: str
    """That header; empty: there is none. The others are dropped: Location may repeat the URL."""
    body: bytes = field(repr=False)
    """Its beginning, or all of it; it may repeat the request."""
    whole: bool
    """`body` is all that there was."""
    said: str
    """The beginning of `body` for people, where it is text and repeats no secret."""


class Client:
    """Sends requests and waits for answers; an async context manager."""

    def __init__(
        self, agent: str, place: str = "", *, guard: Allow | None = None, ca_file: str | None = None,
        proxy: Secret | None = None, kept: int = 0, network: Network | None = None,
    ) -> None:  # fmt: skip
        """`agent`: how it calls itself. `guard`: addresses that are not public are called only where it allows it; None:
        every address is. `proxy`: the URL of an HTTP proxy, which then has to guard. `ca_file`: certificates (PEM) to trust
        instead of the system's. `kept`: connections that stay open. `place`: of the settings of all these. Raises
        ConfigError."""
        self._agent = agent
        options: dict[str, Any] = {
            "ssl_context": _trust(place, ca_file),
            "max_connections": 20,
            "max_keepalive_connections": kept,
            # A proxy is named by the operator, and nobody else is connected to.
            "network_backend": Dial(network or Network(), guard if proxy is None else None),
        }
        if proxy is None:
            self._pool = httpcore2.AsyncConnectionPool(**options)
        else:
            through = parse(f"{place}: the URL of the proxy", proxy)
            user = (through.username, through.password) if through.userinfo else None
            self._pool = httpcore2.AsyncHTTPProxy(_engine_url(through), proxy_auth=user, **options)

    async def __aenter__(self) -> Self:
        await self._pool.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._pool.__aexit__(kind, error, trace)

    async def aclose(self) -> None:
        """Close its connections."""
        await self._pool.aclose()

    async def request(
        self, method: str, url: str | Secret, *, seconds: float, since: float | None = None, query: str = "",
        body: bytes | None = None, headers: Mapping[str, str] | None = None, authorization: Secret | None = None,
        most: int = LARGEST_ANSWER,
    ) -> Reply:  # fmt: skip
        """One request. Seconds count from `since`, on trio's clock (default: now), and cover all of it, from looking up
        the name to the answer. `url`: where it is a Secret, no answer that repeats a part of its path is shown; `query`
        is added to it and is none. `most`: bytes of the answer that are wanted; 0: it is not read.

        Raises NotSent, NoAnswer, and Blocked where the guard says no; their texts hold no secret, and name the other side
        only where it could not be connected to."""
        began = trio.current_time() if since is None else since
        found = await self._outcome(method, url, seconds, began, query, body, headers or {}, authorization, most)
        if isinstance(found, Reply):
            return found
        raise found  # here, where no exception and no frame that knows the secrets go along

    async def _outcome(
        self, method: str, url: str | Secret, seconds: float, since: float, query: str, body: bytes | None,
        more: Mapping[str, str], authorization: Secret | None, most: int,
    ) -> Reply | Exception:  # fmt: skip
        parsed = parse("the URL", url)
        headers = {
            "Host": parsed.netloc.decode("ascii"),
            "User-Agent": self._agent,
            "Accept-Encoding": "identity",
            **more,
        }
        if body is not None:
            headers = {"Content-Type": "application/json"} | headers
        hidden: list[str] = []
        if authorization is not None:
            headers["Authorization"] = key = authorization.reveal()
            hidden += [key, key.partition(" ")[2], *credentials(key)]
        if isinstance(url, Secret):
            hidden.append(parsed.raw_path.decode("ascii").removeprefix("/"))
        failed: type[NotSent | NoAnswer] = NotSent
        status, wait, content, whole = 0, "", bytearray(), False

        async def trace(event: str, _: object) -> None:
            nonlocal failed
            if event.endswith("send_request_headers.started"):
                failed = NoAnswer

        with trio.move_on_at(since + seconds):
            try:
                async with self._pool.stream(
                    method,
                    _engine_url(parsed, query),
                    headers=[(name.encode("ascii"), value.encode("ascii")) for name, value in headers.items()],
                    content=body,
                    extensions={"timeout": {"connect": seconds}, "trace": trace},
                ) as response:
                    status = response.status
                    waits = (value for name, value in response.headers if name.lower() == b"retry-after")
                    wait = next(waits, b"").decode("latin-1")
                    whole = await _read(response, most if status < 300 else LARGEST_ERROR, content)
            except Blocked as error:
                return Blocked(str(error))
            except (httpcore2.LocalProtocolError, httpcore2.ProxyError) as error:
                return NotSent(cause(error))
            except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException, OSError) as error:
                return failed(cause(error))  # ssl.SSLError is an OSError
        if not status:
            return failed(f"no answer within {seconds:g} s")
        return Reply(status, wait, bytes(content), whole, shown(bytes(content), *hidden))


async def _read(response: httpcore2.Response, most: int, found: bytearray) -> bool:
    """Add the beginning of the body to `found`, and be content with what has come when it breaks off. True: that is all."""
    with suppress(httpcore2.NetworkError, httpcore2.ProtocolError, OSError):
        async with aclosing(response.aiter_stream()) as chunks:
            while most:
                chunk = await anext(chunks, None)
                if chunk is None:
                    return True
                found += chunk[: most - len(found)]
                if len(found) >= most:
                    return False
    return False


def parse(what: str, url: str | Secret) -> httpx2.URL:
    """Raises ConfigError, which does not repeat the URL, for one that no request can be made of. `what`: begins the error."""
    with suppress(httpx2.InvalidURL):
        parsed = httpx2.URL(url.reveal() if isinstance(url, Secret) else url)
        if parsed.scheme in ("http", "https") and parsed.host:
            return parsed
    raise ConfigError(f"{what} is not one of http:// or https://")


def _engine_url(url: httpx2.URL, query: str = "") -> httpcore2.URL:
    target = url.raw_path + (b"?" + query.encode("ascii") if query else b"")
    return httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=target)


def _trust(place: str, ca_file: str | None) -> ssl.SSLContext:
    if not ca_file:
        return _trust_of_the_system()
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        said = "it holds no certificates" if isinstance(error, ssl.SSLError) else error.strerror
        raise ConfigError(f"{place}: ca_file names {ca_file}, which cannot be used: {said}") from None


@cache  # tens of milliseconds and a megabyte each
def _trust_of_the_system() -> ssl.SSLContext:
    return httpcore2.default_ssl_context()
