"""Asking the doctor, and servers for it to look at."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from servers import ServerProcess
from studio import Eyes

from canvasbus.operate.doctor.examine import examine
from canvasbus.operate.doctor.finding import Finding, wrong
from canvasbus.transport import address as addresses
from canvasbus.transport.blocking import BlockingLink
from canvasbus.transport.connect import open_server

MakeServer = Callable[..., ServerProcess]
GOOD = ("--appendonly", "yes", "--appendfsync", "always", "--maxmemory", "200mb")
"""The configuration of a server with which nothing is wrong."""


def look(url: str, namespace: str = "studio") -> list[Finding]:
    """Everything that the doctor finds there."""
    address = addresses.parse(url)
    link = BlockingLink(open_server(url))
    try:
        return list(examine(address, link, namespace))
    finally:
        link.close()


def about(found: list[Finding], check: str) -> Finding:
    """The one finding of a check."""
    (one,) = [finding for finding in found if finding.check == check]
    return one


def troubles(found: list[Finding]) -> list[tuple[str, str]]:
    """(level, check) of all that is wrong."""
    return [(finding.level, finding.check) for finding in found if wrong(finding.level)]


class Making:
    """Servers in a certain state, and commands to bring them there."""

    def __init__(self, make_server: MakeServer, kind: str) -> None:
        self.kind = kind
        self._make = make_server
        self._eyes = ExitStack()

    def __call__(self, *config: str, kind: str | None = None, **options: Any) -> tuple[str, Eyes]:
        server = self._make(kind or self.kind, config=(*GOOD, *config), **options)
        eyes = Eyes(server.unix_url, "studio")
        self._eyes.callback(eyes.close)
        return server.url, eyes

    def close(self) -> None:
        self._eyes.close()
