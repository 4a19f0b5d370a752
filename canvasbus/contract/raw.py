"""Fields of type `msgspec.Raw`: undecoded bytes, and msgpack whatever they came as, so that a handler may read them and hand
them on without asking who wrote the entry. In a CloudEvents object they are the value that they stand for.

Of JSON they are made while it is read, untyped: 1 MiB of hostile bytes, the limit, takes 76 MB for that moment.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Raw, Struct

from canvasbus.contract.event import Event
from canvasbus.errors import EncodeError


def builtins(event: Struct) -> dict[str, Any]:
    """The fields as what JSON knows. Raises EncodeError for undecoded bytes that stand for nothing of the kind."""
    try:
        found: dict[str, Any] = msgspec.to_builtins(event, enc_hook=_value)
    except (TypeError, ValueError, RecursionError, OverflowError, msgspec.MsgspecError) as error:
        raise EncodeError(f"a {type(event).__qualname__} has no JSON: {error}") from error
    return found


def _value(undecoded: Any) -> Any:
    if not isinstance(undecoded, Raw):
        raise TypeError(f"{type(undecoded).__name__} is unknown there")
    return msgspec.to_builtins(msgspec.msgpack.decode(undecoded), str_keys=True)


class JsonDecoder:
    """Decodes JSON as an event in which there are undecoded bytes."""

    __slots__ = ("_decode", "type")

    def __init__(self, cls: type[Event]) -> None:
        self._decode = msgspec.json.Decoder(cls).decode
        self.type = cls

    def decode(self, value: bytes | str | Raw) -> Event:
        """Raises what msgspec raises."""
        event: Event = _as_msgpack(self._decode(value))
        return event


def _as_msgpack(value: Any) -> Any:
    """A decoded value with msgpack where JSON was left undecoded."""
    if isinstance(value, Raw):
        return Raw(msgspec.msgpack.encode(msgspec.json.decode(value)))
    if isinstance(value, Struct):
        own = (None,) * (len(value.__struct_fields__) - len(value.__struct_defaults__)) + value.__struct_defaults__
        changed = {}
        for name, default in zip(value.__struct_fields__, own, strict=True):
            before = getattr(value, name)
            after = before if before is default else _as_msgpack(before)  # a default is no JSON
            if after is not before:
                changed[name] = after
        return msgspec.structs.replace(value, **changed) if changed else value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        return dataclasses.replace(value, **{name: _as_msgpack(inner) for name, inner in fields.items()})
    if isinstance(value, tuple):
        parts = list(map(_as_msgpack, value))
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, Mapping):
        return {key: _as_msgpack(inner) for key, inner in value.items()}
    return value
