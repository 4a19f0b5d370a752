"""To a Prometheus Alertmanager, `POST /api/v2/alerts`. Pure: a notification in, requests out.

An alert ends at its `endsAt`; an open one that does not say it is ended by Alertmanager's `resolve_timeout`, five minutes.
Incidents are told when something changes, so each alert says: not before `hold` seconds from now.

Severity is a label, routes are made of it, and labels are identity: with a rise there would be two alerts, the milder one
for ever. So an escalation and an end first ask which alerts of the incident are open, and end those. Nothing needs to be
remembered of what was told before. (Ending every severity there is, unasked, was tried: those that never were are told to
people as resolved, beside the one that is.)
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import msgspec
from msgspec import Struct

from canvasbus import clock
from canvasbus_workers.alerts.destinations.alert import ALERT_NAME, annotations, generator_url, labels, quoted
from canvasbus_workers.alerts.destinations.message import Form, Message, Question
from canvasbus_workers.alerts.notification import Notification

PATH = "/api/v2/alerts"
SAMPLE = 300.0
"""Seconds after which a test is over by itself."""


def endpoint(url: str) -> str:
    """The URL to post to, by that of the front page."""
    return url if url.endswith(PATH) else url.rstrip("/") + PATH


def question(notification: Notification) -> Question | None:
    """Which alerts of the incident are open; None: there can be none that are to be ended."""
    if notification.kind not in ("escalated", "resolved"):
        return None
    identity = {"alertname": ALERT_NAME, "incident_id": notification.incident_id}
    return Question(urlencode([("filter", f"{name}={quoted(value)}") for name, value in identity.items()]))


class Open(Struct):
    """An alert that is open, as far as it matters here."""

    labels: dict[str, str]


def alerts(notification: Notification, others: Sequence[Open], now: datetime, hold: float) -> list[dict[str, Any]]:
    """The alert, and the ends of others that are open. `hold`: seconds."""
    open_until = max(now, notification.at) + timedelta(seconds=SAMPLE if notification.kind == "test" else hold)
    over = max(notification.at, notification.since)  # an alert that ends before it starts is refused
    identity = labels(notification)
    ends = [(one.labels, over) for one in others if one.labels != identity]
    ends.append((identity, over if notification.kind == "resolved" else open_until))
    return [
        {
            "labels": named,
            "annotations": annotations(notification),
            "startsAt": notification.since,
            "endsAt": end,
            "generatorURL": generator_url(notification),
        }
        for named, end in ends
    ]


def form(hold: float) -> Form:
    """How an Alertmanager is told."""

    def make(notification: Notification, answer: bytes) -> Message:
        others = msgspec.json.decode(answer, type=list[Open]) if question(notification) else []
        body = msgspec.json.encode(alerts(notification, others, clock.now(), hold))
        return Message(body, {"Content-Type": "application/json"})

    return Form(make, question)
