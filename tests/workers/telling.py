"""A TestBus in the tests of workers: what it was told, and what came of it."""

from typing import Any

from canvasbus import Event
from canvasbus.testing import TestBus


def events(bus: TestBus, what: type[Event]) -> list[Any]:
    return [one.event for one in bus.published(what)]


async def told(bus: TestBus, *given: Event) -> None:
    """Publish one after another, each handled to its end."""
    for event in given:
        await bus.publish(event)
        await bus.settle(horizon=0)
