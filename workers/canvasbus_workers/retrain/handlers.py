"""What asks for a training, what becomes of it, and who may promote.

Deciding and training are two steps with an event between them: retrain.started is committed together with the decision,
and the worker that reads it launches the run. What is decided about a model hangs on one state, so any number of
processes may share the work. A launch, which may last as long as the training, holds no state: it would keep everything
else about the model waiting.
"""

from collections.abc import AsyncIterator, Sequence

import trio

from canvasbus import Event, clock
from canvasbus.events import (
    DriftDetected,
    DriftResolved,
    LabelsRecorded,
    MetricRecovered,
    MetricThresholdBreached,
    ModelPromoted,
    RetrainFailed,
    RetrainRejected,
    RetrainRequested,
    RetrainStarted,
    RetrainSucceeded,
)
from canvasbus.worker import Context, Later, RetryLater, State, Worker, section
from canvasbus_workers.naming import name_of
from canvasbus_workers.patterns import fits
from canvasbus_workers.retrain import launching, telling
from canvasbus_workers.retrain.book import UNNAMED, Model, Rest, Wait
from canvasbus_workers.retrain.edge import Launchers
from canvasbus_workers.retrain.events import RetrainDue, RunCheck, RunOverdue
from canvasbus_workers.retrain.launchers import folders
from canvasbus_workers.retrain.launchers.protocol import Busy, Launched, Rejected, Unreachable, order_of
from canvasbus_workers.retrain.settings import Policy, Settings

worker = Worker("retrain")

AT_ONCE = 16
"""Launches in one process. A launch that lasts as long as its run is one run."""
LONGEST = 31 * 86400.0
"""Seconds; a launch has a timeout of its own, by its policy."""


@worker.lifespan
async def open_launchers() -> AsyncIterator[Launchers]:
    """Settings that make no sense end it before it has begun."""
    async with Launchers(section("retrain", Settings)) as launchers:
        yield launchers


# --- what asks for a training ------------------------------------------------------------------------------------------


@worker.on(MetricThresholdBreached)
async def on_breach(event: MetricThresholdBreached, ctx: Context) -> Sequence[Event | Later]:
    """Quality below its bound, again and again while it stays there. A metric that is silent says nothing about quality."""
    policy = _policy(event.model_name, ctx)
    about_quality = event.condition != "absent" and fits(policy.metrics, event.metric)
    if "quality" not in policy.on or event.severity != "critical" or not about_quality:
        return ()
    reason = f"{event.metric} {telling.lost(event)}"
    windows = event.window_number - event.first_window + 1
    return await _want(event, reason, event.episode_id, windows, ctx)


@worker.on(DriftDetected)
async def on_drift(event: DriftDetected, ctx: Context) -> Sequence[Event | Later]:
    """Drift that is known to hurt when it is detected. One that turns out to hurt later (escalated) is left to the breach
    that says so: which of the two came first would decide what the training is for, and that must not be chance."""
    policy = _policy(event.model_name, ctx)
    if "critical_drift" not in policy.on or event.severity != "critical" or event.state == "escalated":
        return ()
    reason = f"drift, {event.drift_type} = {event.drift_score:.2f}"
    windows = event.window_number - event.first_window + 1
    return await _want(event, reason, event.episode_id, windows, ctx)


@worker.on(RetrainRequested)
async def on_request(event: RetrainRequested, ctx: Context) -> Sequence[Event | Later]:
    """Somebody asks, or approves."""
    if not event.proposal_id:
        return await _want(event, event.reason or "requested", event.episode_id, 0, ctx, asked=True)
    model = (await _model(event.model_name, ctx)).value
    if not model.approve(event.proposal_id):
        ctx.log.info("nothing to approve", model_name=event.model_name, proposal_id=event.proposal_id)
        return ()
    return _go_on(event.model_name, model, ctx)


@worker.on(RetrainRejected)
async def on_rejection(event: RetrainRejected, ctx: Context) -> None:
    """A person says no; or this worker has withdrawn what it had proposed, and knows that."""
    model = (await _model(event.model_name, ctx)).value
    if model.reject(event.proposal_id):
        ctx.log.info("rejected", model_name=event.model_name, proposal_id=event.proposal_id)


@worker.on(MetricRecovered, DriftResolved)
async def on_recovery(event: MetricRecovered | DriftResolved, ctx: Context) -> RetrainRejected | None:
    """What a training was wanted for is over."""
    state = await _model(event.model_name, ctx)
    if not state.exists:
        state.delete()  # nothing has ever been wanted for it, and nothing is kept
        return None
    withdrawn = state.value.is_over(event.episode_id or f"{UNNAMED}{event.correlation_id}")
    if not withdrawn:
        return None
    return telling.withdrawn(event, withdrawn, worker.name)


@worker.on(LabelsRecorded)
async def on_labels(event: LabelsRecorded, ctx: Context) -> None:
    """Count what can be learnt from."""
    if event.split == "train" and event.item_ids:
        (await _model(event.model_name, ctx)).value.labels += len(event.item_ids)


@worker.on(RetrainDue)
async def on_due(event: RetrainDue, ctx: Context) -> Sequence[Event | Later]:
    """Debounce, cooldown or budget are over."""
    return _go_on(event.model_name, (await _model(event.model_name, ctx)).value, ctx)


async def _want(
    event: MetricThresholdBreached | DriftDetected | RetrainRequested,
    reason: str,
    episode_id: str,
    windows: int,
    ctx: Context,
    *,
    asked: bool = False,
) -> Sequence[Event | Later]:
    model = (await _model(event.model_name, ctx)).value
    episode = episode_id or f"{UNNAMED}{event.correlation_id}"
    said = model.want(clock.time(), reason, episode, windows, asked=asked)
    if said != "wanted":
        ctx.log.info("no training", model_name=event.model_name, why=said)
        return ()
    return _go_on(event.model_name, model, ctx)


def _go_on(name: str, model: Model, ctx: Context) -> Sequence[Event | Later]:
    """What follows for the model now."""
    policy = _policy(name, ctx)
    now = clock.time()
    wish, labels = model.wish, model.labels
    step = model.next(name, policy, now)
    if wish is not None and isinstance(step, Wait | Rest):
        ctx.log.info("no training yet" if isinstance(step, Wait) else "no training", model_name=name, why=step.why)
    return telling.follows(name, step, wish, labels, policy.timeout_seconds + launching.OVERTIME, now)


# --- what becomes of a run ---------------------------------------------------------------------------------------------


@worker.on(RetrainStarted, timeout=LONGEST, concurrency=AT_ONCE)
async def on_started(event: RetrainStarted, ctx: Context) -> Sequence[Event | Later]:
    """Launch it, or adopt what is under way; where that lasts as long as the run, say how it ended."""
    policy = _policy(event.model_name, ctx)
    launchers: Launchers = ctx.resources
    said = await launching.launch(await launchers.launcher(event.model_name), order_of(event, ctx), policy)
    if isinstance(said, Launched):
        ctx.log.info("launched", run_id=event.run_id, external_id=said.external_id, duplicate=said.duplicate)
    follows = launching.answer(event, said, policy)
    for one in follows:
        _told(one, ctx)
    return follows


@worker.on(RunCheck)
async def on_check(event: RunCheck, ctx: Context) -> Event | Later | None:
    """Ask where a run stands that is trained elsewhere, until it ends or its time is over."""
    launchers: Launchers = ctx.resources
    policy = _policy(event.model_name, ctx)
    try:
        launcher = await launchers.launcher(event.model_name)
        said = await launcher.status(event.external_id)
    except Rejected as error:
        return _told(launching.failed(event, f"{event.external_id}: {error}"), ctx)
    except (Busy, Unreachable) as error:
        if launching.still(event.launched, policy, clock.time()) < 0:
            return None  # it is overdue
        raise RetryLater(policy.poll_seconds, str(error)) from error
    return _told(launching.checked(event, said, policy, clock.time()), ctx)


@worker.on(RunOverdue)
async def on_overdue(event: RunOverdue, ctx: Context) -> Event | Later | None:
    """A run has not ended in time. One that had to wait began late, and nothing else begins before its own time is over."""
    run = (await _model(event.model_name, ctx)).value.run
    if run is None or run.run_id != event.run_id:
        return None
    policy, now = _policy(event.model_name, ctx), clock.time()
    began = await trio.to_thread.run_sync(folders.sought, policy, run.run_id, str(event.correlation_id))
    if began is not None:
        seconds = launching.still(began, policy, now)
        if seconds > 0 or not event.last:
            return telling.patience(event.model_name, run.run_id, max(seconds, launching.OVERTIME), last=True)
    return _told(telling.overdue(event.model_name, run, now - run.started), ctx)


@worker.on(RetrainSucceeded)
async def on_success(event: RetrainSucceeded, ctx: Context) -> Sequence[Event | Later]:
    """Promote what the run in flight has made; what an older one made is too late."""
    model = (await _model(event.model_name, ctx)).value
    superseded, previous = model.superseded, model.serving
    run = model.end(event.run_id, event.fence, clock.time())
    if run is None:
        ctx.log.warning("a run that is not in flight has succeeded: not promoted", run_id=event.run_id)
        return ()
    version = event.model_version or run.version
    found: list[Event | Later] = []
    if superseded:
        ctx.log.warning("a model was promoted by hand since it began: not promoted", run_id=event.run_id)
    elif _policy(event.model_name, ctx).promote:
        model.promoted(version, run.run_id, run.fence)
        found.append(telling.promoted(event, run, version, previous))
    return [*found, *_go_on(event.model_name, model, ctx)]


@worker.on(RetrainFailed)
async def on_failure(event: RetrainFailed, ctx: Context) -> Sequence[Event | Later]:
    """The way is free for the next one."""
    model = (await _model(event.model_name, ctx)).value
    if model.end(event.run_id, event.fence, clock.time()) is None:
        return ()
    return _go_on(event.model_name, model, ctx)


@worker.on(ModelPromoted)
async def on_promotion(event: ModelPromoted, ctx: Context) -> None:
    """Also those that were promoted by hand: what is in flight was begun on what was before."""
    (await _model(event.model_name, ctx)).value.promoted(event.model_version, event.run_id, event.fence)


def _told(follows: Event | Later | None, ctx: Context) -> Event | Later | None:
    """How a run has ended is in the log, too: a failure with its reason, which names the file with its output."""
    if isinstance(follows, RetrainFailed):
        ctx.log.warning(
            "a training has failed", model_name=follows.model_name, run_id=follows.run_id, why=follows.error
        )
    elif isinstance(follows, RetrainSucceeded):
        seconds = round(follows.duration, 1)
        ctx.log.info("a training has succeeded", model_name=follows.model_name, run_id=follows.run_id, seconds=seconds)
    return follows


async def _model(name: str, ctx: Context) -> State[Model]:
    # No ttl: a fence that began again would let an old run promote.
    return await ctx.state(name_of("model", name), Model)


def _policy(name: str, ctx: Context) -> Policy:
    launchers: Launchers = ctx.resources
    return launchers.policy(name)
