"""What the drift worker touches: the artifact store, for the samples behind references. And from packed to arrays."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from canvasbus.events import ObservationsRecorded
from canvasbus_workers.artifacts import ArtifactError, ArtifactStore, unpack
from canvasbus_workers.drift.book import Registered
from canvasbus_workers.drift.record import repeated
from canvasbus_workers.monitoring.reference import PROBABILITIES, Reference, ShapeError

KEPT_REFERENCES = 64
"""In memory: a few megabytes each at most."""


class Samples:
    """Loads references, and keeps those that were used last."""

    def __init__(self, store: ArtifactStore | None = None) -> None:
        self.store = store or ArtifactStore()
        self._kept: OrderedDict[Registered, Reference] = OrderedDict()

    def load(self, one: Registered) -> Reference:
        """The prepared reference. Raises ArtifactError when its sample cannot be loaded or is no table."""
        if one in self._kept:
            self._kept.move_to_end(one)
            return self._kept[one]
        if one.sample is None:
            raise ArtifactError(f"reference {one.reference_id} has no sample")
        arrays = self.store.load(one.sample)
        try:
            reference = Reference(
                arrays,
                one.reference_id,
                regime=one.regime,
                segment=one.segment,
                items=one.items,
                right=one.correct,
                names=dict(one.columns),
                categorical=frozenset(one.categorical),
            )
        except ShapeError as error:
            raise ArtifactError(f"reference {one.reference_id}: {error}") from error
        self._kept[one] = reference
        if len(self._kept) > KEPT_REFERENCES:
            self._kept.popitem(last=False)
        return reference

    def load_all(self, registered: Sequence[Registered]) -> list[Reference]:
        """All of them."""
        return [self.load(one) for one in registered]


def arrays_of(event: ObservationsRecorded) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a batch, its predictions among them. Raises ArtifactError when one lacks a row for each item."""
    items = len(event.item_ids)
    if len(event.predictions) not in (0, items):
        raise ArtifactError(f"batch {event.batch_id}: {len(event.predictions)} predictions for {items} items")
    if event.predictions and not -(2**63) <= min(event.predictions) <= max(event.predictions) < 2**63:
        raise ArtifactError(f"batch {event.batch_id}: a prediction is beyond 64 bits")
    arrays: Mapping[str, npt.NDArray[Any]] = {name: unpack(packed) for name, packed in event.arrays.items()}
    for name, array in arrays.items():
        if array.ndim not in (1, 2) or len(array) != items:
            raise ArtifactError(f"batch {event.batch_id}: {name} has the shape {array.shape}, {items} items")
        if name == PROBABILITIES and (array.ndim == 1 or array.shape[1] < 2):
            raise ArtifactError(f"batch {event.batch_id}: {name} has the shape {array.shape}: send ({items}, classes)")
    if (twice := repeated(event.item_ids)) is not None:
        raise ArtifactError(f"batch {event.batch_id}: the item id {twice!r} is there twice: give each answer its own")
    found = dict(arrays)
    if event.predictions:
        found.setdefault("predictions", np.asarray(event.predictions, np.float64))
    return found
