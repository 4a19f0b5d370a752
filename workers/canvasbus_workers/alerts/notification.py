"""What a destination is given: one notification about one incident. The seam between deciding whom to tell what and
the outside that is told. Pure data: a destination needs neither the bus nor an event to make its message of it."""

from collections.abc import Mapping
from typing import Literal, Protocol
from uuid import UUID

from msgspec import Struct, field

from canvasbus import AwareDatetime
from canvasbus.events import Severity

Kind = Literal["opened", "escalated", "repeated", "resolved", "test"]


class Notification(Struct, frozen=True, kw_only=True):
    """One thing to tell one destination."""

    kind: Kind
    """`escalated`: known already and now more severe. `repeated`: nothing new, it goes on. `test`: a sample that
    `canvasbus alerts test` sends."""
    incident_id: str
    """The same from opening to resolution: what a destination threads or replaces its messages by."""
    model_name: str
    """Empty: the incident gathers signals of several models, or of none."""
    severity: Severity
    """Of the incident now; when it is resolved, the highest it had."""
    title: str
    """One line for a person."""
    signals: tuple[str, ...] = ()
    """The open signals, as `kind:episode_id`, at most the newest 10; empty when it is resolved."""
    since: AwareDatetime
    """When it was opened, aware."""
    at: AwareDatetime
    """When what is told became true, aware: the same on every attempt."""
    summary: tuple[str, ...] = ()
    """Further lines for a person: one for each of them, plain text."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """`model_name`, `severity` and `group`, for those who group and route by them in their turn. The first and the last do
    not change while the incident is open."""
    correlation_id: UUID
    """Of the signal that opened the incident: the same from opening to resolution."""
    idempotency_key: str
    """The same on every attempt, another for every notification and destination."""
    links: Mapping[str, str] = field(default_factory=dict)
    """Words → URL, for example of a runbook or dashboard."""


class Destination(Protocol):
    """One place where people are told. `name` is the key of its table [workers.alerts.destinations.NAME]."""

    @property
    def name(self) -> str: ...

    async def send(self, notification: Notification) -> None:
        """Tell it, within the deadline of the destination's own settings.

        Raises Reject when it will never be taken (a dead letter), RetryLater when it says how long to wait, Gone when
        the destination is no more, and any other exception for what may pass (a retry that counts, and the breaker)."""
        ...


class Gone(Exception):
    """The destination says that it does not exist any more (HTTP 410): it is not called again until somebody enables it."""
