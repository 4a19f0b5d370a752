"""The retrain worker's own events: nobody else needs to know them."""

from canvasbus import Event, event
from canvasbus.events import Count


@event("retrain.due", key="model_name")
class RetrainDue(Event):
    """It is time to look whether a training may start. Published by its timer."""

    model_name: str
    """The model."""


@event("retrain.overdue", key="model_name")
class RunOverdue(Event):
    """A run should have ended by now. Published by its timer."""

    model_name: str
    """The model."""
    run_id: str = ""
    """As in `retrain.started`."""
    last: bool = False
    """Whoever adopts the run has had time to say how it ended."""


@event("retrain.check", key="model_name")
class RunCheck(Event):
    """It is time to ask where a run stands. Published by its timer."""

    model_name: str
    """The model."""
    run_id: str = ""
    """As in `retrain.started`."""
    model_version: str = ""
    """As in `retrain.started`."""
    fence: Count = 0
    """As in `retrain.started`."""
    external_id: str = ""
    """What the other side calls it."""
    launched: float = 0.0
    """When it was launched, in seconds since 1970."""
