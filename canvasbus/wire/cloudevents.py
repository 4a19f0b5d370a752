"""Events as JSON: what other languages write, and what people give and read. CloudEvents 1.0, structured mode.

`time` and `correlationid` of the outer object are the event's own `occurred_on` and `correlation_id`; `subject` is its
key, and `dataschema` names its version.
"""

import json
import re
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Raw

from canvasbus import ids
from canvasbus.contract.event import Event
from canvasbus.contract.registry import Registry, registry, schema_id
from canvasbus.errors import DecodeError, EncodeError
from canvasbus.wire.envelope import Envelope

BAD_BYTES = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, OverflowError)
"""What msgspec raises for bytes that cannot be read."""


def said(error: BaseException) -> str:
    """The text of an error; some have none."""
    return str(error) or type(error).__name__


class _JsonEnvelope(msgspec.Struct):
    """A CloudEvents 1.0 structured object; only `type` and `data` are required. `version` is a shorthand of ours."""

    type: str
    data: Raw
    id: UUID | None = None
    source: str = ""
    subject: str | None = None
    time: str | None = None
    dataschema: str | None = None
    version: int | None = None
    correlationid: UUID | None = None
    causationid: UUID | None = None
    traceparent: str | None = None


_decode_json = msgspec.json.Decoder(_JsonEnvelope).decode
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode


def open_json(value: bytes, stream_type: str, entry_id: str) -> Envelope:
    """The envelope of a JSON entry; the payload stays JSON. Raises DecodeError."""
    try:
        raw = _decode_json(value)
    except BAD_BYTES as error:
        raise DecodeError(f"not a JSON envelope: {said(error)}") from error
    if raw.type != stream_type:
        raise DecodeError(f"an event of type {raw.type!r} lies on the stream of {stream_type!r}", reason="foreign")
    return Envelope(
        raw.id or ids.foreign(stream_type, entry_id),
        raw.type,
        raw.version or _version_in(raw.dataschema) or 1,
        raw.source,
        raw.subject,
        raw.causationid,
        raw.traceparent,
        _with_event_fields(raw),
    )


def _with_event_fields(raw: _JsonEnvelope) -> Raw:
    """The payload with `time` and `correlationid` of the outer object put where an Event carries them."""
    if raw.time is None and raw.correlationid is None:
        return raw.data
    try:
        fields = _decode_fields(raw.data)
    except BAD_BYTES:
        return raw.data  # no object; decoding it as an event says what is wrong
    if raw.time is not None:
        fields.setdefault("occurred_on", Raw(msgspec.json.encode(raw.time)))
    if raw.correlationid is not None:
        fields.setdefault("correlation_id", Raw(msgspec.json.encode(raw.correlationid)))
    return Raw(msgspec.json.encode(fields))


def _version_in(dataschema: str | None) -> int | None:
    tail = (dataschema or "").rpartition("/v")[2].removesuffix(".json")
    return int(tail) if re.fullmatch("[0-9]{1,9}", tail) else None


def to_cloudevent(envelope: Envelope, event: Event) -> dict[str, Any]:
    """An event as a CloudEvents 1.0 structured object, ready for `json.dumps`."""
    data = msgspec.to_builtins(event)
    return structured(envelope, data, time=data.pop("occurred_on"), correlation=data.pop("correlation_id"))


def structured(
    envelope: Envelope, data: dict[str, Any], *, time: str | None, correlation: str | None, **more: Any
) -> dict[str, Any]:
    """The same from its parts, with more attributes if need be; what there is none of is left out."""
    return {
        "specversion": "1.0",
        "id": str(envelope.id),
        "source": envelope.source or "canvasbus",
        "type": envelope.type,
        "time": time,
        **({"subject": envelope.key} if envelope.key is not None else {}),
        "dataschema": schema_id(envelope.type, envelope.version),
        **({"correlationid": correlation} if correlation else {}),
        **({"causationid": str(envelope.causation_id)} if envelope.causation_id else {}),
        **({"traceparent": envelope.traceparent} if envelope.traceparent else {}),
        **more,
        "data": data,
    }


def from_json(
    value: str | bytes, *, type_name: str | None = None, known: Registry = registry
) -> tuple[Event, UUID | None]:
    """Read one event that a person or a file gives: a CloudEvents object, or the bare data with the type named.

    Returns the event and the id that the object carried (None: it is to get a new one).
    Raises EncodeError, since the move is the giver's: unknown type, unknown or missing field, wrong type.
    """
    try:
        outer = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise EncodeError(f"not JSON: {error}") from error
    if not isinstance(outer, dict):
        raise EncodeError("an event is a JSON object")
    event_id = None
    version = None
    if "specversion" in outer or (type_name is None and "data" in outer):
        try:
            raw = _decode_json(value)
        except (*BAD_BYTES, TypeError, msgspec.MsgspecError) as error:
            raise EncodeError(f"not a CloudEvents object: {said(error)}") from error
        if type_name is not None and raw.type != type_name:
            raise EncodeError(f"the object says type {raw.type!r}, the command says {type_name!r}")
        type_name, event_id = raw.type, raw.id
        version = raw.version or _version_in(raw.dataschema)
        outer = json.loads(bytes(_with_event_fields(raw)))
    if type_name is None:
        raise EncodeError('the object names no event type: give one, or use {"type": ..., "data": {...}}')
    declared = known.latest(type_name)
    if declared is None or (version and not declared.upcasters.since <= version <= declared.version):
        import difflib

        near = difflib.get_close_matches(type_name, known.names(), n=1, cutoff=0.75)
        hint = f"; did you mean {near[0]!r}?" if near else "; is the module that declares it imported (--module)?"
        raise EncodeError(f"unknown event type {type_name!r}{f' v{version}' if version else ''}{hint}")
    surplus = sorted(set(outer) - set(declared.cls.__struct_encode_fields__)) if isinstance(outer, dict) else []
    if version and version < declared.version and isinstance(outer, dict):
        try:
            outer = declared.upcasters(version, outer)  # what a step leaves over is ignored, as on the stream
        except DecodeError as error:
            raise EncodeError(str(error)) from error
    elif surplus:
        raise EncodeError(
            f"{type_name} v{declared.version} has no field {', '.join(map(repr, surplus))}; its fields are "
            + ", ".join(declared.cls.__struct_encode_fields__)
        )
    try:
        return declared.json_decoder.decode(msgspec.json.encode(outer)), event_id
    except (*BAD_BYTES, TypeError, msgspec.MsgspecError) as error:
        raise EncodeError(f"{type_name} v{declared.version}: {said(error)}") from error
