"""Lag, pending, oldest age, consumers and dead letters against a naive count, also after trims and deletes."""

import itertools
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from seeds import seeds
from servers import ServerProcess, binaries
from studio import Eyes

from canvasbus.operate import groups as module
from canvasbus.operate.groups import Count, Group, GroupTopic, groups
from canvasbus.transport.blocking import BlockingLink
from canvasbus.transport.resp import ReplyError
from canvasbus.wire.keys import Keys

TOPIC = "painting.made"


def ask(link: BlockingLink, eyes: Eyes, *partitions: Keys, **options: Any) -> list[Group]:
    return link.run(groups(partitions or [eyes.keys], trust_lag=link.server.shared, **options))


def only(link: BlockingLink, eyes: Eyes) -> GroupTopic:
    ((topic,),) = [group.topics for group in ask(link, eyes)]
    return topic


def fill(eyes: Eyes, ids: Sequence[int], topic: str = TOPIC) -> None:
    for ident in ids:
        eyes.call("XADD", eyes.stream(topic), f"{ident}-0", "e", "x")


def number(entry_id: bytes) -> int:
    return int(entry_id.split(b"-")[0])


def test_a_bus_without_groups_has_none(eyes: Eyes, link: BlockingLink) -> None:
    """An empty namespace, and one with topics that nobody reads."""
    assert ask(link, eyes) == []
    fill(eyes, [1])
    assert ask(link, eyes) == []


def test_a_declared_group_without_a_topic_is_shown(eyes: Eyes, link: BlockingLink) -> None:
    """A worker that has joined and waits for its first topic is there, with nothing to do."""
    eyes.call("HSET", eyes.keys.groups, "waiting", "{}")
    assert ask(link, eyes) == [Group("waiting", 0, 0, 0, ())]


@pytest.mark.parametrize(
    ("start", "lag"), [("0", 10), ("$", 0), ("5-0", 5), ("5", 5), ("4-7", 6), ("99-0", 0), ("0-1", 10)]
)
def test_a_group_that_never_read_lags_by_what_comes_after_its_start(
    eyes: Eyes, link: BlockingLink, start: str, lag: int
) -> None:
    """Created at the beginning, the end, in the middle, between entries or in the future, read or not: exact."""
    fill(eyes, range(1, 11))
    eyes.call("XGROUP", "CREATE", eyes.stream(), "g", start)
    topic = only(link, eyes)
    assert (topic.lag, topic.pending) == (Count(lag), 0)


def test_trims_and_deletes_do_not_confuse_the_count(eyes: Eyes, link: BlockingLink) -> None:
    """After XTRIM past the cursor, XDEL before, at and after it, and of everything: what is left counts."""
    stream = eyes.stream()
    fill(eyes, range(1, 21))
    eyes.call("XGROUP", "CREATE", stream, "g", "0")
    eyes.call("XREADGROUP", "GROUP", "g", "c", "COUNT", 5, "STREAMS", stream, ">")
    assert only(link, eyes).lag == Count(15)
    eyes.call("XDEL", stream, "2-0", "5-0")
    assert only(link, eyes).lag == Count(15)
    eyes.call("XDEL", stream, "10-0", "20-0")
    assert only(link, eyes).lag == Count(13)
    eyes.call("XTRIM", stream, "MINID", "8-0")
    assert only(link, eyes).lag == Count(11)
    assert only(link, eyes).pending == 5, "entries that were trimmed while pending are still pending"
    eyes.call("XTRIM", stream, "MAXLEN", 0)
    assert only(link, eyes).lag == Count(0)
    fill(eyes, [30, 31])
    assert only(link, eyes).lag == Count(2)


def test_lag_and_pending_are_a_naive_count_whatever_happens(eyes: Eyes, link: BlockingLink) -> None:
    """Random adds, reads, acks, deletes, trims, new groups and moved cursors: always equal to counting by hand."""
    (seed,) = seeds(1, "group_counts")
    print(f"seed {seed}")
    draw = random.Random(seed)
    stream = eyes.stream()
    fill(eyes, [1])
    serial = itertools.count(2)
    names: list[str] = []
    for step in range(150):
        entries = [number(row[0]) for row in eyes.call("XRANGE", stream, "-", "+")]
        match draw.randrange(9):
            case 0 | 1 | 2:
                fill(eyes, [next(serial) for _ in range(draw.randrange(1, 6))])
            case 3 if len(names) < 4:
                start = draw.choice(("0", "$", f"{draw.randrange(next(serial))}-0"))
                names.append(f"g{len(names)}")
                eyes.call("XGROUP", "CREATE", stream, names[-1], start)
            case 4 if entries:
                eyes.call("XDEL", stream, f"{draw.choice(entries)}-0")
            case 5 if entries and step % 3 == 0:
                eyes.call("XTRIM", stream, "MINID", f"{draw.choice(entries)}-0")
            case 6 if names and step % 5 == 0:
                eyes.call("XGROUP", "SETID", stream, draw.choice(names), f"{draw.randrange(next(serial))}-0")
            case 7 if names:
                name = draw.choice(names)
                rows = eyes.call("XPENDING", stream, name, "-", "+", 1000)
                if rows:
                    eyes.call("XACK", stream, name, *(row[0] for row in rows[: len(rows) // 2 + 1]))
            case _ if names:
                consumer = draw.choice("ab")
                count = draw.randrange(1, 4)
                eyes.call("XREADGROUP", "GROUP", draw.choice(names), consumer, "COUNT", count, "STREAMS", stream, ">")
        rows = eyes.call("XINFO", "GROUPS", stream)
        info = {row[1].decode(): dict(zip(row[::2], row[1::2], strict=True)) for row in rows}
        left = [number(row[0]) for row in eyes.call("XRANGE", stream, "-", "+")]
        for group in ask(link, eyes):
            (topic,) = group.topics
            cursor = number(info[group.name][b"last-delivered-id"])
            assert topic.lag == Count(sum(entry > cursor for entry in left)), (seed, step, group)
            assert topic.pending == len(eyes.pending(group.name)), (seed, step)
    assert names


def test_what_is_too_long_to_count_is_marked(eyes: Eyes, link: BlockingLink, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the limit of entries or bytes the figure is "at least", never a wrong exact one."""
    fill(eyes, range(1, 201))
    eyes.call("XGROUP", "CREATE", eyes.stream(), "g", "110-0")
    eyes.call("XDEL", eyes.stream(), "150-0")  # the server's own figure cannot be believed any more
    assert only(link, eyes).lag == Count(89)
    monkeypatch.setattr(module, "COUNT_LIMIT", 40)
    assert only(link, eyes).lag == Count(40, exact=False)
    assert str(only(link, eyes).lag) == "≥ 40"
    monkeypatch.setattr(module, "COUNT_LIMIT", 100_000)
    monkeypatch.setattr(module, "COUNT_BYTES", 15)
    lag = only(link, eyes).lag
    assert not lag.exact and lag.value is not None and 0 < lag.value <= 89


def test_an_unverified_figure_of_the_server_is_marked(
    eyes: Eyes, link: BlockingLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where counting either side takes too long the server's plausible figure is "about"; where it has none, a bound."""
    fill(eyes, range(1, 201))
    stream = eyes.stream()
    eyes.call("XGROUP", "CREATE", stream, "g", "0")
    eyes.call("XREADGROUP", "GROUP", "g", "c", "COUNT", 100, "STREAMS", stream, ">")
    eyes.call("XTRIM", stream, "MINID", "6-0")
    assert only(link, eyes).lag == Count(100)
    monkeypatch.setattr(module, "VERIFY_LIMIT", 20)
    monkeypatch.setattr(module, "COUNT_LIMIT", 60)
    lag = only(link, eyes).lag
    if eyes.server.shared:
        assert lag == Count(100, exact=False, about=True) and str(lag) == "≈ 100"
    else:
        assert lag == Count(60, exact=False)
    eyes.call("XTRIM", stream, "MINID", "95-0")
    assert only(link, eyes).lag == Count(100), "six entries before the cursor are soon counted"


def test_a_trim_past_the_cursor_does_not_spoil_the_count_for_good(eyes: Eyes, link: BlockingLink) -> None:
    """Redis 7.0 goes on counting from the old place and gives a figure that is too large; ours is right."""
    stream = eyes.stream()
    fill(eyes, range(1, 7))
    eyes.call("XGROUP", "CREATE", stream, "g", "0")
    eyes.call("XREADGROUP", "GROUP", "g", "c", "COUNT", 2, "STREAMS", stream, ">")
    eyes.call("XTRIM", stream, "MINID", "4-0")
    eyes.call("XREADGROUP", "GROUP", "g", "c", "COUNT", 2, "STREAMS", stream, ">")
    assert only(link, eyes).lag == Count(1)


@pytest.mark.parametrize("kind", binaries())
def test_a_server_that_forgot_its_counts_is_not_believed(
    make_server: Callable[..., ServerProcess], kind: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis 7.0 comes back from its append-only file with a figure that is too large, and nothing tells: ours is exact
    where it can be counted, else marked."""
    server = make_server(kind, persistent=True)
    eyes = Eyes(server.url, namespace)
    fill(eyes, range(1, 201))
    eyes.call("XGROUP", "CREATE", eyes.stream(), "g", "0", "ENTRIESREAD", 0)
    eyes.call("XREADGROUP", "GROUP", "g", "c", "COUNT", 70, "STREAMS", eyes.stream(), ">")
    eyes.close()
    server.restart()
    link = BlockingLink(eyes.server)
    assert only(link, eyes).lag == Count(130)
    monkeypatch.setattr(module, "VERIFY_LIMIT", 20)
    monkeypatch.setattr(module, "COUNT_LIMIT", 60)
    lag = only(link, eyes).lag
    assert not lag.exact
    assert lag.value in (60, 130)
    link.close()


def test_unknown_is_no_number() -> None:
    """Sums with an unknown part are "at least" or unknown, never 0."""
    assert Count(3) + Count(4) == Count(7)
    assert Count(3) + Count(4, exact=False) == Count(7, exact=False)
    assert Count(3) + Count(4, exact=False, about=True) == Count(7, exact=False, about=True)
    assert Count(3) + Count(None) == Count(3, exact=False) == Count(None) + Count(3)
    assert Count(0) + Count(None) == Count(None) and (Count(None) + Count(None)).value is None
    assert [str(count) for count in (Count(None), Count(1234), Count(5, exact=False))] == ["unknown", "1,234", "≥ 5"]


def test_the_oldest_age_is_that_of_what_is_not_done(eyes: Eyes, link: BlockingLink) -> None:
    """Of the oldest pending entry, else of the next unread one; None when all is done."""
    stream = eyes.stream()
    now = int(time.time() * 1000)
    fill(eyes, [now - 60_000, now - 30_000, now - 10_000])
    eyes.call("XGROUP", "CREATE", stream, "g", "0")
    eyes.call("XREADGROUP", "GROUP", "g", "c", "COUNT", 2, "STREAMS", stream, ">")

    def age() -> float | None:
        return only(link, eyes).oldest_seconds

    for entry, seconds in ((now - 60_000, 60), (now - 30_000, 30), (now - 10_000, 10)):
        found = age()
        assert found is not None and seconds <= found < seconds + 8
        eyes.call("XREADGROUP", "GROUP", "g", "c", "COUNT", 1, "STREAMS", stream, ">")
        eyes.call("XACK", stream, "g", f"{entry}-0")
    assert age() is None


def test_pools_are_no_consumers(eyes: Eyes, link: BlockingLink) -> None:
    """Entries under "~" names wait for somebody and are counted apart, by what they wait for."""
    stream = eyes.stream()
    fill(eyes, range(1, 8))
    eyes.call("XGROUP", "CREATE", stream, "g", "0")
    eyes.call("XREADGROUP", "GROUP", "g", "worker-1", "COUNT", 7, "STREAMS", stream, ">")
    for owner, ids in (("~free", "12"), ("~suspect", "3"), ("~v:painting.made:2", "45")):
        eyes.call("XCLAIM", stream, "g", owner, 0, *(f"{ident}-0" for ident in ids), "JUSTID")
    (group,) = ask(link, eyes)
    assert group.consumers == 1
    (topic,) = group.topics
    assert (topic.pending, topic.handed_back, topic.quarantine, topic.parked) == (2, 2, 1, 2)


def test_living_consumers_have_a_heart_that_beats(
    eyes: Eyes, link: BlockingLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that just talked to the server lives; of the idle ones those whose count moves while we look."""
    monkeypatch.setattr(module, "ALIVE_MS", 0)  # nobody counts as having just talked
    stream, beats = eyes.stream(), eyes.keys.beats("g")
    fill(eyes, [1, 2, 3])
    eyes.call("XGROUP", "CREATE", stream, "g", "0")
    for name in ("dead", "alive", "no-heart"):
        eyes.call("XREADGROUP", "GROUP", "g", name, "COUNT", 1, "STREAMS", stream, ">")
    eyes.call("HSET", beats, "dead", 7, "alive", 7)
    looks = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        eyes.call("HINCRBY", beats, "alive", 1)

    watching = BlockingLink(eyes.server, sleep=sleep)
    (group,) = ask(watching, eyes)
    assert (group.alive, group.consumers) == (1, 3)
    assert sum(looks) == pytest.approx(module.LOOK_SECONDS)
    monkeypatch.setattr(module, "ALIVE_MS", 60_000)
    looks.clear()
    (group,) = ask(watching, eyes)
    assert (group.alive, group.consumers) == (3, 3) and not looks, "who just talked is not watched"
    watching.close()


def test_a_heartbeat_that_goes_is_no_life(eyes: Eyes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its worker leaves, or is found dead by the others, while we look."""
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.5)
    eyes.call("HSET", eyes.keys.groups, "g", "{}")
    eyes.call("HSET", eyes.keys.beats("g"), "dead", 7)
    watching = BlockingLink(eyes.server, sleep=lambda _: eyes.call("HDEL", eyes.keys.beats("g"), "dead"))
    (group,) = ask(watching, eyes)
    assert (group.alive, group.consumers) == (0, 1)
    watching.close()


def test_a_heartbeat_that_is_no_number_is_none(eyes: Eyes, link: BlockingLink, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else's value among the heartbeats counts as a consumer that does not live, and breaks nothing."""
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.25)
    eyes.call("HSET", eyes.keys.groups, "g", "{}")
    eyes.call("HSET", eyes.keys.beats("g"), "c", "soon")
    (group,) = ask(link, eyes)
    assert (group.alive, group.consumers) == (0, 1)


def test_dead_letters_are_counted_and_unknown_is_none(eyes: Eyes, link: BlockingLink) -> None:
    """XLEN of the group's dead-letter stream; when the key is something else, the number is unknown."""
    for name in ("a", "b", "c"):
        eyes.call("HSET", eyes.keys.groups, name, "{}")
    for _ in range(3):
        eyes.call("XADD", eyes.keys.dead("a"), "*", "e", "x")
    eyes.call("SET", eyes.keys.dead("c"), "what")
    assert [(group.name, group.dead_letters) for group in ask(link, eyes)] == [("a", 3), ("b", 0), ("c", None)]


def test_partitions_are_added_up(eyes: Eyes, link: BlockingLink, namespace: str) -> None:
    """One group on one topic over three partitions is one line with the sums."""
    parts = [Keys(namespace, partition) for partition in range(3)]
    for at, keys in enumerate(parts):
        for ident in range(1, at + 3):
            eyes.call("XADD", keys.stream(TOPIC), f"{ident}-0", "e", "x")
        eyes.call("XGROUP", "CREATE", keys.stream(TOPIC), "g", "0")
        eyes.call("XREADGROUP", "GROUP", "g", "same", "COUNT", 1, "STREAMS", keys.stream(TOPIC), ">")
        eyes.call("XADD", keys.dead("g"), "*", "e", "x")
    (group,) = ask(link, eyes, *parts)
    assert (group.consumers, group.dead_letters) == (1, 3)
    (topic,) = group.topics
    assert (topic.lag, topic.pending) == (Count(1 + 2 + 3), 3)


def test_one_group_can_be_asked_for(eyes: Eyes, link: BlockingLink) -> None:
    """`only` leaves the others out."""
    fill(eyes, [1])
    for name in ("a", "b"):
        eyes.call("XGROUP", "CREATE", eyes.stream(), name, "0")
    assert [group.name for group in ask(link, eyes, only="b")] == ["b"]
    assert ask(link, eyes, only="zzz") == []


def test_a_topic_that_is_no_stream_spoils_nothing(eyes: Eyes, link: BlockingLink) -> None:
    """A key of another type among the streams is skipped here; `topics` says what it is."""
    fill(eyes, [1])
    eyes.call("XGROUP", "CREATE", eyes.stream(), "g", "0")
    eyes.call("SET", eyes.stream("aaa"), "text")
    eyes.call("SADD", eyes.keys.topics, "aaa", "never.written")
    assert [topic.topic for topic in ask(link, eyes)[0].topics] == [TOPIC]
    assert not isinstance(link.call("PING"), ReplyError)
