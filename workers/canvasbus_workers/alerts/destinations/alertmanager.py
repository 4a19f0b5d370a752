"""To a Prometheus Alertmanager, `POST /api/v2/alerts`. Pure: a notification in, a request out.

An alert ends at its `endsAt`; an open one that does not say it is ended by Alertmanager's `resolve_timeout`, five minutes.
Incidents are told when something changes, so each alert says: not before `hold` seconds from now.

Severity is a label, and labels are identity: with a rise there would be two alerts, the milder one for ever. So every
notification also ends those that the incident may have had with a lower severity. Ending one that never was is no harm:
Alertmanager tells nobody about it. It needs no memory of what was told before, and none is told twice when it is lost.
"""

from datetime import datetime, timedelta
from typing import Any, get_args

import msgspec

from canvasbus import clock
from canvasbus.events import Severity
from canvasbus_workers.alerts.destinations.alert import annotations, generator_url, labels
from canvasbus_workers.alerts.destinations.message import Make, Message
from canvasbus_workers.alerts.notification import Notification

PATH = "/api/v2/alerts"
SAMPLE = 300.0
"""Seconds after which a test is over by itself."""
_MILDEST_FIRST: tuple[Severity, ...] = get_args(Severity)


def endpoint(url: str) -> str:
    """The URL to post to, by that of the front page."""
    return url if url.endswith(PATH) else url.rstrip("/") + PATH


def alerts(notification: Notification, now: datetime, hold: float) -> list[dict[str, Any]]:
    """The alert, and before it the ends of those with a lower severity. `hold`: seconds."""
    open_until = max(now, notification.at) + timedelta(seconds=SAMPLE if notification.kind == "test" else hold)
    over = max(notification.at, notification.since)  # an alert that ends before it starts is refused
    rank = _MILDEST_FIRST.index(notification.severity)
    ends = dict.fromkeys(_MILDEST_FIRST[:rank], over)
    ends[notification.severity] = over if notification.kind == "resolved" else open_until
    return [
        {
            "labels": labels(notification, severity),
            "annotations": annotations(notification),
            "startsAt": notification.since,
            "endsAt": end,
            "generatorURL": generator_url(notification),
        }
        for severity, end in ends.items()
    ]


def maker(hold: float) -> Make:
    """Makes requests of notifications."""

    def make(notification: Notification) -> Message:
        body = msgspec.json.encode(alerts(notification, clock.now(), hold))
        return Message(body, {"Content-Type": "application/json"})

    return make
