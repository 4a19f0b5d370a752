"""What the doctor asks about one namespace.

Keys, groups and consumers that strangers made are asked about by their own bytes. Every list has an end; what lies
beyond it makes the facts incomplete.
"""

import re
from collections.abc import Sequence

import msgspec

from canvasbus import clock
from canvasbus.consume.declaration import read_group
from canvasbus.errors import Refused
from canvasbus.ids import id_order
from canvasbus.operate.doctor.namespace import REDRIVEN, GroupFacts, NamespaceFacts, Owner, Reading, StreamFacts
from canvasbus.operate.groups import without_life
from canvasbus.operate.timers import sorted_until
from canvasbus.operate.topics import recorded_partitions
from canvasbus.operate.words import text
from canvasbus.transport.resp import Argument, Operation, chunks, command, commands, pairs
from canvasbus.wire import deadletter
from canvasbus.wire.keys import LATER_INBOX, TYPES, Keys
from canvasbus.wire.retention import is_policy, read_full

PARTITION_LIMIT = 256
SCAN_COUNT, SCAN_PAGES = 5000, 200
"""Keys that are looked at in one step, and steps: a million keys, the server's others included."""
KEY_LIMIT = 5000
"""Keys of the namespace whose type is looked at."""
MARKS = ("once", "done")
MARK_LIMIT = 100
"""Of the keys that there may be one of for each event (see wire.marks): they must not crowd out the others."""
STREAM_LIMIT = 500
PAIR_LIMIT = 2000
"""Pairs of a stream and a group that are looked at closely."""
GROUP_LIMIT = 500
OWNER_LIMIT = 50
"""Consumers of one pair whose oldest entry is looked at, those with most entries first."""
LOSS_SECONDS, LOSS_LIMIT = 86400, 500
"""How far back losses are looked for, and how many."""
SAMPLE = 20
"""Of the oldest pending entries of a pair: how many are looked for in the stream."""


def ask_namespace(namespace: str, wanted: int | None) -> Operation[NamespaceFacts]:
    """Ask everything. `wanted`: the number of partitions that somebody has set. Raises TransportError."""
    facts = NamespaceFacts(namespace)
    (record,) = yield command("HGET", Keys(namespace).meta, "partitions")
    facts.fine("HGET", record)
    if not facts.refused:
        try:
            facts.recorded = yield from recorded_partitions(namespace)
        except Refused as error:
            facts.recorded_error = str(error)
    (now,) = yield command("TIME")
    if facts.fine("TIME", now):
        facts.now_ms = int(now[0]) * 1000 + int(now[1]) // 1000
    else:  # ours, which is off by what the clocks differ
        facts.now_ms = clock.time_ns() // 1_000_000
    facts.partitions = min(facts.recorded or wanted or 1, PARTITION_LIMIT)
    facts.complete = facts.partitions == (facts.recorded or wanted or 1)
    partitions = [Keys(namespace, partition) for partition in range(facts.partitions)]
    keys = yield from _scan(facts)
    if facts.recorded is None and not keys and not facts.recorded_error:
        facts.neighbours = yield from _neighbours(facts)
        return facts
    yield from _types(facts, keys)
    yield from _declared(facts, partitions)
    yield from _streams(facts, partitions, keys)
    yield from _readings(facts)
    yield from _life(facts, partitions)
    for name in facts.at_most(GROUP_LIMIT, sorted(facts.groups)):
        yield from _letters(facts, partitions, facts.groups[name])
    yield from _waiting(facts, partitions)
    return facts


def _scan(facts: NamespaceFacts) -> Operation[list[bytes]]:
    """The keys of the namespace, as far as they are found."""
    form = re.compile(rb"\{%b:(\d{1,9})\}:([a-z-]+)(?::.*)?" % re.escape(facts.namespace.encode()), re.DOTALL)
    found: set[bytes] = set()
    cursor: bytes | int = 0
    for _ in range(SCAN_PAGES):
        (reply,) = yield command("SCAN", cursor, "MATCH", f"{{{facts.namespace}:*", "COUNT", SCAN_COUNT)
        if not facts.fine("SCAN", reply):
            return []
        cursor, page = reply
        for key in set(page) - found:  # SCAN may say a key twice; after KEY_LIMIT we would not know
            matched = form.fullmatch(key)
            if matched is None or matched[2].decode() not in TYPES:
                facts.foreign += 1
                facts.stranger = facts.stranger or key[:200]
            elif int(matched[1]) >= facts.partitions:
                facts.beyond[int(matched[1])] += 1
            else:
                kind = matched[2].decode()
                facts.keys[kind] += 1
                if len(found) < 4 * KEY_LIMIT and (kind not in MARKS or facts.keys[kind] <= MARK_LIMIT):
                    found.add(key)
        if int(cursor) == 0:
            break
    facts.complete = facts.complete and int(cursor) == 0
    return sorted(found)


def _neighbours(facts: NamespaceFacts) -> Operation[list[str]]:
    found: set[str] = set()
    cursor: bytes | int = 0
    for _ in range(SCAN_PAGES):
        (reply,) = yield command("SCAN", cursor, "MATCH", "{*:0}:meta", "COUNT", SCAN_COUNT)
        if not facts.fine("SCAN", reply):
            break
        cursor, page = reply
        found |= {text(key[1:-8]) for key in page}
        if int(cursor) == 0:
            break
    return sorted(found)


def _types(facts: NamespaceFacts, keys: Sequence[bytes]) -> Operation[None]:
    """Look at what keys hold: streams and what there is once before the many small ones."""
    small = (b"fence", b"state", b"parts", b"once", b"done")
    many = sorted(keys, key=lambda key: _kind(key).encode() in small)
    for some in chunks(facts.at_most(KEY_LIMIT, many)):
        for key, reply in zip(some, (yield commands(*(("TYPE", key) for key in some))), strict=True):
            if facts.fine("TYPE", reply):
                holds, should = reply.decode(), TYPES[_kind(key)]
                if holds not in (should, "none"):
                    facts.wrong.append((key, holds, should))


def _kind(key: bytes) -> str:
    return key.partition(b"}:")[2].partition(b":")[0].decode()


def _declared(facts: NamespaceFacts, partitions: Sequence[Keys]) -> Operation[None]:
    """Declared groups, and which of them are paused."""
    for some in chunks(list(partitions)):
        for reply in (yield commands(*(("HGETALL", keys.groups) for keys in some))):
            if facts.fine("HGETALL", reply):
                for name, about in pairs(reply).items():
                    group = facts.groups.setdefault(name, GroupFacts(name))
                    said = read_group("", about)
                    group.declared = True
                    group.types |= said.types
                    group.globs |= said.globs
                    group.instance = group.instance or said.instance
    for names in chunks(facts.at_most(GROUP_LIMIT, sorted(facts.groups))):
        forms = [("GET", partitions[0].paused("") + name) for name in names]
        for name, reply in zip(names, (yield commands(*forms)), strict=True):
            facts.groups[name].paused = facts.fine("GET", reply) and reply is not None


def _streams(facts: NamespaceFacts, partitions: Sequence[Keys], keys: Sequence[bytes]) -> Operation[None]:
    """Streams and the groups on them: those that are listed, those that exist, and those of redriven events."""
    found: dict[bytes, StreamFacts] = {}
    for own in partitions:
        head = own.stream("")
        (names,) = yield command("SMEMBERS", own.topics)
        listed = {head + name for name in names} if facts.fine("SMEMBERS", names) else set()
        for key in listed | {key for key in keys if key.startswith(head)}:
            found[key] = StreamFacts(text(key[len(head) :]), key, own.partition)
        retries = own.retry("", "")[: -len(b":")]
        for key in keys:
            if key.startswith(retries) and _kind(key) == "retry":
                topic = text(key.rpartition(b":")[2]) + REDRIVEN
                found[key] = StreamFacts(topic, key, own.partition)
    wrong = {key for key, _, _ in facts.wrong}
    facts.streams = facts.at_most(STREAM_LIMIT, [found[key] for key in sorted(found) if key not in wrong])
    for some in chunks(facts.streams, 4):  # two entries of each stream come with its XINFO
        replies = yield commands(
            *(
                (*question, stream.key)
                for stream in some
                for question in (("XLEN",), ("XINFO", "STREAM"), ("XINFO", "GROUPS"))
            )
        )
        for stream, (length, about, rows) in zip(some, chunks(replies, 3), strict=True):
            if facts.fine("XLEN", length):
                stream.entries = length
            if facts.fine("XINFO STREAM", about):
                known = pairs(about)
                stream.told = True
                stream.first, stream.last = (
                    known[end][0] if known[end] else None for end in (b"first-entry", b"last-entry")
                )
                stream.deleted = known.get(b"max-deleted-entry-id") or b"0-0"
            if facts.fine("XINFO GROUPS", rows):
                for row in map(pairs, rows):
                    group = facts.groups.setdefault(row[b"name"], GroupFacts(row[b"name"]))
                    group.readings.append(Reading(stream, row[b"last-delivered-id"]))


def _readings(facts: NamespaceFacts) -> Operation[None]:
    every = [(name, reading) for name in sorted(facts.groups) for reading in facts.groups[name].readings]
    for some in chunks(facts.at_most(PAIR_LIMIT, every), 20):
        yield from _owners(facts, some)
        yield from _unread(facts, [reading for _, reading in some])
        for _, reading in some:
            yield from _gone(reading)


def _owners(facts: NamespaceFacts, some: Sequence[tuple[bytes, Reading]]) -> Operation[None]:
    """Who has entries in hand, and since when."""
    forms: list[tuple[Argument, ...]] = []
    for group, reading in some:
        key = reading.stream.key
        forms.append(("XPENDING", key, group))
        forms.append(("XINFO", "CONSUMERS", key, group))
        forms.append(("XPENDING", key, group, "-", "+", SAMPLE))
    whom: list[Owner] = []
    closer: list[tuple[Argument, ...]] = []
    for (group, reading), three in zip(some, chunks((yield commands(*forms)), 3), strict=True):
        pending, consumers, oldest = three
        reading.looked = True
        if facts.fine("XINFO CONSUMERS", consumers):
            rows = map(pairs, consumers)
            reading.idle = {row[b"name"]: row[b"idle"] for row in rows if not row[b"name"].startswith(b"~")}
        if facts.fine("XPENDING", oldest):
            reading.oldest = [row[0] for row in oldest]
        if facts.fine("XPENDING", pending):
            reading.owners = {owner: Owner(int(count)) for owner, count in pending[3] or ()}
        most = sorted(reading.owners, key=lambda owner: (not owner.startswith(b"~"), -reading.owners[owner].entries))
        for owner in facts.at_most(OWNER_LIMIT, most):
            whom.append(reading.owners[owner])
            closer.append(("XPENDING", reading.stream.key, group, "-", "+", 1, owner))
    for asked, those in zip(chunks(closer), chunks(whom), strict=True):
        for held, reply in zip(those, (yield commands(*asked)), strict=True):
            if facts.fine("XPENDING", reply) and reply:
                held.seconds = reply[0][2] / 1000


def _unread(facts: NamespaceFacts, some: Sequence[Reading]) -> Operation[None]:
    """Which events the groups have not been given, and how old the first of them is."""
    inside = []
    for reading in some:
        first, last = reading.stream.first, reading.stream.last
        if first is None or last is None or id_order(reading.cursor) >= id_order(last):
            continue
        if id_order(reading.cursor) < id_order(first):
            reading.unread_seconds = facts.age(first)
        else:
            inside.append(reading)
    for few in chunks(inside, 4):  # each brings an entry
        forms = [("XRANGE", reading.stream.key, b"(" + reading.cursor, "+", "COUNT", 1) for reading in few]
        for reading, rows in zip(few, (yield commands(*forms)), strict=True):
            last = reading.stream.last or b"0-0"
            reading.unread_seconds = facts.age(rows[0][0] if facts.fine("XRANGE", rows) and rows else last)


def _gone(reading: Reading) -> Operation[None]:
    """Entries that are pending and no longer in the stream. Bodies travel only where somebody deleted in the middle."""
    stream = reading.stream
    if not stream.told:
        return
    for entry_id in reading.oldest:
        if stream.first is None or id_order(entry_id) < id_order(stream.first):
            reading.gone += 1
        elif id_order(entry_id) <= id_order(stream.deleted):
            (rows,) = yield command("XRANGE", stream.key, entry_id, entry_id)
            reading.gone += rows == []


def _life(facts: NamespaceFacts, partitions: Sequence[Keys]) -> Operation[None]:
    """Which consumers live. Groups whose name is no text, or whose heartbeats cannot be read, are left out."""
    idle: dict[str, dict[bytes, int]] = {}
    for name in facts.at_most(GROUP_LIMIT, sorted(facts.groups)):
        group = facts.groups[name]
        readable = name.isascii()
        for some in chunks(list(partitions)):
            for reply in (yield commands(*(("HGETALL", keys.beats("") + name) for keys in some))):
                readable = facts.fine("HGETALL", reply) and readable
        if readable:
            seen: dict[bytes, int] = {}
            for reading in group.readings:
                for consumer, milliseconds in reading.idle.items():
                    seen[consumer] = min(milliseconds, seen.get(consumer, milliseconds))
            idle[name.decode()] = seen
    for group_name, (everyone, lifeless) in (yield from without_life(partitions, idle)).items():
        facts.groups[group_name.encode()].everyone = everyone
        facts.groups[group_name.encode()].lifeless = lifeless


def _letters(facts: NamespaceFacts, partitions: Sequence[Keys], group: GroupFacts) -> Operation[None]:
    newest: tuple[tuple[int, int], list[bytes]] | None = None
    for keys in partitions:
        stream = keys.dead("") + group.name
        length, rows = yield commands(("XLEN", stream), ("XREVRANGE", stream, "+", "-", "COUNT", 1))
        known = facts.fine("XLEN", length) and group.letters is not None
        group.letters = group.letters + length if known and group.letters is not None else None
        if facts.fine("XREVRANGE", rows) and rows and (newest is None or id_order(rows[0][0]) > newest[0]):
            newest = id_order(rows[0][0]), rows[0][1]
            group.newest_seconds = facts.age(rows[0][0])
    if newest is not None:
        try:
            group.newest = deadletter.decode(newest[1][1])
        except (msgspec.MsgspecError, ValueError, RecursionError, IndexError):
            group.newest = None  # a stranger's


def _losses(facts: NamespaceFacts, keys: Keys) -> Operation[None]:
    since = f"{max(0, facts.now_ms - LOSS_SECONDS * 1000)}-0"
    (rows,) = yield command("XREVRANGE", keys.stream("bus.loss"), "+", since, "COUNT", LOSS_LIMIT + 1)
    if not facts.fine("XREVRANGE", rows) or not rows:
        return
    found = facts.at_most(LOSS_LIMIT, rows)
    facts.losses += len(found)
    entry_id, fields = found[0]
    if facts.newest_loss is None or id_order(entry_id) > id_order(facts.newest_loss[0]):
        facts.newest_loss = entry_id, fields[1]


def _waiting(facts: NamespaceFacts, partitions: Sequence[Keys]) -> Operation[None]:
    """Full streams, events for later that nobody publishes, and records that stop who would do that."""
    for keys in partitions:
        yield from _losses(facts, keys)
        (kept,) = yield command("HGETALL", keys.retention)
        if facts.fine("HGETALL", kept):
            facts.no_policies |= {text(name) for name, value in pairs(kept).items() if not is_policy(value)}
        value, timers, groups, newest, *_, both = yield commands(
            ("GET", keys.full),
            ("ZRANGEBYSCORE", keys.timers, "-inf", facts.now_ms, "WITHSCORES", "LIMIT", 0, 1),
            ("XINFO", "GROUPS", keys.stream(LATER_INBOX)),
            ("XREVRANGE", keys.stream(LATER_INBOX), "+", "-", "COUNT", 1),
            ("MULTI",),  # one moment: timers come and go
            ("HLEN", keys.timer_bodies),
            ("ZCARD", keys.timers),
            ("EXEC",),
        )
        if facts.fine("HLEN", both) and all(isinstance(number, int) for number in both):
            facts.timerless += max(0, both[0] - both[1])
            facts.bodiless += max(0, both[1] - both[0])
        if facts.fine("GET", value):
            facts.full |= read_full(value)
        if facts.fine("ZRANGEBYSCORE", timers) and timers:
            late = (facts.now_ms - float(timers[1])) / 1000
            facts.overdue_seconds = max(late, facts.overdue_seconds or 0.0)
        read = sorted_until(groups)
        if facts.fine("XREVRANGE", newest) and newest and facts.fine("XINFO GROUPS", groups) and newest[0][0] != read:
            facts.inbox_seconds = max(facts.age(newest[0][0]), facts.inbox_seconds or 0.0)
