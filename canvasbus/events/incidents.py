"""Incidents: what people are told, once, and told again when it is over."""

from canvasbus.contract.event import Event
from canvasbus.contract.registry import event
from canvasbus.events.parts import NonNegative, Severity


@event("incident.opened", key="model_name")
class IncidentOpened(Event):
    """Something needs attention. One incident gathers every signal of one model until all of them are resolved."""

    model_name: str
    """The model."""
    incident_id: str = ""
    """The same from opening to resolution."""
    severity: Severity = "warning"
    """The highest severity so far; an escalation publishes the incident again under the same id."""
    title: str = ""
    """One line for a person."""
    signals: tuple[str, ...] = ()
    """The open signals, as `type:episode_id`."""
    escalated: bool = False
    """True when the incident was open already and has become more severe."""


@event("incident.resolved", key="model_name")
class IncidentResolved(Event):
    """Every signal of the incident is resolved."""

    model_name: str
    """The model."""
    incident_id: str = ""
    """As in `incident.opened`."""
    title: str = ""
    """One line for a person: what ended it."""
    duration: NonNegative = 0.0
    """Seconds from opening to resolution, by the events' own times."""
