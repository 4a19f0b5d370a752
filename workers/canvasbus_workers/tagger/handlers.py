"""Images in, observations out; another model when one is promoted.

The handlers are plain functions and run in worker threads: a forward pass must not hold up the loop.
"""

import numpy as np

from canvasbus.events import ModelPromoted, ObservationsRecorded
from canvasbus.worker import Context, Reject, RetryLater, Worker
from canvasbus_workers.artifacts import ArtifactError, pack
from canvasbus_workers.tagger.edge import Shelf
from canvasbus_workers.tagger.events import ImagesSubmitted
from canvasbus_workers.tagging import observe

worker = Worker("tagger")
shelf = Shelf()

NO_MODEL_YET = 0.5
"""Seconds after which a batch that came before any model is looked at again."""


@worker.on(ModelPromoted, concurrency=1)
def adopt(event: ModelPromoted, ctx: Context) -> None:
    """Swap the model, once its weights are loaded and verified."""
    shelf.adopt(event)
    ctx.log.info("model in service", model_name=event.model_name, model_version=event.model_version)


@worker.on(ImagesSubmitted, concurrency=1)
def tag(event: ImagesSubmitted) -> ObservationsRecorded:
    """Answer a batch with the model in service."""
    served = shelf.current(event.model_name)
    if served is None:
        raise RetryLater(NO_MODEL_YET, f"no version of {event.model_name} has been promoted yet")
    version, network = served
    try:
        seen = observe(network, shelf.images(event))
    except ArtifactError as error:
        raise Reject(str(error)) from error
    return ObservationsRecorded(
        model_name=event.model_name,
        model_version=version,
        batch_id=event.batch_id,
        item_ids=event.item_ids,
        predictions=tuple(np.argmax(seen["probabilities"], axis=1).tolist()),
        arrays={name: pack(array) for name, array in seen.items()},
    )
