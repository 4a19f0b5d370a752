"""How rows lie on the server: the one place that names the keys of the online store, its fields and its script.

    NAMESPACE:{fv:VIEW}:row:ENTITY   hash: the row that counts
    NAMESPACE:{fv:VIEW}:history      stream: what came, in the order in which it came, the last so many rows
    NAMESPACE:{fv:VIEW}:seen         sorted set: event ids of what is in the history, by its time on the server

VIEW is percent-encoded, ENTITY as it is. All keys of a view share a hash tag, so that one script may touch them; it is not
the tag of the bus's own keys, which the bus looks after. Fields of a row:

    event_time      microseconds since 1970          value:NAME    a number as text
    event_id        32 hexadecimal digits            vector:NAME   float32, little-endian, packed
                                                     shape:NAME    its shape, 2,3, where that is not one axis
"""

import hashlib
import sys
from array import array
from collections.abc import Mapping, Sequence
from typing import TypeAlias
from urllib.parse import quote

from canvasbus_workers.features.rows import FeatureRow, micros

Floats: TypeAlias = "memoryview[float]"

_TIME, _ID = b"event_time", b"event_id"


class OnlineKeys:
    """The keys of one view."""

    __slots__ = ("_prefix", "history", "seen")

    def __init__(self, namespace: str, view: str) -> None:
        self._prefix = f"{namespace}:{{fv:{quote(view, safe='')}}}:".encode()
        self.history = self._prefix + b"history"
        self.seen = self._prefix + b"seen"

    def row(self, entity: str) -> bytes:
        """The row of an entity."""
        return self._prefix + b"row:" + entity.encode()


WRITE = """
-- Write one row. Whatever the order in which rows come, and however often, the same one remains.
-- KEYS row, history, seen; ARGV event time (us), event id, entity, ttl (ms; 0: none), rows of history (0: none), fields
-- Returns 1: it counts now, 0: a later one does, -1: its time was over before it came
-- Uses commands only that the ACL of a worker has anyway. Lua does not roll back: what the keys hold is asked before
-- anything is written (each of these fails on a key of another type), and the mark in `seen` comes last.
local time, id, ttl, keep = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[4]), tonumber(ARGV[5])
local old = redis.call('HMGET', KEYS[1], 'event_time', 'event_id')
local new = false
if keep > 0 then
  redis.call('XLEN', KEYS[2])
  new = not redis.call('ZSCORE', KEYS[3], id)
end
local left = 0
if ttl > 0 then
  -- From the event time on: from now on, a late old row would be young again and take the place of an expired newer one.
  local now = redis.call('TIME')
  left = math.floor(time / 1000) + ttl - (tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000))
end
local result = 0
if ttl > 0 and left <= 0 then
  result = -1
elseif not old[1] or time > tonumber(old[1]) or (time == tonumber(old[1]) and id > old[2]) then
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'event_time', ARGV[1], 'event_id', id, unpack(ARGV, 6))
  if left > 0 then redis.call('PEXPIRE', KEYS[1], left) end
  result = 1
end
if new then
  local entry = redis.call('XADD', KEYS[2], 'MAXLEN', '~', keep, '*',
    'entity', ARGV[3], 'event_time', ARGV[1], 'event_id', id, unpack(ARGV, 6))
  if string.sub(id, -1) == '0' then -- one in sixteen: XRANGE fetches the whole row for its id
    local oldest = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1][1]
    redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', '(' .. string.match(oldest, '^%d+'))
  end
  redis.call('ZADD', KEYS[3], string.match(entry, '^%d+'), id)
end
return result
"""
WRITE_SHA = hashlib.sha1(WRITE.encode()).hexdigest()


def write_command(
    namespace: str, row: FeatureRow, ttl: float, history: int, *, by_source: bool = False
) -> tuple[bytes | str | int, ...]:
    """The command that writes a row. `ttl`: seconds from the event time on, 0.0: for ever. `by_source`: loads the script,
    too."""
    keys = OnlineKeys(namespace, row.view)
    call = ("EVAL", WRITE) if by_source else ("EVALSHA", WRITE_SHA)
    return (
        *call,
        3,
        keys.row(row.entity),
        keys.history,
        keys.seen,
        micros(row.event_time),
        row.event_id,
        row.entity,
        round(ttl * 1000),
        history,
        *_fields(row),
    )


def _fields(row: FeatureRow) -> list[bytes | str]:
    found: list[bytes | str] = []
    for name, value in row.values.items():
        found += (f"value:{name}", repr(value))
    for name, vector in row.vectors.items():
        found += (f"vector:{name}", vector.data)
        if len(vector.shape) != 1:
            found += (f"shape:{name}", ",".join(map(str, vector.shape)))
    return found


def wanted_fields(names: Sequence[str]) -> list[bytes]:
    """The fields to ask for when only some features are wanted."""
    kinds = [f"{kind}:{name}".encode() for name in names for kind in ("value", "vector", "shape")]
    return [_TIME, _ID, *kinds]


def parsed(
    fields: Mapping[bytes, bytes | None],
) -> tuple[int, str, dict[str, float], dict[str, Floats]] | None:
    """Event time, event id, values and vectors of what lies in a hash; None: there is no row."""
    time, event_id = fields.get(_TIME), fields.get(_ID)
    if time is None or event_id is None:
        return None
    values: dict[str, float] = {}
    vectors: dict[str, Floats] = {}
    for field, content in fields.items():
        kind, _, rest = field.partition(b":")
        if content is None or not rest:
            continue
        name = rest.decode()
        if kind == b"value":
            values[name] = float(content)
        elif kind == b"vector":
            shape = fields.get(b"shape:" + rest)
            vectors[name] = floats(
                content, None if shape is None else tuple(map(int, shape.split(b",") if shape else ()))
            )
    return int(time), event_id.decode(), values, vectors


def floats(data: bytes, shape: tuple[int, ...] | None = None) -> Floats:
    """Packed float32 as numbers that can be indexed, and that numpy takes without a copy. `shape` None: one axis."""
    if sys.byteorder == "big":
        swapped = array("f", data)
        swapped.byteswap()
        data = swapped.tobytes()
    plain = memoryview(data)
    if shape is None or 0 in shape:  # a memoryview cannot have an empty axis among several
        return plain.cast("f")
    return plain.cast("f", shape)
