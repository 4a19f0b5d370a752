"""Events as CloudEvents 1.0: what other languages write, and what people give and read. The one mapping of all of it: JSON
entries on a stream, `tail --json`, `publish`, the examples in `schemas/`, and `canvasbus.cloudevents` for HTTP.

    id             the event's id. What is no UUID gets one made of it and the source, always the same
    source         who published it; what is no URI reference is percent-encoded, and nobody is `canvasbus`
    type           the event type
    time           its occurred_on
    subject        its key, and partitionkey (the extension "Partitioning") says it again for bridges, which look there
    dataschema     urn:canvasbus:<type>/v<version>; of another house's the version is what stands behind its last /v
    correlationid  its correlation_id (the extension "Correlation"); what is no UUID gets one made of it alone
    causationid    the id of the event whose handler made it; what is no UUID is read as an id of the same source
    traceparent    W3C trace context, as it is (the extension "Distributed Tracing")
    expirytime     when consumers begin to skip it (the extension "Expiry Time")
    data           its other fields; data_base64 is read, too

Only JSON is read: another `datacontenttype` is a bad entry, like another `specversion`. In the data, what the event itself
says of time and correlation wins over the attributes, and so does the field that is its type's key. Attributes that are not
in this list are ignored.

On the bus itself `type` and `data` are enough, and `version` is a shorthand for `dataschema`: an entry without id and time
has them by where it lies, and one without a correlation begins one with its id, the same on every reading. What comes from
outside must be whole, since without id and source nobody would know it again.
"""

import base64
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, unquote
from uuid import UUID

import msgspec
from msgspec import Raw

from canvasbus import ids
from canvasbus.contract.event import AwareDatetime, Event
from canvasbus.contract.raw import builtins
from canvasbus.contract.registry import schema_id
from canvasbus.errors import DecodeError
from canvasbus.wire.envelope import Envelope

BAD_BYTES = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, OverflowError)
"""What msgspec raises for bytes that cannot be read."""

STRUCTURED_TYPE = "application/cloudevents+json"
"""Media type of a structured object."""
JSON_TYPE = "application/json"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST = datetime(9999, 12, 31, tzinfo=UTC)
_IS_JSON = re.compile(r"(application|text)/([a-z0-9.\-]+\+)?json\s*(;.*)?", re.IGNORECASE | re.DOTALL)
_NOT_IN_A_URI = re.compile(r"%(?![0-9A-Fa-f]{2})|[^A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]")
_HEADER_SAFE = "".join(char for char in map(chr, range(0x21, 0x7F)) if char not in '"%')
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)


def said(error: BaseException) -> str:
    """The text of an error; some have none."""
    return str(error) or type(error).__name__


def to_structured(envelope: Envelope, event: Event) -> dict[str, Any]:
    """An event as a CloudEvents 1.0 structured object, ready for `json.dumps`. An event that was published in an older
    version and upcast is described as what it has become."""
    attributes, data = _parts(envelope, event)
    return {**attributes, "data": data}


def to_binary(envelope: Envelope, event: Event) -> tuple[dict[str, str], bytes]:
    """The same in the binary mode of HTTP: headers, with names in lower case, and body."""
    attributes, data = _parts(envelope, event)
    headers = {f"ce-{name}": quote(value, safe=_HEADER_SAFE) for name, value in attributes.items()}
    return {**headers, "content-type": JSON_TYPE}, msgspec.json.encode(data)


def structured(
    envelope: Envelope, data: dict[str, Any], *, time: str | None, correlation: str | None, **more: Any
) -> dict[str, Any]:
    """A structured object of its parts, with more attributes if need be; what there is none of is left out."""
    return {**_attributes(envelope, envelope.version, time, correlation), **more, "data": data}


def _parts(envelope: Envelope, event: Event) -> tuple[dict[str, str], dict[str, Any]]:
    version = event.__event_type__.version  # type: ignore[attr-defined]
    data = builtins(event)
    return _attributes(envelope, version, data.pop("occurred_on"), data.pop("correlation_id")), data


def _attributes(envelope: Envelope, version: int, time: str | None, correlation: str | None) -> dict[str, str]:
    told = {
        "specversion": "1.0",
        "id": str(envelope.id),
        "source": _NOT_IN_A_URI.sub(lambda found: quote(found[0]), envelope.source) or "canvasbus",
        "type": envelope.type,
        "time": time,
        "subject": envelope.key,
        "partitionkey": envelope.key,
        "dataschema": schema_id(envelope.type, version),
        "correlationid": correlation,
        "causationid": str(envelope.causation_id) if envelope.causation_id else None,
        "traceparent": envelope.traceparent,
        "expirytime": None if envelope.expires_on is None else _moment(envelope.expires_on),
    }
    return {name: value for name, value in told.items() if value}


def _moment(seconds: float) -> str:
    """Wall time as RFC 3339; what lies beyond the calendar is its last day, or long over."""
    try:
        moment = _EPOCH + timedelta(seconds=seconds)
    except (OverflowError, ValueError):
        moment = _LATEST if seconds > 0 else _EPOCH
    return moment.isoformat().replace("+00:00", "Z")


class Attributes(msgspec.Struct):
    """What a CloudEvents object says, by its own names. The payload stays JSON."""

    type: str
    data: Raw = Raw()
    data_base64: str | None = None
    specversion: str | None = None
    id: str | None = None
    source: str | None = None
    subject: str | None = None
    partitionkey: str | None = None
    time: str | None = None
    dataschema: str | None = None
    datacontenttype: str | None = None
    version: int | None = None
    correlationid: str | None = None
    causationid: str | None = None
    traceparent: str | None = None
    expirytime: AwareDatetime | None = None

    @property
    def event_id(self) -> UUID | None:
        """None: it carries none."""
        return None if self.id is None else _uuid(self.id, self.source or "")

    @property
    def event_version(self) -> int | None:
        """None: it names none."""
        if self.version is not None:
            return self.version
        tail = (self.dataschema or "").rpartition("/v")[2].removesuffix(".json")
        return int(tail) if re.fullmatch("[0-9]{1,9}", tail) else None

    @property
    def cause(self) -> UUID | None:
        """None: no event caused it."""
        return _uuid(self.causationid, self.source or "") if self.causationid else None

    @property
    def expires_on(self) -> float | None:
        """Wall time in seconds; None: never."""
        return None if self.expirytime is None else self.expirytime.timestamp()

    def payload(self, *, time: str | None = None, correlation: UUID | None = None) -> Raw:
        """The data, with `time` and `correlationid` of the outer object, else those given, put where an Event carries
        them."""
        time = self.time if self.time is not None else time
        correlation = _uuid(self.correlationid, "") if self.correlationid else correlation
        if time is None and correlation is None:
            return self.data
        try:
            fields = _decode_fields(self.data)
        except BAD_BYTES:
            return self.data  # no object; decoding it as an event says what is wrong
        if time is not None:
            fields.setdefault("occurred_on", Raw(_encode(time)))
        if correlation is not None:
            fields.setdefault("correlation_id", Raw(_encode(correlation)))
        return Raw(_encode(fields))

    def envelope(self, stream_type: str, entry_id: str) -> Envelope:
        """The envelope of an entry. What the object itself does not say is the same on every reading: id and time by
        where it lies, and a correlation that begins with it."""
        event_id = self.event_id or ids.foreign(stream_type, entry_id)
        return self._envelope(event_id, _time_of(entry_id) if self.time is None else None)

    def whole(self) -> Envelope:
        """The envelope of what comes from outside. Raises DecodeError for lack of what CloudEvents require."""
        missing = [name for name in ("specversion", "id", "source", "type") if not getattr(self, name)]
        event_id = self.event_id
        if missing or event_id is None:
            raise DecodeError(f"not a CloudEvents object: it has no {', '.join(missing)}")
        return self._envelope(event_id, None)

    def _envelope(self, event_id: UUID, time: str | None) -> Envelope:
        version = self.event_version
        return Envelope(
            event_id,
            self.type,
            1 if version is None else version,
            self.source or "",
            self.partitionkey or self.subject or None,
            self.cause,
            self.traceparent,
            self.payload(time=time, correlation=event_id),
            self.expires_on,
        )


_encode = msgspec.json.Encoder().encode
_decode_json = msgspec.json.Decoder(Attributes).decode
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_NULL = Raw(b"null")


def read_json(value: bytes | str) -> Attributes:
    """What a JSON object says. Raises DecodeError."""
    try:
        return _checked(_decode_json(value))
    except (*BAD_BYTES, TypeError) as error:
        raise DecodeError(f"not a CloudEvents object: {said(error)}") from error


def read_headers(headers: Mapping[str, str], body: bytes) -> Attributes:
    """What a request in the binary mode of HTTP says. Raises DecodeError."""
    try:
        given = {name.lower(): value for name, value in headers.items()}
        texts = {name[3:]: _from_header(value) for name, value in given.items() if name.startswith("ce-")}
        for ours in ("data", "data_base64", "version"):  # they are no attributes; another house may call something so
            texts.pop(ours, None)
        return _checked(
            msgspec.convert({**texts, "datacontenttype": given.get("content-type"), "data": Raw(body)}, Attributes)
        )
    except (*BAD_BYTES, TypeError, AttributeError) as error:
        raise DecodeError(f"not a CloudEvent in binary mode: {said(error)}") from error


def _from_header(value: str) -> str:
    """Text in double quotes is taken out of them, then the percent-encoding is undone, once."""
    value.encode()  # lone surrogates, as WSGI and others leave them of bytes that are no text: UnicodeEncodeError
    quoted = _QUOTED.fullmatch(value)
    return unquote(re.sub(r"\\(.)", r"\1", quoted[1], flags=re.DOTALL) if quoted else value, errors="strict")


def _checked(found: Attributes) -> Attributes:
    if found.specversion not in (None, "1.0"):
        raise DecodeError(f"CloudEvents {found.specversion!r} is not read here, only 1.0")
    if found.datacontenttype and not _IS_JSON.fullmatch(found.datacontenttype.strip()):
        raise DecodeError(f"datacontenttype {found.datacontenttype!r} is not read here, only JSON")
    if found.id == "":
        raise DecodeError("not a CloudEvents object: its id is empty")
    if found.data_base64 is not None:
        if memoryview(found.data):
            raise DecodeError("not a CloudEvents object: it has both data and data_base64")
        found.data = Raw(base64.b64decode(found.data_base64, validate=True))
    if not memoryview(found.data):
        raise DecodeError("not an event: it has no data")
    return found


def _uuid(text: str, source: str) -> UUID:
    try:
        return msgspec.convert(text, UUID)
    except msgspec.ValidationError:
        return ids.outside(source, text)


MOVED_BYTES = 128
"""More than `moved` adds to an entry."""


def open_json(value: bytes, stream_type: str, entry_id: str, *, moved: bool = False) -> Envelope:
    """The envelope of a JSON entry; the payload stays JSON. `moved`: it is larger than an entry may be, for which there
    is no reason but `moved`. Raises DecodeError."""
    found = read_json(value)
    if moved and (found.id is None or found.time is None):
        raise DecodeError(f"{len(value):,} bytes, over the limit", reason="oversize")
    if found.type != stream_type:
        raise DecodeError(f"an event of type {found.type!r} lies on the stream of {stream_type!r}", reason="foreign")
    return found.envelope(stream_type, entry_id)


def moved(value: bytes, event_id: str, entry_id: str) -> bytes:
    """A JSON entry that is to lie elsewhere, with the id and the time that it had by where it lay; others as they are."""
    try:
        fields = _decode_fields(value)
    except BAD_BYTES:  # an envelope in msgpack, or nothing at all
        return value
    for name, text in (("id", event_id), ("time", _time_of(entry_id))):
        if bytes(fields.get(name, _NULL)) == b"null":
            fields[name] = Raw(_encode(text))
    return _encode(fields)


def _time_of(entry_id: str) -> str:
    return _moment(ids.id_order(entry_id)[0] / 1000)
