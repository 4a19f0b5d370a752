"""The outside: where people are told. Without any destination in canvasbus.toml that is the log, one structured line for
each notification; the others lie in `destinations`, and are loaded where one is configured."""

import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import structlog
from msgspec import Struct

from canvasbus import config
from canvasbus.errors import ConfigError
from canvasbus_workers.alerts.notification import Destination, Notification

Table = Mapping[str, Mapping[str, Any]]
"""[workers.alerts.destinations.NAME], as it lies in the file."""


class LogSettings(Struct, tag_field="kind", tag="log", forbid_unknown_fields=True):
    """The table of a log: it has none but its kind."""


@dataclass(frozen=True)
class Log:
    """Writes to the log of the worker's process: what is new as an error or a warning, what is over as information."""

    name: str

    async def send(self, notification: Notification) -> None:
        """Write a line."""
        log = structlog.get_logger("canvasbus.alerts")
        loud = log.error if notification.severity == "critical" else log.warning
        write = log.info if notification.kind in ("resolved", "test") else loud
        write(
            notification.title,
            kind=notification.kind,
            model_name=notification.model_name,
            incident_id=notification.incident_id,
            severity=notification.severity,
            signals=list(notification.signals),
            idempotency_key=notification.idempotency_key,
        )


@asynccontextmanager
async def opened(table: Table) -> AsyncIterator[Mapping[str, Destination]]:
    """All destinations by name, for as long as the worker lives. Raises ConfigError."""
    logs, others = _sorted(table)
    found: dict[str, Destination] = {name: Log(name) for name in logs}
    if not others:
        yield found
        return
    from canvasbus_workers.alerts import destinations

    async with destinations.Destinations(destinations.read(others)) as posted:
        yield {**found, **posted}


def check(table: Table, repeat_seconds: float) -> None:
    """Look at the tables, not at the secrets that they name, and whether they go with the interval at which open incidents
    are repeated. Raises ConfigError."""
    _, others = _sorted(table)
    if not others:
        return
    from canvasbus_workers.alerts.destinations import settings

    for name, given in settings.read(others).items():
        hold = getattr(given, "hold_seconds", math.inf)
        if hold < math.inf and not 0 < repeat_seconds < hold:
            raise ConfigError(
                f"[workers.alerts.destinations.{name}]: an Alertmanager takes for resolved what it has not heard of for "
                f"hold_seconds = {hold:g}: repeat_seconds = {repeat_seconds:g} must be less than that, and not 0"
            )


def check_outside(table: Table) -> int:
    """Look at what the tables name outside of them, as it is done when they are opened; how many destinations there are.
    Raises ConfigError."""
    logs, others = _sorted(table)
    if others:
        from canvasbus_workers.alerts import destinations

        destinations.Destinations(destinations.read(others))  # which calls nobody
    return len(logs) + len(others)


def _sorted(table: Table) -> tuple[list[str], dict[str, Mapping[str, Any]]]:
    """Those with kind = "log", and the others."""
    logs = [name for name, one in table.items() if one.get("kind") == "log"]
    for name in logs:
        config.table(f"[workers.alerts.destinations.{name}]", table[name], LogSettings)
    return logs if table else ["log"], {name: one for name, one in table.items() if name not in logs}
