"""A local HTTP server whose answers are bytes, and what a test needs to send something to it."""

import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import UUID

import trio

from canvasbus_workers.alerts.destinations import Destinations, read
from canvasbus_workers.alerts.notification import Notification

LOCAL = {"allow": ["127.0.0.1"], "plain_http": True}
"""Settings without which no test server is called."""
ABOUT: dict[str, Any] = {
    "kind": "opened",
    "incident_id": "StyleGAN-Canvas-v3/0123456789ab",
    "model_name": "StyleGAN-Canvas-v3",
    "severity": "critical",
    "title": "StyleGAN-Canvas-v3: drift, mmd = 0.42",
    "signals": ("drift:e1", "accuracy:e2"),
    "since": datetime(2026, 11, 26, 10, 0, tzinfo=UTC),
    "at": datetime(2026, 11, 26, 10, 5, tzinfo=UTC),
    "summary": ("embedding: mmd 0.42 > 0.1", "accuracy 0.81, expected 0.9"),
    "labels": {"model_name": "StyleGAN-Canvas-v3", "severity": "critical", "group": "studio"},
    "correlation_id": UUID(int=7),
    "idempotency_key": "0192-opened-ops",
    "links": {"dashboard": "https://studio.example/m?a=1&b=2"},
}


def about(**changes: Any) -> Notification:
    """A notification."""
    return Notification(**ABOUT | changes)


@dataclass
class Request:
    """One that came in."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Server:
    """Answers on a loopback port; what came in is in `requests`."""

    script: Callable[[trio.abc.Stream], Awaitable[None]]
    tls: ssl.SSLContext | None = None
    requests: list[Request] = field(default_factory=list)
    arrived: trio.Event = field(default_factory=trio.Event)
    port: int = 0

    async def start(self, nursery: trio.Nursery) -> "Server":
        listeners = await nursery.start(partial(trio.serve_tcp, self._serve, 0, host="127.0.0.1"))
        self.port = listeners[0].socket.getsockname()[1]
        return self

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}/hook"

    async def _serve(self, plain: trio.SocketStream) -> None:
        stream: trio.abc.Stream = plain
        if self.tls:
            stream = trio.SSLStream(plain, self.tls, server_side=True, https_compatible=True)
        try:
            read = b""
            while b"\r\n\r\n" not in read:
                read += await self._some(stream)
            head, _, body = read.partition(b"\r\n\r\n")
            first, *lines = head.decode().split("\r\n")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            while len(body) < int(headers.get("content-length", 0)):
                body += await self._some(stream)
            self.requests.append(Request(*first.split()[:2], headers, body))
            self.arrived.set()
            await self.script(stream)
        except (trio.BrokenResourceError, EOFError):
            pass  # the client has left, as some tests want it to
        finally:
            await trio.aclose_forcefully(stream)

    @staticmethod
    async def _some(stream: trio.abc.Stream) -> bytes:
        data = await stream.receive_some()
        if not data:
            raise EOFError
        return bytes(data)


async def speaking_first(nursery: trio.Nursery) -> int:
    """The port of a server that knows no TLS and says so at once."""

    async def shout(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 400 No\r\n\r\n")

    start = partial(trio.serve_tcp, shout, 0, host="127.0.0.1")
    listeners = await nursery.start(start)
    port: int = listeners[0].socket.getsockname()[1]
    return port


def answering(status: int, body: bytes = b"", **headers: str) -> Callable[[trio.abc.Stream], Awaitable[None]]:
    """A script: one whole answer. `retry_after="3"` is the header Retry-After."""
    lines = [f"HTTP/1.1 {status} Word", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return sending("\r\n".join(lines).encode() + b"\r\n\r\n" + body)


def sending(*parts: bytes) -> Callable[[trio.abc.Stream], Awaitable[None]]:
    """A script: these bytes, then the connection is closed."""

    async def script(stream: trio.abc.Stream) -> None:
        for part in parts:
            await stream.send_all(part)

    return script


async def tell(settings: Mapping[str, Any], notification: Notification | None = None, **options: Any) -> Destinations:
    """Send one notification to the destination `ops` with these settings; the closed destinations."""
    async with Destinations(read({"ops": settings}), **options) as destinations:
        await destinations["ops"].send(notification or about())
    return destinations
