"""What rings and what ends it, which incidents that makes, and who is told.

    signals ─► incident of the group (state) ─► incident.opened · incident.resolved
                        │
                        └► desk (state) ─► alert.notification_due, one for each destination ─► deliver ─► the outside

Telling hangs on events of its own: when Slack is away only what Slack is to be told is tried again. Whatever takes time
(debounce, calm, escalation, repeats, tokens, the end of a silence) is one timer for each group and one for the desk.

All of it lies in the partition of the signal; with several partitions there is a desk in each, a silence reaches all of
them, and a destination's rate is that of each.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from msgspec.structs import replace

from canvasbus import Event, clock
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
    RetrainStarted,
    RetrainSucceeded,
    SilenceAdded,
    SilenceExpired,
)
from canvasbus.worker import Backoff, Breaker, Cancel, Context, Later, Reject, State, Worker, section
from canvasbus_workers.alerts import edge
from canvasbus_workers.alerts.desk import LONGEST_PATTERNS, Desk, Silence
from canvasbus_workers.alerts.events import DeskDue, IncidentDue, NotificationDue
from canvasbus_workers.alerts.incidents import Ended, Incident, cut
from canvasbus_workers.alerts.matching import Matcher
from canvasbus_workers.alerts.notification import Destination, Gone
from canvasbus_workers.alerts.settings import Settings
from canvasbus_workers.alerts.signals import Signal, group_of, signal_of
from canvasbus_workers.naming import name_of

worker = Worker("alerts")

KEPT_SECONDS = 30 * 86400.0
"""For which it is remembered what ended, and what was delivered."""
TRY_AGAIN = Backoff(attempts=14, base=1.0, cap=600.0)
"""About half an hour on average, an hour at most; then it is a dead letter, which can be redriven."""
ALL_AWAY = Breaker(on=(Exception,), share=1.0)
"""One circuit serves all destinations, so it opens only when nothing gets through to any of them."""

Follows = Sequence[Event | Later | Cancel]


@dataclass(frozen=True)
class Resources:
    """What one process has."""

    settings: Settings
    destinations: Mapping[str, Destination]


@worker.lifespan
async def open_resources() -> AsyncIterator[Resources]:
    """Settings that make no sense end it before it has begun."""
    settings = section("alerts", Settings)
    async with edge.opened(settings.destinations) as destinations:
        yield Resources(settings, destinations)


# --- incidents ---------------------------------------------------------------------------------------------------------


@worker.on(
    DriftDetected, MetricThresholdBreached, DataQualityViolated, RetrainProposed, HandlerFailed, BusLoss, concurrency=1
)
async def on_signal(
    event: DriftDetected | MetricThresholdBreached | DataQualityViolated | RetrainProposed | HandlerFailed | BusLoss,
    ctx: Context,
) -> Follows:
    """Something rings."""
    return await _heard(signal_of(event), event, ctx)


@worker.on(DriftResolved, MetricRecovered, concurrency=1)
async def on_end(event: DriftResolved | MetricRecovered, ctx: Context) -> Follows:
    """Something is over."""
    return await _heard(signal_of(event), event, ctx)


@worker.on(RetrainRequested, RetrainRejected, concurrency=1)
async def on_answer(event: RetrainRequested | RetrainRejected, ctx: Context) -> Follows:
    """A training waits for a person no longer. (What is requested without having been proposed asks nobody.)"""
    return await _heard(signal_of(event), event, ctx) if event.proposal_id else []


@worker.on(RetrainStarted, concurrency=1)
async def on_training(event: RetrainStarted, ctx: Context) -> Follows:
    """A training is in flight: rules may mute what it will mend."""
    settings: Settings = ctx.resources.settings
    if not settings.asks_for_trainings:
        return ()
    desk = (await _desk(ctx)).value
    desk.trains(event.model_name, event.run_id, clock.time() + settings.retrain_seconds)
    return _tell(desk, ctx)


@worker.on(RetrainSucceeded, RetrainFailed, concurrency=1)
async def on_trained(event: RetrainSucceeded | RetrainFailed, ctx: Context) -> Follows:
    """It is not in flight any more; failed, it rings."""
    follows = await _heard(signal_of(event), event, ctx)
    if not ctx.resources.settings.asks_for_trainings:
        return follows
    desk = (await _desk(ctx)).value
    return [*follows, *_tell(desk, ctx)] if desk.has_trained(event.model_name, event.run_id) else follows


@worker.on(IncidentDue, concurrency=1)
async def on_due(event: IncidentDue, ctx: Context) -> Follows:
    """Time has passed."""
    return await _step(event.group, event, clock.now(), None, ctx)


async def _heard(signal: Signal, event: Event, ctx: Context) -> Follows:
    return await _step(group_of(signal, ctx.resources.settings.group_by), event, signal.at, signal, ctx)


async def _step(group: str, event: Event, at: datetime, signal: Signal | None, ctx: Context) -> Follows:
    """What follows for the incident of a group, and for those who are told about it."""
    settings: Settings = ctx.resources.settings
    now = clock.time()
    state = await ctx.state(name_of("incident", group), Incident)
    incident = state.value
    before = incident.incident_id, tuple(incident.ringing)
    if signal is not None:
        ended = (await ctx.state(name_of("ended", group), Ended, ttl=KEPT_SECONDS)).value
        if signal.severity is None:
            ended.note(signal)
            if not incident.end(signal):
                ctx.log.info("not told: over within for_seconds", signal=signal.name, model_name=signal.model_name)
        elif not ended.outlives(signal):
            incident.ring(signal, now, settings)
    told = incident.step(group, ctx.envelope.id, at, now, settings)
    follows: list[Event | Later | Cancel] = [told] if told else []
    if told or incident.unheard or (incident.incident_id, tuple(incident.ringing)) != before:
        desk = (await _desk(ctx)).value
        incident.heard(desk.hear(group, incident, told, at, event.correlation_id), now)
        follows += _tell(desk, ctx)
    follows += _timer(name_of("incident", group), IncidentDue(group=group), incident.due(settings), now)
    if not incident.incident_id and not incident.ringing:
        state.delete()
    return follows


# --- telling -----------------------------------------------------------------------------------------------------------


@worker.on(DeskDue, concurrency=1)
async def on_desk_due(_: DeskDue, ctx: Context) -> Follows:
    """Somebody is to be told again, or may be told now."""
    return _tell((await _desk(ctx)).value, ctx)


@worker.on(SilenceAdded, concurrency=1)
async def on_silence(event: SilenceAdded, ctx: Context) -> Follows:
    """From now on nobody is told about what matches."""
    desk = (await _desk(ctx)).value
    if len((event.model_name + event.severity + event.signal).encode()) > LONGEST_PATTERNS:
        raise Reject(f"the patterns have more than {LONGEST_PATTERNS} bytes: use *")
    matcher = Matcher(model_name=event.model_name, severity=event.severity, signal=event.signal)
    until = event.until.timestamp() if event.until else 0.0
    if not desk.silence(cut(event.silence_id), Silence(matcher, until, cut(event.author), cut(event.comment))):
        raise Reject(f"{len(desk.silences)} silences are too many: expire some, or use patterns")
    return _tell(desk, ctx)


@worker.on(SilenceExpired, concurrency=1)
async def on_silence_expired(event: SilenceExpired, ctx: Context) -> Follows:
    """What it muted and is still open is told now."""
    desk = (await _desk(ctx)).value
    if desk.silences.pop(cut(event.silence_id), None) is None:
        return ()
    return _tell(desk, ctx)


@worker.on(NotificationDue, concurrency=8, timeout=120, retry=TRY_AGAIN, breaker=ALL_AWAY)
async def deliver(event: NotificationDue, ctx: Context) -> Follows:
    """Tell one destination, unless something newer was told meanwhile."""
    destination: Destination | None = ctx.resources.destinations.get(event.destination)
    if destination is None:
        raise Reject(f"[workers.alerts.destinations] has no {event.destination!r}: add it and redrive, or purge this")
    notification = replace(event.notification, idempotency_key=str(ctx.envelope.id))
    about = name_of("told", event.destination, notification.incident_id)
    newest = await ctx.state(about, int, ttl=KEPT_SECONDS)
    if event.number <= newest.value:
        ctx.log.info("not told: overtaken", destination=event.destination, incident_id=notification.incident_id)
        return ()
    try:
        await destination.send(notification)
    except Gone as error:
        desk = (await _desk(ctx)).value
        seconds = ctx.resources.settings.gone_seconds
        desk.gone(event.destination, notification.incident_id, clock.time() + seconds)
        ctx.log.error(
            "destination is gone: left alone", destination=event.destination, error=str(error), seconds=seconds
        )
        return _tell(desk, ctx)
    newest.value = event.number
    return ()


def _tell(desk: Desk, ctx: Context) -> Follows:
    now, settings = clock.time(), ctx.resources.settings
    tells, mutes = desk.tell(now, settings)
    for mute in mutes:
        ctx.log.info(
            f"not told: {mute.reason}", destination=mute.destination, incident_id=mute.incident_id, kind=mute.kind
        )
    told = [
        NotificationDue(destination=each.destination, number=each.number, notification=each.notification)
        for each in tells
    ]
    return [*told, *_timer("desk", DeskDue(), desk.due(now, settings), now)]


async def _desk(ctx: Context) -> State[Desk]:
    return await ctx.state("desk", Desk)


def _timer(name: str, event: Event, due: float | None, now: float) -> Follows:
    return (Cancel(name),) if due is None else (Later(event, after=max(0.0, due - now), timer=name),)
