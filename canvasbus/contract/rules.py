"""The rules that the declaration of an event must keep: its name, its key, its fields.

Every rule is checked at import, because an event that cannot be encoded, or that two readers may change under each
other, should stop a deployment and not a worker at night.
"""

import enum
import re
import types
import typing
from collections import abc
from dataclasses import is_dataclass
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import msgspec
from msgspec import Meta, Struct

from canvasbus.contract.event import Event
from canvasbus.contract.walk import walk_types
from canvasbus.errors import ContractError

_TYPE_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*")
MAX_TYPE_NAME = 128
"""Characters in an event type's name; it becomes part of a Redis key and of a file name."""

_KEY_TYPES = (str, int, UUID, enum.Enum)


def check_name(name: str) -> None:
    """Raises ContractError for what is no name of an event type."""
    if not _TYPE_NAME.fullmatch(name) or len(name) > MAX_TYPE_NAME:
        raise ContractError(
            f"{name!r} is not an event type: use lower-case words joined by dots, like 'drift.detected', "
            f"at most {MAX_TYPE_NAME} characters"
        )


def check_key(cls: type[Event], name: str, key: str) -> None:
    """Raises ContractError for a key that is no field, or whose type is none for a key."""
    hints = {field: hint for field, hint in typing.get_type_hints(cls).items() if field in cls.__struct_fields__}
    if key not in hints:
        raise ContractError(
            f"{name}: key={key!r} is not a field of {qualified(cls)}; its fields are {', '.join(hints)}"
        )
    kind = hints[key]
    if not (isinstance(kind, type) and issubclass(kind, _KEY_TYPES)) or kind is bool:
        raise ContractError(f"{name}: the key {key!r} must be a str, int, UUID or enum, not {kind}")


def check_fields(cls: type[Event], name: str) -> None:
    """Raises ContractError for fields that could change, that msgspec cannot encode, or that others would misread."""
    config = cls.__struct_config__
    if not config.frozen:
        raise ContractError(f"{name}: events are immutable; do not pass frozen=False")
    if config.array_like:
        raise ContractError(f"{name}: fields travel by name; do not pass array_like=True")
    if config.tag is not None:
        raise ContractError(f"{name}: the envelope names the type; do not pass tag= or tag_field=")
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except (TypeError, NameError) as error:
        raise ContractError(f"{name}: msgspec cannot encode {qualified(cls)}: {error}") from error
    for field, hint in hints.items():
        if field == "__event_type__":
            continue
        problem = _problem(hint, set())
        if problem:
            raise ContractError(f"{name}: field {field!r} {problem}")
    try:
        info = msgspec.inspect.type_info(cls)
        msgspec.msgpack.Decoder(cls)
        msgspec.json.Decoder(cls)
    except (TypeError, NameError) as error:
        raise ContractError(f"{name}: msgspec cannot encode {qualified(cls)}: {error}") from error
    for found in info.fields:  # type: ignore[attr-defined]
        problem = _base_problem(found) or next(filter(None, map(_type_problem, walk_types(found.type))), None)
        if problem:
            raise ContractError(f"{name}: field {found.name!r} {problem}")


_BASE = {"occurred_on": ("DateTimeType", "a canvasbus.AwareDatetime"), "correlation_id": ("UUIDType", "a UUID")}


def _base_problem(field: Any) -> str | None:
    """The two fields that every event has keep their names and types, because the bus itself reads and sets them."""
    if field.name not in _BASE:
        return None
    if field.encode_name != field.name:
        return (
            f"would be {field.encode_name!r} on the wire, where other languages look for {field.name!r}: do not pass "
            "rename=, rename single fields with msgspec.field(name=...)"
        )
    kind, wanted = _BASE[field.name]
    if type(field.type).__name__ != kind:
        return f"is the bus's own: it stays {wanted}, take another name for yours"
    return None


def _type_problem(info: Any) -> str | None:
    """What is wrong with one type inside a field, as msgspec sees it: what its annotation alone does not show."""
    inspect = msgspec.inspect
    if isinstance(info, inspect.AnyType):
        return _ANY
    if isinstance(info, inspect.ListType):
        return "decodes into a list, which can change: declare it as tuple[X, ...]"
    if isinstance(info, inspect.SetType):
        return "decodes into a set, which can change: declare it as frozenset[X]"
    if isinstance(info, inspect.TypedDictType):
        return f"holds a {info.cls.__qualname__}, a dict, which can change: declare it as a frozen Struct"
    if isinstance(info, inspect.DictType | inspect.FrozenDictType):
        if any(isinstance(kind, _NO_KEYS) for kind in walk_types(info.key_type)):
            return "is a map with keys that JSON has no text for: key it by a str, a number, a UUID, a time or an enum"
        if isinstance(info.key_type, inspect.LiteralType) and None in info.key_type.values:
            return "is a map with None among its keys, which JSON has no text for"
    if isinstance(info, inspect.CustomType):
        return f"holds a {getattr(info.cls, '__qualname__', info.cls)}, which msgspec cannot encode"
    return None


_NO_KEYS = (
    *(msgspec.inspect.BoolType, msgspec.inspect.NoneType, msgspec.inspect.TupleType, msgspec.inspect.CollectionType),
    *(msgspec.inspect.StructType, msgspec.inspect.DataclassType, msgspec.inspect.NamedTupleType),
    *(msgspec.inspect.RawType, msgspec.inspect.DictType),
)

_LIMITS = ("ge", "gt", "le", "lt", "multiple_of", "min_length", "max_length")


def _crashes(options: tuple[Any, ...]) -> bool:
    """msgspec looks for the types of a fixed tuple where the limits of another option lie. (Asked of the hints: msgspec's
    own view of a type makes a decoder first, which may be the end of the process.)"""
    plain, limited = [], False
    for option in options:
        if typing.get_origin(option) is Annotated:
            option, *metas = typing.get_args(option)
            limited |= any(isinstance(m, Meta) and getattr(m, limit) is not None for m in metas for limit in _LIMITS)
        plain.append(option)
    fixed = (typing.get_origin(option) is tuple and Ellipsis not in typing.get_args(option) for option in plain)
    return limited and any(fixed)


_MUTABLE: dict[Any, str] = {
    list: "tuple[X, ...]",
    set: "frozenset[X]",
    dict: "collections.abc.Mapping[K, V]",
    bytearray: "bytes",
    memoryview: "bytes",
    abc.MutableMapping: "collections.abc.Mapping[K, V]",
    abc.MutableSequence: "tuple[X, ...]",
    abc.MutableSet: "frozenset[X]",
    typing.List: "tuple[X, ...]",  # noqa: UP006
    typing.Dict: "collections.abc.Mapping[K, V]",  # noqa: UP006
}


def _problem(hint: Any, seen: set[Any]) -> str | None:
    """What is wrong with a field's type, as the rest of a sentence that begins with the field; None when nothing is."""
    origin = typing.get_origin(hint)
    if origin is Annotated:
        base, *metas = typing.get_args(hint)
        if base is datetime:
            return None if any(isinstance(m, Meta) and m.tz for m in metas) else _NAIVE
        return _problem(base, seen)
    if hint is Any or hint is object:
        return _ANY
    if hint is datetime:
        return _NAIVE
    mutable = _MUTABLE.get(origin or hint) if isinstance(origin or hint, abc.Hashable) else None
    if mutable:
        return f"is a {getattr(origin or hint, '__name__', hint)}, which can change: declare it as {mutable}"
    holder = origin or hint  # Box of Box[int]
    if isinstance(holder, type) and (is_dataclass(holder) or issubclass(holder, Struct) or hasattr(holder, "_fields")):
        if hint in seen:
            return None
        seen.add(hint)
        if not _is_frozen(holder):
            return f"holds a {holder.__qualname__}, which can change: declare it with frozen=True"
        for field, inner in typing.get_type_hints(holder, include_extras=True).items():
            problem = _problem(inner, seen)
            if problem:
                return f"holds a {holder.__qualname__} whose field {field!r} {problem}"
    if origin in (typing.Union, types.UnionType) and _crashes(typing.get_args(hint)):
        return (
            "allows either a tuple of fixed length or a value with limits, which msgspec 0.22 decodes into wrong memory, up "
            "to a crash: declare the tuple as tuple[X, ...] or as a Struct, or leave the limits out"
        )
    if origin is not None:
        for inner in typing.get_args(hint):
            if inner is not Ellipsis and not isinstance(inner, str | int | bytes | list):
                problem = _problem(inner, seen)
                if problem:
                    return problem
    return None


def _is_frozen(holder: Any) -> bool:
    if issubclass(holder, Struct):
        return bool(holder.__struct_config__.frozen)
    dataclass_says = getattr(holder, "__dataclass_params__", None)
    return bool(dataclass_says.frozen) if dataclass_says else issubclass(holder, tuple)


_ANY = (
    "is Any, or holds it (a container without item types does): a small value of an unknown shape can decode into "
    "hundreds of megabytes. Give it a type, or msgspec.Raw for msgpack that stays undecoded"
)
_NAIVE = (
    "is a datetime that may have no time zone: declare it as canvasbus.AwareDatetime "
    "(Annotated[datetime, msgspec.Meta(tz=True)])"
)


def qualified(cls: type) -> str:
    """A class as messages name it."""
    return f"{cls.__module__}.{cls.__qualname__}"
