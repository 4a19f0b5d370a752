"""Signals become incidents: one open incident a model, however many detectors ring.

    first signal opens it · a more severe one escalates it (same id) · the last one resolved resolves it

Pure: signals in, incident events out. The open incidents live in this process for now; after a restart an open
incident is opened again by the next reminder, under a new id.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from canvasbus.events import IncidentOpened, IncidentResolved, Severity

_RANK: Mapping[str, int] = {"info": 0, "warning": 1, "critical": 2}


@dataclass
class _Incident:
    incident_id: str
    severity: Severity
    since: datetime
    signals: dict[str, None] = field(default_factory=dict)


class Desk:
    """The open incidents."""

    def __init__(self) -> None:
        self._open: dict[str, _Incident] = {}

    def signal(
        self, model_name: str, signal: str, severity: Severity, title: str, when: datetime, cause: UUID
    ) -> IncidentOpened | None:
        """A signal is ringing. Returns the event when that opens or escalates an incident. `cause`: the signal's event id."""
        incident = self._open.get(model_name)
        if incident is None:
            incident = self._open[model_name] = _Incident(f"{model_name}/{str(cause)[-12:]}", severity, when)
            escalated = False
        elif _RANK[severity] > _RANK[incident.severity]:
            incident.severity = severity
            escalated = True
        else:
            incident.signals[signal] = None
            return None
        incident.signals[signal] = None
        return IncidentOpened(
            model_name=model_name,
            incident_id=incident.incident_id,
            severity=incident.severity,
            title=title,
            signals=tuple(incident.signals),
            escalated=escalated,
        )

    def quiet(self, model_name: str, signal: str, title: str, when: datetime) -> IncidentResolved | None:
        """A signal is over. Returns the event when it was the incident's last one."""
        incident = self._open.get(model_name)
        if incident is None or signal not in incident.signals:
            return None
        del incident.signals[signal]
        if incident.signals:
            return None
        del self._open[model_name]
        return IncidentResolved(
            model_name=model_name,
            incident_id=incident.incident_id,
            title=title,
            duration=max(0.0, (when - incident.since).total_seconds()),
        )

    def __repr__(self) -> str:
        return f"<Desk {sorted(self._open)}>"
