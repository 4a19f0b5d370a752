"""Rolling out a new version of an event while the old workers still run: real processes."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from studio import Eyes, quiet
from waiting import until

from canvasbus import Event, Producer, event

pytestmark = pytest.mark.long

UNIT = """
import os
from canvasbus import Event, event
from canvasbus.worker import Worker

@event("rollout.asked", version=1)
class AskedBefore(Event):
    number: int

@event("rollout.answered")
class Answered(Event):
    number: int
    known: int

known = 1
worker = Worker("unit")

@worker.on("rollout.asked", concurrency=4)
async def on_asked(event: Event) -> Answered:
    return Answered(number=event.number, known=known)
"""

NEXT = (
    UNIT
    + """
@event("rollout.asked", version=2, upcast={1: dict})
class Asked(Event):
    number: int
    tone: str = "kind"

known = 2
"""
)


@event("rollout.asked", version=1)
class AskedBefore(Event):
    number: int


@event("rollout.asked", version=2, upcast={1: dict})
class Asked(Event):
    number: int
    tone: str = "kind"


@event("rollout.answered")
class Answered(Event):
    number: int
    known: int


async def test_producers_may_be_upgraded_before_the_workers(
    server_url: str, namespace: str, eyes: Eyes, start: Callable[..., Any]
) -> None:
    """Events of the new version wait while only old workers run, and while old and new ones run side by side the new
    ones answer all of them: each once, without a dead letter."""
    where = ("--url", server_url, "--namespace", namespace)
    old = start(*where, unit=UNIT)
    await until(lambda: old.said("worker joined"), 20)
    with Producer(server_url, namespace=namespace) as bus:
        for number in range(300):
            bus.publish(Asked(number=number) if number % 3 else AskedBefore(number=number))
        assert bus.flush(20)
        await until(lambda: eyes.count("rollout.answered") == 100)
        pool = Counter({"~v:rollout.asked:2": 200})
        await until(lambda: Counter(owner for _, owner, _ in eyes.pending("unit", "rollout.asked")) == pool)
        assert len(old.said("events of a newer version than this worker knows are parked for newer workers")) == 1

        new = start(*where, unit=NEXT)
        await until(lambda: eyes.count("rollout.answered") == 300, 30)
        for number in range(300, 600):
            bus.publish(Asked(number=number) if number % 3 else AskedBefore(number=number))
        assert bus.flush(20)
        await until(lambda: eyes.count("rollout.answered") == 600, 30)
    await quiet(eyes, event_type="rollout.asked")
    answers = eyes.events("rollout.answered")
    assert Counter(answer.number for answer in answers) == dict.fromkeys(range(600), 1)
    assert {answer.known for answer in answers if answer.number % 3} == {2}
    assert eyes.dead("unit") == [] and new.process.poll() is None
