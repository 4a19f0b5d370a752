"""What the tagger is asked. Its own event: whoever wants images tagged declares nothing but this dependency."""

from canvasbus import Event, event
from canvasbus.events import ArtifactRef


@event("images.submitted", key="model_name")
class ImagesSubmitted(Event):
    """Images to be tagged with their style. Answered by one observations.recorded with the same batch_id."""

    model_name: str
    """The model that is to answer."""
    batch_id: str = ""
    """Unique for the batch."""
    item_ids: tuple[str, ...] = ()
    """One id for each image."""
    images: ArtifactRef | None = None
    """An .npz with the array `images` (n, height, width), float32 in 0 to 1, rows as in `item_ids`."""
