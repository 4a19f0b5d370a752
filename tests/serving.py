"""A local HTTP server for tests, whose answers are scripts: bytes, good or bad, or none at all."""

import json
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio

Script = Callable[[trio.abc.Stream], Awaitable[None]]
"""What is done with a connection once a request has come."""


@dataclass
class Request:
    """One that came in."""

    method: str
    target: str
    headers: Mapping[str, str]
    """By lower-case names."""
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def answering(status: int, body: bytes = b"", **headers: str) -> Script:
    """One whole answer. `retry_after="3"` is the header Retry-After."""
    lines = [f"HTTP/1.1 {status} Word", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return sending("\r\n".join(lines).encode() + b"\r\n\r\n" + body)


def replying(status: int, value: Any, **headers: str) -> Script:
    """The same, with JSON."""
    return answering(status, json.dumps(value).encode(), **headers)


def sending(*parts: bytes) -> Script:
    """These bytes, then the connection is closed."""

    async def script(stream: trio.abc.Stream) -> None:
        for part in parts:
            await stream.send_all(part)

    return script


async def hang(stream: trio.abc.Stream) -> None:
    """Nothing, for ever."""
    await trio.sleep_forever()


@dataclass
class Server:
    """Answers on a loopback port; what came in is in `requests`."""

    script: Script
    tls: ssl.SSLContext | None = None
    keep: bool = False
    """Connections may have several requests."""
    requests: list[Request] = field(default_factory=list)
    arrived: trio.Event = field(default_factory=trio.Event)
    connections: int = 0
    port: int = 0
    scripts: dict[str, list[Script]] = field(default_factory=dict)

    async def start(self, nursery: trio.Nursery) -> "Server":
        listeners = await nursery.start(partial(trio.serve_tcp, self._serve, 0, host="127.0.0.1"))
        self.port = listeners[0].socket.getsockname()[1]
        return self

    def on(self, what: str, *scripts: Script) -> None:
        """What is answered to `METHOD /path` instead of `script`: each of them in turn, the last one again and again."""
        self.scripts[what] = list(scripts)

    def seen(self, what: str) -> list[Request]:
        """The requests for `METHOD /path`."""
        return [one for one in self.requests if f"{one.method} {one.target}" == what]

    @property
    def base(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.base}/hook"

    async def _serve(self, plain: trio.SocketStream) -> None:
        self.connections += 1
        stream: trio.abc.Stream = plain
        if self.tls:
            stream = trio.SSLStream(plain, self.tls, server_side=True, https_compatible=True)
        try:
            await self._answer(stream)
            while self.keep:
                await self._answer(stream)
        except (trio.BrokenResourceError, EOFError):
            pass  # the client has left, as some tests want it to
        finally:
            await trio.aclose_forcefully(stream)

    async def _answer(self, stream: trio.abc.Stream) -> None:
        read = b""
        while b"\r\n\r\n" not in read:
            read += await self._some(stream)
        head, _, body = read.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        while len(body) < int(headers.get("content-length", 0)):
            body += await self._some(stream)
        request = Request(*first.split()[:2], headers, body)
        self.requests.append(request)
        self.arrived.set()
        scripts = self.scripts.get(f"{request.method} {request.target}", [self.script])
        await (scripts.pop(0) if len(scripts) > 1 else scripts[0])(stream)

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
