"""What a worker accepts: it says what it does, under its heartbeat, for nothing."""

from collections import Counter
from random import Random
from typing import Any

import pytest
import trio
from faulty import FaultyServer
from studio import Eyes, PaintingMade, quiet, running
from trio.abc import Clock
from versions import LAID, Era, framing
from waiting import until

from canvasbus.consume.accepting import Accepted, Does, accepted, encode, read
from canvasbus.consume.liveness import Heart, Progress
from canvasbus.consume.policy import Backoff, DeadLetter, Park, Raised, decide
from canvasbus.contract.registry import registry
from canvasbus.errors import DecodeError
from canvasbus.transport.memory import MemoryServer
from canvasbus.wire.codec import VERSIONS_AHEAD, Codec
from canvasbus.wire.keys import Keys
from canvasbus.worker import PER_INSTANCE, Worker


def said(eyes: Eyes, group: str = "framers") -> dict[str, Accepted | None]:
    """Consumer → what it says that it accepts."""
    flat = eyes.call("HGETALL", eyes.keys.accepts(group))
    return {name.decode(): read(value) for name, value in zip(flat[::2], flat[1::2], strict=True)}


def beating(eyes: Eyes, group: str = "framers") -> set[str]:
    return {name.decode() for name in eyes.call("HKEYS", eyes.keys.beats(group))}


# --- what it says -----------------------------------------------------------------------------------------------------


def really(era: Era, version: int) -> Does:
    """What becomes of an event of this version, by the codec and the policy themselves."""
    value = b'{"type": "%s", "version": %d, "data": {"stones": []}}' % (LAID.encode(), version)
    try:
        Codec(registry=era.known).decode(value, stream_type=LAID, entry_id="1-0")
    except DecodeError as error:
        verdict = decide(Raised(error), 0, Backoff(), Random(0))
        assert isinstance(verdict, Park | DeadLetter)
        return Does.PARK if isinstance(verdict, Park) else Does.GIVE_UP
    return Does.TAKE


@pytest.mark.parametrize("era", [Era(0), Era(1), Era(3), Era(5, since=3)], ids=lambda era: f"v{era.version}")
@pytest.mark.parametrize("what", [LAID, "mosaic.*"])
def test_a_worker_does_as_it_says(era: Era, what: str) -> None:
    """Taken, parked or given up, of every version: what the registration foretells is what the worker does, whether it
    names the type or a glob matches it, and whether its process knows the type or not."""
    says = read(encode(accepted(framing("framers", what), era.known)))
    assert says is not None
    versions = (*range(1, 10), era.version + VERSIONS_AHEAD, era.version + VERSIONS_AHEAD + 1)
    assert [says.does(LAID, version) for version in versions] == [really(era, version) for version in versions]
    assert says.versions(LAID) == ((3, 5) if era.version == 5 else (1, era.version) if era.version else None)


def test_what_nobody_listens_to_is_left() -> None:
    """Other types, and the bus's own ones, which a star does not match."""
    says = accepted(framing("framers", "mosaic.*", "painting.made"), Era(2).known)
    assert says == Accepted({"painting.made": None, LAID: (1, 2)}, ("mosaic.*",))
    assert says.does("sculpture.made", 1) is Does.LEAVE
    everything = accepted(framing("framers", "*"), registry)
    assert everything.does("handler.failed", 1) is Does.LEAVE and "bus.loss" not in everything.types
    assert everything.does("painting.made", 1) is Does.TAKE
    assert accepted(framing("framers", "bus.loss"), registry).does("bus.loss", 1) is Does.TAKE


@pytest.mark.parametrize(
    "garbage",
    [
        *(
            b"",
            b"5",
            b"[]",
            b"{",
            b"[" * 50_000,
            b'"\xff"',
            b'{"types": 5}',
            b'{"globs": [5]}',
            b'{"types": {"a.b": [1]}}',
        ),
        *(
            b'{"types": {"a.b": [0, 1]}}',
            b'{"types": {"a.b": [1, %s]}}' % (b"9" * 5000),
            b'{"types": {"a.b": [1, 1e400]}}',
        ),
    ],
)
def test_what_a_stranger_wrote_says_nothing(garbage: bytes) -> None:
    """It is unknown, not an error, and not "accepts nothing"."""
    assert read(garbage) is None and read(None) is None


def test_a_strangers_glob_costs_no_time() -> None:
    """Thirty stars against a long name, which a regular expression would try in more ways than there are seconds."""
    says = read(encode(Accepted(globs=("*a" * 30 + "*b",))))
    assert says is not None and says.does("a" * 128, 1) is Does.LEAVE


# --- when it says it --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("partitions", [1, 3])
async def test_it_is_there_with_the_heartbeat_and_goes_with_it(
    any_url: str, namespace: str, eyes: Eyes, partitions: int
) -> None:
    """In every partition, and nothing stays behind of a worker that leaves."""
    everywhere = [Eyes(any_url, namespace, partition) for partition in range(partitions)]
    async with (
        Era(2).running(any_url, framing("framers"), namespace=namespace, partitions=partitions) as old,
        Era(3).running(any_url, framing("framers"), namespace=namespace, partitions=partitions) as new,
    ):
        wanted = {
            old.statistics()[0].consumer: Accepted({LAID: (1, 2)}),
            new.statistics()[0].consumer: Accepted({LAID: (1, 3)}),
        }
        for one in everywhere:
            await until(lambda one=one: said(one) == wanted)
            assert beating(one) == wanted.keys()
    for one in everywhere:
        assert eyes.call("EXISTS", one.keys.accepts("framers"), one.keys.beats("framers")) == 0
        one.close()


async def test_an_instance_leaves_nothing_behind(any_url: str, namespace: str, eyes: Eyes) -> None:
    """A group of one process goes with what its worker said."""
    async with Era(2).running(any_url, framing("framers", instance=True), namespace=namespace) as bus:
        group = bus.statistics()[0].group
        await until(lambda: list(said(eyes, group).values()) == [Accepted({LAID: (1, 2)})])
    assert eyes.call("EXISTS", eyes.keys.accepts(group)) == 0


async def test_what_the_server_forgot_is_said_again(any_url: str, namespace: str, eyes: Eyes) -> None:
    """After a FLUSHALL, say: with the next heartbeats."""
    async with Era(2).running(any_url, framing("framers"), namespace=namespace):
        await until(lambda: len(said(eyes)) == 1)
        eyes.call("DEL", eyes.keys.accepts("framers"), eyes.keys.beats("framers"))
        await until(lambda: len(said(eyes)) == 1)


async def test_it_changes_with_what_the_process_knows(any_url: str, namespace: str, eyes: Eyes) -> None:
    """A module that declares a newer version was imported while the worker ran."""
    era = Era(1)
    async with era.running(any_url, framing("framers"), namespace=namespace):
        await until(lambda: list(said(eyes).values()) == [Accepted({LAID: (1, 1)})])
        era.learn(2)
        await until(lambda: list(said(eyes).values()) == [Accepted({LAID: (1, 2)})])


async def test_a_worker_that_leaves_takes_nothing_more(any_url: str, namespace: str, eyes: Eyes) -> None:
    """While it still finishes what it holds."""
    began, go_on = trio.Event(), trio.Event()
    worker = Worker("framers")

    @worker.on(PaintingMade)
    async def frame(event: PaintingMade) -> None:
        began.set()
        await go_on.wait()

    async def release() -> None:
        await until(lambda: list(said(eyes).values()) == [Accepted()])
        go_on.set()

    async with trio.open_nursery() as nursery:
        async with running(any_url, worker, namespace=namespace) as bus:
            await bus.publish(PaintingMade())
            await began.wait()
            await until(lambda: [one.does("painting.made", 1) for one in said(eyes).values() if one] == [Does.TAKE])
            nursery.start_soon(release)
    assert said(eyes) == {}


async def test_it_costs_nothing_per_event_and_next_to_nothing_per_beat(
    virtual: Clock, memory: MemoryServer, namespace: str
) -> None:
    """Said once in ten minutes of beating and a thousand events, and once more for each new connection of the heart."""
    server, packets = FaultyServer(memory), Counter[bytes]()
    server.on_packet = lambda data: packets.update(
        name for name in (b":accepts:framers", b":beats:framers") if name in data and b"HINCRBY" in data
    )
    worker = Worker("framers")

    @worker.on(PaintingMade)
    async def frame(event: PaintingMade) -> None: ...

    async with running(server, worker, namespace=namespace) as bus:
        for _ in range(10):
            await bus.publish_many([PaintingMade() for _ in range(100)])
            await trio.sleep(60)
        assert packets[b":accepts:framers"] == 1 and packets[b":beats:framers"] >= 600
        memory.set_connected(False)
        await trio.sleep(10)
        memory.set_connected(True)
        await trio.sleep(10)
        said_again = packets[b":accepts:framers"]
        await trio.sleep(120)
    assert packets[b":accepts:framers"] == said_again > 1


# --- trouble ----------------------------------------------------------------------------------------------------------


async def test_a_dead_worker_accepts_nothing(virtual: Clock, memory: MemoryServer, namespace: str) -> None:
    """What a killed one said goes when the others find it dead."""
    eyes, cable = Eyes(memory, namespace), FaultyServer(memory)
    async with Era(2).running(memory, framing("framers"), namespace=namespace):
        async with Era(3).running(cable, framing("framers"), namespace=namespace, grace=0.1) as dying:
            dead = dying.statistics()[0].consumer
            await until(lambda: len(said(eyes)) == 2)
            cable.cut()
            await until(lambda: dead not in said(eyes), 30)
            assert list(said(eyes).values()) == [Accepted({LAID: (1, 2)})]


async def test_a_key_that_is_no_hash_stops_nobody(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Hearts beat, the dead are tidied away, workers leave; and when the key is free again, they say what they accept."""
    eyes.call("SET", eyes.keys.accepts("framers"), b"\xff\x00")
    async with Era(2).running(any_url, framing("framers"), namespace=namespace) as bus:
        mine = bus.statistics()[0].consumer
        eyes.call("HSET", eyes.keys.beats("framers"), "long-dead", 7)
        eyes.put(Era(1).encoded(1), LAID)
        await until(lambda: eyes.count("painting.framed") == 1)
        await until(lambda: int(eyes.call("HGET", eyes.keys.beats("framers"), mine) or 0) >= 3)
        await until(lambda: beating(eyes) == {mine}, 30)
        eyes.call("DEL", eyes.keys.accepts("framers"))
        await until(lambda: said(eyes) == {mine: Accepted({LAID: (1, 2)})})
        await quiet(eyes, event_type=LAID)
        eyes.call("DEL", eyes.keys.accepts("framers"))
        eyes.call("SET", eyes.keys.accepts("framers"), "again")
    assert beating(eyes) == set() and eyes.consumers("framers", LAID) == set()


def test_a_beat_counts_although_nothing_could_be_said() -> None:
    """And what could not be said is said with the next beat, until it is."""
    server, keys = MemoryServer(), [Keys("studio", 0), Keys("studio", 1)]
    eyes = [Eyes(server, "studio", partition) for partition in (0, 1)]
    eyes[1].call("SET", keys[1].accepts("g"), "x")
    heart = Heart(server, keys, "g", "me", Progress(), accepts=lambda: b"{}")
    pauses = _Pauses(3)
    heart._stop = pauses  # type: ignore[assignment]
    pauses.before_last = lambda: eyes[1].call("DEL", keys[1].accepts("g"))
    heart._run()
    assert heart.beats == 3
    assert [one.call("HGET", one.keys.accepts("g"), "me") for one in eyes] == [b"{}", b"{}"]


class _Pauses:
    """Instead of a heart's stop: lets so many beats follow each other at once."""

    def __init__(self, beats: int) -> None:
        self.left = beats
        self.before_last: Any = lambda: None

    def wait(self, _: float) -> bool:
        if self.left == 1:
            self.before_last()
        self.left -= 1
        return self.left < 0


def test_per_instance_says_the_same() -> None:
    """What a worker accepts does not hang on its group."""
    worker = Worker("framers", group=PER_INSTANCE)
    worker.on(LAID)(lambda event: None)
    assert accepted(worker, Era(4).known) == Accepted({LAID: (1, 4)})
