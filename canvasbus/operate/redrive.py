"""Dead letters put back to work, and thrown away.

A letter goes back to its own group only: to a stream of the group's own that its workers read beside the topic. What
comes of it is what would have come of the first delivery: the event has its old id, and so have the events derived
from it. Moving and removing are one script, so a redrive that is interrupted or repeated loses and doubles nothing.
"""

from collections.abc import Iterable, Sequence

from canvasbus.operate.deadletter import DeadLetter
from canvasbus.transport.resp import Operation, check, chunks, command
from canvasbus.transport.scripts import REDRIVE
from canvasbus.wire.cloudevents import moved
from canvasbus.wire.deadletter import DeadLetterRecord
from canvasbus.wire.keys import Keys

AT_ONCE = 100
WIDEST = 5000
"""Words of one entry that a script can add: Lua's stack takes some 8,000."""
BYTES_AT_ONCE = 1024 * 1024


def portions(letters: Iterable[DeadLetter]) -> list[list[DeadLetter]]:
    """Letters of one group and partition each, few enough for one step. What no step could move is left out: what is no
    dead letter, and a stranger's entry with thousands of fields."""
    result: list[list[DeadLetter]] = []
    size = 0
    for letter in letters:
        fields = letter.record.fields if letter.record is not None else ()
        if not 0 < len(fields) <= WIDEST or len(fields) % 2:
            continue
        last = result[-1] if result else []
        same = last and (last[0].group, last[0].partition) == (letter.group, letter.partition)
        if not same or len(last) >= AT_ONCE or size >= BYTES_AT_ONCE:
            result.append([])
            size = 0
        result[-1].append(letter)
        size += sum(map(len, fields))
    return result


def redrive(partitions: Sequence[Keys], letters: Sequence[DeadLetter]) -> Operation[int]:
    """Put one portion back to work; returns how many letters were there still."""
    keys = next(keys for keys in partitions if keys.partition == letters[0].partition)
    group = letters[0].group
    places: dict[bytes, int] = {}
    args: list[bytes | str | int] = [group]
    for letter in letters:
        assert letter.record is not None
        event_type, fields = letter.record.event_type, _with_its_id(letter.record)
        stream = keys.retry(group, event_type)
        args += (letter.id, places.setdefault(stream, len(places) + 3), event_type, len(fields), *fields)
    reply = yield from REDRIVE.call([keys.dead(group), keys.retries(group), *places], args)
    return int(check(reply, f"redrive dead letters of {group}"))


def _with_its_id(record: DeadLetterRecord) -> tuple[bytes, ...]:
    """The entry's fields. A JSON event that somebody wrote without an id has one by where it lay, and takes it along."""
    if record.event_id is None or record.fields[0] != b"e":
        return record.fields
    return (b"e", moved(record.fields[1], record.event_id, record.entry_id), *record.fields[2:])


def purge(partitions: Sequence[Keys], letters: Sequence[DeadLetter]) -> Operation[int]:
    """Remove these letters for good, foreign ones too; returns how many were there still."""
    removed = 0
    by_stream: dict[bytes, list[str]] = {}
    for letter in letters:
        keys = next(keys for keys in partitions if keys.partition == letter.partition)
        by_stream.setdefault(keys.dead(letter.group), []).append(letter.id)
    for stream, ids in by_stream.items():
        for some in chunks(ids):
            (reply,) = yield command("XDEL", stream, *some)
            removed += check(reply, "remove dead letters")
    return removed
