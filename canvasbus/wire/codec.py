"""Event ↔ Envelope ↔ the bytes of one stream entry.

An entry has one field, `e`. Its value is the Envelope as a msgpack array, or, so that any language and `redis-cli` can
publish, a CloudEvents-shaped JSON object; the first byte tells them apart.

Publishing validates by decoding what was just encoded (0.3 µs for 200 bytes): msgspec does not check types when a
Struct is built, and a wrong type found by the caller is a line to fix, found by a worker it is a dead letter at night.
NaN is looked for in the encoded bytes first, where every non-finite float64 starts with 0xcb and 0x7ff or 0xfff, and
only when something looks like it field by field.

Bounds against hostile bytes: the size limit holds before decoding, types bound the nesting (events have no `Any`), and
RecursionError and UnicodeDecodeError, which msgspec lets through, are decode errors too.
"""

import re
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime
from math import isfinite
from operator import attrgetter
from typing import Annotated, Any
from uuid import UUID

import msgspec

from canvasbus import clock, ids
from canvasbus.checks import has_surrogates
from canvasbus.choices import with_choices
from canvasbus.contract.event import Event
from canvasbus.contract.finite import non_finite_path, plain_number
from canvasbus.contract.raw import JsonDecoder
from canvasbus.contract.registry import EventType, Registry, registry
from canvasbus.errors import ConfigError, ContractError, DecodeError, EncodeError
from canvasbus.wire import later
from canvasbus.wire.cloudevents import BAD_BYTES, MOVED_BYTES, open_json, said
from canvasbus.wire.envelope import Envelope
from canvasbus.wire.keys import LATER_INBOX
from canvasbus.wire.outgoing import HEAD, Alike, Outgoing

MAX_EVENT_BYTES = 1024 * 1024
"""Default size limit of one encoded event, envelope included."""
MAX_SOURCE = 1000
"""Characters."""

VERSIONS_AHEAD = 100
"""An event so many versions newer than the newest that is known here has a wrong number, not a newer worker."""

KEYS_KEPT = 1000


def encode_number(value: Any) -> Any:
    """Publishes a scalar as the number that it is. msgspec asks only for what it does not know, so this costs nothing
    else."""
    number, kind = plain_number(value), type(value)
    if type(number) is kind:  # no scalar, or one of a kind that Python has none of, like longdouble
        raise TypeError(f"a {kind.__module__}.{kind.__qualname__} cannot be encoded")
    return number


_encode = msgspec.msgpack.Encoder(uuid_format="bytes", enc_hook=encode_number).encode
decode_envelope = msgspec.msgpack.Decoder(Envelope).decode
"""The envelope in msgpack bytes, unchecked; raises whatever msgspec raises."""
_BAD_EVENT = (msgspec.MsgspecError, TypeError, OverflowError, UnicodeEncodeError, RecursionError)
_UUID_BYTES = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
_looks_non_finite = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]", re.DOTALL).search


class _Plan(msgspec.Struct, frozen=True, gc=False):
    """What encoding events of one class for one source needs, looked up once."""

    declared: EventType
    validate: Callable[[bytes], object]
    middle: bytes
    """The envelope's bytes from type to source."""
    key: Callable[[Event], object] | None
    floats: bool
    one_float: Callable[[Event], float] | None
    keys: dict[str | None, bytes]
    """The bytes of keys seen lately: most producers have a few."""

    def remember(self, key: str | None) -> bytes:
        if len(self.keys) >= KEYS_KEPT:
            self.keys.clear()
        encoded = self.keys[key] = _encode(key)
        return encoded


class Codec:
    """Encodes events on behalf of one source and decodes entries. Safe in threads.

    The envelope is written by hand, 110 ns against 300 for building and encoding an Envelope; tests/wire/test_codec.py
    compares the bytes with msgspec's.
    """

    __slots__ = ("_plans", "limit", "limited_by", "registry", "source")

    def __init__(
        self,
        source: str = "",
        *,
        limit: int = MAX_EVENT_BYTES,
        limited_by: str = "max_event_bytes",
        registry: Registry = registry,
    ) -> None:
        """`limited_by`: the setting that `limit` comes from."""
        if not isinstance(source, str):  # it would be stored, and nobody could read it
            raise ConfigError(f"source={source!r}: a text is wanted, which says who publishes")
        if has_surrogates(source):
            raise ConfigError(f"source={source!r}: it has a lone surrogate, which UTF-8 cannot carry; leave it out")
        if len(source) > MAX_SOURCE:
            raise ConfigError(
                f"source={source[:20]!r}... is {len(source):,} characters: every event carries it, use at most {MAX_SOURCE:,}"
            )
        self.source = source
        self.limit = limit
        self.limited_by = limited_by
        self.registry = registry
        self._plans: dict[type, _Plan] = {}

    def encode(
        self,
        event: Event,
        *,
        event_id: UUID | None = None,
        causation_id: UUID | None = None,
        traceparent: str | None = None,
        expires_on: float | None = None,
    ) -> Outgoing:
        """Encode and validate one event.

        Raises EncodeError for wrong field types, values out of bounds, NaN, naive datetimes and events over the size
        limit; ContractError for a class that was never declared.
        """
        plan = self._plans.get(event.__class__) or self._plan(event)
        try:
            payload = _encode(event)
            try:
                plan.validate(payload)
            except msgspec.ValidationError:  # the class itself has the last word, and the better error
                plan.declared.decoder.decode(payload)
            key: Any = plan.key(event) if plan.key else None
            if key.__class__ is not str and key is not None:
                key = _text(key)
            key_bytes = plan.keys.get(key) or plan.remember(key)
        except _BAD_EVENT as error:
            raise _cannot(plan, error) from error
        if plan.one_float:
            if not isfinite(plan.one_float(event)):
                _refuse_non_finite(plan, event)
        elif plan.floats and _looks_non_finite(payload):
            _refuse_non_finite(plan, event)
        raw_id = ids.uuid7_bytes() if event_id is None else event_id.bytes
        if causation_id is None and traceparent is None and expires_on is None:
            data = b"".join((HEAD, raw_id, plan.middle, key_bytes, b"\xc0\xc0", payload, b"\xc0"))
        else:
            tail = (_encode(causation_id), _encode(traceparent), payload, _encode(expires_on))
            data = b"".join((HEAD, raw_id, plan.middle, key_bytes, *tail))
        if len(data) > self.limit:
            raise _too_large(plan, data, self)
        return Outgoing(raw_id, plan.declared.name, key, data)

    def encode_for(
        self,
        event: Event,
        expires_in: float | None,
        after: float | None = None,
        at: datetime | None = None,
        dedupe_key: str | None = None,
        traceparent: str | None = None,
    ) -> Outgoing:
        """Encode an event that goes stale `expires_in` seconds after it was published, which is `after` seconds from
        now, or `at` a moment, or now, and is stored once under its `dedupe_key`. Raises as `encode` does, and
        ContractError for what is no time and no key."""
        delayed = after is not None or at is not None
        event_id = None if dedupe_key is None else self._keyed(event, dedupe_key)
        when = later.due(after, at, f"publish {type(event).__name__}") if delayed else ""
        expires_on = expiry(expires_in, after=after, at=at)
        item = self.encode(event, event_id=event_id, traceparent=traceparent, expires_on=expires_on)
        once = dedupe_key is not None
        if delayed:
            return Outgoing(item.raw_id, LATER_INBOX, item.key, later.wrap(when, item.type, item.data), once)
        return Outgoing(item.raw_id, item.type, item.key, item.data, True) if once else item

    def _keyed(self, event: Event, dedupe_key: str) -> UUID:
        plan = self._plans.get(event.__class__) or self._plan(event)
        if not isinstance(dedupe_key, str) or not dedupe_key:
            raise ContractError(
                f"publish {plan.declared.name}: dedupe_key={dedupe_key!r}: use a text that names this one event, like "
                "'run-7:epoch-3'"
            )
        return ids.keyed(plan.declared.name, dedupe_key)

    def encode_many(self, events: Sequence[Event], traceparent: str | None = None) -> Sequence[Outgoing]:
        """Encode a batch of plain events of one trace: the same as `encode` for each.

        A batch of one class, the ordinary case, goes step by step through C loops (0.8 µs an event against 1.4). Raises
        at the first event that cannot be published.
        """
        if len(set(map(type, events))) == 1:
            plan = self._plans.get(events[0].__class__) or self._plan(events[0])
            outgoing = self._encode_alike(plan, events, traceparent)
            if outgoing is not None:
                return outgoing
        return [self.encode(event, traceparent=traceparent) for event in events]

    def _encode_alike(self, plan: _Plan, events: Sequence[Event], traceparent: str | None) -> Alike | None:
        """Events of one class; None when one of them needs a closer look."""
        try:
            payloads = list(map(_encode, events))
            deque(map(plan.validate, payloads), 0)
        except _BAD_EVENT:
            return None
        keys: list[Any] = list(map(plan.key, events)) if plan.key else [None] * len(events)
        distinct = set(keys)
        if (plan.key and set(map(type, distinct)) != {str}) or (
            not all(map(isfinite, map(plan.one_float, events)))
            if plan.one_float
            else plan.floats and any(map(_looks_non_finite, payloads))
        ):
            return None
        join, (prefix, rests) = b"".join, ids.uuid7_parts(len(events))
        head, tail = HEAD + prefix, b"\xc0" + _encode(traceparent)
        middles = {key: join((plan.middle, _encode(key), tail)) for key in distinct}
        if len(distinct) == 1:
            middle = middles.popitem()[1]
            datas = [
                join((head, rest, middle, payload, b"\xc0")) for (rest,), payload in zip(rests, payloads, strict=True)
            ]
        else:
            datas = [
                join((head, rest, middles[key], payload, b"\xc0"))
                for (rest,), key, payload in zip(rests, keys, payloads, strict=True)
            ]
        alike = Alike(plan.declared.name, keys, datas)
        return alike if max(alike.sizes) <= self.limit else None

    def _plan(self, event: Event) -> _Plan:
        declared = getattr(event, "__event_type__", None)
        if declared is None or declared.cls is not event.__class__:
            raise _not_an_event(event, self.registry)
        middle = _encode(declared.name) + _encode(declared.version) + _encode(self.source)
        key = attrgetter(declared.key) if declared.key else None
        floats = declared.has_floats and declared.one_float is None
        plan = _Plan(declared, _validator(declared), middle, key, floats, declared.one_float, {})
        self._plans[event.__class__] = plan
        return plan

    def decode(self, value: bytes, *, stream_type: str, entry_id: str) -> tuple[Envelope, Event]:
        """Decode the value of an entry's `e` field. Raises DecodeError, whose `reason` says what kind it is."""
        envelope = self.open_envelope(value, stream_type=stream_type, entry_id=entry_id)
        if value[:1] == b"{":
            return self.decode_json(envelope)
        declared = self._declared(envelope)
        if envelope.version != declared.version:
            return envelope, _upcast(envelope, declared, is_json=False)
        return envelope, _decoded(envelope, declared.decoder)

    def decode_json(self, envelope: Envelope) -> tuple[Envelope, Event]:
        """Decode an envelope whose payload is JSON. Whoever wrote it need not have known which field is the key."""
        declared = self._declared(envelope)
        if envelope.version != declared.version:
            event = _upcast(envelope, declared, is_json=True)
        else:
            event = _decoded(envelope, declared.json_decoder)
        if declared.key is not None:
            envelope = msgspec.structs.replace(envelope, key=_text(getattr(event, declared.key)))
        return envelope, event

    def _declared(self, envelope: Envelope) -> EventType:
        newest = self.registry.latest(envelope.type)
        if newest is None:
            raise DecodeError(
                f"no event class for {envelope.type!r} is imported in this process", reason="unknown_type"
            )
        if envelope.version > newest.version:
            raise DecodeError(
                f"{envelope.type} v{envelope.version} is not known here; the newest known version is v{newest.version}",
                reason="newer_version" if envelope.version - newest.version <= VERSIONS_AHEAD else "unknown_type",
            )
        if envelope.version < newest.upcasters.since:
            raise DecodeError(
                f"{envelope.type} v{envelope.version} is not read here; the oldest version that is read is "
                f"v{newest.upcasters.since}",
                reason="unknown_type",
            )
        return newest

    def open_envelope(self, value: bytes, *, stream_type: str, entry_id: str) -> Envelope:
        """Read the envelope and leave the payload alone (routing, dead letters, `tail`)."""
        is_json, over = value[:1] == b"{", len(value) - self.limit
        if over > (MOVED_BYTES if is_json else 0):
            raise DecodeError(f"{len(value):,} bytes, over the limit of {self.limit:,}", reason="oversize")
        if is_json:
            return open_json(value, stream_type, entry_id, moved=over > 0)
        try:
            envelope = decode_envelope(value)
        except BAD_BYTES as error:
            if value[:1] < b"\x80":  # to msgpack a small number, but much rather a text
                raise DecodeError(
                    "not an envelope: neither a JSON object, which begins with {, nor a msgpack array"
                ) from error
            raise DecodeError(f"not an envelope: {said(error)}") from error
        if envelope.type != stream_type:
            raise DecodeError(
                f"an event of type {envelope.type!r} lies on the stream of {stream_type!r}", reason="foreign"
            )
        return envelope


_msgpack_fields = msgspec.msgpack.Decoder(dict[str, Any]).decode
_json_fields = msgspec.json.Decoder(dict[str, Any]).decode


def _decoded(
    envelope: Envelope, decoder: msgspec.msgpack.Decoder[Event] | msgspec.json.Decoder[Event] | JsonDecoder
) -> Event:
    try:
        return decoder.decode(envelope.data)
    except msgspec.ValidationError as error:
        named = " (its `time`)" if decoder.__class__ is msgspec.json.Decoder and "`$.occurred_on`" in str(error) else ""
        words = with_choices(error, decoder.type)
        raise DecodeError(f"{envelope.type} v{envelope.version}: {words}{named}", reason="invalid") from error
    except BAD_BYTES as error:
        raise DecodeError(f"{envelope.type} v{envelope.version}: {said(error)}") from error


def _text(key: Any) -> str:
    """A key as it travels: of a number, an enum or a UUID its text."""
    return key if key.__class__ is str else str(getattr(key, "value", key))


def _upcast(envelope: Envelope, declared: EventType, *, is_json: bool) -> Event:
    """An event of an older version as one of the newest."""
    version = envelope.version
    try:
        raw = (_json_fields if is_json else _msgpack_fields)(envelope.data)
    except msgspec.ValidationError as error:
        raise DecodeError(f"{envelope.type} v{version}: {error}", reason="invalid") from error
    except BAD_BYTES as error:
        raise DecodeError(f"{envelope.type} v{version}: {said(error)}") from error
    raw = declared.upcasters(version, raw)
    try:
        if is_json:
            return declared.json_decoder.decode(msgspec.json.encode(raw))
        return declared.decoder.decode(_encode(raw))
    except (*BAD_BYTES, *_BAD_EVENT) as error:
        raise DecodeError(
            f"{envelope.type} v{version}, upcast by {declared.upcasters.path(version)}, is no v{declared.version}: "
            f"{said(error)}",
            reason="upcast_failed",
        ) from error


def _validator(declared: EventType) -> Callable[[bytes], object]:
    """What decodes a payload only to see whether it can be decoded. A UUID is 16 bytes to it: making the UUIDs that
    every event has takes a third of the time. It may refuse what the class accepts, never the other way round."""
    fields = [
        (field.encode_name, _UUID_BYTES if field.type is UUID else field.type)
        for field in msgspec.structs.fields(declared.cls)
    ]
    names = [f"f{number}" for number in range(len(fields))]
    shape = msgspec.defstruct(
        declared.cls.__name__,
        list(zip(names, [kind for _, kind in fields], strict=True)),
        rename=dict(zip(names, [name for name, _ in fields], strict=True)),
        frozen=True,
        gc=False,
        forbid_unknown_fields=declared.cls.__struct_config__.forbid_unknown_fields,
    )
    return msgspec.msgpack.Decoder(shape).decode


def _cannot(plan: _Plan, error: Exception) -> EncodeError:
    said = with_choices(error, plan.declared.cls)
    return EncodeError(f"{plan.declared.name} v{plan.declared.version} cannot be published: {said}")


def _too_large(plan: _Plan, data: bytes, codec: Codec) -> EncodeError:
    return EncodeError(
        f"{plan.declared.name} v{plan.declared.version} is {len(data):,} bytes, over the limit of {codec.limit:,} "
        f"({codec.limited_by}). Store the large part elsewhere and publish its URI and sha256"
    )


def _refuse_non_finite(plan: _Plan, event: Event) -> None:
    path = non_finite_path(event, msgspec.inspect.type_info(plan.declared.cls))
    if path:
        raise EncodeError(
            f"{plan.declared.name} v{plan.declared.version} cannot be published: NaN or infinity at `{path}`. Leave "
            "the value out, or allow it with Annotated[float, canvasbus.ALLOW_NON_FINITE]"
        )


def _not_an_event(event: object, known: Registry) -> Exception:
    if isinstance(event, Event):
        try:
            known.of(type(event))
        except Exception as error:
            return error
    return EncodeError(f"publish takes an Event, not {type(event).__qualname__}")


def expiry(expires_in: float | None, *, after: float | None = None, at: datetime | None = None) -> float | None:
    """Wall time in seconds at which an event published now goes stale, or one that comes `after` seconds or `at` a
    moment. Raises EncodeError for what is no time."""
    if expires_in is None:
        return None
    if not (isinstance(expires_in, int | float) and isfinite(expires_in)):
        raise EncodeError(f"expires_in={expires_in!r}: use a finite number of seconds")
    return (at.timestamp() if at is not None else clock.time() + (after or 0.0)) + expires_in
