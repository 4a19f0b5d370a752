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
from canvasbus.worker import Context, State, Worker
from canvasbus_workers.alerts.edge import tell_opened, tell_resolved
from canvasbus_workers.alerts.incidents import Incident

worker = Worker("alerts")


async def incident_of(model_name: str, ctx: Context) -> State[Incident]:
    """What is open of the model."""
    return await ctx.state(f"incident:{model_name}", Incident)


@worker.on(DriftDetected, concurrency=1)
async def on_drift(event: DriftDetected, ctx: Context) -> IncidentOpened | None:
    """Data have left the references."""
    title = f"{event.model_name}: drift, {event.drift_type} = {event.drift_score:.2f}"
    return await _ring(event, f"drift:{event.episode_id}", title, ctx)


@worker.on(DriftResolved, concurrency=1)
async def on_drift_resolved(event: DriftResolved, ctx: Context) -> IncidentResolved | None:
    """Data match a reference again."""
    title = f"{event.model_name}: data match {event.regime or event.reference_id or 'a reference'} again"
    return await _hush(event, f"drift:{event.episode_id}", title, ctx)


@worker.on(MetricThresholdBreached, concurrency=1)
async def on_breach(event: MetricThresholdBreached, ctx: Context) -> IncidentOpened | None:
    """A metric is on the wrong side of its bound."""
    title = f"{event.model_name}: {event.metric} {event.value:.3g}, expected {event.bound:.3g}"
    return await _ring(event, f"{event.metric}:{event.episode_id}", title, ctx)


@worker.on(MetricRecovered, concurrency=1)
async def on_recovered(event: MetricRecovered, ctx: Context) -> IncidentResolved | None:
    """A metric keeps its bound again."""
    title = f"{event.model_name}: {event.metric} is {event.value:.3g} again"
    return await _hush(event, f"{event.metric}:{event.episode_id}", title, ctx)


async def _ring(
    event: DriftDetected | MetricThresholdBreached, signal: str, title: str, ctx: Context
) -> IncidentOpened | None:
    state = await incident_of(event.model_name, ctx)
    return state.value.ring(event.model_name, signal, event.severity, title, event.occurred_on, ctx.envelope.id)


async def _hush(
    event: DriftResolved | MetricRecovered, signal: str, title: str, ctx: Context
) -> IncidentResolved | None:
    state = await incident_of(event.model_name, ctx)
    resolved = state.value.hush(event.model_name, signal, title, event.occurred_on)
    if not state.value.incident_id:
        state.delete()
    return resolved


@worker.on(IncidentOpened)
async def tell_people(event: IncidentOpened, ctx: Context) -> None:
    """Notify."""
    tell_opened(ctx.log, event, str(ctx.envelope.id))


@worker.on(IncidentResolved)
async def tell_people_it_is_over(event: IncidentResolved, ctx: Context) -> None:
    """Notify."""
    tell_resolved(ctx.log, event, str(ctx.envelope.id))
