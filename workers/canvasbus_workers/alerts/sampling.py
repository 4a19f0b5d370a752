"""`canvasbus alerts test`: one sample to each destination, past the bus."""

import uuid
from collections.abc import Sequence
from typing import Any

import trio

from canvasbus import clock
from canvasbus.worker import Reject, RetryLater, section
from canvasbus_workers.alerts import edge
from canvasbus_workers.alerts.notification import Destination, Gone, Notification
from canvasbus_workers.alerts.settings import Settings

SECONDS = 60.0
"""In which a destination has to answer, whatever its own settings say."""


def send_samples(loaded: Any) -> Sequence[tuple[str, str | None]]:
    """Name of each destination, and what is wrong with it; None: it took the sample. `loaded`: the settings of the
    program. Raises ConfigError for settings with which the worker would not start."""
    return trio.run(_send_all, section("alerts", Settings, loaded))


async def _send_all(settings: Settings) -> list[tuple[str, str | None]]:
    async with edge.opened(settings.destinations) as destinations:
        return [(name, await _send(one)) for name, one in destinations.items()]


async def _send(destination: Destination) -> str | None:
    try:
        with trio.fail_after(SECONDS):
            await destination.send(sample())
    except Reject as error:
        return f"it refuses: {error}: mend its settings, or what it expects"
    except Gone as error:
        return f"it says that it is no more: {error}: give its new address, or remove it"
    except RetryLater as error:
        return f"it is busy: {error}: try again later"
    except trio.TooSlowError:
        return f"no answer within {SECONDS:g} s: look whether it runs, and whether it can be reached from here"
    except Exception as error:  # whatever is wrong out there, the answer is one line
        said = " ".join(str(error).split()) or type(error).__name__
        return f"{said}: look whether it runs, and whether it can be reached from here"
    return None


def sample() -> Notification:
    """A notification that says what it is."""
    now, one = clock.now(), uuid.uuid4()
    return Notification(
        kind="test",
        incident_id=f"test/{one.hex[-12:]}",
        model_name="test",
        severity="info",
        title="A test of canvasbus: alerts arrive here",
        signals=("test:",),
        since=now,
        at=now,
        summary=("sent by `canvasbus alerts test`; nothing is wrong",),
        labels={"model_name": "test", "severity": "info", "group": "model_name=test"},
        correlation_id=one,
        idempotency_key=str(one),
    )
