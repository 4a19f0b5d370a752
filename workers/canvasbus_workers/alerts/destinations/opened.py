"""Destinations while a worker runs: their secrets read, their clients open."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

import msgspec
import trio

from canvasbus import clock
from canvasbus.worker import Reject, RetryLater
from canvasbus_workers.alerts.destinations import alertmanager, slack, webhook
from canvasbus_workers.alerts.destinations.answer import Undelivered, judge
from canvasbus_workers.alerts.destinations.guard import Allow
from canvasbus_workers.alerts.destinations.message import Form, Message, Question
from canvasbus_workers.alerts.destinations.settings import (
    Alertmanager,
    Http,
    Settings,
    Slack,
    Webhook,
    place_of,
    secrets,
)
from canvasbus_workers.alerts.notification import Gone, Notification
from canvasbus_workers.outside.secret import Secret

if TYPE_CHECKING:
    from canvasbus_workers.alerts.destinations.dial import Network
    from canvasbus_workers.alerts.destinations.http import Client


class Posted:
    """One destination."""

    def __init__(self, name: str, kind: str, form: Form, client: "Client", settings: Http) -> None:
        self.name, self.client = name, client
        self._kind, self._form = kind, form
        self._settings = settings
        self._counts: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<{self._kind} {self.name}: {dict(self._counts)}>"

    def statistics(self) -> dict[str, int]:
        """How many notifications it has taken, and by what the others failed."""
        return {word: self._counts[word] for word in ("taken", *_WORDS.values(), "undelivered")}

    async def send(self, notification: Notification) -> None:
        """Tell it. Raises Reject, RetryLater, Gone, or Undelivered, each with the destination's name and no secret."""
        deadline = trio.current_time() + self._settings.timeout_seconds
        try:
            question = self._form.ask(notification)
            known = b"" if question is None else await self._call(question, deadline)
            await self._call(self._made(notification, known), deadline)
        except Exception as error:
            self._counts[_WORDS.get(type(error), "undelivered")] += 1
            raise
        self._counts["taken"] += 1

    async def _call(self, request: Message | Question, deadline: float) -> bytes:
        answer = await self.client.call(request, deadline)
        most = self._settings.retry_after_seconds
        judge(self.name, answer.status, answer.retry_after, answer.said, now=clock.now(), most=most)
        return answer.body

    def _made(self, notification: Notification, known: bytes) -> Message:
        with suppress(msgspec.DecodeError):
            return self._form.make(notification, known)
        raise Undelivered(f"{self.name}: its answer is not what it was asked for")


_WORDS: Mapping[type[Exception], str] = {Reject: "rejected", RetryLater: "delayed", Gone: "gone"}


class Destinations(Mapping[str, Posted]):
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

    def __getitem__(self, name: str) -> Posted:
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


def _open(name: str, settings: Settings, network: "Network | None") -> Posted:
    known = secrets(name, settings)
    from canvasbus_workers.alerts.destinations.http import Client

    url = known.url
    form: Form
    match settings:
        case Slack():
            form = slack.FORM
        case Webhook():
            form = webhook.form(name, settings.body, known.keys)
        case Alertmanager():
            form = alertmanager.form(settings.hold_seconds)
            url = Secret(alertmanager.endpoint(url.reveal()))
    client = Client(
        name, place_of(name), url, allow=Allow.of(settings.allow), timeout=settings.timeout_seconds,
        ca_file=settings.ca_file, proxy=known.proxy, authorization=known.authorization, network=network,
    )  # fmt: skip
    return Posted(name, type(settings).__name__, form, client, settings)
