"""Incidents: what people are told, once, and told again when it is over; and silences, for what they know already."""

from canvasbus.contract.event import AwareDatetime, Event
from canvasbus.contract.registry import event
from canvasbus.events.parts import NonNegative, Severity


@event("incident.opened", key="model_name")
class IncidentOpened(Event):
    """Something needs attention. One incident gathers the signals of one group, usually of one model, until all of them
    are resolved."""

    model_name: str
    """The model; empty: the signals are of several models, or the bus's own."""
    incident_id: str = ""
    """The same from opening to resolution."""
    severity: Severity = "warning"
    """The highest severity so far; an escalation publishes the incident again under the same id."""
    title: str = ""
    """One line for a person."""
    signals: tuple[str, ...] = ()
    """The open signals, as `kind:episode_id`, at most the newest 10; the kind of a metric is `metric:NAME`."""
    escalated: bool = False
    """True when the incident was open already and has become more severe."""
    group: str = ""
    """What its signals have in common, for example `model_name=StyleGAN-Canvas-v3`."""
    summary: tuple[str, ...] = ()
    """A line for a person for each of them."""
    since: AwareDatetime | None = None
    """`occurred_on` of the signal that opened it."""


@event("incident.resolved", key="model_name")
class IncidentResolved(Event):
    """Every signal of the incident is resolved."""

    model_name: str
    """As in `incident.opened`."""
    incident_id: str = ""
    """As in `incident.opened`."""
    title: str = ""
    """One line for a person: what ended it."""
    duration: NonNegative = 0.0
    """Seconds from opening to resolution, by the events' own times."""
    severity: Severity = "warning"
    """The highest that it had."""
    group: str = ""
    """As in `incident.opened`."""
    since: AwareDatetime | None = None
    """As in `incident.opened`."""


@event("silence.added", key="silence_id")
class SilenceAdded(Event):
    """Nobody is to be told about incidents that match; they are opened and resolved all the same. The same id again
    replaces it."""

    silence_id: str
    """Its name until it ends."""
    model_name: str = "*"
    """Models: a pattern, where * stands for any characters and | separates alternatives."""
    severity: str = "*"
    """Severities, for example `info|warning`."""
    signal: str = "*"
    """Kinds of signals: `drift`, `metric:NAME`, `quality`, `retrain`, `approval`, `handler`, `loss`. All of the incident's must
    match."""
    until: AwareDatetime | None = None
    """When it ends by itself; None: when somebody ends it."""
    author: str = ""
    """Who wants it."""
    comment: str = ""
    """Why."""


@event("silence.expired", key="silence_id")
class SilenceExpired(Event):
    """Somebody has ended a silence before its time."""

    silence_id: str
    """As in `silence.added`."""
    author: str = ""
    """Who."""
