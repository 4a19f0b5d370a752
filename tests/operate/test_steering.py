"""Setting groups back and forward, and forgetting them, against what a group then really reads."""

import contextlib
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from seeds import seeds
from studio import Eyes, PaintingMade, framing, quiet, running
from waiting import until

from canvasbus.errors import CanvasbusError
from canvasbus.operate import steering
from canvasbus.operate.groups import Count, groups
from canvasbus.transport.blocking import BlockingLink
from canvasbus.transport.resp import Packet, pairs
from canvasbus.wire.keys import Keys

TOPIC = "painting.made"


def fill(eyes: Eyes, ids: Sequence[str], topic: str = TOPIC) -> None:
    for ident in ids:
        eyes.call("XADD", eyes.stream(topic), ident, "e", "x")


def make(eyes: Eyes, group: str = "framers", start: str = "0", topic: str = TOPIC) -> None:
    eyes.call("XGROUP", "CREATE", eyes.stream(topic), group, start, "MKSTREAM")


def read(eyes: Eyes, topic: str = TOPIC) -> list[str]:
    rows = eyes.call("XREADGROUP", "GROUP", "framers", "me", "STREAMS", eyes.stream(topic), ">")
    return [row[0].decode() for _, entries in rows or () for row in entries]


def plan(link: BlockingLink, eyes: Eyes, to: str) -> list[steering.Move]:
    return link.run(steering.plan([eyes.keys], "framers", to, lambda _: True))


@pytest.mark.parametrize("seed", seeds(30, "resets"))
def test_a_reset_does_what_its_plan_says(eyes: Eyes, link: BlockingLink, seed: int) -> None:
    """From any place to any other, on streams with gaps, trims and deletes: the counts of the plan are what is read
    again or not read any more, and the first entry read is the one asked for, or the next after it."""
    draw = random.Random(seed)
    ids = sorted({(draw.randint(1, 60), draw.randint(0, 2)) for _ in range(draw.randint(1, 40))})
    fill(eyes, [f"{ms}-{seq}" for ms, seq in ids])
    make(eyes, start=draw.choice(["0", "$", f"{draw.randint(0, 70)}", f"{draw.randint(0, 70)}-1"]))
    if draw.random() < 0.5:
        eyes.call("XTRIM", eyes.stream(), "MINID", draw.randint(0, 70))
    if draw.random() < 0.3:
        eyes.call("XDEL", eyes.stream(), "{}-{}".format(*draw.choice(ids)))
    left = [entry[0].decode() for entry in eyes.call("XRANGE", eyes.stream(), "-", "+")]
    (row,) = eyes.call("XINFO", "GROUPS", eyes.stream())
    cursor = dict(zip(row[::2], row[1::2], strict=True))[b"last-delivered-id"].decode()

    def order(ident: str) -> tuple[int, int]:
        ms, _, seq = ident.partition("-")
        return int(ms), int(seq or 0)

    unread = [ident for ident in left if order(ident) > order(cursor)]
    to = draw.choice(["earliest", "latest", f"{draw.randint(0, 70)}", f"{draw.randint(0, 70)}-{draw.randint(0, 2)}"])
    (move,) = plan(link, eyes, to)
    link.run(steering.reset([eyes.keys], "framers", [move]))
    got = read(eyes)
    places = {"earliest": (0, 0), "latest": (2**64, 0)}
    want = [ident for ident in left if order(ident) >= (places.get(to) or order(to))]
    assert got == want
    assert move.again == Count(len(set(got) - set(unread)))
    assert move.skipped == Count(len(set(unread) - set(got)))


def test_long_ways_are_counted_in_pages(eyes: Eyes, link: BlockingLink, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact over several pages; at the limit "at least"."""
    monkeypatch.setattr(steering, "PAGE", 7)
    fill(eyes, [f"{i}-0" for i in range(1, 101)])
    make(eyes, start="90")
    (move,) = plan(link, eyes, "31")
    assert (move.again, move.to) == (Count(60), f"30-{2**64 - 1}")
    monkeypatch.setattr(steering, "COUNT_LIMIT", 20)
    assert plan(link, eyes, "31")[0].again == Count(21, False)
    assert plan(link, eyes, "earliest")[0].again == Count(21, False)
    make(eyes, "others", "$")
    assert link.run(steering.plan([eyes.keys], "others", "earliest", lambda _: True))[0].again == Count(100)


def test_after_a_reset_the_lag_is_true(eyes: Eyes, link: BlockingLink) -> None:
    """To the start, into the middle and to the end."""
    fill(eyes, [f"{i}-0" for i in range(1, 11)])
    make(eyes, start="5")
    for to, lag in (("earliest", 10), ("4", 7), ("latest", 0), ("10-0", 1)):
        link.run(steering.reset([eyes.keys], "framers", plan(link, eyes, to)))
        (group,) = link.run(groups([eyes.keys], trust_lag=link.server.shared))
        assert group.topics[0].lag == Count(lag)


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("steps", range(5))
def test_a_reset_that_is_interrupted_is_finished_by_the_next(
    eyes: Eyes, link: BlockingLink, steps: int, answered: bool
) -> None:
    """Ctrl-C after any of its steps, or while one is on its way: each topic is where it was or where it should be, and
    the same call again moves what is left and nothing twice."""
    topics = ("painting.framed", "painting.made")
    for topic in topics:
        fill(eyes, [f"{number}-0" for number in range(1, 6)], topic)
        make(eyes, start="4-0", topic=topic)
        eyes.call("SADD", eyes.keys.topics, topic)
        eyes.call("HSET", eyes.keys.cursors("framers"), eyes.stream(topic), "4-0")

    def cursors() -> list[bytes]:
        return [pairs(eyes.call("XINFO", "GROUPS", eyes.stream(t))[0])[b"last-delivered-id"] for t in topics]

    reply: Any = None
    operation = steering.reset([eyes.keys], "framers", plan(link, eyes, "earliest"))
    for step in range(steps):
        with contextlib.suppress(StopIteration):
            packet = operation.send(reply)
            if answered or step < steps - 1:
                reply = link.request(packet)
    operation.close()
    assert set(cursors()) <= {b"4-0", b"0-0"}
    left = plan(link, eyes, "earliest")
    assert [move.again.value for move in left] == [4 if at == b"4-0" else 0 for at in cursors()]
    link.run(steering.reset([eyes.keys], "framers", left))
    assert cursors() == [b"0-0", b"0-0"]
    assert eyes.call("HLEN", eyes.keys.cursors("framers")) == 0


def test_every_partition_and_topic_is_moved(eyes: Eyes, link: BlockingLink) -> None:
    """Those that are wanted, where the group is; others stay."""
    second = Keys(eyes.keys.namespace, 1)
    fill(eyes, ["1-0", "2-0"])
    fill(eyes, ["1-0"], "sculpture.made")
    link.call("XADD", second.stream(TOPIC), "1-0", "e", "x")
    for stream in (eyes.stream(), eyes.stream("sculpture.made"), second.stream(TOPIC)):
        link.call("XGROUP", "CREATE", stream, "framers", "$")
    fill(eyes, ["1-0"], "never.read")
    both = [eyes.keys, second]
    moves = link.run(steering.plan(both, "framers", "earliest", lambda topic: topic != "sculpture.made"))
    assert [(m.topic, m.partition, m.again.value) for m in moves] == [(TOPIC, 0, 2), (TOPIC, 1, 1)]
    assert len(link.run(steering.plan(both, "framers", "latest", lambda _: True))) == 3
    assert link.run(steering.plan(both, "nobody", "latest", lambda _: True)) == []


@pytest.mark.parametrize(
    ("entry_id", "previous"), [("7-3", "7-2"), ("7-0", f"6-{2**64 - 1}"), ("7", f"6-{2**64 - 1}"), ("0", "0-0")]
)
def test_the_id_before(entry_id: str, previous: str) -> None:
    """Right before it in the server's order; before the first there is 0-0."""
    assert steering.before(entry_id) == previous


# --- forgetting -------------------------------------------------------------------------------------------------------


def everything(eyes: Eyes, group: str) -> None:
    eyes.call("SADD", eyes.keys.topics, TOPIC)
    fill(eyes, ["1-0"])
    make(eyes, group)
    fill(eyes, ["1-0"], "foreign.made")
    make(eyes, group, topic="foreign.made")
    eyes.call("HSET", eyes.keys.groups, group, "{}")
    eyes.call("HSET", eyes.keys.beats(group), "gone-1", 7)
    for key in (eyes.keys.reaper(group), eyes.keys.paused(group), eyes.keys.state(group, "a")):
        eyes.call("SET", key, "x")
    eyes.call("HSET", eyes.keys.parts(group, "a"), "one", "x")
    eyes.call("XADD", eyes.keys.dead(group), "*", "e", "x")
    eyes.call("SADD", eyes.keys.retries(group), TOPIC)
    eyes.call("XADD", eyes.keys.retry(group, TOPIC), "*", "e", "x")


def names(eyes: Eyes) -> set[str]:
    return {key.decode().partition(":")[2].partition(":")[2] for key in eyes.call("KEYS", f"*{eyes.keys.namespace}*")}


def test_forgetting_takes_all_of_one_group_and_nothing_of_another(eyes: Eyes, link: BlockingLink) -> None:
    """Also where one name begins like the other, has signs that mean something in patterns, or is that of a topic."""
    everything(eyes, TOPIC)
    before = names(eyes)
    for strange in ("fr*", "framers", "framers2"):
        fill(eyes, [])
        for stream in (eyes.stream(), eyes.stream("foreign.made")):
            eyes.call("XGROUP", "CREATE", stream, strange, "0")
        eyes.call("SET", eyes.keys.state(strange, "a"), "x")
        eyes.call("XADD", eyes.keys.dead(strange), "*", "e", "x")
    assert link.run(steering.forget([eyes.keys], "fr*"))
    assert names(eyes) - before == {f"{kind}:{group}" for group in ("framers", "framers2") for kind in ("dead",)} | {
        "state:framers:a",
        "state:framers2:a",
    }
    for group in ("framers", "framers2", TOPIC):
        assert link.run(steering.forget([eyes.keys], group))
    assert names(eyes) == {"topics", f"stream:{TOPIC}", "stream:foreign.made"}
    assert link.run(groups([eyes.keys])) == []


def test_a_group_whose_workers_run_is_not_forgotten(eyes: Eyes, link: BlockingLink) -> None:
    """Told by what they do on the server, or by their heartbeat."""
    everything(eyes, "framers")
    read(eyes)
    with pytest.raises(CanvasbusError, match="in use: 1 worker of it runs"):
        link.run(steering.forget([eyes.keys], "framers"))
    with pytest.raises(CanvasbusError, match="no group"):
        link.run(steering.forget([eyes.keys], "farmers"))


def forget_and_meanwhile(eyes: Eyes, link: BlockingLink, act: Callable[[], object]) -> bool:
    """Whether the group could be forgotten, while somebody acts before each step that removes something."""
    operation = steering.forget([eyes.keys], "framers")
    replies = None
    while True:
        try:
            wish = operation.send(replies)  # type: ignore[arg-type]
        except StopIteration as stop:
            return bool(stop.value)
        if isinstance(wish, Packet) and b"EVALSHA" in wish.data:
            act()
        replies = link.request(wish) if isinstance(wish, Packet) else []


def test_two_who_forget_a_group_at_once_have_both_forgotten_it(eyes: Eyes, link: BlockingLink) -> None:
    """The heartbeats of its dead are gone when the other was faster, which is no worker that has started."""
    everything(eyes, "framers")
    others: list[bool] = []

    def once() -> None:
        if not others:
            others.append(link.run(steering.forget([eyes.keys], "framers")))

    assert forget_and_meanwhile(eyes, link, once) and others == [True]
    assert link.run(groups([eyes.keys])) == []


def test_a_worker_that_starts_in_the_last_moment_keeps_its_group(eyes: Eyes, link: BlockingLink) -> None:
    """Heartbeats that appear between looking and removing are noticed."""
    everything(eyes, "framers")
    assert not forget_and_meanwhile(eyes, link, lambda: eyes.call("HSET", eyes.keys.beats("framers"), "new-1", 1))
    assert len(link.run(groups([eyes.keys]))) == 1


@pytest.mark.parametrize("to", ["latest", "9999999999999-0"])
async def test_a_group_that_was_set_forward_and_is_lost_goes_on_where_it_was(
    any_url: str, namespace: str, to: str
) -> None:
    """Set to the latest entry, or to a moment since which there is none, before anything is read from there somebody
    destroys the group: what it had handled, or was to skip, is not handled again."""
    eyes = Eyes(any_url, namespace)
    async with running(any_url, framing(), namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(5)])
        await quiet(eyes, "framers")
        eyes.run(steering.pause([eyes.keys], "framers", by="me"))
        await until(lambda: bus.statistics()[0].state == "paused")
        moves = eyes.run(steering.plan([eyes.keys], "framers", to, lambda topic: topic == "painting.made"))
        eyes.run(steering.reset([eyes.keys], "framers", moves))
        eyes.run(steering.resume([eyes.keys], "framers"))
        await until(lambda: bus.statistics()[0].state == "running")
        beats = eyes.call("HGETALL", eyes.keys.beats("framers"))
        await until(lambda: eyes.call("HGETALL", eyes.keys.beats("framers")) != beats)  # and told where it stands
        eyes.call("XGROUP", "DESTROY", eyes.stream(), "framers")
        await until(lambda: eyes.count("bus.loss") > 0)
        await bus.publish(PaintingMade(number=5))
        await quiet(eyes, "framers")
        assert sorted(e.number for e in eyes.events("painting.framed")) == [0, 1, 2, 3, 4, 5]
    eyes.close()
