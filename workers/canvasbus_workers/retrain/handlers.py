"""What starts a training, and what it learns from.

Deciding and training are two steps with an event between them: retrain.started is committed before the first epoch, and
the worker that reads it trains. Whoever watches sees the start, and a worker that dies in the middle hands the run over.

Only a loss of quality starts a training by itself: a critical breach, or a drift that is critical at once. Input drift alone does not;
most of it costs no accuracy, and new labels are what a training needs.

Labelled images are held in this process for now, until durable state comes (`ctx.state`): run one retrain process. A
restarted one cannot train a run that it finds (retrain.failed says so) and learns from the labels that come then.
"""

import threading
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from uuid import UUID

from canvasbus import Event
from canvasbus.events import (
    DriftDetected,
    LabelsRecorded,
    MetricThresholdBreached,
    RetrainFailed,
    RetrainRequested,
    RetrainStarted,
)
from canvasbus.worker import Context, Reject, RetryLater, Worker
from canvasbus_workers.artifacts import ArtifactError
from canvasbus_workers.retrain.curriculum import Curriculum, Not, Start
from canvasbus_workers.retrain.edge import Archive
from canvasbus_workers.retrain.job import train
from canvasbus_workers.tagging import Network

worker = Worker("retrain")
archive = Archive()
_models: dict[str, Curriculum] = {}
_starts: dict[str, Start] = {}
_networks: dict[str, Network] = {}
_decided: OrderedDict[UUID, RetrainStarted] = OrderedDict()
"""Event id → the start that it led to. When that could not be committed, for example because others took this worker for
dead, the event comes again, and the training that is in flight is its own."""
_lock = threading.Lock()

KEPT_DECISIONS = 1000
LABELS_ON_THEIR_WAY = 0.5
"""Seconds after which a request that came before any labels is looked at again."""


def curriculum_of(model_name: str) -> Curriculum:
    """The model's labelled images."""
    return _models.setdefault(model_name, Curriculum())


@worker.on(LabelsRecorded, concurrency=1)
def learn(event: LabelsRecorded) -> None:
    """Keep what may be learnt from, and remember what may not."""
    if event.split == "test":
        with _lock:
            curriculum_of(event.model_name).judge_by(event.groups or event.item_ids)
        return
    try:
        examples = archive.examples(event)
    except ArtifactError as error:
        raise Reject(str(error)) from error
    if examples is not None:
        with _lock:
            curriculum_of(event.model_name).add(event.batch_id, event.split, examples)


@worker.on(RetrainRequested, concurrency=1)
async def on_request(event: RetrainRequested, ctx: Context) -> RetrainStarted | None:
    """Somebody wants a new version. Waits for the first labels."""
    started = _decide(event.model_name, event.reason or "requested", event.episode_id, 0, ctx)
    if started is None and not curriculum_of(event.model_name).ready:
        raise RetryLater(LABELS_ON_THEIR_WAY, "no labelled images have come yet")
    return started


@worker.on(DriftDetected, concurrency=1)
async def on_drift(event: DriftDetected, ctx: Context) -> RetrainStarted | None:
    """Drift that is known to hurt when it is detected. One that turns out to hurt later (escalated) is left to the breach
    that says so: which of the two came first would decide what the training is for, and that must not be chance."""
    if event.severity != "critical" or event.state == "escalated":
        return None
    reason = f"drift, {event.drift_type} = {event.drift_score:.2f}"
    return _decide(event.model_name, reason, event.episode_id, event.window_number - event.first_window + 1, ctx)


@worker.on(MetricThresholdBreached, concurrency=1)
async def on_breach(event: MetricThresholdBreached, ctx: Context) -> RetrainStarted | None:
    """Quality below its bound, again and again while it stays there."""
    if event.severity != "critical":
        return None
    reason = f"{event.metric} {event.value:.3f}, expected {event.bound:.3f}"
    return _decide(event.model_name, reason, event.episode_id, event.window_number - event.first_window + 1, ctx)


def _decide(model_name: str, reason: str, episode_id: str, windows: int, ctx: Context) -> RetrainStarted | None:
    with _lock:
        if (known := _decided.get(ctx.envelope.id)) is not None:
            return known
        decision = curriculum_of(model_name).decide(windows, episode_id)
        if isinstance(decision, Not):
            ctx.log.info("no training", model_name=model_name, why=decision.why)
            return None
        run_id = f"{model_name}/{decision.version}"
        _starts[run_id] = decision
        started = _decided[ctx.envelope.id] = RetrainStarted(
            model_name=model_name, run_id=run_id, model_version=decision.version, reason=reason, episode_id=episode_id
        )
        if len(_decided) > KEPT_DECISIONS:
            _decided.popitem(last=False)
    return started


@worker.on(RetrainStarted, concurrency=1, timeout=3600)
def run_training(event: RetrainStarted) -> Sequence[Event]:
    """Train for real. A plain function: it runs in a worker thread."""
    from canvasbus import clock

    began = clock.monotonic()
    with _lock:
        curriculum = curriculum_of(event.model_name)
        start = _starts.get(event.run_id)
        if start is None:
            return [_failed(event, "its labelled images were lost when the worker restarted", 0.0)]
        training, validation, test = curriculum.training(), curriculum.validation(), frozenset(curriculum.test)
        previous = _networks.get(event.model_name)
    try:
        seed = zlib.crc32(event.run_id.encode())
        trained = train(training, validation, test, seed, start.regime, previous)
        duration = clock.monotonic() - began
        found = archive.publishable(event, trained, start.previous, duration) if not trained.refusal else []
    except Exception as error:
        return _ended(event, curriculum, f"{type(error).__name__}: {error}", clock.monotonic() - began)
    if trained.refusal:
        return _ended(event, curriculum, trained.refusal, duration)
    with _lock:
        curriculum.finished(event.model_version, promoted=True)
        _networks[event.model_name] = trained.network
    return found


def _ended(event: RetrainStarted, curriculum: Curriculum, error: str, duration: float) -> Sequence[Event]:
    with _lock:
        curriculum.finished(event.model_version, promoted=False)
    return [_failed(event, error, duration)]


def _failed(event: RetrainStarted, error: str, duration: float) -> RetrainFailed:
    return RetrainFailed(
        model_name=event.model_name,
        run_id=event.run_id,
        model_version=event.model_version,
        error=error[:500],
        duration=duration,
    )
