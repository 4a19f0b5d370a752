"""Retention: what goes when, and that nothing unread goes with it. (At a cap: `test_cap`.)"""

import contextlib
import json
from random import Random
from typing import Any

import pytest
import structlog
import trio
from consume.house import DROPS, House, sending
from seeds import seeds
from studio import Eyes, PaintingMade, quiet, running
from trio.abc import Clock
from waiting import until

from canvasbus import ConfigError
from canvasbus.bus import EventBus, Retention
from canvasbus.consume import retention
from canvasbus.consume.retention import YOUNG_SECONDS, declare, policy_for
from canvasbus.transport.group_scripts import RENEW
from canvasbus.transport.memory import MemoryServer
from canvasbus.transport.resp import Packet, ReplyError
from canvasbus.transport.trim_script import TRIM
from canvasbus.worker import Worker


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


def test_a_target_that_is_lowered_is_reached_at_once(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Of a stream that nobody adds to, and of which no look has yet noted where which entry lies."""
    house = House(eyes, Retention(max_age=None, max_length=10_000))
    house.group("fast")
    eyes.run(sending([("XADD", house.stream, f"{n}-1", "e", "x") for n in range(1, 3001)]))
    eyes.call("XGROUP", "SETID", house.stream, "fast", "$")
    house.look()
    eyes.run(declare([eyes.keys], {"painting.*": Retention(max_age=None, max_length=100)}))
    house.look()
    assert len(house.left()) == 100 and house.told() == []


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


def pass_by(eyes: Eyes, seconds: int) -> None:
    """So long nobody looks, and no group lives."""
    for name, value in list(zip(*[iter(eyes.call("HGETALL", eyes.keys.group_seen))] * 2, strict=True)):
        fields = value.split()
        at = 0 if len(fields) == 1 else 1
        fields[at] = str(int(fields[at]) - seconds).encode()
        eyes.call("HSET", eyes.keys.group_seen, name, b" ".join(fields))


def test_time_in_which_nobody_watched_counts_for_no_group(any_url: str, namespace: str, eyes: Eyes) -> None:
    """All was off for longer than the lease, or a backup of before was put back: whose workers are not the first to start
    loses nothing by that. From then on its lease goes on where it was."""
    house = House(eyes, Retention(max_age=None, max_length=1), group_lease=1000)
    house.group("late")
    house.add("1-1", "2-1", "3-1")
    assert house.look() == []
    pass_by(eyes, 400)
    assert house.look() == []
    pass_by(eyes, 100_000)
    assert house.look() == [] and len(house.left()) == 3
    pass_by(eyes, 400)
    assert house.look() == [] and len(house.left()) == 3
    pass_by(eyes, 400)
    (loss,) = house.look()
    assert loss.group == "late" and house.look() == [] and house.left() == ["3-1"]


@pytest.mark.parametrize("spoilt", ["by a clock that was ahead", "by somebody"])
def test_a_note_of_who_watched_that_is_wrong_is_written_anew(
    any_url: str, namespace: str, eyes: Eyes, spoilt: str
) -> None:
    """Else time in which nobody watches would count until the clock has come there, or for ever."""
    house = House(eyes, Retention(max_age=None, max_length=1), group_lease=1000)
    house.group("late")
    house.add("1-1", "2-1", "3-1")
    ahead = int(eyes.call("TIME")[0]) + 100_000
    eyes.call("HSET", eyes.keys.group_seen, "~watched", ahead if spoilt == "by a clock that was ahead" else "yesterday")
    assert house.look() == []
    pass_by(eyes, 10_000)
    assert house.look() == [] and len(house.left()) == 3


def test_what_a_group_that_was_set_back_is_to_read_again_stays(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Also while something is pending in it that lies behind: as a rule all before that is handled, here it is not."""
    house = House(eyes, Retention(max_age=None, max_length=1))
    house.group("framers")
    house.add("1-1", "2-1", "3-1", "4-1")
    house.read("framers", 4)
    house.ack("framers", "1-1", "2-1", "4-1")
    eyes.call("XGROUP", "SETID", house.stream, "framers", "1-1")
    house.look()
    assert house.left() == ["2-1", "3-1", "4-1"]
    house.ack("framers", *house.read("framers", 1))
    house.look()
    assert house.left() == ["3-1", "4-1"]


def test_what_the_workers_of_a_lost_group_hold_stays(any_url: str, namespace: str, eyes: Eyes) -> None:
    """A group that was lost and made anew knows nothing of what its workers have in hand until these have heard of it:
    nothing goes for as long as that may take."""
    house = House(eyes, Retention(max_age=None, max_length=1))
    house.group("framers")
    house.add("1-1", "2-1", "3-1")
    house.read("framers", 3)
    cursors = eyes.keys.cursors("framers")
    eyes.call("XGROUP", "DESTROY", house.stream, "framers")
    keys = [cursors, house.stream, eyes.keys.topics, eyes.keys.topics, eyes.keys.stream("bus.loss")]
    reply = eyes.run(RENEW.call(keys, ["framers", "painting.made", "3-1", 0, b"", b""]))
    assert reply == [b"3-1", 0]
    house.look()
    assert house.left() == ["1-1", "2-1", "3-1"]
    start, made = eyes.call("HGET", cursors, b"~from:" + house.stream).split()
    for seconds, left in (
        (YOUNG_SECONDS - 2, 3),
        (-3600, 1),
    ):  # as if that were so long ago; the server's clock was set back
        eyes.call("HSET", cursors, b"~from:" + house.stream, b"%s %d.1" % (start, int(float(made)) - seconds))
        house.look()
        assert len(house.left()) == left
    eyes.call("HSET", cursors, b"~from:" + house.stream, "nonsense")
    house.add("4-1")
    house.read("framers", 1)
    house.ack("framers", "4-1")
    house.look()
    assert house.left() == ["4-1"]


def test_a_group_of_one_process_keeps_for_a_minute(any_url: str, namespace: str, eyes: Eyes) -> None:
    """An instance that stopped beating is let go without a word: nobody takes its place."""
    house = House(eyes, Retention(max_age=None, max_length=1))
    house.group("dashboard", instance=True)
    house.add("1-1", "2-1")
    assert house.look() == [] and len(house.left()) == 2
    eyes.call("HSET", eyes.keys.group_seen, "dashboard", f"0 {int(eyes.call('TIME')[0]) - 61} 0")
    assert house.look() == []
    assert house.look() == [] and house.left() == ["2-1"]


async def test_after_an_outage_nobody_is_let_go_before_he_could_beat(
    virtual: Clock, memory: MemoryServer, namespace: str
) -> None:
    """Whoever maintains the namespace finds the last heartbeat of an instance a minute old: that may be because all were
    away. What it has not handled stays until it had time to show that it lives; and goes when it does not."""
    eyes = Eyes(memory, namespace)
    house = House(eyes, Retention(max_age=None, max_length=1))
    for name in ("alive", "dead"):
        house.group(name, instance=True)
        eyes.call("HSET", eyes.keys.group_seen, name, f"7 {int(eyes.call('TIME')[0]) - 61} 0")
        eyes.call("HSET", eyes.keys.beats(name), "me", 7)
    house.add("1-1", "2-1")
    async with running(memory, namespace=namespace):
        await trio.sleep(1.5)
        for _ in range(100):
            eyes.call("HINCRBY", eyes.keys.beats("alive"), "me", 1)
            await trio.sleep(1)
            assert len(house.left()) == 2
        assert set(eyes.call("HKEYS", eyes.keys.groups)) == {b"alive"}
        await trio.sleep(120)
        assert house.left() == ["2-1"]
    eyes.close()


@pytest.mark.parametrize("lease", ["held", "nobody's"])
async def test_a_bus_trims_a_server_without_memory(
    make_server: Any, namespace: str, monkeypatch: pytest.MonkeyPatch, lease: str
) -> None:
    """The lease of who does it cannot be written then. Its holder goes on; where there is none, all of them do it."""
    monkeypatch.setattr(retention, "WHOLE_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(retention, "LOOK_SECONDS", 0.1)
    eyes = Eyes(make_server().url, namespace)
    house = House(eyes, Retention(max_age=None, max_length=3))
    house.group("slow")
    async with running(eyes.server, namespace=namespace):
        house.add(*[f"{n}-1" for n in range(1, 11)])
        await until(lambda: eyes.call("EXISTS", eyes.keys.marks("painting.made"), eyes.keys.maintainer) == 2)
        eyes.call("CONFIG", "SET", "maxmemory", "1")
        if lease == "held":
            await until(lambda: eyes.call("PTTL", eyes.keys.maintainer) < 3500)
            await until(lambda: eyes.call("PTTL", eyes.keys.maintainer) > 3500)
        else:
            eyes.call("DEL", eyes.keys.maintainer)
        eyes.call("XGROUP", "SETID", house.stream, "slow", "8-1")
        await until(lambda: house.left() == ["8-1", "9-1", "10-1"])
        assert eyes.call("EXISTS", eyes.keys.maintainer) == (lease == "held")
    eyes.close()


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
    eyes.run(declare([eyes.keys], {"sculpture.made": Retention(max_age=None, max_length=3)}))
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
