"""Signals become incidents: one open incident a model, however many detectors ring.

    first signal opens it · a more severe one escalates it (same id) · the last one resolved resolves it

Pure: signals in, incident events out. What is open is kept by the group (`ctx.state`) and changes together with what is
published about it: held in a process, an incident whose event was never committed would count as told.
"""

from collections.abc import Mapping
from datetime import datetime
from uuid import UUID

from msgspec import Struct, field

from canvasbus.events import IncidentOpened, IncidentResolved, Severity

_RANK: Mapping[str, int] = {"info": 0, "warning": 1, "critical": 2}


class Incident(Struct):
    """What is open of one model."""

    incident_id: str = ""
    """Empty: nothing is."""
    severity: Severity = "info"
    since: datetime | None = None
    signals: list[str] = field(default_factory=list)
    """Those that ring, in the order in which they began."""

    def ring(
        self, model_name: str, signal: str, severity: Severity, title: str, when: datetime, cause: UUID
    ) -> IncidentOpened | None:
        """A signal is ringing. Returns the event when that opens or escalates an incident. `cause`: the signal's event id."""
        opens = not self.incident_id
        if opens:
            self.incident_id, self.severity, self.since = f"{model_name}/{str(cause)[-12:]}", severity, when
        if signal not in self.signals:
            self.signals.append(signal)
        escalates = _RANK[severity] > _RANK[self.severity]
        if not opens and not escalates:
            return None
        self.severity = severity
        return IncidentOpened(
            model_name=model_name,
            incident_id=self.incident_id,
            severity=severity,
            title=title,
            signals=tuple(self.signals),
            escalated=escalates,
        )

    def hush(self, model_name: str, signal: str, title: str, when: datetime) -> IncidentResolved | None:
        """A signal is over. Returns the event when it was the incident's last one; then nothing is open."""
        if self.since is None or signal not in self.signals:
            return None
        self.signals.remove(signal)
        if self.signals:
            return None
        resolved = IncidentResolved(
            model_name=model_name,
            incident_id=self.incident_id,
            title=title,
            duration=max(0.0, (when - self.since).total_seconds()),
        )
        self.incident_id, self.since = "", None
        return resolved
