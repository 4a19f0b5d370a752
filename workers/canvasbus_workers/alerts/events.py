"""The worker's own events: timers, and one event for each notification, so that a destination that is away holds up
nothing but what it is to be told."""

from canvasbus import Event, event
from canvasbus_workers.alerts.notification import Notification


@event("alert.incident_due", key="group")
class IncidentDue(Event):
    """A timer: time alone may change the incident of a group."""

    group: str


@event("alert.desk_due")
class DeskDue(Event):
    """A timer: somebody is to be told, or may be told now."""


@event("alert.notification_due", key="destination")
class NotificationDue(Event):
    """One destination is to be told about one incident."""

    destination: str
    """Its name in [workers.alerts.destinations]."""
    number: int
    """Grows with each notification about an incident: what was overtaken by a newer one is not told any more."""
    notification: Notification
    """What; without the idempotency key, which is the id of this event."""
