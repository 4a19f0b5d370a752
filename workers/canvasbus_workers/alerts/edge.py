"""How people are told: one structured log line for each notification. Other channels are other functions like these.

Telling is at-least-once, so `idempotency_key` goes along: the id of the incident event, the same on every repetition.
"""

from typing import Any

from canvasbus.events import IncidentOpened, IncidentResolved


def tell_opened(log: Any, event: IncidentOpened, idempotency_key: str) -> None:
    """Somebody should look."""
    write = log.error if event.severity == "critical" else log.warning
    write(
        event.title,
        model_name=event.model_name,
        incident_id=event.incident_id,
        severity=event.severity,
        escalated=event.escalated,
        signals=list(event.signals),
        idempotency_key=idempotency_key,
    )


def tell_resolved(log: Any, event: IncidentResolved, idempotency_key: str) -> None:
    """It is over."""
    log.info(
        event.title,
        model_name=event.model_name,
        incident_id=event.incident_id,
        duration=event.duration,
        idempotency_key=idempotency_key,
    )
