"""Publishing from trio: single events of many tasks, whole iterables, and what happens to the bad ones among them."""

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import trio
import trio.testing
from faulty import Fault, FaultyServer
from studio import Eyes, PaintingFramed, PaintingMade, running
from waiting import until

from canvasbus import BufferFull, ContractError, EncodeError, Event, Refused, Unavailable, event
from canvasbus.bus import EventBus
from canvasbus.transport.connect import open_server
from canvasbus.wire.keys import Keys, partition_of


@event("painting.sold", key="buyer")
class PaintingSold(Event):
    buyer: str
    number: int


@event("painting.watched")
class PaintingWatched(Event, weakref=True):
    number: int


@pytest.fixture
def eyes(any_url: str, namespace: str) -> Iterator[Eyes]:
    eyes = Eyes(any_url, namespace)
    yield eyes
    eyes.close()


def bad() -> PaintingMade:
    """An event that only encoding finds out."""
    return PaintingMade(number="three")  # type: ignore[arg-type]


async def test_each_task_gets_the_id_of_its_own_event(any_url: str, namespace: str, eyes: Eyes) -> None:
    """A thousand tasks publish at once, of two types: every returned id leads to the event that was published."""
    found: dict[int, str] = {}
    async with EventBus(any_url, namespace=namespace) as bus, trio.open_nursery() as nursery:

        async def one(number: int) -> None:
            kind = PaintingMade if number % 3 else PaintingFramed
            found[number] = (await bus.publish(kind(number=number))) or ""

        for number in range(1000):
            nursery.start_soon(one, number)
    stored = {}
    for event_type in ("painting.made", "painting.framed"):
        rows = eyes.call("XRANGE", eyes.stream(event_type), "-", "+")
        for row, painting in zip(rows, eyes.events(event_type), strict=True):
            stored[painting.number] = row[0].decode()
    assert found == stored


async def test_a_bad_event_costs_its_neighbours_nothing(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Of tasks that publish at once those with a bad event get its error, all others their ids."""
    errors: list[int] = []
    async with EventBus(any_url, namespace=namespace) as bus, trio.open_nursery() as nursery:

        async def one(number: int) -> None:
            try:
                await bus.publish(bad() if number % 10 == 3 else PaintingMade(number=number))
            except EncodeError as error:
                assert "number" in str(error)
                errors.append(number)

        for number in range(300):
            nursery.start_soon(one, number)
    assert sorted(errors) == list(range(3, 300, 10))
    assert sorted(e.number for e in eyes.events("painting.made")) == [n for n in range(300) if n % 10 != 3]


async def test_a_batch_of_bad_events_alone(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Nothing is sent and nobody hangs."""
    async with EventBus(any_url, namespace=namespace) as bus:
        with pytest.raises(EncodeError):
            await bus.publish(bad())
        with pytest.raises(EncodeError):
            await bus.publish_many([bad()])
        await bus.publish(PaintingMade())
    assert eyes.count("painting.made") == 1


@pytest.mark.parametrize("at", [0, 3, 500, 1234])
async def test_events_that_fail_to_come(any_url: str, namespace: str, eyes: Eyes, at: int) -> None:
    """A generator that raises: what it had yielded before is on the server when what it raised is raised."""

    def paintings() -> Iterator[PaintingMade]:
        for number in range(at):
            yield PaintingMade(number=number)
        raise LookupError("the file of paintings ends")

    async with EventBus(any_url, namespace=namespace) as bus:
        with pytest.raises(LookupError, match="the file of paintings ends"):
            await bus.publish_many(paintings())
        assert [made.number for made in eyes.events("painting.made")] == list(range(at))


async def test_publish_many_tries_all(any_url: str, namespace: str, eyes: Eyes) -> None:
    """The good ones are there, in order; the bad ones are one ExceptionGroup, also when a whole chunk is bad."""
    events = [
        bad() if number % 100 == 7 or 1000 <= number < 1600 else PaintingMade(number=number) for number in range(2000)
    ]
    async with EventBus(any_url, namespace=namespace) as bus:
        with pytest.raises(ExceptionGroup, match=f"{600 + 14} of 2000") as caught:
            await bus.publish_many(events)
    assert {type(error) for error in caught.value.exceptions} == {EncodeError}
    assert [e.number for e in eyes.events("painting.made")] == [
        number for number in range(2000) if not (number % 100 == 7 or 1000 <= number < 1600)
    ]


async def test_order_is_that_of_the_calls(any_url: str, namespace: str, eyes: Eyes) -> None:
    """publish_nowait, publish and publish_many of one task arrive in the order in which they were called."""
    async with EventBus(any_url, namespace=namespace) as bus:
        for start in range(0, 60, 6):
            bus.publish_nowait(PaintingMade(number=start))
            bus.publish_nowait(PaintingMade(number=start + 1))
            await bus.publish(PaintingMade(number=start + 2))
            bus.publish_nowait(PaintingMade(number=start + 3))
            await bus.publish_many([PaintingMade(number=start + 4), PaintingMade(number=start + 5)])
    assert [e.number for e in eyes.events("painting.made")] == list(range(60))


async def test_large_events_go_in_pieces(any_url: str, namespace: str, eyes: Eyes) -> None:
    """No packet is much larger than a mebibyte, however many large events wait together."""
    faulty = FaultyServer(open_server(any_url))
    sizes: list[int] = []
    faulty.on_packet = lambda data: sizes.append(len(data))
    async with running(faulty, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(title="x" * 300_000, number=n) for n in range(20)])
        async with trio.open_nursery() as nursery:
            for n in range(20, 40):
                nursery.start_soon(bus.publish, PaintingMade(title="x" * 300_000, number=n))
    assert max(sizes) < 1_500_000
    assert sorted(e.number for e in eyes.events("painting.made")) == list(range(40))


async def test_what_has_arrived_is_let_go_of(namespace: str) -> None:
    """publish_many of a generator holds a few chunks, not everything it has sent."""
    alive: list[Any] = []
    most = 0

    def paintings() -> Iterator[PaintingWatched]:
        nonlocal most
        for number in range(5000):
            painting = PaintingWatched(number=number)
            alive.append(weakref.ref(painting))
            if number % 1000 == 999:
                gc.collect()
                most = max(most, sum(ref() is not None for ref in alive))
            yield painting

    async with EventBus(f"memory://{namespace}", namespace=namespace) as bus:
        assert len(await bus.publish_many(paintings())) == 5000
    assert 0 < most <= 2000


async def test_events_with_a_key_go_to_its_partition(any_url: str, namespace: str) -> None:
    """With four partitions crc32 decides, and order holds within a key."""
    async with EventBus(any_url, namespace=namespace, partitions=4) as bus:
        buyers = [f"buyer {n}" for n in range(20)]
        await bus.publish_many([PaintingSold(buyer=buyers[n % 20], number=n) for n in range(400)])
        for n in range(400, 440):
            await bus.publish(PaintingSold(buyer=buyers[n % 20], number=n))
    eyes = Eyes(any_url, namespace)
    seen: dict[str, list[int]] = {}
    for partition in range(4):
        eyes.keys = Keys(namespace, partition)
        for sold in eyes.events("painting.sold"):
            assert partition_of(sold.buyer, 4) == partition
            seen.setdefault(sold.buyer, []).append(sold.number)
    eyes.close()
    assert seen == {buyer: list(range(i, 440, 20)) for i, buyer in enumerate(buyers)}


async def test_a_cancelled_publish_leaves_the_others_alone(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Whoever gives up waiting takes nobody along; its event may be stored, and is stored once."""
    faulty = FaultyServer(open_server(any_url))
    async with running(faulty, namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=0))
        faulty.faults.append(Fault("answer", b"XADD", "LOADING still", times=1))
        async with trio.open_nursery() as nursery:
            for n in range(1, 10):
                nursery.start_soon(bus.publish, PaintingMade(number=n))
            with trio.move_on_after(0.01) as scope:
                await bus.publish(PaintingMade(number=10))
        assert scope.cancelled_caught
    assert sorted(e.number for e in eyes.events("painting.made")) == list(range(11))


async def test_who_gave_up_is_not_woken_by_what_it_published(any_url: str, namespace: str) -> None:
    """A task whose publish was cancelled waits for something else when its batch is stored, and goes on waiting for it."""
    faulty = FaultyServer(open_server(any_url))
    woken: list[str] = []
    elsewhere = trio.Event()

    async def impatient(scope: trio.CancelScope) -> None:
        with scope:
            await bus.publish(PaintingMade(number=2))
        await elsewhere.wait()
        woken.append("impatient")

    async def patient() -> None:
        await bus.publish(PaintingMade(number=1))
        woken.append("patient")

    async with running(faulty, namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=0))
        faulty.faults.append(Fault("answer", b"XADD", "LOADING still", times=1000))
        async with trio.open_nursery() as others:
            async with trio.open_nursery() as nursery:
                scope = trio.CancelScope()
                nursery.start_soon(patient)
                others.start_soon(impatient, scope)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
                faulty.faults.clear()
            await bus.publish(PaintingMade(number=3))
            elsewhere.set()
    assert scope.cancelled_caught
    assert woken == ["patient", "impatient"]


async def test_after_the_end_nothing_is_taken(any_url: str, namespace: str) -> None:
    """Publishing on a bus that has ended is an error, not a wait for ever."""
    async with EventBus(any_url, namespace=namespace) as bus:
        await bus.publish(PaintingMade())
    with trio.fail_after(5):
        with pytest.raises(BufferFull, match="closed"):
            await bus.publish(PaintingMade())
        with pytest.raises(BufferFull, match="closed"):
            await bus.publish_many([PaintingMade()])
        with pytest.raises(BufferFull, match="closed"):
            bus.publish_nowait(PaintingMade())


async def test_many_while_the_bus_closes(any_url: str, namespace: str, eyes: Eyes) -> None:
    """What is on its way is waited for, and what is not taken any more is a failure among the others: a bus that was closed
    in the middle does not say of all of them that they were not accepted."""
    async with running(any_url, namespace=namespace) as bus, trio.open_nursery() as tasks:

        def made() -> Iterator[Event]:
            for number in range(3000):
                if number == 1700:
                    tasks.start_soon(bus.aclose)
                yield PaintingMade(number=number)

        with pytest.raises(ExceptionGroup, match=r"500 of 2000 events were not published; .* was closed") as caught:
            await bus.publish_many(made())
        assert {type(error) for error in caught.value.exceptions} == {BufferFull}
        with pytest.raises(BufferFull):
            await bus.publish_many(made())
    assert [made.number for made in eyes.events("painting.made")] == list(range(1500))


async def test_another_partition_count_is_refused(any_url: str, namespace: str) -> None:
    """A process that disagrees about the number of partitions refuses to start and says who says what."""
    async with EventBus(any_url, namespace=namespace, partitions=2):
        pass
    with pytest.raises(Refused, match=r"2 partitions.* 3"):
        async with EventBus(any_url, namespace=namespace, partitions=3):
            pass


async def test_refused_after_a_lost_reply_is_not_a_plain_no(any_url: str, namespace: str, eyes: Eyes) -> None:
    """When the server refuses us before it could be found out whether the event arrived, the error says "maybe"."""
    faulty = FaultyServer(open_server(any_url))
    async with running(faulty, namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=1))
        faulty.faults += [Fault("lose_reply", b"EXEC"), Fault("answer", b"INCR", "NOPERM no permissions to run 'incr'")]
        with pytest.raises(Unavailable, match="may be stored") as caught:
            await bus.publish(PaintingMade(number=2))
        assert caught.value.ambiguous
    assert numbers(eyes) == [1, 2]


def numbers(eyes: Eyes) -> list[int]:
    return [painting.number for painting in eyes.events("painting.made")]


async def test_a_bus_is_entered_once_and_before_publishing(any_url: str, namespace: str) -> None:
    """Publishing on a bus that was never entered, and entering one twice, are errors that say what to write."""
    bus = EventBus(any_url, namespace=namespace)
    with trio.fail_after(5):
        with pytest.raises(ContractError, match="async with"):
            await bus.publish(PaintingMade())
        with pytest.raises(ContractError, match="async with"):
            await bus.publish_many([PaintingMade()])
        with pytest.raises(ContractError, match="async with"):
            bus.publish_nowait(PaintingMade())
        async with bus:
            assert await bus.publish(PaintingMade())
            with pytest.raises(ContractError, match="lives once"):
                async with bus:
                    pass
            assert await bus.publish(PaintingMade())
        with pytest.raises(ContractError, match="lives once"):
            async with bus:
                pass


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), "5"])
async def test_an_expiry_that_is_no_time_is_refused(any_url: str, namespace: str, seconds: Any) -> None:
    """NaN would never and inf would always compare as stale somewhere: both are errors where they are written."""
    async with EventBus(any_url, namespace=namespace) as bus:
        with pytest.raises(EncodeError, match="expires_in"):
            await bus.publish(PaintingMade(), expires_in=seconds)


async def test_a_bus_that_has_ended_takes_no_worker(any_url: str, namespace: str) -> None:
    """Adding a worker or a subscription afterwards is an error, not silence."""
    async with EventBus(any_url, namespace=namespace) as bus:
        pass

    async def handle(event: PaintingMade) -> None: ...

    with pytest.raises(ContractError, match="has ended"):
        bus.subscribe(PaintingMade, handle, group="late")


async def test_a_bus_that_closes_tells_who_waits(any_url: str, namespace: str) -> None:
    """The server is away and the bus is left: whoever waits for an event is told that it was not sent, or that it may
    have been, instead of waiting for ever; so is whoever waits for room."""
    faulty = FaultyServer(open_server(any_url))
    told: list[Exception] = []
    async with trio.open_nursery() as tasks:
        async with running(faulty, namespace=namespace, grace=0.1, buffer_bytes=20_000) as bus:

            async def one(number: int) -> None:
                try:
                    await bus.publish(PaintingMade(title="x" * 400, number=number))
                except (Unavailable, BufferFull) as error:
                    told.append(error)

            await bus.publish(PaintingMade(title="x" * 400))
            faulty.cut()
            for number in range(300):
                tasks.start_soon(one, number)
            await trio.testing.wait_all_tasks_blocked(0.01)
        with trio.fail_after(5):
            while len(told) < 300:
                await trio.sleep(0.005)
    assert {type(error) for error in told} == {Unavailable, BufferFull}
    assert bus.publisher_statistics().waiting_bytes == 0


async def test_a_bus_that_closes_knows_which_pieces_are_stored(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Of what goes in several pieces, those that the server has count as published, and the rest as failed."""
    faulty = FaultyServer(open_server(any_url))

    def cut_behind_the_first(packet: bytes) -> None:
        if b"XADD" in packet and eyes.count("painting.framed"):
            faulty.cut()

    async with running(faulty, namespace=namespace, grace=0.1) as bus, trio.open_nursery() as tasks:

        async def many() -> None:
            with pytest.raises(ExceptionGroup, match="1 of 4 events were not published"):
                await bus.publish_many([PaintingFramed(title="x" * 400_000, number=number) for number in range(4)])

        faulty.on_packet = cut_behind_the_first
        tasks.start_soon(many)
        await until(lambda: faulty.is_cut)
        await bus.aclose()
        bus._nursery.cancel_scope.cancel()  # type: ignore[union-attr]
    assert (bus.publisher_statistics().published, bus.publisher_statistics().failed) == (3, 1)


async def test_who_waits_for_room_waits_while_the_bus_closes(any_url: str, namespace: str) -> None:
    """One partition has nothing left to send and the other cannot send what it has: nobody keeps looking for room, until
    there is some or nobody sends any more."""
    faulty = FaultyServer(open_server(any_url))
    told: list[Exception] = []

    async def one(bus: EventBus) -> None:
        try:
            await bus.publish(PaintingSold(buyer="x" * 400, number=1))
        except (Unavailable, BufferFull) as error:
            told.append(error)

    async with trio.open_nursery() as tasks:
        async with running(faulty, namespace=namespace, grace=1.0, buffer_bytes=2000, partitions=2) as bus:
            await bus.publish(PaintingSold(buyer="x" * 400, number=0))
            faulty.cut()
            for _ in range(12):
                tasks.start_soon(one, bus)
            await trio.testing.wait_all_tasks_blocked(0.01)
            tasks.start_soon(bus.aclose)
            with trio.fail_after(0.5):
                await trio.testing.wait_all_tasks_blocked(0.01)
            assert told == []
    assert {type(error) for error in told} == {Unavailable, BufferFull} and len(told) == 12


async def test_publishes_that_are_cancelled_are_bounded(any_url: str, namespace: str, eyes: Eyes) -> None:
    """While the server is away, tasks that give up leave no more behind than `buffer_bytes`."""
    faulty = FaultyServer(open_server(any_url))
    async with running(faulty, namespace=namespace, grace=0.1, buffer_bytes=50_000) as bus:
        await bus.publish(PaintingMade(title="x" * 400))
        faulty.cut()
        for number in range(1000):
            with trio.move_on_after(0):
                await bus.publish(PaintingMade(title="x" * 400, number=number))
        assert 45_000 < bus.publisher_statistics().waiting_bytes < 55_000
