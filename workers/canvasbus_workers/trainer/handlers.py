"""What the trainer learns from, and the runs that it answers.

Labelled images are held in this process, as the demo needs no more: run one trainer. One that was started again learns
from the labels that come then, and a run for which there are none fails in plain words.
"""

import threading
import zlib
from collections.abc import Sequence

from canvasbus import Event, clock
from canvasbus.events import LabelsRecorded, ModelPromoted, RetrainFailed, RetrainStarted
from canvasbus.worker import Reject, RetryLater, Worker
from canvasbus_workers.artifacts import ArtifactError
from canvasbus_workers.tagging import Network
from canvasbus_workers.trainer.curriculum import Curriculum
from canvasbus_workers.trainer.edge import Archive
from canvasbus_workers.trainer.job import train

worker = Worker("trainer")
archive = Archive()
_models: dict[str, Curriculum] = {}
_trained: dict[str, Network] = {}
"""Run → what it made, until that is promoted."""
_networks: dict[str, Network] = {}
"""Model → what is in service."""
_lock = threading.Lock()

LABELS_ON_THEIR_WAY = 0.5
"""Seconds after which a run that came before any labels is looked at again."""
PATIENCE = 60.0
"""Seconds for which it waits for them."""


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


@worker.on(ModelPromoted, concurrency=1)
def adopt(event: ModelPromoted) -> None:
    """The next one is compared with what is in service."""
    with _lock:
        network = _trained.pop(event.run_id, None)
        if network is not None:
            _networks[event.model_name] = network


@worker.on(RetrainStarted, concurrency=1, timeout=3600)
def run_training(event: RetrainStarted) -> Sequence[Event]:
    """Train for real. A plain function: it runs in a worker thread."""
    began = clock.monotonic()
    with _lock:
        curriculum = curriculum_of(event.model_name)
        if not curriculum.ready:
            if clock.time() < event.occurred_on.timestamp() + PATIENCE:
                raise RetryLater(LABELS_ON_THEIR_WAY, "no labelled images have come yet")
            return [_failed(event, "no labelled images have come since the trainer was started", 0.0)]
        regime = curriculum.begin(event.run_id, event.windows, event.episode_id)
        training, validation, test = curriculum.training(), curriculum.validation(), frozenset(curriculum.test)
        previous = _networks.get(event.model_name)
    try:
        seed = zlib.crc32(event.run_id.encode())
        trained = train(training, validation, test, seed, regime, previous)
        if trained.refusal:
            return [_failed(event, trained.refusal, clock.monotonic() - began)]
        found = archive.publishable(event, trained, clock.monotonic() - began)
    except Exception as error:
        return [_failed(event, f"{type(error).__name__}: {error}", clock.monotonic() - began)]
    with _lock:
        _trained[event.run_id] = trained.network
    return found


def _failed(event: RetrainStarted, error: str, duration: float) -> RetrainFailed:
    return RetrainFailed(
        model_name=event.model_name,
        run_id=event.run_id,
        model_version=event.model_version,
        error=error[:500],
        duration=duration,
        fence=event.fence,
    )
