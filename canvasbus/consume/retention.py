"""Retention: how much of the past a namespace keeps, and that nothing unread goes with it.

Theory of operation. Each type has targets: age, entries, bytes. Once in a while the maintainer of a partition removes
what is older than they ask for, but never past the floor: the oldest entry that a declared group has not handled. Floor
and removal are one script, so nobody can fall behind in between. A group counts from its declaration until `canvasbus
groups forget`, or until none of its workers has beaten for GROUP_LEASE_SECONDS, which `bus.loss` tells first. When nobody
at all has watched for more than half of that (all was off, or a backup was put back), that time counts for no group: its
workers may be the next to start. Whoever could not see heartbeats for a while (the server was away, or had no memory for
them) lets no group go until it has looked on for a few seconds: those who live have had time to say so then.

A target is no limit: behind a group that stands still a stream grows as far as the server's memory goes. A limit is the
cap. At the cap, `when_full` decides: publishers wait (block), get StreamFull (reject), or the oldest entries go although
somebody has not handled them, which is told as `bus.loss` (drop_with_loss_event). Publishers learn of it with the reply
to their batch before, so the cap is soft by a second and a batch. What handlers return and what timers bring passes:
held up, it would hold up those who could work the stream off.

No loss is silent: the script that removes what somebody has not handled adds `bus.loss` to its stream in the same step,
and removes nothing when it cannot. So neither a lost reply, nor a maintainer that is killed, nor an error at another type
comes between. How many are lost is known in the script only: it gets the event encoded but for its number and the end of
its detail, which costs some microseconds a group, and only of types at their cap. A stream far above its cap goes in steps, each of
which tells. A group's lease is told first and noted then, under one event id: twice at worst, and as the same event.

One type's error, or one group's, ends nothing but its own turn: the others are trimmed, and the look returns it.

Policies lie on the server, by type or glob, so that all processes have the same: an exact type, else the longest glob.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec
from msgspec import Struct

from canvasbus import ids
from canvasbus.consume import instances
from canvasbus.consume.declaration import Group, read_group
from canvasbus.consume.liveness import count_in
from canvasbus.contract.bus_events import BusLoss
from canvasbus.contract.globs import glob_matches
from canvasbus.errors import ConfigError, TransportError
from canvasbus.transport.resp import Operation, ReplyError, check, chunks, command, commands, pairs, translate
from canvasbus.transport.trim_script import TRIM
from canvasbus.wire.codec import Codec
from canvasbus.wire.keys import Keys
from canvasbus.wire.retention import Full, Retention, read_policy

GROUP_LEASE_SECONDS = 7 * 86400.0
"""A group none of whose workers has beaten for so long keeps nothing any more."""

LOOK_SECONDS = 5.0
CAPPED_LOOK_SECONDS = 1.0
"""Between two looks when some type has a cap."""

WHOLE_LOOK_SECONDS = 60.0
"""Between two looks at streams to which nothing was added."""

REDECLARED_SECONDS = 10.0
"""When all declarations are gone at once, somebody has deleted them: living workers declare themselves anew within a
second or two, and until they have nobody knows what is unread."""

YOUNG_SECONDS = 10
"""So long nothing goes past a group that was lost and made anew: what its workers had in hand is not pending in it before
they hear of it, a second later, or after as long as they may be silent without being dead."""

DROPS = 200
"""Steps in which a stream is brought down to its cap in one look, each of 5,000 entries: the server does others' work
in between."""

FULL_MS = 15_000
"""Publishers stop waiting when nobody has maintained the namespace for so long."""


def check_policies(policies: Retention | Mapping[str, Retention]) -> dict[str, Retention]:
    """By type or glob. Raises ConfigError."""
    found = {"*": policies} if isinstance(policies, Retention) else dict(policies)
    for pattern, policy in found.items():
        try:
            if not isinstance(policy, Retention):
                raise TypeError("a Retention is wanted")
            read_policy(msgspec.json.encode(policy))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"retention of {pattern!r}: {error}") from None
    return found


def declare(partitions: Iterable[Keys], policies: Mapping[str, Retention]) -> Operation[None]:
    """Write policies down for everybody."""
    for keys in partitions:
        flat = [part for pattern, policy in policies.items() for part in (pattern, msgspec.json.encode(policy))]
        if flat:
            (reply,) = yield command("HSET", keys.retention, *flat)
            check(reply, "write the retention down")


def policy_for(event_type: str, policies: Mapping[str, Retention]) -> Retention:
    """The policy of a type."""
    if event_type in policies:
        return policies[event_type]
    globs = [pattern for pattern in policies if "*" in pattern and glob_matches(pattern, event_type)]
    return policies[max(globs, key=len)] if globs else Retention()


def read_policies(keys: Keys) -> Operation[dict[str, Retention]]:
    """What is on record. Raises ConfigError when something there is no policy."""
    (flat,) = yield command("HGETALL", keys.retention)
    found: dict[str, Retention] = {}
    for name, value in _pairs(check(flat, "look at the retention")):
        try:
            found[name] = read_policy(value)
        except ValueError as error:
            raise ConfigError(
                f"the retention of {name!r} on record is none ({error}): `canvasbus retention set` or `clear` it"
            ) from None
    return found


class Looked(Struct):
    """What became of one look."""

    wait: float = LOOK_SECONDS
    """Seconds until the next."""
    losses: list[BusLoss] = []
    """What was told, by type and group; on the server it is already."""
    problems: list[TransportError] = []
    """What could not be done."""


class Trimmer:
    """Trims one partition, look by look. Holds what it saw, so that an idle namespace costs little."""

    def __init__(self, keys: Keys, *, source: str = "", group_lease: float = GROUP_LEASE_SECONDS) -> None:
        """`source`: of the bus.loss that it publishes."""
        self.trimmed = 0
        """Entries removed."""
        self._codec = Codec(source, limit=1 << 62)
        self._keys = keys
        self._lease = group_lease
        self._lengths: dict[str, int] = {}
        self._looked_at_all = float("-inf")
        self._was_full = False
        self._declared: list[bytes] = []
        """The groups that were declared when it was last found out which of them count."""
        self._declared_at = float("-inf")
        """When there were any."""

    def look(self, now: float, *, judge: bool = True) -> Operation[Looked]:
        """Trim what has grown. `judge`: let go what is kept for groups that have been without a heartbeat for too long; else
        heartbeats may not have got through."""
        keys = self._keys
        policies = yield from read_policies(keys)
        looked = Looked(CAPPED_LOOK_SECONDS if any(policy.cap for policy in policies.values()) else LOOK_SECONDS)
        whole = now - self._looked_at_all >= WHOLE_LOOK_SECONDS
        groups = yield from self._groups(looked, judge)
        if self._declared:
            self._declared_at = now
        elif now - self._declared_at < REDECLARED_SECONDS:
            looked.wait = CAPPED_LOOK_SECONDS
            return looked
        (names,) = yield command("SMEMBERS", keys.topics)
        types = sorted(name.decode("utf-8", "replace") for name in check(names, "look for topics"))
        full: dict[str, Full] = {}
        for asked in chunks(types):
            lengths = yield commands(*(("XLEN", keys.stream(event_type)) for event_type in asked))
            for event_type, length in zip(asked, lengths, strict=True):
                if isinstance(length, ReplyError):
                    continue  # no stream; whoever publishes there is told
                policy = policy_for(event_type, policies)
                if whole or policy.cap or self._lengths.get(event_type) != length:
                    try:
                        yield from self._trim(event_type, length, policy, groups, full, looked.losses)
                    except TransportError as error:
                        looked.problems.append(error)
        if whole:
            self._looked_at_all = now
        yield from self._tell_publishers(full)
        return looked

    def _trim(
        self,
        event_type: str,
        length: int,
        policy: Retention,
        groups: Sequence[Group],
        full: dict[str, Full],
        losses: list[BusLoss],
    ) -> Operation[None]:
        keys = self._keys
        stream = keys.stream(event_type)
        (rows,) = yield command("XINFO", "GROUPS", stream)
        there = set() if isinstance(rows, ReplyError) else {pairs(row)[b"name"] for row in rows}
        counting = [g.name for g in groups if g.listens_to(event_type) or g.name.encode() in there]
        drops = policy.when_full == "drop_with_loss_event"
        over = drops and length >= (policy.cap or 0) > 0  # what comes to its cap meanwhile waits for the next look
        args: list[bytes | str | int] = [
            round((policy.max_age or 0) * 1000),
            policy.max_length or 0,
            policy.max_bytes or 0,
            policy.cap or 0,
            1 if over else 0,
            len(self._declared),
            len(counting),
            YOUNG_SECONDS,
            *self._declared,
            *counting,
        ]
        names = [stream, keys.marks(event_type), keys.groups, keys.stream("bus.loss"), keys.topics]
        names += [keys.cursors(name) for name in counting]
        lost: dict[bytes, tuple[int, bytes]] = {}
        first = b""
        try:
            for _ in range(DROPS):
                pieces = (
                    [piece for name in counting for piece in self._pieces(event_type, policy, name)] if over else []
                )
                reply = yield from TRIM.call(names, [*args, *pieces])
                left, removed, holders, is_full, more, first, *told = check(reply, f"trim {event_type}")
                if removed < 0:
                    break  # other groups are declared by now: at the next look
                self.trimmed += removed
                self._lengths[event_type] = left
                for name, count, begun in chunks(told, 3):
                    before, since = lost.get(name, (0, begun))
                    lost[name] = before + count, since
                if not more:
                    if is_full and not drops:
                        held_by, *others = [name.decode("utf-8", "replace") for name in holders] or [""]
                        full[event_type] = Full(policy.when_full, held_by, left, policy.cap or 0, tuple(others))
                    break
        finally:
            losses += [_dropped(event_type, policy, name, *about, first) for name, about in lost.items()]

    def _pieces(self, event_type: str, policy: Retention, group: str) -> Sequence[bytes | str]:
        """The bus.loss of a group that loses entries at the cap, but for what the script alone knows (see TRIM)."""
        loss = BusLoss(topic=event_type, group=group, reason="stream_full", detail=_UNKNOWN, lost=_UNCOUNTED)
        rest, _, after = self._codec.encode(loss).data.rpartition(msgspec.msgpack.encode(_UNCOUNTED))
        before, _, between = rest.rpartition(msgspec.msgpack.encode(_UNKNOWN))
        return before, _drop_detail(policy, group), between, after

    def _tell_publishers(self, full: dict[str, Full]) -> Operation[None]:
        if full:
            packet = command("SET", self._keys.full, msgspec.json.encode(full), "PX", FULL_MS)
        elif self._was_full:
            packet = command("DEL", self._keys.full)
        else:
            return
        (reply,) = yield packet
        check(reply, "tell publishers what is full")
        self._was_full = bool(full)

    def _groups(self, looked: Looked, judge: bool) -> Operation[list[Group]]:
        """The groups that count now. One of which that cannot be found out counts."""
        keys = self._keys
        flat, seen, now = yield commands(("HGETALL", keys.groups), ("HGETALL", keys.group_seen), ("TIME",))
        declared = [read_group(name, about) for name, about in _pairs(check(flat, "look at the groups"))]
        self._declared = flat[::2]
        seconds = int(check(now, "look at the clock")[0])
        if isinstance(seen, ReplyError):
            looked.problems.append(translate(seen, f"look at {keys.group_seen.decode()}, which groups live"))
            return declared
        known = dict(_pairs(seen))
        counting: list[Group] = []
        news: list[bytes | str | int] = []
        watched = known.pop(_WATCHED, b"")
        unwatched = seconds - int(watched) if watched.isdigit() and len(watched) < 20 else -1
        if not 0 <= unwatched < _step(self._lease):
            news += (_WATCHED, seconds)
        if unwatched <= self._lease / 2:
            unwatched = 0
        for asked in chunks(declared):
            replies = yield commands(*(("HGETALL", keys.beats(group.name)) for group in asked))
            for group, beats in zip(asked, replies, strict=True):
                if isinstance(beats, ReplyError):
                    looked.problems.append(translate(beats, f"look at the heartbeats of group {group.name}"))
                    counting.append(group)
                    continue
                total = sum(count_in(count) or 0 for _, count in _pairs(beats))
                last_total, last_seconds, told = _seen(known.get(group.name))
                lease = instances.LEASE_SECONDS if group.instance else self._lease
                if unwatched and not told:
                    last_seconds += unwatched
                    news += (group.name, f"{last_total} {last_seconds} 0")
                if total != last_total:
                    # In steps: written at each beat it would be a command a second for each group.
                    if seconds - last_seconds >= _step(lease) or told:
                        news += (group.name, f"{total} {seconds} 0")
                elif judge and seconds - last_seconds > lease:
                    if not told and not group.instance:
                        loss = _expired(group.name, seconds - last_seconds)
                        try:
                            yield from self._tell_expired(loss, f"{total} {last_seconds}")
                        except TransportError as error:
                            looked.problems.append(error)
                            counting.append(group)
                            continue
                        looked.losses.append(loss)
                    if not told:
                        news += (group.name, f"{total} {last_seconds} 1")
                    continue
                counting.append(group)
        if news:
            (reply,) = yield command("HSET", keys.group_seen, *news)
            if isinstance(reply, ReplyError):  # at maxmemory; trimming makes room
                looked.problems.append(translate(reply, "note which groups live"))
        gone = known.keys() - {group.name for group in declared}
        if gone:
            yield command("HDEL", keys.group_seen, *gone)
        return counting

    def _tell_expired(self, loss: BusLoss, since: str) -> Operation[None]:
        """Under the same event id whenever it is told of this silence of this group."""
        keys, group = self._keys, loss.group or ""
        event_id = ids.derived(ids.foreign("group_expired", since), group, "bus.loss", keys.partition)
        data = self._codec.encode(loss, event_id=event_id).data
        listed, added = yield commands(
            ("SADD", keys.topics, "bus.loss"), ("XADD", keys.stream("bus.loss"), "*", "e", data)
        )
        check(listed, "list bus.loss")
        check(added, f"tell that group {group} has no worker any more")

    def __repr__(self) -> str:
        return f"<Trimmer of {self._keys!r}, {self.trimmed} entries removed>"


_UNKNOWN = "what the script says"
_UNCOUNTED = 0xFFFF_FFFF


def _drop_detail(policy: Retention, group: str) -> str:
    return (
        f"the stream had reached its cap of {policy.cap or 0:,} entries; its oldest were removed although group {group} "
        "had not handled"
    )


def _dropped(event_type: str, policy: Retention, name: bytes, lost: int, since: bytes, first: bytes) -> BusLoss:
    group = name.decode("utf-8", "replace")
    left = f"the stream begins with {first.decode()} now" if first else "nothing is left"
    detail = f"{_drop_detail(policy, group)} {lost} of them, from {since.decode()} on; {left}"
    return BusLoss(topic=event_type, group=group, reason="stream_full", detail=detail, lost=lost)


def _expired(group: str, seconds: float) -> BusLoss:
    return BusLoss(
        topic="*",
        group=group,
        reason="group_expired",
        detail=f"group {group} has had no worker for {seconds / 86400:.1f} days: what it has not handled is kept no longer",
    )


_WATCHED = "~watched"
"""Stands among the groups for when somebody last looked which of them live."""


def _step(lease: float) -> float:
    """How old what is noted of a life may get."""
    return min(lease / 4, 3600.0)


def _seen(value: bytes | None) -> tuple[int, int, bool]:
    parts = (value or b"").split()
    if len(parts) == 3 and all(part.isdigit() and len(part) < 20 for part in parts):
        return int(parts[0]), int(parts[1]), parts[2] == b"1"
    return -1, 0, False


def _pairs(flat: Sequence[bytes]) -> list[tuple[str, bytes]]:
    return [(flat[at].decode("utf-8", "replace"), flat[at + 1]) for at in range(0, len(flat), 2)]
