"""Looking for a batch whose answer was lost: is it on the server?

It is one transaction, and nothing more of it can come (its fence was raised). So its events are looked for behind the
last entry of each stream that was known before it. One found: the whole batch is there. None found in a stream that
still has all that came behind that entry: none of it is. Not knowable is what is found nowhere where a stream was
trimmed past the place or has been replaced, or where more entries came since than anybody wants to look through. A
stream that ends before that place is one whose end was lost in a failover: what came after is not there either.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from canvasbus import ids
from canvasbus.errors import CanvasbusError
from canvasbus.transport.resp import Operation, ReplyError, check, code, commands, pairs
from canvasbus.wire import later
from canvasbus.wire.codec import Codec
from canvasbus.wire.keys import LATER_INBOX, Keys
from canvasbus.wire.outgoing import Outgoing

SCAN_PAGE = 500

_codec = Codec(limit=1 << 62)


class Traces(NamedTuple):
    """What is on the server of a batch."""

    found: dict[bytes, bytes]
    """Event id → entry id. None of them, and nothing uncertain: the batch is not there."""
    uncertain: str
    """The type in whose stream nothing can be known, where that leaves the whole batch in doubt."""


class _NotAStream(Exception):
    """The key where a stream should be holds something else."""


def look_for(batch: Sequence[Outgoing], keys: Keys, cursors: Mapping[str, bytes], limit: int) -> Operation[Traces]:
    """Look behind the entries in `cursors` (one for each type), through `limit` entries of a stream at most."""
    found: dict[bytes, bytes] = {}
    absent = False
    uncertain = ""
    for event_type in dict.fromkeys(item.type for item in batch):
        wanted = {item.raw_id for item in batch if item.type == event_type}
        try:
            known = yield from _scan(event_type, wanted, keys.stream(event_type), cursors[event_type], limit)
        except _NotAStream:
            continue  # its events were refused and say nothing of the others
        if known is None:
            uncertain = event_type
        else:
            found |= known
            absent = absent or not known
    return Traces(found, "" if found or absent else uncertain)


def _scan(
    event_type: str, wanted: set[bytes], stream: bytes, cursor: bytes, limit: int
) -> Operation[dict[bytes, bytes] | None]:
    """Entry ids of the wanted event ids after the cursor. Empty: absent. None: cannot be known."""
    found: dict[bytes, bytes] = {}
    start = b"(" + cursor
    seen = 0
    while len(found) < len(wanted):
        (rows,) = yield commands(("XRANGE", stream, start, "+", "COUNT", SCAN_PAGE))
        if isinstance(rows, ReplyError) and code(rows) == "WRONGTYPE":
            raise _NotAStream
        for entry_id, fields in check(rows, f"look for {event_type}"):
            event_id = _event_id(event_type, entry_id, fields)
            if event_id in wanted:
                found[event_id] = entry_id
        if len(rows) < SCAN_PAGE:
            break
        seen += len(rows)
        if seen >= limit:
            return found or None
        start = b"(" + rows[-1][0]
    if found or (yield from _unbroken(stream, cursor)):
        return found
    return None


def _unbroken(stream: bytes, cursor: bytes) -> Operation[bool]:
    """Whether everything that was added to a stream after the cursor is still there, or never was on this server."""
    anchor, info = yield commands(("XRANGE", stream, cursor, cursor), ("XINFO", "STREAM", stream))
    if check(anchor, "publish"):
        return True
    if isinstance(info, ReplyError) and "no such key" in str(info):
        return cursor == b"0-0"
    facts = pairs(check(info, "publish"))
    if cursor != b"0-0":
        return ids.id_order(facts[b"last-generated-id"]) < ids.id_order(cursor)
    return bool(facts[b"length"] == facts[b"entries-added"])


def _event_id(event_type: str, entry_id: bytes, fields: list[bytes]) -> bytes:
    if len(fields) != 2 or fields[0] != b"e":
        return b""
    value = fields[1]
    if event_type == LATER_INBOX:
        event_type, value = later.unwrap(value)
    try:
        envelope = _codec.open_envelope(value, stream_type=event_type, entry_id=entry_id.decode())
    except CanvasbusError:
        return b""
    return envelope.id.bytes
