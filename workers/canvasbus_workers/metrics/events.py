"""The metrics worker's own event: nobody else needs to know it."""

from canvasbus import Event, event
from canvasbus.events import Count


@event("metrics.report_due", key="model_name")
class ReportDue(Event):
    """A metric should have been reported by now. Published by its timer, which each report sets anew."""

    model_name: str
    """The model."""
    metric: str = ""
    """Its name."""
    segment: str = ""
    """The segment of the traffic."""
    rule: str = ""
    """Whose patience is at its end."""
    serial: Count = 0
    """How many reports there were when the timer was set: one that came since makes it void."""
