"""What the kinds make of a notification: a request's headers and body."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from canvasbus_workers.alerts.notification import Notification


@dataclass(frozen=True)
class Message:
    """One request, without its URL."""

    body: bytes
    headers: Mapping[str, str]


Make = Callable[[Notification], Message]
