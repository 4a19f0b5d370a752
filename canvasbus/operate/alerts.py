"""What the alerts worker knows about incidents, silences and destinations, as it lies on the server.

It is state of the group `alerts`, and the worker's own affair: what it is made of is declared there, and found by the
worker's entry point. There is a desk in each partition that had signals; silences lie in all of them.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from canvasbus.consume.state import TOKEN
from canvasbus.errors import CanvasbusError, DecodeError
from canvasbus.operate.entry import entries
from canvasbus.operate.plugins import beside
from canvasbus.operate.topics import answered
from canvasbus.transport.resp import Operation, check, command, pairs
from canvasbus.wire.codec import Codec
from canvasbus.wire.keys import Keys

GROUP = "alerts"
SILENCES = "silence.added"
PAGE = 1000
"""Silences that are looked at, at most."""


def desk(partitions: Sequence[Keys]) -> Operation[Any]:
    """What lies in all partitions, as one `canvasbus_workers.alerts.desk.Desk`. Raises ConfigError where the worker is not
    installed, and CanvasbusError for what another release has written."""
    type_ = beside(GROUP, "desk").Desk
    whole = type_()
    for keys in partitions:
        raw = check((yield command("GET", keys.state(GROUP, "desk")))[0], "look at the alerts worker's state")
        if raw:
            whole.join(_decoded(raw[TOKEN:], type_))
    return whole


def not_taken(keys: Keys, codec: Codec, now: float) -> Operation[list[Any]]:
    """The silences in force, as they were added, that no worker has been given yet; `now`: seconds since 1970. One partition
    tells of all, since a copy lies in each."""
    stream = keys.stream(SILENCES)
    (rows,) = yield command("XINFO", "GROUPS", stream)
    if not answered(rows, "look for silences"):
        return []  # no stream yet
    given = {row[b"name"]: row[b"last-delivered-id"] for row in map(pairs, rows)}.get(GROUP.encode(), b"0-0")
    (left,) = yield command("XRANGE", stream, b"(" + given, "+", "COUNT", PAGE)
    waiting = {}
    for entry in entries(SILENCES, keys.partition, check(left, "look for silences")):
        try:
            event: Any = codec.decode(entry.fields[1], stream_type=SILENCES, entry_id=entry.entry_id)[1]
        except (DecodeError, IndexError):
            continue  # the worker says so
        if event.until is None or event.until.timestamp() > now:
            waiting[event.silence_id] = event
    return list(waiting.values())


def _decoded(data: bytes, type_: Any) -> Any:
    try:
        return msgspec.msgpack.decode(data, type=type_)
    except msgspec.MsgspecError as error:
        raise CanvasbusError(f"the alerts worker's state is of another release than this command: {error}") from None
