"""What the kinds make of a notification: the requests that tell it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from canvasbus_workers.alerts.notification import Notification


@dataclass(frozen=True)
class Message:
    """One request, without its URL."""

    body: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Question:
    """A GET of the same URL, for what has to be known before the message can be made."""

    query: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Form:
    """How a kind tells. Both functions are pure."""

    make: Callable[[Notification, bytes], Message]
    """`bytes`: the answer to the question; empty: there was none. Raises msgspec.DecodeError when it is none that was asked for."""
    ask: Callable[[Notification], Question | None] = lambda _: None
