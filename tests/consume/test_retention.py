"""Retention: what goes when, that nothing unread goes with it, and what happens when a stream is full."""

import contextlib
import json
from random import Random
from typing import Any

import pytest
import structlog
import trio
from seeds import seeds
from studio import Eyes, PaintingFramed, PaintingMade, SculptureMade, quiet, running
from waiting import until

from canvasbus import ConfigError, Producer, StreamFull, Unavailable
from canvasbus.bus import EventBus, Retention
from canvasbus.consume.retention import Trimmer, declare, policy_for
from canvasbus.transport.memory import MemoryServer
from canvasbus.transport.resp import Packet, ReplyError, commands
from canvasbus.transport.trim_script import TRIM
from canvasbus.worker import Worker


class House:
    """A stream and its trimmer, without a bus around them."""

    def __init__(self, eyes: Eyes, policy: Retention, **options: Any) -> None:
        self.eyes = eyes
        self.trimmer = Trimmer(eyes.keys, **options)
        self.stream = eyes.stream()
        self.clock = 0.0
        eyes._link.run(declare([eyes.keys], {"painting.*": policy}))
        eyes.call("SADD", eyes.keys.topics, "painting.made")

    def add(self, *ids: str) -> None:
        for entry_id in ids:
            self.eyes.call("XADD", self.stream, entry_id, "e", "x")

    def group(
        self, name: str, *, declared: bool = True, types: tuple[str, ...] = ("painting.made",), **more: Any
    ) -> None:
        self.eyes.call("XGROUP", "CREATE", self.stream, name, "0", "MKSTREAM")
        if declared:
            about = json.dumps({"types": types, "globs": [], **more})
            self.eyes.call("HSET", self.eyes.keys.groups, name, about)

    def read(self, group: str, count: int) -> list[str]:
        rows = self.eyes._link.call("XREADGROUP", "GROUP", group, "me", "COUNT", count, "STREAMS", self.stream, ">")
        return [row[0].decode() for row in rows[0][1]] if rows else []

    def ack(self, group: str, *ids: str) -> None:
        self.eyes.call("XACK", self.stream, group, *ids)

    def look(self) -> list[Any]:
        self.clock += 100.0
        looked = self.eyes._link.run(self.trimmer.look(self.clock))
        self.problems = [str(problem) for problem in looked.problems]
        return looked.losses

    def told(self) -> list[Any]:
        """Every bus.loss on the server."""
        return self.eyes.events("bus.loss")

    def left(self) -> list[str]:
        return [row[0].decode() for row in self.eyes.call("XRANGE", self.stream, "-", "+")]


def sending(forms: list[tuple[Any, ...]]) -> Any:
    """Commands in one packet."""
    return (yield commands(*forms))


def test_the_handled_past_goes_and_the_rest_stays(any_url: str, namespace: str, eyes: Eyes) -> None:
    """By length: nothing goes past what one of two groups has not acknowledged, delivered or not."""
    house = House(eyes, Retention(max_age=None, max_length=3))
    house.group("fast")
    house.group("slow")
    house.add(*[f"{n}-1" for n in range(1, 11)])
    house.look()
    assert len(house.left()) == 10
    house.ack("fast", *house.read("fast", 10))
    house.look()
    assert len(house.left()) == 10
    first = house.read("slow", 4)
    house.look()
    assert house.left()[0] == "1-1"
    house.ack("slow", *first[1:])
    house.look()
    assert house.left()[0] == "1-1"
    house.ack("slow", first[0])
    house.look()
    assert house.left()[0] == "5-1"
    house.ack("slow", *house.read("slow", 10))
    house.look()
    assert house.left() == ["8-1", "9-1", "10-1"]


def test_old_entries_go(any_url: str, namespace: str, eyes: Eyes) -> None:
    """By age, on the server's clock; without groups age alone decides."""
    house = House(eyes, Retention(max_age=3600, max_length=None))
    now = int(eyes.call("TIME")[0]) * 1000
    house.add(f"{now - 7_200_000}-0", f"{now - 3_700_000}-5", f"{now - 3_000_000}-0", f"{now}-0")
    house.look()
    assert house.left() == [f"{now - 3_000_000}-0", f"{now}-0"]


def test_bytes_are_a_target(any_url: str, namespace: str, eyes: Eyes) -> None:
    """A stream over its bytes is cut in proportion; memory servers, which do not tell theirs, keep to the others."""
    house = House(eyes, Retention(max_age=None, max_length=None, max_bytes=100_000))
    for n in range(1, 1001):
        eyes.call("XADD", house.stream, f"{n}-0", "e", b"x" * 500)
    for _ in range(20):
        house.look()
    used = eyes._link.call("MEMORY", "USAGE", house.stream)
    if isinstance(used, int):
        assert 50_000 <= used <= 120_000
    assert house.left()[-1] == "1000-0"


def test_undeclared_groups_keep_nothing(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Somebody's experiment with redis-cli holds nobody's memory; a declared group that has not joined yet does."""
    house = House(eyes, Retention(max_age=None, max_length=2))
    house.group("stranger", declared=False)
    house.add(*[f"{n}-1" for n in range(1, 6)])
    eyes.call("HSET", eyes.keys.groups, "coming", json.dumps({"types": [], "globs": ["painting.*"]}))
    house.look()
    assert len(house.left()) == 5
    eyes.call("HDEL", eyes.keys.groups, "coming")
    house.look()
    assert house.left() == ["4-1", "5-1"]


def test_a_group_that_has_long_been_gone_keeps_nothing(any_url: str, namespace: str, eyes: Eyes) -> None:
    """After its lease, which starts anew with each heartbeat, and only once bus.loss has told."""
    house = House(eyes, Retention(max_age=None, max_length=1), group_lease=1000)
    house.group("gone")
    house.add("1-1", "2-1", "3-1")

    def pretend(seconds: int) -> None:  # that it was seen so long before
        total = sum(int(n) for n in eyes.call("HVALS", eyes.keys.beats("gone")))
        eyes.call("HSET", eyes.keys.group_seen, "gone", f"{total} {int(eyes.call('TIME')[0]) - seconds} 0")

    assert house.look() == []
    pretend(900)
    assert house.look() == [] and len(house.left()) == 3
    pretend(1100)
    eyes.call("HINCRBY", eyes.keys.beats("gone"), "worker", 1)
    assert house.look() == [] and len(house.left()) == 3
    pretend(1100)
    (loss,) = house.look()
    assert (loss.reason, loss.group) == ("group_expired", "gone") and "no worker for" in loss.detail
    assert house.look() == [] and house.left() == ["3-1"]
    eyes.call("HINCRBY", eyes.keys.beats("gone"), "worker", 1)
    house.add("4-1", "5-1")
    assert house.look() == [] and len(house.left()) == 3


def test_a_group_of_one_process_keeps_for_a_minute(any_url: str, namespace: str, eyes: Eyes) -> None:
    """An instance that stopped beating is let go without a word: nobody takes its place."""
    house = House(eyes, Retention(max_age=None, max_length=1))
    house.group("dashboard", instance=True)
    house.add("1-1", "2-1")
    assert house.look() == [] and len(house.left()) == 2
    eyes.call("HSET", eyes.keys.group_seen, "dashboard", f"0 {int(eyes.call('TIME')[0]) - 61} 0")
    assert house.look() == []
    assert house.look() == [] and house.left() == ["2-1"]


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
        assert not [reply for reply in eyes._link.run(sending(forms)) if isinstance(reply, ReplyError)]
    house.ack("slow", *house.read("slow", 10_000)[:9_990])
    (loss,) = house.look()
    assert sum(told.lost for told in house.told()) == 39_011
    assert loss.lost == 39_011 and "from 9991-1 on; the stream begins with 49002-1 now" in loss.detail
    assert len(house.left()) == 999


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


DROPS = Retention(max_age=None, max_length=None, cap=10, when_full="drop_with_loss_event")


def test_a_key_written_over_ends_no_other_type(any_url: str, namespace: str, eyes: Eyes) -> None:
    """What lies at the marks of one type is told with what to do; the types before and after it in the alphabet keep to
    their cap, and what they lose is told."""
    house = House(eyes, DROPS)
    types = ("painting.framed", "painting.made", "painting.sold")
    eyes.call("HSET", eyes.keys.groups, "slow", json.dumps({"types": types, "globs": []}))
    for event_type in types:
        eyes.call("SADD", eyes.keys.topics, event_type)
        for n in range(1, 21):
            eyes.call("XADD", eyes.keys.stream(event_type), f"{n}-1", "e", "x")
    eyes.call("SET", eyes.keys.marks("painting.made"), "somebody else's")
    house.look()
    (problem,) = house.problems
    assert "trim painting.made" in problem and "RENAME it" in problem
    assert [eyes.count(event_type) for event_type in types] == [9, 20, 9]
    assert {loss.topic: loss.lost for loss in house.told()} == {"painting.framed": 11, "painting.sold": 11}
    eyes.call("DEL", eyes.keys.marks("painting.made"))
    house.look()
    assert house.problems == [] and sum(loss.lost for loss in house.told()) == 33


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


@pytest.mark.parametrize("spoilt", ["beats", "group_seen"])
def test_a_group_of_which_nobody_knows_whether_it_lives_counts(
    any_url: str, namespace: str, eyes: Eyes, spoilt: str
) -> None:
    """Something else lies where its life is noted: told, nothing unread goes, and what all have handled does."""
    house = House(eyes, Retention(max_age=None, max_length=1), group_lease=1000)
    house.group("gone")
    house.add(*[f"{n}-1" for n in range(1, 11)])
    eyes.call("HSET", eyes.keys.group_seen, "gone", f"0 {int(eyes.call('TIME')[0]) - 1100} 0")
    place = eyes.keys.beats("gone") if spoilt == "beats" else eyes.keys.group_seen
    eyes.call("DEL", place)
    eyes.call("SET", place, "x")
    house.ack("gone", *house.read("gone", 4))
    assert house.look() == [] and house.left() == [f"{n}-1" for n in range(5, 11)]
    (problem,) = house.problems
    assert "another type of value" in problem and ("group gone" in problem or place.decode() in problem)


def test_a_lease_that_ends_is_told_before_it_is_noted(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Whoever is killed in between leaves it to the next, who tells it as the same event; where it cannot be told, the
    group counts on."""
    house = House(eyes, Retention(max_age=None, max_length=1), group_lease=1000)
    house.group("gone")
    house.add("1-1", "2-1", "3-1")
    eyes.call("HSET", eyes.keys.group_seen, "gone", f"0 {int(eyes.call('TIME')[0]) - 1100} 0")
    place = eyes.stream("bus.loss")
    eyes.call("SET", place, "x")
    assert house.look() == [] and len(house.left()) == 3
    assert "tell that group gone has no worker any more" in house.problems[0]
    eyes.call("DEL", place)
    look, replies = house.trimmer.look(200.0), None
    while not eyes.call("EXISTS", place):
        packet = look.send(replies)
        assert isinstance(packet, Packet)
        replies = eyes._link.request(packet)
    look.close()
    (loss,) = house.look()
    assert loss.group == "gone" and house.left() == ["3-1"]
    ids = {envelope.id for envelope, _ in eyes.entries("bus.loss")}
    assert len(house.told()) == 2 and len(ids) == 1
    house.look()
    assert len(house.told()) == 2


@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_a_server_without_memory_is_trimmed(make_server: Any, kind: str, namespace: str) -> None:
    """At maxmemory, where it is needed most: by length and at the cap, and what is lost is told."""
    eyes = Eyes(make_server(kind).url, namespace)
    house = House(eyes, DROPS)
    house.group("slow")
    eyes._link.run(declare([eyes.keys], {"sculpture.made": Retention(max_age=None, max_length=3)}))
    eyes.call("SADD", eyes.keys.topics, "sculpture.made")
    for some in (range(1, 6), range(6, 21)):
        house.add(*[f"{n}-1" for n in some])
        for n in some:
            eyes.call("XADD", eyes.stream("sculpture.made"), f"{n}-1", "e", "x")
        if some.start == 1:  # the marks of both are there now
            house.look()
    eyes.call("DEL", eyes.keys.group_seen)
    eyes.call("CONFIG", "SET", "maxmemory", "1")
    house.look()
    assert len(house.left()) == 9 and eyes.count("sculpture.made") == 3
    assert [loss.lost for loss in house.told()] == [11]
    eyes.close()


def test_policies_by_type_and_glob(namespace: str) -> None:
    """An exact type, else the longest glob, else the defaults."""
    a, b, c = (Retention(max_length=n) for n in (1, 2, 3))
    policies = {"drift.detected": a, "drift.*": b, "*": c}
    assert [policy_for(t, policies) for t in ("drift.detected", "drift.resolved", "other")] == [a, b, c]
    assert policy_for("other", {}) == Retention()


@pytest.mark.parametrize(
    "wrong",
    [Retention(max_age=0), Retention(cap=0), Retention(when_full="never"), {"x": 5}],
    ids=repr,  # type: ignore[arg-type]
)
def test_a_policy_that_is_none_is_refused(wrong: Any) -> None:
    """Before anything is connected."""
    with pytest.raises(ConfigError, match="retention of"):
        EventBus("memory://", retention=wrong)


def test_a_spoilt_record_is_told_and_trims_nothing(any_url: str, namespace: str, eyes: Eyes) -> None:
    """What somebody wrote by hand and what is no policy: an error that says what to do."""
    house = House(eyes, Retention(max_age=None, max_length=1))
    house.add("1-1", "2-1")
    eyes.call("HSET", eyes.keys.retention, "painting.made", "{no json")
    with pytest.raises(
        ConfigError, match=r"retention of 'painting.made' on record is none .*`canvasbus retention set`"
    ):
        house.look()
    assert len(house.left()) == 2


@pytest.mark.parametrize("seed", seeds(8, "retention"))
def test_nothing_unread_goes(any_url: str, namespace: str, eyes: Eyes, seed: int) -> None:
    """Random additions, reads, acknowledgements, groups and looks against lists: the floor is never passed, and when all
    is handled the target is met within a hundredth."""
    draw = Random(seed)
    print(f"seed {seed}")
    keep = draw.choice([1, 5, 40])
    house = House(eyes, Retention(max_age=None, max_length=keep))
    names = [f"g{n}" for n in range(draw.randrange(1, 4))]
    unread: dict[str, list[str]] = {name: [] for name in names}
    pending: dict[str, list[str]] = {name: [] for name in names}
    for name in names:
        house.group(name)
    serial = 0
    for _ in range(80):
        name = draw.choice(names)
        match draw.randrange(4):
            case 0:
                fresh = [f"{serial + n + 1}-0" for n in range(draw.randrange(1, 12))]
                serial += len(fresh)
                house.add(*fresh)
                for waiting in unread.values():
                    waiting += fresh
            case 1:
                got = house.read(name, draw.randrange(1, 12))
                assert got == unread[name][: len(got)]
                pending[name] += got
                unread[name] = unread[name][len(got) :]
            case 2 if pending[name]:
                done = draw.sample(pending[name], draw.randrange(1, len(pending[name]) + 1))
                house.ack(name, *done)
                pending[name] = [i for i in pending[name] if i not in done]
            case _:
                house.look()
                left = set(house.left())
                assert left >= {i for name in names for i in (*unread[name], *pending[name])}
    for name in names:
        pending[name] += house.read(name, 10_000)
        if pending[name]:
            house.ack(name, *pending[name])
    for _ in range(5):
        house.look()
    assert len(house.left()) <= keep + max(1, keep // 100)


# --- with a bus around it ---------------------------------------------------------------------------------------------


def test_a_group_that_comes_meanwhile_loses_nothing(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Between finding out which groups count and trimming another one is declared: nothing that it has to read is
    removed, neither at once nor when it is known."""
    house = House(eyes, Retention(max_age=None, max_length=3))
    house.add(*[f"{n}-1" for n in range(1, 11)])
    look, replies, declared = house.trimmer.look(100.0), None, False
    with contextlib.suppress(StopIteration):
        while True:
            packet = look.send(replies)
            assert isinstance(packet, Packet)
            if TRIM.sha.encode() in packet.data:
                house.group("framers")
                declared = True
            replies = eyes._link.request(packet)
            if isinstance(replies[0], ReplyError):  # NOSCRIPT
                eyes.call("SCRIPT", "LOAD", TRIM.source)
                replies = eyes._link.request(packet)
    assert declared and len(house.left()) == 10
    house.look()
    assert len(house.left()) == 10 and house.trimmer.trimmed == 0


def test_a_group_that_comes_while_another_goes_loses_nothing(any_url: str, namespace: str, eyes: Eyes) -> None:
    """The same when meanwhile another group is forgotten, so that they are as many as before."""
    house = House(eyes, Retention(max_age=None, max_length=3))
    house.group("leaving")
    house.add(*[f"{n}-1" for n in range(1, 11)])
    house.ack("leaving", *house.read("leaving", 10))
    look, replies, declared = house.trimmer.look(100.0), None, False
    with contextlib.suppress(StopIteration):
        while True:
            packet = look.send(replies)
            assert isinstance(packet, Packet)
            if TRIM.sha.encode() in packet.data and not declared:
                eyes.call("HDEL", eyes.keys.groups, "leaving")
                house.group("framers")
                declared = True
            replies = eyes._link.request(packet)
    assert declared and len(house.left()) == 10
    house.look()
    assert len(house.left()) == 10 and house.trimmer.trimmed == 0


def test_deleted_declarations_are_waited_for(any_url: str, namespace: str, eyes: Eyes) -> None:
    """DEL of the declarations: nothing goes until living workers have had the time to declare their groups anew; a group
    whose name is no text counts like any other."""
    house = House(eyes, Retention(max_age=None, max_length=None, cap=5))
    house.group("framers")
    eyes.call("HSET", eyes.keys.groups, b"\xff", "{}")
    house.add(*[f"{n}-1" for n in range(1, 11)])
    house.look()
    eyes.call("DEL", eyes.keys.groups)
    house.clock -= 99.0  # of the hundred seconds that House lets pass between two looks
    house.look()
    assert len(house.left()) == 10
    eyes.call("HSET", eyes.keys.groups, "framers", json.dumps({"types": ["painting.made"], "globs": []}))
    house.look()
    assert len(house.left()) == 10
    eyes.call("DEL", eyes.keys.groups)
    house.look()
    assert len(house.left()) < 5


async def test_a_bus_keeps_what_it_was_told(any_url: str, namespace: str, eyes: Eyes) -> None:
    """The policy is on record for everybody; while a worker handles, the stream stays short and nothing is lost."""
    worker, seen = Worker("framers"), []

    @worker.on(PaintingMade)
    async def handle(event: PaintingMade) -> None:
        seen.append(event.number)

    policy = {"painting.*": Retention(max_length=50, cap=100_000)}
    async with running(any_url, worker, namespace=namespace, retention=policy) as bus:
        for start in range(0, 1000, 100):
            await bus.publish_many([PaintingMade(number=n) for n in range(start, start + 100)])
            await until(lambda start=start: len(seen) >= start + 100)
        await quiet(eyes)
        await until(lambda: eyes.count("painting.made") <= 51)
    assert sorted(seen) == list(range(1000))
    assert json.loads(eyes.call("HGET", eyes.keys.retention, "painting.*"))["max_length"] == 50


@pytest.mark.parametrize("spoilt", ["timers", "group_seen"])
async def test_a_key_written_over_stops_no_other_work(any_url: str, namespace: str, eyes: Eyes, spoilt: str) -> None:
    """Something else lies at the timers, or where it is noted who lives: it is told with what to do, and streams are kept
    at their cap, what goes being told."""
    eyes.call("SET", getattr(eyes.keys, spoilt), "x")
    eyes.call("HSET", eyes.keys.groups, "slow", json.dumps({"types": ["painting.made"], "globs": []}))
    with structlog.testing.capture_logs() as logs:
        async with running(any_url, namespace=namespace, retention={"painting.*": DROPS}) as bus:
            await bus.publish_many([PaintingMade(number=n) for n in range(20)])
            await until(lambda: eyes.count("painting.made") == 9)
            await until(lambda: any("maintaining the namespace fails" in log["event"] for log in logs))
    assert [loss.lost for loss in eyes.events("bus.loss")] == [11]
    (log,) = [log for log in logs if "maintaining the namespace fails" in log["event"]]
    assert getattr(eyes.keys, spoilt).decode() in log["error"] or "look at the timers" in log["error"]


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


async def test_publishers_wait_at_the_cap(any_url: str, namespace: str, eyes: Eyes) -> None:
    """block: events wait, the statistics say whom for, and go on when the group has caught up."""
    eyes.call("XGROUP", "CREATE", eyes.stream(), "framers", "0", "MKSTREAM")
    eyes.call("HSET", eyes.keys.groups, "framers", json.dumps({"types": ["painting.made"], "globs": []}))
    policy = {"painting.made": Retention(max_length=10, cap=20)}
    async with running(any_url, namespace=namespace, retention=policy, patience=0.2) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(25)])
        await until(lambda: eyes.call("GET", eyes.keys.full))
        with pytest.raises(Unavailable, match=r"its cap; group 'framers' has not handled"):
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


async def test_a_lost_lease_stops_nobody(virtual: Any, memory: MemoryServer, namespace: str) -> None:
    """What is full is believed for a quarter of a minute after the last maintainer has gone, and no longer."""
    eyes = Eyes(memory, namespace)
    eyes.call(
        "SET", eyes.keys.full, '{"painting.made": {"when_full": "block", "group": "x", "length": 9}}', "PX", 15000
    )
    async with running(memory, namespace=namespace) as bus:
        begun = trio.current_time()
        for _ in range(3):
            await bus.publish(PaintingMade())
        assert trio.current_time() - begun < 20
    eyes.close()
