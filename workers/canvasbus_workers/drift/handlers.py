"""What the drift worker listens to.

The windows and episodes of a model are held in this process for now: run one drift process, or one for each set of
models, until durable state comes (`ctx.state`). What a restart costs: the references, so that windows are in warmup
until the next ones are registered; and an open episode, which is not resolved but opened again. Redeliveries cost
nothing, since a batch that comes again gets the same answer.

The handlers are plain functions, one at a time under one lock: a few milliseconds of numpy each.
"""

import threading

from canvasbus import Event
from canvasbus.events import LabelsRecorded, ObservationsRecorded, ReferenceRegistered
from canvasbus.worker import Reject, Worker
from canvasbus_workers.artifacts import ArtifactError
from canvasbus_workers.drift.edge import Samples, arrays_of
from canvasbus_workers.drift.monitor import Monitor

worker = Worker("drift")
samples = Samples()
_monitors: dict[str, Monitor] = {}
_lock = threading.Lock()


def monitor_of(model_name: str) -> Monitor:
    """The model's monitor, made when it is first heard of."""
    return _monitors.setdefault(model_name, Monitor(model_name))


@worker.on(ReferenceRegistered, concurrency=1)
def register(event: ReferenceRegistered) -> None:
    """Another regime that the model's windows may match."""
    try:
        reference = samples.load(event)
    except ArtifactError as error:
        raise Reject(str(error)) from error
    with _lock:
        monitor_of(event.model_name).register(event.model_version, reference)


@worker.on(ObservationsRecorded, concurrency=1)
def evaluate(event: ObservationsRecorded) -> tuple[Event, ...]:
    """Test a window."""
    if len(event.predictions) not in (0, len(event.item_ids)):
        raise Reject(f"batch {event.batch_id}: {len(event.predictions)} predictions for {len(event.item_ids)} items")
    try:
        arrays = arrays_of(event)
    except ArtifactError as error:
        raise Reject(str(error)) from error
    answers = dict(zip(event.item_ids, event.predictions or (-1,) * len(event.item_ids), strict=True))
    with _lock:
        monitor = monitor_of(event.model_name)
        return monitor.observe(event.batch_id, event.model_version, answers, arrays, event.occurred_on)


@worker.on(LabelsRecorded, concurrency=1)
def judge(event: LabelsRecorded) -> tuple[Event, ...]:
    """Judge answers by labels. Only the test split: what may be learnt from says nothing about quality."""
    if event.split != "test":
        return ()
    if len(event.labels) != len(event.item_ids):
        raise Reject(f"labels {event.batch_id}: {len(event.labels)} labels for {len(event.item_ids)} items")
    with _lock:
        labels = dict(zip(event.item_ids, event.labels, strict=True))
        return monitor_of(event.model_name).label(event.batch_id, labels)
