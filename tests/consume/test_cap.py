"""A stream at its cap: who waits, who is refused, what goes, and that what goes is told."""

import contextlib
import json
from random import Random

import pytest
import trio
from consume.house import DROPS, House, sending
from seeds import seeds
from studio import Eyes, PaintingFramed, PaintingMade, SculptureMade, framing, quiet, runner_of, running
from trio.abc import Clock
from waiting import until

from canvasbus import Producer, StreamFull, Unavailable
from canvasbus.bus import Retention
from canvasbus.consume.retention import Trimmer, declare
from canvasbus.transport.memory import MemoryServer
from canvasbus.transport.resp import Packet, ReplyError
from canvasbus.wire.retention import Full, read_full
from canvasbus.worker import Worker


def test_at_the_cap_the_oldest_go_and_are_told(any_url: str, namespace: str, eyes: Eyes) -> None:
    """drop_with_loss_event counts exactly what a group had not handled."""
    house = House(eyes, Retention(max_age=None, max_length=None, cap=10, when_full="drop_with_loss_event"))
    house.group("slow")
    house.add(*[f"{n}-1" for n in range(1, 9)])
    assert house.look() == [] and len(house.left()) == 8
    house.ack("slow", *house.read("slow", 3))
    house.add(*[f"{n}-1" for n in range(9, 21)])
    (loss,) = house.look()
    assert (loss.reason, loss.topic, loss.group, loss.lost) == ("stream_full", "painting.made", "slow", 8)
    assert house.left() == [f"{n}-1" for n in range(12, 21)]
    assert eyes.call("GET", eyes.keys.full) is None
    (told,) = house.told()
    assert (told.reason, told.topic, told.group, told.lost) == ("stream_full", "painting.made", "slow", 8)
    assert (
        told.detail
        == loss.detail
        == (
            "the stream had reached its cap of 10 entries; its oldest were removed although group slow had not handled 8 of "
            "them, from 4-1 on; the stream begins with 12-1 now"
        )
    )


def test_each_group_is_told_what_it_loses_at_the_cap(any_url: str, namespace: str, eyes: Eyes) -> None:
    """One bus.loss for each group that had not handled all of it: its own number, what it was given and has not
    acknowledged included, what it has acknowledged out of turn left out."""
    house = House(eyes, Retention(max_age=None, max_length=None, cap=400, when_full="drop_with_loss_event"))
    for name in ("fresh", "holding", "ahead", "stranger"):
        house.group(name, declared=name != "stranger")
    eyes.call("HSET", eyes.keys.groups, "coming", json.dumps({"types": ["painting.made"], "globs": []}))
    house.add(*[f"{n}-1" for n in range(1, 1001)])
    given = house.read("holding", 250)
    house.ack("holding", *[given[n] for n in range(0, 250, 2)], given[1])
    house.ack("ahead", *house.read("ahead", 900))
    losses = {loss.group: loss for loss in house.look()}
    assert house.left() == [f"{n}-1" for n in range(602, 1001)]
    assert {name: loss.lost for name, loss in losses.items()} == {"fresh": 601, "coming": 601, "holding": 475}
    assert "from 4-1 on; the stream begins with 602-1 now" in losses["holding"].detail
    assert "from 1-1 on;" in losses["fresh"].detail


def test_a_stream_far_over_its_cap_is_brought_down_in_one_look(any_url: str, namespace: str, eyes: Eyes) -> None:
    """In several steps, so that the server does others' work in between; each tells what it took."""
    house = House(eyes, Retention(max_age=None, max_length=None, cap=1000, when_full="drop_with_loss_event"))
    house.group("slow")
    for begin in range(1, 50_001, 10_000):
        forms = [("XADD", house.stream, f"{n}-1", "e", "x") for n in range(begin, begin + 10_000)]
        assert not [reply for reply in eyes.run(sending(forms)) if isinstance(reply, ReplyError)]
    house.ack("slow", *house.read("slow", 10_000)[:9_990])
    (loss,) = house.look()
    assert sum(told.lost for told in house.told()) == 39_011
    assert loss.lost == 39_011 and "from 9991-1 on; the stream begins with 49002-1 now" in loss.detail
    assert len(house.left()) == 999


async def test_what_a_dead_worker_held_is_told_once(virtual: Clock, memory: MemoryServer, namespace: str) -> None:
    """By whoever drops it at the cap, in one step, and not once more, one by one, by those who take over from the dead."""
    eyes = Eyes(memory, namespace)
    async with running(memory, framing(), namespace=namespace):
        pass
    async with running(memory, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(20)])
    eyes.call("XREADGROUP", "GROUP", "framers", "ghost", "STREAMS", eyes.stream(), ">")
    eyes.run(declare([eyes.keys], {"painting.made": DROPS}))
    eyes.run(Trimmer(eyes.keys).look(0.0))
    assert [loss.lost for loss in eyes.events("bus.loss")] == [11]
    async with running(memory, framing(), namespace=namespace):
        await until(lambda: not eyes.pending("framers"), 30)
    assert sorted(framed.number for framed in eyes.events("painting.framed")) == list(range(11, 20))
    assert [loss.lost for loss in eyes.events("bus.loss")] == [11]


async def test_what_a_worker_that_leaves_held_is_told_once(any_url: str, namespace: str, eyes: Eyes) -> None:
    """What was dropped out of its hands it can hand back to nobody; it is told, and nobody has to take it over."""
    worker = Worker("framers")

    @worker.on(PaintingMade, concurrency=20)
    async def frame(event: PaintingMade) -> None:
        await trio.sleep_forever()

    async with running(any_url, worker, namespace=namespace, grace=0) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(20)])
        await until(lambda: runner_of(bus).statistics().held == 20)
        eyes.run(declare([eyes.keys], {"painting.made": DROPS}))
        eyes.run(Trimmer(eyes.keys).look(0.0))
    assert [loss.lost for loss in eyes.events("bus.loss")] == [11]
    assert {owner for _, owner, _ in eyes.pending("framers")} == {"~free"}
    assert len(eyes.pending("framers")) == 9 and eyes.consumers("framers") == {"~free"}


@pytest.mark.parametrize("seed", seeds(8, "drop"))
def test_what_is_told_is_what_is_lost(any_url: str, namespace: str, eyes: Eyes, seed: int) -> None:
    """Random additions, reads, acknowledgements and looks at a cap against lists: each group is told exactly as many as
    went without it."""
    draw = Random(seed)
    print(f"seed {seed}")
    cap = draw.choice([1, 5, 150])
    house = House(eyes, Retention(max_age=None, max_length=None, cap=cap, when_full="drop_with_loss_event"))
    names = [f"g{n}" for n in range(draw.randrange(1, 5))]
    waiting: dict[str, list[str]] = {name: [] for name in names}
    told, lost = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    held: dict[str, list[str]] = {name: [] for name in names}
    for name in names:
        house.group(name)
    serial = 0
    for _ in range(60):
        name = draw.choice(names)
        match draw.randrange(4):
            case 0:
                fresh = [f"{serial + n + 1}-0" for n in range(draw.randrange(1, 2 * cap + 9))]
                serial += len(fresh)
                house.add(*fresh)
                for unhandled in waiting.values():
                    unhandled += fresh
            case 1:
                held[name] += house.read(name, draw.randrange(1, cap + 9))
            case 2 if held[name]:
                done = draw.sample(held[name], draw.randrange(1, len(held[name]) + 1))
                house.ack(name, *done)
                held[name] = [i for i in held[name] if i not in done]
                waiting[name] = [i for i in waiting[name] if i not in done]
            case _:
                house.look()
                told = dict.fromkeys(names, 0)
                for loss in house.told():
                    assert loss.group is not None and loss.reason == "stream_full"
                    told[loss.group] += loss.lost or 0
                left = set(house.left())
                for group, unhandled in waiting.items():
                    lost[group] += sum(i not in left for i in unhandled)
                    waiting[group] = [i for i in unhandled if i in left]
                assert told == lost and len(left) < max(cap, 1)


def test_a_loss_is_told_although_the_reply_of_the_trim_is_lost(any_url: str, namespace: str, eyes: Eyes) -> None:
    """And although whoever trimmed is killed behind it: what is gone is told by then, once."""
    house = House(eyes, DROPS)
    house.group("slow")
    house.add(*[f"{n}-1" for n in range(1, 21)])
    for trimmer in (house.trimmer, Trimmer(eyes.keys)):
        look, replies = trimmer.look(100.0), None
        while len(house.left()) == 20:
            packet = look.send(replies)
            assert isinstance(packet, Packet)
            replies = eyes._link.request(packet)
        look.close()
        assert [loss.lost for loss in house.told()] == [11] and len(house.left()) == 9
    house.add("21-1")
    house.look()
    assert [loss.lost for loss in house.told()] == [11, 1]


def test_what_cannot_be_told_does_not_go(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Something else lies at the stream of bus.loss, or it has used up its ids: what is handled goes, the rest stays
    until it can be told."""
    house = House(eyes, DROPS)
    house.group("slow")
    house.add(*[f"{n}-1" for n in range(1, 31)])
    house.ack("slow", *house.read("slow", 5))
    place = eyes.stream("bus.loss")
    for spoil in (("SET", place, "x"), ("XADD", place, f"{2**64 - 1}-{2**64 - 1}", "e", "x")):
        eyes.call(*spoil)
        assert house.look() == [] and house.left() == [f"{n}-1" for n in range(6, 31)]
        (problem,) = house.problems
        assert "trim painting.made" in problem and place.decode() in problem
        eyes.call("DEL", place)
    house.look()
    assert house.problems == [] and [loss.lost for loss in house.told()] == [16]


def test_an_undeclared_group_holds_up_nobody_at_a_cap(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Somebody's experiment with redis-cli: what the declared groups have handled goes, publishers do not wait for it, and
    nobody is told that it lost something; as soon as it is declared nothing goes without it any more."""
    house = House(eyes, Retention(max_age=None, max_length=None, cap=10))
    house.group("stranger", declared=False)
    house.group("framers")
    house.add(*[f"{n}-1" for n in range(1, 31)])
    house.ack("framers", *house.read("framers", 25))
    assert house.look() == [] and house.left() == [f"{n}-1" for n in range(26, 31)]
    assert eyes.call("GET", eyes.keys.full) is None
    eyes.call("HSET", eyes.keys.groups, "stranger", json.dumps({"types": ["painting.made"], "globs": []}))
    house.add(*[f"{n}-1" for n in range(31, 41)])
    house.ack("framers", *house.read("framers", 25))
    assert house.look() == [] and len(house.left()) == 15
    assert json.loads(eyes.call("GET", eyes.keys.full))["painting.made"]["group"] == "stranger"


def test_all_that_hold_up_a_full_stream_are_named(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Every group that has not handled the oldest entry, no other, and the cap beside what is there."""
    house = House(eyes, Retention(max_age=None, max_length=None, cap=3))
    for name in ("quick", "slow-1", "slow-2"):
        house.group(name)
    house.add(*[f"{n}-1" for n in range(1, 11)])
    house.ack("quick", *house.read("quick", 1))
    house.read("slow-2", 5)
    house.look()
    full = read_full(eyes.call("GET", eyes.keys.full))["painting.made"]
    assert str(full).startswith(
        "the stream holds 10 entries, its cap is 3; groups 'slow-1', 'slow-2' have not handled the oldest: "
    )


def test_of_many_groups_the_first_are_named() -> None:
    """And how many more there are."""
    full = Full("block", "a", 9, 3, tuple("bcdefg"))
    assert "groups 'a', 'b', 'c', 'd', 'e' and 2 more have not handled" in str(full)


async def test_publishers_wait_at_the_cap(any_url: str, namespace: str, eyes: Eyes) -> None:
    """block: events wait, the statistics say whom for, and go on when the group has caught up."""
    eyes.call("XGROUP", "CREATE", eyes.stream(), "framers", "0", "MKSTREAM")
    eyes.call("HSET", eyes.keys.groups, "framers", json.dumps({"types": ["painting.made"], "globs": []}))
    policy = {"painting.made": Retention(max_length=10, cap=20)}
    async with running(any_url, namespace=namespace, retention=policy, patience=0.2) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(25)])
        await until(lambda: eyes.call("GET", eyes.keys.full))
        with pytest.raises(Unavailable, match=r"its cap is 20; group 'framers' has not handled"):
            for _ in range(3):  # the first learns of it with its reply
                await bus.publish(PaintingMade(number=99))
        with Producer(any_url, namespace=namespace) as producer:
            for n in range(5):
                producer.publish(PaintingMade(number=100 + n))
                producer.flush(0.3)
            assert "cap" in str(producer.statistics().last_error)
            worker = Worker("framers")
            seen: list[int] = []

            @worker.on(PaintingMade)
            async def handle(event: PaintingMade) -> None:
                seen.append(event.number)

            async with running(any_url, worker, namespace=namespace):
                flushed = await trio.to_thread.run_sync(producer.flush, 15)
                await quiet(eyes)
    assert flushed or producer.statistics().dropped == 0
    assert set(seen) >= {*range(25), *range(100, 105)}


async def test_a_cap_is_passed_by_one_batch_of_each_publisher(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Once it is noticed: each learns of it with the reply to a batch, and sends no other; what handlers return passes."""
    for event_type in ("painting.made", "painting.framed"):
        eyes.call("XGROUP", "CREATE", eyes.stream(event_type), "viewers", "0", "MKSTREAM")
    about = {"types": ["painting.made", "painting.framed"], "globs": []}
    eyes.call("HSET", eyes.keys.groups, "viewers", json.dumps(about))
    worker = Worker("framers")

    @worker.on(PaintingMade)
    async def frame(event: PaintingMade) -> PaintingFramed:
        return PaintingFramed(number=event.number)

    async with contextlib.AsyncExitStack() as stack:
        policy = {"painting.*": Retention(cap=20)}
        buses = [
            await stack.enter_async_context(running(any_url, namespace=namespace, retention=policy, patience=0.2))
            for _ in range(3)
        ]
        for bus in buses:
            await bus.publish_many([PaintingMade() for _ in range(8)])
        await until(lambda: eyes.call("GET", eyes.keys.full))
        for bus in buses:
            with pytest.raises(ExceptionGroup, match="10 of 10 events were not published"):
                for _ in range(5):
                    await bus.publish_many([PaintingMade() for _ in range(10)])
        assert 24 < eyes.count("painting.made") <= 24 + 3 * 10
        async with running(any_url, worker, namespace=namespace):
            await until(lambda: eyes.count("painting.framed") == eyes.count("painting.made"))
    assert eyes.count("painting.framed") > 20


async def test_publishers_are_refused_at_the_cap(any_url: str, namespace: str, eyes: Eyes) -> None:
    """reject: StreamFull for events of that type, the others of the same batch are stored."""
    eyes.call("XGROUP", "CREATE", eyes.stream(), "framers", "0", "MKSTREAM")
    eyes.call("HSET", eyes.keys.groups, "framers", json.dumps({"types": ["painting.made"], "globs": []}))
    policy = {"painting.made": Retention(cap=20, when_full="reject")}
    async with running(any_url, namespace=namespace, retention=policy) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(25)])
        await until(lambda: eyes.call("GET", eyes.keys.full))
        await bus.publish(PaintingFramed())
        with pytest.raises(ExceptionGroup) as failed:
            await bus.publish_many([PaintingMade(), SculptureMade(), PaintingMade()])
        assert [type(error) for error in failed.value.exceptions] == [StreamFull, StreamFull]
        assert eyes.count("sculpture.made") == 1 and eyes.count("painting.made") == 25
        eyes.call("XTRIM", eyes.stream(), "MAXLEN", 5)
        await until(lambda: not eyes.call("GET", eyes.keys.full))
        await bus.publish(PaintingFramed())
        await bus.publish(PaintingMade())
