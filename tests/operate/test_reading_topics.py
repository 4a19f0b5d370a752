"""Topics, the events themselves and dead letters, read without disturbing anybody."""

import itertools
import random
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from seeds import seeds
from studio import Eyes, PaintingMade

from canvasbus.errors import Refused
from canvasbus.ids import id_order
from canvasbus.operate import deadletter as dlq
from canvasbus.operate import tail as tail_module
from canvasbus.operate.deadletter import Filter, dead_letters
from canvasbus.operate.entry import Entry, view
from canvasbus.operate.tail import Tail
from canvasbus.operate.topics import recorded_partitions, time_of, topics
from canvasbus.transport.blocking import BlockingLink
from canvasbus.wire import deadletter
from canvasbus.wire.codec import Codec
from canvasbus.wire.deadletter import DeadLetterRecord
from canvasbus.wire.keys import Keys


def add(eyes: Eyes, topic: str, ident: str, value: bytes = b"x", keys: Keys | None = None) -> None:
    eyes.call("XADD", (keys or eyes.keys).stream(topic), ident, "e", value)


def read_all(link: BlockingLink, tail: Tail) -> list[tuple[str, str]]:
    link.run(tail.begin())
    found: list[tuple[str, str]] = []
    while page := link.run(tail.page()):
        found += [(entry.entry_id, entry.topic) for entry in page]
    return found


# --- topics -----------------------------------------------------------------------------------------------------------


def test_topics_are_what_lies_there(eyes: Eyes, link: BlockingLink) -> None:
    """Entries, first and last with their times, and readers; found by the set of names or, foreign ones, by a scan."""
    for ident in ("1700000000000-0", "1700000001000-0", "1700000001000-1"):
        add(eyes, "b.b", ident)
    add(eyes, "a.a", "5-0")
    eyes.call("XDEL", eyes.stream("a.a"), "5-0")
    eyes.call("SADD", eyes.keys.topics, "b.b", "declared.only")
    for group in ("z", "a"):
        eyes.call("XGROUP", "CREATE", eyes.stream("b.b"), group, "0")
    found = {topic.name: topic for topic in link.run(topics([eyes.keys]))}
    assert list(found) == ["a.a", "b.b", "declared.only"]
    full = found["b.b"]
    assert (full.entries, full.first_id, full.last_id) == (3, "1700000000000-0", "1700000001000-1")
    assert full.first_time == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert full.last_time == datetime(2023, 11, 14, 22, 13, 21, tzinfo=UTC)
    assert full.groups == ("a", "z") and full.problem is None
    for empty in (found["a.a"], found["declared.only"]):
        assert (empty.entries, empty.first_id, empty.last_time, empty.problem) == (0, None, None, None)


def test_a_key_that_is_no_stream_is_a_problem_of_its_topic_only(eyes: Eyes, link: BlockingLink) -> None:
    """It is listed with a sentence; the others are listed as ever."""
    add(eyes, "b.b", "5-0")
    eyes.call("SET", eyes.stream("a.a"), "text")
    first, second = link.run(topics([eyes.keys]))
    assert first.name == "a.a" and first.problem == "the key holds something that is not a stream"
    assert (second.entries, second.problem) == (1, None)


def test_partitions_of_a_topic_are_one_topic(eyes: Eyes, link: BlockingLink, namespace: str) -> None:
    """Entries are summed, first and last are the extremes by number, not by spelling."""
    one, two = Keys(namespace, 0), Keys(namespace, 1)
    for keys, ids in ((one, ("9-0", "10-0")), (two, ("100-0", "10-1"[:4]))):
        for ident in sorted(ids, key=id_order):
            add(eyes, "a.a", ident, keys=keys)
    (topic,) = link.run(topics([one, two]))
    assert (topic.entries, topic.first_id, topic.last_id) == (4, "9-0", "100-0")


def test_other_namespaces_are_not_seen(eyes: Eyes, link: BlockingLink, namespace: str) -> None:
    """Not even one whose name begins alike."""
    add(eyes, "a.a", "1-0", keys=Keys(namespace + "x"))
    assert link.run(topics([eyes.keys])) == []


def test_the_number_of_partitions_on_record(eyes: Eyes, link: BlockingLink, namespace: str) -> None:
    """None until somebody used the namespace; what cannot be a number of partitions, or more than there may be, is told."""
    assert link.run(recorded_partitions(namespace)) is None
    eyes.call("HSET", eyes.keys.meta, "partitions", 4)
    assert link.run(recorded_partitions(namespace)) == 4
    for nonsense in ("0", "-2", "many", "", "4097", "999999999", "9" * 5000):
        eyes.call("HSET", eyes.keys.meta, "partitions", nonsense)
        with pytest.raises(Refused, match="on record as its number of partitions"):
            link.run(recorded_partitions(namespace))


def test_ids_that_are_no_time_have_none() -> None:
    """A writer may give ids of its own; they order, and say no time when there is none."""
    assert time_of(None) is None
    assert time_of("18446744073709551615-0") is None
    assert time_of("0-1") == datetime(1970, 1, 1, tzinfo=UTC)
    assert id_order("10-0") > id_order("9-99") > id_order(b"9-2") > id_order("9")


# --- the events -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [1, 2, 3, 200])
def test_topics_are_read_as_one_sequence_in_time_order(
    eyes: Eyes, link: BlockingLink, namespace: str, page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams and partitions of any shape, in pages of any size, forwards and backwards: the naive sort of all entries."""
    monkeypatch.setattr(tail_module, "PAGE", page)
    (seed,) = seeds(1, "reading_topics")
    print(f"seed {seed}")
    draw = random.Random(seed)
    parts = [Keys(namespace, 0), Keys(namespace, 1)]
    oracle: list[tuple[str, str]] = []
    for topic, keys in itertools.product(("a.a", "b.b", "c.c"), parts):
        for ident in sorted({(draw.randrange(1, 30), draw.randrange(3)) for _ in range(draw.randrange(15))}):
            text = f"{ident[0]}-{ident[1]}"
            add(eyes, topic, text, keys=keys)
            oracle.append((text, topic))
    oracle.sort(key=lambda pair: (id_order(pair[0]), pair[1]))
    assert read_all(link, Tail(parts)) == oracle
    assert read_all(link, Tail(parts, backwards=True))[::-1] == oracle
    late = [pair for pair in oracle if id_order(pair[0]) >= (15, 1)]
    assert read_all(link, Tail(parts, start="15-1")) == late
    assert read_all(link, Tail(parts, start="15-1", backwards=True))[::-1] == late
    some = [pair for pair in oracle if pair[1] != "b.b"]
    assert read_all(link, Tail(parts, lambda name: name != "b.b")) == some


def test_reading_ends_where_the_topics_ended_when_it_began(eyes: Eyes, link: BlockingLink) -> None:
    """Entries that come meanwhile are not read by `page`, and are the first that `follow` gives: none lost, none twice."""
    add(eyes, "a.a", "1-0")
    add(eyes, "b.b", "2-0")
    tail = Tail([eyes.keys], blocks=eyes.server.blocks)
    link.run(tail.begin())
    add(eyes, "a.a", "3-0")
    assert [entry.entry_id for entry in link.run(tail.page())] == ["1-0", "2-0"]
    assert link.run(tail.page()) == []
    assert [entry.entry_id for entry in link.run(tail.follow(0))] == ["3-0"]
    assert link.run(tail.follow(0)) == []


def test_followers_find_new_topics_from_their_first_entry(
    eyes: Eyes, link: BlockingLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A topic that appears while following is read from its beginning; one that is not wanted stays out."""
    monkeypatch.setattr(tail_module, "LOOK_SECONDS", 0.0)
    eyes.call("SADD", eyes.keys.topics, "a.a")
    tail = Tail([eyes.keys], lambda name: name != "no.no", blocks=eyes.server.blocks)
    link.run(tail.begin())
    assert link.run(tail.follow(0)) == []
    for topic in ("b.b", "no.no"):
        eyes.call("SADD", eyes.keys.topics, topic)
        add(eyes, topic, "7-0")
        add(eyes, topic, "8-0")
    add(eyes, "a.a", "7-5")
    assert [(e.entry_id, e.topic) for e in link.run(tail.follow(0))] == [("7-0", "b.b"), ("7-5", "a.a"), ("8-0", "b.b")]
    assert tail.topics == ["a.a", "b.b"]


def test_what_cannot_be_read_is_said_and_skipped(eyes: Eyes, link: BlockingLink) -> None:
    """A key of another type does not end the reading of the others."""
    eyes.call("SET", eyes.stream("a.a"), "text")
    add(eyes, "b.b", "1-0")
    tail = Tail([eyes.keys])
    assert read_all(link, tail) == [("1-0", "b.b")]
    assert "WRONGTYPE" in tail.problems["a.a"]


def test_any_entry_can_be_shown() -> None:
    """Valid, of an unknown type, damaged, foreign, with no field at all: always a CloudEvents object, with a reason."""
    codec = Codec("lab")
    good = codec.encode(PaintingMade(title="Dusk", number=3)).data
    unknown = b'{"type": "zzz.zzz", "data": {"a": 1, "correlation_id": "c"}, "subject": "k", "version": 2}'

    def shown(*fields: bytes, topic: str = "painting.made") -> Any:
        return view(Entry(topic, 0, "1700000000000-0", fields), codec)

    event = shown(b"e", good)
    assert event.reason is None and event.cloudevent["data"] == {"title": "Dusk", "number": 3}
    assert event.cloudevent["subject"] == "Dusk" and event.cloudevent["source"] == "lab"
    event = shown(b"e", unknown, topic="zzz.zzz")
    assert event.reason == "unknown_type" and event.cloudevent["data"] == {"a": 1}
    assert event.cloudevent["dataschema"] == "urn:canvasbus:zzz.zzz/v2"
    assert event.cloudevent["time"] == "2023-11-14T22:13:20Z"
    for fields, reason in (
        ((b"e", good[:-1]), "undecodable"),
        ((b"e", b"\xff"), "undecodable"),
        ((b"e", good, b"f", b"2"), "foreign"),
        ((b"x", b"\xff\x00"), "foreign"),
        ((), "foreign"),
        ((b"odd",), "foreign"),
    ):
        event = shown(*fields)
        assert event.reason == event.cloudevent["reason"] == reason
        assert event.cloudevent["problem"] and event.cloudevent["specversion"] == "1.0"
    assert shown(b"e", good, topic="sculpture.made").reason == "foreign"
    head = b"\x99\xc4\x10" + bytes(16) + b"\xa3m.x\x01\xa0\xc0\xc0\xc0"
    for payload in (
        b"\x81\xc0\x01",
        b"\x81\xa1a\xc7\x01\x05\x01",
        b"\x81\xa1a\xcb\x7f\xf8" + bytes(6),
        b"\x91\x01",
        b"\xc1",
    ):
        event = shown(
            b"e", head + payload + b"\xc0", topic="m.x"
        )  # a nil key, an extension type, NaN, no map, no msgpack
        assert event.reason in ("unknown_type", "undecodable") and msgspec.json.encode(event.cloudevent)


# --- dead letters -----------------------------------------------------------------------------------------------------


def letter(eyes: Eyes, group: str, ident: str, event_type: str = "painting.made", **more: Any) -> str:
    made = Codec("lab").encode(PaintingMade(title="Dusk"))
    record = DeadLetterRecord(
        **{
            "group": group,
            "event_type": event_type,
            "entry_id": "1-0",
            "event_id": str(made.id),
            "handler": "on_painting",
            "reason": "exhausted",
            "error": "ValueError: no",
            "traceback": "",
            "attempts": 3,
            "first_failure": datetime(2026, 1, 1, tzinfo=UTC),
            "last_failure": datetime(2026, 1, 1, tzinfo=UTC),
            "consumer": "c",
            "fields": (b"e", made.data),
            **more,
        }
    )
    eyes.call("XADD", eyes.keys.dead(group), ident, "e", deadletter.encode(record))
    return record.event_id or ""


def ids(link: BlockingLink, eyes: Eyes, limit: int = 100, **wanted: Any) -> list[tuple[str, str]]:
    found = link.run(dead_letters([eyes.keys], Filter(**wanted), limit=limit))
    return [(each.group, each.id) for each in found.letters]


def test_dead_letters_are_listed_in_order_and_filtered(eyes: Eyes, link: BlockingLink) -> None:
    """Of all groups, oldest first; by group, type glob, reason, own id and the event's id."""
    event_id = letter(eyes, "a", "10-0")
    letter(eyes, "b", "9-0", "sculpture.made", reason="rejected")
    letter(eyes, "b", "11-0", event_id=None, reason="undecodable")
    assert ids(link, eyes) == [("b", "9-0"), ("a", "10-0"), ("b", "11-0")]
    assert ids(link, eyes, group="b") == [("b", "9-0"), ("b", "11-0")]
    assert ids(link, eyes, event_type="painting.*") == [("a", "10-0"), ("b", "11-0")]
    assert ids(link, eyes, reason="rejected") == [("b", "9-0")]
    assert ids(link, eyes, id="11-0") == [("b", "11-0")]
    assert ids(link, eyes, id=event_id) == [("a", "10-0")]
    assert ids(link, eyes, group="nobody") == ids(link, eyes, id=str(uuid4())) == []
    assert ids(link, eyes, limit=2) == [("a", "10-0"), ("b", "11-0")]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7])
def test_more_says_whether_there_are_older_ones(
    eyes: Eyes, link: BlockingLink, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over page borders, with letters that do not match in between."""
    monkeypatch.setattr(dlq, "PAGE", 2)
    for ident in range(1, count + 1):
        letter(eyes, "a", f"{ident * 2}-0")
        letter(eyes, "a", f"{ident * 2 + 1}-0", reason="rejected")
    found = link.run(dead_letters([eyes.keys], Filter(reason="exhausted"), limit=3))
    assert [each.id for each in found.letters] == [f"{n * 2}-0" for n in range(max(1, count - 2), count + 1)]
    assert found.more is (count > 3)


def test_the_event_inside_can_be_seen(eyes: Eyes, link: BlockingLink) -> None:
    """The original bytes decode to the event as it was published."""
    letter(eyes, "a", "1700000000000-0")
    (found,) = link.run(dead_letters([eyes.keys], Filter())).letters
    original = found.original(Codec())
    assert original is not None and original.reason is None and original.cloudevent["data"]["title"] == "Dusk"
    assert found.time == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)


def test_what_others_wrote_among_dead_letters_is_shown_as_such(eyes: Eyes, link: BlockingLink) -> None:
    """Strange fields and bytes that are no record do not hide the real ones."""
    letter(eyes, "a", "1-0")
    eyes.call("XADD", eyes.keys.dead("a"), "2-0", "x", "y")
    eyes.call("XADD", eyes.keys.dead("a"), "3-0", "e", b"\xc1\xff")
    found = link.run(dead_letters([eyes.keys], Filter())).letters
    assert [each.record is None for each in found] == [False, True, True]
    assert found[1].problem == "not written by the bus" and (found[2].problem or "").startswith("not a dead letter")
    assert found[1].original(Codec()) is None
    assert ids(link, eyes, reason="foreign") == [("a", "2-0"), ("a", "3-0")]
