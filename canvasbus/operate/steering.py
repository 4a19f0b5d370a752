"""Steering consumer groups from outside: pause, resume, set back or forward, forget.

Setting a group back makes it handle events again, on purpose. Handlers cannot tell, but what they return can be told
apart: the id of a derived event is made of its parent's id, the group, the handler and its position, so it is the same
as the first time.

A group is moved only while nobody of it reads. Otherwise what its workers hold and what they are given would overlap in
ways that nobody could predict, and neither "handled once" nor "handled again" would be true of it. A paused group may still
hold what waits for a retry: what its workers finish before they are given it once more counts as handled before.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from canvasbus.consume import instances
from canvasbus.consume.pausing import Pause, answer, question
from canvasbus.errors import CanvasbusError
from canvasbus.ids import id_order
from canvasbus.operate.groups import COUNT_BYTES, Count, Group
from canvasbus.operate.groups import groups as look_at_groups
from canvasbus.operate.topics import answered, topic_keys
from canvasbus.operate.words import count
from canvasbus.transport.resp import Operation, Reply, check, command, commands, pairs
from canvasbus.wire.keys import Keys

COUNT_LIMIT = 20_000
PAGE = 1000
_LAST = 2**64 - 1


def pause(partitions: Sequence[Keys], group: str, *, by: str, seconds: float | None = None) -> Operation[None]:
    """Pause a group, for so many seconds or until it is resumed. Its workers notice within a second."""
    for_a_while = () if seconds is None else ("PX", max(1, round(seconds * 1000)))
    about = json.dumps({"by": by})
    check((yield command("SET", partitions[0].paused(group), about, *for_a_while))[0], f"pause group {group!r}")


def resume(partitions: Sequence[Keys], group: str) -> Operation[bool]:
    """End a pause; False: there was none."""
    return bool(check((yield command("DEL", partitions[0].paused(group)))[0], f"resume group {group!r}"))


def paused(partitions: Sequence[Keys], group: str) -> Operation[Pause | None]:
    """The pause of a group; None: it is not paused."""
    return answer((yield question(partitions[0], group)))


@dataclass(frozen=True, slots=True)
class Move:
    """One topic of a group in one partition, from where it is to where it shall be."""

    topic: str
    partition: int
    stream: bytes
    at: str
    """The last entry that the group was given."""
    to: str
    """The same after the move."""
    again: Count
    """Entries that are given to the group again."""
    skipped: Count
    """Entries that it is not given any more."""


def plan(partitions: Sequence[Keys], group: str, to: str, wanted: Callable[[str], bool]) -> Operation[list[Move]]:
    """What a reset would do on each topic that `wanted` accepts. `to`: "earliest", "latest", or the id of the first
    entry that is to be handled (or the next after it)."""
    moves = []
    for key in (yield from topic_keys(partitions)):
        if not wanted(key.name):
            continue
        rows, info = yield commands(("XINFO", "GROUPS", key.stream), ("XINFO", "STREAM", key.stream))
        if not all(answered(reply, f"look at {key.name}") for reply in (rows, info)):
            continue  # no stream, so no group of it
        cursors = {pairs(row)[b"name"]: pairs(row)[b"last-delivered-id"].decode() for row in rows}
        at = cursors.get(group.encode(errors="surrogateescape"))
        if at is None:
            continue
        facts = pairs(info)
        last = facts[b"last-generated-id"].decode()
        target = {"earliest": "0-0", "latest": last}.get(to) or before(to)
        target = min(target, last, key=id_order)  # ahead of its stream, a group would pass over what is yet to come
        back = id_order(target) < id_order(at)
        none = Count(0)
        between = yield from _count(key.stream, facts, *((target, at) if back else (at, target)))
        moves.append(
            Move(key.name, key.partition, key.stream, at, target, between if back else none, none if back else between)
        )
    return moves


def reset(partitions: Sequence[Keys], group: str, moves: Sequence[Move]) -> Operation[None]:
    """Move the group. Make sure first that nobody reads: `hindrance`."""
    for move in moves:
        cursors = partitions[move.partition].cursors(group)  # what was noted there is true no more
        (reply,) = yield command("HDEL", cursors, move.stream, b"~gone:" + move.stream)
        check(reply, f"reset group {group!r} on {move.topic}")
        counted = ("ENTRIESREAD", 0) if move.to == "0-0" else ()  # else the server's own lag would be unknown
        (reply,) = yield command("XGROUP", "SETID", move.stream, group, move.to, *counted)
        check(reply, f"reset group {group!r} on {move.topic}")
        (passed,) = yield command("XREVRANGE", move.stream, move.to, "-", "COUNT", 1)
        if check(passed, f"reset group {group!r} on {move.topic}"):
            # Should the group be lost before it reads on. (Where nothing is passed, it begins at the start anyway; ahead of
            # all that there is, the stream would be taken for another one.)
            (reply,) = yield command("HSET", cursors, move.stream, passed[0][0])
            check(reply, f"reset group {group!r} on {move.topic}")


def at_work(group: Group) -> str:
    """How many of its workers run."""
    return f"{count(group.alive, 'worker') if group.alive else 'no worker'} of it run{'' if group.alive > 1 else 's'}"


def hindrance(group: Group) -> str | None:
    """Why a group cannot be moved now; None: it can."""
    if group.paused is not None:
        return None
    pending = sum(t.pending + t.handed_back + t.quarantine + t.parked for t in group.topics)
    if group.alive:
        return at_work(group)
    return f"{count(pending, 'entry')} of it {'is' if pending == 1 else 'are'} pending" if pending else None


def is_idle(partitions: Sequence[Keys], name: str) -> Operation[bool]:
    """Whether no worker of the group is there, nor has died of late."""
    for keys in partitions:
        (flat,) = yield command("HGETALL", keys.beats(name))
        if check(flat, "look at heartbeats"):
            return False
    return True


def forget(partitions: Sequence[Keys], name: str) -> Operation[bool]:
    """Remove a group that nobody runs. False: a worker has come to life meanwhile, and the group is still there.

    Raises CanvasbusError when there is no such group or its workers run."""
    before_looking = []
    for keys in partitions:
        (flat,) = yield command("HGETALL", keys.beats(name))
        before_looking.append(pairs(check(flat, "look at heartbeats")))
    found = yield from look_at_groups(partitions, only=name)
    if not found:
        raise CanvasbusError(f"no group {name!r}")
    if found[0].alive:
        raise CanvasbusError(f"group {name!r} is in use: {at_work(found[0])}; stop them first")
    where = yield from topic_keys(partitions)
    for keys, beats in zip(partitions, before_looking, strict=True):
        streams = [key.stream for key in where if key.partition == keys.partition]
        if not (yield from instances.forget(keys, name, beats, streams)):
            return False
    return True


def before(entry_id: str) -> str:
    """The id right before this one."""
    milliseconds, sequence = id_order(entry_id)
    if sequence:
        return f"{milliseconds}-{sequence - 1}"
    return f"{milliseconds - 1}-{_LAST}" if milliseconds else "0-0"


def _count(stream: bytes, facts: dict[bytes, Reply], low: str, high: str) -> Operation[Count]:
    """Entries after `low`, up to `high`."""
    first, last = facts[b"first-entry"], facts[b"last-entry"]
    if not last or id_order(low) >= id_order(high) or id_order(low) >= id_order(last[0]):
        return Count(0)
    if id_order(low) < id_order(first[0]) and id_order(high) >= id_order(last[0]):
        return Count(facts[b"length"])
    seen = size = 0
    start = b"(" + low.encode()
    while seen < COUNT_LIMIT and size < COUNT_BYTES:
        (rows,) = yield command("XRANGE", stream, start, high, "COUNT", PAGE)
        seen += len(check(rows, "count"))
        if len(rows) < PAGE:
            return Count(seen)
        size += sum(len(part) for _, fields in rows for part in fields or ())
        start = b"(" + rows[-1][0]
    return Count(seen, False)
