"""What the drift worker can be told: the table [workers.drift] of canvasbus.toml. How windows are judged is the library's
`Policy`; the rest is about when windows close and for how long things are kept."""

from typing import Annotated

from msgspec import Meta

from canvasbus_workers.monitoring.policy import Policy

Seconds = Annotated[float, Meta(gt=0, le=366 * 86400)]


class Settings(Policy, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table [workers.drift]."""

    window_items: Annotated[int, Meta(ge=10, le=10_000_000)] = 100
    """Rows with which a window is full; the batch that fills it belongs to it as a whole."""
    window_seconds: Seconds = 300.0
    """Seconds after its first batch in which a window is closed although it is not full; with fewer than `min_items` rows
    it goes on until it has as many."""
    label_items: Annotated[int, Meta(ge=1)] = 20
    """Labelled rows of one kind (version, segment, matching reference) that are judged together at least."""
    label_seconds: Seconds = 7 * 86400.0
    """Seconds for which answers wait for their labels, and labels for their answers."""
    keep_seconds: Seconds = 30 * 86400.0
    """Seconds after which what is known of a model, or of a segment, that publishes nothing is forgotten."""
