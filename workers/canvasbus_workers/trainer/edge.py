"""What the trainer touches: the artifact store, to read labelled images and to write models and references."""

import numpy as np

from canvasbus import Event
from canvasbus.events import LabelsRecorded, ReferenceRegistered, RetrainStarted, RetrainSucceeded
from canvasbus_workers.artifacts import ArtifactError, ArtifactStore
from canvasbus_workers.naming import name_of
from canvasbus_workers.trainer.job import Trained
from canvasbus_workers.trainer.training import Examples


class Archive:
    """Reads examples, writes what a training made."""

    def __init__(self, store: ArtifactStore | None = None) -> None:
        self.store = store or ArtifactStore()

    def examples(self, event: LabelsRecorded) -> Examples | None:
        """The labelled images; None when the event has labels only. Raises ArtifactError when they do not fit."""
        if event.images is None:
            return None
        images = self.store.load(event.images).get("images")
        groups = event.groups or event.item_ids
        if images is None or images.ndim != 3 or not len(images) == len(event.labels) == len(groups):
            shape = None if images is None else images.shape
            raise ArtifactError(f"labels {event.batch_id}: {len(event.labels)} labels, images of shape {shape}")
        return Examples(images, np.asarray(event.labels, np.int64), groups)

    def publishable(self, started: RetrainStarted, trained: Trained, duration: float) -> list[Event]:
        """Store everything and return the events that tell of it: references first, so that no window meets a version
        whose references are still on their way."""
        name, version = started.model_name, started.model_version
        model = self.store.put(trained.network.arrays())
        events: list[Event] = [
            ReferenceRegistered(
                model_name=name,
                model_version=version,
                reference_id=name_of(name, version, reference.regime),
                regime=reference.regime,
                sample=self.store.put(reference.arrays),
                items=reference.items,
                correct=reference.correct,
            )
            for reference in trained.references
        ]
        manifest = {
            "train_groups": np.array(trained.train_groups, str),
            "validation_groups": np.array(trained.validation_groups, str),
        }
        events.append(
            RetrainSucceeded(
                model_name=name,
                run_id=started.run_id,
                model_version=version,
                model=model,
                manifest=self.store.put(manifest),
                train_items=trained.train_items,
                duration=duration,
                metrics=trained.metrics,
                fence=started.fence,
            )
        )
        return events
