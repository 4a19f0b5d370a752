"""One stored entry, and what a person can be shown of it.

Showing never fails: an event of a type that nobody imported is decoded as plain data, one whose bytes make no sense is
shown as bytes. In every case the result is a CloudEvents object; what is not in order has two more attributes, `reason`
(one word, as in a dead letter) and `problem` (a sentence). An event of an older version is shown as it was published, and
its `dataschema` says which version that was.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from canvasbus import ids
from canvasbus.errors import DecodeError, EncodeError
from canvasbus.operate.topics import time_of
from canvasbus.operate.words import text
from canvasbus.wire.cloudevents import structured, to_structured
from canvasbus.wire.codec import Codec
from canvasbus.wire.envelope import Envelope


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a topic as it lies on the server."""

    topic: str
    partition: int
    entry_id: str
    fields: tuple[bytes, ...]
    """Names and values, byte for byte."""

    @property
    def time(self) -> datetime | None:
        """When the server took it."""
        return time_of(self.entry_id)


@dataclass(frozen=True, slots=True)
class View:
    """An entry for people and programs."""

    cloudevent: Mapping[str, Any]
    """Ready for JSON."""
    reason: str | None = None
    """unknown_type, newer_version, invalid, undecodable, upcast_failed, foreign or oversize; None: a valid event."""


def view(entry: Entry, codec: Codec) -> View:
    """What can be read of an entry. Never raises."""
    fields = entry.fields
    if len(fields) != 2 or fields[0] != b"e":
        names = ", ".join(repr(text(name)[:40]) for name in fields[:10:2]) or "none"
        data = {text(name): text(value) for name, value in zip(fields[::2], fields[1::2], strict=False)}
        return _marked(entry, "foreign", f"not an entry of the bus: it has the fields {names}", data=data)
    value = fields[1]
    reason, problem = None, ""
    try:
        envelope, event = codec.decode(value, stream_type=entry.topic, entry_id=entry.entry_id)
        newest = codec.registry.latest(envelope.type)
        if newest is not None and newest.version == envelope.version:
            return View(to_structured(envelope, event))
    except DecodeError as error:
        reason, problem = error.reason, str(error)
    except EncodeError as error:  # undecoded bytes in it that stand for nothing in JSON
        return _marked(entry, "invalid", str(error), data_base64=base64.b64encode(value[:4096]).decode())
    is_json = value[:1] == b"{"
    try:
        envelope = codec.open_envelope(value, stream_type=entry.topic, entry_id=entry.entry_id)
        old = codec.registry.get(envelope.type, envelope.version)
        if old is not None and reason is None:
            return View(to_structured(envelope, (old.json_decoder if is_json else old.decoder).decode(envelope.data)))
        data = _plain(envelope, is_json=is_json)
    except (DecodeError, EncodeError, msgspec.MsgspecError, ValueError, TypeError, RecursionError, OverflowError):
        return _marked(entry, reason or "invalid", problem, data_base64=base64.b64encode(value[:4096]).decode())
    occurred = data.pop("occurred_on", None)
    correlation = data.pop("correlation_id", None)
    return View(
        structured(
            envelope,
            data,
            time=occurred or _stamp(entry),
            correlation=_uuid(correlation) if correlation else None,
            **({"reason": reason, "problem": problem} if reason is not None else {}),
        ),
        reason,
    )


def _plain(envelope: Envelope, *, is_json: bool) -> dict[str, Any]:
    decode = msgspec.json.decode if is_json else msgspec.msgpack.decode
    data = msgspec.to_builtins(decode(envelope.data), str_keys=True)
    if not isinstance(data, dict):
        raise ValueError("not an object")  # noqa: TRY004  caught right above
    return data


def _marked(entry: Entry, reason: str, problem: str, **data: Any) -> View:
    return View(
        {
            "specversion": "1.0",
            "id": str(ids.foreign(entry.topic, entry.entry_id)),
            "source": "canvasbus",
            "type": entry.topic,
            "time": _stamp(entry),
            "reason": reason,
            "problem": problem,
            **data,
        },
        reason,
    )


def _stamp(entry: Entry) -> str | None:
    return entry.time.isoformat().replace("+00:00", "Z") if entry.time else None


def _uuid(value: Any) -> str:
    """Generic decoding hands a UUID out as the base64 text of its 16 bytes."""
    try:
        raw = base64.b64decode(value, validate=True)
    except ValueError:
        return str(value)
    return str(UUID(bytes=raw)) if len(raw) == 16 else str(value)


def entries(topic: str, partition: int, rows: Sequence[Any]) -> list[Entry]:
    """The rows of an XRANGE reply as entries."""
    return [Entry(topic, partition, entry_id.decode(), tuple(fields or ())) for entry_id, fields in rows]
