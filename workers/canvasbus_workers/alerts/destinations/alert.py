"""A notification as an alert of Prometheus: labels that identify the incident, annotations for people. Pure.

Whoever receives alerts knows one by its labels, and takes one with another label for another alert. So severity, which may
rise while an incident is open, cannot be left out (routes are made of it) and must be dealt with: see `alertmanager.py`.
"""

import re
from collections.abc import Mapping
from typing import Any

from canvasbus_workers.alerts.notification import Notification

ALERT_NAME = "CanvasbusIncident"


def labels(notification: Notification) -> dict[str, str]:
    """What identifies it; sorted by name, without empty values, which mean the same as none."""
    given = {_label(name): value for name, value in notification.labels.items()}
    given |= {
        "alertname": ALERT_NAME,
        "incident_id": notification.incident_id,
        "model_name": notification.model_name,
        "severity": notification.severity,
    }
    return {name: value for name, value in sorted(given.items()) if value}


def annotations(notification: Notification) -> dict[str, str]:
    """What people read."""
    found = {
        "summary": notification.title,
        "description": "\n".join(notification.summary),
        "signals": ", ".join(notification.signals),
        "correlation_id": str(notification.correlation_id),
    }
    found |= {_label(word): url for word, url in notification.links.items()}
    return {name: value for name, value in found.items() if value}


def generator_url(notification: Notification) -> str:
    """Where to look: the first link; empty: there is none."""
    return next(iter(notification.links.values()), "")


def fingerprint(of: Mapping[str, str]) -> str:
    """Alertmanager's own name of an alert: FNV-1a, 64 bits, over its sorted labels (`LabelSet.Fingerprint` of
    prometheus/common), in hexadecimal."""
    found = 0xCBF29CE484222325
    for name, value in sorted(of.items()):
        for byte in (*name.encode(), 0xFF, *value.encode(), 0xFF):
            found = ((found ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{found:016x}"


def webhook_body(name: str, notification: Notification) -> dict[str, Any]:
    """What Alertmanager posts to its webhooks, version 4, as if `name` were its receiver and the incident its group."""
    status = "resolved" if notification.kind == "resolved" else "firing"
    identity = labels(notification)
    grouped = {name: identity[name] for name in ("alertname", "incident_id", "model_name") if name in identity}
    said = annotations(notification)
    return {
        "version": "4",
        "groupKey": "{}:{" + ", ".join(f"{key}={quoted(value)}" for key, value in grouped.items()) + "}",
        "truncatedAlerts": 0,
        "status": status,
        "receiver": name,
        "groupLabels": grouped,
        "commonLabels": identity,
        "commonAnnotations": said,
        "externalURL": "",
        "alerts": [
            {
                "status": status,
                "labels": identity,
                "annotations": said,
                "startsAt": notification.since,
                "endsAt": notification.at if status == "resolved" else "0001-01-01T00:00:00Z",
                "generatorURL": generator_url(notification),
                "fingerprint": fingerprint(identity),
            }
        ],
    }


def _label(name: str) -> str:
    """A name as Prometheus takes it: letters, digits and underscores, no digit first."""
    plain = re.sub(r"[^a-zA-Z0-9_]", "_", name)
    return plain if re.match(r"[a-zA-Z_]", plain) else f"_{plain}"


def quoted(text: str) -> str:
    """As the value of a matcher."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
