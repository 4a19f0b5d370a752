"""To any HTTP endpoint, signed by the rules of Standard Webhooks. Pure: a notification in, a request out.

    webhook-id         the notification's idempotency key, the same on every attempt: receivers may drop a repetition
    webhook-timestamp  of the attempt, in seconds, so that receivers may refuse what somebody recorded
    webhook-signature  v1,BASE64 for each secret, with a blank between: HMAC-SHA256 of `id.timestamp.body`

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import base64
import binascii
import hmac
from collections.abc import Sequence
from typing import Any, Literal
from urllib.parse import quote

import msgspec

from canvasbus import clock
from canvasbus.cloudevents import STRUCTURED_TYPE
from canvasbus_workers.alerts.destinations.alert import webhook_body
from canvasbus_workers.alerts.destinations.message import Form, Message
from canvasbus_workers.alerts.notification import Notification
from canvasbus_workers.outside.secret import Secret

SOURCE = "canvasbus/alerts"
SHORTEST_KEY = 24
"""Bytes, by the specification."""


class Key:
    """A secret to sign with; it shows itself as ***."""

    __slots__ = ("_bytes",)

    def __init__(self, secret: Secret) -> None:
        """From `whsec_BASE64`. Raises ValueError, which does not repeat it."""
        text = secret.reveal().removeprefix("whsec_").rstrip("=")
        try:
            self._bytes = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("is not whsec_ and base64") from None
        if len(self._bytes) < SHORTEST_KEY:
            raise ValueError(f"has {len(self._bytes)} bytes, and {SHORTEST_KEY} are needed")

    def __repr__(self) -> str:
        return "***"

    def sign(self, content: bytes) -> str:
        """One signature."""
        return "v1," + base64.b64encode(hmac.digest(self._bytes, content, "sha256")).decode("ascii")


def signed(message_id: str, timestamp: int, body: bytes, keys: Sequence[Key]) -> dict[str, str]:
    """The three headers; without keys the first two. What stands before the body is delimited by dots, so the id has none."""
    name = quote(message_id, safe=":").replace(".", "%2E")
    headers = {"webhook-id": name, "webhook-timestamp": str(timestamp)}
    if keys:
        content = f"{name}.{timestamp}.".encode() + body
        headers["webhook-signature"] = " ".join(key.sign(content) for key in keys)
    return headers


def cloud_event(notification: Notification) -> dict[str, Any]:
    """The notification as a CloudEvents 1.0 object: `data` has its fields, `type` its kind."""
    event: dict[str, Any] = {
        "specversion": "1.0",
        "id": notification.idempotency_key,
        "source": SOURCE,
        "type": f"alert.{notification.kind}",
        "time": notification.at,
        "datacontenttype": "application/json",
        "correlationid": notification.correlation_id,
        "data": notification,
    }
    if notification.model_name:  # an attribute is never empty
        event["subject"] = notification.model_name
    return event


def form(name: str, body: Literal["cloudevents", "alertmanager"], keys: Sequence[Key]) -> Form:
    """How an endpoint is told. `name`: of the destination."""

    def make(notification: Notification, _: bytes) -> Message:
        if body == "cloudevents":
            kind, content = STRUCTURED_TYPE, msgspec.json.encode(cloud_event(notification))
        else:
            kind, content = "application/json", msgspec.json.encode(webhook_body(name, notification))
        headers = signed(notification.idempotency_key, clock.time_ns() // 10**9, content, keys)
        return Message(content, {"Content-Type": kind, **headers})

    return Form(make)
