"""The drift worker's own event: nobody else needs to know it."""

from canvasbus import Event, event
from canvasbus.events import Count


@event("drift.window_due", key="model_name")
class WindowDue(Event):
    """A window has been open for as long as it may. Published by its timer."""

    model_name: str
    """The model."""
    model_version: str = ""
    """The version that answered."""
    segment: str = ""
    """The segment of the traffic."""
    serial: Count = 0
    """Which window of these it is about: a timer that comes too late finds another one."""
