"""What lies on the bus: topics, how many entries, from when to when, who reads them.

A topic is the stream of one event type in all partitions. Names come from the set that publishers and workers keep, and
from a SCAN, because a foreign writer (`redis-cli XADD`) adds to a stream and not to our set.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from canvasbus.errors import Refused
from canvasbus.ids import id_order
from canvasbus.operate.words import text
from canvasbus.produce.fenced import partitions_in
from canvasbus.transport.resp import Operation, Reply, ReplyError, check, code, command, commands, pairs, translate
from canvasbus.wire.keys import Keys
from canvasbus.wire.retention import Full, read_full

SCAN_COUNT = 1000


@dataclass(frozen=True, slots=True)
class Topic:
    """One event type as it lies on the server, all partitions together."""

    name: str
    entries: int
    first_id: str | None
    """The oldest entry; None: there is none."""
    first_time: datetime | None
    last_id: str | None
    last_time: datetime | None
    bytes: int | None
    """Memory on the server; None: it does not tell."""
    groups: tuple[str, ...]
    """The consumer groups that read it."""
    full: str | None = None
    """Why it takes no more for the moment; None: it does."""
    problem: str | None = None
    """Why it cannot be read, for example because the key holds something else; None: it can."""


@dataclass(frozen=True, slots=True)
class TopicKey:
    """Where one topic lies in one partition."""

    name: str
    stream: bytes
    partition: int


def recorded_partitions(namespace: str) -> Operation[int | None]:
    """How many partitions the namespace has on this server; None: nobody has used it yet. Raises Refused when what is on
    record cannot be their number."""
    keys = Keys(namespace, 0)
    (reply,) = yield command("HGET", keys.meta, "partitions")
    value = check(reply, f"look at the namespace {namespace!r}")
    return None if value is None else partitions_in(keys, value)


def scan(pattern: bytes) -> Operation[set[bytes]]:
    """All keys that match. The pattern's only special character is its last star (namespaces have no others)."""
    found: set[bytes] = set()
    cursor: bytes | int = 0
    while True:
        (reply,) = yield command("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT)
        if isinstance(reply, ReplyError) and code(reply) == "NOPERM":
            return found  # an ACL without SCAN hides foreign streams only
        cursor, keys = check(reply, "look for streams")
        found.update(keys)
        if int(cursor) == 0:
            return found


def topic_keys(partitions: Sequence[Keys], *, foreign: bool = True) -> Operation[list[TopicKey]]:
    """Every topic in every partition, sorted by name. `foreign`: also those that only a SCAN finds."""
    result: list[TopicKey] = []
    for keys in partitions:
        (reply,) = yield command("SMEMBERS", keys.topics)
        head = keys.stream("")
        streams = {head + name for name in check(reply, "look for topics")}
        if foreign:
            streams |= yield from scan(keys.stream_pattern)
        result += [TopicKey(text(stream[len(head) :]), stream, keys.partition) for stream in streams]
    return sorted(result, key=lambda key: (key.name, key.partition))


def answered(reply: Reply, doing: str) -> bool:
    """False: what was asked for is not there. Raises Refused where it may not be asked for: who does not know must not
    say that there is none."""
    if isinstance(reply, ReplyError) and code(reply) == "NOPERM":
        raise translate(reply, doing)
    return not isinstance(reply, ReplyError)


def topics(partitions: Sequence[Keys]) -> Operation[list[Topic]]:
    """All topics, sorted by name."""
    keys = yield from topic_keys(partitions)
    full: dict[str, Full] = {}
    for one in partitions:
        (value,) = yield command("GET", one.full)
        if not isinstance(value, ReplyError):
            full |= read_full(value)
    by_name: dict[str, list[Topic]] = {}
    for key in keys:
        topic = yield from _topic(key)
        if key.name in full:
            topic = replace(topic, full=str(full[key.name]))
        by_name.setdefault(key.name, []).append(topic)
    return [_together(parts) for parts in by_name.values()]


def _topic(key: TopicKey) -> Operation[Topic]:
    info, groups, memory = yield commands(
        ("XINFO", "STREAM", key.stream), ("XINFO", "GROUPS", key.stream), ("MEMORY", "USAGE", key.stream)
    )
    used = memory if isinstance(memory, int) else None
    if isinstance(info, ReplyError):
        gone = "no such key" in str(info)
        problem = None if gone else _problem(info)
        return Topic(key.name, 0, None, None, None, None, used, (), problem=problem)
    facts = pairs(info)
    first, last = facts[b"first-entry"], facts[b"last-entry"]
    first_id = first[0].decode() if first else None
    last_id = last[0].decode() if last else None
    names = sorted(text(pairs(row)[b"name"]) for row in check(groups, "look at groups"))
    return Topic(key.name, facts[b"length"], first_id, time_of(first_id), last_id, time_of(last_id), used, tuple(names))


def _problem(error: ReplyError) -> str:
    if code(error) == "WRONGTYPE":
        return "the key holds something that is not a stream"
    try:
        check(error, "look")
    except Refused as refused:
        return str(refused).removeprefix("look: ")
    return str(error)


def _together(parts: list[Topic]) -> Topic:
    if len(parts) == 1:
        return parts[0]
    filled = [part for part in parts if part.entries]
    first = min(filled, key=lambda part: id_order(part.first_id or ""), default=None)
    last = max(filled, key=lambda part: id_order(part.last_id or ""), default=None)
    return Topic(
        parts[0].name,
        sum(part.entries for part in parts),
        first.first_id if first else None,
        first.first_time if first else None,
        last.last_id if last else None,
        last.last_time if last else None,
        None if any(part.bytes is None for part in filled) else sum(part.bytes or 0 for part in parts),
        tuple(sorted({group for part in parts for group in part.groups})),
        next((part.full for part in parts if part.full), None),
        next((part.problem for part in parts if part.problem), None),
    )


def time_of(entry_id: str | None) -> datetime | None:
    """When the server took the entry, read from its id; None: it has an id of its writer's own that is no time."""
    if entry_id is None:
        return None
    try:
        return datetime.fromtimestamp(id_order(entry_id)[0] / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None
