"""HTTP, behind two small things: `Client`, what launchers need of it, and its one implementation on httpx2 and trio.

Addresses are the operator's own (canvasbus.toml), and trainers live on internal networks, so none is refused. Redirects
are not followed: a token goes where it was meant to go. Connections are not kept: orders are rare, and a kept connection
that the other side has just closed makes an order ambiguous.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import httpx2
import trio

LARGEST_ANSWER = 1024 * 1024
"""Bytes of an answer that are read."""


@dataclass(frozen=True)
class Reply:
    """What the other side has answered."""

    status: int
    headers: Mapping[str, str]
    """By lower-case names."""
    body: bytes


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
    """`Client` on httpx2; an async context manager."""

    def __init__(self) -> None:
        limits = httpx2.Limits(max_connections=20, max_keepalive_connections=0)
        self._client = httpx2.AsyncClient(limits=limits, timeout=None, follow_redirects=False, trust_env=False)

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
                        if size <= LARGEST_ANSWER:
                            found += part
                    if size > LARGEST_ANSWER:
                        raise NoAnswer(f"{host}: an answer of more than {LARGEST_ANSWER} bytes")
                    headers = {name.lower(): value for name, value in response.headers.items()}
                    return Reply(response.status_code, headers, bytes(found))
        except (httpx2.ConnectError, httpx2.UnsupportedProtocol, httpx2.LocalProtocolError) as error:
            raise NotSent(f"{host}: {type(error).__name__}: {error}") from None
        except httpx2.HTTPError as error:
            raise NoAnswer(f"{host}: {type(error).__name__}") from None
        except trio.TooSlowError:
            raise NoAnswer(f"{host}: no answer in {seconds:g} s") from None
