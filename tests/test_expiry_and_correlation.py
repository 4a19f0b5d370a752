"""Expiry and correlation through every door: Producer, EventBus and the command line."""

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
import trio
from cli.commands import Run, runner
from studio import Eyes, PaintingFramed, PaintingMade, quiet, running

from canvasbus import Producer, clock
from canvasbus.bus import EventBus
from canvasbus.errors import ConfigError, EncodeError
from canvasbus.worker import Worker

Publish = Callable[..., Awaitable[None]]
"""(numbers, expires_in, correlation id): publish a painting of each number."""

DOORS = ("producer", "producer, many", "bus", "bus, many", "bus, nowait")


class Later:
    """The machine's clock, some seconds ahead: wall time only."""

    monotonic = staticmethod(clock.SystemClock.monotonic)

    def __init__(self, seconds: float) -> None:
        self._ahead = int(seconds * 1e9)

    def time_ns(self) -> int:
        return clock.SystemClock.time_ns() + self._ahead


def door(name: str, url: str, namespace: str) -> Publish:
    """A way to publish."""

    async def by_producer(numbers: list[int], expires_in: float | None, belongs_to: UUID | None) -> None:
        with Producer(url, namespace=namespace) as bus:
            with bus.correlation(belongs_to) if belongs_to else contextlib.nullcontext():
                events = [PaintingMade(number=number) for number in numbers]
            if "many" in name:
                bus.publish_many(events, expires_in=expires_in)
            else:
                for event in events:
                    bus.publish(event, expires_in=expires_in)
            assert await trio.to_thread.run_sync(bus.flush, 10)

    async def by_bus(numbers: list[int], expires_in: float | None, belongs_to: UUID | None) -> None:
        async with EventBus(url, namespace=namespace) as bus:
            with bus.correlation(belongs_to) if belongs_to else contextlib.nullcontext():
                events = [PaintingMade(number=number) for number in numbers]
            if "many" in name:
                await bus.publish_many(events, expires_in=expires_in)
            elif "nowait" in name:
                for event in events:
                    bus.publish_nowait(event, expires_in=expires_in)
            else:
                for event in events:
                    await bus.publish(event, expires_in=expires_in)

    return by_producer if name.startswith("producer") else by_bus


def by_command(run: Run) -> Publish:
    """canvasbus publish, one event at a time."""

    async def publish(numbers: list[int], expires_in: float | None, belongs_to: UUID | None) -> None:
        options = () if expires_in is None else ("--expires-in", f"{expires_in}s")
        options += () if belongs_to is None else ("--correlation", str(belongs_to))
        for number in numbers:
            assert run("publish", "painting.made", f'{{"number": {number}}}', *options).code == 0

    return publish


async def handled(url: str, namespace: str, eyes: Eyes, *, after: float, batch: bool = False) -> tuple[list[int], int]:
    """Which paintings a worker handles that comes `after` seconds later, and how many it skips."""
    seen: list[int] = []
    worker = Worker("framers")
    if batch:
        worker.on_batch(PaintingMade)(lambda events: seen.extend(event.number for event in events))
    else:
        worker.on(PaintingMade)(lambda event: seen.append(event.number))
    with clock.using(Later(after)):
        async with running(url, worker, namespace=namespace) as bus:
            await quiet(eyes)
            statistics = bus.statistics()[0]
    assert eyes.dead("framers") == []
    return sorted(seen), statistics.expired


async def check_expiry(publish: Publish, url: str, namespace: str, eyes: Eyes, *, batch: bool = False) -> None:
    await publish([1, 2], 30, None)
    await publish([3], 300, None)
    await publish([4], None, None)
    assert await handled(url, namespace, eyes, after=60, batch=batch) == ([3, 4], 2)


async def check_correlation(publish: Publish, eyes: Eyes) -> None:
    mine = uuid4()
    await publish([1, 2], None, mine)
    await publish([3, 4], None, None)
    one, two, three, four = eyes.events("painting.made")
    assert one.correlation_id == two.correlation_id == mine
    assert len({mine, three.correlation_id, four.correlation_id}) == 3


@pytest.mark.parametrize("name", DOORS)
async def test_stale_events_are_skipped_and_counted(any_url: str, namespace: str, eyes: Eyes, name: str) -> None:
    """Acknowledged without a handler seeing them; they are no dead letters."""
    await check_expiry(door(name, any_url, namespace), any_url, namespace, eyes)


async def test_batches_have_no_stale_events(any_url: str, namespace: str, eyes: Eyes) -> None:
    """The others of the batch are handled."""
    await check_expiry(door("bus", any_url, namespace), any_url, namespace, eyes, batch=True)


@pytest.mark.parametrize("name", DOORS)
async def test_events_belong_together(any_url: str, namespace: str, eyes: Eyes, name: str) -> None:
    """What is made inside of `correlation` carries its id; what is made outside has one of its own."""
    await check_correlation(door(name, any_url, namespace), eyes)


def test_a_bus_with_options_of_the_wrong_type_is_not_made() -> None:
    """Whose move it is: ConfigError at the bus, TypeError at the call of correlation."""
    sizes, seconds = ("buffer_bytes", "max_event_bytes"), ("grace", "park", "max_block", "connect_timeout", "patience")
    for options in ({name: "4"} for name in ("partitions", *sizes, *seconds)):
        with pytest.raises(ConfigError, match="number is wanted, not a str"):
            EventBus("memory://", **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="partitions=4097: a namespace has 1 to 4096"):
        EventBus("memory://", partitions=4097)
    for options in ({name: 0} for name in sizes):
        with pytest.raises(ConfigError, match="=0: use a number from 1"):  # the first publish would wait for ever
            EventBus("memory://", **options)  # type: ignore[arg-type]
    for options in ({name: -1} for name in seconds):
        with pytest.raises(ConfigError, match="=-1: use a number from 0"):
            EventBus("memory://", **options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"a uuid\.UUID is wanted"):
        EventBus("memory://").correlation("x")  # type: ignore[arg-type]


async def test_an_event_that_says_otherwise_keeps_its_correlation(any_url: str, namespace: str, eyes: Eyes) -> None:
    """An id that was given when the event was made is not replaced, and what follows from it carries it on."""
    worker, own = Worker("framers"), uuid4()
    worker.on(PaintingMade)(lambda event: PaintingFramed(number=event.number))
    async with running(any_url, worker, namespace=namespace) as bus:
        with bus.correlation(uuid4()):
            await bus.publish(PaintingMade(correlation_id=own))
        await quiet(eyes)
    (framed,) = eyes.events("painting.framed")
    assert framed.correlation_id == own


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def there(server_url: str, namespace: str) -> Iterator[Eyes]:
    eyes = Eyes(server_url, namespace)
    yield eyes
    eyes.close()


@pytest.fixture
def run(server_url: str, namespace: str, capsys: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    return runner(server_url, namespace, capsys)


async def test_stale_events_from_the_command_line(run: Run, server_url: str, namespace: str, there: Eyes) -> None:
    """--expires-in"""
    await check_expiry(by_command(run), server_url, namespace, there)


async def test_events_from_the_command_line_belong_together(run: Run, there: Eyes) -> None:
    """--correlation"""
    await check_correlation(by_command(run), there)


def test_files_keep_what_they_say(run: Run, there: Eyes, tmp_path: Any) -> None:
    """Lines with a correlation id of their own keep it, the others get that of the command; all of them expire."""
    own, common = uuid4(), uuid4()
    (tmp_path / "events").write_text(
        '{"type": "painting.made", "data": {"number": 1}}\n'
        f'{{"type": "painting.made", "correlationid": "{own}", "data": {{"number": 2}}}}\n'
    )
    before = clock.time()
    assert run("publish", "--from", "events", "--correlation", str(common), "--expires-in", "2m").code == 0
    (first, one), (second, two) = there.entries("painting.made")
    assert (one.correlation_id, two.correlation_id) == (common, own)
    for envelope in (first, second):
        assert envelope.expires_on is not None and 119 < envelope.expires_on - before < 150


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--expires-in", "soon"), "--expires-in soon: give a length of time of up to ten years, like 90s"),
        (("--correlation", "me"), "--correlation me: not a UUID, like "),
    ],
)
def test_what_is_no_time_and_no_id(run: Run, there: Eyes, options: tuple[str, ...], says: str) -> None:
    """Bad usage, and nothing is sent."""
    run("publish", "painting.made", "{}", *options).failed(2, says)
    assert there.call("EXISTS", there.stream()) == 0


async def test_many_that_expire_at_no_time(any_url: str, namespace: str, eyes: Eyes) -> None:
    """`publish_many` refuses it before anything is sent; one bad event of many is told, and the others are stored."""
    async with EventBus(any_url, namespace=namespace) as bus:
        with pytest.raises(EncodeError, match="expires_in"):
            await bus.publish_many([PaintingMade()], expires_in=float("nan"))
        assert eyes.call("EXISTS", eyes.stream()) == 0
        with pytest.raises(EncodeError, match="number"):
            await bus.publish_many([PaintingMade(number="x")], expires_in=5)  # type: ignore[arg-type]
        with pytest.raises(ExceptionGroup, match="1 of 3 events were not published"):
            await bus.publish_many(
                [PaintingMade(number=1), PaintingMade(number="x"), PaintingMade(number=2)],  # type: ignore[arg-type]
                expires_in=5,
            )
    assert [(event.number, envelope.expires_on is not None) for envelope, event in eyes.entries("painting.made")] == [
        (1, True),
        (2, True),
    ]
