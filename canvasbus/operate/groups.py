"""Consumer groups: what is left to do, who does it, what was given up.

Lag is how many entries of a topic the group has not been given yet. The server's own figure is nil or wrong after some
deletes and group starts, and on Redis 7.0 also after a trim that went past the group's cursor: reading on from there
counts from the old place, so that the figure is too large from then on and nothing tells (275 of 400 random histories
with XTRIM; the bus itself never trims past a cursor, people do), and after the server came back from its append-only
file or was promoted (all that was read before counts as unread; Valkey 7.2 does better). So it is believed only where it
cannot be wrong:

    1. the cursor is at or behind the last entry, or before the first     → 0, or the stream's length; exact
    2. a native figure, nothing was ever removed from the stream, and the server keeps no append-only file and has
       always been the master                                             → that; exact (not on fakeredis)
    3. counted in pages from the cursor to the end and from the beginning to the cursor, whichever ends first; what was
       not counted is the stream's length less that                       → exact
    4. both are long: after VERIFY_LIMIT entries the native figure, if nothing was deleted after the cursor and it lies
       between what was counted → about; without one, after COUNT_LIMIT entries or COUNT_BYTES → at least

and what cannot be found out is None, never 0. With retention on, (3) is short: the slowest group has little before its
cursor, a fast one little behind it.

A consumer is alive when it has talked to the server within ALIVE_MS (its reader asks at least once a second) or when
its heartbeat's count moves while we look on. Only the doubtful ones cost that second look, so the usual answer comes
at once. Names that begin with "~" are pools in which entries wait for somebody, not consumers.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from canvasbus.consume.accepting import Accepted, acceptances
from canvasbus.consume.declaration import read_group
from canvasbus.consume.liveness import count_in
from canvasbus.consume.pausing import Pause, answer, question
from canvasbus.ids import id_order
from canvasbus.operate.topics import TopicKey, answered, topic_keys
from canvasbus.operate.words import text
from canvasbus.transport import resp
from canvasbus.transport.resp import Operation, Reply, ReplyError, check, command, commands, pairs
from canvasbus.wire.keys import FREE_POOL, SUSPECT_POOL, Keys

COUNT_LIMIT = 100_000
COUNT_BYTES = 64 * 1024 * 1024
"""Bodies travel when entries are counted: bytes after which counting stops."""

VERIFY_LIMIT = 5_000
"""Entries that are counted, from either end, before a plausible figure of the server is given as "about"."""

_PAGE_BYTES = 1024 * 1024
ALIVE_MS = 2500
LOOK_SECONDS = 2.5
"""How long doubtful consumers are watched for a heartbeat (they beat once a second)."""


@dataclass(frozen=True, slots=True)
class Count:
    """A number that says how sure it is."""

    value: int | None
    """None: unknown."""
    exact: bool = True
    """False: at least `value`, or about that."""
    about: bool = False
    """An estimate: the server's own figure, plausible and not verified."""

    def __add__(self, other: "Count") -> "Count":
        if self.value is None or other.value is None:
            known = self.value if other.value is None else other.value
            return Count(known, False, self.about or other.about) if known else Count(None)
        return Count(self.value + other.value, self.exact and other.exact, self.about or other.about)

    def __str__(self) -> str:
        sign = "" if self.exact else "≈ " if self.about else "≥ "
        return "unknown" if self.value is None else f"{sign}{self.value:,}"


@dataclass(frozen=True, slots=True)
class Reading:
    """Living workers of one group that read the same versions of a type."""

    since: int
    newest: int
    workers: int


@dataclass(frozen=True, slots=True)
class GroupTopic:
    """What one group has to do on one topic, all partitions together."""

    topic: str
    lag: Count
    """Entries that the group has not been given yet."""
    pending: int
    """Entries in the hands of consumers: given and not acknowledged."""
    handed_back: int
    """Entries that a leaving worker put down; the next free one takes them."""
    quarantine: int
    """Entries whose worker died; they run again a few at a time, or alone."""
    parked: int
    """Entries that wait for a worker that knows a newer version of the type."""
    oldest_seconds: float | None
    """Age of the oldest entry that is not done; None: all is done, or its id is no time."""
    accepts: tuple[Reading, ...] = ()
    """The versions that its living workers read, the newest first. Those that do not say it are not among them."""


@dataclass(frozen=True, slots=True)
class Group:
    """One consumer group."""

    name: str
    alive: int
    """Consumers whose heart beats."""
    consumers: int
    """Consumers, dead ones that nobody has tidied away included."""
    dead_letters: int | None
    """Entries that the group gave up and that nobody has purged; None: unknown."""
    topics: tuple[GroupTopic, ...] = ()
    instance: bool = False
    """One process's own group (PER_INSTANCE); it goes when the process does."""
    paused: Pause | None = None
    """Its workers read nothing new; None: they do."""


@dataclass(slots=True)
class _Found:
    """One group while it is being put together."""

    topics: dict[str, GroupTopic] = field(default_factory=dict)
    idle: dict[bytes, int] = field(default_factory=dict)
    """Consumer → milliseconds since it last talked to the server, on whichever stream."""
    instance: bool = False


def groups(partitions: Sequence[Keys], *, trust_lag: bool = True, only: str | None = None) -> Operation[list[Group]]:
    """All groups that are declared or that some topic has, sorted by name; `only` one of them.

    `trust_lag`: the server's own lag may be believed where it cannot be wrong (False for fakeredis).
    """
    sure = trust_lag and (yield from _counts_since_ever())
    found: dict[str, _Found] = {}
    for keys in partitions:
        (declared,) = yield command("HGETALL", keys.groups)
        for raw, declaration in pairs(check(declared, "look for groups")).items():
            found.setdefault(text(raw), _Found()).instance |= read_group("", declaration).instance
    where = yield from topic_keys(partitions)
    where += yield from _retries(partitions, sorted(found))
    seconds, micros = check((yield command("TIME"))[0], "ask the time")
    now_ms = int(seconds) * 1000 + int(micros) // 1000
    for key in where:
        (rows,) = yield command("XINFO", "GROUPS", key.stream)
        if not answered(rows, "look for groups"):
            continue  # no stream yet, or no stream at all: `topics` says which
        for row in map(pairs, rows):
            name = text(row[b"name"])
            if only in (None, name):
                entry = found.setdefault(name, _Found())
                about = yield from _group_topic(key, row, entry, now_ms, trust_lag, sure)
                if about is not None:
                    known = entry.topics.get(key.name)
                    entry.topics[key.name] = _together(known, about) if known else about
    if only is not None:
        found = {name: entry for name, entry in found.items() if name == only}
    life = yield from without_life(partitions, {name: entry.idle for name, entry in found.items()})
    said = yield from acceptances(partitions, sorted(found))
    result = []
    for name, entry in sorted(found.items()):
        letters = yield commands(*(("XLEN", keys.dead(name)) for keys in partitions))
        counts = [n for n in letters if isinstance(n, int)]
        everyone, gone = life[name]
        dead_letters = sum(counts) if len(counts) == len(letters) else None
        accepted = [read for consumer, read in said[name].items() if read and consumer in everyone - gone]
        topics = tuple(replace(topic, accepts=_readings(accepted, key)) for key, topic in sorted(entry.topics.items()))
        paused = answer((yield question(partitions[0], name)))
        result.append(
            Group(name, len(everyone) - len(gone), len(everyone), dead_letters, topics, entry.instance, paused)
        )
    return result


def _readings(accepted: list[Accepted], event_type: str) -> tuple[Reading, ...]:
    counted = Counter(filter(None, (one.versions(event_type) for one in accepted)))
    ordered = sorted(counted.items(), key=lambda item: item[0][::-1], reverse=True)
    return tuple(Reading(since, newest, workers) for (since, newest), workers in ordered)


def _retries(partitions: Sequence[Keys], names: list[str]) -> Operation[list[TopicKey]]:
    """Streams of what was redriven."""
    result: list[TopicKey] = []
    for keys in partitions if names else ():
        replies = yield commands(*(("SMEMBERS", keys.retries(name)) for name in names))
        for name, types in zip(names, replies, strict=True):
            for event_type in sorted(map(text, check(types, "look for retries"))):
                result.append(TopicKey(f"{event_type} (redriven)", keys.retry(name, event_type), keys.partition))
    return result


def _group_topic(
    key: TopicKey, row: dict[bytes, Reply], entry: _Found, now_ms: int, trust_lag: bool, sure: bool
) -> Operation[GroupTopic | None]:
    group, cursor = row[b"name"], row[b"last-delivered-id"]
    info, pending, consumers, upcoming = yield commands(
        ("XINFO", "STREAM", key.stream),
        ("XPENDING", key.stream, group),
        ("XINFO", "CONSUMERS", key.stream, group),
        ("XRANGE", key.stream, b"(" + cursor, "+", "COUNT", 1),
    )
    if not all(answered(reply, f"look at group {text(group)!r}") for reply in (info, pending, consumers, upcoming)):
        return None  # deleted while we looked
    owned = {owner: int(count) for owner, count in pending[3] or ()}
    pools = {owner: count for owner, count in owned.items() if owner.startswith(b"~")}
    free, suspect = pools.pop(FREE_POOL.encode(), 0), pools.pop(SUSPECT_POOL.encode(), 0)
    for consumer in map(pairs, consumers):
        name = consumer[b"name"]
        if not name.startswith(b"~"):
            entry.idle[name] = min(consumer[b"idle"], entry.idle.get(name, consumer[b"idle"]))
    lag = yield from _lag(key.stream, row, pairs(info), trust_lag, sure)
    waiting = [pending[1]] if pending[0] else []
    waiting += [upcoming[0][0]] if isinstance(upcoming, list) and upcoming else []
    oldest = min(waiting, key=id_order, default=None)
    return GroupTopic(
        topic=key.name,
        lag=lag,
        pending=sum(count for owner, count in owned.items() if not owner.startswith(b"~")),
        handed_back=free,
        quarantine=suspect,
        parked=sum(pools.values()),
        oldest_seconds=None if oldest is None else max(0, now_ms - id_order(oldest)[0]) / 1000,
    )


def _counts_since_ever() -> Operation[bool]:
    """True when what the server has counted is all that there was. It forgets what it gave to groups when it starts again
    on an append-only file, and a replica never hears of it (Redis 7.0.15, measured)."""
    replies = yield commands(("INFO", "persistence"), ("INFO", "replication"))
    persistence, replication = (reply if isinstance(reply, bytes) else b"" for reply in replies)
    return b"aof_enabled:0" in persistence and b"second_repl_offset:-1" in replication


def _lag(stream: bytes, row: dict[bytes, Reply], info: dict[bytes, Reply], trust: bool, sure: bool) -> Operation[Count]:
    cursor = id_order(row[b"last-delivered-id"])
    length, first, last = info[b"length"], info[b"first-entry"], info[b"last-entry"]
    if not length or cursor >= id_order(last[0]):
        return Count(0)
    if cursor < id_order(first[0]):
        return Count(length)
    native = row.get(b"lag")
    added, deleted = info.get(b"entries-added"), info.get(b"max-deleted-entry-id")
    if not trust or native is None or native < 0 or deleted is None or id_order(deleted) > cursor:
        native = None
    elif sure and added == length:
        return Count(native)
    return (yield from _counted(stream, row[b"last-delivered-id"], native))


def _counted(stream: bytes, cursor: bytes, native: int | None) -> Operation[Count]:
    behind = before = size = 0
    after, start = b"(" + cursor, b"-"
    page = 10  # the first page tells how big entries are
    while True:
        length, rest, done = yield commands(
            ("XLEN", stream),  # of this very moment: the stream goes on growing and being trimmed
            ("XRANGE", stream, after, "+", "COUNT", page),
            ("XRANGE", stream, start, cursor, "COUNT", page),
        )
        if any(isinstance(reply, ReplyError) for reply in (length, rest, done)):
            return Count(behind, False) if behind else Count(None)
        behind += len(rest)
        before += len(done)
        if len(rest) < page:
            return Count(behind)
        if len(done) < page:
            return Count(length - before)
        if native is not None and behind >= VERIFY_LIMIT and behind <= native <= length - before:
            return Count(native, False, about=True)
        size += sum(len(part) for _, fields in (*rest, *done) for part in fields or ())
        if behind >= COUNT_LIMIT or size >= COUNT_BYTES:
            return Count(behind, False)
        after, start = b"(" + rest[-1][0], b"(" + done[-1][0]
        page = max(10, min(1000, _PAGE_BYTES * behind // max(size, 1), COUNT_LIMIT - behind))


def without_life(
    partitions: Sequence[Keys],
    idle: Mapping[str, Mapping[bytes, int]],
    *,
    beating: bool = False,
    seconds: float | None = None,
) -> Operation[dict[str, tuple[set[bytes], set[bytes]]]]:
    """Group → all its consumers, and those that show no life. `idle`: group → consumer → milliseconds since it last
    talked to the server, for those that some stream knows. `beating`: who has a heartbeat must show it now, whenever it
    last talked; `seconds`: for how long we look on, at most (LOOK_SECONDS)."""
    names = sorted(idle)
    first = yield from _beats(partitions, names)
    everyone = {name: {*idle[name], *first[name]} for name in names}
    doubtful = {
        name: {c for c in everyone[name] if idle[name].get(c, ALIVE_MS) >= ALIVE_MS or (beating and c in first[name])}
        for name in names
    }
    looked, limit = 0.0, LOOK_SECONDS if seconds is None else seconds
    while looked < limit and any(consumer in first[n] for n in names for consumer in doubtful[n]):
        yield resp.Pause(0.25)
        looked += 0.25
        again = yield from _beats(partitions, names)
        for name in names:
            # Gone from the beats it has left, or was found dead by the others just now.
            doubtful[name] = {c for c in doubtful[name] if again[name].get(c) in (None, first[name].get(c))}
    return {name: (everyone[name], doubtful[name]) for name in names}


def _beats(partitions: Sequence[Keys], names: list[str]) -> Operation[dict[str, dict[bytes, int]]]:
    result: dict[str, dict[bytes, int]] = {name: {} for name in names}
    if not names:
        return result
    for keys in partitions:
        replies = yield commands(*(("HGETALL", keys.beats(name)) for name in names))
        for name, reply in zip(names, replies, strict=True):
            for consumer, beats in pairs(check(reply, "look at heartbeats")).items():
                count = count_in(beats) or 0
                result[name][consumer] = max(count, result[name].get(consumer, 0))
    return result


def _together(a: GroupTopic, b: GroupTopic) -> GroupTopic:
    ages = [age for age in (a.oldest_seconds, b.oldest_seconds) if age is not None]
    return GroupTopic(
        a.topic,
        a.lag + b.lag,
        a.pending + b.pending,
        a.handed_back + b.handed_back,
        a.quarantine + b.quarantine,
        a.parked + b.parked,
        max(ages, default=None),
    )
