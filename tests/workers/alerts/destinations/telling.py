"""A notification, and what a test needs to send it to somebody."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from canvasbus_workers.alerts.destinations import Destinations, read
from canvasbus_workers.alerts.notification import Notification

LOCAL = {"allow": ["127.0.0.1"], "plain_http": True}
"""Settings without which no test server is called."""
ABOUT: dict[str, Any] = {
    "kind": "opened",
    "incident_id": "StyleGAN-Canvas-v3/0123456789ab",
    "model_name": "StyleGAN-Canvas-v3",
    "severity": "critical",
    "title": "StyleGAN-Canvas-v3: drift, mmd = 0.42",
    "signals": ("drift:e1", "accuracy:e2"),
    "since": datetime(2026, 11, 26, 10, 0, tzinfo=UTC),
    "at": datetime(2026, 11, 26, 10, 5, tzinfo=UTC),
    "summary": ("embedding: mmd 0.42 > 0.1", "accuracy 0.81, expected 0.9"),
    "labels": {"model_name": "StyleGAN-Canvas-v3", "severity": "critical", "group": "studio"},
    "correlation_id": UUID(int=7),
    "idempotency_key": "0192-opened-ops",
    "links": {"dashboard": "https://studio.example/m?a=1&b=2"},
}


def about(**changes: Any) -> Notification:
    """A notification."""
    return Notification(**ABOUT | changes)


async def tell(settings: Mapping[str, Any], notification: Notification | None = None, **options: Any) -> Destinations:
    """Send one notification to the destination `ops` with these settings; the closed destinations."""
    async with Destinations(read({"ops": settings}), **options) as destinations:
        await destinations["ops"].send(notification or about())
    return destinations
