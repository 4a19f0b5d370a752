"""A model server as the drift worker sees it: what it publishes of a model, and what it hears."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from canvasbus.events import LabelsRecorded, ObservationsRecorded, ReferenceRegistered
from canvasbus_workers.drift import record


class Studio:
    """A model server, its references and its labels."""

    def __init__(self, model: str, seed: int = 1) -> None:
        self.model = model
        self.random = np.random.default_rng(seed)
        self.batches = 0

    def reference(self, shift: float = 0.0, version: str = "v1", **options: Any) -> ReferenceRegistered:
        arrays = self.arrays(1000, shift)
        correct = np.arange(1000) % 25 > 0  # .96
        return record.reference(self.model, version, regime=f"shift {shift}", correct=correct, **arrays, **options)

    def arrays(self, n: int, shift: float = 0.0) -> dict[str, np.ndarray]:
        return {
            "sharpness": self.random.standard_normal(n) + shift,
            "embedding": self.random.standard_normal((n, 12)) + shift,
        }

    def batch(self, n: int = 100, shift: float = 0.0, version: str = "v1", **options: Any) -> ObservationsRecorded:
        name = options.pop("batch_id", f"b{self.batches}")
        self.batches += 1
        ids = [f"{name}/{at}" for at in range(n)]
        predictions = [1] * n
        return record.observations(
            self.model,
            ids=ids,
            version=version,
            batch_id=name,
            predictions=predictions,
            **self.arrays(n, shift),
            **options,
        )

    def labels(self, batch: ObservationsRecorded, right: int, ids: Sequence[str] | None = None) -> LabelsRecorded:
        names = list(ids or batch.item_ids)
        truth = [1 if at < right else 0 for at in range(len(names))]
        return record.labels(self.model, ids=names, truth=truth, batch_id=f"labels of {batch.batch_id}")
