"""Signals become incidents."""

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from uuid import UUID

from canvasbus.events import IncidentOpened, IncidentResolved
from canvasbus_workers.alerts.incidents import Incident

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


class Play:
    """What is open of each model, and an event a minute."""

    def __init__(self) -> None:
        self.incidents: defaultdict[str, Incident] = defaultdict(Incident)
        self.number = 0

    def ring(self, signal: str, severity: str = "warning", model: str = "m") -> IncidentOpened | None:
        self.number += 1
        when = BEGAN + timedelta(minutes=self.number)
        return self.incidents[model].ring(model, signal, severity, signal, when, UUID(int=self.number))  # type: ignore[arg-type]

    def hush(self, signal: str, model: str = "m") -> IncidentResolved | None:
        self.number += 1
        return self.incidents[model].hush(model, signal, "over", BEGAN + timedelta(minutes=self.number))


def test_one_incident_gathers_all_signals() -> None:
    """The first signal opens, others join in silence, and only the last one to end resolves."""
    play = Play()
    opened = play.ring("drift:1")
    assert opened is not None
    assert play.ring("accuracy:1") is None
    assert play.hush("drift:1") is None
    resolved = play.hush("accuracy:1")
    assert resolved is not None
    assert resolved.incident_id == opened.incident_id
    assert resolved.duration == 180.0


def test_a_more_severe_signal_escalates_under_the_same_id() -> None:
    """Escalation publishes the incident again, names all signals, and happens once."""
    play = Play()
    opened, escalated = play.ring("drift:1", "warning"), play.ring("accuracy:1", "critical")
    assert opened is not None
    assert escalated is not None
    assert (escalated.incident_id, escalated.severity, escalated.escalated) == (opened.incident_id, "critical", True)
    assert escalated.signals == ("drift:1", "accuracy:1")
    assert play.ring("drift:2", "critical") is None
    assert play.ring("drift:2", "info") is None


def test_models_do_not_share_incidents() -> None:
    """Each model has its own incident, and a new one after the old one is resolved."""
    play = Play()
    first, other = play.ring("drift:1"), play.ring("drift:1", model="n")
    assert first is not None
    assert other is not None
    assert first.incident_id != other.incident_id
    play.hush("drift:1")
    again = play.ring("drift:2")
    assert again is not None
    assert again.incident_id not in (first.incident_id, other.incident_id)


def test_the_end_of_something_unknown_is_nothing() -> None:
    """A signal that never rang, or ended already, resolves nothing."""
    play = Play()
    assert play.hush("drift:1") is None
    play.ring("drift:1")
    assert play.hush("drift:2") is None
    assert play.hush("drift:1") is not None
    assert play.hush("drift:1") is None
