"""What events say about the state of a model or of the bus: a signal rings, or it is over. Pure.

drift.detected             drift:EPISODE           until drift.resolved
metric.threshold_breached  metric:NAME:EPISODE     until metric.recovered
data_quality.violated      quality:CHECK/VERSION   it is told once, when it begins: over when it is quiet
retrain.failed             retrain:                until a training succeeds, or quiet
retrain.proposed           approval:PROPOSAL       until somebody approves or rejects, or it is withdrawn
handler.failed             handler:GROUP/TYPE      quiet
bus.loss                   loss:TOPIC              quiet
"""

from datetime import datetime

from msgspec import Struct

from canvasbus import Event
from canvasbus.events import (
    BusLoss,
    DataQualityViolated,
    DriftDetected,
    DriftResolved,
    HandlerFailed,
    MetricRecovered,
    MetricThresholdBreached,
    RetrainFailed,
    RetrainProposed,
    RetrainRejected,
    RetrainRequested,
    RetrainSucceeded,
    Severity,
)
from canvasbus_workers.naming import name_of

LONGEST_NAME = 120
"""Characters of a signal's name: states are full of them."""
APPROVAL = "approval"
"""The kind of a signal that asks a person for something. It is an incident of its own: beside one that is open for the
model already nobody would be told."""


class Signal(Struct, frozen=True, kw_only=True):
    """Something rings, or has ended."""

    kind: str
    what: str = ""
    """Tells it from others of its kind."""
    model_name: str = ""
    """Empty: it is the bus's own."""
    segment: str = ""
    severity: Severity | None
    """None: it is over."""
    title: str
    """One line for a person."""
    at: datetime
    fades: bool = False
    """Nobody says when it is over."""
    once: bool = False
    """It has a name of its own: once over it never rings again."""

    @property
    def name(self) -> str:
        """`kind:what`"""
        parts = (*self.kind.split(":", 1), self.what)  # the one colon in a kind is that of metric:NAME
        return name_of(*parts, by=":", longest=LONGEST_NAME)

    def label(self, name: str) -> str:
        """The value of a label that signals are grouped by."""
        return {"model_name": self.model_name, "signal": self.kind, "segment": self.segment}[name]


def signal_of(event: Event) -> Signal:
    """The signal of an event. Raises TypeError for one that has none."""
    match event:
        case DriftDetected():
            title = f"{event.model_name}: drift, {event.drift_type} = {event.drift_score:.2f}"
            return _of_model(event, "drift", event.episode_id, event.severity, title, segment=event.segment)
        case DriftResolved():
            title = f"{event.model_name}: data match {event.regime or event.reference_id or 'a reference'} again"
            return _of_model(event, "drift", event.episode_id, None, title, segment=event.segment)
        case MetricThresholdBreached():
            title = f"{event.model_name}: {event.metric} {_breach(event)}{_by(event)}"
            return _of_model(
                event, f"metric:{event.metric}", event.episode_id, event.severity, title, segment=event.segment
            )
        case MetricRecovered():
            title = f"{event.model_name}: {event.metric} {_recovery(event)}{_by(event)}"
            return _of_model(event, f"metric:{event.metric}", event.episode_id, None, title, segment=event.segment)
        case DataQualityViolated():
            where = event.feature or "the whole batch"
            title = f"{event.model_name}: data break {event.check} in {where}"
            return Signal(
                kind="quality",
                what=name_of(event.check, event.model_version),
                model_name=event.model_name,
                segment=event.segment,
                severity=event.severity,
                title=title,
                at=event.occurred_on,
                fades=True,
            )
        case RetrainFailed():
            title = f"{event.model_name}: retraining {event.model_version or event.run_id} failed: {event.error}"
            return _of_model(event, "retrain", "", "warning", title, fades=True)
        case RetrainSucceeded():
            return _of_model(event, "retrain", "", None, f"{event.model_name}: retraining succeeded")
        case RetrainProposed():
            title = f"{event.model_name}: a retraining waits for approval, {event.reason or event.episode_id}"
            return _of_model(event, APPROVAL, event.proposal_id, "critical", title)
        case RetrainRequested():
            title = f"{event.model_name}: retraining is approved by {event.requested_by or 'somebody'}"
            return _of_model(event, APPROVAL, event.proposal_id, None, title)
        case RetrainRejected():
            title = f"{event.model_name}: retraining is rejected by {event.rejected_by or 'somebody'}"
            return _of_model(event, APPROVAL, event.proposal_id, None, title)
        case HandlerFailed():
            return Signal(
                kind="handler",
                what=name_of(event.group, event.event_type),
                severity="warning",
                title=f"{event.group} gave up on {event.event_type}: {event.error}",
                at=event.occurred_on,
                fades=True,
            )
        case BusLoss():
            return Signal(
                kind="loss",
                what=event.topic,
                severity="critical",
                title=f"{event.topic} lost entries: {event.detail}",
                at=event.occurred_on,
                fades=True,
            )
    raise TypeError(f"{type(event).__name__} is no signal")


def _breach(event: MetricThresholdBreached) -> str:
    match event:
        case MetricThresholdBreached(silent_seconds=float(seconds)):
            return f"has not been reported for {seconds:.0f} s"
        case MetricThresholdBreached(change=float(change), change_bound=float(bound)):
            return f"has changed by {change:.3g}, {event.direction} {bound:.3g}"
        case MetricThresholdBreached(relative_change=float(change), relative_bound=float(bound)):
            return f"has changed by {change * 100:.3g} %, {event.direction} {bound * 100:.3g} %"
        case MetricThresholdBreached(bound=float(bound)):
            return f"{event.value:.3g}, {event.direction if event.rule else 'expected'} {bound:.3g}"
    return f"{event.value:.3g}"


def _recovery(event: MetricRecovered) -> str:
    match event:
        case MetricRecovered(condition="absent"):
            return "is reported again"
        case MetricRecovered(change=float(change)):
            return f"keeps its bound again, having changed by {change:.3g}"
        case MetricRecovered(relative_change=float(change)):
            return f"keeps its bound again, having changed by {change * 100:.3g} %"
    return f"is {event.value:.3g} again"


def _by(event: MetricThresholdBreached | MetricRecovered) -> str:
    """Which of its rules, and of which part of the traffic."""
    named = [f"rule {event.rule}"] * bool(event.rule) + [f"segment {event.segment}"] * bool(event.segment)
    return f" ({', '.join(named)})" if named else ""


def group_of(signal: Signal, group_by: tuple[str, ...]) -> str:
    """The incident that a signal belongs to, as `label=value` pairs; the bus's own are no model's."""
    if signal.kind == APPROVAL:
        group_by = tuple(dict.fromkeys(("model_name", "signal", *group_by)))
    return name_of(*(f"{name}={signal.label(name)}" for name in group_by), by=",")


def _of_model(
    event: DriftDetected
    | DriftResolved
    | MetricThresholdBreached
    | MetricRecovered
    | RetrainFailed
    | RetrainProposed
    | RetrainRejected
    | RetrainRequested
    | RetrainSucceeded,
    kind: str,
    what: str,
    severity: Severity | None,
    title: str,
    *,
    segment: str = "",
    fades: bool = False,
) -> Signal:
    return Signal(
        kind=kind,
        what=what,
        model_name=event.model_name,
        segment=segment,
        severity=severity,
        title=title,
        at=event.occurred_on,
        fades=fades,
        once=bool(what),
    )
