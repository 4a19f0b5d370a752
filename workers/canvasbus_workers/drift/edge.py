"""What the drift worker touches: the artifact store, for the samples behind references. And from packed to arrays."""

from canvasbus.events import ObservationsRecorded, ReferenceRegistered
from canvasbus_workers.artifacts import ArtifactError, ArtifactStore, unpack
from canvasbus_workers.drift.references import Arrays, Reference


class Samples:
    """Loads references."""

    def __init__(self, store: ArtifactStore | None = None) -> None:
        self.store = store or ArtifactStore()

    def load(self, event: ReferenceRegistered) -> Reference:
        """The prepared reference. Raises ArtifactError when its sample cannot be loaded or is empty."""
        if event.sample is None:
            raise ArtifactError(f"reference {event.reference_id} has no sample")
        arrays = self.store.load(event.sample)
        lengths = {len(array) for array in arrays.values()}
        if len(lengths) != 1 or 0 in lengths:
            raise ArtifactError(f"reference {event.reference_id}: arrays of {sorted(lengths)} rows")
        return Reference(event.reference_id, event.regime, arrays, items=event.items, correct=event.correct)


def arrays_of(event: ObservationsRecorded) -> Arrays:
    """The arrays of a batch. Raises ArtifactError when one does not have a row for each item."""
    arrays = {name: unpack(packed) for name, packed in event.arrays.items()}
    for name, array in arrays.items():
        if array.ndim == 0 or len(array) != len(event.item_ids):
            raise ArtifactError(
                f"batch {event.batch_id}: {name} has the shape {array.shape}, {len(event.item_ids)} items"
            )
    return arrays
