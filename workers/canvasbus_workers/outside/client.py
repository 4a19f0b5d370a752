"""HTTP, behind two small things: `Client`, what workers need of it, and its one implementation on httpx2 and trio.

Addresses are the operator's own (canvasbus.toml), and trainers and feature servers live on internal networks, so none is
refused. Redirects are not followed: a token goes where it was meant to go. Connections are kept only where that is asked
for: one that the other side has just closed makes a request ambiguous, which costs an order something and a row nothing.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import httpx2
import trio

from canvasbus.errors import ConfigError

logging.getLogger("httpx2").setLevel(logging.WARNING)  # at INFO it logs a line with the URL for every request

LARGEST_ANSWER = 1024 * 1024
"""Bytes of an answer that are kept."""


@dataclass(frozen=True)
class Reply:
    """What the other side has answered."""

    status: int
    headers: Mapping[str, str]
    """By lower-case names."""
    body: bytes
    cut: bool = False
    """It was longer than LARGEST_ANSWER; `body` is its beginning."""


class NotSent(Exception):
    """Nobody was there: nothing has reached anybody."""


class NoAnswer(Exception):
    """It was sent, at least in part, and nobody knows what became of it."""


class Client(Protocol):
    """Sends a request and waits for its answer."""

    async def request(
        self, method: str, url: str, *, body: bytes | None, headers: Mapping[str, str], seconds: float
    ) -> Reply:
        """Raises NotSent and NoAnswer, whose text holds no secret."""


class HttpClient:
    """`Client` on httpx2; an async context manager. `agent`: how it calls itself. `kept`: connections that are kept open."""

    def __init__(self, agent: str, *, kept: int = 0) -> None:
        limits = httpx2.Limits(max_connections=20, max_keepalive_connections=kept)
        # identity: an answer is never larger than what has come over the wire
        headers = {"User-Agent": agent, "Accept-Encoding": "identity"}
        self._client = httpx2.AsyncClient(
            headers=headers, limits=limits, timeout=None, follow_redirects=False, trust_env=False
        )

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def request(
        self, method: str, url: str, *, body: bytes | None, headers: Mapping[str, str], seconds: float
    ) -> Reply:
        """See `Client`."""
        host = httpx2.URL(url).host
        sent = dict(headers) | ({"Content-Type": "application/json"} if body is not None else {})
        try:
            with trio.fail_after(seconds):
                async with self._client.stream(method, url, content=body, headers=sent) as response:
                    found, size = bytearray(), 0
                    async for part in response.aiter_bytes():  # to its end: one that is left leaves generators open
                        size += len(part)
                        found += part[: LARGEST_ANSWER - len(found)]
                    names = {name.lower(): value for name, value in response.headers.items()}
                    return Reply(response.status_code, names, bytes(found), cut=size > LARGEST_ANSWER)
        except (httpx2.ConnectError, httpx2.UnsupportedProtocol, httpx2.LocalProtocolError) as error:
            raise NotSent(f"{host}: {type(error).__name__}: {error}") from None
        except httpx2.HTTPError as error:
            raise NoAnswer(f"{host}: {type(error).__name__}") from None
        except trio.TooSlowError:
            raise NoAnswer(f"{host}: no answer in {seconds:g} s") from None


def check_url(place: str, url: str) -> None:
    """Raises ConfigError for a URL that no request can be made of. `place`: of the settings that give it."""
    try:
        httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise ConfigError(f"{place}: {url}: {error}") from None
