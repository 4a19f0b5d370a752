"""Destinations while a worker runs: their secrets read, their clients open."""

from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self

from canvasbus_workers.alerts.destinations import alertmanager, slack, webhook
from canvasbus_workers.alerts.destinations.message import Form
from canvasbus_workers.alerts.destinations.settings import (
    Alertmanager,
    Settings,
    Slack,
    Webhook,
    place_of,
    secrets,
)
from canvasbus_workers.outside.guard import Allow
from canvasbus_workers.outside.secret import Secret

if TYPE_CHECKING:
    from canvasbus_workers.alerts.destinations.posted import Posted
    from canvasbus_workers.outside.dial import Network


class Destinations(Mapping[str, "Posted"]):
    """All destinations, by name; open them for as long as the worker runs:

    async with Destinations(read(table)) as destinations:
        await destinations["ops"].send(notification)
    """

    def __init__(self, settings: Mapping[str, Settings], *, network: "Network | None" = None) -> None:
        """Reads the secrets. `network`: how to look up and connect, for tests.

        Raises ConfigError, one line, when a secret is not there or is none, or httpx2 is not installed."""
        self._opened = {name: _open(name, one, network) for name, one in settings.items()}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for one in self._opened.values():
            await self._stack.enter_async_context(one.client)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    def __getitem__(self, name: str) -> "Posted":
        return self._opened[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._opened)

    def __len__(self) -> int:
        return len(self._opened)

    def __repr__(self) -> str:
        return f"Destinations({', '.join(map(repr, self._opened.values()))})"

    def statistics(self) -> dict[str, dict[str, int]]:
        """Those of each destination."""
        return {name: one.statistics() for name, one in self._opened.items()}


def _open(name: str, settings: Settings, network: "Network | None") -> "Posted":
    known = secrets(name, settings)
    from canvasbus_workers.alerts.destinations.posted import Posted
    from canvasbus_workers.outside.client import Client, parse

    place, url = place_of(name), known.url
    parse(f"{place}: the URL", url)
    form: Form
    match settings:
        case Slack():
            form = slack.FORM
        case Webhook():
            form = webhook.form(name, settings.body, known.keys)
        case Alertmanager():
            form = alertmanager.form(settings.hold_seconds)
            url = Secret(alertmanager.endpoint(url.reveal()))
    allow = Allow.of(settings.allow)
    client = Client(
        "canvasbus-alerts", place, guard=allow, ca_file=settings.ca_file, proxy=known.proxy, network=network
    )
    return Posted(name, form, client, settings, url, known.authorization)
