"""Where people are told: Slack, webhooks, an Alertmanager.

    settings (TOML) ─► opened: secrets read, clients open
    Notification ─► posted: slack · webhook · alertmanager (pure) ─► Message ─► outside.client ─► answer.judge (pure)

A destination that cannot take a notification says whose move is next: Reject (dead letter), RetryLater, Gone (nobody calls
it again), Undelivered (try again, counted). The README beside this file has the settings.
"""

from canvasbus_workers.alerts.destinations.answer import Undelivered
from canvasbus_workers.alerts.destinations.opened import Destinations
from canvasbus_workers.alerts.destinations.settings import Settings, read

__all__ = ["Destinations", "Settings", "Undelivered", "read"]
