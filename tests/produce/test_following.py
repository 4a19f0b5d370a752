"""A batch that is begun along with the one before it: MULTI and its XADDs are there early, and nothing of it is stored
before the one before it is known to be."""

import random
from collections.abc import Sequence
from typing import Any, Self

import msgspec
import pytest
from faulty import Fault, FaultyServer, commands_in
from seeds import seeds
from studio import Eyes, PaintingMade, SculptureMade, running

from canvasbus import Event, StreamFull, Unavailable
from canvasbus.produce.fenced import FencedSender, Result
from canvasbus.transport.connect import open_server
from canvasbus.transport.link import Link
from canvasbus.transport.resp import ReplyError
from canvasbus.wire.codec import Codec
from canvasbus.wire.keys import Keys
from canvasbus.wire.outgoing import Outgoing
from canvasbus.wire.retention import Full


class Row:
    """Sends batches one after the other, each with the next one in view."""

    def __init__(self, url: str, namespace: str, **options: Any) -> None:
        self.server = FaultyServer(open_server(url))
        self.link = Link(self.server, timeout=2.0)
        self.eyes = Eyes(open_server(url), namespace)
        self.sender = FencedSender(Keys(namespace), **options)
        self.packets: list[list[bytes]] = []
        self.server.on_packet = lambda data: self.packets.append(commands_in(data))

    async def send(self, *batches: Sequence[Outgoing], patience: float | None = None) -> list[Result]:
        results: list[Result] = []
        for batch, following in zip(batches, [*batches[1:], None], strict=True):
            operation = self.sender.send(batch, patience=patience, following=following)
            results += await self.link.run(operation)
        return results

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.link.aclose()
        self.eyes.close()

    def numbers(self) -> list[int]:
        return [made.number for made in self.eyes.events("painting.made")]

    def ids(self) -> list[bytes]:
        return [row[0] for row in self.eyes.call("XRANGE", self.eyes.stream("painting.made"), "-", "+")]


def batches(*numbers: Sequence[int]) -> list[list[Outgoing]]:
    codec = Codec("row")
    return [[codec.encode(PaintingMade(number=number)) for number in some] for some in numbers]


async def test_the_next_batch_is_begun_early(any_url: str, namespace: str) -> None:
    """From the second batch on a packet commits one batch and begins the next; what is stored, and the entry ids, are the
    same as of batches that go one by one."""
    async with Row(any_url, namespace) as row:
        results = await row.send(*batches([1, 2], [3], [4, 5]))
        tail = [b"EXEC", b"WATCH", b"GET"]
        assert row.packets[-3:] == [
            [b"MULTI", b"XADD", b"XADD", *tail, b"MULTI", b"XADD"],
            [*tail, b"MULTI", b"XADD", b"XADD"],
            tail,
        ]
        assert row.numbers() == [1, 2, 3, 4, 5] and row.ids() == results
        assert await row.send(*batches([6])) == row.ids()[5:]
        assert (row.sender.statistics.batches, row.sender.statistics.events) == (4, 6)
        await row.link.aclose()


async def test_a_type_that_was_not_sent_before_is_not_begun(any_url: str, namespace: str) -> None:
    """What has to be announced first goes out by itself; so does what must be written down first (`note`)."""
    async with Row(any_url, namespace) as row:
        other = [Codec("row").encode(SculptureMade(title="x"))]
        await row.send(*batches([1]), other, *batches([2]))
        assert [packet.count(b"MULTI") for packet in row.packets] == [1, 1, 1, 2, 0]  # one each to ask whether it may
        assert row.numbers() == [1, 2] and len(row.eyes.events("sculpture.made")) == 1
    async with Row(any_url, f"{namespace}-2", note=lambda *_: None) as noting:
        await noting.send(*batches([1], [2]))
        assert [packet.count(b"MULTI") for packet in noting.packets] == [1, 1, 1] and noting.numbers() == [1, 2]


@pytest.mark.parametrize("kind", ["lose_request", "lose_reply"])
@pytest.mark.parametrize("at", [0, 1, 2])
async def test_no_answer(any_url: str, namespace: str, kind: Any, at: int) -> None:
    """A packet that commits one batch and begins the next is lost, or its answer: each event is stored once, in order."""
    async with Row(any_url, namespace) as row:
        seen = 0

        def strike(data: bytes) -> None:
            nonlocal seen
            if b"WATCH" in commands_in(data) and b"EXEC" in data and b"XREVRANGE" not in data:
                if seen == at:
                    row.server.faults.append(Fault(kind, b"EXEC"))
                seen += 1

        row.server.on_packet = strike
        results = await row.send(*batches([1, 2], [3], [4, 5]))
        assert row.server.struck == 1 and row.numbers() == [1, 2, 3, 4, 5] and row.ids() == results
        now = row.sender.statistics
        assert (now.failures, now.found > 0, now.resent) == (1, kind == "lose_reply", int(kind == "lose_request"))


@pytest.mark.parametrize("why", ["flushed", "fenced"])
async def test_the_one_before_it_is_not_stored(any_url: str, namespace: str, why: str) -> None:
    """EXEC says nil for a batch while the next is begun already: that is put back, and both go out again, in order."""
    async with Row(any_url, namespace) as row:

        def interfere(data: bytes) -> None:
            if commands_in(data)[:1] == [b"EXEC"]:
                row.server.on_packet = None
                if why == "flushed":
                    row.eyes.call("DEL", row.eyes.keys.topics)
                else:
                    row.eyes.call("INCR", row.eyes.keys.fence(row.sender.incarnation))

        row.server.on_packet = interfere
        results = await row.send(*batches([1], [2], [3], [4]))
        assert row.server.on_packet is None and row.numbers() == [1, 2, 3, 4] and row.ids() == results
        assert row.sender.statistics.failures == 0
        assert row.eyes.call("SMEMBERS", row.eyes.keys.topics) == [b"painting.made"]


@pytest.mark.parametrize("when_full", ["reject", "block"])
async def test_a_stream_that_is_full_meanwhile(any_url: str, namespace: str, when_full: str) -> None:
    """The answer to a batch says that its stream takes no more: what is begun is put back, and refused or waits."""
    async with Row(any_url, namespace) as row:
        full = msgspec.json.encode({"painting.made": Full(when_full=when_full, group="painters", length=2)})  # type: ignore[arg-type]
        exec_packets = 0

        def fill(data: bytes) -> None:
            nonlocal exec_packets
            names = commands_in(data)
            if b"EXEC" in names and b"WATCH" in names and b"XREVRANGE" not in names:
                exec_packets += 1
                if exec_packets == 2:
                    row.eyes.call("SET", row.eyes.keys.full, full)
            elif names == [b"GET"] and exec_packets == 2 and when_full == "block":
                row.eyes.call("DEL", row.eyes.keys.full)

        row.server.on_packet = fill
        results = await row.send(*batches([1], [2], [3]))
        assert row.numbers() == ([1, 2] if when_full == "reject" else [1, 2, 3])
        assert isinstance(results[2], StreamFull if when_full == "reject" else bytes)


async def test_told_to_wait_while_the_next_is_begun(any_url: str, namespace: str) -> None:
    """No memory: the server refuses a batch and what is begun behind it. Both are sent again, in order, over a new
    connection; with its patience used up a batch is refused for sure, and the next is not stored by mistake."""
    async with Row(any_url, namespace) as row:
        row.server.faults.append(Fault("answer", b"XADD", "OOM command not allowed", times=2))
        results = await row.send(*batches([1], [2], [3]))
        assert row.numbers() == [1, 2, 3] and row.ids() == results
        row.server.faults.append(Fault("answer", b"XADD", "OOM command not allowed", times=1))
        impatient = await row.send(*batches([4], [5]), patience=0.0)
        (no, yes) = impatient
        assert isinstance(no, Unavailable) and not no.ambiguous and isinstance(yes, bytes)
        assert row.numbers() == [1, 2, 3, 5]


async def test_a_link_that_is_closed_in_between(any_url: str, namespace: str) -> None:
    """What was begun over a connection that is gone is sent whole over the next one."""
    async with Row(any_url, namespace) as row:
        one, two = batches([1], [2])
        await row.link.run(row.sender.send(one, following=two))
        await row.link.aclose()
        await row.link.run(row.sender.send(two))
        assert row.numbers() == [1, 2]


async def test_another_batch_than_the_one_that_was_begun(any_url: str, namespace: str) -> None:
    """What was begun is put back when another batch comes, and can be sent afterwards."""
    async with Row(any_url, namespace) as row:
        one, two, three = batches([1], [2], [3])
        await row.link.run(row.sender.send(one, following=two))
        assert len(await row.send(three, two)) == 2
        assert row.numbers() == [1, 3, 2]


def test_multi_is_forbidden_while_a_batch_is_begun() -> None:
    """What an ACL lets through one by one then is taken as it is, or looked for where something else came in between."""
    one, two = batches([1], [2])
    no, without = ReplyError("NOPERM no permissions to run the 'multi' command"), ReplyError("ERR EXEC without MULTI")
    sender = FencedSender(Keys("scripted"), incarnation="me")
    first = sender.send(one, following=two)
    next(first)
    first.send([b"OK", [], 1, [], b"OK"])
    with pytest.raises(StopIteration) as done:
        first.send([b"OK", b"QUEUED", [b"1-1"], b"OK", None])
    assert done.value.value == [b"1-1"]
    second = sender.send(two)
    packet = next(second)
    assert (packet.replies, packet.early, packet.later) == (5, 2, 0)  # type: ignore[union-attr]
    with pytest.raises(StopIteration) as done:
        second.send([no, b"2-1", without, b"OK", None])
    assert done.value.value == [b"2-1"]


async def test_what_was_begun_may_be_there(any_url: str, namespace: str) -> None:
    """An ACL refuses MULTI from one moment to the next, so that what was begun is stored one by one, and the answer that
    would say so is lost: it is looked for, and not stored again."""
    async with Row(any_url, namespace) as row:
        one, two, three = batches([1], [2, 3], [4])

        def strike(data: bytes) -> None:
            names = commands_in(data)
            if b"EXEC" in names and names[-1] == b"XADD":
                row.server.faults.append(Fault("lose_reply", b"EXEC"))
            elif b"INCR" in names and row.eyes.count("painting.made") == 1:
                for item in two:
                    row.eyes.call("XADD", row.eyes.stream(), "*", "e", item.data)
                row.server.on_packet = None

        row.server.on_packet = strike
        assert await row.send(one, two, three) == row.ids() and row.numbers() == [1, 2, 3, 4]
        assert row.sender.statistics.lost == 0


@pytest.mark.parametrize("seed", seeds(8, "following"))
async def test_at_random(namespace: str, seed: int, autojump_clock: Any) -> None:
    """Batches under random faults, each sent with the next in view: all are stored once, in order, with the ids that were
    told; the list of topics is touched by others now and then."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    async with Row(f"memory://{namespace}", namespace) as row:
        plan = [[n * 10 + i for i in range(rng.randrange(1, 4))] for n in range(80)]
        seen = 0

        def strike(data: bytes) -> None:
            nonlocal seen
            seen += commands_in(data)[0] == b"EXEC"
            if rng.random() < 0.2:
                row.server.faults = [Fault(rng.choice(["lose_request", "lose_reply"]), b"")]
            elif rng.random() < 0.05:
                row.server.faults = [Fault("answer", b"XADD", "OOM no")]
            elif rng.random() < 0.05:
                row.eyes.call("SADD", row.eyes.keys.topics, f"other.topic{rng.randrange(100)}")
            elif rng.random() < 0.05:
                row.server.replace()

        row.server.on_packet = strike
        results = await row.send(*batches(*plan))
        assert row.numbers() == [number for some in plan for number in some] and row.ids() == results
        now = row.sender.statistics
        assert now.found and now.resent and seen and now.lost == 0


async def test_publish_many_under_faults(any_url: str, namespace: str) -> None:
    """The same through the bus: 5,000 events in one call, with three answers lost on the way and one publish between."""
    server = FaultyServer(open_server(any_url))
    eyes = Eyes(open_server(any_url), namespace)
    packets: list[list[bytes]] = []
    server.on_packet = lambda data: packets.append(commands_in(data))
    async with running(server, namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=-1))
        for n in range(3):
            server.faults.append(Fault("lose_reply" if n else "lose_request", b"EXEC"))
            events: list[Event] = [PaintingMade(number=n * 5000 + i) for i in range(5000)]
            await bus.publish_many(events)
    assert [made.number for made in eyes.events("painting.made")] == list(range(-1, 15_000))
    assert any(packet[0] == b"EXEC" and packet[3] == b"MULTI" for packet in packets if len(packet) > 3)
