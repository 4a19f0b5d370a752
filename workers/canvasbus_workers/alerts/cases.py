"""One incident as far as telling goes: what is, what each destination was told last, and what it is to be told. Pure."""

from datetime import UTC, datetime
from uuid import UUID

from msgspec import Struct, field

from canvasbus.events import Severity
from canvasbus_workers.alerts.incidents import RANK
from canvasbus_workers.alerts.notification import Kind, Notification
from canvasbus_workers.alerts.settings import Settings


class Told(Struct, array_like=True):
    """What a destination was told last about an incident."""

    severity: Severity
    at: float


class Case(Struct):
    """One incident, as far as telling goes."""

    group: str
    model_name: str
    severity: Severity
    title: str
    signals: tuple[str, ...]
    kinds: tuple[str, ...]
    """The kinds of all its signals, which may be more."""
    summary: tuple[str, ...]
    since: datetime
    at: datetime
    """When what `title` says happened."""
    correlation_id: UUID
    over: bool = False
    number: int = 0
    """Notifications so far."""
    told: dict[str, Told] = field(default_factory=dict)
    muted: dict[str, str] = field(default_factory=dict)
    """Destination → what was counted last as not told."""
    ringing: int = 0
    """Signals, of which `signals` names the newest."""

    def wanted(self, destination: str, now: float, settings: Settings) -> Kind | None:
        """What a destination is to be told; None: it knows all there is."""
        told = self.told.get(destination)
        if self.over:
            return "resolved" if told is not None else None
        if told is None:
            return "opened"
        if RANK[self.severity] > RANK[told.severity]:
            return "escalated"
        return "repeated" if settings.repeat_seconds and now >= told.at + settings.repeat_seconds else None

    def tell(self, incident_id: str, destination: str, kind: Kind, now: float) -> Notification:
        """It is told that, which is written down. Returns what it is given."""
        self.number += 1
        self.muted.pop(destination, None)
        if kind == "resolved":
            del self.told[destination]
        else:
            self.told[destination] = Told(self.severity, now)
        return Notification(
            kind=kind,
            incident_id=incident_id,
            model_name=self.model_name,
            severity=self.severity,
            title=self.title,
            signals=() if kind == "resolved" else self.signals,
            since=self.since,
            at=datetime.fromtimestamp(now, UTC) if kind == "repeated" else self.at,
            summary=() if kind == "resolved" else self.summary,
            labels={"model_name": self.model_name, "severity": self.severity, "group": self.group},
            correlation_id=self.correlation_id,
            idempotency_key="",
        )
