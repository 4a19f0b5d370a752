"""Old events in a worker's hands: newest Struct, original bytes."""

import itertools
from typing import Any

import pytest
from studio import Eyes, running
from waiting import until

from canvasbus import Event, event
from canvasbus.bus import EventBus
from canvasbus.contract.registry import Registry
from canvasbus.errors import ContractError
from canvasbus.wire.codec import Codec
from canvasbus.worker import Context, Worker

_numbers = itertools.count()


def published(name: str, number: int) -> bytes:
    """What a producer of version 1 put on the stream."""

    class Before(Event):
        count: int = 0

    elsewhere = Registry()
    Before.__event_type__ = elsewhere.register(Before, name, 1, None)  # type: ignore[attr-defined]
    return Codec("old", registry=elsewhere).encode(Before(count=number)).data


def declared() -> tuple[str, type[Event]]:
    """A type that this process knows as version 2; its step fails on 13."""
    name = f"fresco{next(_numbers)}.found"

    def count_to_number(old: dict[str, Any]) -> dict[str, Any]:
        return {"number": 100 // (old["count"] - 13)} if old["count"] == 13 else {"number": old["count"]}

    @event(name, version=2, upcast={1: count_to_number})
    class Now(Event):
        number: int

    return name, Now


@pytest.fixture
def eyes(any_url: str, namespace: str) -> Any:
    eyes = Eyes(any_url, namespace)
    yield eyes
    eyes.close()


async def test_handlers_see_the_newest_version_only(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Old and new entries side by side; an entry that cannot be upcast is a dead letter with its own reason and the
    bytes that were published."""
    name, now = declared()
    worker, seen = Worker("museum"), []

    @worker.on(now, concurrency=4)
    async def on_found(found: Event, ctx: Context) -> None:
        seen.append((type(found), found.number, ctx.envelope.version))  # type: ignore[attr-defined]

    bad = published(name, 13)
    for value in (published(name, 1), bad, published(name, 2)):
        eyes.put(value, name)
    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish(now(number=3))  # type: ignore[call-arg]
        await until(lambda: len(seen) == 3 and eyes.dead("museum") != [])
    assert sorted(seen, key=lambda one: one[1]) == [(now, 1, 1), (now, 2, 1), (now, 3, 2)]
    (letter,) = eyes.dead("museum")
    assert letter.reason == "upcast_failed" and bad in letter.fields
    assert "count_to_number raised ZeroDivisionError" in letter.error


async def test_a_handler_of_an_old_struct_is_refused() -> None:
    """At registration, or, when the newer version is imported later, when the worker is put on a bus."""
    name, now = declared()

    @event(name)
    class Before(Event):
        count: int = 0

    worker = Worker("museum")
    with pytest.raises(ContractError, match=r"names .*Before, v1 of fresco.*newest version, v2: name .*Now"):
        worker.on(Before)(lambda found: None)
    worker.on(now)(lambda found: None)

    @event(name, version=3, upcast={1: dict, 2: dict})
    class Later(Event):
        number: int

    async with EventBus("memory://") as bus:
        with pytest.raises(ContractError, match=r"v2 of .*newest version, v3: name .*Later"):
            bus.add(worker)
