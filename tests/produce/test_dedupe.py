"""dedupe_key and dedupe=True at the doors: Producer and EventBus, on memory and on real servers."""

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

import pytest
import trio
from faulty import Fault, FaultyServer
from studio import Eyes, PaintingFramed, PaintingMade, SculptureMade, quiet, running
from waiting import until

from canvasbus import ConfigError, ContractError, Producer
from canvasbus.bus import EventBus
from canvasbus.transport import connect
from canvasbus.transport.connect import open_server
from canvasbus.transport.memory import MemoryServer
from canvasbus.worker import Worker

Soon = Callable[..., Any]


def numbers(eyes: Eyes) -> list[int]:
    return [made.number for made in eyes.events("painting.made")]


def key_of(event: Any) -> str:
    return f"run-7:epoch-{event.number}"


# --- Producer ---------------------------------------------------------------------------------------------------------


def test_a_producer_that_starts_again(any_url: str, namespace: str, eyes: Eyes) -> None:
    """The second one publishes what the first did and more: nothing lies there twice, flush is True, the ids are the
    same, and what was there already is counted."""
    ids = []
    for last in (3, 5):
        with Producer(any_url, namespace=namespace) as bus:
            ids.append([bus.publish(made, dedupe_key=key_of(made)) for made in map(painted, range(last))])
            assert bus.flush(timeout=10)
            now = bus.statistics()
            assert (now.stored, now.duplicates, now.unknown) == (last, 0 if last == 3 else 3, 0)
    assert numbers(eyes) == list(range(5)) and ids[1][:3] == ids[0]
    assert [envelope.id for envelope, _ in eyes.entries("painting.made")] == ids[1]


def painted(number: int) -> PaintingMade:
    return PaintingMade(number=number)


def _train(url: str, namespace: str, last: int) -> None:
    bus = Producer(url, namespace=namespace)
    for number in range(last):
        bus.publish(painted(number), dedupe_key=f"run-7:epoch-{number}")
        bus.flush(timeout=10)
    os._exit(9)


@pytest.mark.long
def test_a_process_that_dies_and_runs_again(server_url: str, namespace: str) -> None:
    """It ends without a farewell after each few epochs, and begins at the first: each epoch is told once."""
    for last in (2, 4, 4, 6):
        process = multiprocessing.get_context("spawn").Process(target=_train, args=(server_url, namespace, last))
        process.start()
        process.join(60)
        assert process.exitcode == 9
    eyes = Eyes(server_url, namespace)
    assert numbers(eyes) == list(range(6))
    eyes.close()


def test_both_kinds_in_order(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Events with and without a key lie in the order in which they were published, across many batches."""
    with Producer(any_url, namespace=namespace) as bus:
        for number in range(1300):
            bus.publish(painted(number), dedupe_key=str(number) if number // 100 % 2 or number % 7 == 0 else None)
        bus.publish_many(map(painted, range(1300, 1900)), dedupe_key=key_of)
        assert len(bus.publish_many(map(painted, range(1300, 1900)), dedupe_key=key_of)) == 600
        assert bus.flush(timeout=20)
        assert bus.statistics().duplicates == 600 and bus.statistics().stored == 2500
    assert numbers(eyes) == list(range(1900))


@pytest.mark.parametrize("kind", ["lose_reply", "lose_request"])
def test_lost_packets(any_url: str, namespace: str, eyes: Eyes, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is lost: each event once, in order, and no doubles are counted that are none."""
    faulty = FaultyServer(open_server(any_url))
    monkeypatch.setattr(connect, "open_server", lambda _: faulty)
    with Producer(any_url, namespace=namespace) as bus:
        for start in range(0, 300, 60):
            faulty.faults += [Fault(kind, b"EVAL"), Fault(kind, b"EXEC")]
            for number in range(start, start + 60):
                bus.publish(painted(number), dedupe_key=str(number) if number % 3 else None)
            assert bus.flush(timeout=20)
        assert bus.statistics().duplicates == 0 and bus.statistics().stored == 300
    assert faulty.struck == 10 and numbers(eyes) == list(range(300))


def test_everybody_is_told(memory: MemoryServer, namespace: str) -> None:
    """An event published twice under its key has two callbacks; each is called, with the id that both have. One that is
    not accepted takes only its own back."""
    told: list[Any] = []
    memory.set_connected(False)
    with Producer(memory.name, namespace=namespace, when_full="raise", buffer_bytes=600) as bus:
        ids = {
            bus.publish(painted(1), dedupe_key="k", on_delivery=lambda i, e, n=n: told.append((n, i, e)))  # type: ignore[misc]
            for n in range(2)
        }
        with pytest.raises(Exception, match="limit is 600"):
            bus.publish(
                PaintingMade(number=1, title="x" * 150), dedupe_key="k", on_delivery=lambda i, e: told.append(3)
            )
        memory.set_connected(True)
        assert bus.flush(timeout=10) and bus._sender is not None and bus._sender.callbacks == {}
    (event_id,) = ids
    assert told == [(0, event_id, None), (1, event_id, None)]


def test_closed_between_two_runs(memory: MemoryServer, namespace: str, soon: Soon) -> None:
    """A Producer that is closed while a marked run has no answer says of that run alone that it may be there."""
    told: dict[Any, Any] = {}
    memory.set_connected(False)
    bus = Producer(memory.name, namespace=namespace, on_delivery=told.__setitem__)
    ids = [bus.publish(painted(n), dedupe_key=str(n) if n < 2 else None) for n in range(4)]
    assert bus.close(timeout=0.05) is False
    soon(lambda: len(told) == 4)
    assert list(told) == ids and not any(error.ambiguous for error in told.values())


def test_every_event(any_url: str, namespace: str, eyes: Eyes) -> None:
    """dedupe=True marks every event by its id; ids differ, so nothing is held for a double."""
    with Producer(any_url, namespace=namespace, dedupe=True, dedupe_window=60) as bus:
        bus.publish_many(map(painted, range(300)))
        bus.publish(SculptureMade(), delay=3600)
        assert bus.flush(timeout=10) and bus.statistics().duplicates == 0
    assert numbers(eyes) == list(range(300))
    names = eyes.call("KEYS", eyes.keys.once("*"))
    assert len(names) == 301 and all(0 < eyes.call("PTTL", name) <= 60_000 for name in names[:5])


def test_switched_off() -> None:
    """off:// skips events with keys as others."""
    with Producer("off://", dedupe=True) as bus:
        assert bus.publish(painted(1), dedupe_key="k") is None and bus.flush()
        assert bus.statistics().skipped == 1


@pytest.mark.parametrize("window", [0, 0.5, -1, float("nan"), "day", True, 1e12])
def test_what_is_no_window(window: Any) -> None:
    """ConfigError when it is made, wherever it leads."""
    for make in (lambda: Producer("off://", dedupe_window=window), lambda: EventBus("off://", dedupe_window=window)):
        with pytest.raises(ConfigError, match="dedupe_window="):
            make()


def test_what_is_no_key(memory: MemoryServer, namespace: str) -> None:
    """Raised by publish; nothing is queued."""
    with Producer(memory.name, namespace=namespace) as bus:
        with pytest.raises(ContractError, match="dedupe_key=''"):
            bus.publish(painted(1), dedupe_key="")
        assert bus.statistics().published == 0


# --- EventBus ---------------------------------------------------------------------------------------------------------


async def test_the_bus_answers_with_the_first(any_url: str, namespace: str, eyes: Eyes) -> None:
    """publish, publish_many and publish_nowait, from one bus and then another: one entry for a key, whose id all get."""
    async with EventBus(any_url, namespace=namespace) as bus:
        first = await bus.publish(painted(1), dedupe_key="run-7:epoch-1")
        assert await bus.publish(painted(9), dedupe_key="run-7:epoch-1") == first
        many = await bus.publish_many(map(painted, range(3)), dedupe_key=key_of)
        assert many[1] == first
        later = await bus.publish(SculptureMade(), delay=3600, dedupe_key="s")
        assert (
            later
            == await bus.publish(SculptureMade(), delay=10, dedupe_key="s")
            == await bus.publish(SculptureMade(), dedupe_key="s")
        )
        assert later is not None and later.startswith("~")
        assert bus.publisher_statistics().duplicates == 4
    async with EventBus(any_url, namespace=namespace) as bus:
        bus.publish_nowait(painted(2), dedupe_key="run-7:epoch-2")
        assert await bus.publish_many(map(painted, range(4)), dedupe_key=key_of) == [
            *many,
            eyes.call("XREVRANGE", eyes.stream(), "+", "-")[0][0].decode(),
        ]
    assert numbers(eyes) == [1, 0, 2, 3]


@pytest.mark.parametrize("dedupe", ["yes", "no", 1, None])
def test_what_is_neither_on_nor_off(dedupe: Any) -> None:
    """A text would count as yes, whatever it says."""
    for make in (lambda: Producer("off://", dedupe=dedupe), lambda: EventBus("off://", dedupe=dedupe)):
        with pytest.raises(ConfigError, match=r"dedupe=.*: True or False is wanted"):
            make()


async def test_many_with_one_key(any_url: str, namespace: str, eyes: Eyes) -> None:
    """It is a function of the event; a text is refused before anything is published."""
    async with EventBus(any_url, namespace=namespace) as bus:
        with pytest.raises(ContractError, match="dedupe_key='run-7': a function is wanted"):
            await bus.publish_many(map(painted, range(3)), dedupe_key="run-7")  # type: ignore[arg-type]
        with (
            Producer(any_url, namespace=namespace) as producer,
            pytest.raises(ContractError, match="a function is wanted"),
        ):
            producer.publish_many(map(painted, range(3)), dedupe_key="run-7")  # type: ignore[arg-type]
    assert numbers(eyes) == []


async def test_many_with_a_key_that_cannot_be_made(any_url: str, namespace: str, eyes: Eyes) -> None:
    """The event is not published, the others are; one ExceptionGroup tells."""

    def key(event: Any) -> str:
        return {0: "zero", 2: "two"}[event.number]

    async with EventBus(any_url, namespace=namespace) as bus:
        with pytest.raises(ExceptionGroup) as failed:
            await bus.publish_many(map(painted, range(3)), dedupe_key=key)
        assert [type(error) for error in failed.value.exceptions] == [KeyError]
    assert numbers(eyes) == [0, 2]


async def test_racing(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Two buses and many tasks publish the same keys at once: one entry for each, and all are told the same."""
    answers: dict[int, set[Any]] = {}
    async with (
        EventBus(any_url, namespace=namespace) as one,
        EventBus(any_url, namespace=namespace) as two,
        trio.open_nursery() as nursery,
    ):

        async def publish(bus: EventBus, number: int) -> None:
            answer = await bus.publish(painted(number), dedupe_key=str(number))
            answers.setdefault(number, set()).add(answer)

        for number in range(200):
            for bus in (one, two, one):
                nursery.start_soon(publish, bus, number)
    assert sorted(numbers(eyes)) == list(range(200)) and all(len(found) == 1 for found in answers.values())


async def test_partitions(any_url: str, namespace: str) -> None:
    """Mark and event lie in the partition of the event's key."""
    for _ in range(2):
        async with EventBus(any_url, namespace=namespace, partitions=4) as bus:
            await bus.publish_many(
                [PaintingMade(title=str(n % 9), number=n) for n in range(50)],
                dedupe_key=lambda e: str(e.number),  # type: ignore[attr-defined]
            )
            assert bus.publisher_statistics().duplicates == 50 * _
    eyes = Eyes(any_url, namespace)
    counts = {
        partition: (
            eyes.call("EXISTS", f"{{{namespace}:{partition}}}:stream:painting.made")
            and eyes.call("XLEN", f"{{{namespace}:{partition}}}:stream:painting.made"),
            len(eyes.call("KEYS", f"{{{namespace}:{partition}}}:once:*")),
        )
        for partition in range(4)
    }
    assert all(stored == marked for stored, marked in counts.values())
    assert sum(stored for stored, _ in counts.values()) == 50
    eyes.close()


async def test_a_handler_that_publishes(any_url: str, namespace: str, eyes: Eyes) -> None:
    """What a handler publishes under a key, instead of returning it, is there once although it is called twice."""
    worker, calls = Worker("framers"), []
    async with running(any_url, namespace=namespace) as bus:

        @worker.on(PaintingMade)
        async def frame(event: PaintingMade) -> None:
            calls.append(event.number)
            await bus.publish(PaintingFramed(number=event.number), dedupe_key=f"framed-{event.number}")
            if len(calls) == 1:
                raise ValueError("after it was published")

        bus.add(worker)
        await bus.publish(painted(1))
        await until(lambda: len(calls) == 2)
        await quiet(eyes)
    assert [framed.number for framed in eyes.events("painting.framed")] == [1]
