"""One example of an event type, the same every time: every field filled in, also those with a default.

A value comes from `Meta(examples=[...])` where the type gives one, else it is made to fit the type: texts are the field's
name, times are the day on which this was written. Bytes are the float32 0.5, so that packed arrays make sense.
"""

import uuid
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import msgspec
from msgspec import inspect as mi

from canvasbus.contract.event import Event
from canvasbus.contract.registry import EventType
from canvasbus.errors import ContractError

MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
CORRELATION = uuid.UUID("0194226e-79fe-7000-8000-00000000c0de")
_HALF = b"\x00\x00\x00\x3f"
_DEEP = 6

_encode = msgspec.msgpack.Encoder(uuid_format="bytes").encode


class _NoValue(Exception):
    """No value can be made up for a type."""


def example(declared: EventType) -> Event:
    """An event of this type. Raises ContractError, with what to write, for a field that no value can be made up for."""
    try:
        fields = _struct(mi.type_info(declared.cls), 0)
        return declared.decoder.decode(_encode(fields | {"occurred_on": MOMENT, "correlation_id": CORRELATION}))
    except _NoValue as error:
        raise ContractError(
            f"{declared.name} v{declared.version}: no example can be made up for field {error}: give its type "
            "Annotated[..., msgspec.Meta(examples=[...])]"
        ) from None
    except msgspec.ValidationError as error:
        raise ContractError(
            f"{declared.name} v{declared.version}: the example made up for it is no such event: {error}; give the field's "
            "type Annotated[..., msgspec.Meta(examples=[...])]"
        ) from None


def _struct(info: Any, depth: int) -> Any:
    made: dict[str, Any] = {}
    for field in info.fields:
        try:
            made[field.encode_name] = _value(field.type, field.name, depth)
        except _NoValue as error:
            if field.required:
                raise _NoValue(f"{field.name}.{error}" if error.args else field.name) from None
    if isinstance(info, mi.StructType) and info.tag_field is not None:
        made = {info.tag_field: info.tag, **made}
    as_array = isinstance(info, mi.NamedTupleType) or getattr(info, "array_like", False)
    return list(made.values()) if as_array else made


def _value(info: Any, name: str, depth: int) -> Any:
    while isinstance(info, mi.Metadata):
        given = (info.extra_json_schema or {}).get("examples")
        if given:
            return given[0]
        info = info.type
    if depth > _DEEP:
        raise _NoValue
    match info:
        case mi.UnionType():
            return _value(next(t for t in info.types if not isinstance(t, mi.NoneType)), name, depth)
        case mi.StructType() | mi.DataclassType() | mi.NamedTupleType():
            return _struct(info, depth + 1)
        case mi.TupleType():
            return [_value(inner, name, depth) for inner in info.item_types]
        case mi.CollectionType():
            return _several(info, lambda: _value(info.item_type, name, depth + 1))
        case mi.DictType() | mi.FrozenDictType():
            if (info.min_length or 0) > 1:
                raise _NoValue
            return {_value(info.key_type, name, depth + 1): _value(info.value_type, name, depth + 1)}
    return _scalar(info, name)


def _several(info: Any, make: Any) -> list[Any]:
    """One item, or as many as there must be; none where one cannot be made up, as in a type that contains itself."""
    count = max(1, info.min_length or 0)
    if info.max_length == 0:
        return []
    try:
        item = make()
    except _NoValue:
        if info.min_length:
            raise
        return []
    if count > 1 and isinstance(info, mi.SetType | mi.FrozenSetType):
        raise _NoValue
    return [item] * count


def _scalar(info: Any, name: str) -> Any:
    match info:
        case mi.StrType():
            if info.pattern is not None:
                raise _NoValue
            return name.ljust(info.min_length or 0, "x")[: info.max_length]
        case mi.BytesType():
            return _HALF.ljust(info.min_length or 0, b"\0")[: info.max_length]
        case mi.IntType() | mi.FloatType():
            return _number(info)
        case mi.LiteralType():
            return next(value for value in info.values if value is not None)
        case mi.EnumType():
            return min(member.value for member in info.cls)
    try:
        return _PLAIN[type(info)]
    except KeyError:
        raise _NoValue from None


def _number(info: Any) -> Any:
    """The multiple of the step that lies next to 1 or 0.25 and within the bounds."""
    step = info.multiple_of or (1 if isinstance(info, mi.IntType) else 0.25)
    value = step
    for bound, off in ((info.ge, 0), (info.gt, step)):
        if bound is not None and value < bound + off:
            value = -(-bound // step) * step + (off if bound % step == 0 else 0)
    for bound, off in ((info.le, 0), (info.lt, step)):
        if bound is not None and value > bound - off:
            value = bound // step * step - (off if bound % step == 0 else 0)
    return int(value) if isinstance(info, mi.IntType) else float(value)


_PLAIN: dict[Any, Any] = {
    mi.BoolType: True,
    mi.DateTimeType: MOMENT,
    mi.DateType: date(2026, 1, 2),
    mi.TimeType: time(3, 4, 5, tzinfo=UTC),
    mi.TimeDeltaType: timedelta(minutes=5),
    mi.UUIDType: CORRELATION,
    mi.DecimalType: Decimal("0.5"),
    mi.RawType: {},
    mi.NoneType: None,
}
