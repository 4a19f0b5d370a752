"""What opens an incident, what resolves it, and who is told.

Telling hangs on the incident's own events, not on the signals: when the log (or, later, Slack) is away, only the
telling is tried again.
"""

from canvasbus.events import (
    DriftDetected,
    DriftResolved,
    IncidentOpened,
    IncidentResolved,
    MetricRecovered,
    MetricThresholdBreached,
)
from canvasbus.worker import Context, Worker
from canvasbus_workers.alerts.edge import tell_opened, tell_resolved
from canvasbus_workers.alerts.incidents import Desk

worker = Worker("alerts")
desk = Desk()


@worker.on(DriftDetected, concurrency=1)
async def on_drift(event: DriftDetected, ctx: Context) -> IncidentOpened | None:
    """Data have left the references."""
    title = f"{event.model_name}: drift, {event.drift_type} = {event.drift_score:.2f}"
    signal = f"drift:{event.episode_id}"
    return desk.signal(event.model_name, signal, event.severity, title, event.occurred_on, ctx.envelope.id)


@worker.on(DriftResolved, concurrency=1)
async def on_drift_resolved(event: DriftResolved) -> IncidentResolved | None:
    """Data match a reference again."""
    title = f"{event.model_name}: data match {event.regime or event.reference_id or 'a reference'} again"
    return desk.quiet(event.model_name, f"drift:{event.episode_id}", title, event.occurred_on)


@worker.on(MetricThresholdBreached, concurrency=1)
async def on_breach(event: MetricThresholdBreached, ctx: Context) -> IncidentOpened | None:
    """A metric is on the wrong side of its bound."""
    title = f"{event.model_name}: {event.metric} {event.value:.3g}, expected {event.bound:.3g}"
    signal = f"{event.metric}:{event.episode_id}"
    return desk.signal(event.model_name, signal, event.severity, title, event.occurred_on, ctx.envelope.id)


@worker.on(MetricRecovered, concurrency=1)
async def on_recovered(event: MetricRecovered) -> IncidentResolved | None:
    """A metric keeps its bound again."""
    title = f"{event.model_name}: {event.metric} is {event.value:.3g} again"
    return desk.quiet(event.model_name, f"{event.metric}:{event.episode_id}", title, event.occurred_on)


@worker.on(IncidentOpened)
async def tell_people(event: IncidentOpened, ctx: Context) -> None:
    """Notify."""
    tell_opened(ctx.log, event, str(ctx.envelope.id))


@worker.on(IncidentResolved)
async def tell_people_it_is_over(event: IncidentResolved, ctx: Context) -> None:
    """Notify."""
    tell_resolved(ctx.log, event, str(ctx.envelope.id))
